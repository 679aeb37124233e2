//! What is shown of the device: the core writes it, the page, the metrics and the watchdog read it. Nobody waits for anybody here.

use crate::camera::Shot;
use crate::clock::now_ms;
pub(crate) use crate::service::condition::{CameraState, Condition};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::label::{Label, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::trial::Phase;
use omnilabel_keypoints::wire::StatusMsg;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pictures are kept for a viewer who asked this recently.
const WATCHED: Duration = Duration::from_secs(10);
/// Labels per second are counted over this time.
const RATE: Duration = Duration::from_secs(5);
/// A core that has not written for this long hangs.
const CORE_HANGS: Duration = Duration::from_secs(30);
/// An engine that works on one frame for this long hangs.
const ENGINE_HANGS: Duration = Duration::from_secs(180);
/// Bounds of the histogram of frame times, seconds.
const FRAME_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Something that is well since a time, or not, and why.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) well: bool,
    pub(crate) since: Instant,
    pub(crate) reason: String,
}

/// The device at one moment.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) broker: Step,
    pub(crate) status: StatusMsg,
    pub(crate) near_duplicate: u64,
    pub(crate) quota: u64,
    pub(crate) schedule: u64,
    pub(crate) dropped: u64,
    pub(crate) uncommitted: u64,
    pub(crate) bytes: u64,
    /// Whether labels wait for room on the disk.
    pub(crate) held: bool,
    pub(crate) model: String,
    pub(crate) hash: u64,
    pub(crate) phase: Phase,
    /// Serial of the set of release keys; 0: the root key signs itself.
    pub(crate) keys: u64,
    pub(crate) refused: Option<u64>,
    pub(crate) reason: String,
    pub(crate) views: usize,
    /// What a frame takes by so many views, on average.
    pub(crate) frame_secs: Option<f64>,
    /// Of the confirmed model.
    pub(crate) skeleton: Skeleton,
    pub(crate) cameras: Vec<CameraState>,
    pub(crate) thresholds: Thresholds,
    pub(crate) at: Instant,
}

/// The last labelled frame of a camera.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) captured_ms: u64,
    pub(crate) took: Duration,
    pub(crate) label: Label,
    /// Of the model that made the label.
    pub(crate) skeleton: Skeleton,
    pub(crate) frame: Frame,
}

impl Seen {
    pub(super) fn new(shot: &Shot, label: &Label, skeleton: &Skeleton, took: Duration) -> Self {
        let (label, skeleton, frame) = (label.clone(), skeleton.clone(), shot.frame.clone());
        Self { id: shot.id, captured_ms: shot.captured_ms, took, label, skeleton, frame }
    }
}

/// See the module.
pub(crate) struct Board {
    pub(crate) since: Instant,
    state: Mutex<Option<State>>,
    /// Frames at times, for the rate.
    rate: Mutex<VecDeque<(Instant, u64)>>,
    seen: Mutex<Vec<Option<Arc<Seen>>>>,
    watched_ms: AtomicU64,
    /// When the engine was last at work, ms since `since`.
    pub(super) pulse: Arc<AtomicU64>,
    /// When each camera said something last, ms since `since`, whatever the engine had time for.
    spoke: Vec<AtomicU64>,
    /// Live frames that made room for newer ones.
    pub(super) busy: AtomicU64,
    recorder: PrometheusRecorder,
    metrics: PrometheusHandle,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// For `cameras` cameras.
    pub(super) fn new(cameras: usize) -> Self {
        let builder = PrometheusBuilder::new();
        // The bounds are not empty, which is all that can be wrong with them.
        let builder = match builder.set_buckets_for_metric(Matcher::Full("omnilabel_frame_seconds".to_owned()), &FRAME_SECONDS) {
            Ok(builder) => builder,
            Err(_) => PrometheusBuilder::new(),
        };
        let recorder = builder.build_recorder();
        Self {
            since: Instant::now(),
            state: Mutex::new(None),
            rate: Mutex::default(),
            seen: Mutex::new(vec![None; cameras]),
            watched_ms: AtomicU64::new(0),
            pulse: Arc::default(),
            spoke: (0..cameras).map(|_| AtomicU64::new(0)).collect(),
            busy: AtomicU64::new(0),
            metrics: recorder.handle(),
            recorder,
        }
    }

    fn ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    pub(super) fn set(&self, state: State) {
        let mut rate = lock(&self.rate);
        rate.push_back((state.at, state.status.frames));
        while rate.front().is_some_and(|(at, _)| state.at.duration_since(*at) > RATE) {
            rate.pop_front();
        }
        *lock(&self.state) = Some(state);
    }

    /// The device now; none before it works.
    pub(crate) fn state(&self) -> Option<State> {
        lock(&self.state).clone()
    }

