//! The fleet: broker, centre and two devices as processes over real sockets, and the lower bound beside them.

use super::files::Footage;
use super::watch::Standing;
use super::{Demo, arms, check, evaluate, files};
use crate::broker::{free_port, wait_for};
use crate::child::{self, Child};
use crate::mjpeg::{MjpegServer, Pace};
use anyhow::{Context, bail};
use omnilabel_trainer::service::{DeviceCounts, EventReader, read_counts};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(300);
/// Seconds in which each camera shows its footage once.
const LABELLING_SECS: f64 = 60.0;
/// Pictures per second afterwards: devices never stop, but leave the processor to the training.
const IDLE_FPS: f64 = 0.2;
/// Pictures per second of the stream while a release is tried.
const TRIAL_FPS: f64 = 4.0;
/// How long devices may take to try a release.
const INSTALL_LIMIT: Duration = Duration::from_secs(120);
/// Devices report their counts every two seconds: one that made nothing more for so long makes nothing more.
const QUIET: Duration = Duration::from_secs(5);
/// How long outboxes may take to empty at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

fn args(words: &[&str], path: &Path) -> Vec<OsString> {
    words.iter().map(OsString::from).chain([path.into()]).collect()
}

/// Makes the keys and gives the devices their first model.
pub(super) fn provision(demo: &Demo<'_>) -> anyhow::Result<()> {
    demo.show.say("making keys and installing the first model on both devices");
    let key = files::key(demo.root);
    let keys = key.parent().unwrap_or(demo.root);
    if !key.exists() {
        std::fs::create_dir_all(keys).with_context(|| keys.display().to_string())?;
        child::output("keygen", &args(&["trainer", "keygen", "--out"], keys), &demo.log("trainer"), check)?;
    }
    let public = key.with_extension("pub");
    for (index, name) in files::DEVICES.iter().enumerate() {
        let state = files::device(demo.root, index).join("state");
        std::fs::create_dir_all(&state).with_context(|| state.display().to_string())?;
        let mut install = args(&["edge", "model", "install", "--bundle"], &demo.teacher()?);
        install.extend([OsString::from("--data-dir"), state.into(), OsString::from("--root-key"), public.clone().into()]);
        child::output(&format!("model install on {name}"), &install, &demo.log(name), check)?;
    }
    Ok(())
}

/// Everything that runs. Fields are dropped, and so stopped, in this order.
struct Fleet {
    lower: Option<Child>,
    devices: Vec<Child>,
    /// The second device's camera; taken away when there are to be no more labels.
    stream: Option<MjpegServer>,
    url: String,
    centre: Child,
    broker: Child,
    port: u16,
}

impl Fleet {
    fn start(demo: &Demo<'_>, pace: &Pace, footage: Footage) -> anyhow::Result<Self> {
        let port = free_port()?;
        let log = demo.log("broker");
        let listen = ["broker", "--listen", &format!("127.0.0.1:{port}")].map(OsString::from);
        let mut broker = Child::start("broker", &listen, &log)?;
        wait_for(port, Duration::from_secs(20), &log, || {
            check()?;
            broker.must_run()
        })?;
        let config = files::trainer(demo, port)?;
        let centre = Child::start("centre", &args(&["trainer", "run", "--config"], &config), &demo.log("trainer"))?;
        let stream = MjpegServer::start(&demo.folders.footage(1).join("images"), pace.clone())?;
        let url = stream.url();
        let mut devices = Vec::new();
        for (index, name) in files::DEVICES.iter().enumerate() {
            let config = files::edge(demo, index, port, &url, footage)?;
            devices.push(Child::start(name, &args(&["edge", "run", "--config"], &config), &demo.log(name))?);
        }
        let lower = if demo.plan.data.is_none() { arms::start(demo, arms::LOWER, &demo.folders.manual())? } else { None };
        Ok(Self { lower, devices, stream: Some(stream), url, centre, broker, port })
    }

    /// Starts the folder device again with other footage; its outbox and its place in the protocol survive.
    fn restart_folder_device(&mut self, demo: &Demo<'_>, footage: Footage) -> anyhow::Result<()> {
        let config = files::edge(demo, 0, self.port, &self.url, footage)?;
        self.devices[0].stop();
        self.devices[0] = Child::start(files::DEVICES[0], &args(&["edge", "run", "--config"], &config), &demo.log(files::DEVICES[0]))?;
        Ok(())
    }

    /// Fails when a process ended that should run.
    fn watch(&mut self) -> anyhow::Result<()> {
        check()?;
        self.broker.must_run()?;
        self.centre.must_run()?;
        for device in &mut self.devices {
            device.must_run()?;
        }
        if let Some(lower) = &mut self.lower
            && let Some(status) = lower.status()?
        {
            if !status.success() {
                bail!(lower.ended(status));
            }
            self.lower = None;
        }
        Ok(())
    }
}

