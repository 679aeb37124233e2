//! How each camera is, as far as the core is told.

use crate::config::CameraConfig;
use omnilabel_keypoints::geometry::Size;
use std::time::{Duration, Instant};

/// What a camera may be late beside what its configuration allows it.
const OVERDUE: Duration = Duration::from_secs(30);

/// How a camera is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It said nothing yet.
    Waiting,
    /// Frames come.
    Live,
    /// It tries to come back.
    Away,
    /// It gave its last frame.
    Ended,
}

impl Condition {
    /// As the page reads it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Live => "live",
            Self::Away => "away",
            Self::Ended => "ended",
        }
    }
}

/// A camera as it is seen from here.
#[derive(Clone, Debug)]
pub(crate) struct CameraState {
    /// Empty for a camera alone.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) condition: Condition,
    pub(crate) frames: u64,
    pub(crate) bad: u64,
    pub(crate) last: Option<Instant>,
    pub(crate) reason: String,
    pub(crate) size: Option<Size>,
    /// A live camera without a frame for this long is ill, whatever it says of itself.
    patience: Option<Duration>,
}

impl CameraState {
    pub(super) fn new(name: &str, camera: &CameraConfig) -> Self {
        let (name, reason) = (name.to_owned(), String::new());
        let patience = camera.stall_secs().map(|secs| Duration::from_secs_f64(3.0 * secs) + OVERDUE);
        Self { name, kind: camera.kind(), condition: Condition::Waiting, frames: 0, bad: 0, last: None, reason, size: None, patience }
    }

    /// For people.
    pub(crate) fn title(&self) -> &str {
        if self.name.is_empty() { "camera" } else { &self.name }
    }

    /// Whether it is silent for longer than it should.
    pub(super) fn is_overdue(&self, silent: Duration) -> bool {
        self.condition != Condition::Ended && self.patience.is_some_and(|patience| silent > patience)
    }

    /// A frame came, whatever became of it.
    pub(super) fn seen(&mut self) {
        (self.condition, self.last) = (Condition::Live, Some(Instant::now()));
        self.reason.clear();
    }

    pub(super) fn labelled(&mut self, size: Size) {
        self.seen();
        self.frames += 1;
        self.size = Some(size);
    }

    pub(super) fn bad(&mut self, reason: &str) {
        self.bad += 1;
        reason.clone_into(&mut self.reason);
    }

    pub(super) fn away(&mut self, reason: &str) {
        self.condition = Condition::Away;
        reason.clone_into(&mut self.reason);
    }

    pub(super) fn end(&mut self) {
        self.condition = Condition::Ended;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.condition == Condition::Ended
    }
}
