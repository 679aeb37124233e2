//! A camera that could not be opened when the appliance started, beside others that could: it is tried again.

use super::{Camera, CameraEvent, Progress, Shot};
use omnilabel_link::Backoff;
use std::time::Duration;

type Open = Box<dyn FnMut() -> anyhow::Result<Box<dyn Camera>> + Send>;

/// Opens a camera as often as it takes.
pub struct Retry {
    open: Open,
    live: bool,
    camera: Option<Box<dyn Camera>>,
    backoff: Backoff,
    wait: Option<Duration>,
}

impl Retry {
    /// A camera that `open` opens; tried once at once.
    pub fn new(live: bool, mut open: Open) -> Self {
        // What is wrong is said when the camera is asked for its first frame.
        let camera = open().ok();
        Self { open, live, camera, backoff: Backoff::default(), wait: None }
    }
}

impl Camera for Retry {
    fn next(&mut self) -> CameraEvent {
        if let Some(wait) = self.wait.take() {
            std::thread::sleep(wait);
        }
        if self.camera.is_none() {
            match (self.open)() {
                Ok(camera) => {
                    let progress = camera.progress();
                    self.camera = Some(camera);
                    if let Some(progress) = progress {
                        return CameraEvent::Opened { recording: progress.recording().clone() };
                    }
                }
                Err(error) => {
                    let retry_in = self.backoff.next_delay();
                    self.wait = Some(retry_in);
                    return CameraEvent::Lost { reason: omnilabel_console::line(&error), retry_in };
                }
            }
        }
        self.camera.as_mut().map_or(CameraEvent::End, |camera| camera.next())
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn progress(&self) -> Option<Progress> {
        self.camera.as_ref()?.progress()
    }

    fn past(&self, count: usize) -> Vec<Box<Shot>> {
        self.camera.as_ref().map_or_else(Vec::new, |camera| camera.past(count))
    }
}
