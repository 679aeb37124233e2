//! The whole method on folders (spec §0), stage by stage. Every stage leaves its output in the folder; run again, the finished ones
//! are skipped and the interrupted one continues.
//!
//! ```text
//! out/teacher/            arm on the labelled images: the teacher, and the lower bound
//! out/lower/              the lower bound with the student's number of steps, where that differs and is asked for
//! out/labels/             detections.jsonl (ensembled), pictures.json, calibration.json, annotations.json (COCO)
//! out/student/            arm on the 60 : 40 union, from the initialisation that the teacher had
//! out/upper/              arm on all true labels, where it is asked for
//! out/evaluation-*.json   the exported bundles on the validation folder
//! out/report.json         the comparison
//! out/lock                held while one process works there
//! ```

mod label;
mod report;

pub(crate) use label::{Labelling, Rule, detect_all, harden_all, identity, keep_noted, note_pictures, runner, soften};
pub use report::{LabelCount, Report, Row};

use crate::arm::{ArmConfig, ArmError, ArmOutcome, StepReport, amend, begun, hold, provisional, train_arm, write_atomically};
use crate::calibrate::{Calibration, FLEET_PRECISION, HeldOut, ManualStats, Mode, calibrate, judge_boxes};
use crate::digest::{digest, file_sha256};
use crate::evaluate::{Detections, EvaluateError, Evaluation, Views, evaluate, first_difference, labelled};
use crate::mix::MANUAL_PERCENT;
use crate::pictures::Pictures;
use crate::samples::{LeftOut, SampleError, SampleSet, is_labelled_person};
use omnilabel_bundle::{Bundle, BundleError};
use omnilabel_coco::{CocoError, Dataset};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::device::Compute;
use omnilabel_rcnn::params::Precision;
use omnilabel_rcnn::train::{Init, TrainOptions};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Why the method stopped; the message names the stage's folder where one is concerned.
#[derive(Debug, thiserror::Error)]
pub enum DistillError {
    /// Training or export.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// Inference or scoring.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// A folder gives no samples.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A data set could not be read or written.
    #[error(transparent)]
    Coco(#[from] CocoError),
    /// A bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Two folders have different skeletons.
    #[error("{a} and {b} have different skeletons: {first}")]
    Skeleton {
        /// One folder.
        a: PathBuf,
        /// The other.
        b: PathBuf,
        /// The first keypoint that differs.
        first: String,
    },
    /// A detector for a model that needs none.
    #[error("{}: `{teacher}` finds people by itself and takes no detector", detector.display())]
    Detector {
        /// The detector that was given.
        detector: PathBuf,
        /// The teacher's name.
        teacher: String,
    },
    /// A picture is in two folders.
    #[error("{}: this {what} picture is {}, which the student is to learn from; expected others", picture.display(), trained.display())]
    Seen {
        /// The picture.
        picture: PathBuf,
        /// Of which folder.
        what: &'static str,
        /// The same picture elsewhere.
        trained: PathBuf,
    },
    /// The upper bound has nothing to learn from.
    #[error("{}: nobody is labelled here, which the upper bound (--upper) is to learn from; expected a COCO keypoint folder", folder.display())]
    NoTruth {
        /// The folder of the unlabelled pictures.
        folder: PathBuf,
    },
    /// The teacher's detections gave no label.
    #[error("no unlabelled image got a label: {detections} detections on {images} images, τ = {tau}{unreadable}")]
    NoLabels {
        /// Detections above the floor.
        detections: usize,
        /// Images.
        images: usize,
        /// The threshold.
        tau: f32,
        /// How many could not be read, with the first of them; empty when all could.
        unreadable: String,
    },
}

/// What is distilled.
#[derive(Clone, Debug)]
pub struct DistillConfig {
    /// Images with manual labels.
    pub labelled: Dataset,
    /// Images whose annotations are ignored (but for the upper bound).
    pub unlabelled: Dataset,
    /// Unlabelled pictures that are no part of `unlabelled`, because they could not be read when it was listed.
    pub left_out: Vec<LeftOut>,
    /// Held-out images with manual labels.
    pub val: Dataset,
    /// Whether the upper bound is trained: the unlabelled images with their true labels.
    pub upper: bool,
    /// A bundle that is the teacher, instead of training one.
    pub teacher: Option<PathBuf>,
    /// A bundle that finds people for a teacher that is a top-down pose model.
    pub detector: Option<PathBuf>,
    /// Whether the lower bound gets the student's number of steps where the teacher's differs.
    pub equal_steps: bool,
    /// The network of every arm.
    pub network: Config,
    /// The teacher's schedule.
    pub teacher_options: TrainOptions,
    /// The student's schedule, and the upper bound's.
    pub student_options: TrainOptions,
    /// The first weights of every arm.
    pub init: Init,
    /// What every arm is trained on.
    pub compute: Compute,
    /// The teacher's views.
    pub views: Views,
    /// How τ is chosen.
    pub mode: Mode,
    /// The share of τ from which instances are ignore regions.
    pub ignore_from: Option<f32>,
    /// Where everything is written.
    pub out: PathBuf,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'e> {
    /// A stage begins.
    Stage(&'e str),
    /// A training step of the stage is done.
    Step(&'e StepReport),
    /// So many of the stage's pictures are done.
    Pictures {
        /// Done.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// A picture cannot be read and is left out: its file, and why.
    LeftOut(&'e str),
    /// Something that people should know: what, and what is done about it.
    Warning(&'e str),
}

/// How it ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With a comparison.
    Finished(Box<Report>),
    /// Asked to stop; run again, it continues.
    Stopped,
}

/// Runs what is not done yet.
///
/// # Errors
/// See [`DistillError`].
pub fn distill(config: &DistillConfig, event: &(dyn Fn(Event<'_>) + Sync), cancel: &AtomicBool) -> Result<Outcome, DistillError> {
    match (Method { config, event, cancel }).run() {
        Ok(Some(report)) => Ok(Outcome::Finished(Box::new(report))),
        Ok(None) | Err(DistillError::Evaluate(EvaluateError::Cancelled)) => Ok(Outcome::Stopped),
        Err(error) => Err(error),
    }
}

struct Method<'m> {
    config: &'m DistillConfig,
    event: &'m (dyn Fn(Event<'_>) + Sync),
    cancel: &'m AtomicBool,
}

/// `evaluation-*.json`: scores with what they were made of.
#[derive(Serialize, Deserialize, PartialEq)]
struct EvaluationKey {
    weights_sha256: String,
    /// Of the pictures and the truth about them.
    data: String,
    views: Option<Views>,
}

#[derive(Serialize, Deserialize)]
struct EvaluationFile {
    key: EvaluationKey,
    evaluation: Evaluation,
}

impl Method<'_> {
    fn run(&self) -> Result<Option<Report>, DistillError> {
        let c = self.config;
        for other in [&c.unlabelled, &c.val] {
            let (a, b): (Vec<&str>, Vec<&str>) = (c.labelled.skeleton.names().collect(), other.skeleton.names().collect());
            if let Some(first) = first_difference(&a, &b) {
                return Err(DistillError::Skeleton { a: c.labelled.root.clone(), b: other.root.clone(), first });
            }
        }
        labelled(&c.val)?;
        if c.upper && !c.unlabelled.annotations.iter().any(is_labelled_person) {
            return Err(DistillError::NoTruth { folder: c.unlabelled.root.clone() });
        }
        let (manual, footage, val) = (Pictures::of(&c.labelled), Pictures::of(&c.unlabelled), Pictures::of(&c.val));
        for (ours, theirs, what) in [(&manual, &val, "validation"), (&footage, &val, "validation"), (&manual, &footage, "unlabelled")] {
            if let Some((trained, picture)) = ours.common(theirs) {
                return Err(DistillError::Seen { picture, what, trained });
            }
        }
        std::fs::create_dir_all(&c.out).map_err(ArmError::io(&c.out))?;
        let _held = hold(&c.out)?;
        let manual = SampleSet::load(&c.labelled)?;
        let mut left_out: Vec<String> = manual.left_out.iter().chain(&c.left_out).map(ToString::to_string).collect();
        left_out.iter().for_each(|reason| (self.event)(Event::LeftOut(reason)));
        let ManualStats { images, .. } = ManualStats::of(&c.labelled);
        tracing::info!(images, samples = manual.items.len(), unlabelled = c.unlabelled.images.len(), "data read");

        let teacher = match &c.teacher {
            Some(path) => Bundle::open(path)?,
            None => match self.train("teacher", &c.teacher_options, &manual, None)? {
                Some(bundle) => bundle,
                None => return Ok(None),
            },
        };
        if let (Some(path), false) = (&c.detector, teacher.manifest().network.takes_boxes()) {
            return Err(DistillError::Detector { detector: path.clone(), teacher: teacher.manifest().name.clone() });
        }
        let taught = self.evaluate("teacher", &teacher, Some(&c.views))?;
        // A teacher from elsewhere is no lower bound: nobody knows here what it was trained on.
        let separate = c.teacher.is_some() || c.equal_steps && c.teacher_options != c.student_options;
        let lower = if separate {
            let Some(bundle) = self.train("lower", &c.student_options, &manual, None)? else { return Ok(None) };
            Row::new(&c.student_options, manual.items.len(), 0, self.evaluate("lower", &bundle, None)?)
        } else {
            Row::new(&c.teacher_options, manual.items.len(), 0, taught.clone())
        };

        (self.event)(Event::Stage("labels"));
        let folder = c.out.join("labels");
        let labelling = Labelling {
            unlabelled: &c.unlabelled,
            left_out: &c.left_out,
            category_id: c.labelled.category_id(),
            views: &c.views,
            folder: &folder,
        };
        let is_begun = begun(&c.out.join("student"));
        let (labeller, known_as) = (runner(c.detector.as_deref(), &teacher)?, identity(c.detector.as_deref(), &teacher)?);
        let mut detections = detect_all(&labelling, (&labeller, &known_as), self.event, is_begun, self.cancel)?;
        if is_begun {
            keep_noted(&folder, &mut detections)?;
        } else {
            note_pictures(&folder, &detections)?;
        }
        detections.unreadable.iter().for_each(|reason| (self.event)(Event::LeftOut(reason)));
        left_out.extend_from_slice(&detections.unreadable);
        let calibration = self.calibrate(&teacher, &detections)?;
        let rule = Rule { thresholds: calibration.thresholds, ignore_from: c.ignore_from, min_agreement: None };
        let (generated, count) = harden_all(&labelling, &detections, &rule)?;

        let Some(student) = self.train("student", &c.student_options, &manual, Some(&generated))? else { return Ok(None) };
        let evaluation = self.evaluate("student", &student, None)?;
        let student = Row::new(&c.student_options, manual.items.len(), generated.items.len(), evaluation);

        let mut upper = None;
        if c.upper {
            let mut all = SampleSet::load(&c.unlabelled)?;
            all.items.splice(0..0, manual.items.iter().cloned());
            let Some(bundle) = self.train("upper", &c.student_options, &all, None)? else { return Ok(None) };
            upper = Some(Row::new(&c.student_options, all.items.len(), 0, self.evaluate("upper", &bundle, None)?));
        }
        left_out.extend_from_slice(&student.evaluation.unreadable);
        let report = Report { left_out, ..Report::new(lower, student, upper, taught, calibration, count) };
        self.write_json("report.json", &report)?;
        Ok(Some(report))
    }

    fn train(
        &self,
        name: &str,
        options: &TrainOptions,
        manual: &SampleSet,
        generated: Option<&SampleSet>,
    ) -> Result<Option<Bundle>, DistillError> {
        (self.event)(Event::Stage(name));
        let arm = ArmConfig {
            name: name.to_owned(),
            network: self.config.network.clone(),
            options: options.clone(),
            init: self.config.init.clone(),
            out: self.config.out.join(name),
            checkpoint_every: self.config.checkpoint_every,
            thresholds: provisional(),
            parent: None,
            golden: 2,
            manual_percent: MANUAL_PERCENT,
            weights: Precision::F32,
            compute: self.config.compute,
        };
        match train_arm(&arm, manual, generated, &mut |report| (self.event)(Event::Step(report)), self.cancel)? {
            ArmOutcome::Finished(bundle) => Ok(Some(*bundle)),
            ArmOutcome::Stopped { .. } => Ok(None),
        }
    }

    /// Scores a bundle on the validation folder, once; its own AP and thresholds go into its manifest.
    fn evaluate(&self, name: &str, bundle: &Bundle, views: Option<&Views>) -> Result<Evaluation, DistillError> {
        let stage = format!("evaluation-{name}");
        (self.event)(Event::Stage(&stage));
        let val = &self.config.val;
        let pictures: Vec<Option<String>> = val.images.par_iter().map(|image| file_sha256(&val.image_path(image)).ok()).collect();
        let key = EvaluationKey {
            weights_sha256: identity(self.config.detector.as_deref(), bundle)?,
            data: digest(&(val.skeleton.names().collect::<Vec<_>>(), val.skeleton.sigmas(), &val.images, &val.annotations, pictures)),
            views: views.cloned(),
        };
        let file = format!("{stage}.json");
        if let Some(known) = self.read_json::<EvaluationFile>(&file)?
            && known.key == key
            && known.evaluation.unreadable.is_empty()
        {
            return Ok(known.evaluation);
        }
        let teacher = runner(self.config.detector.as_deref(), bundle)?;
        let of = val.images.len() * if views.is_some() { 2 } else { 1 };
        let done = |done| (self.event)(Event::Pictures { done, of });
        let (evaluation, detections) = evaluate(&teacher, val, views, &done, self.cancel)?;
        evaluation.unreadable.iter().for_each(|reason| (self.event)(Event::LeftOut(reason)));
        if bundle.root().starts_with(&self.config.out) {
            let thresholds = calibrate_on(val, &detections).thresholds;
            amend(bundle.root(), |manifest| {
                manifest.ap = Some(evaluation.single.ap);
                manifest.thresholds = thresholds;
            })?;
        }
        self.write_json(&file, &EvaluationFile { key, evaluation: evaluation.clone() })?;
        Ok(evaluation)
    }

    fn calibrate(&self, teacher: &Bundle, detections: &Detections) -> Result<Calibration, DistillError> {
        let c = self.config;
        let unlabelled: Vec<_> = detections.images.iter().map(|i| i.detections.clone()).collect();
        let mut judged = Vec::new();
        if c.mode == Mode::Fleet {
            let runner = runner(c.detector.as_deref(), teacher)?;
            let held_out = crate::evaluate::detect(&runner, &c.val, &c.views.plan(&runner), &|_| {}, self.cancel)?;
            for image in &held_out.images {
                judge_boxes(&c.val, image.image_id, &image.detections, &mut judged);
            }
        }
        let floor = teacher.manifest().thresholds.floor;
        let held_out = (c.mode == Mode::Fleet).then_some(HeldOut { judged: &judged, precision: FLEET_PRECISION });
        let calibration = calibrate(c.mode, ManualStats::of(&c.labelled), &unlabelled, held_out, floor);
        if !calibration.instance.holds() {
            tracing::warn!(
                wanted = calibration.instance.wanted_mean,
                realised = calibration.instance.realised_mean,
                "too few detections to match the manual mean: all are kept"
            );
        }
        self.write_json("labels/calibration.json", &calibration)?;
        Ok(calibration)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), DistillError> {
        let path = self.config.out.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(|source| ArmError::Json { path: path.clone(), source })?;
        Ok(write_atomically(&path, &text)?)
    }

    /// `None` when there is no file, or one of an older shape: the stage is then done again.
    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DistillError> {
        let path = self.config.out.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(ArmError::io(&path))?;
        let value = serde_json::from_slice(&text);
        if let Err(error) = &value {
            tracing::warn!(file = %path.display(), %error, "not readable, done again");
        }
        Ok(value.ok())
    }
}

/// Thresholds of a model from its detections on a labelled folder.
pub fn calibrate_on(dataset: &Dataset, detections: &Detections) -> Calibration {
    let mut judged = Vec::new();
    for image in &detections.images {
        judge_boxes(dataset, image.image_id, &image.detections, &mut judged);
    }
    let all: Vec<_> = detections.images.iter().map(|i| i.detections.clone()).collect();
    let held_out = HeldOut { judged: &judged, precision: FLEET_PRECISION };
    calibrate(Mode::Fleet, ManualStats::of(dataset), &all, Some(held_out), provisional().floor)
}

/// The LSPE protocol: the first `fraction` of the images by ascending id keep their labels, the others are unlabelled.
pub fn split_by_id(dataset: &Dataset, fraction: f64) -> (Dataset, Dataset) {
    let labelled = (dataset.images.len() as f64 * fraction).round() as usize;
    (dataset.subset(|index, _| index < labelled), dataset.subset(|index, _| index >= labelled))
}

/// The folder that has `annotations.json`: `dir` itself or its `split`.
pub fn split_folder(dir: &Path, split: &str) -> PathBuf {
    if dir.join("annotations.json").exists() { dir.to_owned() } else { dir.join(split) }
}
