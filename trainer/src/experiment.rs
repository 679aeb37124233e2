//! Experiments (the paper's tables): arms that differ in one thing, each with several seeds, in one report.
//!
//! ```text
//! plan (TOML) ─▶ case = arm × length × seed ─▶ recipe ─▶ model, labels (by the recipe's digest) ─▶ record
//!                                                                                                   │
//!                                    table, gap recovered with its error, curves ◀── summary ◀──────┘
//! ```
//!
//! What is trained depends on the labelled images alone: thresholds, and which length is best, come from a held-out part of them.
//! The test images are read by the evaluation that ends an arm, and nothing looks at what it finds but the report.

mod examples;
mod footage;
mod lab;
mod plan;
mod quality;
mod recipe;
mod record;
mod report;
mod summary;

pub use plan::{Arm, Data, Drawn, Labels, Plan, Train};
pub use recipe::{DataRecipe, FirstWeights, LabelRecipe, Recipe};
pub use record::{Hard, LabelRecord, Machine, Point, Quality, Record, Test};
pub use summary::{Equal, Gain, Gap, Row, Summary};

use crate::arm::ArmError;
use crate::distill::{DistillError, Event};
use crate::evaluate::EvaluateError;
use crate::samples::SampleError;
use crate::score::ScoreError;
use omnilabel_bundle::BundleError;
use omnilabel_coco::CocoError;
use omnilabel_draw::AlbumError;
use omnilabel_rcnn::RcnnError;
use omnilabel_rcnn::device::Compute;
use recipe::Case;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Why an experiment stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The plan says something that cannot be done.
    #[error("{}: {message}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// The field and what was expected.
        message: String,
    },
    /// Network or first weights.
    #[error("{0}")]
    Start(String),
    /// A case failed.
    #[error("{name}: {source}")]
    Case {
        /// Arm, steps and seed.
        name: String,
        /// Why.
        source: Box<ExperimentError>,
    },
    /// Some arms failed by themselves; the report has the others.
    #[error("{}{} failed, the others are in {}", failures.iter().map(|failure| format!("{failure}; ")).collect::<String>(), failures.len(), report.display())]
    Failed {
        /// What they failed of.
        failures: Vec<ExperimentError>,
        /// The report.
        report: PathBuf,
    },
    /// Data that cannot carry the plan.
    #[error("{}: {message}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Training or export.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// Labelling.
    #[error(transparent)]
    Distill(#[from] DistillError),
    /// Inference.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// A folder gives no samples.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A data set could not be read.
    #[error(transparent)]
    Coco(#[from] CocoError),
    /// A bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Detections could not be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The report could not be made.
    #[error("report: {0}")]
    Report(String),
    /// Examples could not be drawn.
    #[error(transparent)]
    Album(#[from] AlbumError),
}

impl ExperimentError {
    /// Whether an arm failed of what it is: its labels, its learning rate. What is wrong with data, disk or device would stop the others, too.
    fn is_of_its_arm(&self) -> bool {
        matches!(self, Self::Distill(DistillError::NoLabels { .. }) | Self::Arm(ArmError::Rcnn(RcnnError::NotFinite { .. })))
    }

    /// Whether nothing failed, but somebody asked to stop.
    fn is_stop(&self) -> bool {
        match self {
            Self::Evaluate(EvaluateError::Cancelled) | Self::Distill(DistillError::Evaluate(EvaluateError::Cancelled)) => true,
            Self::Case { source, .. } => source.is_stop(),
            _ => false,
        }
    }
}

/// An experiment and where it takes place.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is done.
    pub plan: Plan,
    /// Models, labels and the report; run again, what is there is not done again.
    pub out: PathBuf,
    /// One file per arm, length and seed.
    pub records: PathBuf,
    /// Only these arms are run, and what they need; all if none.
    pub only: Vec<String>,
    /// Nothing is run: the report is made of the records that there are.
    pub report_only: bool,
    /// What is trained on.
    pub compute: Compute,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

/// How it ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With a report.
    Finished(Box<Summary>),
    /// Asked to stop; run again, it continues.
    Stopped,
}

/// Runs what has no record yet, seed by seed, and writes the report to `out`.
///
/// # Errors
/// See [`ExperimentError`].
pub fn experiment(setup: &Setup, event: &(dyn Fn(Event<'_>) + Sync), cancel: &AtomicBool) -> Result<Outcome, ExperimentError> {
    let plan = &setup.plan;
    std::fs::create_dir_all(&setup.out).map_err(ArmError::io(&setup.out))?;
    if setup.report_only {
        let records = known(setup)?;
        if records.is_empty() {
            let message = "no record of any arm of the plan; expected files like ARM-STEPS-seedN.json".to_owned();
            return Err(ExperimentError::Data { path: setup.records.clone(), message });
        }
        let summary = Summary::of(plan, records)?;
        report::write(&setup.out, plan, &summary)?;
        return Ok(Outcome::Finished(Box::new(summary)));
    }
    std::fs::create_dir_all(&setup.records).map_err(ArmError::io(&setup.records))?;
    let lab = lab::Lab::open(setup, event, cancel)?;
    let all = || -> Result<Option<Summary>, ExperimentError> {
        let Some((records, failures)) = lab.run()? else { return Ok(None) };
        let _lock = lab.lock_report()?;
        let summary = Summary::of(plan, records)?;
        report::write(&setup.out, plan, &summary)?;
        lab.examples(&summary)?;
        let report = setup.out.join("report.md");
        if failures.is_empty() { Ok(Some(summary)) } else { Err(ExperimentError::Failed { failures, report }) }
    };
    match all() {
        Ok(Some(summary)) => Ok(Outcome::Finished(Box::new(summary))),
        Ok(None) => Ok(Outcome::Stopped),
        Err(error) if error.is_stop() => Ok(Outcome::Stopped),
        Err(error) => Err(error),
    }
}

/// What is to be run, seed by seed.
fn cases(plan: &Plan) -> Result<Vec<Case<'_>>, ExperimentError> {
    let mut cases = Vec::new();
    for seed in plan.seeds.iter().copied() {
        for arm in plan.arms.iter().filter(|arm| arm.seeds.as_ref().is_none_or(|seeds| seeds.contains(&seed))) {
            let options = plan.options(arm, seed).map_err(ExperimentError::Start)?;
            cases.extend(std::iter::once(options.steps).chain(arm.lengths.iter().copied()).map(|steps| Case { arm, steps, seed }));
        }
    }
    Ok(cases)
}

/// The records of a plan, as far as they are there: without the data, nothing tells whether they are of these very images, but all else is
/// compared, and they must be of the same ones. A student is taken only with its teachers' records.
fn known(setup: &Setup) -> Result<Vec<Record>, ExperimentError> {
    let mut records: Vec<Record> = Vec::new();
    for case in cases(&setup.plan)? {
        let path = setup.records.join(format!("{}.json", case.name()));
        let Some(record) = Record::read(&path)? else { continue };
        let refuse = |message: &str| Err(ExperimentError::Data { path: path.clone(), message: message.to_owned() });
        let mut keys = Vec::new();
        for teacher in case.teachers(&setup.plan)? {
            let of = |record: &&Record| record.arm == teacher.arm.name && record.steps == teacher.steps && record.seed == teacher.seed;
            match records.iter().find(of) {
                Some(record) => keys.push(record.recipe.key()),
                None => return refuse(&format!("its teacher's record `{}.json` is missing", teacher.name())),
            }
        }
        if !case.may_have_made(&setup.plan, &record, recipe::teacher_key(keys))? {
            return refuse(
                "is of another plan, or of other first weights than its teacher; remove it, or run the plan again, or name another folder",
            );
        }
        let images = |record: &Record| (record.test.sha256.clone(), record.test.images, record.recipe.data.train_sha256.clone());
        let weights = |record: &Record| {
            (matches!(record.recipe.first_weights, FirstWeights::File { .. })).then(|| record.recipe.first_weights.clone())
        };
        if let Some(first) = records.first() {
            if images(first) != images(&record) || first.test.resampled.len() != record.test.resampled.len() {
                return refuse(&format!("is of other images than `{}-{}-seed{}.json`", first.arm, first.steps, first.seed));
            }
            // Of arms that begin with the same file.
            let init = setup.plan.init(case.arm);
            let alike = |record: &&Record| setup.plan.arm(&record.arm).is_some_and(|arm| setup.plan.init(arm) == init);
            let other = records.iter().filter(alike).find_map(weights).zip(weights(&record)).is_some_and(|(a, b)| a != b);
            if other {
                return refuse("began with other first weights than the records before it that begin with the same file");
            }
        }
        records.push(record);
    }
    Ok(records)
}
