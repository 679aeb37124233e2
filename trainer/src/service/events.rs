//! What the centre did, for people and for the demo: one JSON object a line in `state_dir/events.jsonl`, appended.
//!
//! At 64 MiB the file becomes `events.1.jsonl`, in the place of the one before it, and is begun anew. Its first line then says how many
//! bytes went before: bytes are numbered over all files that there ever were, so that who reads on needs nothing but a number.

use crate::service::drift::Compared;
use crate::service::retention::Pruned;
use crate::service::waves::Waves;
use omnilabel_rcnn::train::Losses;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
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

/// The name of the file in the state folder.
pub const FILE: &str = "events.jsonl";
/// What the file was before it was begun anew. What was there before that is gone.
pub const OLDER: &str = "events.1.jsonl";
/// With so many bytes the file is begun anew.
const LIMIT: u64 = 64 << 20;
/// The first line of a file that was begun anew is shorter, bytes.
const HEAD: u64 = 256;

/// One of the two files of the log.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    /// The number of its first byte.
    pub(crate) first: u64,
    /// The number of the byte after its last.
    pub(crate) end: u64,
    /// Whether the other goes on where it ends.
    pub(crate) is_over: bool,
}

impl Part {
    /// One without a line is as good as none: who begins it anew is about to write the first.
    fn open(path: &Path) -> std::io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok(None);
        }
        let mut head = Vec::new();
        (&file).take(HEAD).read_to_end(&mut head)?;
        let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let first = match serde_json::from_slice::<Stamped>(line) {
            Ok(Stamped { event: Event::Continued { before }, .. }) => before,
            _ => 0,
        };
        Ok(Some(Self { file, first, end: first.saturating_add(length), is_over: false }))
    }

    /// What there is of the log in a state folder, oldest first.
    pub(crate) fn all(state_dir: &Path) -> std::io::Result<Vec<Self>> {
        // In this order: what is renamed in between is found twice, and not missed.
        let newer = Self::open(&state_dir.join(FILE))?;
        let older = Self::open(&state_dir.join(OLDER))?;
        let older = older.filter(|older| newer.as_ref().is_none_or(|newer| older.first < newer.first));
        let over = |older: Self| match &newer {
            Some(newer) => Self { end: newer.first, is_over: true, ..older },
            None => older,
        };
        let older = older.map(over);
        Ok(older.into_iter().chain(newer).collect())
    }

    /// Its bytes from the one with this number on, at most so many.
    pub(crate) fn read(&mut self, from: u64, most: u64) -> std::io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(from.saturating_sub(self.first)))?;
        let mut bytes = Vec::new();
        (&self.file).take(most.min(self.end.saturating_sub(from))).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Opens the file to append, locked, and ends a line that a crash tore. A new one begins with where the older ended.
fn append(state_dir: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(state_dir.join(FILE))?;
    file.lock()?;
    let length = file.seek(SeekFrom::End(0))?;
    if length > 0 {
        let mut last = [0];
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    } else if let Some(older) = Part::open(&state_dir.join(OLDER))? {
        let begun = Stamped { at_ms: now_ms(), event: Event::Continued { before: older.end } };
        file.write_all((serde_json::to_string(&begun)? + "\n").as_bytes())?;
    }
    Ok(file)
}

/// Whether both are of one file; where the system does not tell, they are taken for one.
#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Appends events. Losing the last lines in a power failure is allowed: nothing is decided from them.
#[derive(Debug)]
pub struct EventLog {
    file: Mutex<File>,
    state_dir: PathBuf,
    /// With so many bytes the file is begun anew.
    limit: u64,
}

