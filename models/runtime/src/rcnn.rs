//! Multi-transform inference with keypoint R-CNN (spec §3).

use crate::enlarge::Enlargement;
use crate::pass::{Pass, Pyramid, heatmaps};
use crate::plan::VOTING_IOU;
use crate::workers::Workers;
use crate::{Graphs, RuntimeError, ViewPlan};
use omnilabel_bundle::{InputSpec, NetworkSpec};
use omnilabel_detect::frame::Frame;
use omnilabel_detect::nms::vote;
use omnilabel_detect::proposals::suppress;
use omnilabel_keypoints::ensemble::{Average, accumulate, agreement, finish, unmirror};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, brightest, decode};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::{View, ViewGeometry};
use rayon::prelude::*;
use std::borrow::Cow;

/// How many numbers of feature maps are kept between box voting and the keypoints (256 MiB); views beyond it are run twice.
pub(crate) const KEPT_FEATURES: usize = 64 << 20;

/// RoIs that go through the keypoint head together: the more, the less its weights' reading costs, as long as their maps are small.
const HEAD_ROIS: usize = 32;

/// RoIs that wait for the keypoint head at most, where views are that many: 50 MiB of the paper's networks.
pub(crate) const POOLED_ROIS: usize = 256;

/// People in the base view's net pixels, by falling score, and the pyramids at hand.
type Found = (Vec<(Rect, f32)>, Vec<Pyramid>);

/// The views' maps of people, added up.
pub(crate) struct Maps {
    /// `[people, k, from, from]`.
    pub(crate) sum: Vec<f32>,
    /// Per view the keypoints `[people, k]` that it alone would give, in the base view's net pixels.
    pub(crate) points: Vec<Vec<Point>>,
    /// How many views.
    pub(crate) views: usize,
}

/// A keypoint R-CNN.
pub(crate) struct Rcnn {
    pub(crate) graphs: Box<dyn Graphs>,
    pub(crate) network: NetworkSpec,
    pub(crate) input: InputSpec,
    pub(crate) skeleton: Skeleton,
    pub(crate) workers: Workers,
}

impl Rcnn {
    fn find(&self, frame: &Frame, plan: &ViewPlan) -> Result<Found, RuntimeError> {
        let base = plan.base();
        if !plan.box_voting {
            let pass = Pass::run(self, frame, base)?;
            let boxes = pass.boxes(self, true)?;
            return Ok((plan.above_floor(boxes), vec![pass.pyramid]));
        }
        // Every view's boxes in the base view's pixels, pooled before NMS (spec §3.1).
        let to_base = self.geometry(frame, base);
        let run = |&(view, keep): &(View, bool)| {
            let pass = Pass::run(self, frame, view)?;
            let boxes = pass.boxes(self, false)?;
            let to_base = |(rect, score)| (to_base.net_from_frame_rect(pass.pyramid.geometry.frame_from_net_rect(rect)), score);
            let boxes: Vec<(Rect, f32)> = boxes.into_iter().map(to_base).collect();
            Ok((boxes, keep.then_some(pass.pyramid)))
        };
        // Which pyramids are kept is settled before they are made, whoever makes them: by what the first one holds per pixel.
        let Some((&first, others)) = plan.views.split_first() else { return Ok((Vec::new(), Vec::new())) };
        let mut found = vec![run(&(first, true))?];
        let area = |view: View| {
            let net = self.geometry(frame, view).net();
            f64::from(net.width) * f64::from(net.height)
        };
        let first_values = found[0].1.as_ref().map_or(0, Pyramid::values);
        let per_pixel = first_values as f64 / area(first);
        let mut left = KEPT_FEATURES as f64;
        let mut fits = |values: f64| {
            let fits = values <= left;
            left -= if fits { values } else { 0.0 };
            fits
        };
        if !fits(first_values as f64) {
            found[0].1 = None;
        }
        let keep = |&view: &View| (view, fits(per_pixel * area(view)));
        let others: Vec<(View, bool)> = others.iter().map(keep).collect();
        for other in self.workers.each(&others, |(view, _)| pixels(view), run) {
            found.push(other?);
        }
        let (pooled, kept): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let pooled: Vec<(Rect, f32)> = pooled.into_iter().flatten().collect();
        let kept = kept.into_iter().flatten().collect();
        Ok((plan.above_floor(self.voted(&pooled, to_base.net())), kept))
    }

