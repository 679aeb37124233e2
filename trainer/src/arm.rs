//! One training run: samples → steps → an exported bundle with golden frames.
//!
//! ```text
//! out/arm.json          what is being trained; another arm in the same folder is refused
//! out/checkpoint/       weights, optimiser and position, every `checkpoint_every` steps and on a stop
//! out/progress.jsonl    one line per step
//! out/bundle/           the result; it exists only when the arm is finished
//! out/lock              held while one process works there
//! ```

mod difference;
mod export;
mod lock;

pub use export::{amend, dataset_digest};
pub(crate) use lock::{Lock, hold};

use crate::mix::{MANUAL_PERCENT, Mix, MixError, Pick};
use crate::samples::SampleSet;
use omnilabel_bundle::{Bundle, BundleError};
use omnilabel_detect::frame::FrameError;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_rcnn::RcnnError;
use omnilabel_rcnn::augment::Sample;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::device::Compute;
use omnilabel_rcnn::optim::learning_rate;
use omnilabel_rcnn::params::Precision;
use omnilabel_rcnn::train::{Init, Losses, Run, TrainOptions};
use omnilabel_runtime::RuntimeError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Why an arm failed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the arm is not what this code writes.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The folder holds another arm.
    #[error("{path}: the folder holds another arm: {what}; choose another folder or remove it")]
    Other {
        /// The folder.
        path: PathBuf,
        /// The options that differ, with both values.
        what: String,
    },
    /// Somebody else trains there.
    #[error("{path}: another process works in this folder; expected one at a time")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// Generated samples of another skeleton.
    #[error("generated labels have {generated} keypoints, manual ones {manual}, the network {network}")]
    Skeleton {
        /// Of the manual samples.
        manual: usize,
        /// Of the generated samples.
        generated: usize,
        /// Of the network.
        network: usize,
    },
    /// The mix cannot be made.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// The network failed.
    #[error(transparent)]
    Rcnn(#[from] RcnnError),
    /// The bundle failed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The exported bundle does not run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A picture could not be decoded or written.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl ArmError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmConfig {
    /// Name of the bundle.
    pub name: String,
    /// The network.
    pub network: Config,
    /// The schedule.
    pub options: TrainOptions,
    /// The first weights.
    pub init: Init,
    /// Where everything is written.
    #[serde(skip)]
    pub out: PathBuf,
    /// Steps between checkpoints; 0: only on a stop.
    #[serde(skip)]
    pub checkpoint_every: u64,
    /// What the manifest says; amended when they are calibrated.
    #[serde(skip, default = "provisional")]
    pub thresholds: Thresholds,
    /// The model it comes after.
    pub parent: Option<String>,
    /// Golden frames, taken from the manual samples.
    #[serde(skip)]
    pub golden: usize,
    /// Manual images of every 100, where there are generated ones.
    #[serde(default = "paper", skip_serializing_if = "is_paper")]
    pub manual_percent: u8,
    /// Precision of the weights in the bundle.
    #[serde(default)]
    pub weights: Precision,
    /// What it is trained on; it may differ from one resumption to the next.
    #[serde(skip)]
    pub compute: Compute,
}

const fn paper() -> u8 {
    MANUAL_PERCENT
}

/// Older folders say nothing of it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_paper(percent: &u8) -> bool {
    *percent == MANUAL_PERCENT
}

/// Thresholds of a model that is not calibrated.
pub const fn provisional() -> Thresholds {
    Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 }
}

/// What `arm.json` holds.
#[derive(Serialize, Deserialize)]
struct ArmFile {
    arm: ArmConfig,
    /// SHA-256 of the samples.
    dataset_sha256: String,
}

/// One line of `progress.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Of this step.
    pub losses: Losses,
    /// Learning rate of this step.
    pub lr: f64,
    /// Since the run was started or resumed.
    pub images_per_sec: f64,
    /// Seconds of training, over all resumptions.
    pub elapsed_s: f64,
}

