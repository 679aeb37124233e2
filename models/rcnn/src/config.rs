//! Every size of the network, and the presets.

mod cost;

pub use cost::Macs;

use crate::RcnnError;
use omnilabel_bundle::{AnchorRule, Channels, IMAGENET, InputSpec, LevelSpec, NetworkSpec, RoiSpec, RpnSpec};
use serde::{Deserialize, Serialize};

/// What an input's short side may be, px.
pub const SHORT_SIDES: std::ops::RangeInclusive<u32> = 16..=4096;

/// The kind of a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3, 1×1; the stride sits on the 3×3, or on the first 1×1 where `network.stride_in_1x1` says so (spec §1).
    Bottleneck,
}

/// The network's structure. Names of tensors follow torchvision's `keypointrcnn_*_fpn`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the preset.
    pub name: String,
    /// Number of keypoints, `k`.
    pub keypoints: usize,
    /// Channels of the stem convolution.
    pub stem_channels: usize,
    /// Kernel of the stem convolution, 7 or 3; stride 2.
    pub stem_kernel: usize,
    /// Whether a 3×3 stride-2 max-pool follows (ResNet); without it, stage 1 strides instead.
    pub stem_pool: bool,
    /// Kind of block.
    pub block: Block,
    /// Blocks per stage, C2 first.
    pub blocks: Vec<usize>,
    /// Inner width of the blocks of each stage.
    pub widths: Vec<usize>,
    /// Output channels per stage.
    pub channels: Vec<usize>,
    /// Groups of the 3×3 convolutions.
    pub groups: usize,
    /// Whether the weight and bias of the body's frozen batch-norms are trained (from scratch); the statistics never are.
    pub train_affine: bool,
    /// Leading parts of the body that are not trained: 1 is the stem, 2 the stem and the first stage.
    pub frozen_stages: usize,
    /// FPN channels.
    pub fpn_channels: usize,
    /// Hidden units of the box head's two layers.
    pub box_hidden: usize,
    /// 3×3 convolutions of the keypoint head.
    pub keypoint_convs: usize,
    /// Their channels.
    pub keypoint_channels: usize,
    /// Input transform.
    pub input: InputSpec,
    /// What lies between the graphs, with the RPN's sizes at inference.
    pub network: NetworkSpec,
    /// The RPN's sizes in training.
    pub rpn_train: RpnSpec,
    /// Anchors sampled per image.
    pub rpn_batch: usize,
    /// RoIs sampled per image.
    pub roi_batch: usize,
    /// Share of foreground among them.
    pub roi_positive: f32,
    /// The most foreground RoIs per image whose keypoints are trained; spec: all. A preset for small machines may limit it.
    pub keypoint_rois: Option<usize>,
}

/// The mean pixel of Caffe's ImageNet weights, blue first, which Detectron's models subtract from values in `[0, 255]`.
const CAFFE_MEAN: [f32; 3] = [103.53, 116.28, 123.675];

/// Names of the presets: for small machines, the paper's networks, and their small twins, each smallest first.
pub const PRESETS: [&str; 9] = [
    "nano",
    "resnet50",
    "resnet101",
    "resnext101_32x4d",
    "resnext101_64x4d",
    "mini_resnet50",
    "mini_resnet101",
    "mini_resnext101_32x4d",
    "mini_resnext101_64x4d",
];

impl Config {
    /// The paper's network with one of its four bodies (spec §1): blocks of the third stage, groups, width of a group in stage 1.
    fn paper(name: &str, keypoints: usize, blocks: usize, groups: usize, group_width: usize) -> Self {
        let rpn = RpnSpec { pre_nms_top_n: 1000, post_nms_top_n: 1000, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.0 };
        let nano = Self::nano(keypoints);
        Self {
            name: name.to_owned(),
            stem_channels: 64,
            stem_kernel: 7,
            stem_pool: true,
            block: Block::Bottleneck,
            blocks: vec![3, 4, blocks, 3],
            widths: (0..4).map(|stage| (groups * group_width) << stage).collect(),
            channels: vec![256, 512, 1024, 2048],
            groups,
            train_affine: false,
            frozen_stages: 2,
            fpn_channels: 256,
            box_hidden: 1024,
            keypoint_convs: 8,
            keypoint_channels: 512,
            input: InputSpec { short_side: 800, max_long_side: 1333, ..nano.input },
            network: NetworkSpec {
                levels: (0..5).map(|level| LevelSpec { stride: 4 << level, anchor_size: (32 << level) as f32 }).collect(),
                anchor_rule: AnchorRule::Torchvision,
                rpn,
                max_detections: 100,
                ..nano.network
            },
            rpn_train: RpnSpec { pre_nms_top_n: 2000, post_nms_top_n: 2000, ..rpn },
            rpn_batch: 256,
            roi_batch: 512,
            roi_positive: 0.25,
            keypoint_rois: None,
            ..nano
        }
    }

