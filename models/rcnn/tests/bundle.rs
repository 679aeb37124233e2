//! The exported bundle: tract computes what candle computes, and a network is made again from its weights.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;
use omnilabel_rcnn::config::{Block, Config};
use omnilabel_rcnn::export::{ExportMeta, GRAPH_TOLERANCE, WEIGHTS, write_bundle, write_bundle_as};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::Precision;
use std::path::{Path, PathBuf};
use std::process::Command;
use tract_onnx::prelude::*;

const NAMES: [&str; 5] = ["nose", "left_wrist", "right_wrist", "left_ankle", "right_ankle"];

fn meta() -> ExportMeta {
    let skeleton = Skeleton::new(&NAMES, &[(0, 1), (0, 2)], Some(&[0, 2, 1, 4, 3]), Some(&[0.05; 5])).unwrap();
    let thresholds = Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.1 };
    ExportMeta { name: "test".into(), skeleton, thresholds, parent: None, dataset_sha256: None, ap: Some(0.5) }
}

fn random(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| ((i * 7 + 3) as f32 * 0.611).sin() + 0.3 * ((i % 97) as f32 * 1.7).cos()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Batch-norms that do something, and an RPN whose outputs are not all but zero.
fn network(config: Config) -> Network {
    let network = Network::new(config, 5).unwrap();
    network.calibrate(&random(&[2, 3, 64, 64])).unwrap();
    for (index, (name, var)) in network.params().all().enumerate() {
        if name.contains(".bn") && !name.contains("running") || name.ends_with("bias") {
            let values: Vec<f32> = (0..var.elem_count()).map(|i| 0.7 + 0.3 * ((i + index) as f32).sin()).collect();
            network.params().set(name, &values).unwrap();
        }
    }
    network
}

fn bottleneck() -> Config {
    let mut config = Config::nano(5);
    config.name = "tiny-resnext".into();
    (config.stem_channels, config.stem_kernel, config.stem_pool) = (8, 7, true);
    (config.block, config.groups) = (Block::Bottleneck, 4);
    (config.widths, config.channels) = (vec![8, 8, 16, 16], vec![16, 16, 32, 32]);
    config
}

fn compare(name: &str, candle: &Tensor, tract: &TValue) {
    let expected: Vec<f32> = candle.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(tract.shape(), candle.dims(), "{name}");
    let found = tract.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = expected.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(scale > 1e-3 && worst <= GRAPH_TOLERANCE * scale, "{name}: differs by {worst}, largest value {scale}");
}

fn run(bundle: &Bundle, file: &str, outputs: &[(String, Tensor)], input: &Tensor) {
    let mut model = tract_onnx::onnx().with_ignore_output_shapes(true).model_for_path(bundle.path(file)).unwrap();
    let names: Vec<&str> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    model.select_outputs_by_name(&names).unwrap();
    model.set_input_fact(0, f32::fact(input.dims()).into()).unwrap();
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let data: Vec<f32> = input.flatten_all().unwrap().to_vec1().unwrap();
    let input = tract_onnx::prelude::Tensor::from_shape(input.dims(), &data).unwrap();
    let found = plan.run(tvec!(input.into())).unwrap();
    for ((name, expected), found) in outputs.iter().zip(found.iter()) {
        compare(name, expected, found);
    }
}

/// A graph, its input, and what candle makes of it.
struct Case {
    graph: &'static str,
    input: Tensor,
    outputs: Vec<(String, Tensor)>,
}

/// Every graph on several shapes, and on `images` with RoIs pooled from their features.
fn cases(network: &Network, images: Vec<Tensor>) -> Vec<Case> {
    let mut cases = Vec::new();
    let spec = &network.config().network;
    for image in [random(&[1, 3, 64, 96]), random(&[2, 3, 32, 32])].into_iter().chain(images) {
        let levels = network.forward_backbone(&image).unwrap();
        let (h, w) = (image.dim(2).unwrap() as f32, image.dim(3).unwrap() as f32);
        let rois: Vec<(usize, Rect)> = (1..4).map(|i| (0, Rect::new(0.1 * w, 2.0, 0.3 * i as f32 * w, h * 0.9))).collect();
        let pooled = network.pool(&levels.features, &rois, spec.box_roi).unwrap();
        let (classes, deltas) = network.box_head(&pooled).unwrap();
        let outputs = vec![("class_logits".into(), classes), ("box_deltas".into(), deltas)];
        cases.push(Case { graph: "box_head.onnx", input: pooled, outputs });
        let pooled = network.pool(&levels.features, &rois[1..2], spec.keypoint_roi).unwrap();
        let outputs = vec![("heatmaps".into(), network.keypoint_head(&pooled).unwrap())];
        cases.push(Case { graph: "keypoint_head.onnx", input: pooled, outputs });
        let outputs = [("features", levels.features), ("objectness", levels.objectness), ("deltas", levels.deltas)]
            .into_iter()
            .flat_map(|(name, tensors)| tensors.into_iter().enumerate().map(move |(level, t)| (format!("{name}_{level}"), t)))
            .collect();
        cases.push(Case { graph: "backbone.onnx", input: image, outputs });
    }
    cases
}

fn check(config: Config, dir: &Path) {
    let images = real_images(&config);
    let network = network(config);
    write_bundle(&network, &meta(), dir).unwrap();
    let bundle = Bundle::open(dir).unwrap();
    for case in cases(&network, images) {
        run(&bundle, case.graph, &case.outputs, &case.input);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A few photographs as the network sees them; none, with a message, where the data set is absent.
fn real_images(config: &Config) -> Vec<Tensor> {
    let dir = root().join("../shared/data/coco/val/images");
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&dir) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(error) => {
            println!("without real images: {}: {error}", dir.display());
            return Vec::new();
        }
    };
    files.sort();
    let view = View { short_side: config.input.short_side, flip: false };
    let open = |path: &PathBuf| {
        let image = transform(&Frame::open(path).unwrap(), &config.input, view);
        Tensor::from_vec(image.data, (1, 3, image.rows, image.columns), &Device::Cpu).unwrap()
    };
    files.iter().take(3).map(open).collect()
}

/// The network that the bundle in `dir` holds: of a lower precision, the one with the rounded weights.
fn exported(network: Network, precision: Precision, dir: &Path) -> Network {
    write_bundle_as(&network, &meta(), dir, precision).unwrap();
    if precision == Precision::F32 {
        return network;
    }
    let rounded = Network::new(network.config().clone(), 9).unwrap();
    assert_eq!(rounded.init_from(&dir.join(WEIGHTS)).unwrap(), Vec::<String>::new());
    rounded
}

/// Half the bytes, the same graphs but for the rounded weights.
#[test]
fn weights_of_16_bits() {
    let (wide, narrow) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = network(bottleneck());
    write_bundle(&source, &meta(), wide.path()).unwrap();
    let rounded = exported(network(bottleneck()), Precision::F16, narrow.path());
    let bytes = |dir: &Path| std::fs::metadata(dir.join(WEIGHTS)).unwrap().len() as f64;
    let ratio = bytes(narrow.path()) / bytes(wide.path());
    assert!(ratio < 0.52, "{ratio}");
    let bundle = Bundle::open(narrow.path()).unwrap();
    for case in cases(&rounded, Vec::new()) {
        run(&bundle, case.graph, &case.outputs, &case.input);
    }
    // Rounded to 11 bits: an output is off by some thousandths, and not by nothing.
    let maps = [&source, &rounded].map(|n| n.forward_backbone(&random(&[1, 3, 64, 64])).unwrap().features.remove(0));
    let [a, b] = maps.map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale;
    assert!(worst > 0.0 && worst < 1e-2, "{worst}");
    // What does not fit is refused by name.
    source.params().set("rpn.head.bbox_pred.bias", &[1e6; 12]).unwrap();
    let message = write_bundle_as(&source, &meta(), narrow.path(), Precision::F16).unwrap_err().to_string();
    assert!(message.contains("rpn.head.bbox_pred.bias") && message.contains("16 bits"), "{message}");
}

/// onnx.checker accepts the graphs, and onnxruntime computes what candle computes.
#[test]
fn onnxruntime_agrees_with_candle() {
    let python = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root().join(".venv-test/bin/python"), PathBuf::from);
    if !python.exists() {
        println!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run the README's test command)", python.display());
        return;
    }
    for (config, precision) in [(Config::nano(5), Precision::F32), (bottleneck(), Precision::F32), (bottleneck(), Precision::F16)] {
        let (bundle, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let images = real_images(&config);
        let network = exported(network(config), precision, bundle.path());
        let mut files = 0;
        let mut write = |tensor: &Tensor| {
            files += 1;
            let name = format!("{files}.f32");
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            std::fs::write(folder.path().join(&name), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
            serde_json::json!({ "file": name, "shape": tensor.dims() })
        };
        let cases: Vec<serde_json::Value> = cases(&network, images)
            .iter()
            .map(|case| {
                let outputs: serde_json::Map<_, _> = case.outputs.iter().map(|(name, tensor)| (name.clone(), write(tensor))).collect();
                serde_json::json!({ "graph": case.graph, "input": write(&case.input), "outputs": outputs, "tolerance": GRAPH_TOLERANCE })
            })
            .collect();
        std::fs::write(folder.path().join("cases.json"), serde_json::to_vec(&cases).unwrap()).unwrap();
        let script = root().join("tests/python/check_bundle.py");
        let output = Command::new(&python).arg(script).arg(bundle.path()).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        println!("{text}");
        assert_eq!(text.lines().count(), cases.len());
    }
}

#[test]
fn tract_agrees_with_candle_on_nano() {
    check(Config::nano(5), tempfile::tempdir().unwrap().path());
}

#[test]
fn tract_agrees_with_candle_on_a_small_resnext() {
    check(bottleneck(), tempfile::tempdir().unwrap().path());
}

/// A student starts from a bundle: batch-norms come back as biases, the transposed convolution from its subpixels.
#[test]
fn a_network_is_made_from_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let source = network(Config::nano(5));
    write_bundle(&source, &meta(), dir.path()).unwrap();
    let copy = Network::new(Config::nano(5), 9).unwrap();
    assert_eq!(copy.init_from(&dir.path().join(WEIGHTS)).unwrap(), Vec::<String>::new());
    let image = random(&[1, 3, 64, 64]);
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (a, b) = (source.forward_backbone(&image).unwrap(), copy.forward_backbone(&image).unwrap());
    for (a, b) in a.features.iter().chain(&a.deltas).zip(b.features.iter().chain(&b.deltas)) {
        let scale = values(a).iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = values(a).iter().zip(values(b)).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= GRAPH_TOLERANCE * scale, "{worst} of {scale}");
    }
    let rois = random(&[2, 32, 14, 14]);
    assert_eq!(values(&source.keypoint_head(&rois).unwrap()), values(&copy.keypoint_head(&rois).unwrap()));
}

#[test]
fn a_skeleton_of_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = write_bundle(&network(Config::nano(4)), &meta(), dir.path()).unwrap_err().to_string();
    assert!(message.contains("5 keypoints, the network 4"), "{message}");
}

/// The same network gives the same bytes, so that a release is reproducible.
#[test]
fn export_is_deterministic() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = write_bundle(&network(Config::nano(5)), &meta(), a.path()).unwrap();
    let second = write_bundle(&network(Config::nano(5)), &meta(), b.path()).unwrap();
    assert_eq!(first.sha256(), second.sha256());
}
