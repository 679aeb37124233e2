//! Makes a bundle of a user's own ONNX pose model, and tries it on a picture.

mod drawn;
mod files;
mod outputs;

pub use drawn::drawn_person;

use crate::pose::{GraphInfo, TractPose, inspect};
use crate::tract::Engine;
use crate::{NewGolden, RuntimeError, Teacher, check_golden, golden_detections, write_golden_in};
use omnilabel_bundle::*;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Why a model was not wrapped.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The model does not fit what was said about it; names what was expected and what came.
    #[error("{}: {message}", onnx.display())]
    Unsuitable {
        /// The ONNX file.
        onnx: PathBuf,
        /// What does not fit.
        message: String,
    },
    /// A bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The model failed on the picture.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// What is wrapped, and how.
#[derive(Clone, Debug)]
pub struct WrapRequest {
    /// The ONNX file. Weights beside it come along.
    pub onnx: PathBuf,
    /// The bundle's folder; it must not exist, or be empty.
    pub out: PathBuf,
    /// Name for people.
    pub name: String,
    /// The keypoints, in the order of the model's outputs.
    pub skeleton: Skeleton,
    /// Rows and columns of the input; those that the file fixes when not given.
    pub input: Option<(u32, u32)>,
    /// Per channel in the order of `channels`, of pixels in `[0, 1]`.
    pub mean: [f32; 3],
    /// Per channel.
    pub std: [f32; 3],
    /// Order of the channels.
    pub channels: Channels,
    /// What comes out.
    pub kind: WrapKind,
    /// τ, τ_k and the floor.
    pub thresholds: Thresholds,
    /// The bundle that finds people for a top-down model, to lie inside.
    pub detector: Option<PathBuf>,
    /// What the model is tried on; becomes the golden frame.
    pub frame: Frame,
    /// Boxes to try a top-down model in, which then has no detector; the whole frame when not given.
    pub boxes: Option<Vec<(Rect, f32)>>,
}

/// The kinds of models, with what the file cannot say.
#[derive(Clone, Debug)]
pub enum WrapKind {
    /// A map per keypoint.
    Heatmap {
        /// The output, where there are several.
        output: Option<String>,
        /// How a person is cut out.
        crop: CropSpec,
        /// What the values are.
        values: Values,
        /// How peaks are refined.
        refine: Refine,
        /// See [`HeatmapSpec::shift_flipped`].
        shift_flipped: bool,
    },
    /// Rows of bins along x and y.
    Simcc {
        /// The outputs along x and y, where they cannot be told by their sizes.
        outputs: Option<(String, String)>,
        /// How a person is cut out.
        crop: CropSpec,
        /// What the values are.
        values: Values,
    },
    /// Everybody at once; `output` may be empty where there is only one.
    OneStage {
        /// What is known.
        spec: OneStageSpec,
        /// What sides of a dynamic input are multiples of.
        stride: u32,
    },
}

impl WrapKind {
    const fn name(&self) -> &'static str {
        match self {
            Self::Heatmap { .. } => "heatmap",
            Self::Simcc { .. } => "simcc",
            Self::OneStage { .. } => "one-stage",
        }
    }
}

/// A wrapped model.
#[derive(Clone, Debug)]
pub struct Wrapped {
    /// The sealed bundle.
    pub bundle: Bundle,
    /// What the file says.
    pub graph: GraphInfo,
    /// The outputs that are read, with their shapes at the base scale.
    pub outputs: Vec<(String, Vec<usize>)>,
    /// Whether other input sizes than the base are possible.
    pub dynamic: bool,
    /// Whether it needs no boxes: it is a one-stage model, or has its detector inside.
    pub finds_people: bool,
    /// What it found on the picture, or in the boxes.
    pub detections: Vec<Detection>,
    /// What looks wrong without being impossible.
    pub warnings: Vec<String>,
}

/// The golden frame's name.
const CHECK: &str = "check";
/// Confidences of Gaussian targets rarely exceed this; logits do.
const HIGH_PEAK: f32 = 2.0;

/// Writes the bundle of `request`. Nothing is left in [`WrapRequest::out`] unless everything fits.
///
/// # Errors
/// See [`WrapError`].
pub fn wrap(request: &WrapRequest) -> Result<Wrapped, WrapError> {
    let (bundle, wrapped) = build(&request.out, |part| write(request, part))?;
    Ok(Wrapped { bundle, ..wrapped })
}

