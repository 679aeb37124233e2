//! `doctor`: what is wrong with a box, in plain words, and what to do about it.

use super::ConfigArgs;
use crate::annotate::Model;
use crate::camera::{self, CameraEvent, gstreamer};
use crate::clock;
use crate::config::{CameraConfig, EdgeConfig};
use crate::slots::Slots;
use crate::update::Trust;
use anyhow::bail;
use omnilabel_detect::frame::Frame;
use omnilabel_link::{Incoming, Link};
use omnilabel_runtime::check_golden;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the broker and each camera may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Good,
    /// It works, and may not always.
    Warning,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    said: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

struct Doctor {
    json: bool,
    findings: Vec<Finding>,
}

impl Doctor {
    fn tell(&mut self, what: &str, verdict: Verdict, said: impl Into<String>, advice: Option<&str>) {
        let finding = Finding { what: what.to_owned(), verdict, said: said.into(), advice: advice.map(str::to_owned) };
        if !self.json {
            let mark = match verdict {
                Verdict::Good => "ok  ",
                Verdict::Warning => "warn",
                Verdict::Bad => "BAD ",
            };
            omnilabel_console::say!("{mark}  {:<14} {}", finding.what, finding.said);
            if let Some(advice) = &finding.advice {
                omnilabel_console::say!("      {:<14} -> {advice}", "");
            }
        }
        self.findings.push(finding);
    }

    fn good(&mut self, what: &str, said: impl Into<String>) {
        self.tell(what, Verdict::Good, said, None);
    }

    fn bad(&mut self, what: &str, said: impl Into<String>, advice: &str) {
        self.tell(what, Verdict::Bad, said, Some(advice));
    }

    fn warn(&mut self, what: &str, said: impl Into<String>, advice: &str) {
        self.tell(what, Verdict::Warning, said, Some(advice));
    }
}

/// Looks at everything that the appliance needs.
///
/// # Errors
/// When something is bad, how many things are.
pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let mut doctor = Doctor { json: args.json, findings: Vec::new() };
    match EdgeConfig::load(&args.config) {
        Ok(config) => {
            doctor.good("configuration", format!("{} is read", args.config.display()));
            examine(&mut doctor, &config);
        }
        Err(error) => doctor.bad("configuration", error.to_string(), "docs/EDGE.md tells what each key means"),
    }
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string_pretty(&doctor.findings)?);
    }
    match doctor.findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        1 => bail!("one thing is bad"),
        count => bail!("{count} things are bad"),
    }
}

fn examine(doctor: &mut Doctor, config: &EdgeConfig) {
    clock(doctor);
    let runs = state_folder(doctor, config);
    model(doctor, config);
    keys(doctor, config);
    page(doctor, config, runs);
    broker(doctor, config, runs);
    for (name, camera) in config.cameras() {
        let what = if name.is_empty() { "camera".to_owned() } else { format!("camera {name}") };
        look(doctor, &what, camera, runs);
    }
}

fn clock(doctor: &mut Doctor) {
    let now = omnilabel_console::now();
    if clock::now_ms() < clock::SET_MS {
        let advice = "set it, or let it be set over the network (timedatectl set-ntp true): certificates and labels need the time";
        doctor.bad("clock", format!("the clock says {now}, before this program was made"), advice);
    } else {
        doctor.good("clock", format!("the clock says {now}"));
    }
}

/// Whether the appliance runs.
fn state_folder(doctor: &mut Doctor, config: &EdgeConfig) -> bool {
    let folder = &config.state_dir;
    if folder.exists() && !folder.is_dir() {
        doctor.bad("state folder", format!("{} is a file", folder.display()), "move it away, or mend `state_dir`");
        return false;
    }
    if !folder.is_dir() {
        doctor.bad("state folder", format!("{} is not there", folder.display()), "make it with `omnilabel-edge model install`");
        return false;
    }
    let probe = folder.join(".doctor");
    let written = std::fs::write(&probe, [0; 4096]).and_then(|()| std::fs::File::open(&probe)?.sync_all());
    let _ = std::fs::remove_file(&probe);
    if let Err(error) = written {
        let advice = "labels cannot be kept: look at the disk, its mount options and the folder's owner";
        doctor.bad("state folder", format!("{}: cannot write: {error}", folder.display()), advice);
        return false;
    }
    let outbox = folder.join("outbox");
    if outbox.exists() && !outbox.is_dir() {
        doctor.bad("outbox", format!("{} is a file, expected a folder", outbox.display()), "move it away: labels cannot be kept");
    }
    let used: u64 = std::fs::read_dir(outbox).map_or(0, |files| files.flatten().map(|f| f.metadata().map_or(0, |m| m.len())).sum());
    let missing = config.outbox.max_bytes.saturating_sub(used);
    match nix::sys::statvfs::statvfs(folder) {
        Ok(disk) => {
            let free = disk.blocks_available() * disk.fragment_size();
            let said = format!("{} MiB are free, the outbox may take {} MiB more", free >> 20, missing >> 20);
            if free < 64 << 20 {
                doctor.bad("disk", said, "make room: on a full disk labels and cameras wait");
            } else if free < missing {
                doctor.warn("disk", said, "lower `outbox.max_bytes` or make room: else the disk is full before the outbox evicts");
            } else {
                doctor.good("disk", said);
            }
        }
        Err(error) => doctor.warn("disk", format!("{}: {error}", folder.display()), "nobody knows how much room there is"),
    }
    let runs = std::fs::File::options().write(true).open(folder.join("lock")).is_ok_and(|file| file.try_lock().is_err());
    let said = if runs { "the appliance runs: what only one may use is not tried" } else { "the appliance does not run" };
    doctor.good("state folder", format!("{}: {said}", folder.display()));
    runs
}

