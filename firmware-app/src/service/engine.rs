//! The cameras' threads, which only wait for frames, and the engine's, which labels them. Models are swapped between frames.

use crate::annotate::Model;
use crate::camera::{Camera, CameraEvent, Shot};
use crate::clock::now_ms;
use crate::policy::{Policy, Quota, Skip};
use crate::service::Event;
use crate::service::board::Board;
use crate::service::load::{Load, hottest};
use crate::service::mailbox::{Mailboxes, Put, Taken};
use omnilabel_keypoints::label::Label;
use std::cell::OnceCell;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// Frames that are kept to try a new model on when none come.
pub(super) const KEPT_FRAMES: usize = 4;
/// A camera whose program panicked is asked again after this.
const PANICKED: Duration = Duration::from_secs(5);
/// How often the engine looks for commands while no frame comes.
const LOOK: Duration = Duration::from_millis(100);

/// The model in the shadow takes a tenth of the time at most: on a busy device it gets every k-th frame, where k follows from how long both
/// take, and on an idle one every frame.
const SHADOW_PART: u32 = 10;

/// What the engine is told.
pub(super) enum Command {
    /// From the next frame on, this model, and none beside it.
    Swap(Arc<Model>),
    /// From the next frame on, this model beside the one that labels.
    Shadow(Arc<Model>),
}

/// A frame that went through the model.
pub(crate) struct Labelled {
    pub(super) camera: usize,
    pub(super) shot: Box<Shot>,
    /// Who made the label.
    pub(super) by: Arc<Model>,
    /// Counter and hash of the model.
    pub(super) model: (u64, u64),
    /// How many views were averaged.
    pub(super) views: usize,
    pub(super) result: Result<Label, String>,
    pub(super) took: Duration,
    /// A frame that was labelled before: counts for the probation alone.
    pub(super) replay: bool,
    /// The frame as it travels, once it was made.
    pub(super) picture: OnceCell<Vec<u8>>,
    /// What is used of the quota of labels, where there is one.
    pub(super) quota: Option<Quota>,
    /// Until it is stored, or dropped.
    _weight: Weight,
}

/// A frame that went through both models.
pub(crate) struct Shadowed {
    /// The model in the shadow.
    pub(super) by: Arc<Model>,
    /// What the running model made of it, and its time.
    pub(super) running: Label,
    pub(super) running_took: Duration,
    /// What the other one did.
    pub(super) result: Result<Label, String>,
    pub(super) took: Duration,
}

/// The model in the shadow.
pub(super) struct Beside {
    model: Arc<Model>,
    /// What it has taken beyond its part, until `since`: it waits until that is made up for.
    debt: Duration,
    since: Instant,
    /// The label and time of the newest frame, where it is this model's turn to label that.
    due: Option<(Label, Duration)>,
}

impl Beside {
    fn new(model: Arc<Model>, now: Instant) -> Self {
        Self { model, debt: Duration::ZERO, since: now, due: None }
    }

    /// The running model has labelled a frame.
    fn labelled(&mut self, result: &Result<Label, String>, took: Duration, now: Instant) {
        self.debt = self.debt.saturating_sub(now.duration_since(self.since) / SHADOW_PART);
        self.since = now;
        if let Ok(label) = result
            && self.debt.is_zero()
        {
            self.due = Some((label.clone(), took));
        }
    }

    /// This one has labelled a frame, too.
    fn took(&mut self, took: Duration) {
        self.debt += took;
    }
}

/// Bytes of frames that were labelled and are not stored yet. While they are more than this, no frame is taken: a disk that is slow for
/// a while must not fill the memory with frames of 25 MB.
const MAX_WAITING: usize = 128 << 20;

/// A frame's share of what waits.
struct Weight {
    waiting: Arc<AtomicUsize>,
    bytes: usize,
}

