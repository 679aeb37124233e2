//! What cameras have and the engine takes: a short queue for each camera, taken from in turn, so that a fast camera does not keep a
//! slow one from being labelled.

use crate::camera::CameraEvent;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Events that wait for the engine, of each camera. Beyond it a live frame takes the place of the oldest one, everything else waits.
const ROOM: usize = 2;

/// The queues of all cameras.
pub(super) struct Mailboxes {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queues: Vec<Queue>,
    /// Whose turn it is.
    next: usize,
    engine_gone: bool,
}

struct Queue {
    events: VecDeque<CameraEvent>,
    open: bool,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It waits for the engine.
    Waits,
    /// It took the place of an older live frame.
    Replaced,
    /// Nobody will take it.
    EngineGone,
}

/// What there is for the engine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// An event of a camera.
    Event(usize, CameraEvent),
    /// Nothing came in the given time.
    Nothing,
    /// Every camera ended, and everything was taken.
    Closed,
}

impl Mailboxes {
    /// Of `cameras` cameras.
    pub(super) fn new(cameras: usize) -> Self {
        let queues = (0..cameras).map(|_| Queue { events: VecDeque::new(), open: true }).collect();
        Self { state: Mutex::new(State { queues, next: 0, engine_gone: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an event of `camera`; one that is not a live frame waits for room.
    pub(super) fn put(&self, camera: usize, event: CameraEvent, live: bool) -> Put {
        let mut state = self.lock();
        let mut replaced = false;
        loop {
            if state.engine_gone {
                return Put::EngineGone;
            }
            let Some(queue) = state.queues.get_mut(camera) else { return Put::EngineGone };
            if queue.events.len() < ROOM {
                queue.events.push_back(event);
                self.changed.notify_all();
                return if replaced { Put::Replaced } else { Put::Waits };
            }
            let oldest = queue.events.iter().position(|event| matches!(event, CameraEvent::Shot(_)));
            match oldest {
                Some(oldest) if live && matches!(event, CameraEvent::Shot(_)) => {
                    queue.events.remove(oldest);
                    replaced = true;
                }
                _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The camera gives nothing any more.
    pub(super) fn close(&self, camera: usize) {
        if let Some(queue) = self.lock().queues.get_mut(camera) {
            queue.open = false;
        }
        self.changed.notify_all();
    }

    /// The next event, camera by camera; waits `at_most` for one.
    pub(super) fn take(&self, at_most: Duration) -> Taken {
        let deadline = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            let count = state.queues.len();
            for step in 0..count {
                let camera = (state.next + step) % count;
                if let Some(event) = state.queues[camera].events.pop_front() {
                    state.next = camera + 1;
                    self.changed.notify_all();
                    return Taken::Event(camera, event);
                }
            }
            if state.queues.iter().all(|queue| !queue.open) {
                return Taken::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Nothing;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing is taken any more: cameras end.
    pub(super) fn engine_gone(&self) {
        self.lock().engine_gone = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::Shot;
    use omnilabel_detect::frame::Frame;
    use omnilabel_keypoints::geometry::Size;

    fn shot(id: u64) -> CameraEvent {
        let frame = Frame { size: Size { width: 1, height: 1 }, rgb: vec![0; 3] };
        CameraEvent::Shot(Box::new(Shot { id, captured_ms: 0, name: String::new(), jpeg: None, frame, position: None }))
    }

    fn take(boxes: &Mailboxes) -> Option<(usize, u64)> {
        match boxes.take(Duration::ZERO) {
            Taken::Event(camera, CameraEvent::Shot(shot)) => Some((camera, shot.id)),
            Taken::Event(camera, _) => Some((camera, 0)),
            Taken::Nothing | Taken::Closed => None,
        }
    }

    #[test]
    fn cameras_take_turns_live_frames_make_room_and_recorded_ones_wait() {
        let boxes = Mailboxes::new(2);
        let lost = || CameraEvent::Lost { reason: String::new(), retry_in: Duration::ZERO };
        assert_eq!([1, 2].map(|id| boxes.put(0, shot(id), true)), [Put::Waits, Put::Waits]);
        assert_eq!([3, 4].map(|id| boxes.put(0, shot(id), true)), [Put::Replaced, Put::Replaced]);
        assert_eq!([boxes.put(1, shot(9), true), boxes.put(1, lost(), true)], [Put::Waits, Put::Waits]);
        assert_eq!(boxes.put(1, shot(10), true), Put::Replaced, "what is not a frame keeps its place");
        assert_eq!([(); 5].map(|()| take(&boxes)), [Some((0, 3)), Some((1, 0)), Some((0, 4)), Some((1, 10)), None]);

        std::thread::scope(|scope| {
            let putter = scope.spawn(|| (1..=50).map(|id| boxes.put(0, shot(id), false)).collect::<Vec<_>>());
            let mut taken = Vec::new();
            while taken.len() < 50 {
                taken.extend(take(&boxes));
            }
            assert_eq!(taken, (1..=50).map(|id| (0, id)).collect::<Vec<_>>());
            assert!(putter.join().unwrap().iter().all(|put| *put == Put::Waits));
        });
        assert_eq!(boxes.take(Duration::from_millis(1)), Taken::Nothing);
        boxes.close(0);
        assert_eq!(boxes.take(Duration::from_millis(1)), Taken::Nothing, "one camera is left");
        boxes.close(1);
        assert_eq!(boxes.take(Duration::from_secs(60)), Taken::Closed);
        boxes.engine_gone();
        assert_eq!(boxes.put(1, shot(1), false), Put::EngineGone);
    }

    #[test]
    fn a_camera_that_waits_is_let_go_when_the_engine_is_gone() {
        let boxes = Mailboxes::new(1);
        assert_eq!([1, 2].map(|id| boxes.put(0, shot(id), false)), [Put::Waits, Put::Waits]);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| boxes.put(0, shot(3), false));
            boxes.engine_gone();
            assert_eq!(waits.join().unwrap(), Put::EngineGone);
        });
    }
}
