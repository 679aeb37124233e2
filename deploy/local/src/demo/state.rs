//! Where a demo stands: `state.json` in its folder, so that the same command continues what was interrupted.

use super::plan::Plan;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// The stages in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Pictures and labels are on disk.
    Data,
    /// There is a model that can label: shipped, or trained on the labelled part.
    Teacher,
    /// Keys exist and the devices have the model.
    Provision,
    /// Footage is labelled, the student trained, the release judged and installed; the lower bound is trained.
    Fleet,
    /// The upper bound is trained, where it is asked for.
    Upper,
    /// Every arm is evaluated.
    Evaluate,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    plan: Plan,
    done: BTreeSet<Stage>,
    seconds: f64,
}

/// The folder of one demo; at most one process has it open.
#[derive(Debug)]
pub(super) struct State {
    root: PathBuf,
    stored: Stored,
    /// Its lock says that the folder is in use.
    _lock: File,
}

impl State {
    /// Opens or creates the folder for `plan`.
    ///
    /// # Errors
    /// Another process has it open, it belongs to another plan, or its state cannot be read: each says which folder and what to do.
    pub(super) fn open(root: &Path, plan: Plan) -> anyhow::Result<Self> {
        std::fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        let root = root.canonicalize().with_context(|| root.display().to_string())?;
        let lock = File::create(root.join("lock")).with_context(|| root.display().to_string())?;
        if lock.try_lock().is_err() {
            bail!("{}: another demo is running in this folder", root.display());
        }
        let path = root.join(FILE);
        let stored = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str::<Stored>(&text).with_context(|| {
                format!("{}: not a state that this version wrote; choose another --dir or remove the folder", path.display())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Stored { version: VERSION, plan: plan.clone(), done: BTreeSet::new(), seconds: 0.0 }
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if stored.version != VERSION || stored.plan != plan {
            bail!(
                "{}: holds a demo with other arguments ({}); choose another --dir, repeat those arguments, or start over with --fresh",
                root.display(),
                stored.plan
            );
        }
        let state = Self { root, stored, _lock: lock };
        state.save()?;
        Ok(state)
    }

    /// Removes the folder of a demo that nobody runs, and nothing that is not one.
    ///
    /// # Errors
    /// Another process has it open, it holds something else, or it cannot be removed.
    pub(super) fn discard(root: &Path) -> anyhow::Result<()> {
        let mut entries = match std::fs::read_dir(root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| root.display().to_string())?,
        };
        if entries.next().is_some() {
            let state = std::fs::read_to_string(root.join(FILE)).ok();
            if state.and_then(|text| serde_json::from_str::<Stored>(&text).ok()).is_none() {
                bail!(
                    "--fresh: {} is not the folder of a demo (it has no {FILE} of one); remove it by hand or choose another --dir",
                    root.display()
                );
            }
            let lock = File::create(root.join("lock")).with_context(|| root.display().to_string())?;
            if lock.try_lock().is_err() {
                bail!("--fresh: another demo is running in {}", root.display());
            }
        }
        std::fs::remove_dir_all(root).with_context(|| root.display().to_string())
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What was planned.
    pub(super) fn plan(&self) -> &Plan {
        &self.stored.plan
    }

    /// Whether a stage is finished.
    pub(super) fn is_done(&self, stage: Stage) -> bool {
        self.stored.done.contains(&stage)
    }

    /// Seconds of all runs so far.
    pub(super) fn seconds(&self) -> f64 {
        self.stored.seconds
    }

    /// Adds to [`State::seconds`].
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn spend(&mut self, seconds: f64) -> anyhow::Result<()> {
        self.stored.seconds += seconds;
        self.save()
    }

    /// Marks a stage as finished.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn finish(&mut self, stage: Stage) -> anyhow::Result<()> {
        self.stored.done.insert(stage);
        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        let (path, part) = (self.root.join(FILE), self.root.join("state.part"));
        std::fs::write(&part, serde_json::to_vec_pretty(&self.stored)?).with_context(|| part.display().to_string())?;
        std::fs::rename(&part, &path).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_stays_done_and_other_arguments_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::scenes(8.0, false);
        let mut state = State::open(dir.path(), plan.clone()).unwrap();
        let second = State::open(dir.path(), plan.clone()).unwrap_err().to_string();
        assert!(second.contains("another demo is running"), "{second}");
        state.finish(Stage::Data).unwrap();
        state.spend(1.5).unwrap();
        drop(state);
        let state = State::open(dir.path(), plan).unwrap();
        assert!(state.is_done(Stage::Data) && !state.is_done(Stage::Fleet));
        assert_eq!(state.seconds(), 1.5);
        drop(state);
        let other = State::open(dir.path(), Plan::scenes(3.0, false)).unwrap_err().to_string();
        assert!(other.contains("--fresh") && other.contains("8 minutes"), "{other}");
    }

    #[test]
    fn starting_over_removes_a_demo_that_nobody_runs_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("photos");
        std::fs::create_dir(&mine).unwrap();
        std::fs::write(mine.join("a.jpg"), "x").unwrap();
        // The state of a device has the same name.
        for state in [None, Some("{}"), Some(r#"{"format":1,"state":{},"crc":1}"#)] {
            if let Some(text) = state {
                std::fs::write(mine.join(FILE), text).unwrap();
            }
            let error = State::discard(&mine).unwrap_err().to_string();
            assert!(error.contains("photos") && error.contains(FILE) && mine.join("a.jpg").exists(), "{error}");
        }
        let demo = dir.path().join("demo");
        let running = State::open(&demo, Plan::scenes(8.0, false)).unwrap();
        let error = State::discard(&demo).unwrap_err().to_string();
        assert!(error.contains("another demo is running") && demo.join(FILE).exists(), "{error}");
        drop(running);
        State::discard(&demo).unwrap();
        assert!(!demo.exists());
        State::discard(&demo).unwrap();
    }

    #[test]
    fn a_torn_state_is_an_error_and_no_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{\"version\":1,").unwrap();
        let error = format!("{:#}", State::open(dir.path(), Plan::scenes(8.0, false)).unwrap_err());
        assert!(error.contains(FILE) && error.contains("--dir"), "{error}");
    }
}
