//! `import`, `presets` and the beginnings of a training, as processes.
#![allow(clippy::unwrap_used)]

mod common;

use omnilabel_bundle::{AnchorRule, Bundle, Channels, Manifest, seal};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::{read_tensors, write_tensors};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn trainer(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnilabel-trainer")).current_dir(folder).args(line.split(' ')).output().unwrap()
}

fn succeed(folder: &Path, line: &str) -> String {
    let output = trainer(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with all of `parts` in its message.
fn fail(folder: &Path, line: &str, parts: &[&str]) {
    let output = trainer(folder, line);
    assert!(!output.status.success(), "{line}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(parts.iter().all(|part| told.contains(part)), "{line}: {told}");
}

/// A folder with pictures, their skeleton, and the weights of a network for it under torchvision's names.
fn prepared() -> (tempfile::TempDir, Network) {
    let dir = tempfile::tempdir().unwrap();
    common::folder(&dir.path().join("data"), 1, 3);
    let network = Network::new(Config::nano(3), 5).unwrap();
    network.params().save(&dir.path().join("weights.safetensors")).unwrap();
    (dir, network)
}

const IMPORT: &str = "import --arch nano --skeleton data/annotations.json --image data/images/1.jpg";

#[test]
fn imported_weights_are_a_bundle_that_runs() {
    let (dir, network) = prepared();
    let told: Value =
        serde_json::from_str(&succeed(dir.path(), &format!("{IMPORT} --from weights.safetensors --out wide --short-side 64 --json")))
            .unwrap();
    assert_eq!(told["parameters"], network.params().parameters());
    assert_eq!(told["tensors"], network.params().all().count());
    let bundle = Bundle::open(&dir.path().join("wide")).unwrap();
    let manifest = bundle.manifest();
    assert_eq!((manifest.name.as_str(), manifest.input.short_side, manifest.skeleton.keypoints.len()), ("nano", 64, 3));
    assert_eq!(manifest.golden.len(), 1);
    // The weights are those of the file: a network made from the bundle has them.
    let copy = Network::new(Config::nano(3), 8).unwrap();
    copy.init_from(&dir.path().join("wide/weights.safetensors")).unwrap();
    let head = "roi_heads.box_predictor.cls_score.weight";
    let values = |n: &Network| n.params().get(head).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&copy), values(&network));
    let table = succeed(dir.path(), "evaluate --model wide --data data");
    assert!(table.contains("AP"), "{table}");

    let narrow: Value = serde_json::from_str(&succeed(
        dir.path(),
        &format!("{IMPORT} --from weights.safetensors --out narrow --weights f16 --short-side 64 --json"),
    ))
    .unwrap();
    assert!(narrow["bytes"].as_u64().unwrap() * 10 < told["bytes"].as_u64().unwrap() * 6, "{narrow} {told}");
    assert!(Bundle::open(&dir.path().join("narrow")).is_ok());
}

#[test]
fn what_cannot_be_imported_is_named() {
    let (dir, network) = prepared();
    let from = format!("{IMPORT} --from weights.safetensors");
    fail(dir.path(), &format!("{from} --out data"), &["--out data", "not empty"]);
    fail(dir.path(), "import --arch nanno --from weights.safetensors --out x", &["--arch", "nanno", "resnext101_64x4d"]);
    // Seventeen keypoints are expected without --skeleton.
    let head = "roi_heads.keypoint_predictor.kps_score_lowres.bias";
    fail(dir.path(), "import --arch nano --from weights.safetensors --out x", &["weights.safetensors", head, "[3]", "[17]"]);
    fail(dir.path(), &format!("{from} --out x --pixel-mean 1,2,900"), &["--pixel-mean", "900", "255"]);
    fail(dir.path(), "import --arch nano --skeleton data/images/1.jpg --from weights.safetensors --out x", &["--skeleton", "1.jpg"]);
    fail(dir.path(), &format!("{IMPORT} --from nowhere.pth --out x"), &["nowhere.pth", "No such file"]);
    let mut tensors = read_tensors(&dir.path().join("weights.safetensors")).unwrap();
    tensors.remove("rpn.head.cls_logits.bias");
    write_tensors(&dir.path().join("less.safetensors"), &tensors.into_iter().collect::<Vec<_>>()).unwrap();
    fail(dir.path(), &format!("{IMPORT} --from less.safetensors --out x"), &["less.safetensors", "rpn.head.cls_logits.bias", "missing"]);
    let body: Vec<_> = network
        .params()
        .all()
        .filter_map(|(name, var)| Some((name.strip_prefix("backbone.body.")?.to_owned(), var.as_detached_tensor())))
        .collect();
    write_tensors(&dir.path().join("body.safetensors"), &body).unwrap();
    fail(dir.path(), &format!("{IMPORT} --from body.safetensors --out x"), &["body.safetensors", "--init"]);
    assert!(!dir.path().join("x").exists(), "a refusal leaves nothing behind");

    // The same body starts a training; part of one does not.
    let train = "train --data data --steps 1 --batch 2 --short-side 64 --golden 0 --json";
    succeed(dir.path(), &format!("{train} --init body.safetensors --out arm"));
    write_tensors(&dir.path().join("part.safetensors"), &body[1..]).unwrap();
    fail(dir.path(), &format!("{train} --init part.safetensors --out other"), &["part.safetensors", &body[0].0, "missing"]);
}

/// A student that starts from a bundle sees pictures as the bundle's weights are used to.
#[test]
fn conventions_are_kept_from_a_bundle_to_its_student() {
    let (dir, _) = prepared();
    succeed(dir.path(), &format!("{IMPORT} --from weights.safetensors --out teacher --short-side 64"));
    let path = dir.path().join("teacher/manifest.json");
    let mut manifest: Manifest = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest.input.channels = Channels::Bgr;
    manifest.input.std = [1.0 / 255.0; 3];
    let network = manifest.network.rcnn_mut().unwrap();
    (network.anchor_rule, network.keypoint_roi.aligned) = (AnchorRule::Exact, true);
    let teacher = seal(&dir.path().join("teacher"), manifest).unwrap();
    let train = "train --data data --steps 1 --batch 2 --golden 0 --json --init teacher";
    for (flags, out, side) in [("", "same", 64), (" --short-side 96", "larger", 96)] {
        succeed(dir.path(), &format!("{train} --out {out}{flags}"));
        let student = Bundle::open(&dir.path().join(out).join("bundle")).unwrap();
        let (student, teacher) = (student.manifest(), teacher.manifest());
        assert_eq!(student.network, teacher.network);
        assert_eq!((student.input.channels, student.input.std), (Channels::Bgr, teacher.input.std));
        assert_eq!(student.input.short_side, side);
    }
    fail(dir.path(), "train --data data --steps 1 --out x --init data", &["data", "manifest.json"]);
}

#[test]
fn presets_are_shown_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let table = succeed(dir.path(), "presets");
    for part in ["59137258", "137.42", "116885738", "nano"] {
        assert!(table.contains(part), "{table}");
    }
    let lines = succeed(dir.path(), "presets --measure nano --short-side 64 --runs 1 --json");
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 5);
    let nano = rows.iter().find(|row| row["preset"] == "nano").unwrap();
    let number = |field: &str| nano[field].as_f64().unwrap_or_else(|| panic!("{field}: {nano}"));
    // Four bytes per parameter and a little for the graphs, the manifest and the deconvolution's zeros.
    assert!(number("bundle_bytes_f32") > 4.0 * number("parameters") && number("bundle_bytes_f32") < 4.6 * number("parameters"), "{nano}");
    assert!(number("bundle_bytes_f16") < 0.6 * number("bundle_bytes_f32") && number("seconds") > 0.0, "{nano}");
    if cfg!(target_os = "linux") {
        assert!(number("peak_bytes") > number("bundle_bytes_f32"), "{nano}");
    }
    assert!(rows.iter().filter(|row| row["preset"] != "nano").all(|row| row["seconds"].is_null()), "{lines}");
    fail(dir.path(), "presets --measure giant", &["giant", "resnet50"]);
}
