//! The real programs around the simulated devices: a mosquitto with the queues that `deploy/mosquitto` gives it, a centre.

use super::Options;
use super::canary::{CONFIRMED, MAX_REFUSED};
use super::faults::Kind;
use crate::fixture::root;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use omnilabel_tests::fleet::{Site, Student};
use omnilabel_tests::peers::{Process, program, teacher, until};
use std::fmt::Write as _;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Descriptors of a program beside its connections.
const SPARE: u64 = 512;
/// Seconds that a wave takes at least, and minutes after which it is decided without those that say nothing: long enough for everybody
/// else to have fetched and tried the release, with all the faults of a run.
const SETTLE_SECONDS: u32 = 5;
/// See [`SETTLE_SECONDS`].
const DEADLINE_MINUTES: u32 = 10;

/// Lets this process, and what it starts from now on, have a descriptor for each device.
///
/// # Errors
/// The system does not allow as many.
pub(crate) fn descriptors(devices: usize) -> Result<()> {
    let wanted = devices as u64 + SPARE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit on descriptors")?;
    if soft >= wanted {
        return Ok(());
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => bail!(
            "{devices} devices need {wanted} descriptors in this process and in mosquitto, {hard} are allowed: raise the hard limit \
             (`ulimit -Hn {wanted}`), or simulate fewer"
        ),
        Err(error) => Err(error).context("the limit on descriptors"),
    }
}

/// The lines with the limits of sizes and queues that `deploy/mosquitto` gives a broker.
fn deployed_limits() -> Result<String> {
    let path = root().join("deploy/mosquitto/mosquitto.conf");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let limits: Vec<&str> = text.lines().filter(|line| line.starts_with("max_") || line.starts_with("message_size_limit")).collect();
    ensure!(limits.len() >= 4, "{}: expected its limits, lines with max_ and message_size_limit, found {limits:?}", path.display());
    Ok(limits.join("\n") + "\n")
}

/// Broker and centre.
pub(crate) struct Yard {
    // Dropped in this order: the centre before its broker, both before their folder.
    centre: Option<Process>,
    broker: Option<Process>,
    site: Site,
}

impl Yard {
    /// Makes a site and starts both.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let mut site = Site::new().context("no mosquitto (tests/setup installs it)")?;
        // Its place is taken by one with other queues, which a Ctrl-C at the terminal does not reach.
        site.broker.kill();
        // No round is ever due, but whether one is gets asked as often as at any centre.
        site.configure_centre(1 << 40, 1, Student::Careful);
        let path = site.path("trainer.toml");
        let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // The table of `[release]` is the last one.
        writeln!(text, "bytes_per_second = {}", options.block_rate.saturating_mul(1024))?;
        writeln!(text, "[collector]\nmax_devices = {}", options.devices.max(1000))?;
        writeln!(text, "[rollout]\nwaves = {:?}\nconfirmed = {CONFIRMED:?}\nmax_refused = {MAX_REFUSED:?}", options.waves)?;
        writeln!(text, "settle_seconds = {SETTLE_SECONDS}\ndeadline_minutes = {DEADLINE_MINUTES}")?;
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        let mut yard = Self { centre: None, broker: None, site };
        yard.start_broker()?;
        yard.start_centre();
        Ok(yard)
    }

    /// A path of the site.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.site.path(name)
    }

    /// The broker's port.
    pub(crate) fn port(&self) -> u16 {
        self.site.broker.port
    }

    /// The centre's process, while it runs.
    pub(crate) fn centre(&self) -> Option<u32> {
        self.centre.as_ref().map(Process::id)
    }

    /// The broker's process, while it runs.
    pub(crate) fn broker(&self) -> Option<u32> {
        self.broker.as_ref().map(Process::id)
    }

    /// Begins a fault.
    pub(crate) fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::BrokerRestarted => self.broker.take().into_iter().for_each(Process::kill),
            Kind::CentreKilled => self.centre.take().into_iter().for_each(Process::kill),
            Kind::CentreStopped => self.centre.iter().for_each(|centre| centre.signal("STOP")),
        }
    }

    /// Ends it.
    pub(crate) fn end(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::BrokerRestarted => self.start_broker()?,
            Kind::CentreKilled => self.start_centre(),
            Kind::CentreStopped => self.centre.iter().for_each(|centre| centre.signal("CONT")),
        }
        Ok(())
    }

    /// Starts again what ended by itself, and says what it said last.
    pub(crate) fn revive(&mut self) -> Result<Vec<String>> {
        let mut told = Vec::new();
        let told_by = |name: &str, process: &mut Process| {
            let status = process.ended()?;
            let said = process.said();
            Some(format!("{name} ended by itself with {status}: {}", said.lines().last().unwrap_or_default()))
        };
        if let Some(ended) = self.centre.as_mut().and_then(|process| told_by("the centre", process)) {
            told.push(ended);
            self.centre = None;
            self.start_centre();
        }
        if let Some(ended) = self.broker.as_mut().and_then(|process| told_by("the broker", process)) {
            told.push(ended);
            self.broker = None;
            self.start_broker()?;
        }
        Ok(told)
    }

    fn start_broker(&mut self) -> Result<()> {
        let port = self.port();
        let config = self.path("fleet.conf");
        // Retained messages are not kept, so that a restart costs the most.
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{}", deployed_limits()?);
        std::fs::write(&config, text).with_context(|| config.display().to_string())?;
        let found = ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find(|name| Command::new(name).arg("-h").output().is_ok());
        let mut command = Command::new(found.context("no mosquitto (tests/setup installs it)")?);
        command.arg("-c").arg(&config).process_group(0);
        self.broker = Some(Process::spawn("mosquitto", &mut command, &self.site.log("broker")));
        until("mosquitto listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        Ok(())
    }

    fn start_centre(&mut self) {
        let mut command = Command::new(program("omnilabel-trainer"));
        command.arg("run").arg("--config").arg(self.path("trainer.toml")).process_group(0);
        self.centre = Some(Process::spawn("omnilabel-trainer", &mut command, &self.site.log("centre")));
    }

    /// The command that releases the shipped model, by the waves of the configuration: every file is new to the simulated devices.
    pub(crate) fn release(&self) -> Command {
        let mut command = Command::new(program("omnilabel-trainer"));
        command.arg("release").arg("--config").arg(self.path("trainer.toml")).arg("--bundle").arg(teacher()).process_group(0);
        command
    }
}
