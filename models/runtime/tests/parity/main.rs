//! The presets against torchvision's keypoint R-CNN with the same weights on the same pictures, in one run: FPN maps, proposals,
//! boxes, scores, keypoints on candle, tract and ONNX Runtime; in training mode the losses and the gradient of every parameter.
//!
//! The reference (`tests/python/parity.py`) needs the venv of `tests/setup --torch`; without it the tests say so and are skipped. The
//! large presets take minutes each and run with `OMNILABEL_LONG=1` (`tests/run --parity`).

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../candle_graphs/mod.rs"]
mod candle_graphs;
mod graphs;
#[path = "../onnx_runtime/mod.rs"]
mod onnx_runtime;
mod reference;

use candle_graphs::Candle;
use graphs::RecordingBackbone;
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::transform;
use omnilabel_detect::proposals::{LevelOutput, proposals};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::export::{ExportMeta, write_bundle};
use omnilabel_rcnn::import::{self, Naming, read_checkpoint};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::targets::{RoiSample, Sampled, Truth};
use omnilabel_rcnn::train::{Chosen, objective_on};
use omnilabel_runtime::{BackboneOutput, Graphs, Teacher, TractGraphs, ViewPlan};
use onnx_runtime::OnnxRuntime;
use reference::{Case, Reference, Values};
use std::sync::Arc;

/// FPN maps, relative to the largest value of the map: f32 sums of thousands of products in another order, through up to a hundred
/// layers; some ten times the 1e-6 to 4e-6 that were seen.
const MAP_TOLERANCE: f32 = 3e-5;
/// Corners of proposals and detections, px: boxes of up to 400 px from deltas that differ like the maps.
const BOX_TOLERANCE_PX: f32 = 5e-3;
/// Scores, and logits relative to the larger of 1 and the logit: softmax of logits that differ like the maps.
const SCORE_TOLERANCE: f32 = 2e-4;
/// The share of keypoints that may lie elsewhere than torchvision's: a keypoint is the best pixel of a resized heatmap, and where two
/// pixels are equal but for rounding, neighbours or two peaks of random weights, either is right. Their scores agree all the same.
const MOVED_SHARE: f32 = 0.01;
/// The share of people whose heatmap may be resized to another grid: to ⌈w⌉ × ⌈h⌉ cells of a box w px wide in the network's pixels, which
/// may be another number where w is whole but for rounding. Their keypoints are not compared.
const OTHER_GRID_SHARE: f32 = 0.05;
/// The least detections of a case.
const MIN_DETECTIONS: usize = 20;
/// Losses, relative; means of terms that differ like the scores.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Gradients of a parameter as ‖ours − theirs‖ / ‖theirs‖, f32. A ReLU whose input is nearly 0 opens on one side and not on the
/// other, so that single elements differ by more than rounding.
const GRADIENT_TOLERANCE: f64 = 5e-3;
/// The same in f64, where rounding opens no ReLU: what is left of sums in another order.
const GRADIENT_TOLERANCE_F64: f64 = 1e-12;

/// A bias that a softmax over the whole map cancels: its gradient is 0 but for rounding, and has no relative error.
const SHIFT: &str = "roi_heads.keypoint_predictor.kps_score_lowres.bias";
/// Of the gradient of [`SHIFT`], whose terms are of the order of 1.
const SHIFT_TOLERANCE: f64 = 1e-5;

#[test]
fn nano() {
    check("nano", Naming::Torchvision);
}

#[test]
fn resnet50() {
    check("resnet50", Naming::Torchvision);
}

#[test]
fn resnet101() {
    check("resnet101", Naming::Torchvision);
}

#[test]
fn resnext101_32x4d() {
    check("resnext101_32x4d", Naming::Torchvision);
}

#[test]
fn resnext101_64x4d() {
    check("resnext101_64x4d", Naming::Torchvision);
}

/// Detectron2's conventions under Detectron2's names.
#[test]
fn resnet50_of_detectron2() {
    check("resnet50", Naming::Detectron2);
}

