//! The one loop: it owns the outbox, the slots and the counts, takes events and sends messages.

use crate::annotate::Model;
use crate::camera::{CameraEvent, Progress, now_ms, progress_file};
use crate::config::EdgeConfig;
use crate::outbox::{Disk, Outbox, Sender, replace_file};
use crate::policy::{Quota, Skip, local_ms};
use crate::publish::{self, Histogram, Topics};
use crate::service::board::{Board, CameraState, Seen, State, Step};
use crate::service::engine::{Command, Labelled, Skipped};
use crate::service::trial::Report;
use crate::service::{Event, Loader, Outgoing, Summary};
use crate::slots::Slots;
use crate::update::Fetch;
use ed25519_dalek::VerifyingKey;
use omnilabel_keypoints::label::Label;
use omnilabel_keypoints::wire::topic::Kind;
use omnilabel_keypoints::wire::{AckMsg, Encoding, LabelMsg, Message, StatusMsg, VERSION};
use omnilabel_link::Incoming;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A group of labels is committed at this size …
const GROUP: usize = 64;
/// … or at this age.
const GROUP_AGE: Duration = Duration::from_millis(250);
/// Counts are reported this often when they change.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// How often what is shown of the device is brought up to date.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How often quotas are noted when they change.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// What a restart has to know of the quota of frames …
const FRAMES_QUOTA: &str = "frames.quota";
/// … and of labels.
pub(super) const LABELS_QUOTA: &str = "labels.quota";
/// Room that is left in the outgoing queue for messages that are not labels.
const SPARE: usize = 8;

/// The appliance's state and rules.
pub(super) struct Core {
    pub(super) config: EdgeConfig,
    pub(super) topics: Topics,
    pub(super) outbox: Outbox<Disk>,
    sender: Sender,
    pub(super) slots: Slots,
    pub(super) key: VerifyingKey,
    pub(super) loader: Arc<dyn Loader>,
    /// The model of the confirmed slot.
    pub(super) confirmed: Arc<Model>,
    /// The model on probation.
    pub(super) candidate: Option<Arc<Model>>,
    pub(super) fetch: Option<Fetch>,
    /// A release that came while another was tried.
    pub(super) later: Option<Vec<u8>>,
    pub(super) report: Report,
    pub(super) commands: SyncSender<Command>,
    pub(super) events: mpsc::Sender<Event>,
    outgoing: mpsc::Sender<Outgoing>,
    connected: bool,
    counts: Summary,
    histogram: Histogram,
    /// Mean time of the confirmed model for a view of a frame, seconds.
    pub(super) mean_secs: Option<f64>,
    pub(super) last_frame: Instant,
    oldest_uncommitted: Option<Instant>,
    status_sent: Option<(Instant, StatusMsg)>,
    histogram_sent: Option<(Instant, u64)>,
    /// Of each camera, where it notes how far it is.
    progress: Vec<Option<Progress>>,
    pub(super) cameras: Vec<CameraState>,
    skipped: Skips,
    frames_quota: Quota,
    labels_quota: Option<Quota>,
    /// When which quotas were noted.
    noted: (Instant, Option<Quota>, Quota),
    /// Where it is shown what the device does.
    board: Arc<Board>,
    shown: Option<Instant>,
    pub(super) link: LinkState,
    views: usize,
    /// Frames in their order that wait for room in the outbox, beginning with a label that could not be written.
    held: VecDeque<Held>,
    held_tried: Instant,
    /// Tells the engine to take no more frames.
    hold: Arc<AtomicBool>,
}

/// A frame behind a label that could not be written.
struct Held {
    /// The label; none for a frame that gets none.
    label: Option<Box<Labelled>>,
    camera: usize,
    position: Option<usize>,
}

/// Frames that were not labelled, by reason.
#[derive(Default)]
struct Skips {
    near_duplicate: u64,
    quota: u64,
    schedule: u64,
}

