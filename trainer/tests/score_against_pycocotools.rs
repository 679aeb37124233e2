//! The ten numbers equal pycocotools' on random and real cases.
#![allow(clippy::unwrap_used)]

use omnilabel_coco::ResultRecord;
use omnilabel_trainer::score::{GroundTruth, score};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sums in another order, no other difference.
const TOLERANCE: f64 = 1e-9;

/// The interpreter of `OMNILABEL_PYTHON`, or of `.venv-test` at the repository's root, if it has pycocotools.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let path = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root.join(".venv-test/bin/python"), PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run the README's test command)", path.display());
    None
}

/// Scores all pairs here and there.
fn check(python: &Path, cases: &[(PathBuf, PathBuf)]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/coco_score.py");
    let output = Command::new(python).arg(script).args(cases.iter().flat_map(|(g, r)| [g, r])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), cases.len());
    for (line, (gt, res)) in lines.iter().zip(cases) {
        let expected: Value = serde_json::from_str(line).unwrap();
        let results: Vec<ResultRecord> = serde_json::from_slice(&std::fs::read(res).unwrap()).unwrap();
        let ours = score(&GroundTruth::read(gt).unwrap(), &results).unwrap();
        for (name, value) in ours.named() {
            let theirs = expected[name].as_f64().unwrap();
            assert!((value - theirs).abs() <= TOLERANCE, "{}: {name}: ours {value}, pycocotools {theirs}", res.display());
        }
    }
}

/// Crowds, unlabelled people, contradictory `num_keypoints`, tied scores, more than 20 detections, own sigmas, empty images.
fn random_case(seed: u64) -> (Value, Value) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let own_sigmas = seed % 3 == 1;
    let k = if own_sigmas { rng.random_range(1..=20) } else { 17 };
    let categories = if seed % 7 == 3 { 2 } else { 1 };
    let boxed = seed.is_multiple_of(2);
    let coarse_scores = seed % 4 < 2;
    let images = rng.random_range(1..12_u64);
    let (mut annotations, mut results) = (Vec::new(), Vec::new());
    let first_id = u64::from(seed % 5 != 4); // pycocotools treats a match to id 0 as none
    let score_of = |rng: &mut ChaCha8Rng| {
        let s: f64 = rng.random();
        if coarse_scores { (s * 5.0).floor() / 5.0 } else { s }
    };
    for image in 1..=images {
        let people = if rng.random_bool(0.2) { 0 } else { rng.random_range(0..6) };
        let mut truths: Vec<Vec<f64>> = Vec::new();
        for _ in 0..people {
            let size: f64 = rng.random_range(10.0..250.0);
            let (x, y) = (rng.random_range(0.0..400.0), rng.random_range(0.0..300.0));
            let unlabelled = rng.random_bool(0.15);
            let mut keypoints = Vec::new();
            for _ in 0..k {
                let v = if unlabelled { 0 } else { rng.random_range(0..3) };
                let (px, py): (f64, f64) = (x + rng.random::<f64>() * size, y + rng.random::<f64>() * size);
                keypoints.extend(if v == 0 { [0.0, 0.0, 0.0] } else { [px.round(), py.round(), f64::from(v)] });
            }
            let visible = keypoints.chunks(3).filter(|p| p[2] > 0.0).count();
            let said = if rng.random_bool(0.05) { 0 } else { visible };
            let crowd = u8::from(rng.random_bool(0.15));
            let category = rng.random_range(1..=categories);
            annotations.push(json!({"id": first_id + annotations.len() as u64, "image_id": image, "category_id": category,
                "bbox": [x, y, size, size], "area": size * size * 0.53, "iscrowd": crowd, "num_keypoints": said, "keypoints": keypoints}));
            truths.push(keypoints.chunks(3).map(|p| if p[2] > 0.0 { [p[0], p[1], 2.0] } else { [x, y, 0.0] }).collect::<Vec<_>>().concat());
            truths.last_mut().unwrap().push(size);
        }
        let detections = if rng.random_bool(0.1) { 0 } else { rng.random_range(0..if seed.is_multiple_of(3) { 32 } else { 9 }) };
        for _ in 0..detections {
            let mut keypoints = Vec::new();
            if truths.is_empty() || rng.random_bool(0.2) {
                for _ in 0..k {
                    keypoints.extend([rng.random_range(0.0..400.0), rng.random_range(0.0..300.0), 1.0]);
                }
            } else {
                let truth = &truths[rng.random_range(0..truths.len())];
                let noise = [0.0, 0.02, 0.05, 0.1, 0.2][rng.random_range(0..5)] * truth[3 * k];
                for p in truth[..3 * k].chunks(3) {
                    let d: (f64, f64) = (rng.random_range(-1.0..=1.0), rng.random_range(-1.0..=1.0));
                    keypoints.extend([p[0] + d.0 * noise, p[1] + d.1 * noise, 1.0]);
                }
            }
            let mut result = json!({"image_id": image, "category_id": rng.random_range(1..=categories), "keypoints": keypoints,
                "score": score_of(&mut rng)});
            if boxed {
                result["bbox"] = json!([0.0, 0.0, rng.random_range(5.0..200.0), rng.random_range(5.0..200.0)]);
            }
            results.push(result);
        }
    }
    let names: Vec<String> = (0..k).map(|i| format!("k{i}")).collect();
    let categories: Vec<Value> = (1..=categories)
        .map(|id| {
            let mut category = json!({"id": id, "name": format!("c{id}"), "keypoints": names, "skeleton": []});
            if own_sigmas {
                category["sigmas"] = json!((0..k).map(|i| f64::from(i as u32 % 7 + 2) / 100.0).collect::<Vec<_>>());
            }
            category
        })
        .collect();
    let images: Vec<Value> =
        (1..=images).map(|id| json!({"id": id, "file_name": format!("{id}.jpg"), "width": 640, "height": 480})).collect();
    (json!({"images": images, "annotations": annotations, "categories": categories}), Value::Array(results))
}