/// How an arm ended.
#[derive(Debug)]
pub enum ArmOutcome {
    /// Trained and exported.
    Finished(Box<Bundle>),
    /// Stopped after `step` steps; the checkpoint continues it.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// Trains, checkpoints, exports. An arm that was stopped continues from its checkpoint, one that is finished is opened; both only
/// when the folder holds the same arm on the same data. `cancel` is looked at after every step.
///
/// # Errors
/// See [`ArmError`].
pub fn train_arm(
    arm: &ArmConfig,
    manual: &SampleSet,
    generated: Option<&SampleSet>,
    on_step: &mut dyn FnMut(&StepReport),
    cancel: &AtomicBool,
) -> Result<ArmOutcome, ArmError> {
    let keypoints = |set: &SampleSet| set.skeleton.len();
    let of_generated = generated.map_or(keypoints(manual), keypoints);
    if keypoints(manual) != arm.network.keypoints || of_generated != arm.network.keypoints {
        return Err(ArmError::Skeleton { manual: keypoints(manual), generated: of_generated, network: arm.network.keypoints });
    }
    std::fs::create_dir_all(&arm.out).map_err(ArmError::io(&arm.out))?;
    let bundle = arm.out.join("bundle");
    // What is finished is only read.
    let _held = if bundle.exists() { None } else { Some(hold(&arm.out)?) };
    let digest = dataset_digest(manual, generated);
    claim(arm, &digest)?;
    if bundle.exists() {
        return Ok(ArmOutcome::Finished(Box::new(Bundle::open(&bundle)?)));
    }
    let run = match steps(arm, manual, generated, on_step, cancel)? {
        Ok(run) => run,
        Err(step) => return Ok(ArmOutcome::Stopped { step }),
    };
    let bundle = export::write(arm, &run.network, manual, &digest, &bundle)?;
    let checkpoint = arm.out.join("checkpoint");
    if checkpoint.exists() {
        std::fs::remove_dir_all(&checkpoint).map_err(ArmError::io(&checkpoint))?;
    }
    Ok(ArmOutcome::Finished(Box::new(bundle)))
}

/// Whether the folder holds anything that was trained: a training that ended before its first step left nothing that another would harm.
pub(crate) fn begun(out: &Path) -> bool {
    let logged = std::fs::metadata(out.join("progress.jsonl")).is_ok_and(|file| file.len() > 0);
    logged || out.join("checkpoint").exists() || out.join("bundle").exists()
}

/// Removes what a training has left there: one on other data must not go on with it.
pub(crate) fn forget(out: &Path) -> Result<(), ArmError> {
    let gone = |path: &Path, remove: fn(&Path) -> std::io::Result<()>| match remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ArmError::io(path)(error)),
        _ => Ok(()),
    };
    ["arm.json", "progress.jsonl"].iter().try_for_each(|name| gone(&out.join(name), |path| std::fs::remove_file(path)))?;
    ["checkpoint", "bundle"].iter().try_for_each(|name| gone(&out.join(name), |path| std::fs::remove_dir_all(path)))
}

/// Writes `arm.json`, or checks that it names the same arm.
fn claim(arm: &ArmConfig, digest: &str) -> Result<(), ArmError> {
    let path = arm.out.join("arm.json");
    let json = |source| ArmError::Json { path: path.clone(), source };
    let ours = serde_json::to_value(ArmFile { arm: arm.clone(), dataset_sha256: digest.to_owned() }).map_err(json)?;
    if path.exists() && begun(&arm.out) {
        let text = std::fs::read(&path).map_err(ArmError::io(&path))?;
        let theirs: serde_json::Value = serde_json::from_slice(&text).map_err(json)?;
        let other = |what: String| Err(ArmError::Other { path: arm.out.clone(), what });
        if let Some(what) = difference::told(&ours["arm"], &theirs["arm"]) {
            return other(what);
        }
        if ours["dataset_sha256"] != theirs["dataset_sha256"] {
            return other("its data set has other pictures or labels".to_owned());
        }
        return Ok(());
    }
    write_atomically(&path, &serde_json::to_vec_pretty(&ours).map_err(json)?)
}

/// Writes beside, then renames. The name beside is the file's own: two files that differ in their extensions are written at the same time.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ArmError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    std::fs::write(&part, bytes).map_err(ArmError::io(&part))?;
    std::fs::rename(&part, path).map_err(ArmError::io(path))
}

