//! The run itself: beside the devices' runtime, one thread strikes broker and centre, makes the release and looks at everything.

use super::Options;
use super::audit::{self, Labels, Release, Said};
use super::canary::{Canary, RELEASE};
use super::device::{Device, DeviceReport};
use super::faults::{DeviceFault, Fault, Kind, plan};
use super::latency::Latencies;
use super::memory::{Memory, Sample, Usage, cpu_secs};
use super::report::{Costs, Latency, Mark, Rate, Report, seconds};
use super::shared::{Phase, Shared};
use super::update::Persona;
use super::yard::Yard;
use super::{draw, promises};
use anyhow::{Context, Result, bail, ensure};
use omnilabel_console::say;
use omnilabel_link::LinkConfig;
use omnilabel_tests::fleet::SITE;
use omnilabel_trainer::service::sign;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How often the conductor looks whether something is due.
const STEP: Duration = Duration::from_millis(100);
/// Seconds between two samples; a run of hours has as many as a page is wide.
const SAMPLE_SECS: f64 = 1.0;
/// Seconds between two lines of progress.
const PROGRESS_SECS: f64 = 10.0;
/// How long devices and centre may take to connect, and beyond that for each device.
const CONNECT: Duration = Duration::from_secs(60);
/// See [`CONNECT`].
const CONNECT_A_DEVICE: Duration = Duration::from_millis(30);
/// How long the centre may take to have everybody's last status.
const LAST_WORD: Duration = Duration::from_secs(60);

/// A run under way.
pub(crate) struct Conductor<'o> {
    options: &'o Options,
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<DeviceReport>>,
    /// Devices that are to confirm the release, and that are to refuse it.
    expected: (u64, u64),
    // Dropped in this order: the devices before what they are connected to.
    runtime: Runtime,
    yard: Yard,
    state: PathBuf,
    said: Said,
    plan: VecDeque<Fault>,
    /// The fault under way, and when it ends.
    under_way: Option<(Kind, f64)>,
    releasing: Option<JoinHandle<std::io::Result<Output>>>,
    life: u32,
    sampled: f64,
    told: f64,
    /// Waves that people were told of.
    waves_told: usize,
    report: Report,
}

