//! What the centre did, for people and for the demo: one JSON object a line in `state_dir/events.jsonl`, appended.

use crate::service::drift::Compared;
use crate::service::retention::Pruned;
use crate::service::waves::Waves;
use omnilabel_rcnn::train::Losses;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
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
    /// Labels of a device, totals since the store was created; at most twice a second.
    Labels {
        /// The device.
        device: String,
        /// Stored, each once.
        stored: u64,
        /// Arrived again and not stored again.
        duplicates: u64,
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

/// The name of the file in the state folder.
pub const FILE: &str = "events.jsonl";

/// Appends events. Losing the last lines in a power failure is allowed: nothing is decided from them.
#[derive(Debug)]
pub struct EventLog {
    file: Mutex<File>,
    path: PathBuf,
}

impl EventLog {
    /// Opens `state_dir/events.jsonl`, and ends a line that a crash tore.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(state_dir: &Path) -> std::io::Result<Self> {
        let path = state_dir.join(FILE);
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let length = file.seek(SeekFrom::End(0))?;
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file: Mutex::new(file), path })
    }

    /// Writes one event, and logs it. A full disk costs the line, not the service.
    pub fn emit(&self, event: Event) {
        match &event {
            Event::Error { what, message } => tracing::error!("{what}: {message}"),
            Event::Train { .. } | Event::Labels { .. } => tracing::debug!(?event),
            _ => tracing::info!(?event),
        }
        let line = match serde_json::to_string(&Stamped { at_ms: now_ms(), event }) {
            Ok(line) => line + "\n",
            Err(error) => return tracing::error!("an event could not be written as JSON: {error}"),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!("{}: {error}", self.path.display());
        }
    }
}

/// Reads events as they are appended, from the start of the file.
#[derive(Debug)]
pub struct EventReader {
    path: PathBuf,
    offset: u64,
}

impl EventReader {
    /// Reads `state_dir/events.jsonl`, which need not exist yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), offset: 0 }
    }

    /// Every whole line since the last call. A line that is no event (torn by a crash, or newer than this code) is skipped.
    ///
    /// # Errors
    /// What the system says; a file that is not there yet is no error.
    pub fn poll(&mut self) -> std::io::Result<Vec<Stamped>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some(end) = bytes.iter().rposition(|&b| b == b'\n') else { return Ok(Vec::new()) };
        self.offset += end as u64 + 1;
        Ok(bytes[..end].split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_and_a_torn_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = EventReader::new(dir.path());
        assert!(reader.poll().unwrap().is_empty());
        let events = [
            Event::Started { collector: u64::MAX, running: 0 },
            Event::DeviceModel { device: "cam-1".into(), confirmed: 2, trial: None, refused: Some(3), reason: "golden".into() },
            Event::Pruned(Pruned { labels: 7, bytes: u64::MAX, rounds: vec![1, 2], ..Pruned::default() }),
            Event::Train { round: 1, step: 10, steps: 20, losses: Losses::default(), images_per_sec: 12.5 },
            Event::Stopped,
        ];
        let log = EventLog::open(dir.path()).unwrap();
        events[..2].iter().for_each(|e| log.emit(e.clone()));
        let seen = reader.poll().unwrap();
        drop(log);
        OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap().write_all(b"{\"at_ms\":1,\"ev").unwrap();
        assert!(reader.poll().unwrap().is_empty());
        let log = EventLog::open(dir.path()).unwrap();
        events[2..].iter().for_each(|e| log.emit(e.clone()));
        let all: Vec<Event> = seen.into_iter().chain(reader.poll().unwrap()).map(|s| s.event).collect();
        assert_eq!(all, events);
    }
}
