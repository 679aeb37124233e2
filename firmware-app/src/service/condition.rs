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
        // A camera says nothing of the frames that it skips: at its rate it is silent between two.
        let pause = |stall_secs: f64| stall_secs.max(1.0 / camera.fps());
        let patience = camera.stall_secs().map(|secs| Duration::from_secs_f64(3.0 * pause(secs)) + OVERDUE);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_camera_may_be_silent_for_three_stall_times_or_frames_and_half_a_minute() {
        let check = |fps: f64, stall_secs: f64, patience_secs: u64| {
            let state = CameraState::new("", &CameraConfig::V4l2 { device: "/dev/video0".into(), fps, stall_secs });
            let overdue = |secs: u64| state.is_overdue(Duration::from_secs(secs));
            assert_eq!((overdue(patience_secs - 1), overdue(patience_secs + 1)), (false, true), "{fps} fps, {stall_secs} s");
        };
        check(10.0, 10.0, 60);
        check(0.1, 10.0, 60);
        check(0.01, 10.0, 330);
        check(0.001, 10.0, 3030);
        check(0.01, 200.0, 630);
        let recorded = CameraConfig::Folder { path: "frames".into(), fps: 0.001, repeat: false, stop_at_end: false };
        assert!(!CameraState::new("", &recorded).is_overdue(Duration::from_secs(1_000_000)));
    }
}
