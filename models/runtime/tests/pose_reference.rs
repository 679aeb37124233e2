//! Wrapped models against published pose inference: numpy and onnxruntime on the same files (`tests/python/pose_reference.py`).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod onnx;

use omnilabel_bundle::*;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, wrap};
use omnilabel_runtime::{Teacher, ViewPlan};
use onnx::{D, Eyes};
use std::path::{Path, PathBuf};
use std::process::Command;

/// f32 here, f64 and another convolution there: DARK divides small differences of logarithms, which moves its step by less than a thousandth
/// of a cell of 4 px.
const POINT_PX: f32 = 0.004;
/// Sums in another order.
const SCORE: f32 = 1e-4;

/// Painted people on a background with texture, a little noise on all of it.
fn picture() -> Frame {
    let mut frame = onnx::picture();
    let mut state = 7u32;
    for (i, pixel) in frame.rgb.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i % onnx::FRAME.width as usize, i / onnx::FRAME.width as usize);
        let grey = if pixel == [0, 0, 0] { 40 + ((x / 7 + y / 5) % 9) as u8 } else { 0 };
        for value in pixel {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = value.saturating_add(grey + (state >> 29) as u8);
        }
    }
    frame
}

fn boxes() -> Vec<Rect> {
    // Not centred on the people, one of them wider than the input's aspect, one that leaves the frame.
    vec![Rect::new(50.0, 45.5, 131.0, 133.0), Rect::new(230.3, 52.0, 345.0, 149.0), Rect::new(-20.0, 30.0, 140.0, 210.0)]
}

#[derive(Clone, Copy)]
struct Case {
    refine: Refine,
    udp: bool,
    flip: bool,
    shift: bool,
}

fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root.join(".venv-test/bin/python"), PathBuf::from);
    if !python.exists() {
        println!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run the README's test command)", python.display());
        return None;
    }
    Some(python)
}

