//! `model wrap` and what follows from it, through the public command: wrap, label, install.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../models/runtime/tests/onnx/mod.rs"]
mod onnx;

use omnilabel_bundle::{Bundle, Channels, PoseOutput, Refine};
use omnilabel_coco::{ResultRecord, read_results};
use omnilabel_edge::annotate::Model;
use omnilabel_edge::config::TeacherConfig;
use omnilabel_runtime::check_golden;
use onnx::{D, Eyes, Person, persons, picture};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// A crop of 75 × 100 frame px on 96 × 128 input px: half a pixel of the input, and the rounding of painted dots.
const POINT_PX: f64 = 0.8;

fn edge(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnilabel-edge")).current_dir(folder).args(line.split(' ')).output().unwrap()
}

fn succeed(folder: &Path, line: &str) -> String {
    let output = edge(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(folder: &Path, line: &str, expected: &[&str]) {
    let output = edge(folder, line);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{line}");
    for part in expected {
        assert!(message.contains(part), "{line}: {message:?} lacks {part:?}");
    }
}

/// A folder with a skeleton, models of every kind, and a picture of two people with their boxes.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let skeleton = r#"{"categories": [{"id": 1, "name": "person", "keypoints": ["nose", "left_hand", "right_hand"], "skeleton": []}]}"#;
    std::fs::write(at("skeleton.json"), skeleton).unwrap();
    onnx::heatmap(1, Eyes::default(), D::S("batch")).save(&at("heatmap.onnx"));
    onnx::simcc(Eyes::default()).save(&at("simcc.onnx"));
    onnx::one_stage(true, false).save(&at("yolo.onnx"));
    std::fs::create_dir(at("images")).unwrap();
    std::fs::write(at("images/7.png"), picture().to_png()).unwrap();
    let boxes: Vec<Value> = persons()
        .iter()
        .map(|person| {
            let body = person.body;
            serde_json::json!({"image_id": 7, "bbox": [body.x1, body.y1, body.width(), body.height()], "score": 0.9})
        })
        .collect();
    std::fs::write(at("boxes.json"), serde_json::to_vec(&boxes).unwrap()).unwrap();
    dir
}

const RAW: &str = "--skeleton skeleton.json --mean 0,0,0 --std 1,1,1";

fn near(results: &[ResultRecord], people: &[Person], tolerance_px: f64) {
    assert_eq!(results.len(), people.len());
    for (result, person) in results.iter().zip(people) {
        assert_eq!(result.image_id, 7);
        for (found, truth) in result.keypoints.chunks_exact(3).zip(person.points) {
            // COCO counts pixel indices.
            let (x, y) = (f64::from(truth.x) - 0.5, f64::from(truth.y) - 0.5);
            assert!((found[0] - x).abs() <= tolerance_px && (found[1] - y).abs() <= tolerance_px, "{found:?}, expected {x}, {y}");
        }
    }
}

#[test]
fn a_top_down_model_is_wrapped_and_labels_in_boxes() {
    let dir = folder();
    let told =
        succeed(dir.path(), &format!("model wrap --onnx heatmap.onnx --kind heatmap --input 128x96 {RAW} --refine none --out hm --json"));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["input"], serde_json::json!([128, 96]));
    assert_eq!(told["outputs"], serde_json::json!([{"name": "heatmaps", "shape": [1, 3, 128, 96]}]));
    assert_eq!(told["graph"]["inputs"][0]["shape"], serde_json::json!(["batch", 3, 128, 96]));
    assert_eq!((told["kind"].as_str(), told["dynamic"].as_bool()), (Some("heatmap"), Some(false)));
    assert!(told["warnings"][0].as_str().unwrap().contains("--detector"), "{told}");
    for (views, kind) in [("", "heatmap"), (" --flip --scales 72,96,120", "heatmap"), (" --flip", "simcc")] {
        let model = if kind == "simcc" {
            let text = succeed(dir.path(), &format!("model wrap --onnx simcc.onnx --kind simcc --input 128x96 {RAW} --out sc"));
            assert!(text.contains("reads   simcc_x [1, 3, 192]") && text.contains("output  simcc_y FLOAT [1, 3, 256]"), "{text}");
            "sc"
        } else {
            "hm"
        };
        let text =
            succeed(dir.path(), &format!("label --model {model} --images images --boxes boxes.json --out out.json --threads 2{views}"));
        assert!(text.contains("labelled 1 of 1 images, 2 instances"), "{text}");
        near(&read_results(&dir.path().join("out.json")).unwrap(), &persons(), POINT_PX);
    }
    fail(dir.path(), "label --model hm --images images --out out.json", &["`heatmap`", "--boxes", "--detector", "top-down"]);
}