impl EventLog {
    /// Opens `state_dir/events.jsonl`, and ends a line that a crash tore.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(state_dir: &Path) -> std::io::Result<Self> {
        Self::with_limit(state_dir, LIMIT)
    }

    fn with_limit(state_dir: &Path, limit: u64) -> std::io::Result<Self> {
        let file = append(state_dir)?;
        file.unlock()?;
        Ok(Self { file: Mutex::new(file), state_dir: state_dir.to_owned(), limit })
    }

    /// Whether this is still the file of that name.
    fn is_there(&self, file: &File) -> std::io::Result<bool> {
        match std::fs::metadata(self.state_dir.join(FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            other => Ok(is_same(&other?, &file.metadata()?)),
        }
    }

    /// Locks the file, begins it anew when it is large enough, and follows another process (a release by hand) that did. Whoever writes has
    /// the lock, so nothing is appended to a file that is closed.
    fn renew(&self, file: &mut File) -> std::io::Result<()> {
        file.lock()?;
        while !self.is_there(file)? {
            // With the old file goes its lock.
            *file = append(&self.state_dir)?;
        }
        if file.metadata()?.len() >= self.limit {
            std::fs::rename(self.state_dir.join(FILE), self.state_dir.join(OLDER))?;
            *file = append(&self.state_dir)?;
        }
        Ok(())
    }

    /// Writes one event, and logs it. A full disk costs the line, not the service.
    pub fn emit(&self, event: Event) {
        match &event {
            Event::Error { what, message } => tracing::error!("{what}: {message}"),
            Event::Train { .. } | Event::Labels { .. } | Event::Fleet { .. } => tracing::debug!(?event),
            _ => tracing::info!(?event),
        }
        let line = match serde_json::to_string(&Stamped { at_ms: now_ms(), event }) {
            Ok(line) => line + "\n",
            Err(error) => return tracing::error!("an event could not be written as JSON: {error}"),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be begun anew goes on.
        let renewed = self.renew(&mut file);
        let written = file.write_all(line.as_bytes());
        for error in [renewed, written, file.unlock()].into_iter().filter_map(Result::err) {
            tracing::error!("{}: {error}", self.state_dir.join(FILE).display());
        }
    }
}

/// Reads events as they are appended, from the first that is there.
#[derive(Debug)]
pub struct EventReader {
    state_dir: PathBuf,
    /// The number of the byte to go on from.
    next: u64,
}

impl EventReader {
    /// Reads `state_dir/events.jsonl`, which need not exist yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), next: 0 }
    }

    /// Every whole line since the last call. A line that is no event (torn by a crash, or newer than this code) is skipped.
    ///
    /// # Errors
    /// What the system says; a file that is not there yet is no error.
    pub fn poll(&mut self) -> std::io::Result<Vec<Stamped>> {
        let mut events = Vec::new();
        for mut part in Part::all(&self.state_dir)? {
            let from = self.next.max(part.first);
            if from >= part.end {
                continue;
            }
            let bytes = part.read(from, u64::MAX)?;
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            self.next = if part.is_over { part.end } else { from + whole as u64 };
            events.extend(bytes[..whole].split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Stamped>(line).ok()));
        }
        Ok(events)
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

    fn error(n: usize) -> Event {
        Event::Error { what: "test".to_owned(), message: n.to_string() }
    }

    /// The numbers of all events that [`error`] made.
    fn numbers(events: &[Stamped]) -> Vec<usize> {
        let number = |stamped: &Stamped| match &stamped.event {
            Event::Error { message, .. } => message.parse().ok(),
            _ => None,
        };
        events.iter().filter_map(number).collect()
    }

    #[test]
    fn a_large_log_is_begun_anew_and_who_follows_it_misses_nothing() {
        const BYTES: u64 = 1000;
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::with_limit(dir.path(), BYTES).unwrap();
        let (mut close, mut far) = (EventReader::new(dir.path()), EventReader::new(dir.path()));
        let (mut seen, mut now_and_then) = (Vec::new(), Vec::new());
        for n in 0..200_usize {
            log.emit(error(n));
            seen.extend(close.poll().unwrap());
            if n.is_multiple_of(11) {
                now_and_then.extend(far.poll().unwrap());
            }
        }
        now_and_then.extend(far.poll().unwrap());
        assert_eq!(numbers(&seen), (0..200).collect::<Vec<_>>());
        assert_eq!(numbers(&now_and_then), numbers(&seen));
        let begun = seen.iter().filter(|stamped| matches!(stamped.event, Event::Continued { .. })).count();
        assert!(begun > 5, "{begun} times begun anew");
        for file in [FILE, OLDER] {
            let bytes = std::fs::metadata(dir.path().join(file)).unwrap().len();
            assert!(bytes > 0 && bytes < BYTES + HEAD, "{file}: {bytes} bytes");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "one older file is kept");

        // Who comes later has what is left, in order.
        let left = numbers(&EventReader::new(dir.path()).poll().unwrap());
        assert_eq!(left, (200 - left.len()..200).collect::<Vec<_>>());
        assert!(left.len() > 10, "{left:?}");

        // And so does a second process that writes.
        let other = EventLog::with_limit(dir.path(), BYTES).unwrap();
        for n in 200..300_usize {
            let writer = if n.is_multiple_of(2) { &log } else { &other };
            writer.emit(error(n));
            seen.extend(close.poll().unwrap());
        }
        assert_eq!(numbers(&seen), (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn a_crash_between_the_two_files_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path()).unwrap();
        let mut reader = EventReader::new(dir.path());
        log.emit(error(0));
        assert_eq!(numbers(&reader.poll().unwrap()), [0]);
        log.emit(error(1));
        drop(log);
        // Torn, renamed, and nothing came after.
        OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap().write_all(b"{\"at_ms\":1,\"ev").unwrap();
        std::fs::rename(dir.path().join(FILE), dir.path().join(OLDER)).unwrap();
        assert_eq!(numbers(&reader.poll().unwrap()), [1]);
        // Or an empty file, too.
        File::create(dir.path().join(FILE)).unwrap();
        assert!(reader.poll().unwrap().is_empty());
        let log = EventLog::open(dir.path()).unwrap();
        log.emit(error(2));
        assert_eq!(numbers(&reader.poll().unwrap()), [2]);
        assert_eq!(numbers(&EventReader::new(dir.path()).poll().unwrap()), [0, 1, 2]);
    }

    #[test]
    fn what_a_newer_centre_says_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"at_ms\":1,\"event\":\"not_known_yet\",\"n\":1}\n{\"at_ms\":2,\"event\":\"stopped\",\"n\":1}\n";
        std::fs::write(dir.path().join(FILE), lines).unwrap();
        assert_eq!(EventReader::new(dir.path()).poll().unwrap(), [Stamped { at_ms: 2, event: Event::Stopped }]);
    }
}
