//! A model that labels frames, of whichever kind its bundle holds.

use crate::committee::Committee;
use crate::device::{DeviceGraphs, DeviceModel, DeviceRcnn};
use crate::pose::{OneStage, PoseGraph, TopDown, TractPose};
use crate::rcnn::Rcnn;
use crate::tract::Engine;
use crate::workers::Workers;
use crate::{Graphs, RuntimeError, TractGraphs, ViewPlan};
use omnilabel_bundle::{Bundle, DETECTOR, Manifest, Network, POSE_GRAPH, PoseSpec};
use omnilabel_detect::frame::Frame;
use omnilabel_gpu::Device;
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::label::Detection;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::ViewGeometry;

/// A model that labels frames.
pub struct Teacher {
    model: Model,
    manifest: Manifest,
    skeleton: Skeleton,
}

enum Model {
    Rcnn(Rcnn),
    Committee(Committee),
    Device(Box<dyn DeviceModel>),
    OneStage(OneStage),
    TopDown { model: TopDown, detector: Option<Detector> },
}

/// What finds people for a top-down model.
struct Detector {
    teacher: Box<Teacher>,
    /// Whether it came in the model's own bundle.
    own: bool,
}

impl Teacher {
    /// Loads a bundle on tract with `threads` workers; a top-down model with the detector in its bundle, if there is one.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn load(bundle: &Bundle, threads: usize) -> Result<Self, RuntimeError> {
        Self::load_with(bundle, threads, |engine| Workers::new(engine.clone()))
    }

    /// The same without workers of its own: each of the caller's threads runs a frame from end to end.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn load_alone(bundle: &Bundle) -> Result<Self, RuntimeError> {
        Self::load_with(bundle, 1, |_| Workers::default())
    }

    fn load_with(
        bundle: &Bundle,
        threads: usize,
        workers: fn(&std::sync::Arc<rayon::ThreadPool>) -> Workers,
    ) -> Result<Self, RuntimeError> {
        let (manifest, skeleton) = (bundle.manifest().clone(), bundle.skeleton().clone());
        match &bundle.manifest().network {
            Network::Rcnn(_) => {
                let graphs = TractGraphs::load(bundle, threads)?;
                let workers = workers(graphs.pool());
                Self::rcnn(Box::new(graphs), workers, manifest, skeleton)
            }
            Network::Pose(pose) => {
                let engine = Engine::new(threads)?;
                let workers = workers(engine.pool());
                let own = |name: &&String| !name.strip_prefix(DETECTOR).is_some_and(|rest| rest.starts_with('/'));
                let bytes = bundle.manifest().files.iter().filter(|(name, _)| own(name)).map(|(_, file)| file.bytes).sum();
                let graph = TractPose::load(&bundle.path(POSE_GRAPH), bytes, pose, engine)?;
                let teacher = Self::pose(Box::new(graph), workers.clone(), pose.clone(), manifest, skeleton);
                match bundle.detector()? {
                    Some(detector) => {
                        let detector = if workers.is_none() { Self::load_alone(&detector)? } else { Self::load(&detector, threads)? };
                        teacher.detected_by(detector, true)
                    }
                    None => Ok(teacher),
                }
            }
        }
    }

    /// The keypoint R-CNN's pipeline on other graphs, one view after the other.
    ///
    /// # Errors
    /// When `manifest` is not of a keypoint R-CNN.
    pub fn with_graphs(graphs: Box<dyn Graphs>, manifest: Manifest, skeleton: Skeleton) -> Result<Self, RuntimeError> {
        Self::rcnn(graphs, Workers::default(), manifest, skeleton)
    }

    /// The keypoint R-CNN's pipeline on a device with its own memory, one frame after the other.
    ///
    /// # Errors
    /// When `manifest` is not of a keypoint R-CNN, or the device fails.
    pub fn on_device<D: Device + 'static>(
        device: D,
        graphs: impl DeviceGraphs<D> + 'static,
        manifest: Manifest,
        skeleton: Skeleton,
    ) -> Result<Self, RuntimeError> {
        let Some(network) = manifest.network.rcnn().cloned() else {
            return Err(RuntimeError::Request(format!("`{}` wraps a pose model, which runs on the CPU only", manifest.name)));
        };
        let model = DeviceRcnn::new(device, graphs, network, manifest.input.clone(), skeleton.clone())?;
        Ok(Self { model: Model::Device(Box::new(model)), manifest, skeleton })
    }

    /// Loads a keypoint R-CNN on the first NVIDIA GPU that the process sees (`CUDA_VISIBLE_DEVICES` chooses): tract-cuda knows no other.
    ///
    /// # Errors
    /// [`RuntimeError::Gpu`] without a driver, a library or a GPU, and in a program that was built without CUDA; else see
    /// [`RuntimeError`].
    pub fn load_cuda(bundle: &Bundle) -> Result<Self, RuntimeError> {
        #[cfg(feature = "_cuda")]
        {
            let model = crate::device::cuda::load(bundle)?;
            Ok(Self { model: Model::Device(model), manifest: bundle.manifest().clone(), skeleton: bundle.skeleton().clone() })
        }
        #[cfg(not(feature = "_cuda"))]
        {
            let hint = "build it with the feature `cuda` (CUDA 13) or `cuda-12060` (JetPack 6)".to_owned();
            let _ = bundle;
            Err(omnilabel_gpu::GpuError::Missing { what: "CUDA in this program", hint }.into())
        }
    }

    /// A wrapped pose model's pipeline on another graph, one person after the other.
    ///
    /// # Errors
    /// When `manifest` is not of a wrapped pose model.
    pub fn with_pose_graph(graph: Box<dyn PoseGraph>, manifest: Manifest, skeleton: Skeleton) -> Result<Self, RuntimeError> {
        match manifest.network.pose().cloned() {
            Some(pose) => Ok(Self::pose(graph, Workers::default(), pose, manifest, skeleton)),
            None => Err(RuntimeError::Request(format!("`{}` is a keypoint R-CNN, expected a wrapped pose model", manifest.name))),
        }
    }

    fn rcnn(graphs: Box<dyn Graphs>, workers: Workers, manifest: Manifest, skeleton: Skeleton) -> Result<Self, RuntimeError> {
        let Some(network) = manifest.network.rcnn().cloned() else {
            return Err(RuntimeError::Request(format!("`{}` wraps a pose model, expected a keypoint R-CNN", manifest.name)));
        };
        let (input, points) = (manifest.input.clone(), skeleton.clone());
        Ok(Self { model: Model::Rcnn(Rcnn { graphs, network, input, skeleton: points, workers }), manifest, skeleton })
    }

    /// Keypoint R-CNNs on the CPU that label together, by the manifest of the first: boxes of all are pooled and vote, maps of all averaged.
    ///
    /// # Errors
    /// Nobody, a model of another kind, other keypoints, another size of heatmaps or input than the first's.
    pub fn committee(members: Vec<Self>) -> Result<Self, RuntimeError> {
        let rcnn = |member: Self| match member.model {
            Model::Rcnn(rcnn) => Ok(rcnn),
            _ => {
                Err(RuntimeError::Request(format!("`{}` is no keypoint R-CNN on the CPU, expected members that are", member.manifest.name)))
            }
        };
        let mut members = members.into_iter();
        let Some(first) = members.next() else { return Err(RuntimeError::Request("a committee without members".to_owned())) };
        let (manifest, skeleton) = (first.manifest.clone(), first.skeleton.clone());
        let committee = Committee::new(rcnn(first)?, members.map(rcnn).collect::<Result<_, _>>()?)?;
        Ok(Self { model: Model::Committee(committee), manifest, skeleton })
    }

    fn pose(graph: Box<dyn PoseGraph>, workers: Workers, pose: PoseSpec, manifest: Manifest, skeleton: Skeleton) -> Self {
        let (input, points) = (manifest.input.clone(), skeleton.clone());
        let model = if pose.output.crop().is_some() {
            Model::TopDown { model: TopDown { graph, pose, input, skeleton: points, workers }, detector: None }
        } else {
            Model::OneStage(OneStage { graph, pose, input, skeleton: points, workers })
        };
        Self { model, manifest, skeleton }
    }

    /// Lets `detector` find the people whom this top-down model labels, whatever its bundle holds.
    ///
    /// # Errors
    /// When this model finds people itself, or the detector does not.
    pub fn with_detector(self, detector: Teacher) -> Result<Self, RuntimeError> {
        self.detected_by(detector, false)
    }

    fn detected_by(mut self, detector: Teacher, own: bool) -> Result<Self, RuntimeError> {
        if !detector.finds_people() {
            let name = &detector.manifest.name;
            return Err(RuntimeError::Request(format!("the detector `{name}` is a top-down pose model, which needs boxes itself")));
        }
        match &mut self.model {
            Model::TopDown { detector: place, .. } => *place = Some(Detector { teacher: Box::new(detector), own }),
            Model::Rcnn(_) | Model::Committee(_) | Model::Device(_) | Model::OneStage(_) => {
                let name = &self.manifest.name;
                return Err(RuntimeError::Request(format!("`{name}` finds people by itself and takes no detector")));
            }
        }
        Ok(self)
    }

    /// The model's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's skeleton.
    pub fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    /// Whether it can do without given boxes: only a top-down model without a detector cannot.
    pub fn finds_people(&self) -> bool {
        !matches!(self.model, Model::TopDown { detector: None, .. })
    }

    /// Whether people are found by this bundle alone.
    pub(crate) fn is_self_contained(&self) -> bool {
        !matches!(self.model, Model::TopDown { detector: None | Some(Detector { own: false, .. }), .. })
    }

    /// People in `frame` with their ensembled keypoints, in frame pixels, by falling score.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        check(frame, plan)?;
        match &self.model {
            Model::Rcnn(rcnn) => rcnn.detect(frame, plan),
            Model::Committee(committee) => committee.detect(frame, plan),
            Model::Device(rcnn) => rcnn.detect(frame, plan),
            Model::OneStage(model) => model.detect(frame, plan),
            Model::TopDown { model, .. } => model.detect_in(frame, &self.boxes(frame, plan)?, plan),
        }
    }

    /// People in `frame` without their keypoints: boxes in frame pixels with scores, by falling score.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        check(frame, plan)?;
        match &self.model {
            Model::Rcnn(rcnn) => rcnn.boxes(frame, plan),
            Model::Committee(committee) => committee.boxes(frame, plan),
            Model::Device(rcnn) => rcnn.boxes(frame, plan),
            Model::OneStage(model) => Ok(model.detect(frame, plan)?.into_iter().map(|found| (found.rect, found.score)).collect()),
            Model::TopDown { detector: Some(detector), .. } => {
                let (from, to) = (self.manifest.input.short_side, detector.teacher.manifest.input.short_side);
                let mut boxes = detector.teacher.boxes(frame, &plan.scaled(from, to))?;
                // Of a person at the very edge, clipping may leave nothing.
                boxes.retain(|(rect, _)| rect.area() > 0.0);
                Ok(boxes)
            }
            Model::TopDown { detector: None, .. } => Err(RuntimeError::NeedsBoxes { model: self.manifest.name.clone() }),
        }
    }

    /// The same as [`Self::detect`] with the boxes given (frame pixels, with scores) instead of found: one detection per box, in the
    /// order of `boxes`, none left out.
    ///
    /// # Errors
    /// See [`RuntimeError`]; [`RuntimeError::Request`] names a box without an area, or that reaches out of the frame by more than the
    /// frame's own side, or a one-stage model, which takes none.
    pub fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        check_boxes(frame, boxes, plan)?;
        match &self.model {
            Model::Rcnn(rcnn) => rcnn.detect_in(frame, boxes, plan),
            Model::Committee(committee) => committee.detect_in(frame, boxes, plan),
            Model::Device(rcnn) => rcnn.detect_in(frame, boxes, plan),
            Model::TopDown { model, .. } => model.detect_in(frame, boxes, plan),
            Model::OneStage(_) => {
                let name = &self.manifest.name;
                Err(RuntimeError::Request(format!("`{name}` is a one-stage pose model: it finds people by itself and takes no boxes")))
            }
        }
    }

    /// The heatmaps of given people (frame pixels, with scores), averaged over the views, as probabilities on the cells of their boxes: soft
    /// labels, `[k, side, side]` for each box. A keypoint R-CNN's on the CPU, or a committee's.
    ///
    /// # Errors
    /// As [`Self::detect_in`]; [`RuntimeError::Request`] of any other model.
    pub fn soft_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Vec<f32>>, RuntimeError> {
        check_boxes(frame, boxes, plan)?;
        match &self.model {
            Model::Rcnn(rcnn) => rcnn.soft_in(frame, boxes, plan),
            Model::Committee(committee) => committee.soft_in(frame, boxes, plan),
            Model::Device(_) | Model::OneStage(_) | Model::TopDown { .. } => {
                let name = &self.manifest.name;
                Err(RuntimeError::Request(format!("soft labels need a keypoint R-CNN on the CPU, `{name}` is another model")))
            }
        }
    }

    /// How far a point of `detection` may move where another CPU rounds otherwise, as a multiple of this: frame pixels per pixel of the
    /// network's input at the base scale, or per cell of the map where peaks are not searched between cells.
    pub(crate) fn grain_px(&self, frame: &Frame, detection: &Detection) -> f32 {
        let base = ViewPlan::single(&self.manifest).base();
        match &self.model {
            Model::Rcnn(_) | Model::Committee(_) | Model::Device(_) => {
                let net = ViewGeometry::new(frame.size, base, self.manifest.input.max_long_side).net();
                // Frame pixels per net pixel.
                (frame.size.width as f32 / net.width as f32).max(frame.size.height as f32 / net.height as f32).max(1.0)
            }
            Model::OneStage(model) => model.frame_px_per_input_px(frame).max(1.0),
            Model::TopDown { model, detector } => {
                let own = model.grain_px(detection.rect).max(1.0);
                detector.as_ref().map_or(own, |detector| own.max(detector.teacher.grain_px(frame, detection)))
            }
        }
    }

    /// The score that a detection needs.
    pub(crate) fn score_threshold(&self) -> f32 {
        match &self.model {
            Model::Rcnn(rcnn) => rcnn.network.score_threshold,
            Model::Committee(committee) => committee.first().network.score_threshold,
            Model::Device(rcnn) => rcnn.network().score_threshold,
            Model::OneStage(model) => model.score_threshold(),
            Model::TopDown { detector, .. } => detector.as_ref().map_or(0.0, |detector| detector.teacher.score_threshold()),
        }
    }
}

