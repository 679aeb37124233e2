//! Multi-transform inference with keypoint R-CNN (spec §3) on a device: the steps of `crate::rcnn` and `crate::pass` as kernels.

use super::{BackboneOn, DeviceGraphs};
use crate::pass::expect;
use crate::plan::VOTING_IOU;
use crate::rcnn::{KEPT_FEATURES, POOLED_ROIS};
use crate::{RuntimeError, ViewPlan};
use omnilabel_bundle::{GRAPHS, InputSpec, NetworkSpec, RoiSpec};
use omnilabel_detect::frame::{Frame, padded};
use omnilabel_detect::nms::vote;
use omnilabel_detect::proposals::suppress;
use omnilabel_gpu::ops::{self, Checks, Features, FrameOn, Level, Maps, Mirror};
use omnilabel_gpu::{Array, Device};
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::{View, ViewGeometry};

/// A keypoint R-CNN, wherever it runs. All boxes are in frame pixels, by falling score.
pub(crate) trait DeviceModel: Send + Sync {
    fn network(&self) -> &NetworkSpec;
    fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError>;
    fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError>;
    fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError>;
}

/// A keypoint R-CNN on a device.
pub(crate) struct DeviceRcnn<D: Device, G> {
    device: D,
    graphs: G,
    network: NetworkSpec,
    input: InputSpec,
    skeleton: Skeleton,
    mirror: Mirror<D>,
    sigmas: Array<D, f32>,
}

/// Pooled RoIs that wait for the keypoint head: those of boxes `start..start + count` in a view, from `filled` on in the batch.
struct Waiting {
    /// Index in the plan.
    view: usize,
    flip: bool,
    start: usize,
    count: usize,
    filled: usize,
}

/// The feature maps of one view.
struct Pyramid<D: Device> {
    view: View,
    geometry: ViewGeometry,
    features: Features<D>,
}

/// The backbone's outputs of one view.
struct Pass<D: Device> {
    pyramid: Pyramid<D>,
    objectness: Vec<(Array<D, f32>, usize, usize)>,
    deltas: Vec<Array<D, f32>>,
}

/// People in the base view's net pixels, by falling score, and the pyramids at hand.
type Found<D> = (Vec<(Rect, f32)>, Vec<Pyramid<D>>);

/// What kernels read as boxes: x1, y1, x2, y2 each.
fn flat(rects: impl IntoIterator<Item = Rect>) -> Vec<f32> {
    rects.into_iter().flat_map(|r| [r.x1, r.y1, r.x2, r.y2]).collect()
}

impl<D: Device, G: DeviceGraphs<D>> DeviceRcnn<D, G> {
    pub(crate) fn new(device: D, graphs: G, network: NetworkSpec, input: InputSpec, skeleton: Skeleton) -> Result<Self, RuntimeError> {
        ops::fits(&network)?;
        let (mirror, sigmas) = (Mirror::new(&device, &skeleton)?, Array::from_slice(&device, skeleton.sigmas())?);
        Ok(Self { device, graphs, network, input, skeleton, mirror, sigmas })
    }

    fn geometry(&self, frame: &Frame, view: View) -> ViewGeometry {
        ViewGeometry::new(frame.size, view, self.input.max_long_side)
    }

    /// Room for the checks of `passes` passes and of `heads` runs of a head.
    fn checks(&self, passes: usize, heads: usize) -> Result<Checks<D>, RuntimeError> {
        Ok(Checks::new(&self.device, passes * 2 * self.network.levels.len() + heads)?)
    }

    /// Whether the features are those that the manifest names.
    fn check_features(&self, features: &Features<D>) -> Result<(), RuntimeError> {
        let roi_levels = self.network.roi_levels as usize;
        expect(GRAPHS[0], "the number of feature maps", features.maps.len().min(roi_levels), roi_levels)?;
        features.maps.iter().try_for_each(|map| expect(GRAPHS[0], "features", map.data.len(), features.channels * map.rows * map.columns))
    }

