//! Two threads: the camera's, which only waits for frames, and the engine's, which labels them. Models are swapped between frames.

use crate::annotate::Model;
use crate::camera::{Camera, CameraEvent, Shot};
use crate::service::Event;
use omnilabel_keypoints::label::Label;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// Frames between camera and engine. When it is full, a live frame is dropped and counted, a recorded one waits.
pub(super) const SHOTS: usize = 2;
/// Frames that are kept to try a new model on when none come.
pub(super) const KEPT_FRAMES: usize = 4;
/// How often the engine looks for commands while no frame comes.
const LOOK: Duration = Duration::from_millis(100);

/// What the engine is told.
pub(super) enum Command {
    /// From the next frame on, this model.
    Swap(Arc<Model>),
    /// No frames come: label one of the last ones, for the probation alone.
    Replay,
}

/// A frame that went through the model.
pub(crate) struct Labelled {
    pub(super) shot: Box<Shot>,
    /// Counter and hash of the model.
    pub(super) model: (u64, u64),
    pub(super) result: Result<Label, String>,
    pub(super) took: Duration,
    /// A frame that was labelled before: counts for the probation alone.
    pub(super) replay: bool,
}

/// Runs the camera until its end, or until the engine is gone.
pub(super) fn watch(mut camera: Box<dyn Camera>, shots: &SyncSender<CameraEvent>, skipped: &AtomicU64) {
    loop {
        let event = camera.next();
        let end = event == CameraEvent::End;
        let gone = if camera.is_live() && matches!(event, CameraEvent::Shot(_)) {
            match shots.try_send(event) {
                Ok(()) => false,
                Err(TrySendError::Full(_)) => {
                    skipped.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(TrySendError::Disconnected(_)) => true,
            }
        } else {
            shots.send(event).is_err()
        };
        if end || gone {
            return;
        }
    }
}

/// Labels frames until the service is gone; takes none while `hold` is set. `last` are frames of before, to try a new model on.
pub(super) fn run(
    mut model: Arc<Model>,
    mut last: VecDeque<Box<Shot>>,
    shots: &Receiver<CameraEvent>,
    commands: &Receiver<Command>,
    events: &Sender<Event>,
    hold: &AtomicBool,
) {
    let mut camera_open = true;
    loop {
        let mut replay = false;
        loop {
            // Without a camera the engine waits for commands alone.
            let command = if camera_open {
                commands.try_recv().map_err(|error| error == std::sync::mpsc::TryRecvError::Disconnected)
            } else {
                commands.recv_timeout(LOOK).map_err(|error| error == RecvTimeoutError::Disconnected)
            };
            match command {
                Ok(Command::Swap(next)) => model = next,
                // One at a time: without a camera they may come faster than this loop would end otherwise.
                Ok(Command::Replay) => {
                    replay = true;
                    break;
                }
                Err(true) => return,
                Err(false) => break,
            }
        }
        if replay && let Some(shot) = last.pop_front() {
            let event = label(&model, shot.clone(), true);
            last.push_back(shot);
            if events.blocking_send(event).is_err() {
                return;
            }
        }
        if !camera_open {
            continue;
        }
        if hold.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            continue;
        }
        let event = match shots.recv_timeout(LOOK) {
            Ok(CameraEvent::Shot(shot)) => {
                if last.len() >= KEPT_FRAMES {
                    last.pop_front();
                }
                last.push_back(shot.clone());
                label(&model, shot, false)
            }
            Ok(event) => Event::Camera(event),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => {
                camera_open = false;
                continue;
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

fn label(model: &Model, shot: Box<Shot>, replay: bool) -> Event {
    let start = Instant::now();
    // A model on trial may do anything; the device goes on.
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| model.annotate(&shot.frame)));
    let result = match result {
        Ok(result) => result.map_err(|error| format!("{}: {error}", shot.name)),
        Err(_) => Err(format!("{}: the model panicked", shot.name)),
    };
    Event::Labelled(Box::new(Labelled { shot, model: (model.counter(), model.hash()), result, took: start.elapsed(), replay }))
}
