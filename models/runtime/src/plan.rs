//! Which views of a frame are ensembled.

use omnilabel_bundle::Manifest;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::view::View;

/// Boxes that vote overlap by at least this much (spec §3.1).
pub(crate) const VOTING_IOU: f32 = 0.8;

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

    /// The view that finds the boxes.
    pub(crate) fn base(&self) -> View {
        View { short_side: self.base_short_side, flip: false }
    }

    pub(crate) fn above_floor(&self, mut boxes: Vec<(Rect, f32)>) -> Vec<(Rect, f32)> {
        boxes.retain(|&(_, score)| score >= self.score_floor);
        boxes
    }

    /// The same plan for a model whose base short side is `to` and not `from`: views are as much larger or smaller than the base.
    pub(crate) fn scaled(&self, from: u32, to: u32) -> Self {
        let side = |side: u32| (u64::from(side) * u64::from(to) / u64::from(from.max(1))).clamp(1, u64::from(u32::MAX)) as u32;
        let views = self.views.iter().map(|view| View { short_side: side(view.short_side), flip: view.flip }).collect();
        Self { base_short_side: side(self.base_short_side), views, ..self.clone() }
    }
}