    /// The features of one view whose boxes are known.
    fn pyramid(&self, frame: &FrameOn<D>, geometry: ViewGeometry, view: View) -> Result<Pyramid<D>, RuntimeError> {
        let (rows, columns) = padded(geometry.net(), &self.input);
        let image = self.graphs.input(&self.device, 3 * rows * columns)?;
        ops::view_image(&self.device, frame, &self.input, &geometry, &image)?;
        let features = self.graphs.features(&self.device, image, rows, columns)?;
        self.check_features(&features)?;
        Ok(Pyramid { view, geometry, features })
    }

    /// One view through the backbone.
    fn pass(&self, frame: &FrameOn<D>, geometry: ViewGeometry, view: View, checks: &mut Checks<D>) -> Result<Pass<D>, RuntimeError> {
        let (rows, columns) = padded(geometry.net(), &self.input);
        let image = self.graphs.input(&self.device, 3 * rows * columns)?;
        ops::view_image(&self.device, frame, &self.input, &geometry, &image)?;
        let BackboneOn { features, objectness, deltas } = self.graphs.backbone(&self.device, image, rows, columns)?;
        let (levels, anchors) = (self.network.levels.len(), self.network.aspect_ratios.len());
        expect(GRAPHS[0], "the number of objectness maps", objectness.len(), levels)?;
        expect(GRAPHS[0], "the number of delta maps", deltas.len(), levels)?;
        for ((objectness, rows, columns), deltas) in objectness.iter().zip(&deltas) {
            expect(GRAPHS[0], "objectness", objectness.len(), anchors * rows * columns)?;
            expect(GRAPHS[0], "deltas", deltas.len(), 4 * anchors * rows * columns)?;
            checks.look(&self.device, GRAPHS[0], "objectness".to_owned(), objectness)?;
            checks.look(&self.device, GRAPHS[0], "deltas".to_owned(), deltas)?;
        }
        self.check_features(&features)?;
        Ok(Pass { pyramid: Pyramid { view, geometry, features }, objectness, deltas })
    }

