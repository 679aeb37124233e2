//! The core's part that keeps labels: what a frame's label becomes on its way to the disk, and in which order.

use crate::clock::now_ms;
use crate::policy::{Skip, local_ms};
use crate::publish;
use crate::service::board::{CameraState, Seen};
use crate::service::core::Core;
use crate::service::engine::{Labelled, Skipped};
use omnilabel_keypoints::label::Label;
use omnilabel_keypoints::wire::LabelMsg;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Evictions are told this often at most.
const TELL_EVICTED: Duration = Duration::from_secs(60);

/// A frame behind a label that could not be written.
pub(super) struct Held {
    /// The label; none for a frame that gets none.
    pub(super) label: Option<Box<Labelled>>,
    pub(super) camera: usize,
    pub(super) position: Option<usize>,
}

impl Core {
    pub(super) fn labelled(&mut self, labelled: Labelled) {
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

    pub(super) fn camera(&mut self, camera: usize, change: impl FnOnce(&mut CameraState)) {
        self.cameras.get_mut(camera).map(change);
    }

    pub(super) fn skipped(&mut self, skipped: &Skipped) {
        // The camera is well, and a model on probation is not judged by a quiet scene.
        self.camera(skipped.camera, CameraState::seen);
        *match skipped.why {
            Skip::NearDuplicate => &mut self.skipped.near_duplicate,
            Skip::Quota => &mut self.skipped.quota,
            Skip::Schedule => &mut self.skipped.schedule,
        } += 1;
        self.without_label(skipped.camera, skipped.position);
    }

    /// The frame that travels with a label, within the quota. It is made once, however often the label has to wait for room.
    fn picture(&mut self, labelled: &Labelled, label: &Label) -> Vec<u8> {
        if let Some(jpeg) = labelled.picture.get() {
            return jpeg.clone();
        }
        let publish = &self.config.publish;
        let now = local_ms(now_ms(), self.config.policy.utc_offset_minutes);
        if !self.frames_quota.has_room(publish.frames_per_hour, publish.frames_per_day, now) {
            return Vec::new();
        }
        let jpeg = publish::picture(&labelled.shot, label, labelled.by.teacher().skeleton(), publish);
        labelled.picture.get_or_init(|| jpeg).clone()
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
    pub(super) fn store_held(&mut self) {
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
    pub(super) fn without_label(&mut self, camera: usize, position: Option<usize>) {
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

    pub(super) fn note_progress(&mut self) {
        let committed = self.outbox.next_key().sequence - self.outbox.uncommitted() as u64;
        self.progress.iter_mut().flatten().for_each(|progress| progress.settle(committed));
    }

    pub(super) fn commit(&mut self, now: Instant) {
        // After an error it is tried again after the same time.
        self.oldest_uncommitted = Some(now);
        match self.outbox.commit() {
            Ok(_) => self.oldest_uncommitted = None,
            Err(error) => tracing::error!(%error, "labels are not committed yet"),
        }
        if self.outbox.uncommitted() == 0 {
            self.oldest_uncommitted = None;
        }
        let gone = (self.outbox.frames_evicted(), self.outbox.evicted());
        if gone != self.told_evicted.0 && self.told_evicted.1.is_none_or(|at| now.duration_since(at) >= TELL_EVICTED) {
            let (frames, labels) = (gone.0 - self.told_evicted.0.0, gone.1 - self.told_evicted.0.1);
            let pending = self.outbox.pending();
            tracing::warn!(frames, labels, pending, "the outbox is full: frames, then labels are evicted");
            self.told_evicted = (gone, Some(now));
        }
        self.note_progress();
    }
}
