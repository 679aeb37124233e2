//! The whole pipeline on tract against torchvision's `KeypointRCNN` with the same weights (`tests/golden/make.py` made both), and
//! golden frames.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod changed;

use changed::{changed_weights, noise};
use omnilabel_bundle::{Bundle, Manifest, seal};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;
use omnilabel_runtime::{Teacher, ViewPlan, check_golden, write_golden};
use std::path::{Path, PathBuf};

/// Boxes of up to 256 px from f32 convolutions that sum in another order.
const BOX_TOLERANCE_PX: f32 = 0.01;
/// A keypoint is the best pixel of a resized heatmap, in frame pixels of 210/179 net pixels: one pixel to the side.
const POINT_TOLERANCE_PX: f32 = 1.5;
/// Relative to the larger of 1 and the value.
const SCORE_TOLERANCE: f32 = 1e-4;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torchvision")
}

fn bundle() -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"] {
        std::fs::copy(source().join(name), dir.path().join(name)).unwrap();
    }
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(source().join("manifest.json")).unwrap()).unwrap();
    let bundle = seal(dir.path(), manifest).unwrap();
    (dir, bundle)
}

fn picture() -> Frame {
    Frame::open(&source().join("picture.png")).unwrap()
}

fn close(found: f32, expected: f32, what: &str) {
    assert!((found - expected).abs() <= SCORE_TOLERANCE * expected.abs().max(1.0), "{what}: {found}, torchvision {expected}");
}

#[test]
fn detections_of_torchvision() {
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(source().join("detections.json")).unwrap()).unwrap();
    let floats = |name: &str| golden[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect::<Vec<_>>();
    let (boxes, scores, points, logits) = (floats("boxes"), floats("scores"), floats("keypoints"), floats("keypoints_scores"));
    let (_dir, bundle) = bundle();
    for threads in [1, 3] {
        let teacher = Teacher::load(&bundle, threads).unwrap();
        let found = teacher.detect(&picture(), &ViewPlan::single(bundle.manifest())).unwrap();
        assert_eq!(found.len(), scores.len());
        let mut moved = 0;
        for (i, detection) in found.iter().enumerate() {
            close(detection.score, scores[i], &format!("score {i}"));
            let Rect { x1, y1, x2, y2 } = detection.rect;
            for (corner, (a, b)) in [x1, y1, x2, y2].into_iter().zip(&boxes[4 * i..]).enumerate() {
                assert!((a - b).abs() <= BOX_TOLERANCE_PX, "box {i}, corner {corner}: {a}, torchvision {b}");
            }
            for (k, keypoint) in detection.keypoints.iter().enumerate() {
                let at = 5 * i + k;
                close(keypoint.peak_logit, logits[at], &format!("logit {i}, {k}"));
                let (x, y) = (points[2 * at], points[2 * at + 1]);
                let off = (keypoint.point.x - x).abs().max((keypoint.point.y - y).abs());
                assert!(off <= POINT_TOLERANCE_PX, "keypoint {i}, {k}: {:?}, torchvision {x}, {y}", keypoint.point);
                moved += usize::from(off > 0.01);
            }
        }
        assert!(moved <= 3, "{moved} of {} keypoints are another pixel", scores.len() * 5);
    }
}

/// Each view is computed on one thread and summed in order: workers change nothing, and neither does a run before.
#[test]
fn threads_and_order_do_not_change_the_result() {
    let (_dir, bundle) = bundle();
    let teachers = [1, 2, 5].map(|threads| Teacher::load(&bundle, threads).unwrap());
    for average in [Average::Logits, Average::Probabilities] {
        for box_voting in [false, true] {
            let plan = ViewPlan { average, box_voting, ..ViewPlan::new(bundle.manifest(), &[96, 128, 160], true) };
            let first = teachers[0].detect(&picture(), &plan).unwrap();
            assert!(!first.is_empty());
            for teacher in &teachers {
                assert_eq!(teacher.detect(&picture(), &plan).unwrap(), first, "{plan:?}");
            }
        }
    }
}

/// Callers of any kind at once: plain threads, and workers of another pool that wait for the model's by stealing work. Without care
/// a worker that waits inside a graph starts a second one, on the scratch memory of the first.
#[test]
fn callers_at_once_find_what_one_finds() {
    let (_dir, bundle) = bundle();
    let teacher = Teacher::load(&bundle, 4).unwrap();
    for (short_sides, flip) in [(&[128][..], false), (&[96, 128, 160, 192][..], true)] {
        let plan = ViewPlan { box_voting: flip, ..ViewPlan::new(bundle.manifest(), short_sides, flip) };
        let expected = teacher.detect(&picture(), &plan).unwrap();
        let detect = || assert_eq!(teacher.detect(&picture(), &plan).unwrap(), expected, "{plan:?}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..5).for_each(|_| detect()));
            }
            pool.install(|| rayon::scope(|scope| (0..20).for_each(|_| scope.spawn(|_| detect()))));
        });
    }
}