    /// Labels per second over the last seconds.
    pub(crate) fn rate(&self) -> f64 {
        let rate = lock(&self.rate);
        match (rate.front(), rate.back()) {
            (Some((from, first)), Some((to, last))) if to > from => (last - first) as f64 / to.duration_since(*from).as_secs_f64(),
            _ => 0.0,
        }
    }

    /// A camera said something.
    pub(super) fn spoke(&self, camera: usize) {
        if let Some(spoke) = self.spoke.get(camera) {
            spoke.store(self.ms(), Ordering::Relaxed);
        }
    }

    /// Sorts what was recorded into its buckets. Until then it is kept one by one.
    pub(super) fn upkeep(&self) {
        self.metrics.run_upkeep();
    }

    pub(super) fn labelled(&self, took: Duration) {
        metrics::with_local_recorder(&self.recorder, || metrics::histogram!("omnilabel_frame_seconds").record(took.as_secs_f64()));
    }

    /// Whether somebody looks at pictures.
    pub(super) fn is_watched(&self) -> bool {
        let asked = self.watched_ms.load(Ordering::Relaxed);
        asked > 0 && self.ms().saturating_sub(asked) < WATCHED.as_millis() as u64
    }

    pub(super) fn show(&self, camera: usize, seen: Seen) {
        if let Some(place) = lock(&self.seen).get_mut(camera) {
            *place = Some(Arc::new(seen));
        }
    }

    /// The last labelled frame of a camera. From the first question on, and while there are more, frames are kept.
    pub(crate) fn look(&self, camera: usize) -> Option<Arc<Seen>> {
        self.watched_ms.store(self.ms().max(1), Ordering::Relaxed);
        lock(&self.seen).get(camera)?.clone()
    }

