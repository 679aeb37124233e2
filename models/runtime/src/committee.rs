//! Several keypoint R-CNNs that label together: the ensemble of model distillation, which the paper compares its ensemble of views with.

use crate::enlarge::Enlargement;
use crate::pass::{Pass, Pyramid};
use crate::rcnn::{KEPT_FEATURES, Maps, POOLED_ROIS, Rcnn};
use crate::{RuntimeError, ViewPlan};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;

/// People by falling score, and the members' pyramids at hand.
type Found = (Vec<(Rect, f32)>, Vec<Option<Pyramid>>);

/// Keypoint R-CNNs of one skeleton that see frames at one size. The boxes of all base views, whatever a plan says of voting, are pooled before
/// NMS and vote; the maps of all views of all members are averaged, which is what one member's are of its own.
pub(crate) struct Committee {
    first: Rcnn,
    others: Vec<Rcnn>,
}

impl Committee {
    /// # Errors
    /// A member whose maps or input are not those of the first.
    pub(crate) fn new(first: Rcnn, others: Vec<Rcnn>) -> Result<Self, RuntimeError> {
        let from = |rcnn: &Rcnn| rcnn.graphs.enlargement().map(Enlargement::from);
        for (index, member) in others.iter().enumerate() {
            let differs = [
                ("keypoints", !member.skeleton.names().eq(first.skeleton.names())),
                ("a heatmap", member.network.heatmap_side != first.network.heatmap_side || from(member) != from(&first)),
                ("an input", (member.input.short_side, member.input.max_long_side) != (first.input.short_side, first.input.max_long_side)),
            ];
            if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
                return Err(RuntimeError::Request(format!("member {} of the committee has {what} unlike the first's", index + 1)));
            }
        }
        Ok(Self { first, others })
    }

    pub(crate) fn first(&self) -> &Rcnn {
        &self.first
    }

    fn members(&self) -> impl Iterator<Item = &Rcnn> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// People in the base view's net pixels, by falling score, and each member's pyramid of that view, where all together are not too many.
    fn find(&self, frame: &Frame, plan: &ViewPlan) -> Result<Found, RuntimeError> {
        let (first, base) = (&self.first, plan.base());
        let (mut pooled, mut pyramids) = (Vec::new(), Vec::new());
        for member in self.members() {
            let pass = Pass::run(member, frame, base)?;
            pooled.extend(pass.boxes(member, false)?);
            let fits = pass.pyramid.values() <= KEPT_FEATURES / (1 + self.others.len());
            pyramids.push(fits.then_some(pass.pyramid));
        }
        Ok((plan.above_floor(first.voted(&pooled, first.geometry(frame, base).net())), pyramids))
    }

    pub(crate) fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let to_base = self.first.geometry(frame, plan.base());
        Ok(self.find(frame, plan)?.0.into_iter().map(|(rect, score)| (to_base.frame_from_net_rect(rect), score)).collect())
    }

    pub(crate) fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let (boxes, pyramids) = self.find(frame, plan)?;
        self.keypoints(frame, plan, &boxes, &pyramids)
    }

    /// The keypoints of `boxes` in frame pixels.
    pub(crate) fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let boxes = self.first.in_base(frame, boxes, plan);
        self.keypoints(frame, plan, &boxes, &[])
    }

    /// `known` are the members' pyramids of the base view, in their order.
    fn keypoints(
        &self,
        frame: &Frame,
        plan: &ViewPlan,
        boxes: &[(Rect, f32)],
        known: &[Option<Pyramid>],
    ) -> Result<Vec<Detection>, RuntimeError> {
        let mut detections = Vec::with_capacity(boxes.len());
        let compared = plan.views.len() * (1 + self.others.len()) > 1;
        for boxes in boxes.chunks(POOLED_ROIS / 2) {
            let maps = self.maps(frame, plan, boxes, known, compared)?;
            detections.extend(maps.map(|maps| self.first.decoded(frame, plan, boxes, maps)).unwrap_or_default());
        }
        Ok(detections)
    }

    /// The averaged maps of `boxes` in frame pixels as probabilities, `[k, side, side]` each.
    pub(crate) fn soft_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let boxes = self.first.in_base(frame, boxes, plan);
        let mut soft = Vec::with_capacity(boxes.len());
        for boxes in boxes.chunks(POOLED_ROIS / 2) {
            let maps = self.maps(frame, plan, boxes, &[], false)?;
            soft.extend(maps.map(|maps| self.first.probabilities(plan, boxes.len(), maps)).unwrap_or_default());
        }
        Ok(soft)
    }

    /// The members' maps, added up; `None` of nobody.
    fn maps(
        &self,
        frame: &Frame,
        plan: &ViewPlan,
        boxes: &[(Rect, f32)],
        known: &[Option<Pyramid>],
        compared: bool,
    ) -> Result<Option<Maps>, RuntimeError> {
        let mut all: Option<Maps> = None;
        for (index, member) in self.members().enumerate() {
            let known = known.get(index).and_then(Option::as_ref).map(std::slice::from_ref).unwrap_or_default();
            let maps = member.maps(frame, plan, boxes, known, compared)?;
            match &mut all {
                None => all = Some(maps),
                Some(all) => {
                    all.sum.iter_mut().zip(maps.sum).for_each(|(sum, value)| *sum += value);
                    all.points.extend(maps.points);
                    all.views += maps.views;
                }
            }
        }
        Ok(all)
    }
}
