//! Frames from GStreamer: network cameras (RTSP), USB and CSI cameras, video files, whatever a pipeline can be written for.
//!
//! The pipeline runs as a process of its own, `gst-launch-1.0`, and writes RGB pictures to a pipe. A decoder or a driver that
//! crashes or hangs takes nothing with it but its pipeline, which is killed and started anew; the appliance links no GStreamer and
//! starts without one.

mod running;
mod source;

pub use running::installed;
pub use source::Source;

use super::{Camera, CameraEvent, Progress, Recording, Shot};
use crate::clock::now_ms;
use omnilabel_detect::frame::Frame;
use omnilabel_link::Backoff;
use running::{Ended, Running, reap};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// A pipeline that lived this long is started anew at once.
const LIVED: Duration = Duration::from_secs(60);
/// A file does not stall, but the first frame of a large one takes its time.
const VIDEO_STALL: Duration = Duration::from_secs(60);

/// A camera behind a pipeline.
pub struct Pipeline {
    source: Source,
    fps: f64,
    stall: Duration,
    recorded: Option<Recorded>,
    running: Option<Running>,
    /// A pipeline that was killed and does not die: none is started beside it.
    undead: Option<Child>,
    backoff: Backoff,
    wait: Option<Duration>,
    due: Option<Instant>,
    last_id: u64,
    done: bool,
}

/// A video file: every frame counts.
struct Recorded {
    progress: Option<PathBuf>,
    /// Bytes of the file and thousandths of the rate: another file, or another rate of it, is begun at its first frame.
    which: usize,
    /// Frames that were given, or are done with.
    position: usize,
    /// Frames of this run of the pipeline.
    read: usize,
    /// Where the pipeline was killed or fell silent last.
    broke_at: Option<usize>,
}

impl Pipeline {
    /// A live camera of `fps` frames per second at most; without a frame for `stall` its pipeline is started anew.
    pub fn live(source: Source, fps: f64, stall: Duration) -> Self {
        Self::new(source, fps, stall, None)
    }