    /// What is left of pooled boxes after NMS, where those that lie almost as each have voted (spec §3.1).
    pub(crate) fn voted(&self, pooled: &[(Rect, f32)], net: Size) -> Vec<(Rect, f32)> {
        let (rects, scores): (Vec<Rect>, Vec<f32>) = pooled.iter().copied().unzip();
        let vote = |(rect, score): (Rect, f32)| (vote(rect, &rects, &scores, VOTING_IOU).clipped(net), score);
        suppress(&self.network, pooled).into_iter().map(vote).collect()
    }

    /// People without their keypoints, in frame pixels, by falling score.
    pub(crate) fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let to_base = self.geometry(frame, plan.base());
        let (boxes, _) = self.find(frame, plan)?;
        Ok(boxes.into_iter().map(|(rect, score)| (to_base.frame_from_net_rect(rect), score)).collect())
    }

    /// People with their keypoints, in frame pixels, by falling score.
    pub(crate) fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let (boxes, known) = self.find(frame, plan)?;
        self.keypoints(frame, plan, &boxes, &known)
    }

    /// The keypoints of `boxes` in frame pixels.
    pub(crate) fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let boxes = self.in_base(frame, boxes, plan);
        self.keypoints(frame, plan, &boxes, &[])
    }

    /// The averaged maps of `boxes` in frame pixels as probabilities, `[k, side, side]` each.
    pub(crate) fn soft_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let boxes = self.in_base(frame, boxes, plan);
        let mut soft = Vec::with_capacity(boxes.len());
        for boxes in boxes.chunks(POOLED_ROIS / 2) {
            soft.extend(self.probabilities(plan, boxes.len(), self.maps(frame, plan, boxes, &[], false)?));
        }
        Ok(soft)
    }

    /// Of `people`, the mean of step 4 as probabilities, `[k, side, side]` each.
    pub(crate) fn probabilities(&self, plan: &ViewPlan, people: usize, maps: Maps) -> Vec<Vec<f32>> {
        let Maps { mut sum, views, .. } = maps;
        finish(&mut sum, views);
        let enlargement = self.enlargement(plan);
        let from = enlargement.map_or(self.side(), Enlargement::from);
        let one = self.skeleton.len() * from * from;
        let enlarged = |map: &[f32]| enlargement.map_or_else(|| map.to_vec(), |enlargement| enlargement.enlarge(map));
        let person = |maps: &[f32]| {
            let maps: Vec<f32> = maps.chunks_exact(from * from).flat_map(enlarged).collect();
            match plan.average {
                Average::Probabilities => maps,
                Average::Logits => {
                    let mut probabilities = vec![0.0; maps.len()];
                    accumulate(&mut probabilities, &maps, self.side(), &self.skeleton, false, Average::Probabilities);
                    probabilities
                }
            }
        };
        sum.chunks_exact(one).take(people).map(person).collect()
    }

    /// `boxes` in frame pixels in those of the base view.
    pub(crate) fn in_base(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Vec<(Rect, f32)> {
        let to_base = self.geometry(frame, plan.base());
        boxes.iter().map(|&(rect, score)| (to_base.net_from_frame_rect(rect), score)).collect()
    }

    /// How `view` of `frame` maps.
    pub(crate) fn geometry(&self, frame: &Frame, view: View) -> ViewGeometry {
        ViewGeometry::new(frame.size, view, self.input.max_long_side)
    }

    /// Steps 2 to 6: `boxes` are in the base view's net pixels, `known` the pyramids at hand.
    fn keypoints(&self, frame: &Frame, plan: &ViewPlan, boxes: &[(Rect, f32)], known: &[Pyramid]) -> Result<Vec<Detection>, RuntimeError> {
        // A crowd in parts: two views of a part are within the limit.
        let parts: Result<Vec<_>, _> = boxes.chunks(POOLED_ROIS / 2).map(|boxes| self.keypoints_of(frame, plan, boxes, known)).collect();
        Ok(parts?.into_iter().flatten().collect())
    }

    fn keypoints_of(
        &self,
        frame: &Frame,
        plan: &ViewPlan,
        boxes: &[(Rect, f32)],
        known: &[Pyramid],
    ) -> Result<Vec<Detection>, RuntimeError> {
        let maps = self.maps(frame, plan, boxes, known, plan.views.len() > 1)?;
        Ok(self.decoded(frame, plan, boxes, maps))
    }

    /// Steps 2 and 3 and the sum of step 4; `points` are wanted where there is something to compare them with.
    pub(crate) fn maps(
        &self,
        frame: &Frame,
        plan: &ViewPlan,
        boxes: &[(Rect, f32)],
        known: &[Pyramid],
        compared: bool,
    ) -> Result<Maps, RuntimeError> {
        let to_base = self.geometry(frame, plan.base());
        let in_frame: Vec<Rect> = boxes.iter().map(|&(rect, _)| to_base.frame_from_net_rect(rect)).collect();
        let pooled = |views: &&[View]| -> Result<Vec<Vec<f32>>, RuntimeError> {
            let at_hand = |view: &View| known.iter().find(|pyramid| pyramid.view == *view);
            let unknown: Vec<View> = views.iter().copied().filter(|view| at_hand(view).is_none()).collect();
            let found = Pyramid::around(self, frame, &unknown, &in_frame)?;
            let of = |view: &View| at_hand(view).or_else(|| found.iter().find(|pyramid| pyramid.view == *view));
            Ok(views.iter().filter_map(of).map(|pyramid| pyramid.keypoint_rois(self, &in_frame)).collect())
        };
        let enlargement = self.enlargement(plan);
        let from = enlargement.map_or(self.side(), Enlargement::from);
        let one = self.skeleton.len() * from * from;
        let mut sum = vec![0.0; boxes.len() * one];
        let mut points: Vec<Vec<Point>> = Vec::new();
        // A view and its mirror image go through the backbone together. Groups and batches follow from the views and boxes alone, and are
        // summed in the order of the views, so that the result does not depend on the workers.
        let scales: Vec<&[View]> = plan.views.chunk_by(|a, b| a.short_side == b.short_side && a.flip != b.flip).collect();
        let at_once = (HEAD_ROIS / boxes.len()).max(1);
        for scales in scales.chunks(POOLED_ROIS / (2 * boxes.len())) {
            let cost = |views: &&[View]| views.iter().map(pixels).sum();
            let rois: Vec<Vec<Vec<f32>>> = self.workers.each(scales, cost, pooled).into_iter().collect::<Result<_, _>>()?;
            let rois: Vec<Vec<f32>> = rois.into_iter().flatten().collect();
            let views = scales.concat();
            // An even number of batches, as there are workers.
            let batch = views.len().div_ceil(views.len().div_ceil(at_once).next_multiple_of(2));
            let batches: Vec<(&[View], &[Vec<f32>])> = views.chunks(batch).zip(rois.chunks(batch)).collect();
            let unflipped = |(views, rois): &(&[View], &[Vec<f32>])| -> Result<(Vec<f32>, Vec<Vec<Point>>), RuntimeError> {
                let mut maps = heatmaps(self, rois.concat(), rois.len() * boxes.len(), enlargement)?;
                let views = views.iter().zip(maps.chunks_exact_mut(boxes.len() * one));
                let points = views.map(|(view, maps)| self.unflip(maps, *view, plan, (boxes, enlargement), compared)).collect();
                Ok((maps, points))
            };
            for views in self.workers.each(&batches, |(views, _)| views.len() as u64, unflipped) {
                let (maps, found) = views?;
                for view in maps.chunks_exact(boxes.len() * one) {
                    sum.iter_mut().zip(view).for_each(|(sum, value)| *sum += value);
                }
                points.extend(found);
            }
        }
        Ok(Maps { sum, points, views: plan.views.len() })
    }

    /// Logits are averaged before the interpolation that ends the head.
    pub(crate) fn enlargement(&self, plan: &ViewPlan) -> Option<&Enlargement> {
        self.graphs.enlargement().filter(|_| plan.average == Average::Logits)
    }

    /// The mean of step 4, and steps 5 and 6.
    pub(crate) fn decoded(&self, frame: &Frame, plan: &ViewPlan, boxes: &[(Rect, f32)], maps: Maps) -> Vec<Detection> {
        let Maps { mut sum, points, views } = maps;
        let to_base = self.geometry(frame, plan.base());
        let enlargement = self.enlargement(plan);
        let (k, side) = (self.skeleton.len(), self.side());
        let from = enlargement.map_or(side, Enlargement::from);
        let one = k * from * from;
        finish(&mut sum, views);
        let detection = |(i, &(rect, score)): (usize, &(Rect, f32))| -> Detection {
            let mut detection = Detection { rect: to_base.frame_from_net_rect(rect), score, ..Detection::default() };
            for (j, map) in sum[i * one..][..one].chunks_exact(from * from).enumerate() {
                let map = enlargement.map_or(Cow::Borrowed(map), |enlargement| Cow::Owned(enlargement.enlarge(map)));
                let found = decode(&map, side, rect, map_kind(plan.average));
                let own: Vec<Point> = points.iter().filter_map(|points| points.get(i * k + j).copied()).collect();
                let place = if own.is_empty() { found.point } else { brightest(&map, side, rect) };
                let agreement = agreement(&own, place, self.skeleton.sigmas()[j], rect.area());
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
        self.workers.install(|| boxes.par_iter().enumerate().map(detection).collect())
    }

    /// Makes a view's maps unmirrored ones, probabilities if those are averaged; the view's own keypoints if they are `compared`.
    fn unflip(
        &self,
        maps: &mut [f32],
        view: View,
        plan: &ViewPlan,
        (boxes, enlargement): (&[(Rect, f32)], Option<&Enlargement>),
        compared: bool,
    ) -> Vec<Point> {
        let side = enlargement.map_or(self.side(), Enlargement::from);
        let one = self.skeleton.len() * side * side;
        for person in maps.chunks_exact_mut(one) {
            match plan.average {
                Average::Logits if view.flip => unmirror(person, side, &self.skeleton),
                Average::Logits => {}
                Average::Probabilities => {
                    let logits = person.to_vec();
                    person.fill(0.0);
                    accumulate(person, &logits, side, &self.skeleton, view.flip, plan.average);
                }
            }
        }
        if !compared {
            return Vec::new();
        }
        let point = |map, rect| enlargement.map_or_else(|| brightest(map, side, rect), |enlargement| enlargement.brightest(map, rect));
        let people = boxes.iter().zip(maps.chunks_exact(one));
        people.flat_map(|(&(rect, _), maps)| maps.chunks_exact(side * side).map(move |map| point(map, rect))).collect()
    }

    fn side(&self) -> usize {
        self.network.heatmap_side as usize
    }
}

/// What a view costs, up to a factor.
pub(crate) fn pixels(view: &View) -> u64 {
    u64::from(view.short_side).pow(2)
}

fn map_kind(average: Average) -> MapKind {
    match average {
        Average::Logits => MapKind::Logits,
        Average::Probabilities => MapKind::Probabilities,
    }
}