    /// Live frames that nobody had time for.
    pub(crate) fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// What does not work any more, so that only a restart helps.
    pub(crate) fn hangs(&self) -> Option<&'static str> {
        let core = lock(&self.state).as_ref().map_or(self.since, |state| state.at);
        let engine = Duration::from_millis(self.ms().saturating_sub(self.pulse.load(Ordering::Relaxed)));
        let stuck = |what, is: bool| is.then_some(what);
        stuck("the core hangs", core.elapsed() > CORE_HANGS).or(stuck("the engine hangs", engine > ENGINE_HANGS))
    }

    /// What an operator should look after. Without a broker labels wait: that alone is no illness.
    pub(crate) fn ills(&self) -> Vec<String> {
        let mut ills: Vec<String> = self.hangs().map(str::to_owned).into_iter().collect();
        let Some(state) = self.state() else {
            ills.push("the device starts".to_owned());
            return ills;
        };
        // Without a broker labels wait; with one that takes none they wait for ever.
        ills.extend(Some(&state.broker).filter(|broker| broker.well && !broker.reason.is_empty()).map(|broker| broker.reason.clone()));
        ills.extend(state.held.then(|| "the outbox cannot be written: labels and cameras wait".to_owned()));
        for (camera, spoke) in state.cameras.iter().zip(&self.spoke) {
            let silent = Duration::from_millis(self.ms().saturating_sub(spoke.load(Ordering::Relaxed)));
            let what = if camera.name.is_empty() { "camera".to_owned() } else { format!("camera {}", camera.name) };
            if camera.condition == Condition::Away {
                ills.push(format!("{what} is away: {}", camera.reason));
            } else if camera.is_overdue(silent) && !state.held {
                // While labels wait, so do cameras.
                ills.push(format!("{what} says nothing for {} s", silent.as_secs()));
            }
        }
        ills
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        let Some(state) = self.state() else { return self.metrics.render() };
        metrics::with_local_recorder(&self.recorder, || {
            let gauge = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
            let counter = |name: &'static str, value: u64| metrics::counter!(name).absolute(value);
            counter("omnilabel_frames_labelled_total", state.status.frames);
            counter("omnilabel_frames_bad_total", state.status.bad_frames);
            for (reason, count) in self.skips(&state) {
                metrics::counter!("omnilabel_frames_skipped_total", "reason" => reason).absolute(count);
            }
            counter("omnilabel_labels_dropped_total", state.dropped);
            counter("omnilabel_labels_committed_total", state.status.committed);
            counter("omnilabel_labels_evicted_total", state.status.evicted);
            counter("omnilabel_frames_evicted_total", state.status.frames_evicted);
            gauge("omnilabel_release_keys_serial", state.keys as f64);
            gauge("omnilabel_outbox_pending", state.status.pending as f64);
            gauge("omnilabel_outbox_uncommitted", state.uncommitted as f64);
            gauge("omnilabel_outbox_bytes", state.bytes as f64);
            gauge("omnilabel_outbox_held", f64::from(u8::from(state.held)));
            gauge("omnilabel_broker_connected", f64::from(u8::from(state.broker.well)));
            gauge("omnilabel_model_release", state.status.model as f64);
            gauge("omnilabel_model_on_trial", f64::from(u8::from(state.phase != Phase::Idle)));
            gauge("omnilabel_views", state.views as f64);
            gauge("omnilabel_uptime_seconds", self.since.elapsed().as_secs_f64());
            for camera in &state.cameras {
                let name = || camera.title().to_owned();
                metrics::gauge!("omnilabel_camera_up", "camera" => name()).set(f64::from(u8::from(camera.condition == Condition::Live)));
                metrics::counter!("omnilabel_camera_frames_total", "camera" => name()).absolute(camera.frames);
                metrics::counter!("omnilabel_camera_bad_total", "camera" => name()).absolute(camera.bad);
                if let Some(last) = camera.last {
                    metrics::gauge!("omnilabel_camera_frame_age_seconds", "camera" => name()).set(last.elapsed().as_secs_f64());
                }
            }
        });
        self.metrics.render()
    }

    /// Frames that were not labelled, by reason.
    pub(crate) fn skips(&self, state: &State) -> [(&'static str, u64); 4] {
        let (near_duplicate, quota, schedule) = (state.near_duplicate, state.quota, state.schedule);
        [("busy", self.busy()), ("near_duplicate", near_duplicate), ("quota", quota), ("schedule", schedule)]
    }

    /// Unix milliseconds and seconds since the start.
    pub(crate) fn clock(&self) -> (u64, u64) {
        (now_ms(), self.since.elapsed().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CameraConfig;

    const MJPEG: CameraConfig = CameraConfig::Mjpeg { url: String::new(), fps: 1.0, stall_secs: 10.0, max_frame_bytes: 1024 };

    /// A device that started this long ago, with one camera, all well.
    fn board(ago: Duration) -> (Board, State) {
        let mut board = Board::new(1);
        board.since -= ago;
        board.pulse.store(board.ms(), Ordering::Relaxed);
        board.spoke(0);
        let state = State {
            broker: Step { well: false, since: board.since, reason: "no route to host".to_owned() },
            status: StatusMsg::default(),
            near_duplicate: 0,
            quota: 0,
            schedule: 0,
            dropped: 0,
            uncommitted: 0,
            bytes: 0,
            held: false,
            model: String::new(),
            hash: 0,
            phase: Phase::Idle,
            keys: 0,
            refused: None,
            reason: String::new(),
            views: 1,
            frame_secs: None,
            skeleton: Skeleton::coco17(),
            cameras: vec![CameraState::new("gate", &MJPEG)],
            thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
            at: Instant::now(),
        };
        board.set(state.clone());
        (board, state)
    }

    #[test]
    fn what_an_operator_should_look_after_is_told_and_a_missing_broker_is_not() {
        let (board, state) = board(Duration::from_secs(1000));
        let none: [&str; 0] = [];
        assert_eq!(board.ills(), none);
        // Three times its stall time and half a minute.
        board.spoke[0].store(board.ms() - 59_000, Ordering::Relaxed);
        assert_eq!(board.ills(), none);
        board.spoke[0].store(board.ms() - 61_000, Ordering::Relaxed);
        assert_eq!(board.ills(), ["camera gate says nothing for 61 s"]);
        let refused = Step { well: true, since: board.since, reason: "the broker refuses a message".to_owned() };
        board.set(State { broker: refused, ..state.clone() });
        assert_eq!(board.ills()[0], "the broker refuses a message");
        // While the disk is full cameras wait: they are not ill.
        board.set(State { held: true, ..state.clone() });
        assert_eq!(board.ills(), ["the outbox cannot be written: labels and cameras wait"]);
        let mut away = state.clone();
        away.cameras[0].away("no route to host");
        board.set(away);
        assert_eq!(board.ills(), ["camera gate is away: no route to host"]);
        let mut ended = state;
        ended.cameras[0].end();
        board.set(ended);
        assert_eq!(board.ills(), none);
    }

    #[test]
    fn what_hangs_is_told_by_its_silence() {
        let (board, state) = board(Duration::from_secs(1000));
        assert_eq!(board.hangs(), None);
        board.pulse.store(board.ms() - 181_000, Ordering::Relaxed);
        assert_eq!(board.hangs(), Some("the engine hangs"));
        board.set(State { at: Instant::now() - Duration::from_secs(31), ..state });
        assert_eq!(board.hangs(), Some("the core hangs"));
    }

    #[test]
    fn times_of_frames_are_counted_whenever_they_are_asked_for() {
        let (board, _) = board(Duration::from_secs(1));
        for _ in 0..3 {
            board.labelled(Duration::from_millis(30));
            board.upkeep();
        }
        board.labelled(Duration::from_secs(3));
        let text = board.metrics();
        for line in [
            "omnilabel_frame_seconds_bucket{le=\"0.05\"} 3",
            "omnilabel_frame_seconds_bucket{le=\"5\"} 4",
            "omnilabel_frame_seconds_count 4",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
