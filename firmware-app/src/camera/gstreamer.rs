//! Frames from GStreamer: network cameras (RTSP), USB and CSI cameras, video files, whatever a pipeline can be written for.
//!
//! The pipeline runs as a process of its own, `gst-launch-1.0`, and writes RGB pictures to a pipe. A decoder or a driver that
//! crashes or hangs takes nothing with it but its pipeline, which is killed and started anew; the appliance links no GStreamer and
//! starts without one.

use super::ppm::{self, PpmError};
use super::{Camera, CameraEvent, Progress, Shot, now_ms};
use omnilabel_detect::frame::Frame;
use omnilabel_link::Backoff;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const PROGRAM: &str = "gst-launch-1.0";
/// What is kept of what a pipeline says on standard error, bytes.
const SAID: usize = 8 * 1024;
/// A pipeline that lived this long is started anew at once.
const LIVED: Duration = Duration::from_secs(60);

/// Where a pipeline gets its pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// For people; without a password.
    pub name: String,
    /// The pipeline up to raw video, as `gst-launch-1.0` takes it.
    pub pipeline: String,
    /// What must not be told: user, password and query of a URL.
    pub secrets: Vec<String>,
}

impl Source {
    /// An RTSP stream. The first video of it is taken; `tcp` interleaves RTP with RTSP.
    ///
    /// # Errors
    /// When `url` is no `rtsp://` or `rtsps://` URL.
    pub fn rtsp(url: &str, tcp: bool, latency_ms: u32) -> Result<Self, String> {
        let rest = url.strip_prefix("rtsp://").or_else(|| url.strip_prefix("rtsps://"));
        let Some(rest) = rest.filter(|rest| !rest.is_empty() && is_plain(rest)) else {
            return Err("is not a URL of the form rtsp://[user:password@]host[:port]/path".to_owned());
        };
        // Passwords stand before the host, or in the query.
        let (user, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (place, query) = place.find(['?', ';']).map_or((place, ""), |at| place.split_at(at));
        let protocols = if tcp { "tcp" } else { "udp" };
        Ok(Self {
            name: format!("rtsp://{place}"),
            secrets: [user, query].iter().filter(|text| !text.is_empty()).map(|text| (*text).to_owned()).collect(),
            pipeline: format!(
                "rtspsrc location=\"{url}\" protocols={protocols} latency={latency_ms} ! application/x-rtp,media=video ! decodebin"
            ),
        })
    }

    /// A camera of the kernel (V4L2): USB cameras.
    ///
    /// # Errors
    /// When the path cannot stand in a pipeline.
    pub fn v4l2(device: &Path) -> Result<Self, String> {
        let pipeline = format!("v4l2src device={} ! decodebin", quoted(device)?);
        Ok(Self { name: device.display().to_string(), pipeline, secrets: Vec::new() })
    }

    /// A video file.
    ///
    /// # Errors
    /// When the path cannot stand in a pipeline.
    pub fn video(path: &Path) -> Result<Self, String> {
        let pipeline = format!("filesrc location={} ! decodebin", quoted(path)?);
        Ok(Self { name: path.display().to_string(), pipeline, secrets: Vec::new() })
    }

    /// A pipeline as it is. Its name is its first element.
    ///
    /// # Errors
    /// When it is empty, or ends in the middle of a quotation.
    pub fn pipeline(text: &str) -> Result<Self, String> {
        let words = words(text).ok_or_else(|| "ends within quotation marks".to_owned())?;
        let first = words.first().ok_or_else(|| "is empty, expected GStreamer elements that end in raw video".to_owned())?;
        // Between `://` and `@` stands who somebody is.
        let between = text.split("://").skip(1).filter_map(|rest| Some(rest.split(['"', ' ', '/']).next()?.rsplit_once('@')?.0.to_owned()));
        Ok(Self { name: format!("pipeline {first}"), pipeline: text.to_owned(), secrets: between.collect() })
    }

    /// A text without what must not be told.
    fn discreet(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "…"))
    }
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '"' || c == '\\')
}

fn quoted(path: &Path) -> Result<String, String> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\\']) && !text.chars().any(char::is_control) => Ok(format!("\"{text}\"")),
        _ => Err(format!("is {path:?}, expected a path without quotation marks and backslashes")),
    }
}

/// Words between white space outside of quotation marks, which stay: `gst-launch-1.0` reads them itself. None where they do not end.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        if c.is_whitespace() && !quoted {
            words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
        } else {
            word.push(c);
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    (!quoted).then_some(words)
}

