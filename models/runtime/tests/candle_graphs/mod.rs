//! The graphs on candle, which trained and exported them, and pictures to try them on.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by tests, each of which uses a part")]

use candle_core::{Device, Tensor};
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::export::{ExportMeta, write_bundle};
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

const NAMES: [&str; 3] = ["nose", "left_hand", "right_hand"];

/// A random network whose outputs are loud enough to differ between places, and its bundle.
pub(crate) fn exported(config: Config) -> (tempfile::TempDir, Bundle, Arc<Network>) {
    let network = Network::new(config, 11).unwrap();
    let input = &network.config().input;
    let image = transform(&drawn(200, 150, 1), input, View { short_side: 128, flip: false });
    network.calibrate(&Tensor::from_vec(image.data, (1, 3, image.rows, image.columns), &Device::Cpu).unwrap()).unwrap();
    let gains = [("rpn.head.cls_logits.weight", 30.0), ("cls_score.weight", 30.0), ("kps_score_lowres.weight", 100.0)];
    let mut louder = 0;
    for (name, var) in network.params().all() {
        if let Some((_, gain)) = gains.iter().find(|(part, _)| name.ends_with(part)) {
            let louder_values: Vec<f32> = values(var).iter().map(|v| v * gain).collect();
            network.params().set(name, &louder_values).unwrap();
            louder += 1;
        }
    }
    assert_eq!(louder, gains.len(), "{:?}", network.params().all().map(|(name, _)| name).collect::<Vec<_>>());
    let skeleton = Skeleton::new(&NAMES, &[], None, None).unwrap();
    let thresholds = Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.1 };
    let meta = ExportMeta { name: "test".into(), skeleton, thresholds, parent: None, dataset_sha256: None, ap: None };
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_bundle(&network, &meta, dir.path()).unwrap();
    (dir, bundle, Arc::new(network))
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