#[test]
fn any_size_of_frame_runs() {
    let (_dir, bundle) = bundle();
    let teacher = Teacher::load(&bundle, 1).unwrap();
    let plan = ViewPlan::new(bundle.manifest(), &[64, 128], true);
    for (width, height) in [(1, 1), (1, 400), (400, 1), (37, 91), (640, 360), (128, 128), (129, 127), (31, 1000)] {
        let frame = Frame { size: omnilabel_keypoints::geometry::Size { width, height }, rgb: vec![90; (3 * width * height) as usize] };
        for detection in teacher.detect(&frame, &plan).unwrap() {
            assert!(detection.rect.is_valid() && detection.rect.x2 <= width as f32 + 1e-3 && detection.keypoints.len() == 5);
        }
    }
}

#[test]
fn golden_frames() {
    let (dir, bundle) = bundle();
    let identity = bundle.sha256();
    let frames = [("picture", picture()), ("grey", Frame { rgb: vec![128; picture().rgb.len()], ..picture() })];
    let sealed = write_golden(dir.path(), &frames).unwrap();
    assert_ne!(sealed.sha256(), identity);
    assert_eq!(write_golden(dir.path(), &frames).unwrap().sha256(), sealed.sha256(), "writing again gives the same bundle");
    let bundle = Bundle::open(dir.path()).unwrap();
    assert_eq!(bundle.manifest().golden.len(), 2);
    let teacher = Teacher::load(&bundle, 2).unwrap();
    assert_eq!(check_golden(&bundle, &teacher).unwrap(), Ok(()));

    // Every kind of change is noticed.
    let path = dir.path().join("golden/picture.json");
    let good: Vec<Detection> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<Detection>), expected: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        std::fs::write(&path, serde_json::to_vec(&bad).unwrap()).unwrap();
        let mismatch = check_golden(&bundle, &teacher).unwrap().unwrap_err();
        assert!(mismatch.image == "golden/picture.png" && mismatch.message.contains(expected), "{mismatch}");
    };
    changed(&|d| d[0].score -= 0.01, "score");
    changed(&|d| d[0].rect.x1 -= 4.0, "missing");
    changed(&|d| drop(d.pop()), "not among");
    changed(&|d| d[1].keypoints[2].peak_logit += 0.1, "logit of keypoint 2");
    changed(&|d| d.iter_mut().flat_map(|d| &mut d.keypoints).for_each(|k| k.point.x += 5.0), "px off");
    changed(&|d| d.iter_mut().for_each(|d| d.keypoints.swap(1, 2)), "keypoint 1");
    std::fs::remove_file(&path).unwrap();
    assert!(check_golden(&bundle, &teacher).unwrap_err().to_string().contains("picture.json"));
    assert!(write_golden(dir.path(), &frames).is_err(), "the bundle lacks a file");
    let (dir, _) = self::bundle();
    let error = write_golden(dir.path(), &[("../x", picture())]).unwrap_err().to_string();
    assert!(error.contains("../x"), "{error}");
}

/// Hashes say that weights came as they were signed; golden frames, that they are those of which the detections were made. Weights that
/// are all wrong by at most a fifth of a percent are noticed, and nine in ten tensors that are wrong by a tenth.
#[test]
fn golden_frames_tell_slightly_changed_weights() {
    let check = |bundle: &Bundle| check_golden(bundle, &Teacher::load(bundle, 2).unwrap()).unwrap();
    let (_dir, same) = changed_weights(|_| false, |value| value);
    assert_eq!(check(&same), Ok(()));
    for percent in [5.0, 2.0, 1.0, 0.5, 0.2, 0.1] {
        let (_dir, noisy) = changed_weights(|_| true, noise(percent));
        println!("weights changed by up to {percent} %: {:?}", check(&noisy));
        assert!(percent < 0.2 || check(&noisy).is_err(), "{percent} %");
    }
    let bytes = std::fs::read(same.path("weights.safetensors")).unwrap();
    let names: Vec<String> = safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    let silent: Vec<&String> = names
        .iter()
        .filter(|&name| {
            let (_dir, bundle) = changed_weights(|other| other == name, |value| 1.1 * value + 1e-6);
            check(&bundle).is_ok()
        })
        .collect();
    println!("{} tensors changed by a tenth, one at a time; not noticed: {silent:?}", names.len());
    // Perhaps of levels on which no golden frame has a person, or biases that move what is compared with itself.
    assert!(names.len() > 40 && 10 * silent.len() <= names.len(), "{silent:?}");
}

/// A graph whose outputs are not what the manifest says is named.
#[test]
fn wrong_graphs() {
    for (from, to, expected) in [
        ("box_head.onnx", "keypoint_head.onnx", "keypoint_head.onnx"),
        ("keypoint_head.onnx", "box_head.onnx", "box_head.onnx"),
        ("box_head.onnx", "backbone.onnx", "backbone.onnx"),
    ] {
        let (dir, bundle) = bundle();
        std::fs::copy(dir.path().join(from), dir.path().join(to)).unwrap();
        let bundle = seal(dir.path(), bundle.manifest().clone()).unwrap();
        let error = Teacher::load(&bundle, 1).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let (dir, bundle) = bundle();
    let mut manifest = bundle.manifest().clone();
    manifest.network.rcnn_mut().unwrap().heatmap_side = 28;
    let bundle = seal(dir.path(), manifest).unwrap();
    let error = Teacher::load(&bundle, 1).unwrap().detect(&picture(), &ViewPlan::single(bundle.manifest())).unwrap_err().to_string();
    assert!(error.contains("keypoint_head.onnx") && error.contains("28"), "{error}");
}
