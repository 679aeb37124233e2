//! Top-down models: each person is cut out, run under every view, and the maps are averaged on the base crop's grid.

use crate::pass::finite;
use crate::pose::{PoseGraph, PoseTensor, refuse};
use crate::workers::Workers;
use crate::{RuntimeError, ViewPlan};
use omnilabel_bundle::{CropSpec, InputSpec, POSE_GRAPH, PoseOutput, PoseSpec, Refine};
use omnilabel_detect::frame::Frame;
use omnilabel_detect::pose::{Axis, Crop, Evidence, Peak, Sum};
use omnilabel_keypoints::ensemble::agreement;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::skeleton::Skeleton;

/// A top-down pose model.
pub(crate) struct TopDown {
    pub(crate) graph: Box<dyn PoseGraph>,
    pub(crate) pose: PoseSpec,
    pub(crate) input: InputSpec,
    pub(crate) skeleton: Skeleton,
    pub(crate) workers: Workers,
}

/// What the outputs are: one map per keypoint, or a row and a column.
enum Reading<'s> {
    Map(Evidence<'s>),
    Rows { x: Evidence<'s>, y: Evidence<'s> },
}

impl TopDown {
    /// One detection per box (frame pixels, with an area), in their order.
    pub(crate) fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.workers.each(boxes, |_| 1, |&(rect, score)| self.person(frame, rect, score, plan)).into_iter().collect()
    }

    /// Frame pixels per input pixel, or per cell of a map, where that is larger, for a person in `rect`.
    pub(crate) fn grain_px(&self, rect: Rect) -> f32 {
        let Some(crop) = self.crop(rect, 1.0) else { return 1.0 };
        let cell = match &self.pose.output {
            PoseOutput::Heatmap(spec) => {
                (self.pose.width as f32 / spec.columns as f32).max(self.pose.height as f32 / spec.rows as f32).max(1.0)
            }
            PoseOutput::Simcc(_) | PoseOutput::OneStage(_) => 1.0,
        };
        crop.frame_px_per_input_px() * cell
    }

    fn crop(&self, rect: Rect, zoom: f64) -> Option<Crop> {
        (rect.area() > 0.0).then(|| self.pose.output.crop().map(|spec| Crop::new(rect, spec, &self.pose, zoom)))?
    }

    fn person(&self, frame: &Frame, rect: Rect, score: f32, plan: &ViewPlan) -> Result<Detection, RuntimeError> {
        let reading = self.reading()?;
        let mut all = reading.empty();
        let mut each = Vec::new();
        let Some(base) = self.crop(rect, 1.0) else { return Err(RuntimeError::Request(format!("a box without an area: {rect:?}"))) };
        for view in &plan.views {
            let zoom = f64::from(view.short_side) / f64::from(self.input.short_side);
            let Some(crop) = self.crop(rect, zoom) else { continue };
            let input = crop.input(frame, &self.input, view.flip);
            let outputs = self.graph.run(&input, self.pose.height as usize, self.pose.width as usize)?;
            reading.check(&outputs)?;
            reading.add(&mut all, &outputs, view.flip, zoom, plan);
            if plan.views.len() > 1 {
                let mut own = reading.empty();
                reading.add(&mut own, &outputs, view.flip, zoom, plan);
                each.push(reading.points(own, &base, plan));
            }
        }
        let mut detection = Detection { rect, score, ..Detection::default() };
        for (k, (point, peak)) in reading.points(all, &base, plan).into_iter().enumerate() {
            let own: Vec<Point> = each.iter().filter_map(|points| points.get(k).map(|(point, _)| *point)).collect();
            let agreement = agreement(&own, point, self.skeleton.sigmas()[k], rect.area());
            let keypoint = Keypoint { point, peak_logit: peak.value, probability: peak.probability, agreement };
            // A skeleton has at most as many keypoints as the list holds.
            if detection.keypoints.push(keypoint).is_err() {
                break;
            }
        }
        Ok(detection)
    }

    fn reading(&self) -> Result<Reading<'_>, RuntimeError> {
        let evidence = |rows: Axis, columns: Axis, values, refine, shift_flipped, crop: CropSpec| Evidence {
            rows,
            columns,
            values,
            refine,
            udp: crop.udp,
            shift_flipped,
            skeleton: &self.skeleton,
        };
        match &self.pose.output {
            PoseOutput::Heatmap(spec) => {
                let axis = |cells: u32| Axis { cells: cells as usize, units: Crop::units(spec.crop.udp, cells as usize) };
                let (rows, columns) = (axis(spec.rows), axis(spec.columns));
                Ok(Reading::Map(evidence(rows, columns, spec.values, spec.refine, spec.shift_flipped, spec.crop)))
            }
            PoseOutput::Simcc(spec) => {
                let axis = |pixels: u32| Axis {
                    cells: spec.bins(pixels),
                    units: Crop::units(spec.crop.udp, pixels as usize) * f64::from(spec.split_ratio),
                };
                let one = |rows, columns| evidence(rows, columns, spec.values, Refine::None, false, spec.crop);
                Ok(Reading::Rows { x: one(Axis::NONE, axis(self.pose.width)), y: one(axis(self.pose.height), Axis::NONE) })
            }
            PoseOutput::OneStage(_) => Err(refuse("a one-stage model takes no boxes".to_owned())),
        }
    }
}