/// Whether the program is there.
///
/// # Errors
/// What to install.
pub fn installed() -> Result<String, String> {
    let missing = |why: String| format!("{PROGRAM} {why}; GStreamer's tools are needed (Debian: gstreamer1.0-tools and its plugins)");
    let out = Command::new(PROGRAM).arg("--version").output().map_err(|error| missing(format!("cannot be started: {error}")))?;
    match String::from_utf8_lossy(&out.stdout).lines().next() {
        Some(line) if out.status.success() => Ok(line.to_owned()),
        _ => Err(missing("does not work".to_owned())),
    }
}

/// A camera behind a pipeline.
pub struct Pipeline {
    source: Source,
    fps: f64,
    stall: Duration,
    recorded: Option<Recorded>,
    running: Option<Running>,
    backoff: Backoff,
    wait: Option<Duration>,
    due: Option<Instant>,
    last_id: u64,
    done: bool,
}

/// A video file: every frame counts.
struct Recorded {
    progress: Option<PathBuf>,
    /// Bytes of the file: another file is begun at its first frame.
    bytes: usize,
    /// Frames that were given, or are done with.
    position: usize,
    /// Where the pipeline was killed or crashed last.
    crashed_at: Option<usize>,
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
        let bytes = read().map_err(|error| anyhow::anyhow!("{}: cannot read the video: {error}", path.display()))?;
        let position = progress.map_or(0, |file| Progress::open(file, bytes).position());
        if position > 0 {
            tracing::info!(position, "the video goes on where it was");
        }
        let recorded = Recorded { progress: progress.map(Path::to_owned), bytes, position, crashed_at: None };
        // A file does not stall, but the first frame of a large one takes its time.
        Ok(Self::new(source, fps, Duration::from_secs(60), Some(recorded)))
    }

    fn new(source: Source, fps: f64, stall: Duration, recorded: Option<Recorded>) -> Self {
        Self { source, fps, stall, recorded, running: None, backoff: Backoff::default(), wait: None, due: None, last_id: 0, done: false }
    }

    fn arguments(&self) -> Vec<String> {
        // What comes too fast is dropped before it is converted; the rest of the rate is kept here.
        let (whole, recorded) = (self.fps.ceil().max(1.0), self.recorded.is_some());
        let rate = match recorded {
            true if self.fps < 1.0 => format!("videorate drop-only=true ! video/x-raw,framerate=1/{}", (1.0 / self.fps).round()),
            _ => format!("videorate max-rate={whole}"),
        };
        // A live pipeline that nobody reads drops its oldest frame, so that the next one is fresh.
        let queue = if recorded { "queue max-size-buffers=2" } else { "queue leaky=downstream max-size-buffers=1" };
        let sink = "videoconvert ! video/x-raw,format=RGB ! pnmenc ! fdsink fd=1 sync=false";
        words(&format!("{} ! {queue} ! {rate} ! {sink}", self.source.pipeline)).unwrap_or_default()
    }

    fn start(&self) -> Result<Running, String> {
        // A pipeline that outlives the appliance would hold the camera: it dies with the thread that started it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", PROGRAM]);
        // It may be missing, and a sandbox may forbid what it does.
        let works = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !works.is_ok_and(|status| status.success()) {
            command = Command::new(PROGRAM);
        }
        command.arg("--quiet").args(self.arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|_| installed().err().unwrap_or_else(|| format!("{PROGRAM} cannot be started")))?;
        let (Some(out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(format!("{PROGRAM} has no pipes"));
        };
        let said = Arc::new(Mutex::new(Vec::new()));
        let listener = std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = err.read(&mut buffer) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = SAID.saturating_sub(said.len()).min(count);
                    said.extend_from_slice(&buffer[..room]);
                }
            }
        });
        let (frames, taken) = sync_channel(1);
        std::thread::spawn(move || {
            let mut out = BufReader::with_capacity(1 << 20, out);
            loop {
                let frame = ppm::read(&mut out).transpose();
                let end = !matches!(frame, Some(Ok(_)));
                if frame.is_some_and(|frame| frames.send(frame).is_err()) || end {
                    return;
                }
            }
        });
        Ok(Running { child: Some(child), frames: taken, said, listener: Some(listener), since: Instant::now() })
    }

    fn lost(&mut self, reason: &str) -> CameraEvent {
        if self.running.take().is_some_and(|running| running.since.elapsed() >= LIVED) {
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

    /// The end of a pipeline's pictures: of a video that is done, or of one that broke off.
    fn ended(&mut self, error: Option<PpmError>) -> CameraEvent {
        let Some(mut running) = self.running.take() else { return CameraEvent::End };
        let (why, crashed) = running.end(error);
        self.running = Some(running);
        match (&mut self.recorded, why) {
            (Some(_), None) => CameraEvent::End,
            // What was killed goes on where it was; what dies twice at the same frame will again.
            (Some(recorded), Some(reason)) if crashed && recorded.crashed_at != Some(recorded.position) => {
                recorded.crashed_at = Some(recorded.position);
                self.lost(&reason)
            }
            (Some(recorded), Some(reason)) => {
                self.done = true;
                CameraEvent::Bad { reason: format!("{}: {reason}", self.source.name), position: Some(recorded.position) }
            }
            (None, why) => self.lost(&why.unwrap_or_else(|| "the stream ended".to_owned())),
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
            let running = match &self.running {
                Some(running) => running,
                None => match self.start() {
                    Ok(running) => {
                        running.skip(self.recorded.as_ref().map_or(0, |recorded| recorded.position), self.stall);
                        self.running.insert(running)
                    }
                    Err(reason) => return self.lost(&reason),
                },
            };
            let frame = match running.frames.recv_timeout(self.stall) {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return self.ended(Some(error)),
                Err(RecvTimeoutError::Disconnected) => return self.ended(None),
                Err(RecvTimeoutError::Timeout) => return self.lost(&format!("no frame for {:?}", self.stall)),
            };
            if let Some(recorded) = &mut self.recorded {
                recorded.position += 1;
                return self.shot(frame);
            }
            let (now, period) = (Instant::now(), Duration::from_secs_f64(1.0 / self.fps));
            // Half a period early is in time: frames do not come to the millisecond.
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
        Some(Progress::open(recorded.progress.as_deref()?, recorded.bytes))
    }
}

/// A pipeline that runs.
struct Running {
    /// There until it is dropped.
    child: Option<Child>,
    frames: Receiver<Result<Frame, PpmError>>,
    said: Arc<Mutex<Vec<u8>>>,
    listener: Option<std::thread::JoinHandle<()>>,
    since: Instant,
}

impl Running {
    /// Frames of a video that are done with.
    fn skip(&self, count: usize, stall: Duration) {
        for _ in 0..count {
            if !matches!(self.frames.recv_timeout(stall), Ok(Ok(_))) {
                return;
            }
        }
    }

    /// Waits for the end; why it was none of a video that is done, and whether a signal ended it.
    fn end(&mut self, error: Option<PpmError>) -> (Option<String>, bool) {
        let Some(child) = &mut self.child else { return (Some(format!("{PROGRAM} is gone")), false) };
        // After half a frame it has ended, or goes on writing.
        let ended = error.is_none() || (0..50).any(|_| matches!(child.try_wait(), Ok(Some(_))) || pause());
        if !ended {
            let _ = child.kill();
        }
        let status = child.wait();
        // Its standard error ends with it.
        self.listener.take().map(std::thread::JoinHandle::join);
        let said = String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
        let crashed = ended && status.as_ref().is_ok_and(|status| status.code().is_none());
        let why = match (complaint(&said), error, status) {
            // gst-launch ends well when a stream breaks off, but has said so.
            (Some(what), ..) => Some(what),
            (None, Some(error), _) => Some(error.to_string()),
            (None, None, Ok(status)) if status.success() => None,
            (None, None, Ok(status)) => Some(format!("{PROGRAM} ended with {status}")),
            (None, None, Err(error)) => Some(error.to_string()),
        };
        (why, crashed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // A pipeline that hangs does not end by itself. Errors mean that it is gone.
        let _ = child.kill();
        for _ in 0..100 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that a driver holds does not even die: somebody else waits for it.
        std::thread::spawn(move || child.wait());
    }
}

/// A moment; false.
fn pause() -> bool {
    std::thread::sleep(Duration::from_millis(10));
    false
}

/// The first error of a pipeline's standard error in one line: what happened, and what the system said.
fn complaint(said: &str) -> Option<String> {
    let mut lines = said.lines();
    let first = lines.find(|line| line.starts_with("ERROR") || line.contains("erroneous pipeline"))?;
    let element = |text: &str| text.split_once(": ").map_or_else(|| text.to_owned(), |(_, rest)| rest.to_owned());
    // "ERROR: from element /GstPipeline:pipeline0/GstRTSPSrc:rtspsrc0: Could not open …"
    let what = match first.strip_prefix("ERROR: from element ") {
        Some(rest) => element(rest),
        None => element(first),
    };
    // Two lines below stands where it comes from, and behind it what the system said.
    let detail = lines.skip_while(|line| !line.starts_with("Additional debug info")).nth(2);
    let detail = detail.filter(|line| !line.is_empty() && !line.starts_with("ERROR") && !line.starts_with("Execution"));
    Some(detail.map_or_else(|| what.clone(), |detail| format!("{what} ({detail})")))
}
