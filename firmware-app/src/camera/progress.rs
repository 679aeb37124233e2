//! How far a folder is: the frames whose labels are committed, or which have none.

use crate::durable::replace_file;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// One line in a file: `position count`, the frames that are done with and those of the folder.
#[derive(Debug)]
pub struct Progress {
    file: PathBuf,
    count: usize,
    noted: usize,
    /// Every frame up to here is done with.
    passed: usize,
    /// Positions of the labels that are appended and not known to be committed, with their sequences.
    waiting: VecDeque<(usize, u64)>,
}

impl Progress {
    /// Goes on with what `file` says. One that cannot be read, or is of a folder with another count, only means to start at the
    /// first frame.
    pub fn open(file: &Path, count: usize) -> Self {
        let noted = read(file, count).unwrap_or(0);
        Self { file: file.to_owned(), count, noted, passed: noted, waiting: VecDeque::new() }
    }

    /// What it was opened with.
    pub fn count(&self) -> usize {
        self.count
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
        if self.passed == self.noted {
            return;
        }
        match replace_file(&self.file, format!("{} {}\n", self.passed, self.count).as_bytes()) {
            Ok(()) => self.noted = self.passed,
            Err(error) => tracing::warn!(%error, file = %self.file.display(), "cannot note how far the folder is"),
        }
    }
}

fn read(file: &Path, count: usize) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let (position, of) = text.trim().split_once(' ')?;
    let position: usize = position.parse().ok()?;
    (of.parse() == Ok(count) && position <= count).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_done_with_when_its_label_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("progress");
        let mut progress = Progress::open(&file, 9);
        let mut check = |step: &dyn Fn(&mut Progress), expected: usize| {
            step(&mut progress);
            assert_eq!(Progress::open(&file, 9).position(), expected);
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
        assert_eq!(Progress::open(&file, 10).position(), 0, "another folder begins at its first frame");
        std::fs::write(&file, "10 9").unwrap();
        assert_eq!(Progress::open(&file, 9).position(), 0);
    }
}