impl Weight {
    fn new(waiting: &Arc<AtomicUsize>, bytes: usize) -> Self {
        waiting.fetch_add(bytes, Ordering::Relaxed);
        Self { waiting: Arc::clone(waiting), bytes }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A frame that is not labelled.
pub(crate) struct Skipped {
    pub(super) camera: usize,
    pub(super) why: Skip,
    pub(super) position: Option<usize>,
}

/// Runs a camera until its end, or until the engine is gone.
pub(super) fn watch(index: usize, mut camera: Box<dyn Camera>, boxes: &Mailboxes, board: &Board) {
    let live = camera.is_live();
    loop {
        // What decodes bytes from outside may do anything; the camera goes on.
        let asked = std::panic::catch_unwind(AssertUnwindSafe(|| camera.next()));
        let panicked = asked.is_err();
        let lost = |_| CameraEvent::Lost { reason: "the camera's program panicked".to_owned(), retry_in: PANICKED };
        let event = asked.unwrap_or_else(lost);
        board.spoke(index);
        let end = event == CameraEvent::End;
        match boxes.put(index, event, live) {
            Put::Waits => {}
            Put::Replaced => {
                board.busy.fetch_add(1, Ordering::Relaxed);
            }
            Put::EngineGone => return,
        }
        if end {
            return boxes.close(index);
        }
        if panicked {
            std::thread::sleep(PANICKED);
        }
    }
}

/// The engine's last act, however it ends: cameras are let go, and the service ends.
struct Last {
    boxes: Arc<Mailboxes>,
    events: Sender<Event>,
    panicked: Arc<AtomicBool>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.panicked.store(std::thread::panicking(), Ordering::Relaxed);
        self.boxes.engine_gone();
        // A service that is gone needs no telling.
        let _ = self.events.blocking_send(Event::Shutdown);
    }
}

/// What the engine works with.
pub(super) struct Engine {
    pub(super) model: Arc<Model>,
    /// Frames of before, to try a new model on.
    pub(super) last: VecDeque<Box<Shot>>,
    pub(super) boxes: Arc<Mailboxes>,
    /// Whether each camera is live.
    pub(super) live: Vec<bool>,
    pub(super) policy: Policy,
    pub(super) load: Load,
    /// The model in the shadow of `model`.
    pub(super) beside: Option<Beside>,
    pub(super) commands: Receiver<Command>,
    /// Set where no frames come: one of the last ones is labelled, for the probation alone.
    pub(super) replay: Arc<AtomicBool>,
    pub(super) events: Sender<Event>,
    /// Set while the outbox can take no label: no frame is taken.
    pub(super) hold: Arc<AtomicBool>,
    /// Bytes of frames between the engine and the outbox.
    pub(super) waiting: Arc<AtomicUsize>,
    /// Set when the engine ends by a panic.
    pub(super) panicked: Arc<AtomicBool>,
    /// Milliseconds of the process at which the engine was last seen at work.
    pub(super) pulse: Arc<AtomicU64>,
    pub(super) since: Instant,
}

impl Engine {
    /// Labels frames until the service is gone. When it ends otherwise, so does the service: nothing would be labelled any more.
    pub(super) fn run(mut self) {
        let _last = Last { boxes: Arc::clone(&self.boxes), events: self.events.clone(), panicked: Arc::clone(&self.panicked) };
        let mut cameras_open = true;
        loop {
            self.beat();
            match self.command(cameras_open) {
                Ok(true) if !self.replay() => break,
                Ok(_) => {}
                Err(()) => break,
            }
            if !cameras_open {
                continue;
            }
            if self.hold.load(Ordering::Relaxed) || self.waiting.load(Ordering::Relaxed) > MAX_WAITING {
                std::thread::sleep(LOOK);
                continue;
            }
            let event = match self.boxes.take(LOOK) {
                Taken::Event(camera, CameraEvent::Shot(shot)) => self.frame(camera, shot),
                Taken::Event(camera, event) => Event::Camera(camera, event),
                Taken::Nothing => continue,
                Taken::Closed => {
                    cameras_open = false;
                    continue;
                }
            };
            if self.events.blocking_send(event).is_err() || !self.shadow() {
                break;
            }
        }
    }

