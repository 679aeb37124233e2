//! The one loop: it owns the outbox, the slots and the counts, takes events and sends messages.

use crate::annotate::Model;
use crate::camera::{CameraEvent, Progress, progress_file};
use crate::config::EdgeConfig;
use crate::outbox::{Disk, Outbox, OutboxError, Sender};
use crate::policy::Quota;
use crate::publish::{self, Histogram, Topics};
use crate::service::board::{Board, CameraState, State, Step};
use crate::service::engine::Command;
use crate::service::keep::Held;
use crate::service::quotas::{FRAMES_QUOTA, NOTE_EVERY, read_quota};
use crate::service::shadow::Shadow;
use crate::service::trial::{Report, Test};
use crate::service::{Event, Loader, Outgoing, Summary};
use crate::slots::Slots;
use crate::update::{Fetch, Trust};
use anyhow::Context;
use omnilabel_keypoints::wire::topic::Kind;
use omnilabel_keypoints::wire::{AckMsg, Encoding, LabelMsg, Message, StatusMsg, VERSION};
use omnilabel_link::Incoming;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long labels may be under way without any acknowledgement before the log says so.
const SILENT: Duration = Duration::from_secs(300);
/// A group of labels is committed at this size …
const GROUP: usize = 64;
/// … or at this age.
const GROUP_AGE: Duration = Duration::from_millis(250);
/// Counts are reported this often when they change.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// How often what is shown of the device is brought up to date.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Labels that cannot be read are told this often at most.
const TELL_UNREAD: Duration = Duration::from_secs(60);

/// Room that is left in the outgoing queue for messages that are not labels.
const SPARE: usize = 8;

/// The appliance's state and rules.
pub(super) struct Core {
    pub(super) config: EdgeConfig,
    pub(super) topics: Topics,
    pub(super) outbox: Outbox<Disk>,
    pub(super) sender: Sender,
    pub(super) slots: Slots,
    pub(super) trust: Trust,
    pub(super) loader: Arc<dyn Loader>,
    /// The model of the confirmed slot.
    pub(super) confirmed: Arc<Model>,
    /// The model in the shadow of the confirmed one, or on probation.
    pub(super) candidate: Option<Arc<Model>>,
    /// How the two compare.
    pub(super) shadow: Option<Shadow>,
    /// Evicted frames and labels that the log knows of, and when it was told.
    pub(super) told_evicted: ((u64, u64), Option<Instant>),
    pub(super) test: Test,
    pub(super) fetch: Option<Fetch>,
    /// A release that came while another was tried.
    pub(super) later: Option<Vec<u8>>,
    pub(super) report: Report,
    pub(super) commands: SyncSender<Command>,
    /// Asks the engine for one of the last frames, for the probation.
    pub(super) replay: Arc<AtomicBool>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) outgoing: mpsc::Sender<Outgoing>,
    pub(super) counts: Summary,
    pub(super) histogram: Histogram,
    /// Mean time of the confirmed model for a view of a frame, seconds.
    pub(super) mean_secs: Option<f64>,
    pub(super) last_frame: Instant,
    pub(super) oldest_uncommitted: Option<Instant>,
    /// Whether the log says that no centre answers.
    silence_told: bool,
    /// When the log was told of labels that cannot be read.
    unread_told: Option<Instant>,
    pub(super) status_sent: Option<(Instant, StatusMsg)>,
    pub(super) histogram_sent: Option<(Instant, u64)>,
    /// Of each camera, where it notes how far it is.
    pub(super) progress: Vec<Option<Progress>>,
    pub(super) cameras: Vec<CameraState>,
    pub(super) skipped: Skips,
    pub(super) frames_quota: Quota,
    pub(super) labels_quota: Option<Quota>,
    /// When which quotas were noted.
    pub(super) noted: (Instant, Option<Quota>, Quota),
    /// Where it is shown what the device does.
    pub(super) board: Arc<Board>,
    pub(super) shown: Option<Instant>,
    /// The connection to the broker.
    pub(super) link: Step,
    pub(super) views: usize,
    /// Frames in their order that wait for room in the outbox, beginning with a label that could not be written.
    pub(super) held: VecDeque<Held>,
    pub(super) held_tried: Instant,
    /// Tells the engine to take no more frames.
    pub(super) hold: Arc<AtomicBool>,
}