#[test]
fn a_detector_is_another_bundle_or_lies_inside() {
    let dir = folder();
    let mut brightest_first = persons();
    brightest_first.reverse();
    let yolo =
        "model wrap --onnx yolo.onnx --kind one-stage --input 192x192 --skeleton skeleton.json --score-threshold 0.2 --stride 8 --out yolo";
    let text = succeed(dir.path(), yolo);
    assert!(text.contains("192 x 192 px (height x width), other sizes too") && text.contains("reads   output0 [1, 14, 576]"), "{text}");
    succeed(dir.path(), "label --model yolo --images images --out out.json --scales 144,192,240 --flip");
    near(&read_results(&dir.path().join("out.json")).unwrap(), &brightest_first, 1.7);
    fail(dir.path(), "label --model yolo --images images --out out.json --boxes boxes.json", &["`yolo`", "takes no boxes"]);

    let wrap = format!("model wrap --onnx heatmap.onnx --kind heatmap --input 128x96 {RAW} --refine none --image images/7.png");
    let text = succeed(dir.path(), &format!("{wrap} --out outside"));
    assert!(text.contains("warning: it finds nobody by itself"), "{text}");
    let text = succeed(dir.path(), &format!("{wrap} --out inside --detector yolo"));
    assert!(text.contains("found   2 people") && !text.contains("warning"), "{text}");
    let mut outcomes = Vec::new();
    for line in ["label --model outside --detector yolo", "label --model inside", "label --model inside --detector yolo"] {
        succeed(dir.path(), &format!("{line} --images images --out out.json --flip"));
        outcomes.push(read_results(&dir.path().join("out.json")).unwrap());
        near(&outcomes[outcomes.len() - 1], &brightest_first, POINT_PX);
    }
    assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]));
    fail(dir.path(), "label --model outside --detector inside/golden --images images --out out.json", &["manifest.json"]);
    fail(dir.path(), "label --model outside --detector outside --images images --out out.json", &["needs boxes itself"]);
    fail(dir.path(), "label --model yolo --detector yolo --images images --out out.json", &["--detector yolo", "`yolo` finds people"]);
    fail(dir.path(), "label --model inside --detector yolo --boxes boxes.json --images images --out out.json", &["--boxes", "--detector"]);

    // A device takes the bundle as it is, with what lies in it.
    succeed(dir.path(), "model install --bundle inside --data-dir state");
    let installed = Bundle::open(&dir.path().join("state/a")).unwrap();
    assert_eq!(installed.sha256(), Bundle::open(&dir.path().join("inside")).unwrap().sha256());
    let model = Model::load(&installed, 0, &TeacherConfig::default()).unwrap();
    assert_eq!(check_golden(&installed, model.teacher()).unwrap(), Ok(()));
    let label = model.annotate(&picture(), 0).unwrap();
    assert_eq!(label.instances.len(), 2);

    // Without a detector inside, the configuration names one; without any, the model does not load.
    let outside = Bundle::open(&dir.path().join("outside")).unwrap();
    let config = TeacherConfig { detector: Some(dir.path().join("yolo")), ..TeacherConfig::default() };
    let model = Model::load(&outside, 0, &config).unwrap();
    assert_eq!(check_golden(&outside, model.teacher()).unwrap(), Ok(()));
    assert_eq!(model.annotate(&picture(), 0).unwrap(), label);
    let error = Model::load(&outside, 0, &TeacherConfig::default()).err().unwrap().to_string();
    assert!(error.contains("[teacher] detector"), "{error}");
    // A detector that the model does not need does no harm.
    let yolo = Bundle::open(&dir.path().join("yolo")).unwrap();
    assert_eq!(Model::load(&yolo, 0, &config).unwrap().annotate(&picture(), 0).unwrap().instances.len(), 2);
}