impl<'o> Conductor<'o> {
    /// Starts everything and waits until everybody is connected.
    pub(crate) fn start(options: &'o Options) -> Result<Self> {
        let yard = Yard::start(options)?;
        let link = LinkConfig {
            host: "127.0.0.1".to_owned(),
            port: yard.port(),
            tls: None,
            allow_plain: false,
            prefix: "omnilabel/v1".to_owned(),
            site: SITE.to_owned(),
        };
        let key = sign::read_public(&yard.path("keys/release.pub"))?;
        let shared = Arc::new(Shared::new(options, link, key)?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let who = options.personas()?;
        let count = |what: Persona| who.iter().filter(|persona| **persona == what).count() as u64;
        let expected = (count(Persona::Good), count(Persona::Refuses));
        let tasks = who
            .into_iter()
            .enumerate()
            .map(|(index, persona)| runtime.spawn(Device::new(Arc::clone(&shared), index, persona).run()))
            .collect();
        let seen = Arc::clone(&shared);
        let mut terminate = {
            let _entered = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("SIGTERM")?
        };
        runtime.spawn(async move {
            // Broker and centre are processes of their own: whoever ends this one in whichever way ends them, too.
            loop {
                tokio::select! {
                    pressed = tokio::signal::ctrl_c() => if pressed.is_err() { return },
                    _ = terminate.recv() => {}
                }
                seen.interrupts.fetch_add(1, Ordering::Relaxed);
            }
        });
        let about = crate::report::Report::new(0);
        let report = Report {
            command: about.command,
            processor: about.processor,
            cores: about.cores,
            devices: options.devices,
            seed: options.seed,
            rate: options.rate,
            release_wanted: options.release,
            ..Report::default()
        };
        let state = yard.path("centre");
        let mut conductor = Self {
            options,
            plan: plan(options.seed, &shared.timeline),
            shared,
            tasks,
            expected,
            runtime,
            said: Said::new(&state, options.shares().first().copied().unwrap_or(1000)),
            state,
            yard,
            under_way: None,
            releasing: None,
            life: 0,
            sampled: f64::NEG_INFINITY,
            told: 0.0,
            waves_told: 0,
            report,
        };
        conductor.connect()?;
        Ok(conductor)
    }

    fn connect(&mut self) -> Result<()> {
        let limit = CONNECT + CONNECT_A_DEVICE * self.options.devices as u32;
        let start = Instant::now();
        loop {
            self.said.poll()?;
            let connected = self.shared.totals.connected.load(Ordering::Relaxed);
            if connected == self.options.devices as u64 && self.said.connections > 0 {
                say!("{connected} devices and the centre are connected after {:.1} s", start.elapsed().as_secs_f64());
                return Ok(());
            }
            let log = self.yard.path("centre.log");
            ensure!(
                start.elapsed() < limit,
                "{connected} of {} devices are connected after {} s, the centre {} times: see {}",
                self.options.devices,
                limit.as_secs(),
                self.said.connections,
                std::fs::read_to_string(&log).unwrap_or_default().lines().last().unwrap_or("an empty log")
            );
            ensure!(self.interrupts() == 0, "interrupted before the first label");
            std::thread::sleep(STEP);
        }
    }

    /// Runs to the end; the report is complete and written by nobody yet.
    pub(crate) fn run(mut self) -> Result<Report> {
        self.shared.enter(Phase::Working);
        let begin_ms = self.shared.begin_ms();
        while self.now() < self.shared.timeline.total && self.interrupts() == 0 {
            self.strike()?;
            self.release()?;
            self.look()?;
            std::thread::sleep(STEP);
        }
        self.report.interrupted = self.interrupts() > 0;
        // Who interrupts before it is made wants none.
        self.report.release_wanted &= !self.report.interrupted || self.said.released.is_some() || self.releasing.is_some();
        self.plan.clear();
        if let Some((kind, _)) = self.under_way.take() {
            self.yard.end(kind)?;
            self.life += u32::from(kind == Kind::CentreKilled);
        }
        let end_ms = self.shared.now();
        self.report.secs = self.shared.secs(end_ms);
        self.shared.enter(Phase::Draining);
        say!("the faults are over, what is under way is drained");
        self.drain()?;
        let devices = self.close()?;
        self.settle(devices, (begin_ms, end_ms))
    }

    /// Seconds from the first label on.
    fn now(&self) -> f64 {
        self.shared.secs(self.shared.now())
    }

    fn interrupts(&self) -> u64 {
        self.shared.interrupts.load(Ordering::Relaxed)
    }

    /// Begins and ends the faults that are due.
    fn strike(&mut self) -> Result<()> {
        let now = self.now();
        if let Some((kind, _)) = self.under_way.filter(|(_, end)| now >= *end) {
            self.yard.end(kind)?;
            self.life += u32::from(kind == Kind::CentreKilled);
            self.under_way = None;
        }
        if self.under_way.is_none()
            && self.plan.front().is_some_and(|fault| now >= fault.at)
            && let Some(fault) = self.plan.pop_front()
        {
            self.yard.begin(fault.kind);
            self.under_way = Some((fault.kind, now + fault.seconds));
            *self.report.faults.entry(fault.kind.name()).or_default() += 1;
            self.report.marks.push(Mark { at: now, seconds: fault.seconds, kind: fault.kind });
        }
        Ok(())
    }

    /// Makes the release when it is time, and says what became of the command.
    fn release(&mut self) -> Result<()> {
        let open = self.report.release_wanted && self.releasing.is_none() && self.said.released.is_none();
        if open && self.now() >= self.shared.timeline.release {
            let mut command = self.yard.release();
            say!("{:5.0} s  a release is made", self.now());
            self.releasing = Some(std::thread::spawn(move || command.output()));
        }
        if self.releasing.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(thread) = self.releasing.take()
        {
            let Ok(output) = thread.join() else { bail!("the thread of the release panicked") };
            let output = output.context("omnilabel-trainer release")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "omnilabel-trainer release: {}", said.lines().last().unwrap_or_default());
            // The line in the event log is there before the command ends.
            self.said.poll()?;
            let Some((counter, _)) = self.said.released else { bail!("omnilabel-trainer release: no event tells of it") };
            ensure!(counter == RELEASE, "release {counter} was made, expected {RELEASE}, by which it was drawn who is bad");
        }
        Ok(())
    }

