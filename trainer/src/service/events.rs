//! What the centre did, for people and for the demo: one JSON object a line in `state_dir/events.jsonl`.

mod log;

pub(crate) use log::Part;
pub use log::{EventLog, EventReader, FILE, OLDER};

use crate::service::drift::Compared;
use crate::service::retention::Pruned;
use crate::service::waves::Waves;
use omnilabel_rcnn::train::Losses;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// What happened. The key `event` names the variant in snake_case; keys are append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The service is up.
    Started {
        /// The collector's epoch.
        collector: u64,
        /// Counter of the running release, 0 for the provisioned model.
        running: u64,
    },
    /// The connection to the broker came or went.
    Broker {
        /// Whether it is there.
        connected: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Labels of a device, totals since the store was created: as the first come, then every five seconds, of many devices more seldom.
    Labels {
        /// The device.
        device: String,
        /// Stored, each once.
        stored: u64,
        /// Arrived again and not stored again.
        duplicates: u64,
    },
    /// Labels of all devices, while some come: every five seconds.
    Fleet {
        /// In the store, since it was created, whoever collected them.
        stored: u64,
        /// Of these, stored here since the last such event.
        new: u64,
        /// In so much time.
        seconds: f64,
    },
    /// The file is begun anew; its first line.
    Continued {
        /// Bytes in the files before it.
        before: u64,
    },
    /// Messages that could not be used, totals since start.
    Rejected {
        /// Malformed, too large, on a topic that is not a device's, or of one device too many.
        messages: u64,
        /// The last one's topic and what is wrong with it.
        last: String,
    },
    /// A frame is not kept: its label is settled and not trained on.
    FrameRefused {
        /// The device.
        device: String,
        /// Its outbox epoch.
        epoch: u64,
        /// The label's number in it.
        sequence: u64,
        /// Of the JPEG.
        bytes: u64,
        /// At most so many are taken.
        limit: u64,
        /// Why.
        reason: String,
    },
    /// A label came again with other bytes under the same key; the first stays.
    Conflict {
        /// The device.
        device: String,
        /// Its outbox epoch.
        epoch: u64,
        /// The label's number in it.
        sequence: u64,
    },
    /// A snapshot was taken.
    RoundStarted {
        /// The round.
        round: u64,
        /// Labels in it.
        labels: u64,
        /// Counter of the teacher that made them.
        teacher: u64,
    },
    /// τ and τ_k were chosen.
    Calibrated {
        /// The round.
        round: u64,
        /// Threshold on the instance score.
        tau: f32,
        /// Threshold on the keypoint probability.
        tau_k: f32,
        /// People per manually labelled image.
        manual_mean: f64,
        /// People per generated image above τ.
        realised_mean: f64,
        /// Generated images.
        frames: u64,
        /// Generated instances above τ.
        instances: u64,
    },
    /// The snapshot was written to `rounds/N/generated`.
    Exported {
        /// The round.
        round: u64,
        /// Images.
        images: u64,
        /// Instances that are trained on.
        instances: u64,
        /// Labels whose picture could not be used.
        skipped: u64,
        /// Over annotations and pictures.
        sha256: String,
        /// Images in `rounds/N/hand`: labels that people accepted or corrected.
        #[serde(default)]
        by_hand: u64,
        /// Over their annotations and pictures.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by_hand_sha256: Option<String>,
    },
    /// Training goes on.
    Train {
        /// The round.
        round: u64,
        /// Steps done.
        step: u64,
        /// Steps to do.
        steps: u64,
        /// Mean losses since the last event.
        losses: Losses,
        /// Since the last event.
        images_per_sec: f64,
    },
    /// A bundle was run over the held-out labels.
    Evaluated {
        /// The round.
        round: u64,
        /// `running` or `candidate`.
        which: String,
        /// AP in `[0, 1]`.
        ap: f64,
        /// The ten COCO numbers by name.
        scores: Vec<(String, f64)>,
    },
    /// Both models labelled the fleet's newest pictures.
    Relabelled {
        /// The round.
        round: u64,
        /// Pictures that both labelled.
        frames: u64,
        /// Of these, those that came after the round's snapshot.
        unseen: u64,
        /// The running model's labels and the student's.
        statistics: Vec<Compared>,
    },
    /// The gate refused the student.
    Refused {
        /// The round.
        round: u64,
        /// Why.
        reason: String,
    },
    /// A release was signed; it is published as soon as the broker is there.
    Released {
        /// The round; none when it was released by hand.
        #[serde(default)]
        round: Option<u64>,
        /// Its counter.
        counter: u64,
        /// Name for people.
        name: String,
        /// Why.
        reason: String,
    },
    /// A release goes out to more devices, to all, or to no more.
    Wave {
        /// Its counter.
        counter: u64,
        /// Thousandths of the fleet that it is for.
        share: u16,
        /// Whether nobody else may begin with it.
        halted: bool,
        /// Whether all waves have proved it.
        complete: bool,
        /// Why.
        reason: String,
    },
    /// Retention has dropped labels or pictures: counts since the last such event.
    Pruned(Pruned),
    /// A device reported what it runs.
    DeviceModel {
        /// The device.
        device: String,
        /// Counter of the confirmed release.
        confirmed: u64,
        /// Counter of the release on trial.
        #[serde(default)]
        trial: Option<u64>,
        /// Counter of the last refused release.
        #[serde(default)]
        refused: Option<u64>,
        /// Why it was refused.
        #[serde(default)]
        reason: String,
    },
    /// The labels of a device's newest day begin to differ from those of its model's first days.
    Drift {
        /// The device.
        device: String,
        /// Counter of the release that made them.
        model: u64,
        /// What differs, and by how much.
        reason: String,
    },
    /// Something failed; the service goes on.
    Error {
        /// What was being done.
        what: String,
        /// What went wrong.
        message: String,
    },
    /// The service stops.
    Stopped,
}

impl Event {
    /// How a release goes out from now on.
    pub fn wave(counter: u64, waves: &Waves, reason: String) -> Self {
        let (share, halted, complete) = (waves.share(), waves.halted.is_some(), waves.complete);
        Self::Wave { counter, share, halted, complete, reason }
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Unix milliseconds; 0 before 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
