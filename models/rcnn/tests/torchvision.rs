//! The network against torchvision's keypoint R-CNN with the same weights: the same names, the same outputs of every part.
#![allow(clippy::unwrap_used)]

use candle_core::Tensor;
use omnilabel_bundle::LevelSpec;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_rcnn::config::{Block, Config};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::read_tensors;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Relative to the largest absolute value: f32 sums in another order through some twenty layers.
const TOLERANCE: f32 = 1e-4;

fn config() -> Config {
    let mut config = Config::nano(5);
    config.name = "resnet18".into();
    (config.stem_channels, config.stem_kernel, config.stem_pool) = (64, 7, true);
    (config.block, config.blocks) = (Block::Basic, vec![2; 4]);
    (config.widths, config.channels) = (vec![64, 128, 256, 512], vec![64, 128, 256, 512]);
    config.fpn_channels = 256;
    (config.box_hidden, config.keypoint_convs, config.keypoint_channels) = (32, 2, 32);
    config.network.levels = (0..5).map(|level| LevelSpec { stride: 4 << level, anchor_size: (32 << level) as f32 }).collect();
    (config.network.canonical_size, config.network.canonical_level) = (224.0, 2);
    config
}

#[test]
fn every_part_computes_what_torchvision_computes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("OMNILABEL_TORCH_PYTHON").map_or_else(|| root.join(".venv-torch/bin/python"), PathBuf::from);
    if !python.exists() {
        println!("skipped: no Python at {} (set OMNILABEL_TORCH_PYTHON, or run tests/setup --torch)", python.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(&python).arg(root.join("tests/python/torchvision_rcnn.py")).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let values = read_tensors(&dir.path().join("values.safetensors")).unwrap();
    let network = Network::new(config(), 1).unwrap();
    network.params().load(&dir.path().join("weights.safetensors")).unwrap();

    let check = |name: &str, found: &Tensor| {
        let expected: Vec<f32> = values[name].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.dims(), values[name].dims(), "{name}");
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = expected.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{name}: {:.1e}", worst / scale);
        assert!(worst <= TOLERANCE * scale, "{name}: differs by {worst}, largest value {scale}");
    };
    let levels = network.forward_backbone(&values["image"]).unwrap();
    for level in 0..5 {
        check(&format!("features_{level}"), &levels.features[level]);
        check(&format!("objectness_{level}"), &levels.objectness[level]);
        check(&format!("deltas_{level}"), &levels.deltas[level]);
    }
    let boxes: Vec<Vec<f32>> = values["boxes"].to_vec2().unwrap();
    let rois: Vec<(usize, Rect)> = (0..2).flat_map(|image| boxes.iter().map(move |b| (image, Rect::new(b[0], b[1], b[2], b[3])))).collect();
    let spec = &network.config().network;
    let pooled = network.pool(&levels.features, &rois, spec.box_roi).unwrap();
    check("box_rois", &pooled);
    let (classes, deltas) = network.box_head(&pooled).unwrap();
    check("class_logits", &classes);
    check("box_deltas", &deltas);
    let pooled = network.pool(&levels.features, &rois, spec.keypoint_roi).unwrap();
    check("keypoint_rois", &pooled);
    check("heatmaps", &network.keypoint_head(&pooled).unwrap());
}