fn check(preset: &str, expected: Naming) {
    if preset != "nano" && std::env::var_os("OMNILABEL_LONG").is_none() {
        println!("skipped: {preset} takes minutes; OMNILABEL_LONG=1 runs it");
        return;
    }
    let mut config = import::conventions(Config::preset(preset, 17).unwrap(), expected);
    config.frozen_stages = 0;
    config.input.max_long_side = 1333;
    // As many people as compare something and no more: the keypoint head is what takes the time.
    config.network.max_detections = 40;
    config.roi_batch = 128;
    let detectron2 = expected == Naming::Detectron2;
    let reference = Reference { preset, f64: preset == "nano" || detectron2, detectron2, config: &config };
    let Some(outcome) = reference.run() else { return };

    let path = outcome.path("weights.pth");
    let tensors = read_checkpoint(&path).unwrap();
    let naming = Naming::of(tensors.keys().map(String::as_str)).unwrap();
    assert_eq!(naming, expected);
    let network = Arc::new(import::network(config.clone(), &tensors, naming, &path).unwrap());
    assert_eq!(network.params().parameters(), outcome.parameters, "parameters");

    let folder = tempfile::tempdir().unwrap();
    let thresholds = Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 };
    let meta = ExportMeta { name: preset.into(), skeleton: Skeleton::coco17(), thresholds, parent: None, dataset_sha256: None, ap: None };
    let bundle = write_bundle(&network, &meta, folder.path()).unwrap();
    let runtimes: [(&str, Box<dyn Graphs>); 3] = [
        ("candle", Box::new(Candle(network.clone()))),
        ("tract", Box::new(TractGraphs::load(&bundle, 2).unwrap())),
        ("onnxruntime", Box::new(OnnxRuntime::start(&bundle).expect("tests/setup makes .venv-test"))),
    ];
    for (runtime, graphs) in runtimes {
        let graphs = RecordingBackbone::new(graphs);
        let seen = graphs.seen();
        let teacher = Teacher::with_graphs(Box::new(graphs), bundle.manifest().clone(), bundle.skeleton().clone()).unwrap();
        for case in &outcome.detect {
            compare_detections(&format!("{preset}, {runtime}, {case}"), case, &outcome.values(case), &teacher, &bundle, &seen);
        }
    }
    let onnxruntime = OnnxRuntime::start(&bundle).expect("tests/setup makes .venv-test");
    for case in &outcome.detect {
        compare_batch(&format!("{preset}, {case}"), case, &outcome.values(case), &network, &onnxruntime, &bundle);
    }
    drop(onnxruntime);
    if reference.f64 {
        let exact = Network::zeros(config, candle_core::DType::F64).unwrap();
        // Under the names of ours.
        let tensors = network.params().all().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect();
        exact.params().load_tensors(&tensors, &path).unwrap();
        for case in &outcome.train {
            compare_gradients(&format!("{preset}, f64, {case}"), case, &outcome.values(case), &exact, GRADIENT_TOLERANCE_F64);
        }
    } else {
        for case in &outcome.train {
            compare_gradients(&format!("{preset}, {case}"), case, &outcome.values(case), &network, GRADIENT_TOLERANCE);
        }
    }
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

fn scale(values: &[f32]) -> f32 {
    values.iter().fold(1e-6, |scale, value| scale.max(value.abs()))
}

fn corners(rect: Rect) -> [f32; 4] {
    [rect.x1, rect.y1, rect.x2, rect.y2]
}

/// For each of `expected` the nearest of `found` that is not taken yet, by the largest difference of a corner.
fn pair(found: &[Rect], expected: &[Rect], what: &str) -> (Vec<usize>, f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of boxes");
    let mut taken = vec![false; found.len()];
    let mut largest = 0f32;
    let pairs = expected.iter().map(|e| {
        let off = |i: &usize| worst(&corners(found[*i]), &corners(*e));
        let nearest = (0..found.len()).filter(|&i| !taken[i]).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
        taken[nearest] = true;
        largest = largest.max(off(&nearest));
        nearest
    });
    let pairs = pairs.collect();
    (pairs, largest)
}

fn compare_detections(what: &str, case: &Case, values: &Values, teacher: &Teacher, bundle: &Bundle, seen: &graphs::Seen) {
    let (manifest, mut total) = (bundle.manifest(), 0);
    for (image, frame) in case.frames.iter().enumerate() {
        let what = format!("{what}, picture {image}");
        let plan = ViewPlan { base_short_side: case.side, ..ViewPlan::new(manifest, &[case.side], false) };
        let found = teacher.detect(frame, &plan).unwrap();
        let backbone = seen.lock().unwrap().take().unwrap();
        let net = transform(frame, &manifest.input, View { short_side: case.side, flip: false }).geometry.net();
        let maps = compare_maps(&what, image, &backbone, values);
        let proposed = compare_proposals(&what, image, &backbone, values, bundle, net);
        total += found.len();
        let per_frame = [net.width as f32 / frame.size.width as f32, net.height as f32 / frame.size.height as f32];
        let people = compare_people(&what, image, &found, values, per_frame);
        println!("{what}: {} detections; maps {maps:.1e}, proposals {proposed:.1e} px, {people}", found.len());
    }
    assert!(total >= MIN_DETECTIONS, "{what}: {total} detections compare nothing");
}