    /// ResNet-50 (He et al. 2016) with FPN: torchvision's `keypointrcnn_resnet50_fpn`.
    pub fn resnet50(keypoints: usize) -> Self {
        Self::paper("resnet50", keypoints, 6, 1, 64)
    }

    /// ResNet-101.
    pub fn resnet101(keypoints: usize) -> Self {
        Self::paper("resnet101", keypoints, 23, 1, 64)
    }

    /// ResNeXt-101-32×4d (Xie et al. 2017).
    pub fn resnext101_32x4d(keypoints: usize) -> Self {
        Self::paper("resnext101_32x4d", keypoints, 23, 32, 4)
    }

    /// ResNeXt-101-64×4d.
    pub fn resnext101_64x4d(keypoints: usize) -> Self {
        Self::paper("resnext101_64x4d", keypoints, 23, 64, 4)
    }

    /// A twin of one of the paper's bodies for experiments on two cores: the same blocks, stages and groups at an eighth of the width, trained
    /// from scratch, with `nano`'s pyramid, heads and input. A group has at least one channel, so that the inner width of a ResNeXt's blocks
    /// is a quarter.
    fn mini(name: &str, keypoints: usize, paper: Self) -> Self {
        let nano = Self::nano(keypoints);
        let eighth = |width: &usize| width / 8;
        let inner = (paper.widths[0] / 8).max(paper.groups);
        Self {
            name: name.to_owned(),
            stem_channels: paper.stem_channels / 8,
            stem_kernel: paper.stem_kernel,
            stem_pool: paper.stem_pool,
            block: paper.block,
            widths: (0..paper.widths.len()).map(|stage| inner << stage).collect(),
            channels: paper.channels.iter().map(eighth).collect(),
            blocks: paper.blocks,
            groups: paper.groups,
            ..nano
        }
    }

    /// The same structure by Detectron2's conventions: blue first, standard deviation 1 on values in `[0, 255]`, RoIAlign with the
    /// half-pixel shift and as many samples as the RoI needs, anchors not rounded, and the body's stride where `stride_in_1x1` says
    /// (`MODEL.RESNETS.STRIDE_IN_1X1`: true with the original MSRA weights).
    #[must_use]
    pub fn detectron2(mut self, stride_in_1x1: bool) -> Self {
        self.input.channels = Channels::Bgr;
        self.input.mean = CAFFE_MEAN.map(|mean| mean / 255.0);
        self.input.std = [1.0 / 255.0; 3];
        self.network.anchor_rule = AnchorRule::Exact;
        self.network.stride_in_1x1 = stride_in_1x1;
        for roi in [&mut self.network.box_roi, &mut self.network.keypoint_roi] {
            (roi.aligned, roi.sampling_ratio) = (true, 0);
        }
        self
    }
    /// About 1 M parameters, images up to 256 px, trainable on two cores.
    ///
    /// People of 30 to 140 px: anchors of 12 to 192 px, and RoI levels such that the 14×14 cells of a keypoint RoI cover 8 to 16
    /// cells of their level, as in the paper's network at 800 px.
    pub fn nano(keypoints: usize) -> Self {
        let rpn = RpnSpec { pre_nms_top_n: 300, post_nms_top_n: 100, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.0 };
        let level = |stride, anchor_size| LevelSpec { stride, anchor_size };
        let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
        Self {
            name: "nano".to_owned(),
            keypoints,
            stem_channels: 24,
            stem_kernel: 3,
            stem_pool: false,
            block: Block::Basic,
            blocks: vec![1, 1, 1, 1],
            widths: vec![32, 64, 128, 160],
            channels: vec![32, 64, 128, 160],
            groups: 1,
            train_affine: true,
            frozen_stages: 0,
            fpn_channels: 32,
            box_hidden: 128,
            keypoint_convs: 3,
            keypoint_channels: 48,
            input: InputSpec {
                short_side: 128,
                max_long_side: 256,
                size_divisor: 32,
                mean: IMAGENET.0,
                std: IMAGENET.1,
                channels: Channels::Rgb,
            },
            network: NetworkSpec {
                levels: vec![level(4, 12.0), level(8, 24.0), level(16, 48.0), level(32, 96.0), level(64, 192.0)],
                roi_levels: 4,
                canonical_size: 224.0,
                canonical_level: 2,
                aspect_ratios: vec![0.5, 1.0, 2.0],
                anchor_rule: AnchorRule::Rounded,
                stride_in_1x1: false,
                rpn,
                box_roi: roi(7),
                keypoint_roi: roi(14),
                box_coder: [10.0, 10.0, 5.0, 5.0],
                score_threshold: 0.05,
                nms_iou: 0.5,
                max_detections: 20,
                heatmap_side: 56,
            },
            rpn_train: RpnSpec { pre_nms_top_n: 500, post_nms_top_n: 200, ..rpn },
            rpn_batch: 128,
            roi_batch: 32,
            roi_positive: 0.25,
            keypoint_rois: Some(4),
        }
    }

