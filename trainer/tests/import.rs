//! `import`, `presets` and the beginnings of a training, as processes.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
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
    fail(dir.path(), &format!("{from} --out data"), &["--out: data: ", "not empty"]);
    succeed(dir.path(), &format!("{from} --short-side 64 --out whole"));
    fail(dir.path(), &format!("{from} --out whole/inner"), &["--out: whole/inner: ", "inside of the bundle whole"]);
    fail(dir.path(), &format!("{IMPORT} --from whole/weights.safetensors --out x"), &["a bundle's own weights"]);
    fail(dir.path(), "train --data data --steps 1 --out x --preset resnet50 --init whole", &["--init", "backbone.body", "resnet50"]);
    fail(dir.path(), "evaluate --model whole --data data --results-out data/annotations.json", &["--results-out", "not overwritten"]);
    fail(dir.path(), "evaluate --model whole --data data --scales 1", &["--scales", "16 to 4096"]);
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
    for (flags, out, side) in [("", "same", 128), (" --short-side 96", "larger", 96)] {
        succeed(dir.path(), &format!("{train} --out {out}{flags}"));
        let student = Bundle::open(&dir.path().join(out).join("bundle")).unwrap();
        let (student, teacher) = (student.manifest(), teacher.manifest());
        let [ours, theirs] = [student, teacher].map(|manifest| manifest.network.rcnn().unwrap());
        assert_eq!((ours.anchor_rule, ours.box_roi, ours.keypoint_roi), (theirs.anchor_rule, theirs.box_roi, theirs.keypoint_roi));
        assert_eq!((student.input.channels, student.input.std), (Channels::Bgr, teacher.input.std));
        assert_eq!(student.input.short_side, side);
    }
    fail(dir.path(), "train --data data --steps 1 --out x --init data", &["data", "manifest.json"]);
}

/// `omnilabel-trainer presets | true`
#[test]
fn a_reader_that_has_gone_ends_the_program_quietly() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnilabel-trainer"));
    let mut child = command.arg("presets").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}

/// Detectron2's conventions, what the file says of itself, and what flags say over both.
#[test]
fn detectron2_conventions_come_from_names_file_and_flags() {
    let (dir, network) = prepared();
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (name, var) in network.params().all() {
        let mut tensor = var.as_detached_tensor();
        let mut theirs = name.replace("backbone.body.conv1", "backbone.bottom_up.stem.conv1");
        theirs = theirs.replace("backbone.body.bn1", "backbone.bottom_up.stem.conv1.norm");
        for (index, number) in [(1, 2), (2, 3), (3, 4), (4, 5)] {
            theirs = theirs.replace(&format!("backbone.body.layer{index}."), &format!("backbone.bottom_up.res{number}."));
            theirs = theirs.replace(&format!(".bn{index}."), &format!(".conv{index}.norm."));
        }
        theirs = theirs.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm");
        for level in 0..4 {
            theirs = theirs.replace(&format!("fpn.inner_blocks.{level}.0"), &format!("fpn_lateral{}", level + 2));
            theirs = theirs.replace(&format!("fpn.layer_blocks.{level}.0"), &format!("fpn_output{}", level + 2));
            theirs = theirs.replace(&format!("keypoint_head.{}.", 2 * level), &format!("keypoint_head.conv_fcn{}.", level + 1));
        }
        for (ours, name) in [
            ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
            ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
            ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
            ("box_head.fc6", "box_head.fc1"),
            ("box_head.fc7", "box_head.fc2"),
            ("keypoint_predictor.kps_score_lowres", "keypoint_head.score_lowres"),
        ] {
            theirs = theirs.replace(ours, name);
        }
        if theirs.contains("box_predictor.bbox_pred") {
            tensor = tensor.narrow(0, 4, 4).unwrap();
        }
        tensors.push((theirs, tensor));
    }
    let three = |values: [f32; 3]| Tensor::from_slice(&values, (3, 1, 1), &Device::Cpu).unwrap();
    write_tensors(&dir.path().join("plain.safetensors"), &tensors).unwrap();
    tensors.push(("pixel_mean".into(), three([102.0, 51.0, 25.5])));
    tensors.push(("pixel_std".into(), three([51.0, 51.0, 51.0])));
    write_tensors(&dir.path().join("told.safetensors"), &tensors).unwrap();
    let input = |line: &str, out: &str| {
        succeed(dir.path(), &format!("{IMPORT} --short-side 64 --out {out} {line}"));
        let bundle = Bundle::open(&dir.path().join(out)).unwrap();
        (bundle.manifest().input.clone(), bundle.manifest().network.rcnn().unwrap().clone())
    };
    let (plain, network) = input("--from plain.safetensors", "a");
    assert_eq!((plain.channels, plain.std), (Channels::Bgr, [1.0 / 255.0; 3]));
    assert!((plain.mean[2] - 123.675 / 255.0).abs() < 1e-6 && network.stride_in_1x1 && network.box_roi.aligned);
    let (told, _) = input("--from told.safetensors", "b");
    assert_eq!((told.mean, told.std), ([0.4, 0.2, 0.1], [0.2; 3]));
    let flags = "--pixel-std 255,255,255 --channels rgb --stride-in-1x1 false --roi-aligned false --sampling-ratio 2";
    let (given, network) = input(&format!("--from plain.safetensors {flags}"), "c");
    assert_eq!((given.channels, given.std), (Channels::Rgb, [1.0; 3]));
    assert!((given.mean[0] - 123.675 / 255.0).abs() < 1e-6, "the mean's channels turn, too: {:?}", given.mean);
    assert!(!network.stride_in_1x1 && !network.box_roi.aligned && network.keypoint_roi.sampling_ratio == 2);
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
    assert_eq!(rows.len(), 9);
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
