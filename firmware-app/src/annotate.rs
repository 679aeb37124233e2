//! A model with its view plan: frame in, label out.

use crate::config::{TeacherConfig, TeacherDevice};
use omnilabel_bundle::{Bundle, Manifest};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::label::{Detection, Label};
use omnilabel_keypoints::view::View;
use omnilabel_runtime::{RuntimeError, Teacher, ViewPlan};

/// A loaded model of a known release.
pub struct Model {
    teacher: Teacher,
    /// From all views to a single one.
    plans: Vec<ViewPlan>,
    counter: u64,
    hash: u64,
}

/// The views of a configuration for a model.
pub fn plan(manifest: &Manifest, config: &TeacherConfig) -> ViewPlan {
    let own = [manifest.input.short_side];
    let scales: &[u32] = if config.scales.is_empty() { &own } else { &config.scales };
    ViewPlan {
        average: config.average,
        box_voting: config.box_voting,
        score_floor: manifest.thresholds.floor,
        ..ViewPlan::new(manifest, scales, config.flip)
    }
}

/// The plan itself, and with fewer and fewer views: the base view with its mirror image, and the base view alone.
fn reductions(plan: ViewPlan) -> Vec<ViewPlan> {
    let base = |flip: bool| View { short_side: plan.base_short_side, flip };
    let few = |views: Vec<View>| ViewPlan { views, box_voting: false, ..plan.clone() };
    let pair = plan.views.iter().any(|view| view.flip).then(|| few(vec![base(false), base(true)]));
    let single = few(vec![base(false)]);
    let mut plans = vec![plan];
    plans.extend(pair);
    plans.push(single);
    // Where there are no more views than that, a step would change nothing.
    plans.dedup_by_key(|plan| plan.views.len());
    plans
}

/// Worker threads: what is asked for, or one for each core.
pub fn threads(config: &TeacherConfig) -> usize {
    if config.threads > 0 { config.threads } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// The model of a bundle, with the configured detector if it is a top-down pose model.
///
/// # Errors
/// See [`RuntimeError`]. A detector for a model that finds people by itself is not used: the next release may be one that needs it.
pub fn teacher(bundle: &Bundle, config: &TeacherConfig) -> Result<Teacher, RuntimeError> {
    let on_cpu = || Teacher::load(bundle, threads(config));
    let teacher = match config.device {
        TeacherDevice::Cpu => on_cpu()?,
        TeacherDevice::Cuda => Teacher::load_cuda(bundle)?,
        TeacherDevice::Auto => match Teacher::load_cuda(bundle) {
            Ok(teacher) => {
                tracing::info!(model = %bundle.manifest().name, "runs on the GPU");
                teacher
            }
            Err(reason) => {
                tracing::warn!(model = %bundle.manifest().name, %reason, "runs on the CPU");
                on_cpu()?
            }
        },
    };
    match &config.detector {
        Some(path) if bundle.manifest().network.takes_boxes() => {
            teacher.with_detector(Teacher::load(&Bundle::open(path)?, threads(config))?)
        }
        Some(path) => {
            tracing::warn!(detector = %path.display(), model = %bundle.manifest().name, "not used: the model finds people by itself");
            Ok(teacher)
        }
        None => Ok(teacher),
    }
}

impl Model {
    /// Loads the bundle of release `counter` (0: provisioned).
    ///
    /// # Errors
    /// See [`RuntimeError`]: a top-down pose model without a detector, too.
    pub fn load(bundle: &Bundle, counter: u64, config: &TeacherConfig) -> Result<Self, RuntimeError> {
        let teacher = teacher(bundle, config)?;
        if !teacher.finds_people() {
            return Err(RuntimeError::NeedsBoxes { model: bundle.manifest().name.clone() });
        }
        Ok(Self::with_teacher(teacher, bundle, counter, config))
    }

    /// The same with a teacher that is loaded already.
    pub fn with_teacher(teacher: Teacher, bundle: &Bundle, counter: u64, config: &TeacherConfig) -> Self {
        let hash = bundle.sha256().iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte));
        Self { plans: reductions(plan(teacher.manifest(), config)), teacher, counter, hash }
    }

    /// The teacher itself.
    pub fn teacher(&self) -> &Teacher {
        &self.teacher
    }

    /// Counter of its release.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// First 8 bytes of the SHA-256 of its manifest.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The views of each step from all of them to one.
    pub fn views(&self) -> Vec<usize> {
        self.plans.iter().map(|plan| plan.views.len()).collect()
    }

    /// Labels a frame by all views less `reduction` steps.
    ///
    /// # Errors
    /// See [`RuntimeError`]; a model that gives numbers that are none counts as failed, too.
    pub fn annotate(&self, frame: &Frame, reduction: usize) -> Result<Label, AnnotateError> {
        let detections = self.teacher.detect(frame, &self.plans[reduction.min(self.plans.len() - 1)])?;
        if !detections.iter().all(is_finite) {
            return Err(AnnotateError::NotFinite);
        }
        Ok(Label::from_detections(frame.size, &detections, self.teacher.manifest().thresholds))
    }
}

fn is_finite(detection: &Detection) -> bool {
    let rect = detection.rect;
    let points = detection.keypoints.iter().flat_map(|k| [k.point.x, k.point.y, k.probability]);
    [rect.x1, rect.y1, rect.x2, rect.y2, detection.score].into_iter().chain(points).all(f32::is_finite)
}

/// Why a frame got no label.
#[derive(Debug, thiserror::Error)]
pub enum AnnotateError {
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A coordinate or score is not a finite number.
    #[error("the model gives numbers that are not finite")]
    NotFinite,
}