    /// People in this view's net pixels, by falling score; with `nms` at most `max_detections`. Waits for the device.
    fn people(&self, pass: &Pass<D>, nms: bool, checks: &mut Checks<D>) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let net = pass.pyramid.geometry.net();
        let maps = pass.objectness.iter().zip(&pass.deltas);
        let levels: Vec<_> =
            maps.map(|((objectness, rows, columns), deltas)| Level { objectness, deltas, rows: *rows, columns: *columns }).collect();
        let rois = ops::proposals(&self.device, &self.network, &levels, net)?;
        let count = rois.room();
        if count == 0 {
            return Ok(Vec::new());
        }
        let pooled = self.pooled(&pass.pyramid, &rois.rects, self.network.box_roi)?;
        let [logits, deltas] = self.graphs.box_head(&self.device, pooled, count)?;
        expect(GRAPHS[1], "class_logits", logits.len(), 2 * count)?;
        expect(GRAPHS[1], "box_deltas", deltas.len(), 8 * count)?;
        checks.look(&self.device, GRAPHS[1], "class_logits".to_owned(), &logits)?;
        checks.look(&self.device, GRAPHS[1], "box_deltas".to_owned(), &deltas)?;
        Ok(ops::detections(&self.device, &self.network, &rois, &logits, &deltas, net, nms)?.download(&self.device)?)
    }

    /// Pooled RoIs in memory that a graph takes.
    fn pooled(&self, pyramid: &Pyramid<D>, rois: &Array<D, f32>, spec: RoiSpec) -> Result<Array<D, f32>, RuntimeError> {
        let one = pyramid.features.channels * (spec.resolution as usize).pow(2);
        let out = self.graphs.input(&self.device, rois.len() / 4 * one)?;
        ops::pool(&self.device, &self.network, &pyramid.features, rois, spec, &out)?;
        Ok(out)
    }

    /// Refuses what was not finite on the device.
    fn finite(&self, checks: &Checks<D>) -> Result<(), RuntimeError> {
        match checks.first(&self.device)? {
            None => Ok(()),
            Some((graph, name, i)) => Err(RuntimeError::Graph { graph: graph.to_owned(), message: format!("{name}[{i}] is not finite") }),
        }
    }

    fn find(&self, frame: &Frame, on: &FrameOn<D>, plan: &ViewPlan) -> Result<Found<D>, RuntimeError> {
        let base = plan.base();
        let to_base = self.geometry(frame, base);
        if !plan.box_voting {
            let mut checks = self.checks(1, 2)?;
            let pass = self.pass(on, to_base, base, &mut checks)?;
            let boxes = self.people(&pass, true, &mut checks)?;
            self.finite(&checks)?;
            return Ok((plan.above_floor(boxes), vec![pass.pyramid]));
        }
        // Every view's boxes in the base view's pixels, pooled before NMS (spec §3.1). They are few, and have come down already.
        let (mut pooled, mut kept, mut budget) = (Vec::new(), Vec::new(), KEPT_FEATURES);
        let mut checks = self.checks(plan.views.len(), 2 * plan.views.len())?;
        for &view in &plan.views {
            let geometry = self.geometry(frame, view);
            let pass = self.pass(on, geometry, view, &mut checks)?;
            let boxes = self.people(&pass, false, &mut checks)?;
            pooled.extend(boxes.into_iter().map(|(rect, score)| (to_base.net_from_frame_rect(geometry.frame_from_net_rect(rect)), score)));
            if let Some(left) = budget.checked_sub(pass.pyramid.features.maps.iter().map(|map| map.data.len()).sum()) {
                budget = left;
                kept.push(pass.pyramid);
            }
        }
        self.finite(&checks)?;
        let (rects, scores): (Vec<Rect>, Vec<f32>) = pooled.iter().copied().unzip();
        let vote = |(rect, score): (Rect, f32)| (vote(rect, &rects, &scores, VOTING_IOU).clipped(to_base.net()), score);
        let boxes = suppress(&self.network, &pooled).into_iter().map(vote).collect();
        Ok((plan.above_floor(boxes), kept))
    }

    /// Steps 2 to 6: `boxes` are in the base view's net pixels, `known` the pyramids at hand.
    fn keypoints(
        &self,
        frame: &Frame,
        on: &FrameOn<D>,
        plan: &ViewPlan,
        boxes: &[(Rect, f32)],
        known: Vec<Pyramid<D>>,
    ) -> Result<Vec<Detection>, RuntimeError> {
        if boxes.is_empty() {
            return Ok(Vec::new());
        }
        let device = &self.device;
        let to_base = self.geometry(frame, plan.base());
        let in_frame: Vec<Rect> = boxes.iter().map(|&(rect, _)| to_base.frame_from_net_rect(rect)).collect();
        let (k, side) = (self.skeleton.len(), self.network.heatmap_side as usize);
        let shape = |boxes: usize| Maps { boxes, keypoints: k, side };
        let all = shape(boxes.len());
        let rects = Array::from_slice(device, &flat(boxes.iter().map(|&(rect, _)| rect)))?;
        let sum = Array::zeros(device, all.len())?;
        // The views' own points; a single view agrees with itself.
        let views = if plan.views.len() > 1 { plan.views.len() } else { 0 };
        let points = Array::<D, f32>::zeros(device, views * 2 * all.count())?;
        // The head's RoIs, view by view: as many at once as it takes, whosever they are.
        let (total, sizes) = (plan.views.len() * boxes.len(), self.graphs.keypoint_batches());
        let most = sizes.last().copied().unwrap_or(POOLED_ROIS);
        let fitting = |left: usize| sizes.iter().copied().find(|size| *size >= left).unwrap_or(most);
        let mut checks = self.checks(1, total.div_ceil(most))?;
        let spec = self.network.keypoint_roi;
        let one = |pyramid: &Pyramid<D>| pyramid.features.channels * (spec.resolution as usize).pow(2);
        let mut batch: Option<(Array<D, f32>, usize)> = None;
        let mut waiting: Vec<Waiting> = Vec::new();
        let (mut filled, mut done) = (0, 0);
        for (index, &view) in plan.views.iter().enumerate() {
            let geometry = self.geometry(frame, view);
            let passed;
            let pyramid = match known.iter().find(|pyramid| pyramid.view == view) {
                Some(pyramid) => pyramid,
                None => {
                    passed = self.pyramid(on, geometry, view)?;
                    &passed
                }
            };
            let mut start = 0;
            while start < boxes.len() {
                let (rooms, size) = match batch.take() {
                    Some(batch) => batch,
                    None => {
                        let size = if sizes.is_empty() { most.min(total - done) } else { fitting((total - done).min(most)) };
                        (self.graphs.input(device, size * one(pyramid))?, size)
                    }
                };
                let count = (boxes.len() - start).min(size - filled);
                let part = &in_frame[start..start + count];
                let rois = Array::from_slice(device, &flat(part.iter().map(|&rect| geometry.net_from_frame_rect(rect))))?;
                let room = rooms.slice(filled * one(pyramid)..(filled + count) * one(pyramid));
                ops::pool(device, &self.network, &pyramid.features, &rois, spec, &room)?;
                waiting.push(Waiting { view: index, flip: view.flip, start, count, filled });
                (filled, done, start) = (filled + count, done + count, start + count);
                if filled < size && done < total {
                    batch = Some((rooms, size));
                    continue;
                }
                let maps = self.graphs.keypoint_head(device, rooms, size)?;
                expect(GRAPHS[2], "heatmaps", maps.len(), size * k * side * side)?;
                checks.look(device, GRAPHS[2], "heatmaps".to_owned(), &maps.slice(0..filled * k * side * side))?;
                for Waiting { view, flip, start, count, filled } in waiting.drain(..) {
                    let (shape, own) = (shape(count), |one: usize| start * one..(start + count) * one);
                    let maps = maps.slice(filled * k * side * side..(filled + count) * k * side * side);
                    let unflipped = ops::unflip(device, &maps, shape, &self.mirror, flip, plan.average, &sum.slice(own(k * side * side)))?;
                    if views > 0 {
                        let found = points.slice(view * 2 * all.count()..(view + 1) * 2 * all.count()).slice(own(2 * k));
                        ops::brightest(device, &unflipped, shape, &rects.slice(own(4)), &found)?;
                    }
                }
                filled = 0;
            }
        }
        ops::scale(device, &sum, 1.0 / plan.views.len().max(1) as f32)?;
        let found = Array::zeros(device, 4 * all.count())?;
        ops::decode(device, &sum, all, &rects, plan.average, &found)?;
        // Found as the views' own.
        let place = Array::zeros(device, 2 * all.count())?;
        ops::brightest(device, &sum, all, &rects, &place)?;
        let agreement = ops::agreement(device, &points, &place, &rects, &self.sigmas, views, all)?.to_vec(device)?;
        let found = found.to_vec(device)?;
        self.finite(&checks)?;
        let detection = |(i, &(_, score)): (usize, &(Rect, f32))| {
            let mut detection = Detection { rect: in_frame[i], score, ..Detection::default() };
            for (found, &agreement) in found[4 * i * k..][..4 * k].chunks_exact(4).zip(&agreement[i * k..]) {
                let point = to_base.frame_from_net(Point { x: found[0], y: found[1] });
                let keypoint = Keypoint { point, peak_logit: found[2], probability: found[3], agreement };
                // A skeleton has at most as many keypoints as the list holds.
                if detection.keypoints.push(keypoint).is_err() {
                    break;
                }
            }
            detection
        };
        Ok(boxes.iter().enumerate().map(detection).collect())
    }
}

impl<D: Device, G: DeviceGraphs<D>> DeviceModel for DeviceRcnn<D, G> {
    fn network(&self) -> &NetworkSpec {
        &self.network
    }

    fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let on = FrameOn::upload(&self.device, frame)?;
        let to_base = self.geometry(frame, plan.base());
        let (boxes, _) = self.find(frame, &on, plan)?;
        Ok(boxes.into_iter().map(|(rect, score)| (to_base.frame_from_net_rect(rect), score)).collect())
    }

    fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let on = FrameOn::upload(&self.device, frame)?;
        let (boxes, known) = self.find(frame, &on, plan)?;
        self.keypoints(frame, &on, plan, &boxes, known)
    }

    fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let on = FrameOn::upload(&self.device, frame)?;
        let to_base = self.geometry(frame, plan.base());
        let boxes: Vec<_> = boxes.iter().map(|&(rect, score)| (to_base.net_from_frame_rect(rect), score)).collect();
        self.keypoints(frame, &on, plan, &boxes, Vec::new())
    }
}
