//! Multi-transform inference (spec §3).

use crate::pass::{Pass, Pyramid};
use crate::{Graphs, RuntimeError};
use omnilabel_bundle::{Bundle, Manifest};
use omnilabel_detect::frame::Frame;
use omnilabel_detect::nms::vote;
use omnilabel_detect::proposals::suppress;
use omnilabel_keypoints::ensemble::{Average, accumulate, agreement, finish};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, decode};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::{View, ViewGeometry};
use rayon::prelude::*;
use std::sync::Arc;

/// Boxes that vote overlap by at least this much (spec §3.1).
const VOTING_IOU: f32 = 0.8;

/// How many numbers of feature maps are kept between box voting and the keypoints (256 MiB); views beyond it are run twice.
const KEPT_FEATURES: usize = 64 << 20;

/// Which views are ensembled, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewPlan {
    /// Short side of the pass that finds the boxes.
    pub base_short_side: u32,
    /// The views whose heatmaps are averaged.
    pub views: Vec<View>,
    /// What is averaged.
    pub average: Average,
    /// Pool all views' boxes before NMS and vote.
    pub box_voting: bool,
    /// Detections below this score are not returned (never below the manifest's score threshold).
    pub score_floor: f32,
}

impl ViewPlan {
    /// One view at the base scale of the model.
    pub fn single(manifest: &Manifest) -> Self {
        Self::new(manifest, &[manifest.input.short_side], false)
    }

    /// Every scale of `short_sides`, each with its mirror image when `flip`.
    pub fn new(manifest: &Manifest, short_sides: &[u32], flip: bool) -> Self {
        let mirrored: &[bool] = if flip { &[false, true] } else { &[false] };
        let views = short_sides.iter().flat_map(|&short_side| mirrored.iter().map(move |&flip| View { short_side, flip })).collect();
        Self { base_short_side: manifest.input.short_side, views, average: Average::Logits, box_voting: false, score_floor: 0.0 }
    }
}