fn compare_maps(what: &str, image: usize, backbone: &BackboneOutput, values: &Values) -> f32 {
    let mut largest = 0f32;
    for (level, (found, channels, rows, columns)) in backbone.features.iter().enumerate() {
        let (shape, expected) = values.get(&format!("features_{level}"));
        assert_eq!(shape[1..], [*channels, *rows, *columns], "{what}: shape of map {level}");
        let expected = &expected[image * found.len()..][..found.len()];
        let off = worst(found, expected) / scale(expected);
        assert!(off <= MAP_TOLERANCE, "{what}: map {level} differs by {off} of its largest value");
        largest = largest.max(off);
    }
    largest
}

fn compare_proposals(what: &str, image: usize, backbone: &BackboneOutput, values: &Values, bundle: &Bundle, net: Size) -> f32 {
    let network = bundle.manifest().network.rcnn().unwrap();
    let levels: Vec<LevelOutput<'_>> = backbone
        .objectness
        .iter()
        .zip(&backbone.deltas)
        .map(|((objectness, rows, columns), deltas)| LevelOutput { objectness, deltas, rows: *rows, columns: *columns })
        .collect();
    let found: Vec<Rect> = proposals(network, &network.rpn, &levels, net).into_iter().map(|(rect, _)| rect).collect();
    let (_, off) = pair(&found, &values.rects(&format!("proposals_{image}")), &format!("{what}: proposals"));
    assert!(off <= BOX_TOLERANCE_PX, "{what}: a proposal differs by {off} px");
    off
}

/// Says the largest differences of boxes, scores and keypoint scores, and how many keypoints are another pixel. `per_frame` are network
/// pixels per frame pixel, across and down.
fn compare_people(what: &str, image: usize, found: &[Detection], values: &Values, per_frame: [f32; 2]) -> String {
    let name = |field: &str| format!("{field}_{image}");
    let expected = values.rects(&name("boxes"));
    let rects: Vec<Rect> = found.iter().map(|detection| detection.rect).collect();
    let (pairs, boxes) = pair(&rects, &expected, &format!("{what}: detections"));
    assert!(boxes <= BOX_TOLERANCE_PX, "{what}: a box differs by {boxes} px");
    let (_, scores) = values.get(&name("scores"));
    let (_, keypoints) = values.get(&name("keypoints"));
    let (_, logits) = values.get(&name("keypoints_scores"));
    // Whether a side in the network's pixels is whole but for rounding: for either corner's difference, and two units in the last place.
    // Corners that are clipped to the picture are exact.
    let unsure = |from: f32, to: f32| {
        let side = to - from;
        let rounding = 2.0 * boxes * per_frame[0].max(per_frame[1]) + 2.0 * f32::EPSILON * side;
        (side - side.round()).abs() <= rounding && (from.fract() != 0.0 || to.fract() != 0.0)
    };
    let net_boxes = values.rects(&name("net_boxes"));
    let (mut score_off, mut logit_off, mut moved, mut points, mut other) = (0f32, 0f32, 0, 0, 0);
    for (index, &twin) in pairs.iter().enumerate() {
        let detection = &found[twin];
        score_off = score_off.max((detection.score - scores[index]).abs());
        let net = net_boxes[index];
        if unsure(net.x1, net.x2) || unsure(net.y1, net.y2) {
            other += 1;
            continue;
        }
        let k = detection.keypoints.len();
        for (j, keypoint) in detection.keypoints.iter().enumerate() {
            let at = index * k + j;
            let off = (keypoint.peak_logit - logits[at]).abs() / logits[at].abs().max(1.0);
            assert!(
                off <= SCORE_TOLERANCE,
                "{what}: keypoint {j} of detection {index}, {:?}: score {}, torchvision {} in {:?}",
                detection.rect,
                keypoint.peak_logit,
                logits[at],
                expected[index]
            );
            logit_off = logit_off.max(off);
            let Point { x, y } = keypoint.point;
            let off = (x - keypoints[3 * at]).abs().max((y - keypoints[3 * at + 1]).abs());
            moved += usize::from(off > BOX_TOLERANCE_PX);
            points += 1;
        }
    }
    assert!(score_off <= SCORE_TOLERANCE, "{what}: a score differs by {score_off}");
    assert!(moved as f32 <= MOVED_SHARE * points as f32, "{what}: {moved} of {points} keypoints are another pixel");
    assert!(other as f32 <= OTHER_GRID_SHARE * found.len() as f32, "{what}: {other} of {} people may be on another grid", found.len());
    format!(
        "boxes {boxes:.1e} px, scores {score_off:.1e}, keypoint scores {logit_off:.1e}, {moved} of {points} keypoints moved, {other} perhaps on another grid"
    )
}