/// The steps: `Ok` when all are done, `Err(step)` when stopped.
fn steps(
    arm: &ArmConfig,
    manual: &SampleSet,
    generated: Option<&SampleSet>,
    on_step: &mut dyn FnMut(&StepReport),
    cancel: &AtomicBool,
) -> Result<Result<Run, u64>, ArmError> {
    let checkpoint = arm.out.join("checkpoint");
    let options = &arm.options;
    let flip = manual.skeleton.flip();
    let place = arm.compute.open()?;
    let mut run = if Run::has_checkpoint(&checkpoint) {
        Run::resume_on(&checkpoint, arm.network.clone(), options.clone(), flip, &place)?
    } else {
        Run::new_on(arm.network.clone(), options.clone(), flip, &arm.init, &place)?
    };
    let (of_manual, of_generated) = (manual.items.len(), generated.map_or(0, |g| g.items.len()));
    let mut mix = Mix::new(options.seed, options.batch, arm.manual_percent, of_manual, of_generated)?;
    let first = run.step_index();
    let (mut log, before_s) = open_log(&arm.out.join("progress.jsonl"), first)?;
    let started = Instant::now();
    while run.step_index() < options.steps {
        let step = run.step_index();
        if cancel.load(Ordering::Relaxed) {
            run.checkpoint(&checkpoint)?;
            return Ok(Err(step));
        }
        let samples: Vec<Sample> = mix
            .step(step)
            .into_par_iter()
            .map(|pick| match (pick, generated) {
                (Pick::Generated(index), Some(set)) => set.items[index].sample(true),
                (Pick::Manual(index) | Pick::Generated(index), _) => manual.items[index].sample(false),
            })
            .collect::<Result<_, FrameError>>()?;
        let losses = run.step(&samples.iter().collect::<Vec<_>>())?;
        let since_s = started.elapsed().as_secs_f64();
        let report = StepReport {
            step: step + 1,
            steps: options.steps,
            losses,
            lr: learning_rate(options.schedule, options.lr, step, options.steps, options.warmup, &options.milestones),
            images_per_sec: ((step + 1 - first) * options.batch as u64) as f64 / since_s,
            elapsed_s: before_s + since_s,
        };
        log.append(&report)?;
        on_step(&report);
        if arm.checkpoint_every > 0 && (step + 1).is_multiple_of(arm.checkpoint_every) {
            run.checkpoint(&checkpoint)?;
        }
    }
    // The export may fail or be interrupted: the trained weights are safe before it begins.
    if run.step_index() > first {
        run.checkpoint(&checkpoint)?;
    }
    run.take_average()?;
    Ok(Ok(run))
}

/// The open `progress.jsonl`.
struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    fn append(&mut self, report: &StepReport) -> Result<(), ArmError> {
        let mut line = serde_json::to_vec(report).map_err(|source| ArmError::Json { path: self.path.clone(), source })?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(ArmError::io(&self.path))
    }
}

/// Opens the log without the lines of steps after `step` (made after the checkpoint), and says how long the kept steps took.
fn open_log(path: &Path, step: u64) -> Result<(Log, f64), ArmError> {
    let kept = read_progress(path)?.into_iter().filter(|r| r.step <= step).collect::<Vec<_>>();
    let mut log = Log { path: path.to_owned(), file: std::fs::File::create(path).map_err(ArmError::io(path))? };
    for report in &kept {
        log.append(report)?;
    }
    Ok((log, kept.last().map_or(0.0, |r| r.elapsed_s)))
}

/// The lines of a `progress.jsonl`; none when there is no file. A line torn by a power cut is skipped.
///
/// # Errors
/// [`ArmError::Io`].
pub fn read_progress(path: &Path) -> Result<Vec<StepReport>, ArmError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = std::fs::File::open(path).map_err(ArmError::io(path))?;
    let mut reports = Vec::new();
    for line in std::io::BufReader::new(file).lines() {
        match serde_json::from_str(&line.map_err(ArmError::io(path))?) {
            Ok(report) => reports.push(report),
            Err(error) => tracing::warn!(file = %path.display(), %error, "line skipped"),
        }
    }
    Ok(reports)
}