/// The shipped keypoint R-CNN finds people for a pose model.
#[test]
fn a_keypoint_rcnn_is_a_detector_too() {
    let dir = folder();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/nano-scenes");
    let image = zoo.join("golden/frame-1.png");
    let line = format!(
        "model wrap --onnx heatmap.onnx --kind heatmap --input 128x96 {RAW} --out inside --detector {} --image {} --json",
        zoo.display(),
        image.display()
    );
    let told: Value = serde_json::from_str(&succeed(dir.path(), &line)).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(zoo.join("golden/frame-1.json")).unwrap()).unwrap();
    assert_eq!(told["instances"].as_u64().unwrap() as usize, golden.len());
    assert!(!golden.is_empty());
}

#[test]
fn every_flag_reaches_the_manifest() {
    let dir = folder();
    let line = "model wrap --onnx heatmap.onnx --kind heatmap --skeleton skeleton.json --name mine --mean 123.675,116.28,103.53 \
                --std 58.395,57.12,57.375 --range 255 --channels bgr --padding 1.5 --udp --values sigmoid --refine dark --dark-blur 17 \
                --shift-flipped --instance-threshold 0.6 --keypoint-threshold 0.3 --floor 0.1 --output heatmaps --boxes boxes.json \
                --image images/7.png --out all";
    let line: Vec<&str> = line.split_whitespace().collect();
    let text = succeed(dir.path(), &line.join(" "));
    assert!(text.contains("tried   2 boxes"), "{text}");
    let bundle = Bundle::open(&dir.path().join("all")).unwrap();
    let manifest = bundle.manifest();
    assert_eq!((manifest.name.as_str(), manifest.input.channels), ("mine", Channels::Bgr));
    let close = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close(manifest.input.mean, [0.485, 0.456, 0.406]) && close(manifest.input.std, [0.229, 0.224, 0.225]));
    assert_eq!((manifest.thresholds.instance, manifest.thresholds.keypoint, manifest.thresholds.floor), (0.6, 0.3, 0.1));
    let Some(PoseOutput::Heatmap(spec)) = manifest.network.pose().map(|pose| &pose.output) else { panic!("{manifest:?}") };
    assert_eq!((spec.crop.padding, spec.crop.udp, spec.refine, spec.shift_flipped), (1.5, true, Refine::Dark { blur: 17 }, true));
    assert_eq!(manifest.golden.len(), 1);
}

