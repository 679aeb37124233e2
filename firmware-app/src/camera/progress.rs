//! How far a folder is: the frames whose labels are committed, or which have none.

use crate::outbox::replace_file;
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
    /// Positions of the labels that are appended and not known to be committed.
    waiting: VecDeque<usize>,
}

impl Progress {
    /// Goes on with what `file` says. One that cannot be read, or is of a folder with another count, only means to start at the
    /// first frame.
    pub fn open(file: &Path, count: usize) -> Self {
        let noted = read(file, count).unwrap_or(0);
        Self { file: file.to_owned(), count, noted, passed: noted, waiting: VecDeque::new() }
    }

    /// Frames that are done with.
    pub fn position(&self) -> usize {
        self.passed
    }

    /// The label of the frame at `position` was appended to the outbox.
    pub fn appended(&mut self, position: usize) {
        self.waiting.push_back(position);
    }

    /// The frame at `position` has no label: it is done with when the ones before it are.
    pub fn without_label(&mut self, position: usize) {
        *self.waiting.back_mut().unwrap_or(&mut self.passed) = position;
    }

    /// The newest `uncommitted` labels are not committed, the others are.
    pub fn settle(&mut self, uncommitted: usize) {
        let committed = self.waiting.len().saturating_sub(uncommitted);
        self.passed = self.waiting.drain(..committed).next_back().unwrap_or(self.passed);
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
        check(&|p| p.settle(0), 1);
        check(&|p| (2..=4).for_each(|at| p.appended(at)), 1);
        check(&|p| p.without_label(5), 1);
        check(&|p| p.settle(3), 1);
        check(&|p| p.settle(1), 3);
        check(&|p| p.appended(6), 3);
        check(&|p| p.settle(1), 5);
        check(&|p| p.settle(0), 6);
        assert_eq!(Progress::open(&file, 10).position(), 0, "another folder begins at its first frame");
        std::fs::write(&file, "10 9").unwrap();
        assert_eq!(Progress::open(&file, 9).position(), 0);
    }
}
