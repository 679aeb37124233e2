//! What a wrapped pose model's input and outputs mean.

use crate::check::{float, int};
use crate::{InputSpec, NetworkSpec};
use serde::{Deserialize, Serialize};

/// The largest side of a wrapped model's input, px.
const MAX_SIDE: u32 = 2048;
/// The largest side of a heatmap, cells.
const MAX_MAP_SIDE: u32 = 512;
/// The longest name of an output, bytes.
const MAX_NAME: usize = 256;

/// What kind of network a bundle holds. In JSON the key `network` or the key `pose`, never both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub enum Network {
    /// Keypoint R-CNN in three graphs.
    Rcnn(NetworkSpec),
    /// A pose model of somebody else's in one graph.
    Pose(PoseSpec),
}

/// [`Network`] as it is written.
#[derive(Serialize, Deserialize)]
struct Keys {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<NetworkSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pose: Option<PoseSpec>,
}

impl TryFrom<Keys> for Network {
    type Error = &'static str;

    fn try_from(keys: Keys) -> Result<Self, Self::Error> {
        match keys {
            Keys { network: Some(network), pose: None } => Ok(Self::Rcnn(network)),
            Keys { network: None, pose: Some(pose) } => Ok(Self::Pose(pose)),
            Keys { network: None, pose: None } => Err("expected the key `network` (keypoint R-CNN) or `pose` (a wrapped pose model)"),
            Keys { .. } => Err("expected either `network` or `pose`, not both"),
        }
    }
}

impl From<Network> for Keys {
    fn from(network: Network) -> Self {
        match network {
            Network::Rcnn(network) => Self { network: Some(network), pose: None },
            Network::Pose(pose) => Self { network: None, pose: Some(pose) },
        }
    }
}

impl From<NetworkSpec> for Network {
    fn from(network: NetworkSpec) -> Self {
        Self::Rcnn(network)
    }
}

impl From<PoseSpec> for Network {
    fn from(pose: PoseSpec) -> Self {
        Self::Pose(pose)
    }
}

impl Network {
    /// The keypoint R-CNN, if it is one.
    pub const fn rcnn(&self) -> Option<&NetworkSpec> {
        match self {
            Self::Rcnn(network) => Some(network),
            Self::Pose(_) => None,
        }
    }

    /// The same, to be changed.
    pub const fn rcnn_mut(&mut self) -> Option<&mut NetworkSpec> {
        match self {
            Self::Rcnn(network) => Some(network),
            Self::Pose(_) => None,
        }
    }

    /// The wrapped pose model, if it is one.
    pub const fn pose(&self) -> Option<&PoseSpec> {
        match self {
            Self::Rcnn(_) => None,
            Self::Pose(pose) => Some(pose),
        }
    }

    /// Whether it is top-down: labels people in boxes that another model finds.
    pub const fn takes_boxes(&self) -> bool {
        match self {
            Self::Rcnn(_) => false,
            Self::Pose(pose) => pose.output.crop().is_some(),
        }
    }
}

/// A wrapped pose model: one graph, one input `[1, 3, height, width]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoseSpec {
    /// Rows of the input at the base scale.
    pub height: u32,
    /// Columns of the input at the base scale.
    pub width: u32,
    /// What comes out.
    pub output: PoseOutput,
}

/// What the outputs mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PoseOutput {
    /// A map per keypoint (SimpleBaseline, HRNet, ViTPose); top-down.
    Heatmap(HeatmapSpec),
    /// A row of x bins and one of y bins per keypoint (SimCC, RTMPose); top-down.
    Simcc(SimccSpec),
    /// Boxes, scores and keypoints of the whole frame (YOLOv8-pose, YOLO11-pose).
    OneStage(OneStageSpec),
}

impl PoseOutput {
    /// How a person is cut out, if the model is top-down.
    pub const fn crop(&self) -> Option<CropSpec> {
        match self {
            Self::Heatmap(spec) => Some(spec.crop),
            Self::Simcc(spec) => Some(spec.crop),
            Self::OneStage(_) => None,
        }
    }

    /// The outputs that are read, in order.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Heatmap(spec) => vec![spec.output.clone()],
            Self::Simcc(spec) => vec![spec.x.clone(), spec.y.clone()],
            Self::OneStage(spec) => vec![spec.output.clone()],
        }
    }
}

/// How a person is cut out of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CropSpec {
    /// The box's sides grow by this factor (1.25) after the shorter one was lengthened to the input's aspect ratio.
    pub padding: f32,
    /// Unbiased data processing (Huang et al., CVPR 2020): n pixels are n − 1 units long, so that the first and last pixels of crop, map
    /// and box lie upon each other; else n units (SimpleBaseline).
    pub udp: bool,
}

/// What the values of heatmaps and SimCC rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    /// Confidences: the peak is the probability (targets were Gaussians of height 1).
    Peak,
    /// Logits of a sigmoid at each cell.
    Sigmoid,
    /// Logits of a softmax over the map, or over the row.
    Softmax,
}

/// How a peak is placed between the cells of a heatmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refine {
    /// Not at all.
    None,
    /// A quarter of a cell towards the higher neighbour (SimpleBaseline).
    Quarter,
    /// A Taylor step on the logarithm of the smoothed map (DARK, Zhang et al., CVPR 2020).
    Dark {
        /// Side of the Gaussian, cells, odd: 11 for targets of σ = 2, 17 for σ = 3.
        blur: u32,
    },
}

