//! Arms that the demo trains itself, as processes `omnilabel trainer train`.

use super::{Demo, check, files};
use crate::child::Child;
use anyhow::bail;
use omnilabel_trainer::arm::{StepReport, read_progress};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Manual labels only.
pub(super) const LOWER: &str = "lower";
/// Every frame with its true labels.
pub(super) const UPPER: &str = "upper";

/// The folder of an arm.
pub(super) fn folder(root: &Path, arm: &str) -> PathBuf {
    root.join("arms").join(arm)
}

/// Its bundle, once it is trained.
pub(super) fn bundle(root: &Path, arm: &str) -> PathBuf {
    folder(root, arm).join("bundle")
}

/// What it wrote about its steps.
pub(super) fn progress(root: &Path, arm: &str) -> anyhow::Result<Vec<StepReport>> {
    Ok(read_progress(&folder(root, arm).join("progress.jsonl"))?)
}

/// The arguments after `omnilabel`.
pub(super) fn command(demo: &Demo<'_>, arm: &str, data: &Path) -> anyhow::Result<Vec<OsString>> {
    let config = files::training(demo)?;
    let out = folder(demo.root, arm);
    let mut args: Vec<OsString> = ["trainer", "train", "--resume", "--json", "--name", arm].map(OsString::from).to_vec();
    let heldout = demo.folders.heldout();
    for (flag, path) in [("--data", data), ("--config", &config), ("--out", &out), ("--eval", &heldout)] {
        args.extend([OsString::from(flag), path.into()]);
    }
    Ok(args)
}

/// Starts the training of an arm, or continues it; `None` when its bundle is there.
pub(super) fn start(demo: &Demo<'_>, arm: &str, data: &Path) -> anyhow::Result<Option<Child>> {
    if bundle(demo.root, arm).exists() {
        return Ok(None);
    }
    std::fs::create_dir_all(folder(demo.root, arm))?;
    Child::start(arm, &command(demo, arm, data)?, &demo.log(arm)).map(Some)
}

/// Shows how far an arm is.
pub(super) fn show(demo: &Demo<'_>, name: &'static str, arm: &str) -> anyhow::Result<()> {
    // The arm may be rewriting the file at this moment; the next look will find it whole.
    if let Some(last) = progress(demo.root, arm)?.last() {
        let message = format!("loss {:.2}  {:.0} pictures/s", last.losses.total(), last.images_per_sec);
        demo.show.set(name, last.step, last.steps, &message);
    }
    Ok(())
}

/// Trains an arm to its end while nothing else runs.
pub(super) fn train_alone(demo: &Demo<'_>, arm: &'static str, data: &Path, title: &str) -> anyhow::Result<()> {
    demo.show.say(title);
    let Some(mut child) = start(demo, arm, data)? else { return Ok(()) };
    loop {
        check()?;
        show(demo, arm, arm)?;
        if let Some(status) = child.status()? {
            if !status.success() || !bundle(demo.root, arm).exists() {
                bail!(child.ended(status));
            }
            return show(demo, arm, arm);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