fn check_boxes(frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<(), RuntimeError> {
    check(frame, plan)?;
    let bad = |(rect, score): &(Rect, f32)| !(rect.is_valid() && rect.area() > 0.0 && is_near(*rect, frame.size) && score.is_finite());
    match boxes.iter().position(bad) {
        Some(i) => {
            let expected = "a box with an area near the frame, and a score";
            Err(RuntimeError::Request(format!("box {i}: expected {expected}, found {:?}", boxes[i])))
        }
        None => Ok(()),
    }
}

fn check(frame: &Frame, plan: &ViewPlan) -> Result<(), RuntimeError> {
    let Size { width, height } = frame.size;
    if width == 0 || height == 0 || frame.rgb.len() as u64 != 3 * u64::from(width) * u64::from(height) {
        return Err(RuntimeError::Request(format!("a frame of {width} x {height} px with {} bytes", frame.rgb.len())));
    }
    if plan.views.is_empty() {
        return Err(RuntimeError::Request("a plan without a view".to_owned()));
    }
    if plan.base_short_side == 0 || plan.views.iter().any(|view| view.short_side == 0) {
        return Err(RuntimeError::Request("a view whose short side is 0 px".to_owned()));
    }
    Ok(())
}

/// Whether a box lies near enough to a frame to be labelled in: it reaches out by at most the frame's own side.
pub fn is_near(rect: Rect, size: Size) -> bool {
    let (w, h) = (size.width as f32, size.height as f32);
    rect.x1 >= -w && rect.x2 <= 2.0 * w && rect.y1 >= -h && rect.y2 <= 2.0 * h
}
