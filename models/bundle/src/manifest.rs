//! The manifest: everything that is needed to run the graphs and to judge the result.

use crate::Network;
use omnilabel_keypoints::skeleton::{Skeleton, SkeletonError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The manifest format this code writes and reads.
pub const FORMAT: u32 = 1;

/// `manifest.json`. Unknown keys are skipped, so that an older device reads a newer manifest of the same format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Name for people, such as `teacher` or `round-3`.
    pub name: String,
    /// Preset of the architecture, such as `nano`.
    pub architecture: String,
    /// What the keypoints are.
    pub skeleton: SkeletonSpec,
    /// How a frame becomes the `image` input.
    pub input: InputSpec,
    /// What kind of network it is, and what lies between its graphs: the key `network` or `pose`.
    #[serde(flatten)]
    pub network: Network,
    /// τ, τ_k and the publishing floor.
    pub thresholds: omnilabel_keypoints::label::Thresholds,
    /// Name and manifest hash of the model it was trained from or after.
    #[serde(default)]
    pub parent: Option<String>,
    /// SHA-256 of what it was trained on.
    #[serde(default)]
    pub dataset_sha256: Option<String>,
    /// AP on held-out manual labels, single view, in `[0, 1]`.
    #[serde(default)]
    pub ap: Option<f64>,
    /// Every other file of the bundle by its `/`-separated path.
    pub files: BTreeMap<String, FileEntry>,
    /// The golden frames.
    #[serde(default)]
    pub golden: Vec<GoldenFrame>,
}

/// Size and hash of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Bytes.
    pub bytes: u64,
    /// Lowercase hex.
    pub sha256: String,
}

/// A skeleton as it is written in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkeletonSpec {
    /// Names in order.
    pub keypoints: Vec<String>,
    /// Pairs of 0-based indices.
    pub edges: Vec<(u8, u8)>,
    /// The permutation of a mirrored image.
    pub flip: Vec<u8>,
    /// OKS sigmas.
    pub sigmas: Vec<f32>,
}

impl SkeletonSpec {
    /// The checked table.
    ///
    /// # Errors
    /// See [`SkeletonError`].
    pub fn skeleton(&self) -> Result<Skeleton, SkeletonError> {
        let names: Vec<&str> = self.keypoints.iter().map(String::as_str).collect();
        Skeleton::new(&names, &self.edges, Some(&self.flip), Some(&self.sigmas))
    }
}

impl From<&Skeleton> for SkeletonSpec {
    fn from(skeleton: &Skeleton) -> Self {
        Self {
            keypoints: skeleton.names().map(str::to_owned).collect(),
            edges: skeleton.edges().to_vec(),
            flip: skeleton.flip().to_vec(),
            sigmas: skeleton.sigmas().to_vec(),
        }
    }
}

/// Order of the network's input channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red first (torchvision).
    #[default]
    Rgb,
    /// Blue first (Caffe's weights and with them Detectron's).
    Bgr,
}

impl Channels {
    /// Index into an RGB pixel of the network's channel `channel`.
    pub const fn rgb_index(self, channel: usize) -> usize {
        match self {
            Self::Rgb => channel,
            Self::Bgr => 2 - channel,
        }
    }
}

/// Where a level's anchors lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorRule {
    /// Corners rounded to whole pixels, cells a stride apart.
    #[default]
    Rounded,
    /// torchvision's `AnchorGenerator`: corners rounded, cells apart by the padded side divided by the map's side without remainder,
    /// which is less than the stride where that does not divide the side (P6 of 800 px: 61, not 64).
    Torchvision,
    /// Detectron2's `DefaultAnchorGenerator`: corners not rounded, cells a stride apart.
    Exact,
}

/// Fields at their default are left out, so that manifests written before they existed keep their bytes.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How a frame becomes the network's input: bilinear resize (align_corners = false, no antialias), `(x / 255 − mean) / std`,
/// zero padding on the right and below to a multiple of `size_divisor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Short side in pixels of the base scale.
    pub short_side: u32,
    /// The long side never exceeds this.
    pub max_long_side: u32,
    /// Padding granularity.
    pub size_divisor: u32,
    /// Per channel in the order of `channels`, of values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Per channel in the order of `channels`.
    pub std: [f32; 3],
    /// Order of the channels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub channels: Channels,
}

/// ImageNet's mean and standard deviation, red first, of values in `[0, 1]`: what most weights are used to.
pub const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// One FPN level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelSpec {
    /// Pixels of the padded input per cell.
    pub stride: u32,
    /// Side of the level's anchors in px.
    pub anchor_size: f32,
}

/// RoI pooling of one head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoiSpec {
    /// Cells per side of the pooled map.
    pub resolution: u32,
    /// Samples per cell and axis; 0: as many as the RoI's side has map cells per pooled cell, rounded up (Detectron2).
    pub sampling_ratio: u32,
    /// Detectron2's half-pixel shift.
    pub aligned: bool,
}

/// RPN sizes at inference and in training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RpnSpec {
    /// Candidates per level before NMS.
    pub pre_nms_top_n: u32,
    /// Proposals per image after NMS.
    pub post_nms_top_n: u32,
    /// IoU of the per-level NMS.
    pub nms_iou: f32,
    /// Proposals with a shorter side are dropped, px.
    pub min_size: f32,
    /// Proposals with a lower objectness are dropped.
    pub score_threshold: f32,
}

/// What lies between the graphs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// FPN levels, finest first; the last may serve the RPN alone.
    pub levels: Vec<LevelSpec>,
    /// How many of `levels` RoIs are pooled from (P6 is not).
    pub roi_levels: u32,
    /// √area at which a RoI goes to `canonical_level` (224).
    pub canonical_size: f32,
    /// Index into `levels` of that level (P4 is 2).
    pub canonical_level: u32,
    /// Height/width ratios of the anchors.
    pub aspect_ratios: Vec<f32>,
    /// Where the anchors lie.
    #[serde(default, skip_serializing_if = "is_default")]
    pub anchor_rule: AnchorRule,
    /// Whether a bottleneck's stride sits on its first 1×1 convolution (the original MSRA weights) and not on its 3×3. The graphs have
    /// it built in; whoever trains on needs to know.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stride_in_1x1: bool,
    /// Region proposals.
    pub rpn: RpnSpec,
    /// RoIs of the box head.
    pub box_roi: RoiSpec,
    /// RoIs of the keypoint head.
    pub keypoint_roi: RoiSpec,
    /// Box coder weights of the box head (10, 10, 5, 5).
    pub box_coder: [f32; 4],
    /// Detections at or below this score are dropped.
    pub score_threshold: f32,
    /// IoU of the detections' NMS.
    pub nms_iou: f32,
    /// The most detections of a frame.
    pub max_detections: u32,
    /// Side of a heatmap, 56.
    pub heatmap_side: u32,
}

/// A frame that every device must label alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenFrame {
    /// PNG inside the bundle.
    pub image: String,
    /// JSON inside the bundle: `Vec<omnilabel_keypoints::label::Detection>` of a single view at the base scale.
    pub detections: String,
}