    /// A video file: `fps` frames of each second of it, each once. With `progress` it goes on where it was.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn video(path: &Path, source: Source, fps: f64, progress: Option<&Path>) -> anyhow::Result<Self> {
        let read = || std::fs::metadata(path).and_then(|meta| std::fs::File::open(path).map(|_| meta.len() as usize));
        let bytes: usize = read().map_err(|error| anyhow::anyhow!("{}: cannot read the video: {error}", path.display()))?;
        let which = bytes.saturating_add((1000.0 * fps) as usize);
        let position = progress.map_or(0, |file| Progress::open(file, Recording::Video(which)).position());
        if position > 0 {
            tracing::info!(position, "the video goes on where it was");
        }
        let recorded = Recorded { progress: progress.map(Path::to_owned), which, position, read: 0, broke_at: None };
        Ok(Self::new(source, fps, VIDEO_STALL, Some(recorded)))
    }

    fn new(source: Source, fps: f64, stall: Duration, recorded: Option<Recorded>) -> Self {
        Self {
            source,
            fps,
            stall,
            recorded,
            running: None,
            undead: None,
            backoff: Backoff::default(),
            wait: None,
            due: None,
            last_id: 0,
            done: false,
        }
    }

    /// The whole pipeline, down to pictures on standard output.
    fn pipeline(&self) -> String {
        // What comes too fast is dropped before it is converted; the rest of the rate is kept here.
        let (whole, recorded) = (self.fps.ceil().max(1.0), self.recorded.is_some());
        let rate = match recorded {
            true if self.fps < 1.0 => format!("videorate drop-only=true ! video/x-raw,framerate=1/{}", (1.0 / self.fps).round()),
            _ => format!("videorate max-rate={whole}"),
        };
        // A live pipeline that nobody reads drops its oldest frame, so that the next one is fresh.
        let queue = if recorded { "queue max-size-buffers=2" } else { "queue leaky=downstream max-size-buffers=1" };
        let sink = "videoconvert ! video/x-raw,format=RGB ! pnmenc ! fdsink fd=1 sync=false";
        format!("{} ! {queue} ! {rate} ! {sink}", self.source.pipeline)
    }

    fn start(&mut self) -> Result<Running, String> {
        if self.undead.as_mut().is_some_and(|child| reap(child, Duration::ZERO).is_none()) {
            return Err("the last pipeline was killed and does not die; it holds the camera".to_owned());
        }
        self.undead = None;
        if let Some(recorded) = &mut self.recorded {
            recorded.read = 0;
        }
        Running::start(&self.pipeline())
    }

    fn stop(&mut self) -> Option<Duration> {
        let running = self.running.take()?;
        let lived = running.since.elapsed();
        self.undead = running.kill();
        Some(lived)
    }

    fn lost(&mut self, reason: &str) -> CameraEvent {
        if self.stop().is_some_and(|lived| lived >= LIVED) {
            self.backoff.reset();
        }
        let retry_in = self.backoff.next_delay();
        self.wait = Some(retry_in);
        CameraEvent::Lost { reason: self.source.discreet(&format!("{}: {reason}", self.source.name)), retry_in }
    }

    fn shot(&mut self, frame: Frame) -> CameraEvent {
        let now = now_ms();
        let position = self.recorded.as_ref().map(|recorded| recorded.position);
        self.last_id = position.map_or_else(|| now.max(self.last_id + 1), |position| position as u64);
        let name = format!("{} at {}", self.source.name, self.last_id);
        CameraEvent::Shot(Box::new(Shot { id: self.last_id, captured_ms: now, name, jpeg: None, frame, position }))
    }

    /// What there is to say after a pipeline's last picture.
    fn ended(&mut self, ended: Ended) -> CameraEvent {
        let (reason, broke) = match ended {
            Ended::Well if self.recorded.is_some() => {
                self.stop();
                return CameraEvent::End;
            }
            Ended::Well => ("the stream ended".to_owned(), false),
            Ended::Silent => (format!("no frame for {:?}", self.stall), true),
            Ended::Failed { why, killed } => (why, killed),
        };
        match &mut self.recorded {
            // What was killed or hangs goes on where it was; what breaks twice at the same frame will again.
            Some(recorded) if !broke || recorded.broke_at == Some(recorded.position) => {
                let position = Some(recorded.position);
                self.done = true;
                self.stop();
                CameraEvent::Bad { reason: self.source.discreet(&format!("{}: {reason}", self.source.name)), position }
            }
            Some(recorded) => {
                recorded.broke_at = Some(recorded.position);
                self.lost(&reason)
            }
            None => self.lost(&reason),
        }
    }
}

impl Camera for Pipeline {
    fn next(&mut self) -> CameraEvent {
        if self.done {
            return CameraEvent::End;
        }
        if let Some(wait) = self.wait.take() {
            std::thread::sleep(wait);
        }
        loop {
            let running = match &mut self.running {
                Some(running) => running,
                None => match self.start() {
                    Ok(running) => self.running.insert(running),
                    Err(reason) => return self.lost(&reason),
                },
            };
            let frame = match running.frame(self.stall) {
                Ok(frame) => frame,
                Err(ended) => return self.ended(ended),
            };
            if let Some(recorded) = &mut self.recorded {
                recorded.read += 1;
                if recorded.read <= recorded.position {
                    // It is done with.
                    continue;
                }
                recorded.position += 1;
                return self.shot(frame);
            }
            let (now, period) = (Instant::now(), Duration::from_secs_f64(1.0 / self.fps));
            // A quarter of a period early is in time: frames do not come to the millisecond.
            if self.due.is_some_and(|due| now + period / 4 < due) {
                continue;
            }
            self.due = Some(self.due.unwrap_or(now).max(now.checked_sub(period).unwrap_or(now)) + period);
            return self.shot(frame);
        }
    }

    fn is_live(&self) -> bool {
        self.recorded.is_none()
    }

    fn progress(&self) -> Option<Progress> {
        let recorded = self.recorded.as_ref()?;
        Some(Progress::open(recorded.progress.as_deref()?, Recording::Video(recorded.which)))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop();
    }
}
