//! RPN head, box head and keypoint head.

use super::layer::{Conv, Linear, Shape};
use crate::RcnnError;
use crate::config::Config;
use crate::device::Arithmetic;
use crate::export::deconv::unshuffled;
use crate::ops::{ConvSpec, conv_transpose2d, upsample_bilinear2};
use crate::params::{Fill, Params};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Standard deviation of the RPN head's initial weights (torchvision).
const RPN_STD: Fill = Fill::Normal(0.01);

/// 3×3 and ReLU, then objectness and deltas by 1×1; shared by all levels.
#[derive(Debug)]
pub(crate) struct RpnHead {
    pub(crate) conv: Conv,
    pub(crate) objectness: Conv,
    pub(crate) deltas: Conv,
}

impl RpnHead {
    pub(crate) fn new(config: &Config, params: &mut Params) -> Result<Self, RcnnError> {
        let (c, anchors) = (config.fpn_channels, config.network.aspect_ratios.len());
        Ok(Self {
            conv: Conv::with_bias(params, "rpn.head.conv.0.0", Shape::same(c, c, 3).relu(), RPN_STD)?,
            objectness: Conv::with_bias(params, "rpn.head.cls_logits", Shape::same(c, anchors, 1), RPN_STD)?,
            deltas: Conv::with_bias(params, "rpn.head.bbox_pred", Shape::same(c, 4 * anchors, 1), RPN_STD)?,
        })
    }

    pub(crate) fn forward(&self, features: &[Tensor]) -> Result<(Vec<Tensor>, Vec<Tensor>), RcnnError> {
        let (mut objectness, mut deltas) = (Vec::new(), Vec::new());
        for feature in features {
            let hidden = self.conv.forward(feature)?;
            objectness.push(self.objectness.forward(&hidden)?);
            deltas.push(self.deltas.forward(&hidden)?);
        }
        Ok((objectness, deltas))
    }
}

/// Two fully connected layers, then classes and deltas.
#[derive(Debug)]
pub(crate) struct BoxHead {
    pub(crate) fc6: Linear,
    pub(crate) fc7: Linear,
    pub(crate) classes: Linear,
    pub(crate) deltas: Linear,
}

/// Background and person.
const CLASSES: usize = 2;

impl BoxHead {
    pub(crate) fn new(config: &Config, params: &mut Params) -> Result<Self, RcnnError> {
        let cells = config.network.box_roi.resolution.pow(2) as usize;
        let hidden = config.box_hidden;
        let root = "roi_heads";
        Ok(Self {
            fc6: Linear::new(params, &format!("{root}.box_head.fc6"), config.fpn_channels * cells, hidden, true)?,
            fc7: Linear::new(params, &format!("{root}.box_head.fc7"), hidden, hidden, true)?,
            classes: Linear::new(params, &format!("{root}.box_predictor.cls_score"), hidden, CLASSES, false)?,
            deltas: Linear::new(params, &format!("{root}.box_predictor.bbox_pred"), hidden, 4 * CLASSES, false)?,
        })
    }

    pub(crate) fn forward(&self, rois: &Tensor) -> Result<(Tensor, Tensor), RcnnError> {
        let hidden = self.fc7.forward(&self.fc6.forward(&rois.flatten_from(1)?)?)?;
        Ok((self.classes.forward(&hidden)?, self.deltas.forward(&hidden)?))
    }
}

/// 3×3 convolutions with ReLU, a transposed convolution (k 4, s 2, p 1), bilinear ×2.
#[derive(Debug)]
pub(crate) struct KeypointHead {
    pub(crate) convs: Vec<Conv>,
    /// Name of the transposed convolution without `.weight`.
    pub(crate) deconv: String,
    /// `[c, k, 4, 4]`.
    pub(crate) weight: Tensor,
    /// `[k]`.
    pub(crate) bias: Tensor,
    arithmetic: Arithmetic,
}

/// Stride 2, padding 1: doubles the map with a kernel of [`DECONV_KERNEL`].
pub(crate) const DECONV: ConvSpec = ConvSpec { stride: 2, ..ConvSpec::padded(1) };
/// Side of the transposed convolution's kernel.
pub(crate) const DECONV_KERNEL: usize = 4;

impl KeypointHead {
    pub(crate) fn new(config: &Config, params: &mut Params) -> Result<Self, RcnnError> {
        let mut input = config.fpn_channels;
        let mut convs = Vec::with_capacity(config.keypoint_convs);
        for index in 0..config.keypoint_convs {
            let shape = Shape::same(input, config.keypoint_channels, 3).relu();
            // torchvision's head is a sequence in which each convolution is followed by its ReLU.
            convs.push(Conv::with_bias(params, &format!("roi_heads.keypoint_head.{}", 2 * index), shape, shape.he_fan_out())?);
            input = config.keypoint_channels;
        }
        let deconv = "roi_heads.keypoint_predictor.kps_score_lowres".to_owned();
        // torch takes the fan-out of a transposed convolution from its first dimension, the input channels.
        let fill = Fill::Normal((2.0 / (input * DECONV_KERNEL * DECONV_KERNEL) as f32).sqrt());
        let shape = [input, config.keypoints, DECONV_KERNEL, DECONV_KERNEL];
        let weight = params.add(&format!("{deconv}.weight"), &shape, fill, true)?;
        let bias = params.add(&format!("{deconv}.bias"), &[config.keypoints], Fill::Constant(0.0), true)?;
        Ok(Self { convs, deconv, weight, bias, arithmetic: params.arithmetic() })
    }

    /// Names of the exported weight and bias, see [`crate::export::deconv`].
    pub(crate) fn exported_names(&self) -> (String, String) {
        (format!("{}.shuffled.weight", self.deconv), format!("{}.shuffled.bias", self.deconv))
    }

    /// Where `tensors` holds the transposed convolution as it is exported, puts the transposed convolution in its place.
    pub(crate) fn unfold(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), RcnnError> {
        let (weight, bias) = self.exported_names();
        if let (Some(weight), Some(bias)) = (tensors.remove(&weight), tensors.remove(&bias)) {
            let (weight, bias) = unshuffled(&weight, &bias)?;
            tensors.insert(format!("{}.weight", self.deconv), weight);
            tensors.insert(format!("{}.bias", self.deconv), bias);
        }
        Ok(())
    }

    pub(crate) fn forward(&self, rois: &Tensor) -> Result<Tensor, RcnnError> {
        Ok(upsample_bilinear2(&self.maps(rois)?)?)
    }

    /// Without the bilinear ×2.
    pub(crate) fn maps(&self, rois: &Tensor) -> Result<Tensor, RcnnError> {
        let mut x = rois.clone();
        for conv in &self.convs {
            x = conv.forward(&x)?;
        }
        let spec = ConvSpec { arithmetic: self.arithmetic, ..DECONV };
        Ok(conv_transpose2d(&x, &self.weight, Some(&self.bias), spec)?)
    }
}
