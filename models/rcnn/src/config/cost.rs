//! What a network costs: multiply-accumulates, counted layer by layer from the configuration (spec §1).

use super::{Block, Config};
use crate::RcnnError;
use crate::network::{DECONV_KERNEL, Network};
use candle_core::DType;

/// Multiply-accumulates of one image. Biases, activations, pooling and resizing are not counted, as is usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Body.
    pub body: u64,
    /// Feature pyramid.
    pub fpn: u64,
    /// RPN head.
    pub rpn: u64,
    /// Box head on all RoIs.
    pub box_head: u64,
    /// Keypoint head on all people.
    pub keypoint_head: u64,
}

impl Macs {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.body + self.fpn + self.rpn + self.box_head + self.keypoint_head
    }
}

impl Config {
    /// Number of weights and biases, see [`crate::params::Params::parameters`].
    ///
    /// # Errors
    /// [`RcnnError::Config`].
    pub fn parameters(&self) -> Result<usize, RcnnError> {
        Ok(Network::zeros(self.clone(), DType::F32)?.params().parameters())
    }

    /// The cost of an input of `rows` by `columns` px, padded, with so many RoIs in the box head and people in the keypoint head.
    pub fn macs(&self, rows: usize, columns: usize, rois: usize, people: usize) -> Macs {
        // Sides are halved rounding up: convolutions and pools of stride 2 are padded.
        let cells = |stride: usize| (rows.div_ceil(stride) * columns.div_ceil(stride)) as u64;
        let mut body = cells(2) * (3 * self.stem_channels * self.stem_kernel.pow(2)) as u64;
        let mut input = self.stem_channels;
        for (stage, &blocks) in self.blocks.iter().enumerate() {
            let (width, output) = (self.widths[stage], self.channels[stage]);
            let at = cells(4 << stage);
            for block in 0..blocks {
                let strides = block == 0 && (stage > 0 || !self.stem_pool);
                let before = if strides { cells(2 << stage) } else { at };
                let grouped = width * width / self.groups * 9;
                body += match self.block {
                    Block::Basic => at * ((input * width / self.groups + width * output / self.groups) * 9) as u64,
                    Block::Bottleneck => {
                        let first = if self.network.stride_in_1x1 { at } else { before };
                        first * (input * width) as u64 + at * (grouped + width * output) as u64
                    }
                };
                if strides || input != output {
                    body += at * (input * output) as u64;
                }
                input = output;
            }
        }
        let (c, anchors) = (self.fpn_channels, self.network.aspect_ratios.len());
        let fpn = self.channels.iter().enumerate().map(|(stage, channels)| cells(4 << stage) * (channels * c + 9 * c * c) as u64).sum();
        let rpn = self.network.levels.iter().map(|level| cells(level.stride as usize) * (9 * c * c + 5 * anchors * c) as u64).sum();
        let hidden = self.box_hidden;
        let pooled = c * (self.network.box_roi.resolution as usize).pow(2);
        // Two classes and two sets of four deltas.
        let box_head = (rois * (pooled * hidden + hidden * hidden + hidden * 10)) as u64;
        let head = self.keypoint_channels;
        let convs: usize = (0..self.keypoint_convs).map(|index| if index == 0 { c } else { head } * head * 9).sum();
        let deconv = if self.keypoint_convs == 0 { c } else { head } * self.keypoints * DECONV_KERNEL.pow(2);
        let keypoint_head = (people * (convs + deconv)) as u64 * u64::from(self.network.keypoint_roi.resolution.pow(2));
        Macs { body, fpn, rpn, box_head, keypoint_head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec §1: 137.4 GMAC at 800×800 (torchvision states 137.42), and the table for 800×1344.
    #[test]
    fn the_figures_of_the_specification() {
        let config = Config::resnet50(17);
        let giga = |macs: u64| macs as f64 / 1e9;
        assert!((giga(config.macs(800, 800, 1000, 1).total()) - 137.42).abs() < 0.01);
        let macs = config.macs(800, 1344, 1000, 1);
        for (found, expected) in [(macs.body, 87.6), (macs.fpn, 60.9), (macs.rpn, 53.1), (macs.box_head, 13.9), (macs.keypoint_head, 3.5)] {
            assert!((giga(found) - expected).abs() < 0.051, "{found}, the specification says {expected}");
        }
        // Two halves of the same work: half the RoIs and no person.
        assert_eq!(2 * config.macs(64, 64, 10, 0).box_head, config.macs(64, 64, 20, 0).box_head);
        assert!(Config::resnext101_32x4d(17).macs(800, 800, 0, 0).body < config.macs(800, 800, 0, 0).body * 3);
    }
}
