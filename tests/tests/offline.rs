//! The offline commands with the shipped model: results that pycocotools loads and scores alike, given boxes, and the method on real pictures.

use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use omnilabel_tests::peers::{python, real_images, root, succeed, teacher};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Labels `images`, with more arguments after the usual ones.
fn label(images: &Path, out: &Path, more: &[&str]) -> Value {
    let model = teacher();
    let mut args: Vec<&std::ffi::OsStr> = vec!["label".as_ref(), "--model".as_ref(), model.as_ref(), "--images".as_ref(), images.as_ref()];
    args.extend(["--out".as_ref(), out.as_os_str()]);
    args.extend(more.iter().map(std::ffi::OsStr::new));
    succeed("omnilabel-edge", args);
    json(out)
}

#[test]
fn pycocotools_loads_the_results_and_scores_them_as_score_does() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, out) = (dir.path().join("scenes"), dir.path().join("results.json"));
    write_coco(&folder, &[Look::studio()], 21, 24, DEFAULT_SIZE).expect("scenes");
    let gt = folder.join("annotations.json");
    // Another category id than 1: results must carry the folder's own.
    let mut file = json(&gt);
    file["categories"][0]["id"] = 7.into();
    file["annotations"].as_array_mut().expect("annotations").iter_mut().for_each(|a| a["category_id"] = 7.into());
    std::fs::write(&gt, file.to_string()).expect("annotations");
    let results = label(&folder, &out, &["--flip", "--scales", "96,128"]);
    let categories: Vec<&Value> = results.as_array().expect("a list").iter().map(|r| &r["category_id"]).collect();
    assert!(categories.len() >= 24 && categories.iter().all(|&id| *id == 7), "{categories:?}");
    let script = root().join("trainer/tests/python/coco_score.py");
    let theirs = Command::new(python).arg(script).args([&gt, &out]).output().expect("python");
    assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stderr));
    let theirs: Value = serde_json::from_slice(&theirs.stdout).expect("JSON");
    let args: [&std::ffi::OsStr; 6] =
        ["score".as_ref(), "--gt".as_ref(), gt.as_ref(), "--results".as_ref(), out.as_ref(), "--json".as_ref()];
    let ours: Value = serde_json::from_str(&succeed("omnilabel-trainer", args)).expect("JSON");
    // The shipped model finds people on such scenes: the comparison is not one of zeros.
    assert!(ours["AP50"].as_f64() > Some(0.2), "{ours}");
    for (name, value) in theirs.as_object().expect("ten numbers") {
        let apart = value.as_f64().zip(ours[name].as_f64()).map(|(a, b)| (a - b).abs());
        assert!(apart.is_some_and(|d| d <= 1e-9), "{name}: pycocotools {value}, ours {}", ours[name]);
    }
}

#[test]
fn given_boxes_are_labelled_instead_of_the_models_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, out) = (dir.path().join("scenes"), dir.path().join("results.json"));
    let dataset = write_coco(&folder, &[Look::studio()], 22, 4, DEFAULT_SIZE).expect("scenes");
    let (skipped, labelled) = (dataset.images[0].id, &dataset.images[1..]);
    let given: Vec<Value> = dataset
        .annotations
        .iter()
        .filter(|a| a.image_id != skipped)
        .enumerate()
        .map(|(i, a)| serde_json::json!({"image_id": a.image_id, "bbox": a.bbox, "score": 0.5 + i as f64 / 64.0}))
        .collect();
    let boxes = dir.path().join("boxes.json");
    std::fs::write(&boxes, serde_json::to_vec(&given).expect("JSON")).expect("a file");
    let results = label(&folder, &out, &["--flip", "--boxes", &boxes.display().to_string()]);
    let results = results.as_array().expect("a list");
    assert_eq!(results.len(), given.len(), "one result for each box, none for image {skipped}");
    for image in labelled {
        let scores = |list: &[Value]| {
            let of_image = list.iter().filter(|r| r["image_id"] == image.id);
            let mut scores: Vec<f64> = of_image.map(|r| r["score"].as_f64().expect("a score")).collect();
            scores.sort_by(f64::total_cmp);
            scores
        };
        let (given, found) = (scores(&given), scores(results));
        assert!(given.len() == found.len() && given.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-6), "{given:?} {found:?}");
    }
    for result in results {
        // Keypoints lie in one of the boxes that were given for the image.
        let inside = |x: f64, y: f64| {
            given.iter().filter(|g| g["image_id"] == result["image_id"]).any(|g| {
                let b: Vec<f64> = g["bbox"].as_array().expect("a box").iter().filter_map(Value::as_f64).collect();
                (b[0] - 1.0..=b[0] + b[2] + 1.0).contains(&x) && (b[1] - 1.0..=b[1] + b[3] + 1.0).contains(&y)
            })
        };
        let keypoints: Vec<f64> = result["keypoints"].as_array().expect("keypoints").iter().filter_map(Value::as_f64).collect();
        assert!(keypoints.chunks(3).all(|k| inside(k[0], k[1])), "{result}");
    }
}

#[test]
fn the_method_runs_on_real_pictures_with_several_people() {
    let Some(data) = real_images("coco") else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let mut args: Vec<&std::ffi::OsStr> = vec!["distill".as_ref(), "--data".as_ref(), data.as_ref(), "--out".as_ref(), out.as_ref()];
    let rest = "--images 20 --val-images 8 --teacher-steps 3 --student-steps 3 --batch 5 --flip --scales 96,128 --upper --json";
    args.extend(rest.split(' ').map(std::ffi::OsStr::new));
    let text = succeed("omnilabel-trainer", args);
    let report = json(&out.join("report.json"));
    let last: Value = serde_json::from_str(text.trim().lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last, report);
    let labels = json(&out.join("labels/annotations.json"));
    let labelled = labels["images"].as_array().map(Vec::len);
    assert!(labelled >= Some(1) && labelled <= Some(14), "{labelled:?} of the 14 pictures without labels got some");
    assert_eq!(labels["categories"][0]["keypoints"].as_array().map(Vec::len), Some(17));
    for arm in ["teacher", "student", "upper"] {
        assert!(out.join(arm).join("bundle/manifest.json").is_file(), "no bundle of {arm}");
    }
}
