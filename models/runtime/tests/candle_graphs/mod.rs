//! The graphs on candle, which trained and exported them, and pictures to try them on.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by tests, each of which uses a part")]

use candle_core::{Device, Tensor};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_rcnn::network::Network;
use omnilabel_runtime::{BackboneOutput, Graphs, RuntimeError};
use std::sync::Arc;

/// The network that was exported.
pub(crate) struct Candle(pub(crate) Arc<Network>);

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

impl Candle {
    fn rois(&self, rois: Vec<f32>, r: usize, side: u32) -> Tensor {
        let side = side as usize;
        Tensor::from_vec(rois, (r, self.0.config().fpn_channels, side, side), &Device::Cpu).unwrap()
    }
}

impl Graphs for Candle {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        let image = Tensor::from_slice(image, (1, 3, rows, columns), &Device::Cpu).unwrap();
        let levels = self.0.forward_backbone(&image).unwrap();
        let shape = |t: &Tensor| t.dims4().unwrap();
        Ok(BackboneOutput {
            features: levels.features.iter().map(|t| (values(t), shape(t).1, shape(t).2, shape(t).3)).collect(),
            objectness: levels.objectness.iter().map(|t| (values(t), shape(t).2, shape(t).3)).collect(),
            deltas: levels.deltas.iter().map(values).collect(),
        })
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        let (logits, deltas) = self.0.box_head(&self.rois(rois, r, self.0.config().network.box_roi.resolution)).unwrap();
        Ok((values(&logits), values(&deltas)))
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        Ok(values(&self.0.keypoint_head(&self.rois(rois, r, self.0.config().network.keypoint_roi.resolution)).unwrap()))
    }
}

/// Overlapping smooth and hard shapes.
pub(crate) fn drawn(width: u32, height: u32, seed: u32) -> Frame {
    let s = seed as f32;
    let colour = |x: f32, y: f32, c: f32| {
        let wave = 127.0 + 100.0 * (x / (11.0 + s) + c).sin() * (y / 17.0 + s).cos();
        let block = ((x + 7.0 * s) as u32 / 31 + (y as u32) / 23 + c as u32).is_multiple_of(3);
        if block { 255.0 - wave } else { wave }
    };
    let pixel = |i: u32| [0.0, 1.0, 2.0].map(|c| colour((i % width) as f32, (i / width) as f32, c) as u8);
    Frame { size: Size { width, height }, rgb: (0..width * height).flat_map(pixel).collect() }
}
