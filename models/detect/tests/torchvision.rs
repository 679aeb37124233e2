//! The same numbers as torchvision 0.28 (`tests/golden/make.py` made them).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use omnilabel_bundle::{AnchorRule, Channels, InputSpec, LevelSpec, NetworkSpec, RoiSpec, RpnSpec};
use omnilabel_detect::anchors::anchors;
use omnilabel_detect::boxes::BoxCoder;
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_detect::nms::nms;
use omnilabel_detect::proposals::{LevelOutput, detections, proposals};
use omnilabel_detect::roi::{FeatureMap, align, align_backward, level, pool};
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::view::View;
use serde_json::Value;

/// f32 arithmetic in another order, on values of the order of 1 to 100: relative to the larger of 1 and the value.
const TOLERANCE: f32 = 2e-5;

fn golden(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("golden/torchvision.json")).unwrap();
    all[name].clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn rects(value: &Value) -> Vec<Rect> {
    floats(value).chunks(4).map(|c| Rect::new(c[0], c[1], c[2], c[3])).collect()
}

fn flat(rects: impl IntoIterator<Item = Rect>) -> Vec<f32> {
    rects.into_iter().flat_map(|r| [r.x1, r.y1, r.x2, r.y2]).collect()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= TOLERANCE * e.abs().max(1.0), "{what}[{i}]: {f}, torchvision {e}");
    }
}

fn network() -> NetworkSpec {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    NetworkSpec {
        levels: vec![LevelSpec { stride: 8, anchor_size: 20.0 }, LevelSpec { stride: 16, anchor_size: 37.0 }],
        roi_levels: 2,
        canonical_size: 56.0,
        canonical_level: 1,
        aspect_ratios: vec![0.5, 1.0, 2.0],
        anchor_rule: AnchorRule::Rounded,
        stride_in_1x1: false,
        rpn: RpnSpec { pre_nms_top_n: 60, post_nms_top_n: 25, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.2 },
        box_roi: roi(3),
        keypoint_roi: roi(3),
        box_coder: [10.0, 10.0, 5.0, 5.0],
        score_threshold: 0.05,
        nms_iou: 0.5,
        max_detections: 12,
        heatmap_side: 56,
    }
}

const NET: Size = Size { width: 60, height: 44 };

#[test]
fn anchors_of_two_levels() {
    let network = network();
    assert_eq!(flat(anchors(&network, &[(6, 8), (3, 4)])), floats(&golden("anchors")));
}

#[test]
fn anchors_of_a_side_that_the_stride_does_not_divide() {
    let mut network = network();
    network.anchor_rule = AnchorRule::Torchvision;
    network.levels = vec![LevelSpec { stride: 4, anchor_size: 16.0 }, LevelSpec { stride: 64, anchor_size: 64.0 }];
    let expected = floats(&golden("anchors_divided"));
    let grids = [(24, 40), (2, 3)];
    assert_eq!(flat(anchors(&network, &grids)), expected);
    network.anchor_rule = AnchorRule::Rounded;
    assert_ne!(flat(anchors(&network, &grids)), expected);
    // Detectron2's rule: the same centres as ours, corners not rounded.
    let rounded = anchors(&network, &grids);
    network.anchor_rule = AnchorRule::Exact;
    for (exact, rounded) in anchors(&network, &grids).into_iter().zip(rounded) {
        assert!((exact.x1 - rounded.x1).abs() <= 0.5 && exact.x1 + exact.x2 == rounded.x1 + rounded.x2, "{exact:?} {rounded:?}");
        let side = exact.area().sqrt();
        assert!((side - 16.0).abs() < 1e-4 || (side - 64.0).abs() < 1e-4, "{exact:?}");
    }
}

#[test]
fn box_coder() {
    let g = golden("coder");
    let coder = BoxCoder { weights: [10.0, 10.0, 5.0, 5.0] };
    let (reference, target, deltas) = (rects(&g["reference"]), rects(&g["target"]), floats(&g["deltas"]));
    let encoded: Vec<f32> = reference.iter().zip(&target).flat_map(|(&r, &t)| coder.encode(r, t).map(|v| v as f32)).collect();
    close(&encoded, &floats(&g["encoded"]), "encoded");
    let decoded = reference.iter().zip(deltas.chunks(4)).map(|(&r, d)| coder.decode(r, [d[0], d[1], d[2], d[3]]));
    close(&flat(decoded), &floats(&g["decoded"]), "decoded");
}

