//! Detections, thresholds and the hard-label rule (spec §4).

use crate::geometry::{Point, Rect, Size};
use crate::{MAX_INSTANCES, MAX_KEYPOINTS};
use heapless::Vec;
use serde::{Deserialize, Serialize};

/// One keypoint of a detection, in frame pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Keypoint {
    /// Position in the frame.
    pub point: Point,
    /// See [`crate::heatmap::ScoredPoint::peak_logit`].
    pub peak_logit: f32,
    /// See [`crate::heatmap::ScoredPoint::probability`].
    pub probability: f32,
    /// Agreement of the views in `[0, 1]`; 1 for a single view.
    pub agreement: f32,
}

/// One detected person, in frame pixels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The box.
    pub rect: Rect,
    /// Box score in `[0, 1]`: the instance's score.
    pub score: f32,
    /// One per keypoint of the skeleton.
    pub keypoints: Vec<Keypoint, MAX_KEYPOINTS>,
}

impl Detection {
    /// Mean agreement of the views over the keypoints, 0 to 1; 0 without keypoints.
    pub fn agreement(&self) -> f32 {
        self.keypoints.iter().map(|keypoint| keypoint.agreement).sum::<f32>() / self.keypoints.len().max(1) as f32
    }
}

/// The two thresholds and the floor of a release.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// τ on the instance score.
    pub instance: f32,
    /// τ_k on the keypoint probability.
    pub keypoint: f32,
    /// Instances below this score are not published at all.
    pub floor: f32,
}

/// COCO's visibility flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// 0: not labelled; x and y are 0.
    #[default]
    Unlabelled,
    /// 1: labelled, hidden.
    Hidden,
    /// 2: labelled, visible.
    Visible,
}

/// One keypoint of a hard label.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HardKeypoint {
    /// Position in the frame, (0, 0) when unlabelled.
    pub point: Point,
    /// COCO's flag.
    pub visibility: Visibility,
}

/// One instance of a label: the raw scores travel with the hard decision, so that the centre can apply its own thresholds.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// What the ensemble saw.
    pub detection: Detection,
    /// Whether the score passed τ of the device's release.
    pub kept: bool,
}

/// All instances of one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The frame's size.
    pub size: Size,
    /// By falling score.
    pub instances: Vec<Instance, MAX_INSTANCES>,
    /// Instances above the floor that did not fit.
    pub overflow: u32,
}

impl Label {
    /// The label of one frame: every detection at or above `thresholds.floor`, by falling score (`total_cmp`), `kept` when its
    /// score is at or above τ; what does not fit is counted.
    pub fn from_detections(size: Size, detections: &[Detection], thresholds: Thresholds) -> Self {
        let mut label = Self { size, instances: Vec::new(), overflow: 0 };
        for detection in detections.iter().filter(|d| d.score >= thresholds.floor) {
            let after = |i: &Instance| i.detection.score.total_cmp(&detection.score).is_ge();
            let place = label.instances.iter().take_while(|i| after(i)).count();
            if label.instances.is_full() {
                label.overflow = label.overflow.saturating_add(1);
                if place == MAX_INSTANCES {
                    continue;
                }
                label.instances.pop();
            }
            let instance = Instance { detection: detection.clone(), kept: detection.score >= thresholds.instance };
            // There is room: one was dropped above when the label was full.
            let _ = label.instances.insert(place, instance);
        }
        label
    }
}

impl Keypoint {
    /// Whether it becomes a hard one: `probability >= τ_k`, at a point that is finite.
    pub fn passes(&self, keypoint_threshold: f32) -> bool {
        self.probability >= keypoint_threshold && self.point.x.is_finite() && self.point.y.is_finite()
    }
}

/// The hard keypoints of a detection: those that [pass](Keypoint::passes) → v = 2, else x = y = v = 0.
pub fn harden(detection: &Detection, keypoint_threshold: f32) -> Vec<HardKeypoint, MAX_KEYPOINTS> {
    let hard = |k: &Keypoint| {
        if k.passes(keypoint_threshold) {
            HardKeypoint { point: k.point, visibility: Visibility::Visible }
        } else {
            HardKeypoint::default()
        }
    };
    detection.keypoints.iter().map(hard).collect()
}
