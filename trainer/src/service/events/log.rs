//! The event log as files: `events.jsonl`, appended.
//!
//! At 64 MiB the file becomes `events.1.jsonl`, in the place of the one before it, and is begun anew. Its first line then says how many
//! bytes went before: bytes are numbered over all files that there ever were, so that who reads on needs nothing but a number.

use super::{Event, Stamped, now_ms};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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

    /// The whole lines among its bytes from the one with this number on, at most so many, and the number to go on from. What a crash tore
    /// off its end is stepped over, as nothing more is appended to the older file; so is a line that is longer than that.
    pub(crate) fn lines(&mut self, from: u64, most: u64) -> std::io::Result<(Vec<u8>, u64)> {
        let mut bytes = self.read(from, most)?;
        let is_full = bytes.len() as u64 == most;
        let next = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => {
                bytes.truncate(newline + 1);
                from + bytes.len() as u64
            }
            None => {
                let read = bytes.len() as u64;
                bytes.clear();
                if is_full { from + read } else { from }
            }
        };
        Ok((bytes, if self.is_over && !is_full { self.end } else { next }))
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
            let (bytes, next) = part.lines(from, u64::MAX)?;
            self.next = next;
            events.extend(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Stamped>(line).ok()));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::retention::Pruned;
    use omnilabel_rcnn::train::Losses;

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
