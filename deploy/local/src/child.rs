//! Other roles as processes of this same binary, each with its log file.

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to write its checkpoint and leave.
const GRACE: Duration = Duration::from_secs(20);

/// Tells a process that it is a role of a demo: the demo's process id.
const PARENT: &str = "OMNILABEL_PARENT";

/// Asks the system to stop this process when the demo that started it is gone, however it went; nothing outside a demo.
///
/// # Errors
/// The demo is gone already, or the system refuses.
pub fn follow_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(PARENT) else { return Ok(()) };
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("cannot follow the demo")?;
    if parent.to_string_lossy() != std::os::unix::process::parent_id().to_string() {
        bail!("the demo that started this process ({}) is gone", parent.display());
    }
    Ok(())
}

/// A running process; it is asked to stop when it is dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: std::process::Child,
}

impl Child {
    /// Starts `omnilabel ARGS…` with standard output and error appended to `log`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(name: &str, args: &[OsString], log: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let file = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(program);
        // Its own group: Ctrl-C reaches this process alone, which then stops the others in order.
        command.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        command.env(PARENT, std::process::id().to_string());
        let process = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), process })
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it writes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status, `None` while it runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.process.try_wait().with_context(|| self.name.clone())
    }

    /// An error with the last lines of its log when it is not running any more.
    ///
    /// # Errors
    /// It ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        match self.status()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// The error of a process that ended with `status`.
    pub fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} ended with {status}; the last lines of {}:\n{}", self.name, self.log.display(), tail(&self.log, 8))
    }

    /// Waits for its end; `interrupted` is asked several times a second, and its error returned after stopping the process.
    ///
    /// # Errors
    /// It failed, or the wait was interrupted.
    pub fn finish(mut self, mut interrupted: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.status()? {
                if status.success() {
                    return Ok(());
                }
                bail!(self.ended(status));
            }
            interrupted()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to stop (SIGTERM), and kills it when it does not within twenty seconds.
    pub fn stop(&mut self) {
        let Ok(None) = self.process.try_wait() else { return };
        if let Ok(id) = i32::try_from(self.process.id())
            && let Err(error) = kill(Pid::from_raw(id), Signal::SIGTERM)
        {
            tracing::warn!("{} could not be asked to stop: {error}", self.name);
        }
        let deadline = Instant::now() + GRACE;
        while let Ok(None) = self.process.try_wait() {
            if Instant::now() > deadline {
                tracing::warn!("{} did not stop within {} s and was killed", self.name, GRACE.as_secs());
                drop(self.process.kill());
                drop(self.process.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `omnilabel ARGS…` to its end and returns its standard output.
///
/// # Errors
/// It failed (its standard error is in the message), or was interrupted.
pub fn output(name: &str, args: &[OsString], log: &Path, interrupted: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("the path of this program")?;
    let errors = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let out = log.with_extension("out");
    let file = std::fs::File::create(&out).with_context(|| out.display().to_string())?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    command.env(PARENT, std::process::id().to_string());
    let process = command.spawn().with_context(|| format!("starting {name}"))?;
    Child { name: name.to_owned(), log: log.to_owned(), process }.finish(interrupted)?;
    std::fs::read_to_string(&out).with_context(|| out.display().to_string())
}

/// Stops processes of this binary that work below `root` and were left behind by a run that was killed: two of them must not share a state.
/// Only where there is a `/proc`.
pub fn stop_leftovers(root: &Path) {
    let (Ok(program), Ok(processes)) = (std::env::current_exe(), std::fs::read_dir("/proc")) else { return };
    let root = root.to_string_lossy().into_owned();
    for id in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let folder = PathBuf::from(format!("/proc/{id}"));
        let ours = std::fs::read_link(folder.join("exe")).is_ok_and(|exe| exe == program);
        let words = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).skip(1);
        let role = words.next().is_some_and(|word| word == "edge" || word == "trainer");
        if !ours || !role || !words.any(|word| Path::new(&*word).starts_with(&root)) {
            continue;
        }
        tracing::warn!("process {id} was left behind in {root} and is stopped");
        let deadline = Instant::now() + GRACE;
        while folder.exists() {
            let signal = if Instant::now() < deadline { Signal::SIGTERM } else { Signal::SIGKILL };
            if kill(Pid::from_raw(id), signal).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The last `lines` lines of a file, as far as they can be read.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