    /// Samples, reads the centre's events, tells how far it is.
    fn look(&mut self) -> Result<()> {
        let now = self.now();
        if now - self.sampled < SAMPLE_SECS.max(self.shared.timeline.total / 3600.0) {
            return Ok(());
        }
        self.sampled = now;
        self.said.poll()?;
        for ended in self.yard.revive()? {
            say!("{now:5.0} s  {ended}");
            self.report.incidents.push(ended);
            self.life += 1;
        }
        for step in self.said.story.steps.iter().skip(self.waves_told) {
            let what = match (step.halted, step.complete) {
                (true, _) => ", halted",
                (false, true) => ", complete",
                (false, false) => "",
            };
            say!("{now:5.0} s  the release at {} % of the fleet{what}: {}", f64::from(step.share) / 10.0, step.reason);
        }
        self.waves_told = self.said.story.steps.len();
        let totals = &self.shared.totals;
        let sample = Sample {
            at: now,
            life: self.life,
            centre: self.yard.centre().and_then(Usage::of),
            broker: self.yard.broker().and_then(Usage::of),
            devices: Usage::of(std::process::id()),
            made: totals.made.load(Ordering::Relaxed),
            cleared: totals.cleared.load(Ordering::Relaxed),
            connected: totals.connected.load(Ordering::Relaxed),
            confirmed: totals.confirmed.load(Ordering::Relaxed),
        };
        if now - self.told >= PROGRESS_SECS {
            self.told = now;
            let Sample { made, cleared, connected, confirmed, .. } = sample;
            let mib = sample.centre.map_or(0, |usage| usage.rss_kib / 1024);
            let waiting = made.saturating_sub(cleared);
            let faults: u64 = self.report.faults.values().sum();
            say!(
                "{now:5.0} s  {made} labels made, {waiting} wait; {connected} devices connected, {confirmed} on the new release; \
                 centre {mib} MiB; {faults} faults of broker and centre"
            );
        }
        self.report.samples.push(sample);
        Ok(())
    }

    /// Waits until everything is acknowledged, every device has confirmed or refused that is to, and the last wave is decided.
    fn drain(&mut self) -> Result<()> {
        let start = Instant::now();
        let limit = Duration::try_from_secs_f64(self.options.drain)?;
        loop {
            // A device that has not seen yet that the work is over may commit its last labels.
            std::thread::sleep(STEP);
            self.release()?;
            self.look()?;
            let totals = &self.shared.totals;
            let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let waiting = of(&totals.made).saturating_sub(of(&totals.cleared));
            // Of one that is halted nothing more comes.
            let (story, spoken) = (&self.said.story, (of(&totals.confirmed), of(&totals.refused)) == self.expected);
            let tried = self.said.released.is_none() || story.is_halted() || (story.is_complete() && spoken);
            let connected = of(&totals.connected) == self.options.devices as u64;
            self.report.drain_secs = start.elapsed().as_secs_f64();
            if (waiting == 0 && tried && connected && self.releasing.is_none()) || start.elapsed() >= limit {
                return Ok(());
            }
            ensure!(self.interrupts() < 2, "ended without a report");
        }
    }

