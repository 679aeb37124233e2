//! A wrapped top-down pose model as a teacher at the centre: its people come from a second bundle.
#![allow(clippy::unwrap_used)]

#[path = "../../models/runtime/tests/onnx/mod.rs"]
mod onnx;

use omnilabel_bundle::*;
use omnilabel_coco::Dataset;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, wrap};
use onnx::{D, Eyes, persons, picture};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Half a pixel of a crop of 75 × 100 frame px on 96 × 128, and the rounding of painted dots.
const POINT_PX: f64 = 0.8;

fn trainer(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnilabel-trainer")).current_dir(folder).args(line.split_whitespace()).output().unwrap()
}

fn succeed(folder: &Path, line: &str) -> Value {
    let output = trainer(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fail(folder: &Path, line: &str, expected: &[&str]) {
    let output = trainer(folder, line);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{line}");
    for part in expected {
        assert!(message.contains(part), "{line}: {message:?} lacks {part:?}");
    }
}

/// A COCO folder with the painted people, whose labels are where they were painted.
fn folder(root: &Path, ids: std::ops::Range<u64>) {
    std::fs::create_dir_all(root.join("images")).unwrap();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for id in ids {
        let mut picture = picture();
        // No two pictures are the same.
        picture.rgb[0] = id as u8;
        std::fs::write(root.join(format!("images/{id}.png")), picture.to_png()).unwrap();
        images.push(serde_json::json!({"id": id, "file_name": format!("{id}.png"), "width": 384, "height": 192}));
        for (i, person) in persons().iter().enumerate() {
            let body = person.body;
            let keypoints: Vec<f32> = person.points.iter().flat_map(|p| [p.x - 0.5, p.y - 0.5, 2.0]).collect();
            annotations.push(serde_json::json!({
                "id": 10 * id + i as u64, "image_id": id, "category_id": 1, "iscrowd": 0, "num_keypoints": 3, "area": body.area(),
                "bbox": [body.x1, body.y1, body.width(), body.height()], "keypoints": keypoints,
            }));
        }
    }
    let category = serde_json::json!({"id": 1, "name": "person", "keypoints": ["nose", "left_hand", "right_hand"], "skeleton": []});
    let file = serde_json::json!({"images": images, "annotations": annotations, "categories": [category]});
    std::fs::write(root.join("annotations.json"), file.to_string()).unwrap();
}

fn models(root: &Path) {
    let spec = onnx::one_stage_spec();
    let crop = CropSpec { padding: 1.25, udp: false };
    let heatmap = WrapKind::Heatmap { output: None, crop, values: Values::Peak, refine: Refine::None, shift_flipped: false };
    let one_stage = WrapKind::OneStage { spec, stride: 8 };
    for (name, net, kind, input) in [
        ("top_down", onnx::heatmap(1, Eyes::default(), D::N(1)), heatmap, None),
        ("finder", onnx::one_stage(true, false), one_stage, Some((192, 192))),
    ] {
        let request = WrapRequest {
            onnx: root.join("model.onnx"),
            out: root.join(name),
            name: name.into(),
            skeleton: onnx::skeleton(),
            input,
            mean: [0.0; 3],
            std: [1.0; 3],
            channels: Channels::Rgb,
            kind,
            thresholds: Thresholds { instance: 0.3, keypoint: 0.2, floor: 0.05 },
            detector: None,
            frame: picture(),
            boxes: None,
        };
        net.save(&request.onnx);
        wrap(&request).unwrap();
    }
}

#[test]
fn a_wrapped_teacher_is_evaluated_and_distilled() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    models(root);
    for (name, ids) in [("labelled", 1..3), ("unlabelled", 3..6), ("val", 6..8)] {
        folder(&root.join(name), ids);
    }
    fail(root, "evaluate --model top_down --data val", &["`top_down`", "--detector"]);
    // The centre, too, before it begins: it could not judge it.
    let centre = "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"labelled\"\nheldout = \"val\"\n\
                  [model]\nrunning = \"top_down\"\n[release]\nkey = \"keys/release.key\"\n";
    assert!(trainer(root, "keygen --out keys").status.success());
    std::fs::write(root.join("trainer.toml"), centre).unwrap();
    fail(root, "run --config trainer.toml", &["`model.running`", "`top_down`", "--detector"]);
    fail(root, "evaluate --model finder --detector finder --data val", &["`finder`", "takes no detector"]);
    let told = succeed(root, "evaluate --model top_down --detector finder --data val --flip --scales 80,96 --json");
    for scores in [&told["single"], &told["ensemble"]["scores"]] {
        // Keypoints are within a pixel of the truth: OKS is above 0.9 for every person.
        assert!(scores["AP"].as_f64().unwrap() > 0.85, "{told}");
    }

    let distill = "distill --labelled labelled --unlabelled unlabelled --val val --student-steps 1 --batch 1 --short-side 64 --flip --json";
    fail(root, &format!("{distill} --teacher top_down --out out"), &["`top_down`", "--detector"]);
    fail(root, &format!("{distill} --teacher finder --detector finder --out out"), &["`finder` finds people by itself"]);
    std::fs::remove_dir_all(root.join("out")).unwrap();
    let line = format!("{distill} --teacher top_down --detector finder --out out");
    let first = succeed(root, &line);
    let labels = Dataset::load(&root.join("out/labels")).unwrap();
    assert_eq!(labels.annotations.len(), 6);
    for annotation in &labels.annotations {
        let near = persons().iter().any(|person| {
            annotation.keypoints.chunks_exact(3).zip(person.points).all(|(found, truth)| {
                let (x, y) = (f64::from(truth.x) - 0.5, f64::from(truth.y) - 0.5);
                (found[0] - x).abs() <= POINT_PX && (found[1] - y).abs() <= POINT_PX && found[2] == 2.0
            })
        });
        assert!(near, "{annotation:?}");
    }
    // Nothing is done twice, unless the teacher's answers may be others.
    assert_eq!(succeed(root, &line), first);
}
