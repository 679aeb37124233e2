//! The configuration files of the other roles.

use super::plan::Plan;
use super::{Demo, arms};
use anyhow::Context;
use std::path::{Path, PathBuf};

/// Site of the demo's fleet.
pub(super) const SITE: &str = "demo";
/// Names of the two devices.
pub(super) const DEVICES: [&str; 2] = ["studio", "street"];
/// Short sides of the teacher's views; each also mirrored.
pub(super) const SCALES: [u32; 3] = [128, 160, 192];

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// The schedule, the same for every arm.
fn options(plan: &Plan) -> String {
    format!("steps = {}\nbatch = {}\nlr = 2e-3\nseed = 1\n", plan.steps, plan.batch)
}

/// `train.toml` for the arms that the demo trains itself.
pub(super) fn training(demo: &Demo<'_>) -> anyhow::Result<PathBuf> {
    let file = demo.root.join("train.toml");
    let init = demo.zoo.init().map_or_else(|| "seed:1".to_owned(), |init| init.to_string_lossy().into_owned());
    write(&file, &format!("preset = \"nano\"\ninit = {}\n\n[options]\n{}", quoted(&init), options(demo.plan)))?;
    Ok(file)
}

/// The centre's folder.
pub(super) fn centre(root: &Path) -> PathBuf {
    root.join("centre")
}

/// The student's bundle of the first round.
pub(super) fn student(root: &Path) -> PathBuf {
    centre(root).join("rounds/1/bundle")
}

/// The private key; its public half lies beside it.
pub(super) fn key(root: &Path) -> PathBuf {
    root.join("keys/release.key")
}

/// `trainer.toml`.
pub(super) fn trainer(demo: &Demo<'_>, port: u16) -> anyhow::Result<PathBuf> {
    let file = demo.root.join("trainer.toml");
    let init = demo.zoo.init().map_or_else(String::new, |init| format!("init = {}\n", path(&init)));
    let text = format!(
        "state_dir = {state}\n\n[broker]\nhost = \"127.0.0.1\"\nport = {port}\nsite = \"{SITE}\"\n\n\
         [data]\nmanual = {manual}\nheldout = {heldout}\n\n\
         [model]\nrunning = {running}\npreset = \"nano\"\n{init}seed = 1\n\n\
         [round]\nmin_labels = {labels}\nmax_rounds = 1\ncheckpoint_every = 50\n\n[round.train]\n{options}\n\
         [release]\nkey = {key}\n",
        state = path(&centre(demo.root)),
        manual = path(&demo.folders.manual()),
        heldout = path(&demo.folders.heldout()),
        running = path(&demo.teacher()?),
        labels = 2 * demo.plan.footage,
        options = options(demo.plan),
        key = path(&key(demo.root)),
    );
    write(&file, &text)?;
    Ok(file)
}

/// The folder of a device.
pub(super) fn device(root: &Path, index: usize) -> PathBuf {
    root.join("devices").join(DEVICES[index])
}

/// What a device's camera does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Footage {
    /// Pictures per second of the folder camera.
    pub(super) fps: f64,
    /// Whether the folder camera starts again after its last picture.
    pub(super) repeat: bool,
}

/// `edge.toml` of device `index`: the first plays its folder, the second watches `stream`.
pub(super) fn edge(demo: &Demo<'_>, index: usize, port: u16, stream: &str, footage: Footage) -> anyhow::Result<PathBuf> {
    let folder = device(demo.root, index);
    let file = folder.join("edge.toml");
    let camera = if index == 0 {
        let images = path(&demo.folders.footage(0).join("images"));
        format!("type = \"folder\"\npath = {images}\nfps = {:.2}\nloop = {}\n", footage.fps, footage.repeat)
    } else {
        format!("type = \"mjpeg\"\nurl = {}\nfps = 100\n", quoted(stream))
    };
    let text = format!(
        "device = \"{name}\"\nstate_dir = \"state\"\n\n[broker]\nhost = \"127.0.0.1\"\nport = {port}\nsite = \"{SITE}\"\n\n\
         [camera]\n{camera}\n[teacher]\nscales = {SCALES:?}\nflip = true\nthreads = 1\n\n[publish]\nframes = \"all\"\n",
        name = DEVICES[index],
    );
    write(&file, &text)?;
    Ok(file)
}

/// The plan of views as arguments of `evaluate`.
pub(super) fn views() -> [String; 3] {
    ["--flip".to_owned(), "--scales".to_owned(), SCALES.map(|s| s.to_string()).join(",")]
}

/// The commands of a run, for the report.
pub(super) fn commands(demo: &Demo<'_>) -> anyhow::Result<Vec<String>> {
    let line = |args: &[std::ffi::OsString]| {
        let words = args.iter().map(|a| a.to_string_lossy().replace(&*demo.root.to_string_lossy(), "DIR"));
        std::iter::once("omnilabel".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    };
    let root = path(demo.root);
    let mut commands = vec![format!("# DIR = {root}")];
    commands.push(line(&arms::command(demo, arms::LOWER, &demo.folders.manual())?));
    if demo.plan.upper {
        commands.push(line(&arms::command(demo, arms::UPPER, &demo.folders.upper())?));
    }
    commands.push("omnilabel broker --listen 127.0.0.1:PORT".to_owned());
    commands.push("omnilabel trainer run --config DIR/trainer.toml".to_owned());
    for device in DEVICES {
        commands.push(format!("omnilabel edge run --config DIR/devices/{device}/edge.toml"));
    }
    commands.push(format!("omnilabel trainer evaluate --model BUNDLE --data DIR/data/val {}", views().join(" ")));
    Ok(commands)
}