    /// Ends the devices, and waits until the centre has heard the last of them.
    fn close(&mut self) -> Result<Vec<DeviceReport>> {
        self.shared.enter(Phase::Closing);
        let tasks = std::mem::take(&mut self.tasks);
        let devices = self.runtime.block_on(async {
            let mut devices = Vec::with_capacity(tasks.len());
            for task in tasks {
                devices.push(task.await.context("a simulated device panicked")?);
            }
            Ok::<_, anyhow::Error>(devices)
        })?;
        let made: u64 = devices.iter().filter_map(|device| device.epochs.last()).map(|(_, committed)| committed).sum();
        let start = Instant::now();
        while start.elapsed() < LAST_WORD {
            let (committed, pending) = self.runtime.block_on(audit::stated(&self.state, &devices))?;
            if committed == made && pending == 0 {
                break;
            }
            ensure!(self.interrupts() < 2, "ended without a report");
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(devices)
    }

    /// Everything together.
    fn settle(mut self, devices: Vec<DeviceReport>, (begin_ms, end_ms): (u64, u64)) -> Result<Report> {
        self.said.poll()?;
        let stored = self.runtime.block_on(audit::read(&self.state))?;
        let mut report = self.report;
        report.labels = Labels::settle(&devices, &stored);
        (report.labels.altered, report.labels.compared) = audit::compare(&stored.sample, &self.shared)?;
        report.labels.stated = self.runtime.block_on(audit::stated(&self.state, &devices))?;
        report.release = Release::settle(&devices, &stored.counts, &self.said);
        if let (Some(release), Some((_, released_ms))) = (&mut report.release, self.said.released) {
            let books = self.runtime.block_on(audit::waves(&self.state))?;
            let began: Vec<(&str, Option<u64>)> = devices.iter().map(|device| (device.name.as_str(), device.began_ms)).collect();
            let killed = report.marks.iter().filter(|mark| mark.kind == Kind::CentreKilled);
            let kills: Vec<u64> = killed.map(|mark| self.shared.unix(begin_ms) + (1e3 * mark.at) as u64).collect();
            release.canary = Canary::settle(self.options.shares(), &began, released_ms, &self.said.story, books, &kills);
        }
        report.troubles = self.said.troubles;
        report.wrong = devices.iter().map(|device| device.wrong).sum();
        report.memory = Memory::judge(&report.samples, self.options.devices);
        let bytes = |names: &[&str]| names.iter().filter_map(|name| self.state.join(name).metadata().ok()).map(|file| file.len()).sum();
        report.costs = Costs {
            centre_cpu_secs: cpu_secs(&report.samples, |sample| sample.centre),
            broker_cpu_secs: cpu_secs(&report.samples, |sample| sample.broker),
            broker_rss_kib: report.samples.iter().filter_map(|sample| sample.broker).map(|usage| usage.rss_kib).max().unwrap_or(0),
            database_bytes: bytes(&["centre.sqlite", "centre.sqlite-wal"]),
            log_bytes: bytes(&["events.jsonl", "events.1.jsonl"]),
        };
        // Whole seconds, so that none is cut short.
        let (begin, end) = (self.shared.unix(begin_ms).div_ceil(1000), self.shared.unix(end_ms) / 1000);
        report.stored_by_second = seconds(&stored.by_second, begin, end);
        report.stored_rate = Rate::of(&report.stored_by_second);
        let (mut calm, mut faulty) = (Latencies::default(), Latencies::default());
        let mut faults: BTreeMap<&'static str, u64> = BTreeMap::new();
        for device in &devices {
            calm.merge(&device.calm);
            faulty.merge(&device.faulty);
            for (kind, count) in DeviceFault::ALL.iter().zip(device.faults).filter(|(_, count)| *count > 0) {
                *faults.entry(kind.name()).or_default() += count;
            }
            report.incidents.extend(device.failure.iter().map(|failure| format!("{}: {failure}", device.name)));
        }
        report.faults.extend(faults);
        (report.calm, report.faulty) = (Latency::of(&calm), Latency::of(&faulty));
        report.broken = promises::broken(&report);
        Ok(report)
    }
}

/// Writes the report and its chart.
pub(crate) fn write(report: &Report, json: &std::path::Path, svg: &std::path::Path) -> Result<()> {
    for folder in [json, svg].into_iter().filter_map(std::path::Path::parent).filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::write(json, serde_json::to_vec_pretty(report)?).with_context(|| json.display().to_string())?;
    std::fs::write(svg, draw::chart(report)?).with_context(|| svg.display().to_string())
}
