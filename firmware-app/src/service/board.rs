//! What is shown of the device: the core writes it, the page, the metrics and the watchdog read it. Nobody waits for anybody here.

use crate::camera::{Shot, now_ms};
use crate::config::CameraConfig;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
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
/// What a camera may be late beside what its configuration allows it.
const OVERDUE: Duration = Duration::from_secs(30);
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

/// A camera as it is seen from here.
#[derive(Clone, Debug)]
pub(crate) struct CameraState {
    /// Empty for a camera alone.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    /// `waiting`, `live`, `away` or `ended`.
    pub(crate) state: &'static str,
    pub(crate) frames: u64,
    pub(crate) bad: u64,
    pub(crate) last: Option<Instant>,
    pub(crate) reason: String,
    pub(crate) size: Option<Size>,
    /// A live camera without a frame for this long is ill, whatever it says of itself.
    patience: Option<Duration>,
    since: Instant,
}

impl CameraState {
    pub(super) fn new(name: &str, camera: &CameraConfig) -> Self {
        let (name, reason) = (name.to_owned(), String::new());
        let patience = camera.stall_secs().map(|secs| Duration::from_secs_f64(3.0 * secs) + OVERDUE);
        let since = Instant::now();
        Self { name, kind: camera.kind(), state: "waiting", frames: 0, bad: 0, last: None, reason, size: None, patience, since }
    }

    /// How long it says nothing although it should.
    fn overdue(&self) -> Option<Duration> {
        let silent = self.last.unwrap_or(self.since).elapsed();
        (self.state != "ended" && self.patience.is_some_and(|patience| silent > patience)).then_some(silent)
    }

    /// A frame came, whatever became of it.
    pub(super) fn seen(&mut self) {
        (self.state, self.last) = ("live", Some(Instant::now()));
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
        self.state = "away";
        reason.clone_into(&mut self.reason);
    }

    pub(super) fn end(&mut self) {
        self.state = "ended";
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == "ended"
    }
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
    /// Live frames that made room for newer ones.
    pub(super) busy: Arc<AtomicU64>,
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
            busy: Arc::default(),
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
        ills.extend(state.held.then(|| "the outbox cannot be written: labels and cameras wait".to_owned()));
        for camera in &state.cameras {
            let name = if camera.name.is_empty() { String::new() } else { format!(" {}", camera.name) };
            match camera.overdue() {
                _ if camera.state == "away" => ills.push(format!("camera{name} is away: {}", camera.reason)),
                // While labels wait, so do cameras.
                Some(silent) if !state.held => ills.push(format!("camera{name} says nothing for {} s", silent.as_secs())),
                _ => {}
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
                let name = || if camera.name.is_empty() { "camera".to_owned() } else { camera.name.clone() };
                metrics::gauge!("omnilabel_camera_up", "camera" => name()).set(f64::from(u8::from(camera.state == "live")));
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
