//! What a round asks of the training code. The service knows no network: [`Arm`] is the real one, tests bring a cheap one.

use crate::arm::{ArmConfig, ArmOutcome, StepReport, train_arm};
use crate::calibrate::{Judged, judge_boxes};
use crate::evaluate::{Detected, EvaluateError, detect_readable, evaluate, load, pck_by_keypoint};
use crate::mix::MANUAL_PERCENT;
use crate::samples::SampleSet;
use crate::service::config::{RoundConfig, ServiceConfig};
use crate::start::{self, Start};
use anyhow::Context;
use omnilabel_bundle::{Bundle, DETECTOR, MANIFEST, Manifest};
use omnilabel_coco::{Dataset, ResultRecord};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::device::Compute;
use omnilabel_rcnn::params::Precision;
use omnilabel_rcnn::train::{Init, Losses, TrainOptions};
use omnilabel_runtime::ViewPlan;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What one run over the held-out labels gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// AP in `[0, 1]`.
    pub ap: f64,
    /// The ten COCO numbers by name.
    pub scores: Vec<(String, f64)>,
    /// Every detection, right or wrong.
    pub judged: Vec<Judged>,
    /// The detections of each picture that could be read.
    pub detections: Vec<Vec<Detection>>,
    /// The same as COCO results.
    pub results: Vec<ResultRecord>,
    /// PCK of each keypoint, where there is one; empty where no torso is labelled.
    pub pck: Vec<Option<f64>>,
}

/// One student to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Name for people, `round-N`.
    pub name: String,
    /// Manually labelled COCO folder.
    pub manual: PathBuf,
    /// Labels of cameras that people accepted or corrected, as a COCO folder: they join the manual ones.
    pub hand: Option<PathBuf>,
    /// Generated hard labels as a COCO folder; crowds are regions to ignore.
    pub generated: PathBuf,
    /// Folder for checkpoints and the bundle: a restarted job continues from what lies there.
    pub out: PathBuf,
    /// Thresholds that the bundle carries until its own are known.
    pub thresholds: Thresholds,
    /// The model that it comes after.
    pub parent: String,
}

/// How far a training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps to do.
    pub steps: u64,
    /// Mean losses since the last report.
    pub losses: Losses,
    /// Since the last report.
    pub images_per_sec: f64,
}

/// Trains and judges bundles, on a blocking thread.
pub trait TrainArm: Send + Sync {
    /// Runs a bundle over a labelled folder; `None` when `stop` became true meanwhile.
    ///
    /// # Errors
    /// A bundle or folder that cannot be used.
    fn judge(&self, bundle: &Path, data: &Path, stop: &AtomicBool) -> anyhow::Result<Option<Judgement>>;

    /// What a bundle finds on each picture of a folder that can be read, without regard to its annotations; `None` when `stop` became
    /// true meanwhile.
    ///
    /// # Errors
    /// A bundle that cannot be used.
    fn detect(&self, bundle: &Path, pictures: &Dataset, stop: &AtomicBool) -> anyhow::Result<Option<Vec<Detected>>>;

    /// Trains and writes `out/bundle` with its golden frames, whole or not at all; a bundle that lies there already is the result.
    /// `progress` is told about every second. `None` when `stop` became true: a checkpoint is then in `out`.
    ///
    /// # Errors
    /// Data that cannot be used, a loss that is not finite, a disk that is full.
    fn train(&self, job: &Job, progress: &mut dyn FnMut(Progress), stop: &AtomicBool) -> anyhow::Result<Option<PathBuf>>;
}

/// How often `progress` is told.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Golden frames of a student.
const GOLDEN: usize = 3;

/// The real arm: keypoint R-CNN, judged through the runtime that devices run.
pub struct Arm {
    network: Config,
    options: TrainOptions,
    init: Init,
    checkpoint_every: u64,
    weights: Precision,
    compute: Compute,
}

