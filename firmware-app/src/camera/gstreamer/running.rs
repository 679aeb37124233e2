//! A pipeline that runs, as a process of its own.

use super::source::words;
use crate::camera::ppm::{self, PpmError};
use omnilabel_detect::frame::Frame;
use std::io::{BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const PROGRAM: &str = "gst-launch-1.0";
/// What is kept of what a pipeline says on standard error, bytes.
const SAID: usize = 8 * 1024;
/// How long a process that was killed, or whose output ended, may take to be gone.
const GOING: Duration = Duration::from_secs(2);

/// How long its last words may take after its end.
const HEARD: Duration = Duration::from_millis(500);

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

/// Whether a process can be made to die with the thread that started it: the tool may be missing, and a sandbox may forbid what it does.
fn dies_with_us() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let tried = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// Why a pipeline gives no further picture.
pub(super) enum Ended {
    /// It gave none in time.
    Silent,
    /// Its pictures ended, and nothing is wrong.
    Well,
    /// It failed.
    Failed {
        /// What it said, or what the system says of it.
        why: String,
        /// Whether a signal ended it.
        killed: bool,
    },
}

/// A pipeline that runs.
pub(super) struct Running {
    child: Child,
    frames: Receiver<Result<Frame, PpmError>>,
    said: Arc<Mutex<Vec<u8>>>,
    /// Ends with what it says.
    heard: Receiver<()>,
    pub(super) since: Instant,
}

impl Running {
    /// Starts a pipeline that ends in [`ppm`] pictures on its standard output.
    pub(super) fn start(pipeline: &str) -> Result<Self, String> {
        // A pipeline that outlives the appliance would hold the camera. Where it cannot be tied to us, a service manager's control group
        // ends it, and a pipe without a reader the next time it writes.
        let mut command = Command::new(if dies_with_us() { "setpriv" } else { PROGRAM });
        if dies_with_us() {
            command.args(["--pdeathsig", "KILL", PROGRAM]);
        }
        command.arg("--quiet").args(words(pipeline).unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|_| installed().err().unwrap_or_else(|| format!("{PROGRAM} cannot be started")))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let said = Arc::new(Mutex::new(Vec::new()));
        let (frames, taken) = sync_channel(1);
        let (hearing, heard) = sync_channel(0);
        let running = Self { child, frames: taken, said: Arc::clone(&said), heard, since: Instant::now() };
        let pipes = out.zip(err).ok_or_else(|| format!("{PROGRAM} has no pipes"));
        match pipes.and_then(|(out, err)| listen(out, err, frames, said, hearing)) {
            Ok(()) => Ok(running),
            Err(error) => {
                running.kill();
                Err(error)
            }
        }
    }

    /// The next picture, when it comes in time. After anything else there is none.
    pub(super) fn frame(&mut self, at_most: Duration) -> Result<Frame, Ended> {
        match self.frames.recv_timeout(at_most) {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(error)) => Err(self.ended(Some(&error))),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended(None)),
            Err(RecvTimeoutError::Timeout) => Err(Ended::Silent),
        }
    }

    /// Its output ended, or is no picture: why.
    fn ended(&mut self, error: Option<&PpmError>) -> Ended {
        // After half a picture it may well go on writing.
        let status = reap(&mut self.child, GOING);
        // Its last words may still be in the pipe, which a process of its own may hold open.
        let _ = self.heard.recv_timeout(HEARD);
        let said = String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
        let killed = status.is_some_and(|status| status.code().is_none());
        // gst-launch ends well when a stream breaks off, but has said so.
        let why = complaint(&said).or_else(|| error.map(ToString::to_string)).or_else(|| match status {
            Some(status) if status.success() => None,
            Some(status) => Some(format!("{PROGRAM} ended with {status}")),
            None => Some(format!("{PROGRAM} closed its output and does not end")),
        });
        why.map_or(Ended::Well, |why| Ended::Failed { why, killed })
    }

    /// Kills the process; gives it back when it does not die, because a driver holds it.
    pub(super) fn kill(mut self) -> Option<Child> {
        // An error means that it is gone.
        let _ = self.child.kill();
        if reap(&mut self.child, GOING).is_some() { None } else { Some(self.child) }
    }
}

/// Reads what a pipeline gives and says, on two threads that end with it: their pipes do.
fn listen(
    out: ChildStdout,
    mut err: ChildStderr,
    frames: SyncSender<Result<Frame, PpmError>>,
    said: Arc<Mutex<Vec<u8>>>,
    hearing: SyncSender<()>,
) -> Result<(), String> {
    let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        started.map(drop).map_err(|error| format!("no thread for a pipeline: {error}"))
    };
    let hear = move || {
        // Until this thread ends.
        let _hearing = hearing;
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = err.read(&mut buffer) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let room = SAID.saturating_sub(said.len()).min(count);
            said.extend_from_slice(&buffer[..room]);
        }
    };
    thread("pipeline-said", Box::new(hear))?;
    let read = move || {
        let mut out = BufReader::with_capacity(1 << 20, out);
        loop {
            let frame = ppm::read(&mut out).transpose();
            let end = !matches!(frame, Some(Ok(_)));
            if frame.is_some_and(|frame| frames.send(frame).is_err()) || end {
                return;
            }
        }
    };
    thread("pipeline-frames", Box::new(read))
}

/// Waits for the end of a process, and no longer than that.
pub(super) fn reap(child: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < at_most => std::thread::sleep(Duration::from_millis(10)),
            // Nothing can be known of it.
            Ok(None) | Err(_) => return None,
        }
    }
}

/// The first error of a pipeline's standard error in one line: what happened, and what the system said.
fn complaint(said: &str) -> Option<String> {
    let mut lines = said.lines();
    let first = lines.find(|line| line.starts_with("ERROR") || line.contains("erroneous pipeline"))?;
    let behind = |text: &str| text.split_once(": ").map_or_else(|| text.to_owned(), |(_, rest)| rest.to_owned());
    // "ERROR: from element /GstPipeline:pipeline0/GstRTSPSrc:rtspsrc0: Could not open …"
    let what = behind(first.strip_prefix("ERROR: from element ").unwrap_or(first));
    // Two lines below stands where it comes from, and behind it what the system said.
    let detail = lines.skip_while(|line| !line.starts_with("Additional debug info")).nth(2);
    let detail = detail.filter(|line| !line.is_empty() && !line.starts_with("ERROR") && !line.starts_with("Execution"));
    Some(detail.map_or_else(|| what.clone(), |detail| format!("{what} ({detail})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_is_told_with_what_the_system_said() {
        let said = "Setting pipeline to PAUSED ...\nERROR: from element /GstPipeline:pipeline0/GstV4l2Src:v4l2src0: Cannot identify device.\n\
                    Additional debug info:\n../sys/v4l2/v4l2_calls.c(608): gst_v4l2_open ():\nsystem error: No such file or directory\n\
                    ERROR: pipeline doesn't want to preroll.\n";
        assert_eq!(complaint(said).unwrap(), "Cannot identify device. (system error: No such file or directory)");
        assert_eq!(complaint("WARNING: erroneous pipeline: no element \"nosuch\"\n").unwrap(), "erroneous pipeline: no element \"nosuch\"");
        assert_eq!(complaint("WARNING: a deprecated element\n"), None);
    }

    #[test]
    fn waiting_for_an_end_has_an_end() {
        let mut lasting = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(reap(&mut lasting, Duration::from_millis(30)).is_none());
        lasting.kill().unwrap();
        assert!(reap(&mut lasting, Duration::from_secs(60)).is_some_and(|status| status.code().is_none()));
    }
}