/// Frames that were not labelled, by reason.
#[derive(Default)]
pub(super) struct Skips {
    pub(super) near_duplicate: u64,
    pub(super) quota: u64,
    pub(super) schedule: u64,
}

impl Core {
    #[expect(clippy::too_many_arguments, reason = "each is one end of the wiring, given once")]
    pub(super) fn new(
        config: EdgeConfig,
        topics: Topics,
        outbox: Outbox<Disk>,
        slots: Slots,
        trust: Trust,
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
            told_evicted: ((outbox.frames_evicted(), outbox.evicted()), None),
            outbox,
            sender: Sender::default(),
            slots,
            trust,
            loader,
            confirmed,
            candidate: None,
            shadow: None,
            test: Test::None,
            fetch: None,
            later: None,
            report,
            commands,
            replay: Arc::default(),
            events,
            outgoing,
            counts: Summary::default(),
            histogram,
            mean_secs: None,
            last_frame: Instant::now(),
            oldest_uncommitted: None,
            silence_told: false,
            unread_told: None,
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
            link: Step { well: false, since: Instant::now(), reason: "not connected yet".to_owned() },
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

    /// Set when no frames come and a probation needs one.
    pub(super) fn replay(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.replay)
    }

    /// Handles events until the end.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Event>) -> anyhow::Result<Summary> {
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
                self.link = Step { well: true, since: Instant::now(), reason: String::new() };
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
                if self.link.well {
                    self.link.since = Instant::now();
                }
                (self.link.well, self.link.reason) = (false, reason);
            }
            Event::Link(Incoming::Refused { reason }) => self.link.reason = reason,
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
            Event::Camera(camera, CameraEvent::Opened { recording }) => {
                let file = self.cameras.get(camera).map(|state| progress_file(&self.config, &state.name));
                if let (Some(file), Some(progress)) = (file, self.progress.get_mut(camera)) {
                    *progress = Some(Progress::open(&file, recording));
                }
            }
            Event::Camera(camera, CameraEvent::End) => {
                tracing::info!(frames = self.counts.frames, "the camera's last frame is labelled");
                self.camera(camera, CameraState::end);
            }
            Event::Camera(_, CameraEvent::Shot(_)) | Event::Tick | Event::Shutdown => {}
            Event::Tested(tested) => self.tested(*tested),
            Event::Shadowed(shadowed) => self.shadowed(*shadowed),
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
            Ok(count) => tracing::debug!(count, watermark = ack.watermark, pending = self.outbox.pending(), "acknowledged"),
            Err(error) => tracing::error!(%error, "an acknowledgement has no full effect for now"),
        }
        if collector != 0 && collector != self.outbox.collector() {
            tracing::warn!("the collector was restored: it gets again what is still here");
            self.sender.restart();
        }
        if ack.epoch == self.outbox.next_key().epoch {
            let now = Instant::now();
            self.sender.heard(now);
            let highest = ack.stored.iter().map(|&(_, to)| to).fold(ack.watermark, u64::max);
            self.sender.acknowledged(now, highest, |sequence| self.outbox.is_pending(sequence));
        }
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
        if self.link.well {
            self.send_labels(now);
            self.tell_silence(now);
            self.send_reports(now);
            let request = self.fetch.as_mut().and_then(|fetch| fetch.request(now));
            if let Some(request) = request {
                let topic = self.topics.of(Kind::BlocksGet);
                self.send(topic, &request, Encoding::Cbor, false);
            }
        }
        self.without_frames(now);
        self.end_shadow(now);
        if now.duration_since(self.noted.0) >= NOTE_EVERY {
            self.note_quotas(now);
        }
        if self.shown.is_none_or(|at| now.duration_since(at) >= SHOW_EVERY) {
            self.shown = Some(now);
            self.board.set(self.state(now));
        }
    }

    /// A broker alone takes a window of labels: without a centre they wait here, which nothing else would say.
    fn tell_silence(&mut self, now: Instant) {
        let silent = self.sender.unanswered(now).is_some_and(|silent| silent >= SILENT);
        if silent && !self.silence_told {
            let pending = self.outbox.pending();
            tracing::warn!(pending, "the broker is there, and no centre has acknowledged a label for {} minutes", SILENT.as_secs() / 60);
        }
        self.silence_told = silent;
    }

    /// What is shown of the device.
    fn state(&self, now: Instant) -> State {
        let slots = self.slots.state();
        let manifest = self.confirmed.teacher().manifest();
        let (refused, reason) = self.report.refusal();
        State {
            broker: self.link.clone(),
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
            keys: slots.set,
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

    fn send_labels(&mut self, now: Instant) {
        // A label and its frame are two messages.
        while self.outgoing.capacity() >= SPARE + 2 {
            let Some(sequence) = self.sender.next(now, |after| self.outbox.next_pending(after)) else { return };
            let entry = match self.outbox.read(sequence) {
                Ok(Some(entry)) => entry,
                // Evicted while it was under way.
                Ok(None) => {
                    self.sender.forget(sequence);
                    continue;
                }
                // A failing disk takes its time: others are sent on the next turn.
                Err(error) => {
                    self.sender.put_off(now, sequence);
                    return self.tell_unread(now, &error);
                }
            };
            // Of an evicted frame the header goes alone: the label announced it, and its bytes do not change.
            let announced = || LabelMsg::decode(&entry.label).is_ok_and(|label| label.jpeg);
            if !entry.jpeg.is_empty() || announced() {
                match publish::frame_payload(self.outbox.next_key().epoch, &entry) {
                    Ok(payload) => self.put(Outgoing::Publish { topic: self.topics.of(Kind::Frames), payload, retain: false }),
                    Err(error) => tracing::error!(%error, sequence, "a frame cannot be encoded"),
                }
            }
            self.put(Outgoing::Publish { topic: self.topics.of(Kind::Labels), payload: entry.label, retain: false });
        }
    }

    fn tell_unread(&mut self, now: Instant, error: &OutboxError) {
        if self.unread_told.is_none_or(|at| now.duration_since(at) >= TELL_UNREAD) {
            self.unread_told = Some(now);
            tracing::error!(%error, labels = self.sender.unread(), "labels cannot be read from the outbox; they are tried again later");
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
            frames_evicted: self.outbox.frames_evicted(),
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

    fn finish(mut self) -> anyhow::Result<Summary> {
        self.stop();
        self.store_held();
        let lost = self.held.iter().filter(|held| held.label.is_some()).count() as u64;
        if lost > 0 {
            self.counts.dropped += lost;
            tracing::error!(lost, "labels found no room in the outbox; the frames of a folder are played again");
        }
        let closed = self.outbox.close();
        self.note_progress();
        self.note_quotas(Instant::now());
        super::supervisor::stopping();
        if self.link.well {
            let histogram = self.histogram.message().clone();
            if histogram.frames > 0 {
                self.send(self.topics.of(Kind::Histogram), &histogram, self.config.publish.encoding, false);
            }
            self.send(self.topics.of(Kind::Status), &self.status(false), self.config.publish.encoding, true);
        }
        closed.context("the outbox could not be closed; it holds what was committed before")?;
        Ok(Summary {
            committed: self.outbox.committed(),
            pending: self.outbox.pending(),
            evicted: self.outbox.evicted(),
            model: self.slots.state().confirmed_counter,
            ..self.counts
        })
    }
}