/// A model that labels frames.
pub struct Teacher {
    graphs: Box<dyn Graphs>,
    manifest: Manifest,
    skeleton: Skeleton,
    /// Runs views side by side.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Teacher {
    /// Loads a bundle on tract with `threads` workers.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn load(bundle: &Bundle, threads: usize) -> Result<Self, RuntimeError> {
        let graphs = crate::TractGraphs::load(bundle, threads)?;
        let pool = graphs.pool().clone();
        let teacher = Self::with_graphs(Box::new(graphs), bundle.manifest().clone(), bundle.skeleton().clone());
        Ok(Self { pool: Some(pool), ..teacher })
    }

    /// The same pipeline on other graphs, one view after the other.
    pub fn with_graphs(graphs: Box<dyn Graphs>, manifest: Manifest, skeleton: Skeleton) -> Self {
        Self { graphs, manifest, skeleton, pool: None }
    }

    /// The model's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's skeleton.
    pub fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    pub(crate) fn graphs(&self) -> &dyn Graphs {
        self.graphs.as_ref()
    }

    /// People in `frame` with their ensembled keypoints, in frame pixels, by falling score.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.check(frame, plan)?;
        let base = View { short_side: plan.base_short_side, flip: false };
        if !plan.box_voting {
            let pass = Pass::run(self, frame, base)?;
            let boxes = pass.boxes(self, true)?;
            return self.keypoints(frame, plan, self.above_floor(plan, boxes), vec![pass.pyramid]);
        }
        // Every view's boxes in the base view's pixels, pooled before NMS (spec §3.1).
        let to_base = ViewGeometry::new(frame.size, base, self.manifest.input.max_long_side);
        let mut pooled = Vec::new();
        let mut kept = Vec::new();
        let mut budget = KEPT_FEATURES;
        let found = self.each(&plan.views, |view| {
            let pass = Pass::run(self, frame, view)?;
            let boxes = pass.boxes(self, false)?;
            Ok((pass.pyramid, boxes))
        });
        for found in found {
            let (pyramid, boxes) = found?;
            let geometry = pyramid.geometry;
            pooled.extend(boxes.into_iter().map(|(rect, score)| (to_base.net_from_frame_rect(geometry.frame_from_net_rect(rect)), score)));
            if let Some(left) = budget.checked_sub(pyramid.values()) {
                budget = left;
                kept.push(pyramid);
            }
        }
        let (rects, scores): (Vec<Rect>, Vec<f32>) = pooled.iter().copied().unzip();
        let vote = |(rect, score): (Rect, f32)| (vote(rect, &rects, &scores, VOTING_IOU).clipped(to_base.net()), score);
        let boxes = suppress(&self.manifest.network, &pooled).into_iter().map(vote).collect();
        self.keypoints(frame, plan, self.above_floor(plan, boxes), kept)
    }

    /// The same with the boxes given (frame pixels, with scores) instead of found: one detection per box, in the order of `boxes`,
    /// none left out.
    ///
    /// # Errors
    /// See [`RuntimeError`]; [`RuntimeError::Request`] names a box without an area, or that reaches out of the frame by more than the
    /// frame's own side.
    pub fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.check(frame, plan)?;
        let (w, h) = (frame.size.width as f32, frame.size.height as f32);
        let bad = |(rect, score): &(Rect, f32)| {
            let near = rect.x1 >= -w && rect.x2 <= 2.0 * w && rect.y1 >= -h && rect.y2 <= 2.0 * h;
            !(rect.is_valid() && rect.area() > 0.0 && near && score.is_finite())
        };
        if let Some(i) = boxes.iter().position(bad) {
            let expected = "a box with an area near the frame, and a score";
            return Err(RuntimeError::Request(format!("box {i}: expected {expected}, found {:?}", boxes[i])));
        }
        let base = View { short_side: plan.base_short_side, flip: false };
        let to_base = ViewGeometry::new(frame.size, base, self.manifest.input.max_long_side);
        let boxes = boxes.iter().map(|&(rect, score)| (to_base.net_from_frame_rect(rect), score)).collect();
        self.keypoints(frame, plan, boxes, Vec::new())
    }

    /// Runs `work` on the model's own workers, so that it takes no other core than it was given.
    pub(crate) fn on_workers<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    fn check(&self, frame: &Frame, plan: &ViewPlan) -> Result<(), RuntimeError> {
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

    fn above_floor(&self, plan: &ViewPlan, mut boxes: Vec<(Rect, f32)>) -> Vec<(Rect, f32)> {
        boxes.retain(|&(_, score)| score >= plan.score_floor);
        boxes
    }

    /// Runs `work` on every view, results in the order of `views`: a view per worker where there are enough views, else one view after
    /// the other with all workers sharing its matrix products.
    fn each<T: Send>(&self, views: &[View], work: impl Fn(View) -> Result<T, RuntimeError> + Sync) -> Vec<Result<T, RuntimeError>> {
        match &self.pool {
            Some(pool) if pool.current_num_threads() > 1 && views.len() >= pool.current_num_threads() => {
                pool.install(|| views.par_iter().map(|&view| work(view)).collect())
            }
            _ => views.iter().map(|&view| work(view)).collect(),
        }
    }

    /// Steps 2 to 6: `boxes` are in the base view's net pixels, `known` the pyramids at hand.
    fn keypoints(
        &self,
        frame: &Frame,
        plan: &ViewPlan,
        boxes: Vec<(Rect, f32)>,
        known: Vec<Pyramid>,
    ) -> Result<Vec<Detection>, RuntimeError> {
        if boxes.is_empty() {
            return Ok(Vec::new());
        }
        let base = View { short_side: plan.base_short_side, flip: false };
        let to_base = ViewGeometry::new(frame.size, base, self.manifest.input.max_long_side);
        let in_frame: Vec<Rect> = boxes.iter().map(|&(rect, _)| to_base.frame_from_net_rect(rect)).collect();
        let maps_of = |view: View| -> Result<ViewMaps, RuntimeError> {
            let known = known.iter().find(|pyramid| pyramid.view == view);
            let maps = match known {
                Some(pyramid) => pyramid.heatmaps(self, &in_frame)?,
                None => Pass::run(self, frame, view)?.pyramid.heatmaps(self, &in_frame)?,
            };
            Ok(self.unflip(maps, view, plan, &boxes))
        };
        let (k, side) = (self.skeleton.len(), self.side());
        let one = k * side * side;
        let mut sum = vec![0.0; boxes.len() * one];
        let mut points: Vec<Vec<Point>> = Vec::new();
        // In groups, so that only as many views' maps are held as are computed at a time; summed in the order of the views, so that
        // the result does not depend on the workers.
        let group = self.pool.as_ref().map_or(1, |pool| pool.current_num_threads());
        for views in plan.views.chunks(group) {
            for maps in self.each(views, maps_of) {
                let maps = maps?;
                sum.iter_mut().zip(&maps.maps).for_each(|(sum, value)| *sum += value);
                points.push(maps.points);
            }
        }
        finish(&mut sum, plan.views.len());
        let detection = |(i, &(rect, score)): (usize, &(Rect, f32))| {
            let mut detection = Detection { rect: in_frame[i], score, ..Detection::default() };
            for (j, map) in sum[i * one..][..one].chunks_exact(side * side).enumerate() {
                let found = decode(map, side, rect, map_kind(plan.average));
                let own: Vec<Point> = points.iter().filter_map(|points| points.get(i * k + j).copied()).collect();
                let agreement = agreement(&own, found.point, self.skeleton.sigmas()[j], rect.area());
                let keypoint = Keypoint {
                    point: to_base.frame_from_net(found.point),
                    peak_logit: found.peak_logit,
                    probability: found.probability,
                    agreement,
                };
                // A skeleton has at most as many keypoints as the list holds.
                if detection.keypoints.push(keypoint).is_err() {
                    break;
                }
            }
            detection
        };
        Ok(boxes.iter().enumerate().map(detection).collect())
    }

    /// A view's maps unmirrored, as probabilities if those are averaged, and its own keypoints if there are other views.
    fn unflip(&self, maps: Vec<f32>, view: View, plan: &ViewPlan, boxes: &[(Rect, f32)]) -> ViewMaps {
        let side = self.side();
        let one = self.skeleton.len() * side * side;
        let mut unflipped = vec![0.0; maps.len()];
        for (sum, map) in unflipped.chunks_exact_mut(one).zip(maps.chunks_exact(one)) {
            accumulate(sum, map, side, &self.skeleton, view.flip, plan.average);
        }
        let mut points = Vec::new();
        if plan.views.len() > 1 {
            for (&(rect, _), maps) in boxes.iter().zip(unflipped.chunks_exact(one)) {
                points.extend(maps.chunks_exact(side * side).map(|map| decode(map, side, rect, map_kind(plan.average)).point));
            }
        }
        ViewMaps { maps: unflipped, points }
    }

    fn side(&self) -> usize {
        self.manifest.network.heatmap_side as usize
    }
}

fn map_kind(average: Average) -> MapKind {
    match average {
        Average::Logits => MapKind::Logits,
        Average::Probabilities => MapKind::Probabilities,
    }
}

/// What one view says about the boxes.
struct ViewMaps {
    /// `[boxes, k, side, side]`, unmirrored.
    maps: Vec<f32>,
    /// `[boxes, k]` in the base view's net pixels; empty for a single view.
    points: Vec<Point>,
}