impl Arm {
    /// The student of a configuration. It sees images at the size of the running model, if that is a keypoint R-CNN, unless
    /// `model.short_side` says otherwise, and normalised as its first weights are used to.
    ///
    /// # Errors
    /// A preset that does not exist, first weights that do not fit it, a running model that finds nobody by itself.
    pub fn new(config: &ServiceConfig, running: &Manifest) -> anyhow::Result<Self> {
        if running.network.takes_boxes() && !running.files.contains_key(&format!("{DETECTOR}/{MANIFEST}")) {
            anyhow::bail!("`model.running`: `{}` labels people whom another model finds: wrap it with its --detector", running.name);
        }
        let network = start::preset(&config.model.preset, running.skeleton.keypoints.len()).context("`model.preset`")?;
        let Start { mut network, init, taken } = match &config.model.init {
            Some(path) => start::from_file(network, path, config.model.seed).context("`model.init`")?,
            None => start::from_seed(network, config.model.seed),
        };
        // A wrapped teacher's input is a person's crop, or somebody else's letterbox: no size for a student.
        if running.network.rcnn().is_some() {
            (network.input.short_side, network.input.max_long_side) = (running.input.short_side, running.input.max_long_side);
        }
        if let Some(side) = config.model.short_side {
            start::resize(&mut network, side);
        }
        if let Some(taken) = taken {
            tracing::info!("{taken}");
        }
        let RoundConfig { train, checkpoint_every, .. } = &config.round;
        let compute = Compute { device: config.model.device, precision: config.model.precision, gpus: config.model.gpus };
        // Tried at once, not when the first round begins.
        if let Some(why) = compute.open().context("`model.device`")?.instead {
            tracing::warn!("students are trained on the processor: {why}");
        }
        Ok(Self { network, options: train.clone(), init, checkpoint_every: *checkpoint_every, weights: config.model.weights, compute })
    }
}

impl TrainArm for Arm {
    fn judge(&self, bundle: &Path, data: &Path, stop: &AtomicBool) -> anyhow::Result<Option<Judgement>> {
        let teacher = load(&Bundle::open(bundle)?)?;
        let dataset = Dataset::load(data)?;
        let (evaluation, detections) = match evaluate(&teacher, &dataset, None, &|_| (), stop) {
            Err(EvaluateError::Cancelled) => return Ok(None),
            other => other?,
        };
        let mut judged = Vec::new();
        for image in &detections.images {
            judge_boxes(&dataset, image.image_id, &image.detections, &mut judged);
        }
        let scores = evaluation.single.named().map(|(name, value)| (name.to_owned(), value)).to_vec();
        let (results, pck) = (detections.results(&dataset), pck_by_keypoint(&dataset, &detections));
        let detections = detections.images.into_iter().map(|image| image.detections).collect();
        Ok(Some(Judgement { ap: evaluation.single.ap, scores, judged, detections, results, pck }))
    }

    fn detect(&self, bundle: &Path, pictures: &Dataset, stop: &AtomicBool) -> anyhow::Result<Option<Vec<Detected>>> {
        let teacher = load(&Bundle::open(bundle)?)?;
        match detect_readable(&teacher, pictures, &ViewPlan::single(teacher.manifest()), &|_| (), stop) {
            Err(EvaluateError::Cancelled) => Ok(None),
            found => Ok(Some(found?.images)),
        }
    }

    fn train(&self, job: &Job, progress: &mut dyn FnMut(Progress), stop: &AtomicBool) -> anyhow::Result<Option<PathBuf>> {
        let arm = ArmConfig {
            name: job.name.clone(),
            network: self.network.clone(),
            options: self.options.clone(),
            init: self.init.clone(),
            out: job.out.clone(),
            checkpoint_every: self.checkpoint_every,
            thresholds: job.thresholds,
            parent: Some(job.parent.clone()),
            golden: GOLDEN,
            manual_percent: MANUAL_PERCENT,
            weights: self.weights,
            compute: self.compute,
        };
        let mut manual = SampleSet::load(&Dataset::load(&job.manual)?)?;
        if let Some(hand) = &job.hand {
            manual.join(SampleSet::load(&Dataset::load(hand)?)?);
        }
        let generated = SampleSet::load(&Dataset::load(&job.generated)?)?;
        let (mut sum, mut count, mut told) = (Losses::default(), 0.0_f32, Instant::now());
        let mut on_step = |report: &StepReport| {
            let one = report.losses;
            for (total, value) in [
                (&mut sum.objectness, one.objectness),
                (&mut sum.rpn_box, one.rpn_box),
                (&mut sum.classifier, one.classifier),
                (&mut sum.box_reg, one.box_reg),
                (&mut sum.keypoint, one.keypoint),
            ] {
                *total += value;
            }
            count += 1.0;
            if told.elapsed() < REPORT_EVERY && report.step < report.steps {
                return;
            }
            let losses = Losses {
                objectness: sum.objectness / count,
                rpn_box: sum.rpn_box / count,
                classifier: sum.classifier / count,
                box_reg: sum.box_reg / count,
                keypoint: sum.keypoint / count,
            };
            progress(Progress { step: report.step, steps: report.steps, losses, images_per_sec: report.images_per_sec });
            (sum, count, told) = (Losses::default(), 0.0, Instant::now());
        };
        Ok(match train_arm(&arm, &manual, Some(&generated), &mut on_step, stop)? {
            ArmOutcome::Finished(bundle) => Some(bundle.root().to_owned()),
            ArmOutcome::Stopped { .. } => None,
        })
    }
}
