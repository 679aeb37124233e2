//! One-stage models: the whole frame under every view, people matched across the views.

use crate::pass::finite;
use crate::pose::merge::{merge, pooled};
use crate::pose::{PoseGraph, refuse};
use crate::rcnn::pixels;
use crate::workers::Workers;
use crate::{RuntimeError, ViewPlan};
use omnilabel_bundle::{InputSpec, Letterbox, OneStageSpec, POSE_GRAPH, PoseOutput, PoseSpec};
use omnilabel_detect::frame::Frame;
use omnilabel_detect::pose::{Candidate, Placement, candidates};
use omnilabel_keypoints::label::Detection;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;

/// A one-stage pose model.
pub(crate) struct OneStage {
    pub(crate) graph: Box<dyn PoseGraph>,
    pub(crate) pose: PoseSpec,
    pub(crate) input: InputSpec,
    pub(crate) skeleton: Skeleton,
    pub(crate) workers: Workers,
}

/// The largest side of a view's input, px.
const MAX_INPUT_SIDE: u32 = 8192;

impl OneStage {
    /// People with their keypoints, in frame pixels, by falling score.
    pub(crate) fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let spec = self.spec()?;
        let base = plan.base();
        let mut views = plan.views.clone();
        // The base view finds people, whether or not it is one of those that are averaged; with box voting all do.
        let known = plan.views.iter().position(|&view| view == base);
        if known.is_none() && !plan.box_voting {
            views.push(base);
        }
        let found: Vec<Vec<Candidate>> =
            self.workers.each(&views, pixels, |&view| self.view(frame, view, spec)).into_iter().collect::<Result<_, _>>()?;
        let averaged = &found[..plan.views.len()];
        let mut people = if plan.box_voting { pooled(averaged, spec) } else { found[known.unwrap_or(plan.views.len())].clone() };
        people.retain(|person| person.score >= plan.score_floor);
        Ok(merge(&people, averaged, &self.skeleton))
    }

    pub(crate) fn score_threshold(&self) -> f32 {
        self.spec().map_or(0.0, |spec| spec.score_threshold)
    }

    pub(crate) fn frame_px_per_input_px(&self, frame: &Frame) -> f32 {
        let size = (self.pose.height, self.pose.width);
        Placement::new(frame.size, size, size, Letterbox::Centre, false).frame_px_per_input_px()
    }

    fn spec(&self) -> Result<&OneStageSpec, RuntimeError> {
        match &self.pose.output {
            PoseOutput::OneStage(spec) => Ok(spec),
            PoseOutput::Heatmap(_) | PoseOutput::Simcc(_) => Err(refuse("a top-down model sees people, not frames".to_owned())),
        }
    }

    /// What one view sees.
    fn view(&self, frame: &Frame, view: View, spec: &OneStageSpec) -> Result<Vec<Candidate>, RuntimeError> {
        let InputSize { picture, whole: (rows, columns) } = self.input_size(view)?;
        let placement = Placement::new(frame.size, picture, (rows, columns), spec.letterbox, view.flip);
        let input = placement.input(frame, &self.input, spec.fill);
        let outputs = self.graph.run(&input, rows as usize, columns as usize)?;
        let [output] = &outputs[..] else {
            return Err(refuse(format!("{} outputs, expected one", outputs.len())));
        };
        let channels = spec.channels(self.skeleton.len());
        let (count, transposed) = match output.shape[..] {
            [1, c, n] if c == channels => (n, false),
            [1, n, c] if c == channels => (n, true),
            _ => return Err(refuse(self.unexpected(&output.shape, spec))),
        };
        if output.values.len() != channels * count {
            return Err(refuse(format!("{} values in an output of {:?}", output.values.len(), output.shape)));
        }
        finite(POSE_GRAPH, &spec.output, &output.values)?;
        Ok(candidates(spec, &self.skeleton, &output.values, count, transposed, &placement, view.flip))
    }

    fn unexpected(&self, shape: &[usize], spec: &OneStageSpec) -> String {
        let (k, channels) = (self.skeleton.len(), spec.channels(self.skeleton.len()));
        let objectness = if spec.objectness { " + 1 objectness" } else { "" };
        format!(
            "the output is {shape:?}, expected [1, {channels}, candidates] or [1, candidates, {channels}]: 4 of a box{objectness} + {} \
             class scores + 3 for each of {k} keypoints",
            spec.classes
        )
    }

    fn input_size(&self, view: View) -> Result<InputSize, RuntimeError> {
        let (base, short_side) = (self.input.short_side, view.short_side);
        let side = |side: u32| {
            let side = u64::from(side) * u64::from(short_side) / u64::from(base.max(1));
            side.clamp(1, u64::from(u32::MAX)) as u32
        };
        let picture = (side(self.pose.height), side(self.pose.width));
        if self.graph.is_dynamic() {
            let padded = |side: u32| side.checked_next_multiple_of(self.input.size_divisor).filter(|&side| side <= MAX_INPUT_SIDE);
            let whole = padded(picture.0).zip(padded(picture.1)).ok_or_else(|| {
                RuntimeError::Request(format!("a view of short side {short_side} px: its input would be over {MAX_INPUT_SIDE} px long"))
            })?;
            return Ok(InputSize { picture, whole });
        }
        if short_side > base {
            return Err(RuntimeError::Request(format!(
                "a view of short side {short_side} px does not fit into the input of {POSE_GRAPH}, which is fixed at {} x {} px (height \
                 x width): use scales up to {base}, or export the model with a dynamic input",
                self.pose.height, self.pose.width
            )));
        }
        Ok(InputSize { picture, whole: (self.pose.height, self.pose.width) })
    }
}

/// Heights and widths of a view.
struct InputSize {
    /// What the picture may fill.
    picture: (u32, u32),
    /// The network's input.
    whole: (u32, u32),
}