    /// A preset by name.
    pub fn preset(name: &str, keypoints: usize) -> Option<Self> {
        match name {
            "nano" => Some(Self::nano(keypoints)),
            "resnet50" => Some(Self::resnet50(keypoints)),
            "resnet101" => Some(Self::resnet101(keypoints)),
            "resnext101_32x4d" => Some(Self::resnext101_32x4d(keypoints)),
            "resnext101_64x4d" => Some(Self::resnext101_64x4d(keypoints)),
            "mini_resnet50" => Some(Self::mini(name, keypoints, Self::resnet50(keypoints))),
            "mini_resnet101" => Some(Self::mini(name, keypoints, Self::resnet101(keypoints))),
            "mini_resnext101_32x4d" => Some(Self::mini(name, keypoints, Self::resnext101_32x4d(keypoints))),
            "mini_resnext101_64x4d" => Some(Self::mini(name, keypoints, Self::resnext101_64x4d(keypoints))),
            _ => None,
        }
    }

    /// Pixels of the input per cell of each stage's output, C2 first.
    pub fn strides(&self) -> Vec<u32> {
        (0..self.blocks.len() as u32).map(|stage| 4 << stage).collect()
    }

    /// Refuses what the network cannot be built from.
    ///
    /// # Errors
    /// [`RcnnError::Config`] naming the field, what is expected and what came.
    pub fn validate(&self) -> Result<(), RcnnError> {
        let fail = |message: String| Err(RcnnError::Config(message));
        let stages = self.blocks.len();
        if stages == 0 || self.widths.len() != stages || self.channels.len() != stages {
            let (widths, channels) = (self.widths.len(), self.channels.len());
            return fail(format!("blocks, widths and channels have {stages}, {widths} and {channels} entries, one number is expected"));
        }
        let sizes = [
            ("keypoints", self.keypoints),
            ("stem_channels", self.stem_channels),
            ("groups", self.groups),
            ("fpn_channels", self.fpn_channels),
            ("box_hidden", self.box_hidden),
            ("keypoint_channels", self.keypoint_channels),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return fail(format!("{name} is 0, at least 1 is expected"));
        }
        if self.stem_kernel.is_multiple_of(2) {
            return fail(format!("stem_kernel is {}, an odd number is expected", self.stem_kernel));
        }
        if let Some(width) = self.widths.iter().find(|width| !width.is_multiple_of(self.groups)) {
            return fail(format!("widths: {width} is no multiple of groups = {}", self.groups));
        }
        if self.blocks.contains(&0) || self.widths.contains(&0) || self.channels.contains(&0) {
            return fail("blocks, widths and channels must all be at least 1".to_owned());
        }
        let levels: Vec<u32> = self.network.levels.iter().map(|level| level.stride).collect();
        let expected: Vec<u32> = (0..=stages as u32).map(|stage| 4 << stage).collect();
        if levels != expected {
            return fail(format!("network.levels have strides {levels:?}, {stages} stages and P6 give {expected:?}"));
        }
        if self.network.roi_levels as usize > stages || self.network.roi_levels == 0 {
            return fail(format!("network.roi_levels is {}, 1 to {stages} is expected", self.network.roi_levels));
        }
        if !self.input.size_divisor.is_multiple_of(4 << (stages - 1)) || self.input.size_divisor == 0 {
            return fail(format!("input.size_divisor is {}, a multiple of {} is expected", self.input.size_divisor, 4 << (stages - 1)));
        }
        if self.network.keypoint_roi.resolution * 4 != self.network.heatmap_side {
            let (roi, side) = (self.network.keypoint_roi.resolution, self.network.heatmap_side);
            return fail(format!("network.heatmap_side is {side}, four times keypoint_roi.resolution = {roi} is expected"));
        }
        Ok(())
    }
}