/// A quota as a restart finds it.
pub(super) fn read_quota(path: &Path) -> Quota {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Notes a quota for a restart.
fn note_quota(path: &Path, quota: Quota) {
    let written = serde_json::to_vec(&quota).map_err(std::io::Error::from).and_then(|bytes| replace_file(path, &bytes));
    if let Err(error) = written {
        tracing::warn!(%error, file = %path.display(), "a quota cannot be noted");
    }
}

/// The connection to the broker.
#[derive(Clone, Debug)]
pub(super) struct LinkState {
    pub(super) since: Instant,
    pub(super) reason: String,
}

impl Core {
    #[expect(clippy::too_many_arguments, reason = "each is one end of the wiring, given once")]
    pub(super) fn new(
        config: EdgeConfig,
        topics: Topics,
        outbox: Outbox<Disk>,
        slots: Slots,
        key: VerifyingKey,
        loader: Arc<dyn Loader>,
        confirmed: Arc<Model>,
        outgoing: mpsc::Sender<Outgoing>,
        commands: SyncSender<Command>,
        events: mpsc::Sender<Event>,
        progress: Vec<Option<Progress>>,
        board: Arc<Board>,
    ) -> Self {
        let cameras = config.cameras().iter().map(|(name, camera)| CameraState::new(name, camera)).collect();
        let frames_quota = read_quota(&config.state_dir.join(FRAMES_QUOTA));
        let histogram = Histogram::new(confirmed.counter());
        let report = Report::new(slots.recovered());
        Self {
            config,
            topics,
            outbox,
            sender: Sender::default(),
            slots,
            key,
            loader,
            confirmed,
            candidate: None,
            fetch: None,
            later: None,
            report,
            commands,
            events,
            outgoing,
            connected: false,
            counts: Summary::default(),
            histogram,
            mean_secs: None,
            last_frame: Instant::now(),
            oldest_uncommitted: None,
            status_sent: None,
            histogram_sent: None,
            progress,
            cameras,
            skipped: Skips::default(),
            frames_quota,
            labels_quota: None,
            noted: (Instant::now(), None, frames_quota),
            board,
            shown: None,
            link: LinkState { since: Instant::now(), reason: "not connected yet".to_owned() },
            views: 0,
            held: VecDeque::new(),
            held_tried: Instant::now(),
            hold: Arc::default(),
        }
    }

    /// Set while the outbox cannot take a label.
    pub(super) fn hold(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.hold)
    }

    /// Handles events until the end.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Event>) -> Summary {
        self.boot();
        while let Some(event) = inbox.blocking_recv() {
            if matches!(event, Event::Shutdown) {
                break;
            }
            self.handle(event);
            self.pump();
            if self.is_done() {
                break;
            }
        }
        self.finish()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Link(Incoming::Connected) => {
                tracing::info!("connected to the broker");
                self.connected = true;
                self.link = LinkState { since: Instant::now(), reason: String::new() };
                self.sender.restart();
                self.fetch.iter_mut().for_each(Fetch::restart);
                self.status_sent = None;
                self.histogram_sent = None;
                self.report.is_new = true;
                if self.config.publish.home_assistant {
                    let (topic, payload) = crate::discovery::message(&self.config, &self.topics);
                    self.put(Outgoing::Publish { topic, payload, retain: true });
                }
            }
            Event::Link(Incoming::Disconnected { reason, retry_in }) => {
                tracing::warn!(reason, ?retry_in, pending = self.outbox.pending(), "no broker; labels wait in the outbox");
                if self.connected {
                    self.link.since = Instant::now();
                }
                self.connected = false;
                self.link.reason = reason;
            }
            Event::Link(Incoming::Message { topic, payload, .. }) => self.message(&topic, &payload),
            Event::Labelled(labelled) => self.labelled(*labelled),
            Event::Skipped(skipped) => self.skipped(&skipped),
            Event::Camera(camera, CameraEvent::Bad { reason, position }) => {
                self.counts.bad_frames += 1;
                self.camera(camera, |state| state.bad(&reason));
                tracing::warn!(reason, "a frame could not be read");
                self.without_label(camera, position);
            }
            Event::Camera(camera, CameraEvent::Lost { reason, retry_in }) => {
                tracing::warn!(reason, ?retry_in, "the camera is away");
                self.camera(camera, |state| state.away(&reason));
            }
            Event::Camera(camera, CameraEvent::Opened { count }) => {
                let file = self.cameras.get(camera).map(|state| progress_file(&self.config, &state.name));
                if let (Some(file), Some(progress)) = (file, self.progress.get_mut(camera)) {
                    *progress = Some(Progress::open(&file, count));
                }
            }
            Event::Camera(camera, CameraEvent::End) => {
                tracing::info!(frames = self.counts.frames, "the camera's last frame is labelled");
                self.camera(camera, CameraState::end);
            }
            Event::Camera(_, CameraEvent::Shot(_)) | Event::Tick | Event::Shutdown => {}
            Event::Tested(tested) => self.tested(*tested),
        }
    }

    fn message(&mut self, topic: &str, payload: &[u8]) {
        if let Some(hash) = self.topics.block_of(topic) {
            let hash = hash.to_owned();
            self.block(&hash, payload);
        } else if topic == self.topics.of(Kind::Ack) {
            match AckMsg::decode(payload) {
                Ok(ack) => self.acknowledged(&ack),
                Err(error) => tracing::warn!(%error, topic, "not an acknowledgement"),
            }
        } else if topic == self.topics.release(&self.config.channel) {
            self.offered(payload);
        }
    }

    fn acknowledged(&mut self, ack: &AckMsg) {
        let collector = self.outbox.collector();
        match self.outbox.ack(ack) {
            Ok(count) => {
                if count == 0 && ack.epoch == self.outbox.next_key().epoch {
                    self.sender.nothing_new();
                }
                tracing::debug!(count, watermark = ack.watermark, pending = self.outbox.pending(), "acknowledged");
            }
            Err(error) => tracing::error!(%error, "an acknowledged segment stays for now"),
        }
        if collector != 0 && collector != self.outbox.collector() {
            tracing::warn!("the collector was restored: it gets again what is still here");
            self.sender.restart();
        }
        if ack.epoch == self.outbox.next_key().epoch {
            let highest = ack.stored.iter().map(|&(_, to)| to).fold(ack.watermark, u64::max);
            self.sender.acknowledged(highest, |sequence| self.outbox.is_pending(sequence));
        }
    }

    fn labelled(&mut self, labelled: Labelled) {
        self.last_frame = Instant::now();
        self.judge(&labelled);
        if labelled.replay {
            return;
        }
        let (camera, position) = (labelled.camera, labelled.shot.position);
        self.views = labelled.views;
        self.labels_quota = labelled.quota.or(self.labels_quota);
        match &labelled.result {
            Ok(label) => {
                self.counts.frames += 1;
                self.histogram.add(label, labelled.model.0);
                self.camera(camera, |state| state.labelled(labelled.shot.frame.size));
                self.board.labelled(labelled.took);
                if self.board.is_watched() {
                    let seen = Seen::new(&labelled.shot, label, labelled.by.teacher().skeleton(), labelled.took);
                    self.board.show(camera, seen);
                }
            }
            Err(reason) => {
                self.counts.bad_frames += 1;
                self.camera(camera, |state| state.bad(reason));
                tracing::error!(reason, "a frame could not be labelled");
                return self.without_label(camera, position);
            }
        }
        if self.held.is_empty() && self.store(&labelled) {
            return;
        }
        self.held.push_back(Held { label: Some(Box::new(labelled)), camera, position });
    }

    fn camera(&mut self, camera: usize, change: impl FnOnce(&mut CameraState)) {
        self.cameras.get_mut(camera).map(change);
    }

    fn skipped(&mut self, skipped: &Skipped) {
        // The camera is well, and a model on probation is not judged by a quiet scene.
        self.camera(skipped.camera, CameraState::seen);
        *match skipped.why {
            Skip::NearDuplicate => &mut self.skipped.near_duplicate,
            Skip::Quota => &mut self.skipped.quota,
            Skip::Schedule => &mut self.skipped.schedule,
        } += 1;
        self.without_label(skipped.camera, skipped.position);
    }

    /// The frame that travels with a label, within the quota.
    fn picture(&mut self, labelled: &Labelled, label: &Label) -> Vec<u8> {
        let publish = &self.config.publish;
        let now = local_ms(now_ms(), self.config.policy.utc_offset_minutes);
        if !publish::wants_picture(label, publish) || !self.frames_quota.has_room(publish.frames_per_hour, publish.frames_per_day, now) {
            return Vec::new();
        }
        publish::picture(&labelled.shot, label, labelled.by.teacher().skeleton(), publish)
    }

    /// Writes a label to the outbox; false when there is no room for it now.
    fn store(&mut self, labelled: &Labelled) -> bool {
        let Ok(label) = &labelled.result else { return true };
        let jpeg = self.picture(labelled, label);
        let (key, shot, model) = (self.outbox.next_key(), &labelled.shot, labelled.model);
        let camera = self.cameras.get(labelled.camera).map_or("", |camera| camera.name.as_str());
        let message = LabelMsg {
            jpeg: !jpeg.is_empty(),
            // Names are checked when the configuration is read.
            camera: camera.try_into().unwrap_or_default(),
            changes: if jpeg.is_empty() { 0 } else { publish::changes(&self.config.publish) },
            views: labelled.views.min(usize::from(u16::MAX)) as u16,
            ..LabelMsg::quantise(label, key, shot.id, shot.captured_ms, model.0, model.1)
        };
        let pictured = message.jpeg;
        let appended = match publish::encode(&message, self.config.publish.encoding) {
            Ok(bytes) => {
                self.outbox.append(labelled.shot.id, bytes, jpeg).map(|_| ()).map_err(|error| (error.is_transient(), error.to_string()))
            }
            Err(error) => Err((false, error.to_string())),
        };
        match appended {
            Ok(()) => {
                if pictured {
                    self.frames_quota.count();
                }
                self.oldest_uncommitted.get_or_insert_with(Instant::now);
                if let (Some(Some(progress)), Some(position)) = (self.progress.get_mut(labelled.camera), labelled.shot.position) {
                    progress.appended(position, key.sequence);
                }
                // Beginning a segment commits the one before.
                self.note_progress();
            }
            Err((true, error)) => {
                if !self.hold.swap(true, Ordering::Relaxed) {
                    tracing::error!(error, "a label waits for room in the outbox, and with it the camera");
                }
                self.held_tried = Instant::now();
                return false;
            }
            Err((false, error)) => {
                self.counts.dropped += 1;
                tracing::error!(error, dropped = self.counts.dropped, "a label cannot be written and is dropped");
                self.pass(labelled.camera, labelled.shot.position);
            }
        }
        true
    }

    /// Writes what waits, in its order, as far as there is room.
    fn store_held(&mut self) {
        while let Some(held) = self.held.pop_front() {
            match &held.label {
                Some(label) if !self.store(label) => return self.held.push_front(held),
                Some(_) => {}
                None => self.pass(held.camera, held.position),
            }
        }
        if self.hold.swap(false, Ordering::Relaxed) {
            tracing::info!("the outbox has room again");
        }
    }

    /// A frame gets no label.
    fn without_label(&mut self, camera: usize, position: Option<usize>) {
        if self.held.is_empty() {
            self.pass(camera, position);
        } else {
            self.held.push_back(Held { label: None, camera, position });
        }
    }

    /// A frame without a label is noted as passed with the next commit.
    fn pass(&mut self, camera: usize, position: Option<usize>) {
        if let (Some(Some(progress)), Some(position)) = (self.progress.get_mut(camera), position) {
            progress.without_label(position);
            self.oldest_uncommitted.get_or_insert_with(Instant::now);
        }
    }

    fn note_progress(&mut self) {
        let committed = self.outbox.next_key().sequence - self.outbox.uncommitted() as u64;
        self.progress.iter_mut().flatten().for_each(|progress| progress.settle(committed));
    }

    /// Everything that is due.
    fn pump(&mut self) {
        let now = Instant::now();
        if !self.held.is_empty() && now.duration_since(self.held_tried) >= GROUP_AGE {
            self.store_held();
        }
        if self.outbox.uncommitted() >= GROUP || self.oldest_uncommitted.is_some_and(|at| now.duration_since(at) >= GROUP_AGE) {
            self.commit(now);
        }
        if self.connected {
            self.send_labels(now);
            self.send_reports(now);
            let request = self.fetch.as_mut().and_then(|fetch| fetch.request(now));
            if let Some(request) = request {
                let topic = self.topics.of(Kind::BlocksGet);
                self.send(topic, &request, Encoding::Cbor, false);
            }
        }
        self.probation_without_frames(now);
        if now.duration_since(self.noted.0) >= NOTE_EVERY {
            self.note_quotas(now);
        }
        if self.shown.is_none_or(|at| now.duration_since(at) >= SHOW_EVERY) {
            self.shown = Some(now);
            self.board.set(self.state(now));
        }
    }

    fn note_quotas(&mut self, now: Instant) {
        let publish = &self.config.publish;
        let (_, labels, frames) = self.noted;
        if let Some(quota) = self.labels_quota.filter(|_| self.labels_quota != labels) {
            note_quota(&self.config.state_dir.join(LABELS_QUOTA), quota);
        }
        if (publish.frames_per_hour > 0 || publish.frames_per_day > 0) && self.frames_quota != frames {
            note_quota(&self.config.state_dir.join(FRAMES_QUOTA), self.frames_quota);
        }
        self.noted = (now, self.labels_quota, self.frames_quota);
    }

    /// What is shown of the device.
    fn state(&self, now: Instant) -> State {
        let slots = self.slots.state();
        let manifest = self.confirmed.teacher().manifest();
        let (refused, reason) = self.report.refusal();
        State {
            broker: Step { well: self.connected, since: self.link.since, reason: self.link.reason.clone() },
            status: self.status(true),
            near_duplicate: self.skipped.near_duplicate,
            quota: self.skipped.quota,
            schedule: self.skipped.schedule,
            dropped: self.counts.dropped,
            uncommitted: self.outbox.uncommitted() as u64,
            bytes: self.outbox.bytes(),
            held: !self.held.is_empty(),
            model: manifest.name.clone(),
            hash: self.confirmed.hash(),
            phase: slots.phase,
            refused,
            reason: reason.to_owned(),
            views: self.views,
            frame_secs: self.mean_secs.map(|secs| secs * self.views.max(1) as f64),
            skeleton: self.confirmed.teacher().skeleton().clone(),
            cameras: self.cameras.clone(),
            thresholds: manifest.thresholds,
            at: now,
        }
    }

    fn commit(&mut self, now: Instant) {
        // After an error it is tried again after the same time.
        self.oldest_uncommitted = Some(now);
        match self.outbox.commit() {
            Ok(_) => self.oldest_uncommitted = None,
            Err(error) => tracing::error!(%error, "labels are not committed yet"),
        }
        if self.outbox.uncommitted() == 0 {
            self.oldest_uncommitted = None;
        }
        self.note_progress();
    }

    fn send_labels(&mut self, now: Instant) {
        // A label and its frame are two messages.
        while self.outgoing.capacity() >= SPARE + 2 {
            let Some(sequence) = self.sender.next(now, |after| self.outbox.next_pending(after)) else { return };
            let entry = match self.outbox.read(sequence) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, sequence, "a label cannot be read from the outbox");
                    continue;
                }
            };
            if !entry.jpeg.is_empty() {
                match publish::frame_payload(self.outbox.next_key().epoch, &entry) {
                    Ok(payload) => self.put(Outgoing::Publish { topic: self.topics.of(Kind::Frames), payload, retain: false }),
                    Err(error) => tracing::error!(%error, sequence, "a frame cannot be encoded"),
                }
            }
            self.put(Outgoing::Publish { topic: self.topics.of(Kind::Labels), payload: entry.label, retain: false });
        }
    }

    fn status(&self, online: bool) -> StatusMsg {
        StatusMsg {
            version: VERSION,
            online,
            model: self.slots.state().confirmed_counter,
            frames: self.counts.frames,
            bad_frames: self.counts.bad_frames,
            committed: self.outbox.committed(),
            pending: self.outbox.pending(),
            evicted: self.outbox.evicted(),
            epoch: self.outbox.next_key().epoch,
        }
    }

    fn send_reports(&mut self, now: Instant) {
        if self.outgoing.capacity() < SPARE / 2 {
            return;
        }
        if self.report.is_new {
            self.report.is_new = false;
            let message = self.report.message(&self.slots.state());
            self.send(self.topics.of(Kind::Model), &message, self.config.publish.encoding, true);
        }
        let due = |at: Instant| now.duration_since(at) >= REPORT_EVERY;
        let status = self.status(true);
        if self.status_sent.as_ref().is_none_or(|(at, sent)| due(*at) && *sent != status) {
            self.send(self.topics.of(Kind::Status), &status, self.config.publish.encoding, true);
            self.status_sent = Some((now, status));
        }
        let frames = self.histogram.message().frames;
        if frames > 0 && self.histogram_sent.is_none_or(|(at, sent)| due(at) && sent != frames) {
            let message = self.histogram.message().clone();
            self.send(self.topics.of(Kind::Histogram), &message, self.config.publish.encoding, false);
            self.histogram_sent = Some((now, frames));
        }
    }

    pub(super) fn send<M: Message>(&self, topic: String, message: &M, encoding: Encoding, retain: bool) {
        match publish::encode(message, encoding) {
            Ok(payload) => self.put(Outgoing::Publish { topic, payload, retain }),
            Err(error) => tracing::error!(%error, topic, "a message cannot be encoded"),
        }
    }

    /// The queue is never full here: everything that is sent in numbers leaves [`SPARE`] places.
    pub(super) fn put(&self, item: Outgoing) {
        if self.outgoing.try_send(item).is_err() {
            tracing::warn!("the publisher is behind: a message is left out");
        }
    }

    /// Whether the camera ended, was to end the process, and everything is acknowledged.
    fn is_done(&self) -> bool {
        let stop = self.config.cameras().iter().all(|(_, camera)| camera.stops_at_end());
        let ended = self.cameras.iter().all(CameraState::has_ended);
        stop && ended && self.held.is_empty() && self.outbox.uncommitted() == 0 && self.outbox.pending() == 0 && !self.trial_is_open()
    }

    fn finish(mut self) -> Summary {
        self.stop();
        self.store_held();
        let lost = self.held.iter().filter(|held| held.label.is_some()).count() as u64;
        if lost > 0 {
            self.counts.dropped += lost;
            tracing::error!(lost, "labels found no room in the outbox; the frames of a folder are played again");
        }
        if let Err(error) = self.outbox.close() {
            tracing::error!(%error, "the outbox could not be closed");
        }
        self.note_progress();
        self.note_quotas(Instant::now());
        super::supervisor::stopping();
        if self.connected {
            let histogram = self.histogram.message().clone();
            if histogram.frames > 0 {
                self.send(self.topics.of(Kind::Histogram), &histogram, self.config.publish.encoding, false);
            }
            self.send(self.topics.of(Kind::Status), &self.status(false), self.config.publish.encoding, true);
        }
        Summary {
            committed: self.outbox.committed(),
            pending: self.outbox.pending(),
            evicted: self.outbox.evicted(),
            model: self.slots.state().confirmed_counter,
            ..self.counts
        }
    }
}
