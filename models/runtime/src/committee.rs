//! Several keypoint R-CNNs that label together: the ensemble of model distillation, which the paper compares its ensemble of views with.

use crate::enlarge::Enlargement;
use crate::pass::Pass;
use crate::rcnn::{Maps, POOLED_ROIS, Rcnn};
use crate::{RuntimeError, ViewPlan};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;

/// Keypoint R-CNNs of one skeleton that see frames at one size. Boxes of all are pooled before NMS and vote; the maps of all views of all
/// members are averaged, which is what one member's are of its own.
pub(crate) struct Committee {
    members: Vec<Rcnn>,
}

impl Committee {
    /// # Errors
    /// Nobody, or a member whose maps or input are not those of the first.
    pub(crate) fn new(members: Vec<Rcnn>) -> Result<Self, RuntimeError> {
        let Some(first) = members.first() else { return Err(RuntimeError::Request("a committee without members".to_owned())) };
        let from = |rcnn: &Rcnn| rcnn.graphs.enlargement().map(Enlargement::from);
        for (index, member) in members.iter().enumerate() {
            let names = |rcnn: &Rcnn| rcnn.skeleton.names().map(str::to_owned).collect::<Vec<_>>();
            let differs = [
                ("keypoints", names(member) != names(first)),
                ("a heatmap", member.network.heatmap_side != first.network.heatmap_side || from(member) != from(first)),
                ("an input", (member.input.short_side, member.input.max_long_side) != (first.input.short_side, first.input.max_long_side)),
            ];
            if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
                return Err(RuntimeError::Request(format!("member {index} of the committee has {what} unlike the first's")));
            }
        }
        Ok(Self { members })
    }

    pub(crate) fn first(&self) -> &Rcnn {
        &self.members[0]
    }

    /// People in the base view's net pixels, by falling score.
    fn find(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let (first, base) = (self.first(), plan.base());
        let mut pooled = Vec::new();
        for member in &self.members {
            pooled.extend(Pass::run(member, frame, base)?.boxes(member, false)?);
        }
        Ok(plan.above_floor(first.voted(&pooled, first.geometry(frame, base).net())))
    }

    pub(crate) fn boxes(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let to_base = self.first().geometry(frame, plan.base());
        Ok(self.find(frame, plan)?.into_iter().map(|(rect, score)| (to_base.frame_from_net_rect(rect), score)).collect())
    }

    pub(crate) fn detect(&self, frame: &Frame, plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        self.keypoints(frame, plan, &self.find(frame, plan)?)
    }

    /// The keypoints of `boxes` in frame pixels.
    pub(crate) fn detect_in(&self, frame: &Frame, boxes: &[(Rect, f32)], plan: &ViewPlan) -> Result<Vec<Detection>, RuntimeError> {
        let to_base = self.first().geometry(frame, plan.base());
        let boxes: Vec<_> = boxes.iter().map(|&(rect, score)| (to_base.net_from_frame_rect(rect), score)).collect();
        self.keypoints(frame, plan, &boxes)
    }

    fn keypoints(&self, frame: &Frame, plan: &ViewPlan, boxes: &[(Rect, f32)]) -> Result<Vec<Detection>, RuntimeError> {
        let mut detections = Vec::with_capacity(boxes.len());
        let compared = plan.views.len() * self.members.len() > 1;
        for boxes in boxes.chunks(POOLED_ROIS / 2) {
            let mut all: Option<Maps> = None;
            for member in &self.members {
                let maps = member.maps(frame, plan, boxes, &[], compared)?;
                match &mut all {
                    None => all = Some(maps),
                    Some(all) => {
                        all.sum.iter_mut().zip(maps.sum).for_each(|(sum, value)| *sum += value);
                        all.points.extend(maps.points);
                        all.views += maps.views;
                    }
                }
            }
            detections.extend(all.map(|maps| self.first().decoded(frame, plan, boxes, maps)).unwrap_or_default());
        }
        Ok(detections)
    }
}