impl Reading<'_> {
    fn empty(&self) -> Vec<Sum> {
        match self {
            Self::Map(map) => vec![map.empty()],
            Self::Rows { x, y } => vec![x.empty(), y.empty()],
        }
    }

    /// Whether the outputs are of the shape that the manifest says.
    fn check(&self, outputs: &[PoseTensor]) -> Result<(), RuntimeError> {
        let expected = match self {
            Self::Map(map) => vec![("heatmaps", vec![1, map.skeleton.len(), map.rows.cells, map.columns.cells])],
            Self::Rows { x, y } => {
                vec![("x", vec![1, x.skeleton.len(), x.columns.cells]), ("y", vec![1, y.skeleton.len(), y.rows.cells])]
            }
        };
        if outputs.len() != expected.len() {
            return Err(refuse(format!("{} outputs, expected {}", outputs.len(), expected.len())));
        }
        for (output, (what, shape)) in outputs.iter().zip(expected) {
            if output.shape != shape || output.values.len() != shape.iter().product::<usize>() {
                return Err(refuse(format!(
                    "the {what} output is {:?}, expected {shape:?} ({} keypoints of the skeleton second)",
                    output.shape, shape[1]
                )));
            }
            finite(POSE_GRAPH, what, &output.values)?;
        }
        Ok(())
    }

    fn add(&self, sums: &mut [Sum], outputs: &[PoseTensor], flip: bool, zoom: f64, plan: &ViewPlan) {
        let parts: &[&Evidence<'_>] = match self {
            Self::Map(map) => &[map],
            Self::Rows { x, y } => &[x, y],
        };
        for ((part, sum), output) in parts.iter().zip(sums).zip(outputs) {
            part.add(sum, &output.values, flip, zoom, plan.average);
        }
    }

    /// Each keypoint in the frame, with its peak.
    fn points(&self, sums: Vec<Sum>, base: &Crop, plan: &ViewPlan) -> Vec<(Point, Peak)> {
        let mut sums = sums.into_iter();
        match (self, sums.next(), sums.next()) {
            (Self::Map(map), Some(sum), _) => {
                let place = |peak: Peak| (base.frame_from_share(map.columns.share(peak.x), map.rows.share(peak.y)), peak);
                map.peaks(sum, plan.average).into_iter().map(place).collect()
            }
            // The score of the lower of the two peaks (mmpose's `get_simcc_maximum`).
            (Self::Rows { x, y }, Some(along_x), Some(along_y)) => {
                let pairs = x.peaks(along_x, plan.average).into_iter().zip(y.peaks(along_y, plan.average));
                let place = |(a, b): (Peak, Peak)| {
                    let peak = Peak { x: a.x, y: b.y, value: a.value.min(b.value), probability: a.probability.min(b.probability) };
                    (base.frame_from_share(x.columns.share(peak.x), y.rows.share(peak.y)), peak)
                };
                pairs.map(place).collect()
            }
            _ => Vec::new(),
        }
    }
}