#[test]
fn refusals_name_the_flag() {
    let dir = folder();
    let wrap = "model wrap --onnx heatmap.onnx --kind heatmap --out out";
    fail(dir.path(), wrap, &["3 keypoints", "expected 17", "heatmap.onnx"]);
    fail(dir.path(), &format!("{wrap} --skeleton nowhere.json"), &["--skeleton", "coco17", "nowhere.json"]);
    fail(dir.path(), &format!("{wrap} {RAW} --input 128"), &["--input", "HEIGHTxWIDTH", "\"128\""]);
    fail(dir.path(), &format!("{wrap} {RAW} --input 256x192"), &["[?, 3, 128, 96]", "[1, 3, 256, 192]"]);
    fail(dir.path(), &format!("{wrap} --skeleton skeleton.json --mean 123,116,103 --std 58,57,57"), &["123", "--range 255"]);
    fail(dir.path(), &format!("{wrap} --skeleton skeleton.json --mean 0.5,0.5"), &["--mean", "three numbers"]);
    fail(dir.path(), &wrap.replace("--kind heatmap", "--kind hologram"), &["hologram", "one-stage"]);
    fail(dir.path(), &wrap.replace("heatmap.onnx", "nowhere.onnx"), &["nowhere.onnx"]);
    fail(dir.path(), "model wrap --onnx yolo.onnx --kind one-stage --skeleton skeleton.json --out out", &["--input HEIGHTxWIDTH"]);
    let boxes = r#"[{"image_id": 1, "bbox": [10, 10, 50, 60]}, {"image_id": 1, "bbox": [10, 10, 0, 60]}]"#;
    std::fs::write(dir.path().join("bad.json"), boxes).unwrap();
    fail(dir.path(), &format!("{wrap} {RAW} --boxes bad.json"), &["bad.json", "box 1", "bbox"]);
    fail(dir.path(), &format!("{wrap} {RAW} --boxes boxes.json --detector yolo"), &["--boxes", "--detector"]);
    let yolo = "model wrap --onnx yolo.onnx --kind one-stage --input 192x192 --skeleton skeleton.json --out out";
    fail(dir.path(), &format!("{yolo} --detector elsewhere"), &["--detector", "by itself"]);
    fail(dir.path(), &format!("{yolo} --stride 50"), &["multiple of input.size_divisor 50"]);
    // A flag that the kind has no use for was meant for another model; numbers are named by their flag.
    for (line, parts) in [
        (format!("{wrap} {RAW} --letterbox top-left"), ["--letterbox", "--kind heatmap"]),
        (format!("{wrap} {RAW} --output-x a --output-y b"), ["--output-x", "--kind heatmap"]),
        (format!("{wrap} {RAW} --dark-blur 17"), ["--dark-blur", "--refine dark"]),
        (format!("{yolo} --refine dark"), ["--refine", "--kind one-stage"]),
        (format!("{yolo} --nms-iou 7"), ["--nms-iou is 7", "0 to 1"]),
        (format!("{yolo} --instance-threshold 0.01"), ["--instance-threshold", "--floor"]),
        (format!("{yolo} --std 0,1,1"), ["--std has 0", "above 0"]),
        (format!("{wrap} --skeleton skeleton.json --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --range 255"), ["--mean", "--range 1"]),
    ] {
        fail(dir.path(), &line, &parts);
    }
    assert!(!dir.path().join("out").exists());
}

#[test]
fn nothing_that_is_somebody_elses_is_touched() {
    let dir = folder();
    let wrap = format!("model wrap --onnx heatmap.onnx --kind heatmap --input 128x96 {RAW}");
    std::fs::create_dir(dir.path().join("mine.part")).unwrap();
    std::fs::write(dir.path().join("mine.part/note.txt"), "mine").unwrap();
    succeed(dir.path(), &format!("{wrap} --out mine"));
    assert_eq!(std::fs::read_to_string(dir.path().join("mine.part/note.txt")).unwrap(), "mine");
    fail(dir.path(), &format!("{wrap} --out mine/inner"), &["inside of the bundle mine"]);
    Bundle::open(&dir.path().join("mine")).unwrap();
    let picture = std::fs::read(dir.path().join("images/7.png")).unwrap();
    let label = "label --model mine --images images --boxes boxes.json --out";
    fail(dir.path(), &format!("{label} images/7.png"), &["--out", "7.png", "not overwritten"]);
    assert_eq!(std::fs::read(dir.path().join("images/7.png")).unwrap(), picture);
    let others: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(others.is_empty(), "{others:?}");

    // A box far from its picture is left out; the others are labelled.
    std::fs::write(
        dir.path().join("far.json"),
        r#"[{"image_id": 7, "bbox": [90000, 10, 50, 60]}, {"image_id": 7, "bbox": [20, 20, 60, 80]}]"#,
    )
    .unwrap();
    let told = succeed(dir.path(), "label --model mine --images images --boxes far.json --out far-results.json");
    assert!(
        told.contains("1 instances") && told.contains("far.json: box 0 of image 7: bbox is [90000, 10, 50, 60], far outside"),
        "{told}"
    );
}