#[test]
fn published_inference_finds_the_same_keypoints() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let frame = picture();
    std::fs::write(dir.path().join("picture.rgb"), &frame.rgb).unwrap();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let eyes = |mean, std| Eyes { mean, std, ..Eyes::default() };
    let of = |refine, udp, flip, shift| Case { refine, udp, flip, shift };
    let dark = Refine::Dark { blur: 11 };
    let mut cases = Vec::new();
    let mut expected_by = Vec::new();
    let mut add = |name: &str, net: &onnx::Net, kind: WrapKind, case: Case| {
        let file = dir.path().join(format!("{name}.onnx"));
        net.save(&file);
        let one_stage = matches!(kind, WrapKind::OneStage { .. });
        let (mean, std) = if one_stage { ([0.0; 3], [1.0; 3]) } else { (mean, std) };
        let request = WrapRequest {
            onnx: file.clone(),
            out: dir.path().join(name),
            name: name.into(),
            skeleton: onnx::skeleton(),
            input: if one_stage { Some((160, 192)) } else { None },
            mean,
            std,
            channels: Channels::Rgb,
            kind: kind.clone(),
            thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
            detector: None,
            frame: frame.clone(),
            boxes: None,
        };
        let wrapped = wrap(&request).unwrap();
        let pose = wrapped.bundle.manifest().network.pose().unwrap().clone();
        let (refine, blur) = match case.refine {
            Refine::None => ("none", 0),
            Refine::Quarter => ("quarter", 0),
            Refine::Dark { blur } => ("dark", blur),
        };
        let kind = match pose.output {
            PoseOutput::Heatmap(_) => "heatmap",
            PoseOutput::Simcc(_) => "simcc",
            PoseOutput::OneStage(_) => "one-stage",
        };
        cases.push(serde_json::json!({
            "onnx": file, "kind": kind, "picture": dir.path().join("picture.rgb"),
            "picture_width": frame.size.width, "picture_height": frame.size.height,
            "width": pose.width, "height": pose.height, "bgr": false,
            "mean": mean.map(|v| v * 255.0), "std": std.map(|v| v * 255.0), "outputs": pose.output.names(),
            "boxes": boxes().iter().map(|r| [r.x1, r.y1, r.x2, r.y2]).collect::<Vec<_>>(), "padding": 1.25,
            "udp": case.udp, "flip": case.flip, "flip_indices": [0, 2, 1], "shift": case.shift,
            "refine": refine, "blur": blur, "split_ratio": 2.0, "threshold": 0.2, "iou": 0.5,
        }));
        let teacher = Teacher::load(&wrapped.bundle, 1).unwrap();
        let plan = ViewPlan::new(teacher.manifest(), &[pose.height.min(pose.width)], case.flip);
        let boxes: Vec<(Rect, f32)> = boxes().into_iter().map(|rect| (rect, 1.0)).collect();
        let found = if one_stage { teacher.detect(&frame, &plan) } else { teacher.detect_in(&frame, &boxes, &plan) };
        expected_by.push((name.to_owned(), found.unwrap()));
    };
    let crop = |udp| CropSpec { padding: 1.25, udp };
    for (name, stride, case) in [
        ("plain", 4, of(Refine::None, false, false, false)),
        ("quarter", 4, of(Refine::Quarter, false, false, false)),
        ("quarter_flip_shift", 4, of(Refine::Quarter, false, true, true)),
        ("quarter_flip", 4, of(Refine::Quarter, false, true, false)),
        ("dark", 4, of(dark, false, false, false)),
        ("dark_udp", 4, of(dark, true, false, false)),
        ("dark_udp_flip", 4, of(dark, true, true, false)),
        ("full_udp", 1, of(Refine::None, true, true, false)),
    ] {
        let Case { refine, udp, shift, .. } = case;
        let kind = WrapKind::Heatmap { output: None, crop: crop(udp), values: Values::Peak, refine, shift_flipped: shift };
        add(name, &onnx::heatmap(stride, eyes(mean, std), D::N(1)), kind, case);
    }
    for (name, case) in [("simcc", of(Refine::None, false, false, false)), ("simcc_flip", of(Refine::None, false, true, false))] {
        let kind = WrapKind::Simcc { outputs: None, crop: crop(false), values: Values::Peak };
        add(name, &onnx::simcc(eyes(mean, std)), kind, case);
    }
    let spec = OneStageSpec { max_detections: 50, ..onnx::one_stage_spec() };
    let kind = WrapKind::OneStage { spec, stride: onnx::STRIDE as u32 };
    add("one_stage", &onnx::one_stage(true, false), kind, of(Refine::None, false, false, false));

    let path = dir.path().join("cases.json");
    std::fs::write(&path, serde_json::to_vec(&cases).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/pose_reference.py");
    let output = Command::new(&python).arg(script).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), expected_by.len());
    for (line, (name, found)) in text.lines().zip(expected_by) {
        let people: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
        assert_eq!(people.len(), found.len(), "{name}");
        assert!(people.len() >= 2, "{name}");
        let (mut worst, mut worst_score) = (0f32, 0f32);
        for (person, detection) in people.iter().zip(&found) {
            let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
            for (theirs, ours) in person["keypoints"].as_array().unwrap().iter().zip(&detection.keypoints) {
                // COCO's pixel indices there, continuous coordinates here.
                worst = worst.max((number(&theirs[0]) + 0.5 - ours.point.x).abs()).max((number(&theirs[1]) + 0.5 - ours.point.y).abs());
                worst_score = worst_score.max((number(&theirs[2]).clamp(0.0, 1.0) - ours.probability).abs());
            }
            let Rect { x1, y1, x2, y2 } = detection.rect;
            for (theirs, ours) in person["box"].as_array().unwrap().iter().zip([x1, y1, x2, y2]) {
                worst = worst.max((number(theirs) - ours).abs());
            }
            worst_score = worst_score.max((number(&person["score"]) - detection.score).abs());
        }
        println!("{name}: {} people, at most {worst} px and {worst_score} off", found.len());
        assert!(worst <= POINT_PX, "{name}: {worst} px off, allowed {POINT_PX}");
        assert!(worst_score <= SCORE, "{name}: a score is {worst_score} off, allowed {SCORE}");
    }
}
