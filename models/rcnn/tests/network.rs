//! The network's shapes, names, initialisation and files.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use omnilabel_rcnn::RcnnError;
use omnilabel_rcnn::config::{Block, Config};
use omnilabel_rcnn::network::Network;

/// Deterministic values in [−1, 1].
fn image(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| ((i as f32 * 12.9898).sin() * 43758.547).fract()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// A ResNeXt in small: 7×7 stem with pool, bottlenecks, groups.
fn tiny_resnext() -> Config {
    let mut config = Config::nano(5);
    config.name = "tiny-resnext".into();
    config.stem_channels = 8;
    config.stem_kernel = 7;
    config.stem_pool = true;
    config.block = Block::Bottleneck;
    config.blocks = vec![1, 2, 1, 1];
    config.widths = vec![8, 8, 16, 16];
    config.channels = vec![16, 16, 32, 32];
    config.groups = 4;
    config.fpn_channels = 16;
    config.train_affine = false;
    config.frozen_stages = 2;
    config
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn check_shapes(config: Config) {
    let network = Network::new(config.clone(), 1).unwrap();
    let levels = network.forward_backbone(&image(&[2, 3, 64, 96])).unwrap();
    let (fpn, anchors) = (config.fpn_channels, config.network.aspect_ratios.len());
    let sides = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)];
    assert_eq!(levels.features.len(), sides.len());
    for (index, (h, w)) in sides.into_iter().enumerate() {
        assert_eq!(levels.features[index].dims(), [2, fpn, h, w]);
        assert_eq!(levels.objectness[index].dims(), [2, anchors, h, w]);
        assert_eq!(levels.deltas[index].dims(), [2, 4 * anchors, h, w]);
    }
    let (classes, deltas) = network.box_head(&image(&[3, fpn, 7, 7])).unwrap();
    assert_eq!((classes.dims(), deltas.dims()), ([3, 2].as_slice(), [3, 8].as_slice()));
    assert_eq!(network.keypoint_head(&image(&[3, fpn, 14, 14])).unwrap().dims(), [3, config.keypoints, 56, 56]);
}

#[test]
fn shapes_of_nano() {
    check_shapes(Config::nano(14));
}

#[test]
fn shapes_of_a_small_resnext() {
    check_shapes(tiny_resnext());
}

#[test]
fn nano_has_about_a_million_parameters() {
    let count = Network::new(Config::nano(17), 1).unwrap().params().count();
    assert!((800_000..1_400_000).contains(&count), "{count}");
}

/// torchvision's names are the contract for importing its weights.
#[test]
fn names_follow_torchvision() {
    let network = Network::new(tiny_resnext(), 1).unwrap();
    for name in [
        "backbone.body.conv1.weight",
        "backbone.body.bn1.running_var",
        "backbone.body.layer1.0.conv3.weight",
        "backbone.body.layer2.1.bn2.bias",
        "backbone.body.layer4.0.downsample.1.running_mean",
        "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.0.0.weight",
        "rpn.head.cls_logits.bias",
        "rpn.head.bbox_pred.weight",
        "roi_heads.box_head.fc6.weight",
        "roi_heads.box_head.fc7.bias",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
        "roi_heads.keypoint_head.4.weight",
        "roi_heads.keypoint_predictor.kps_score_lowres.weight",
    ] {
        assert!(network.params().get(name).is_some(), "{name}");
    }
}

#[test]
fn frozen_parts_are_not_trained() {
    let network = Network::new(tiny_resnext(), 1).unwrap();
    let trained: Vec<&str> = network.params().trainable().map(|(name, _)| name).collect();
    assert!(!trained.iter().any(|n| n.contains("body.conv1") || n.contains("layer1.") || n.contains("bn") || n.contains("running")));
    assert!(trained.contains(&"backbone.body.layer2.0.conv1.weight"));
    let nano = Network::new(Config::nano(3), 1).unwrap();
    assert!(nano.params().trainable().any(|(name, _)| name == "backbone.body.bn1.weight"));
    assert!(!nano.params().trainable().any(|(name, _)| name.ends_with("running_mean")));
}