#[test]
fn random_cases() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = std::env::var_os("OMNILABEL_LONG").is_some();
    let cases: Vec<(PathBuf, PathBuf)> = (0..if long { 2000 } else { 150 })
        .map(|seed| {
            let (gt, results) = random_case(seed);
            let paths = (dir.path().join(format!("gt-{seed}.json")), dir.path().join(format!("res-{seed}.json")));
            std::fs::write(&paths.0, gt.to_string()).unwrap();
            std::fs::write(&paths.1, results.to_string()).unwrap();
            paths
        })
        .collect();
    for chunk in cases.chunks(100) {
        check(&python, chunk);
    }
}

/// Real ground truth with perturbed copies of itself, false positives and misses as results.
#[test]
fn real_cases() {
    let Some(python) = python() else { return };
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    if !data.exists() {
        println!("skipped: {} is not there", data.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for set in ["coco/val", "coco/train", "lspe/val"] {
        let gt_path = data.join(set).join("annotations.json");
        let gt: Value = serde_json::from_slice(&std::fs::read(&gt_path).unwrap()).unwrap();
        for boxed in [false, true] {
            let mut rng = ChaCha8Rng::seed_from_u64(7);
            let mut results = Vec::new();
            for annotation in gt["annotations"].as_array().unwrap() {
                for _ in 0..rng.random_range(0..3) {
                    let size = annotation["area"].as_f64().unwrap().sqrt() * [0.02, 0.06, 0.2][rng.random_range(0..3)];
                    let keypoints: Vec<f64> = annotation["keypoints"]
                        .as_array()
                        .unwrap()
                        .chunks(3)
                        .flat_map(|p| {
                            let mut at = |i: usize| p[i].as_f64().unwrap() + rng.random_range(-size..=size);
                            [at(0), at(1), 1.0]
                        })
                        .collect();
                    let mut result = json!({"image_id": annotation["image_id"], "category_id": 1, "keypoints": keypoints,
                        "score": f64::from(rng.random_range(0..50)) / 50.0});
                    if boxed {
                        result["bbox"] = annotation["bbox"].clone();
                    }
                    results.push(result);
                }
            }
            let path = dir.path().join(format!("{}-{boxed}.json", set.replace('/', "-")));
            std::fs::write(&path, Value::Array(results).to_string()).unwrap();
            cases.push((gt_path.clone(), path));
        }
    }
    check(&python, &cases);
}