fn model(doctor: &mut Doctor, config: &EdgeConfig) {
    let key = match crate::update::read_public_key(&config.root_key()) {
        Ok(key) => key,
        Err(error) => {
            let said = omnilabel_console::line(&error);
            return doctor.bad("root key", said, "provision the device: `omnilabel-edge model install --root-key release.pub`");
        }
    };
    let trust = Trust::open(&config.state_dir, key, &config.broker.site, &config.channel);
    let opened = Slots::look(&config.state_dir, &trust);
    let (slots, bundle) = match opened {
        Ok(opened) => opened,
        Err(error) => return doctor.bad("model", omnilabel_console::line(&error), "install one with `omnilabel-edge model install`"),
    };
    if let Some(reason) = slots.recovered() {
        doctor.warn(
            "model",
            format!("the slot state was not readable: {reason}"),
            "look at the disk; the device goes on with a model that verifies",
        );
    }
    let (name, counter) = (bundle.manifest().name.clone(), slots.state().confirmed_counter);
    let model = match Model::load(&bundle, counter, &config.teacher) {
        Ok(model) => model,
        Err(error) => {
            return doctor.bad(
                "model",
                format!("{name} (release {counter}): {error}"),
                "look at `[teacher]`; on a GPU, at docs/EDGE.md#on-a-gpu",
            );
        }
    };
    let golden = bundle.manifest().golden.len();
    match check_golden(&bundle, model.teacher()) {
        Ok(Ok(())) if golden == 0 => {
            doctor.warn("model", format!("{name} (release {counter}) loads"), "it has no golden frames to be tried on")
        }
        Ok(Ok(())) => doctor.good("model", format!("{name} (release {counter}) gives what it should on {golden} golden frames")),
        Ok(Err(mismatch)) => doctor.bad(
            "model",
            format!("{name} (release {counter}): {mismatch}"),
            "this device computes something else: look at its memory, drivers and NVIDIA_TF32_OVERRIDE=0",
        ),
        Err(error) => doctor.bad("model", format!("{name} (release {counter}): {error}"), "install it anew"),
    }
    let frame = bundle.manifest().golden.first().and_then(|golden| Frame::open(&bundle.path(&golden.image)).ok());
    if let Some(frame) = frame {
        let start = Instant::now();
        let labelled = model.annotate(&frame, 0);
        let (took, views) = (start.elapsed(), model.views()[0]);
        match labelled {
            Ok(label) => doctor.good(
                "speed",
                format!(
                    "a frame of {} × {} px with {} people takes {:.0} ms by {views} views",
                    frame.size.width,
                    frame.size.height,
                    label.instances.len(),
                    1000.0 * took.as_secs_f64()
                ),
            ),
            Err(error) => doctor.bad("speed", error.to_string(), "the model does not label"),
        }
    }
}

/// Whether the page can have its address.
fn page(doctor: &mut Doctor, config: &EdgeConfig, runs: bool) {
    let Some(listen) = config.web.as_ref().map(|web| web.listen).filter(|_| !runs) else { return };
    match std::net::TcpListener::bind(listen) {
        Ok(_) => doctor.good("page", format!("{listen} is free")),
        Err(error) => doctor.bad("page", format!("`web.listen` {listen}: {error}"), "end the other program, or choose another port"),
    }
}