#[test]
fn the_seed_decides_the_weights() {
    let values = |seed| vector(Network::new(Config::nano(3), seed).unwrap().params().get("rpn.head.conv.0.0.weight").unwrap());
    assert_eq!(values(7), values(7));
    assert_ne!(values(7), values(8));
    let spread = (values(7).iter().map(|v| v * v).sum::<f32>() / values(7).len() as f32).sqrt();
    // 20,736 draws: the estimate's relative error is about 0.5 %.
    assert!((spread / 0.01 - 1.0).abs() < 0.03, "{spread}");
}

#[test]
fn a_saved_network_gives_the_same_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let (a, b) = (Network::new(tiny_resnext(), 1).unwrap(), Network::new(tiny_resnext(), 2).unwrap());
    let x = image(&[1, 3, 32, 32]);
    a.calibrate(&x).unwrap();
    a.params().save(&path).unwrap();
    b.params().load(&path).unwrap();
    let (a, b) = (a.forward_backbone(&x).unwrap(), b.forward_backbone(&x).unwrap());
    for (a, b) in a.features.iter().zip(&b.features) {
        assert_eq!(vector(a), vector(b));
    }
}

#[test]
fn loading_names_the_tensor_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    Network::new(Config::nano(3), 1).unwrap().params().save(&path).unwrap();
    let check = |config: Config, expect: &str| match Network::new(config, 1).unwrap().params().load(&path) {
        Err(RcnnError::Weights { tensor, .. }) => assert_eq!(tensor, expect),
        other => panic!("{other:?}"),
    };
    check(Config::nano(4), "roi_heads.keypoint_predictor.kps_score_lowres.bias");
    check(Config { keypoint_convs: 2, ..Config::nano(3) }, "roi_heads.keypoint_head.4.bias");
    check(Config { keypoint_convs: 4, ..Config::nano(3) }, "roi_heads.keypoint_head.6.bias");
    std::fs::write(&path, b"not safetensors at all").unwrap();
    check(Config::nano(3), "");
}

#[test]
fn initialisation_takes_what_fits_and_says_what_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let source = Network::new(Config::nano(17), 1).unwrap();
    source.params().save(&path).unwrap();
    let network = Network::new(Config::nano(14), 2).unwrap();
    let kept = network.init_from(&path).unwrap();
    let root = "roi_heads.keypoint_predictor.kps_score_lowres";
    assert_eq!(kept, [format!("{root}.bias"), format!("{root}.weight")]);
    let name = "backbone.body.conv1.weight";
    assert_eq!(vector(source.params().get(name).unwrap()), vector(network.params().get(name).unwrap()));
}

/// After calibration the output of each convolution before its ReLU has mean 0 and variance 1, so C2…C5 neither vanish nor explode.
#[test]
fn calibration_normalises_the_activations() {
    let network = Network::new(Config { train_affine: true, frozen_stages: 0, ..tiny_resnext() }, 1).unwrap();
    let x = (image(&[4, 3, 64, 64]) * 3.0).unwrap();
    network.calibrate(&x).unwrap();
    let levels = network.forward_backbone(&x).unwrap();
    for feature in &levels.features[..4] {
        let rms = feature.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!((0.3..6.0).contains(&rms), "{rms}");
    }
}

#[test]
fn impossible_configurations_and_inputs_are_refused() {
    let check = |change: fn(&mut Config), expect: &str| {
        let mut config = Config::nano(3);
        change(&mut config);
        let message = Network::new(config, 1).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(expect), "{message}");
    };
    check(|c| c.widths.truncate(2), "widths");
    check(|c| c.groups = 5, "groups");
    check(|c| c.input.size_divisor = 16, "size_divisor");
    check(|c| c.network.levels[0].stride = 8, "levels");
    check(|c| c.network.heatmap_side = 28, "heatmap_side");
    check(|c| c.keypoints = 0, "keypoints");
    let network = Network::new(Config::nano(3), 1).unwrap();
    let message = network.forward_backbone(&image(&[1, 3, 40, 64])).unwrap_err().to_string();
    assert!(message.contains("multiples of 32"), "{message}");
}