/// All pictures of a case in one pass of candle and of ONNX Runtime. tract runs one picture at a time: its plans are for one.
fn compare_batch(what: &str, case: &Case, values: &Values, network: &Network, onnxruntime: &OnnxRuntime, bundle: &Bundle) {
    let images: Vec<_> =
        case.frames.iter().map(|frame| transform(frame, &bundle.manifest().input, View { short_side: case.side, flip: false })).collect();
    let (rows, columns) = (images[0].rows, images[0].columns);
    let data: Vec<f32> = images.iter().flat_map(|image| image.data.iter().copied()).collect();
    for (level, (shape, found)) in graphs::batch(onnxruntime, &data, images.len(), rows, columns).into_iter().enumerate() {
        let (expected_shape, expected) = values.get(&format!("features_{level}"));
        assert_eq!(shape, expected_shape, "{what}: shape of map {level} on ONNX Runtime");
        let off = worst(&found, expected) / scale(expected);
        assert!(off <= MAP_TOLERANCE, "{what}: map {level} of the batch differs by {off} of its largest value on ONNX Runtime");
    }
    let batch = candle_core::Tensor::from_vec(data, (images.len(), 3, rows, columns), &candle_core::Device::Cpu).unwrap();
    let levels = network.forward_backbone(&batch).unwrap();
    for (level, map) in levels.features.iter().enumerate() {
        let (shape, expected) = values.get(&format!("features_{level}"));
        assert_eq!(map.dims(), shape, "{what}: shape of map {level}");
        let found: Vec<f32> = map.flatten_all().unwrap().to_vec1().unwrap();
        let off = worst(&found, expected) / scale(expected);
        assert!(off <= MAP_TOLERANCE, "{what}: map {level} of the batch differs by {off} of its largest value");
    }
}

fn compare_gradients(what: &str, case: &Case, values: &Values, network: &Network, tolerance: f64) {
    let (shape, images) = values.get("images");
    let images = candle_core::Tensor::from_slice(images, shape, &candle_core::Device::Cpu).unwrap();
    let images = images.to_dtype(network.params().dtype()).unwrap();
    let (_, sizes) = values.get("sizes");
    let (mut truths, mut chosen) = (Vec::new(), Chosen::default());
    for image in 0..case.frames.len() {
        let name = |field: &str| format!("{field}_{image}");
        let (_, keypoints) = values.get(&name("truth_keypoints"));
        let keypoint = |k: &[f32]| (k[2] > 0.0).then_some(Point { x: k[0], y: k[1] });
        truths.push(Truth {
            net: Size { width: sizes[2 * image + 1] as u32, height: sizes[2 * image] as u32 },
            boxes: values.rects(&name("truth_boxes")),
            keypoints: keypoints.chunks_exact(3 * 17).map(|person| person.chunks_exact(3).map(keypoint).collect()).collect(),
            ignore: Vec::new(),
            soft: Vec::new(),
        });
        let positive = values.indices(&name("anchors_positive"));
        chosen.anchors.push(Sampled {
            positive: positive.chunks_exact(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect(),
            negative: values.indices(&name("anchors_negative")).iter().map(|&index| index as usize).collect(),
        });
        chosen.rois.push(RoiSample {
            rois: values.rects(&name("rois")),
            matched: values.indices(&name("rois_matched")).iter().map(|&index| usize::try_from(index).ok()).collect(),
        });
    }
    let people = chosen.rois.iter().flat_map(|rois| &rois.matched).filter(|matched| matched.is_some()).count();
    assert!(people >= 2 && chosen.anchors.iter().all(|anchors| !anchors.positive.is_empty()), "{what}: nothing to learn from");
    let (losses, total) = objective_on(network, &images, &truths, &chosen).unwrap();
    for (name, found) in losses.named() {
        let expected = f64::from(values.get(&format!("loss.{name}")).1[0]);
        let off = (f64::from(found) - expected).abs() / expected.abs().max(1e-3);
        assert!(expected > 0.0 && off <= LOSS_TOLERANCE, "{what}: loss {name} is {found}, torchvision {expected}");
    }
    let grads = total.backward().unwrap();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (mut largest, mut worst_name, mut compared) = (0f64, String::new(), 0);
    for (name, var) in network.params().trainable() {
        let expected = values.f64s(&format!("grad.{name}"));
        let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        let found: Vec<f64> = grad.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len(), "{what}: {name}");
        let size = norm(&mut expected.iter().copied());
        if name == SHIFT {
            let found = norm(&mut found.iter().copied());
            assert!(found.max(size) <= SHIFT_TOLERANCE, "{what}: the gradient of {name} is {found}, torchvision {size}, expected 0");
            continue;
        }
        assert!(size > 0.0, "{what}: torchvision's gradient of {name} is 0");
        let off = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / size;
        if off > largest {
            (largest, worst_name) = (off, name.to_owned());
        }
        compared += 1;
    }
    println!("{what}: losses {:?}; {compared} gradients, the largest difference {largest:.1e} ({worst_name})", losses.named());
    assert!(largest <= tolerance, "{what}: the gradient of {worst_name} differs by {largest:.1e} of its norm");
}