/// A map per keypoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeatmapSpec {
    /// How a person is cut out.
    pub crop: CropSpec,
    /// The output, `[1, k, rows, columns]`.
    pub output: String,
    /// Rows of a map.
    pub rows: u32,
    /// Columns of a map.
    pub columns: u32,
    /// What its values are.
    pub values: Values,
    /// How the peak is refined.
    pub refine: Refine,
    /// Shift the maps of a mirrored crop right by a cell after mirroring them back (SimpleBaseline's `SHIFT_HEATMAP`: its cells are not
    /// symmetric in the crop).
    pub shift_flipped: bool,
}

/// Rows of bins along x and y per keypoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimccSpec {
    /// How a person is cut out.
    pub crop: CropSpec,
    /// The output along x, `[1, k, width · split_ratio]`.
    pub x: String,
    /// The output along y, `[1, k, height · split_ratio]`.
    pub y: String,
    /// Bins per pixel of the input (2).
    pub split_ratio: f32,
    /// What the values are.
    pub values: Values,
}

impl SimccSpec {
    /// Bins of a side of `pixels`.
    pub fn bins(&self, pixels: u32) -> usize {
        (f64::from(pixels) * f64::from(self.split_ratio)).round() as usize
    }
}

/// Where the picture lies in a letterbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Letterbox {
    /// In the middle (Ultralytics).
    Centre,
    /// At the upper left.
    TopLeft,
}

/// Everybody at once: `[1, 4 + (1 if objectness) + classes + 3k, candidates]` or its transpose, rows `cx, cy, w, h, (objectness,)
/// class scores, (x, y, visibility) per keypoint` in pixels of the input, scores and visibilities in `[0, 1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneStageSpec {
    /// The output.
    pub output: String,
    /// Classes.
    pub classes: u32,
    /// The class of people.
    pub class: u32,
    /// Whether an objectness precedes the class scores and multiplies them (YOLOv7-pose).
    pub objectness: bool,
    /// Where the picture lies.
    pub letterbox: Letterbox,
    /// Grey level around it (114).
    pub fill: u8,
    /// Detections at or below this score are dropped.
    pub score_threshold: f32,
    /// IoU of the NMS of each view.
    pub nms_iou: f32,
    /// The most detections of a frame.
    pub max_detections: u32,
}

impl OneStageSpec {
    /// Numbers of one candidate with `keypoints` keypoints.
    pub const fn channels(&self, keypoints: usize) -> usize {
        4 + self.objectness as usize + self.classes as usize + 3 * keypoints
    }
}

impl PoseSpec {
    /// Checks every field against the ranges and the input.
    ///
    /// # Errors
    /// A message that names the field, what was expected and what came.
    pub fn check(&self, input: &InputSpec) -> Result<(), String> {
        int("pose.height", self.height, 16..=MAX_SIDE)?;
        int("pose.width", self.width, 16..=MAX_SIDE)?;
        let (short, long) = (self.height.min(self.width), self.height.max(self.width));
        int("input.short_side", input.short_side, short..=short)?;
        int("input.max_long_side", input.max_long_side, long..=long)?;
        match &self.output {
            PoseOutput::Heatmap(spec) => {
                int("input.size_divisor", input.size_divisor, 1..=1)?;
                crop(spec.crop)?;
                name("pose.output.output", &spec.output)?;
                int("pose.output.rows", spec.rows, 2..=MAX_MAP_SIDE)?;
                int("pose.output.columns", spec.columns, 2..=MAX_MAP_SIDE)?;
                if let Refine::Dark { blur } = spec.refine {
                    int("pose.output.refine.dark.blur", blur, 3..=31)?;
                    if blur % 2 == 0 {
                        return Err(format!("pose.output.refine.dark.blur is {blur}, expected an odd number"));
                    }
                }
                Ok(())
            }
            PoseOutput::Simcc(spec) => {
                int("input.size_divisor", input.size_divisor, 1..=1)?;
                crop(spec.crop)?;
                name("pose.output.x", &spec.x)?;
                name("pose.output.y", &spec.y)?;
                if spec.x == spec.y {
                    return Err(format!("pose.output.y is {:?}, which is the output along x", spec.y));
                }
                float("pose.output.split_ratio", spec.split_ratio, 0.25..=8.0)
            }
            PoseOutput::OneStage(spec) => {
                name("pose.output.output", &spec.output)?;
                for (field, side) in [("pose.height", self.height), ("pose.width", self.width)] {
                    if side % input.size_divisor != 0 {
                        return Err(format!("{field} is {side}, expected a multiple of input.size_divisor {}", input.size_divisor));
                    }
                }
                int("pose.output.classes", spec.classes, 1..=1000)?;
                int("pose.output.class", spec.class, 0..=spec.classes - 1)?;
                float("pose.output.score_threshold", spec.score_threshold, 0.0..=1.0)?;
                float("pose.output.nms_iou", spec.nms_iou, 0.0..=1.0)?;
                int("pose.output.max_detections", spec.max_detections, 1..=1000)
            }
        }
    }
}

fn crop(spec: CropSpec) -> Result<(), String> {
    float("pose.output.crop.padding", spec.padding, 1.0..=4.0)
}

fn name(field: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!("{field}: expected the name of an output, 1 to {MAX_NAME} bytes without control characters"));
    }
    Ok(())
}
