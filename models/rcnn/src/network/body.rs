//! The residual body C2…C5: basic or bottleneck blocks, frozen batch-norm, groups (ResNeXt).

use super::layer::{Conv, Pass, STEM_POOL, Shape, Train};
use crate::RcnnError;
use crate::config::{Block, Config};
use crate::ops::{add_relu, max_pool2d};
use crate::params::Params;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Stem and stages.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) stem: Stem,
    pub(crate) stages: Vec<Vec<Residual>>,
}

/// A stride-2 convolution, with a stride-2 max-pool or without.
#[derive(Debug)]
pub(crate) struct Stem {
    pub(crate) conv: Conv,
    pub(crate) pool: bool,
}

/// `relu(branch(x) + shortcut(x))`.
#[derive(Debug)]
pub(crate) struct Residual {
    pub(crate) branch: Vec<Conv>,
    pub(crate) shortcut: Option<Conv>,
}

impl Body {
    pub(crate) fn new(config: &Config, params: &mut Params) -> Result<Self, RcnnError> {
        let root = "backbone.body";
        let train =
            |part: usize| Train { weight: part >= config.frozen_stages, affine: config.train_affine && part >= config.frozen_stages };
        let shape = Shape::same(3, config.stem_channels, config.stem_kernel).stride(2).relu();
        let stem = Stem {
            conv: Conv::with_norm(params, &format!("{root}.conv1"), &format!("{root}.bn1"), shape, train(0))?,
            pool: config.stem_pool,
        };
        let mut input = config.stem_channels;
        let mut stages = Vec::with_capacity(config.blocks.len());
        for (stage, &count) in config.blocks.iter().enumerate() {
            let (width, output) = (config.widths[stage], config.channels[stage]);
            let mut blocks = Vec::with_capacity(count);
            for index in 0..count {
                // Without a pool in the stem, stage 1 brings the stride to 4.
                let stride = if index == 0 && (stage > 0 || !config.stem_pool) { 2 } else { 1 };
                let name = format!("{root}.layer{}.{index}", stage + 1);
                let shapes = match config.block {
                    Block::Basic => vec![
                        Shape::same(input, width, 3).stride(stride).groups(config.groups).relu(),
                        Shape::same(width, output, 3).groups(config.groups),
                    ],
                    Block::Bottleneck => {
                        let (first, second) = if config.network.stride_in_1x1 { (stride, 1) } else { (1, stride) };
                        vec![
                            Shape::same(input, width, 1).stride(first).relu(),
                            Shape::same(width, width, 3).stride(second).groups(config.groups).relu(),
                            Shape::same(width, output, 1),
                        ]
                    }
                };
                let branch = shapes
                    .into_iter()
                    .enumerate()
                    .map(|(i, shape)| {
                        let i = i + 1;
                        Conv::with_norm(params, &format!("{name}.conv{i}"), &format!("{name}.bn{i}"), shape, train(stage + 1))
                    })
                    .collect::<Result<_, _>>()?;
                let shortcut = if stride != 1 || input != output {
                    let shape = Shape::same(input, output, 1).stride(stride);
                    let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                    Some(Conv::with_norm(params, &conv, &norm, shape, train(stage + 1))?)
                } else {
                    None
                };
                blocks.push(Residual { branch, shortcut });
                input = output;
            }
            stages.push(blocks);
        }
        Ok(Self { stem, stages })
    }

    /// C2, C3, … of `[n, 3, h, w]`.
    pub(crate) fn forward(&self, images: &Tensor, pass: Pass) -> Result<Vec<Tensor>, RcnnError> {
        let mut x = self.stem.conv.forward_pass(images, pass)?;
        if self.stem.pool {
            let (kernel, stride, padding) = STEM_POOL;
            x = max_pool2d(&x, kernel, stride, padding)?;
        }
        let mut outputs = Vec::with_capacity(self.stages.len());
        for block in &self.stages {
            for residual in block {
                x = residual.forward(&x, pass)?;
            }
            outputs.push(x.clone());
        }
        Ok(outputs)
    }

    fn convs(&self) -> impl Iterator<Item = &Conv> {
        let blocks = self.stages.iter().flatten().flat_map(|block| block.branch.iter().chain(&block.shortcut));
        std::iter::once(&self.stem.conv).chain(blocks)
    }

    /// See [`Conv::unfold`].
    pub(crate) fn unfold(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), RcnnError> {
        self.convs().try_for_each(|conv| conv.unfold(tensors))
    }
}

impl Residual {
    fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor, RcnnError> {
        let mut y = x.clone();
        for conv in &self.branch {
            y = conv.forward_pass(&y, pass)?;
        }
        match &self.shortcut {
            Some(conv) => Ok(add_relu(&y, &conv.forward_pass(x, pass)?)?),
            None => Ok(add_relu(&y, x)?),
        }
    }
}