/// Runs the fleet until the release is settled on every device, the lower bound is trained and the outboxes are empty.
pub(super) fn run(demo: &Demo<'_>) -> anyhow::Result<()> {
    demo.show.say("starting broker, centre, two devices and the lower bound");
    let mut events = EventReader::new(&files::centre(demo.root));
    let mut standing = Standing::default();
    for stamped in events.poll()? {
        standing.take(&stamped.event);
    }
    let mut slow = standing.round_labels.is_some();
    let idle = Footage { fps: IDLE_FPS, repeat: true };
    let fps = (demo.plan.footage as f64 / LABELLING_SECS).max(1.0);
    let first = if slow { idle } else { Footage { fps, repeat: false } };
    let pace = Pace::new(first.fps);
    let mut fleet = Fleet::start(demo, &pace, first)?;
    let mut notes = Vec::new();
    let mut released_at: Option<Instant> = None;
    loop {
        fleet.watch()?;
        for stamped in events.poll()? {
            if let Some(news) = standing.take(&stamped.event) {
                demo.show.say(&news);
            }
        }
        if standing.round_labels.is_some() && !slow {
            slow = true;
            pace.set(IDLE_FPS);
            fleet.restart_folder_device(demo, idle)?;
        }
        if standing.release.is_some() {
            pace.set(TRIAL_FPS);
        }
        progress(demo, &standing, fleet.lower.is_some())?;
        if standing.release.is_some() {
            let since = released_at.get_or_insert_with(Instant::now);
            let settled = standing.settled(&files::DEVICES);
            if settled || since.elapsed() > INSTALL_LIMIT {
                if !settled {
                    notes.push(format!(
                        "not every device took the release within {} s; see {}",
                        INSTALL_LIMIT.as_secs(),
                        demo.root.join("logs").display()
                    ));
                }
                if fleet.lower.is_none() {
                    break;
                }
            }
        }
        std::thread::sleep(POLL);
    }
    let counts = drain(demo, fleet, &mut notes)?;
    evaluate::store(demo.root, evaluate::COUNTS, &counts)?;
    evaluate::store(demo.root, "notes", &notes)
}

fn progress(demo: &Demo<'_>, standing: &Standing, lower_runs: bool) -> anyhow::Result<()> {
    for device in files::DEVICES {
        let (stored, repeated) = standing.labels.get(device).copied().unwrap_or_default();
        let again = if repeated > 0 { format!(", {repeated} came twice") } else { String::new() };
        let goal = demo.plan.footage.max(stored);
        demo.show.set(device, stored, goal, &format!("labels stored at the centre{again}"));
    }
    if let Some((step, steps)) = standing.step {
        let loss = standing.losses.points.last().map_or(0.0, |point| point.1);
        demo.show.set("student", step, steps, &format!("loss {loss:.2}  {:.0} pictures/s", standing.images_per_sec));
    }
    if lower_runs {
        arms::show(demo, "lower bound", arms::LOWER)?;
    }
    Ok(())
}

/// Lets the outboxes run empty, stops the devices, and returns the centre's account of them.
fn drain(demo: &Demo<'_>, mut fleet: Fleet, notes: &mut Vec<String>) -> anyhow::Result<Vec<DeviceCounts>> {
    demo.show.say("emptying the outboxes");
    // Cameras fall silent, devices stay: the folder has been played to its end, the stream is gone.
    drop(fleet.stream.take());
    fleet.restart_folder_device(demo, Footage { fps: IDLE_FPS, repeat: false })?;
    settle(demo, notes, || fleet.watch())?;
    for device in &mut fleet.devices {
        device.stop();
    }
    // What a device says last, when it stops, may name one label more.
    settle(demo, notes, check)
}

/// Waits until everything that devices made is stored, and they have made nothing more for a while.
fn settle(demo: &Demo<'_>, notes: &mut Vec<String>, mut watch: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<DeviceCounts>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deadline = Instant::now() + DRAIN_LIMIT;
    let mut last: Option<(Vec<u64>, Instant)> = None;
    loop {
        watch()?;
        let counts = runtime.block_on(read_counts(&files::centre(demo.root)))?;
        let made: Vec<u64> = counts.iter().map(|count| count.committed).collect();
        let since = last.take().filter(|(before, _)| *before == made).map_or_else(Instant::now, |(_, since)| since);
        if counts.iter().all(|count| count.missing() == 0) && since.elapsed() > QUIET {
            return Ok(counts);
        }
        last = Some((made, since));
        if Instant::now() > deadline {
            let missing: u64 = counts.iter().map(DeviceCounts::missing).sum();
            notes.push(format!("{missing} labels had not reached the centre {} s after the cameras fell silent", DRAIN_LIMIT.as_secs()));
            return Ok(counts);
        }
        std::thread::sleep(POLL);
    }
}