    fn beat(&self) {
        self.pulse.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Carries out what it is told; whether a frame of before is to be labelled. An error when nobody is there to tell.
    fn command(&mut self, cameras_open: bool) -> Result<bool, ()> {
        loop {
            // Without a camera the engine waits for commands alone.
            let command = if cameras_open || self.replay.load(Ordering::Relaxed) {
                self.commands.try_recv().map_err(|error| error == std::sync::mpsc::TryRecvError::Disconnected)
            } else {
                self.commands.recv_timeout(LOOK).map_err(|error| error == RecvTimeoutError::Disconnected)
            };
            match command {
                Ok(Command::Swap(next)) => (self.model, self.beside) = (next, None),
                Ok(Command::Shadow(model)) => self.beside = Some(Beside::new(model, Instant::now())),
                Err(true) => return Err(()),
                Err(false) => return Ok(self.replay.swap(false, Ordering::Relaxed)),
            }
        }
    }

    /// Labels a frame of before; false when nobody is there to be told.
    fn replay(&mut self) -> bool {
        let Some(shot) = self.last.pop_front() else { return true };
        let labelled = self.label(0, shot.clone(), true);
        self.last.push_back(shot);
        self.events.blocking_send(Event::Labelled(Box::new(labelled))).is_ok()
    }

    /// Labels the newest frame with the model in the shadow, where it is its turn; false when nobody is there to be told.
    fn shadow(&mut self) -> bool {
        let reduction = self.load.reduction();
        let (Some(beside), Some(shot)) = (&mut self.beside, self.last.back()) else { return true };
        let Some((running, running_took)) = beside.due.take() else { return true };
        let start = Instant::now();
        let result = annotate(&beside.model, shot, reduction);
        let took = start.elapsed();
        beside.took(took);
        let shadowed = Shadowed { by: Arc::clone(&beside.model), running, running_took, result, took };
        self.events.blocking_send(Event::Shadowed(Box::new(shadowed))).is_ok()
    }

    fn frame(&mut self, camera: usize, shot: Box<Shot>) -> Event {
        let live = self.live.get(camera).copied().unwrap_or(true);
        if self.last.is_empty() {
            // Something to try a new model on, although nothing may be labelled for hours.
            self.last.push_back(shot.clone());
        }
        if let Err(why) = self.policy.admit(camera, live, &shot.frame, now_ms()) {
            return Event::Skipped(Skipped { camera, why, position: shot.position });
        }
        if self.last.len() >= KEPT_FRAMES {
            self.last.pop_front();
        }
        self.last.push_back(shot.clone());
        self.load.look(Instant::now(), hottest);
        let labelled = self.label(camera, shot, false);
        if let Some(changed) = self.load.took(labelled.took.as_secs_f64(), &self.model.views()) {
            let (from, to, why) = (changed.from, changed.to, changed.why);
            tracing::warn!(from, to, why, "frames get another number of views");
        }
        if let Some(beside) = &mut self.beside {
            beside.labelled(&labelled.result, labelled.took, Instant::now());
        }
        Event::Labelled(Box::new(labelled))
    }

    fn label(&self, camera: usize, shot: Box<Shot>, replay: bool) -> Labelled {
        let start = Instant::now();
        let weight = Weight::new(&self.waiting, shot.frame.rgb.len());
        let (model, reduction) = (&self.model, self.load.reduction());
        let result = annotate(model, &shot, reduction);
        let views = model.views();
        let views = views.get(reduction).or(views.last()).copied().unwrap_or(1);
        Labelled {
            by: Arc::clone(model),
            camera,
            shot,
            model: (model.counter(), model.hash()),
            views,
            result,
            took: start.elapsed(),
            replay,
            picture: OnceCell::new(),
            quota: self.policy.quota(),
            _weight: weight,
        }
    }
}

/// A frame's label by a model. One on trial may do anything; the device goes on.
fn annotate(model: &Model, shot: &Shot, reduction: usize) -> Result<Label, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(|| model.annotate(&shot.frame, reduction))) {
        Ok(result) => result.map_err(|error| format!("{}: {error}", shot.name)),
        Err(_) => Err(format!("{}: the model panicked", shot.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PolicyConfig, TeacherConfig};
    use crate::testing::{bundle, model};
    use omnilabel_detect::frame::Frame;
    use omnilabel_keypoints::geometry::Size;

    #[test]
    fn no_frame_is_taken_while_too_many_bytes_wait() {
        let folder = tempfile::tempdir().unwrap();
        let model = Arc::new(model(&bundle(&folder.path().join("bundle"), "first", 1, 500), 0, false));
        let (boxes, waiting) = (Arc::new(Mailboxes::new(1)), Arc::new(AtomicUsize::new(0)));
        let (events, mut inbox) = tokio::sync::mpsc::channel(4);
        let (commander, commands) = std::sync::mpsc::sync_channel(1);
        let engine = Engine {
            model,
            last: VecDeque::new(),
            boxes: Arc::clone(&boxes),
            live: vec![false],
            policy: Policy::new(PolicyConfig::default(), 1, Quota::default()),
            load: Load::new(&TeacherConfig::default()),
            beside: None,
            commands,
            replay: Arc::default(),
            events,
            hold: Arc::default(),
            waiting: Arc::clone(&waiting),
            panicked: Arc::default(),
            pulse: Arc::default(),
            since: Instant::now(),
        };
        let others = Weight::new(&waiting, MAX_WAITING + 1);
        let frame = Frame { size: Size { width: 48, height: 32 }, rgb: vec![9; 48 * 32 * 3] };
        let shot = Shot { id: 1, captured_ms: 1, name: "1".to_owned(), jpeg: None, frame, position: None };
        boxes.put(0, CameraEvent::Shot(Box::new(shot)), false);
        let engine = std::thread::spawn(move || engine.run());
        std::thread::sleep(5 * LOOK);
        assert!(inbox.try_recv().is_err(), "a frame was taken");
        drop(others);
        let Some(Event::Labelled(labelled)) = inbox.blocking_recv() else { panic!("no label") };
        assert_eq!(waiting.load(Ordering::Relaxed), 48 * 32 * 3, "it weighs until it is dropped");
        drop(labelled);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
        drop(commander);
        engine.join().unwrap();
    }

    #[test]
    fn the_model_in_the_shadow_takes_a_tenth_of_the_time_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let model = Arc::new(model(&bundle(&folder.path().join("bundle"), "first", 1, 500), 0, false));
        let label = Ok(Label { size: Size { width: 48, height: 32 }, instances: heapless::Vec::new(), overflow: 0 });
        let ms = Duration::from_millis;
        // Milliseconds between frames and of the two models, and how many of 1000 frames are compared.
        for (idle, running, candidate, compared) in
            [(0, 10, 10, 112), (0, 10, 30, 38), (0, 30, 10, 334), (0, 10, 1000, 2), (90, 10, 10, 1000), (990, 10, 500, 200)]
        {
            let begin = Instant::now();
            let (mut now, mut beside, mut turns) = (begin, Beside::new(Arc::clone(&model), begin), 0);
            for _ in 0..1000 {
                now += ms(idle + running);
                beside.labelled(&label, ms(running), now);
                if beside.due.take().is_some() {
                    beside.took(ms(candidate));
                    now += ms(candidate);
                    turns += 1;
                }
            }
            assert_eq!(turns, compared, "{idle}, {running} and {candidate} ms");
            // But for the one that is under way at the end.
            assert!(ms(candidate) * (turns - 1) <= (now - begin) / SHADOW_PART, "{idle}, {running} and {candidate} ms");
            beside.labelled(&Err("no frame".to_owned()), ms(9), now + ms(1_000_000));
            assert!(beside.due.is_none(), "nothing to compare with");
        }
    }

    #[test]
    fn an_engine_that_panics_lets_cameras_go_and_ends_the_service() {
        let (boxes, panicked) = (Arc::new(Mailboxes::new(1)), Arc::new(AtomicBool::new(false)));
        let (events, mut inbox) = tokio::sync::mpsc::channel(1);
        let last = Last { boxes: Arc::clone(&boxes), events, panicked: Arc::clone(&panicked) };
        let ended = std::thread::spawn(move || {
            let _last = last;
            panic!("as a broken rule would");
        });
        assert!(ended.join().is_err() && panicked.load(Ordering::Relaxed));
        assert!(matches!(inbox.blocking_recv(), Some(Event::Shutdown)));
        assert_eq!(boxes.put(0, CameraEvent::End, false), Put::EngineGone);
    }
}