#[test]
fn suppression() {
    let g = golden("nms");
    let kept: Vec<u64> = nms(&rects(&g["boxes"]), &floats(&g["scores"]), 0.5).into_iter().map(|i| i as u64).collect();
    assert_eq!(kept, g["kept"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>());
}

/// Among equal scores the first box wins; an IoU of exactly the threshold does not suppress.
#[test]
fn suppression_with_ties() {
    let g = golden("nms_ties");
    let kept: Vec<u64> = nms(&rects(&g["boxes"]), &floats(&g["scores"]), 0.5).into_iter().map(|i| i as u64).collect();
    assert_eq!(kept, g["kept"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>());
}

#[test]
fn region_proposals() {
    let g = golden("proposals");
    let maps: Vec<_> = (0..2).map(|i| (floats(&g["objectness"][i]), floats(&g["deltas"][i]))).collect();
    let level = |i: usize, rows, columns| LevelOutput { objectness: &maps[i].0, deltas: &maps[i].1, rows, columns };
    let network = network();
    let found = proposals(&network, &network.rpn, &[level(0, 6, 8), level(1, 3, 4)], NET);
    close(&found.iter().map(|f| f.1).collect::<Vec<_>>(), &floats(&g["scores"]), "scores");
    close(&flat(found.iter().map(|f| f.0)), &floats(&g["boxes"]), "boxes");
}

#[test]
fn box_detections() {
    let g = golden("detections");
    let found = detections(&network(), &rects(&g["rois"]), &floats(&g["logits"]), &floats(&g["deltas"]), NET, true);
    assert!(found.len() > 3);
    close(&found.iter().map(|f| f.1).collect::<Vec<_>>(), &floats(&g["scores"]), "scores");
    close(&flat(found.iter().map(|f| f.0)), &floats(&g["boxes"]), "boxes");
}

#[test]
fn roi_align_forward_and_backward() {
    check_align(&golden("align"), 2);
}

#[test]
fn roi_align_with_as_many_samples_as_needed() {
    check_align(&golden("adaptive"), 0);
}

fn check_align(g: &Value, sampling_ratio: u32) {
    let data = floats(&golden("align")["data"]);
    for case in g["cases"].as_array().unwrap() {
        let spec = RoiSpec { resolution: 4, sampling_ratio, aligned: case["aligned"].as_bool().unwrap() };
        let gradient = floats(&case["gradient"]);
        let map = FeatureMap { data: &data, channels: 3, rows: 10, columns: 13, scale: 0.125 };
        let (mut pooled, mut grad) = (Vec::new(), vec![0.0; data.len()]);
        for (roi, gradient) in rects(&g["rois"]).into_iter().zip(gradient.chunks(48)) {
            let mut out = vec![f32::NAN; 48];
            align(map, roi, spec, &mut out);
            pooled.extend(out);
            align_backward(&mut grad, 3, 10, 13, 0.125, roi, spec, gradient);
        }
        close(&pooled, &floats(&case["pooled"]), "pooled");
        close(&grad, &floats(&case["grad_data"]), "grad_data");
    }
}

#[test]
fn pooling_from_levels() {
    let g = golden("pool");
    let mut network = network();
    network.roi_levels = 3;
    let data: Vec<_> = (0..3).map(|i| floats(&g["maps"][i])).collect();
    let map = |i: usize, stride: usize| FeatureMap {
        data: &data[i],
        channels: 2,
        rows: 64 / stride,
        columns: 96 / stride,
        scale: 1.0 / stride as f32,
    };
    let rois = rects(&g["rois"]);
    let levels: Vec<u64> = rois.iter().map(|&roi| level(&network, roi) as u64).collect();
    assert_eq!(levels, g["levels"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>());
    let pooled = pool(&network, &[map(0, 4), map(1, 8), map(2, 16)], &rois, network.box_roi);
    close(&pooled, &floats(&g["pooled"]), "pooled");
}

#[test]
fn image_transform() {
    for case in golden("transform").as_array().unwrap() {
        let number = |name: &str| case[name].as_u64().unwrap() as u32;
        let rgb = case["rgb"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
        let frame = Frame { size: Size { width: number("width"), height: number("height") }, rgb };
        let input = InputSpec {
            short_side: number("short_side"),
            max_long_side: number("max_long_side"),
            size_divisor: 8,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            channels: Channels::Rgb,
        };
        let view = View { short_side: input.short_side, flip: case["flip"].as_bool().unwrap() };
        let image = transform(&frame, &input, view);
        let what = format!("{} x {} -> {}", frame.size.width, frame.size.height, input.short_side);
        assert_eq!(
            [image.geometry.net().width, image.geometry.net().height].map(u64::from).to_vec(),
            case["net"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>(),
            "{what}"
        );
        assert_eq!((image.rows as u32, image.columns as u32), (number("rows"), number("columns")), "{what}");
        close(&image.data, &floats(&case["data"]), &what);
    }
}

#[test]
fn image_transform_blue_first() {
    let g = golden("transform_bgr");
    let rgb = g["rgb"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
    let frame = Frame { size: Size { width: 11, height: 7 }, rgb };
    let std = [1.0 / 255.0; 3];
    let (mean, channels) = ([0.406, 0.456, 0.485], Channels::Bgr);
    let input = InputSpec { short_side: 12, max_long_side: 100, size_divisor: 8, mean, std, channels };
    close(&transform(&frame, &input, View { short_side: 12, flip: false }).data, &floats(&g["data"]), "blue first");
}
