//! The feature pyramid: 1×1 lateral, nearest ×2 top-down sum, 3×3; P6 by subsampling P5.

use super::layer::{Conv, Shape};
use crate::RcnnError;
use crate::config::Config;
use crate::ops::{subsample2, upsample_nearest2};
use crate::params::Params;
use candle_core::Tensor;

/// Lateral and output convolutions, finest first.
#[derive(Debug)]
pub(crate) struct Fpn {
    pub(crate) inner: Vec<Conv>,
    pub(crate) layer: Vec<Conv>,
}

impl Fpn {
    pub(crate) fn new(config: &Config, params: &mut Params) -> Result<Self, RcnnError> {
        let (mut inner, mut layer) = (Vec::new(), Vec::new());
        for (index, &channels) in config.channels.iter().enumerate() {
            let shape = Shape::same(channels, config.fpn_channels, 1);
            inner.push(Conv::with_bias(params, &format!("backbone.fpn.inner_blocks.{index}.0"), shape, shape.kaiming_uniform())?);
            let shape = Shape::same(config.fpn_channels, config.fpn_channels, 3);
            layer.push(Conv::with_bias(params, &format!("backbone.fpn.layer_blocks.{index}.0"), shape, shape.kaiming_uniform())?);
        }
        Ok(Self { inner, layer })
    }

    /// P2, P3, …, and P6 last.
    pub(crate) fn forward(&self, stages: &[Tensor]) -> Result<Vec<Tensor>, RcnnError> {
        let mut outputs = Vec::with_capacity(stages.len() + 1);
        let mut above: Option<Tensor> = None;
        for ((inner, layer), stage) in self.inner.iter().zip(&self.layer).zip(stages).rev() {
            let mut merged = inner.forward(stage)?;
            if let Some(above) = above {
                merged = merged.add(&upsample_nearest2(&above)?)?;
            }
            outputs.push(layer.forward(&merged)?);
            above = Some(merged);
        }
        outputs.reverse();
        if let Some(last) = outputs.last() {
            let extra = subsample2(last)?;
            outputs.push(extra);
        }
        Ok(outputs)
    }
}