fn write(request: &WrapRequest, root: &Path) -> Result<Wrapped, WrapError> {
    let unsuitable = |message: String| WrapError::Unsuitable { onnx: request.onnx.clone(), message };
    let fits = |error: RuntimeError| match error {
        RuntimeError::Graph { message, .. } => unsuitable(message),
        other => other.into(),
    };
    File::open(&request.onnx).map_err(|source| WrapError::Io { path: request.onnx.clone(), source })?;
    let graph = inspect(&request.onnx).map_err(fits)?;
    let (height, width) = outputs::input_size(&graph, request.input).map_err(unsuitable)?;
    let mut pose = PoseSpec { height, width, output: outputs::guess(request, &graph, (height, width)).map_err(unsuitable)? };
    let mut manifest = manifest(request, pose.clone(), 1);
    // The files come later: what was said is checked before anything is run.
    pose.check(&manifest.input).map_err(unsuitable)?;
    let bytes = files::copy_model(&request.onnx, root)?;

    let loaded = TractPose::load(&root.join(POSE_GRAPH), bytes, &pose, Engine::new(1)?).map_err(fits)?;
    let shapes = outputs::probe(&loaded, &mut pose, request).map_err(fits)?;
    let names = pose.output.names();
    let dynamic = crate::PoseGraph::is_dynamic(&loaded);
    drop(loaded);
    let divisor = match request.kind {
        WrapKind::OneStage { stride, .. } if dynamic => stride,
        _ => 1,
    };
    manifest = self::manifest(request, pose.clone(), divisor);
    pose.check(&manifest.input).map_err(unsuitable)?;
    if let Some(detector) = &request.detector {
        files::copy_detector(&Bundle::open(detector)?, root)?;
    }
    seal(root, manifest)?;

    let whole = [(Rect::new(0.0, 0.0, request.frame.size.width as f32, request.frame.size.height as f32), 1.0)];
    let without_detector = pose.output.crop().is_some() && request.detector.is_none();
    if request.boxes.is_some() && !without_detector {
        return Err(unsuitable("a model that finds people by itself, or by its detector, takes no boxes".to_owned()));
    }
    let boxes = without_detector.then(|| request.boxes.as_deref().unwrap_or(&whole));
    let bundle = write_golden_in(root, &[NewGolden { name: CHECK, frame: &request.frame, boxes }]).map_err(fits)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let teacher = Teacher::load(&bundle, threads).map_err(fits)?;
    if let Err(mismatch) = check_golden(&bundle, &teacher)? {
        return Err(unsuitable(format!("it does not give the same twice: {mismatch}")));
    }
    let detections = match bundle.manifest().golden.first() {
        Some(golden) => golden_detections(&bundle, golden)?,
        None => Vec::new(),
    };
    let warnings = warnings(&pose, &detections, without_detector);
    Ok(Wrapped {
        bundle,
        graph,
        outputs: names.into_iter().zip(shapes).collect(),
        dynamic,
        finds_people: !without_detector,
        detections,
        warnings,
    })
}

fn manifest(request: &WrapRequest, pose: PoseSpec, size_divisor: u32) -> Manifest {
    let (height, width) = (pose.height, pose.width);
    Manifest {
        format: FORMAT,
        name: request.name.clone(),
        architecture: format!("onnx-{}", request.kind.name()),
        skeleton: SkeletonSpec::from(&request.skeleton),
        input: InputSpec {
            short_side: height.min(width),
            max_long_side: height.max(width),
            size_divisor,
            mean: request.mean,
            std: request.std,
            channels: request.channels,
        },
        network: pose.into(),
        thresholds: request.thresholds,
        parent: None,
        dataset_sha256: None,
        ap: None,
        files: BTreeMap::new(),
        golden: Vec::new(),
    }
}

fn warnings(pose: &PoseSpec, detections: &[Detection], without_detector: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let values = match &pose.output {
        PoseOutput::Heatmap(spec) => Some(spec.values),
        PoseOutput::Simcc(spec) => Some(spec.values),
        PoseOutput::OneStage(_) => None,
    };
    let peaks = detections.iter().flat_map(|detection| detection.keypoints.iter().map(|keypoint| keypoint.peak_logit));
    let highest = peaks.fold(f32::NEG_INFINITY, f32::max);
    if values == Some(Values::Peak) && highest > HIGH_PEAK {
        warnings.push(format!(
            "peaks reach {highest}, and probabilities are cut off at 1: if these are logits, say --values sigmoid or --values softmax"
        ));
    }
    if values.is_none() && detections.is_empty() {
        warnings.push("nobody was found on the picture: give one with people by --image to see more of it".to_owned());
    }
    if without_detector {
        warnings.push("it finds nobody by itself: give --detector BUNDLE here, or --detector or --boxes where it is used".to_owned());
    }
    warnings
}
