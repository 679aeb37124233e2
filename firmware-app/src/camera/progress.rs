//! How far a recording is: the frames whose labels are committed, or which have none.

use crate::durable::replace_file;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What tells a recording from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recording {
    /// A video, by a number.
    Video(usize),
    /// A folder: of each file, a checksum of the names and sizes of all up to and with it.
    Folder(Arc<[u64]>),
}

impl Recording {
    /// The folder of `files`, in the order in which they are played.
    pub fn folder(files: &[PathBuf]) -> Self {
        let mut hash = Sha256::new();
        let checksum = |path: &PathBuf| {
            // Who reads the file will say that it is gone.
            let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
            hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            // No name has a slash.
            hash.update(b"/");
            hash.update(bytes.to_be_bytes());
            hash.clone().finalize().iter().take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        };
        Self::Folder(files.iter().map(checksum).collect())
    }

    /// The line for so many frames; none before the first one is done with.
    fn line(&self, position: usize) -> Option<String> {
        let last = position.checked_sub(1)?;
        Some(match self {
            Self::Video(which) => format!("{position} {which}\n"),
            Self::Folder(checksums) => format!("{position} {} {:016x}\n", checksums.len(), checksums.get(last)?),
        })
    }

    /// How many frames are done with, where the line is of this recording.
    fn position(&self, line: &str) -> Option<usize> {
        let (position, rest) = line.trim().split_once(' ')?;
        let position: usize = position.parse().ok()?;
        let is_same = match (self, rest.split_once(' ')) {
            (Self::Folder(checksums), Some((_, checksum))) => {
                *checksums.get(position.checked_sub(1)?)? == u64::from_str_radix(checksum, 16).ok()?
            }
            // Older versions note no checksum.
            (Self::Folder(checksums), None) => position <= checksums.len() && rest.parse() == Ok(checksums.len()),
            (Self::Video(which), None) => position <= *which && rest.parse() == Ok(*which),
            (Self::Video(_), Some(_)) => false,
        };
        is_same.then_some(position)
    }
}

/// One line in a file: `position count checksum`, the frames that are done with, the files of the folder, and the names and sizes of those
/// that are done with; of a video `position number`.
#[derive(Debug)]
pub struct Progress {
    file: PathBuf,
    recording: Recording,
    /// What stands in the file.
    noted: String,
    is_of_another: bool,
    /// Every frame up to here is done with.
    passed: usize,
    /// Positions of the labels that are appended and not known to be committed, with their sequences.
    waiting: VecDeque<(usize, u64)>,
}

impl Progress {
    /// Goes on with what `file` says. One that cannot be read, or is of another recording, only means to start at the first frame.
    pub fn open(file: &Path, recording: Recording) -> Self {
        let read = std::fs::read_to_string(file);
        let is_missing = read.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let noted = read.unwrap_or_default();
        let position = recording.position(&noted);
        Self {
            file: file.to_owned(),
            recording,
            noted,
            is_of_another: position.is_none() && !is_missing,
            passed: position.unwrap_or(0),
            waiting: VecDeque::new(),
        }
    }

    /// What it was opened with.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Whether it begins anew because the file is of another recording, or cannot be read.
    pub fn is_of_another(&self) -> bool {
        self.is_of_another
    }

    /// Frames that are done with.
    pub fn position(&self) -> usize {
        self.passed
    }

    /// The label of the frame at `position` was appended to the outbox as `sequence`.
    pub fn appended(&mut self, position: usize, sequence: u64) {
        self.waiting.push_back((position, sequence));
    }

    /// The frame at `position` has no label: it is done with when the ones before it are.
    pub fn without_label(&mut self, position: usize) {
        *self.waiting.back_mut().map_or(&mut self.passed, |(last, _)| last) = position;
    }

    /// Labels below `sequence` are committed, the others are not.
    pub fn settle(&mut self, sequence: u64) {
        let committed = self.waiting.partition_point(|&(_, label)| label < sequence);
        self.passed = self.waiting.drain(..committed).next_back().map_or(self.passed, |(position, _)| position);
        let Some(line) = self.recording.line(self.passed).filter(|line| *line != self.noted) else { return };
        match replace_file(&self.file, line.as_bytes()) {
            Ok(()) => self.noted = line,
            Err(error) => tracing::warn!(%error, file = %self.file.display(), "cannot note how far the folder is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_done_with_when_its_label_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("progress");
        let open = |which: usize| Progress::open(&file, Recording::Video(which));
        let mut progress = open(9);
        let mut check = |step: &dyn Fn(&mut Progress), expected: usize| {
            step(&mut progress);
            assert_eq!(open(9).position(), expected);
        };
        check(&|p| p.without_label(1), 0);
        check(&|p| p.settle(20), 1);
        // Other cameras' labels take sequences, too.
        check(&|p| (2..=4).for_each(|at| p.appended(at, 20 + 2 * at as u64)), 1);
        check(&|p| p.without_label(5), 1);
        check(&|p| p.settle(24), 1);
        check(&|p| p.settle(28), 3);
        check(&|p| p.appended(6, 31), 3);
        check(&|p| p.settle(31), 5);
        check(&|p| p.settle(32), 6);
        assert_eq!(open(10).position(), 0, "another video begins at its first frame");
        std::fs::write(&file, "10 9").unwrap();
        assert_eq!(open(9).position(), 0);
    }

    #[test]
    fn a_folder_is_told_from_another_by_the_files_that_are_done_with() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("progress");
        let open = |checksums: &[u64]| Progress::open(&file, Recording::Folder(checksums.into()));
        assert!(!open(&[7]).is_of_another(), "nothing is noted yet");
        let check = |line: &str, checksums: &[u64], expected: Option<usize>| {
            std::fs::write(&file, line).unwrap();
            let progress = open(checksums);
            let found = (!progress.is_of_another()).then_some(progress.position());
            assert_eq!(found, expected, "{line:?} of {checksums:?}");
        };
        check("2 3 000000000000000b\n", &[10, 11, 12], Some(2));
        check("2 3 000000000000000b\n", &[10, 11], Some(2));
        check("2 3 000000000000000b\n", &[10, 11, 13, 14], Some(2));
        check("2 3 000000000000000b\n", &[10, 13, 12], None);
        check("2 3 000000000000000b\n", &[11], None);
        // Without a checksum.
        check("2 3\n", &[10, 11, 12], Some(2));
        check("2 3\n", &[10, 11], None);
        check("4 3\n", &[10, 11, 12], None);
        for damaged in ["", "2", "2 3 xyz", "0 3 000000000000000b", "-1 3 000000000000000b", "9 3 000000000000000b"] {
            check(damaged, &[10, 11, 12], None);
        }
        std::fs::write(&file, "2 3\n").unwrap();
        open(&[10, 11, 12]).settle(0);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "2 3 000000000000000b\n");
        open(&[20, 21, 22]).settle(0);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "2 3 000000000000000b\n", "kept until a frame of the other is done with");
    }
}