/// Files that only the appliance may read.
fn keys(doctor: &mut Doctor, config: &EdgeConfig) {
    let private = config.broker.tls.as_ref().map(|tls| ("key", &tls.key));
    let token = config.web.as_ref().and_then(|web| web.token_file.as_ref()).map(|path| ("token", path));
    for (what, path) in private.into_iter().chain(token) {
        match open_to_others(path) {
            Ok(false) => doctor.good(what, format!("{} is its owner's alone", path.display())),
            Ok(true) => doctor.warn(what, format!("{} can be read by others", path.display()), "chmod 600"),
            Err(error) => doctor.bad(what, format!("{}: {error}", path.display()), "provision the device, or mend `broker.tls` and `web`"),
        }
    }
}

#[cfg(unix)]
fn open_to_others(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::File::open(path)?;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn open_to_others(path: &Path) -> std::io::Result<bool> {
    std::fs::File::open(path).map(|_| false)
}

fn broker(doctor: &mut Doctor, config: &EdgeConfig, runs: bool) {
    let address = format!("{}:{}", config.broker.host, config.broker.port);
    if runs {
        // A second connection under the same name would end the first.
        let reached = std::net::ToSocketAddrs::to_socket_addrs(&address).map(|mut found| found.next());
        match reached {
            Ok(Some(found)) => match std::net::TcpStream::connect_timeout(&found, PATIENCE) {
                Ok(_) => doctor.good("broker", format!("{address} answers; whether it lets the device in, the appliance's log says")),
                Err(error) => doctor.bad(
                    "broker",
                    format!("{address}: {error}"),
                    "look at the network, the firewall, `broker.host` and `broker.port`",
                ),
            },
            Ok(None) => doctor.bad("broker", format!("{address}: no such host"), "mend `broker.host`"),
            Err(error) => doctor.bad("broker", format!("{address}: {error}"), "mend `broker.host`, or the device's name server"),
        }
        return;
    }
    let result =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string()).and_then(|runtime| {
            runtime.block_on(async {
                let client = format!("{}-{}", config.broker.site, config.device);
                let (link, mut incoming) = Link::open(&config.broker, &client, None, Vec::new()).map_err(|error| error.to_string())?;
                let mut why = format!("no answer within {PATIENCE:?}");
                let answer = tokio::time::timeout(PATIENCE, async {
                    while let Some(event) = incoming.recv().await {
                        match event {
                            Incoming::Connected => return true,
                            Incoming::Disconnected { reason, .. } => {
                                why = reason;
                                return false;
                            }
                            Incoming::Refused { .. } | Incoming::Message { .. } => {}
                        }
                    }
                    false
                });
                let connected = answer.await.unwrap_or(false);
                link.close().await;
                if connected { Ok(()) } else { Err(why) }
            })
        });
    match result {
        Ok(()) => doctor.good("broker", format!("{address} lets the device in")),
        Err(why) => {
            let advice =
                "look at the network, `broker.host` and `broker.port`; with TLS, at the clock and at the certificates' authority and end";
            doctor.bad("broker", format!("{address}: {why}"), advice);
        }
    }
}

fn look(doctor: &mut Doctor, what: &str, camera: &CameraConfig, runs: bool) {
    let needs_gstreamer = !matches!(camera, CameraConfig::Folder { .. } | CameraConfig::Mjpeg { .. });
    if needs_gstreamer && let Err(error) = gstreamer::installed() {
        return doctor.bad(
            what,
            error,
            "apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad",
        );
    }
    if runs && camera.is_live() {
        return doctor.good(what, "not tried: the appliance has it; its log and its page say how it is");
    }
    let nowhere = Path::new("");
    let opened = camera::open(camera, nowhere);
    let mut opened = match opened {
        Ok(opened) => opened,
        Err(error) => return doctor.bad(what, omnilabel_console::line(&error), "mend its `path`"),
    };
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    // A camera that hangs keeps its thread; the process ends soon.
    std::thread::spawn(move || sender.send(opened.next()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(CameraEvent::Shot(shot)) => {
            let size = shot.frame.size;
            doctor.good(what, format!("a frame of {} × {} px from {}", size.width, size.height, shot.name));
        }
        Ok(CameraEvent::Bad { reason, .. }) => {
            doctor.warn(what, format!("its first frame is bad: {reason}"), "it goes on; look whether all are")
        }
        Ok(CameraEvent::Lost { reason, .. }) => {
            doctor.bad(what, reason, "look at its cable, address, user and password, and whether another program has it")
        }
        Ok(CameraEvent::End | CameraEvent::Opened { .. }) => doctor.warn(what, "has no frames", "nothing is labelled"),
        Err(_) => doctor.bad(what, format!("no frame within {PATIENCE:?}"), "look at its cable, and at its own page"),
    }
}
