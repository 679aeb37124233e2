//! Bundles are refused for every way of being wrong, and the refusal names the file.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use omnilabel_bundle::*;
use omnilabel_keypoints::label::Thresholds;
use std::collections::BTreeMap;
use std::path::Path;

fn manifest() -> Manifest {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    Manifest {
        format: FORMAT,
        name: "test".into(),
        architecture: "none".into(),
        skeleton: SkeletonSpec {
            keypoints: vec!["left_hand".into(), "right_hand".into()],
            edges: vec![(0, 1)],
            flip: vec![1, 0],
            sigmas: vec![0.05, 0.05],
        },
        input: InputSpec { short_side: 128, max_long_side: 256, size_divisor: 32, mean: [0.5; 3], std: [0.25; 3], channels: Channels::Rgb },
        network: NetworkSpec {
            levels: vec![LevelSpec { stride: 4, anchor_size: 32.0 }],
            roi_levels: 1,
            canonical_size: 224.0,
            canonical_level: 0,
            aspect_ratios: vec![0.5, 1.0, 2.0],
            anchor_rule: AnchorRule::Rounded,
            stride_in_1x1: false,
            rpn: RpnSpec { pre_nms_top_n: 100, post_nms_top_n: 50, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.0 },
            box_roi: roi(7),
            keypoint_roi: roi(14),
            box_coder: [10.0, 10.0, 5.0, 5.0],
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_detections: 20,
            heatmap_side: 56,
        }
        .into(),
        thresholds: Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 },
        parent: None,
        dataset_sha256: None,
        ap: Some(0.25),
        files: BTreeMap::new(),
        golden: vec![GoldenFrame { image: "golden/a.png".into(), detections: "golden/a.json".into() }],
    }
}

/// A protobuf field with a length-delimited value.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    assert!(number < 16 && value.len() < 128);
    [&[number << 3 | 2, value.len() as u8], value].concat()
}

/// An ONNX model with one initializer that lies outside.
fn graph(location: &str, offset: &str, length: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let tensor = [field(8, b"w"), entry("location", location), entry("offset", offset), entry("length", length), vec![14 << 3, 1]].concat();
    field(7, &field(5, &tensor))
}

fn write(root: &Path) {
    std::fs::create_dir_all(root.join("golden")).unwrap();
    for name in GRAPHS {
        std::fs::write(root.join(name), graph("weights.safetensors", "8", "16")).unwrap();
    }
    std::fs::write(root.join("weights.safetensors"), [7; 24]).unwrap();
    std::fs::write(root.join("golden/a.png"), b"not looked at here").unwrap();
    std::fs::write(root.join("golden/a.json"), b"[]").unwrap();
}

fn sealed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    seal(dir.path(), manifest()).unwrap();
    dir
}

/// `change` makes `Bundle::open` fail with a message that contains every one of `expected`.
fn refused(change: impl FnOnce(&Path), expected: &[&str]) {
    let dir = sealed();
    change(dir.path());
    let message = Bundle::open(dir.path()).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

fn edit(root: &Path, from: &str, to: &str) {
    let path = root.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text} lacks {from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn sealing_is_deterministic_and_opens() {
    let dir = sealed();
    let first = std::fs::read(dir.path().join("manifest.json")).unwrap();
    let bundle = Bundle::open(dir.path()).unwrap();
    assert_eq!(bundle.sha256(), sha256_file(&dir.path().join("manifest.json")).unwrap());
    assert_eq!(bundle.manifest().files.len(), 6);
    assert_eq!(bundle.skeleton().len(), 2);
    let again = seal(dir.path(), bundle.manifest().clone()).unwrap();
    assert_eq!(again.sha256(), bundle.sha256());
    assert_eq!(std::fs::read(dir.path().join("manifest.json")).unwrap(), first);
    assert_eq!(SkeletonSpec::from(bundle.skeleton()), bundle.manifest().skeleton);
}

#[test]
fn a_torn_seal_is_repaired_by_the_next() {
    let dir = sealed();
    std::fs::write(dir.path().join("manifest.json.partial"), b"{").unwrap();
    assert!(Bundle::open(dir.path()).is_err());
    seal(dir.path(), manifest()).unwrap();
    Bundle::open(dir.path()).unwrap();
}

#[test]
fn any_flipped_byte_of_any_file_is_named() {
    let dir = sealed();
    let names: Vec<String> = Bundle::open(dir.path()).unwrap().manifest().files.keys().cloned().collect();
    for name in names {
        let path = dir.path().join(&name);
        let good = std::fs::read(&path).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1 << (i % 8);
            std::fs::write(&path, bad).unwrap();
            let message = Bundle::open(dir.path()).unwrap_err().to_string();
            assert!(message.contains(&name) && message.contains("sha256"), "{name}[{i}]: {message}");
        }
        std::fs::write(&path, good).unwrap();
    }
    Bundle::open(dir.path()).unwrap();
}

#[test]
fn any_flipped_byte_of_the_manifest_changes_its_identity_or_is_refused() {
    let dir = sealed();
    let path = dir.path().join("manifest.json");
    let good = std::fs::read(&path).unwrap();
    let identity = Bundle::open(dir.path()).unwrap().sha256();
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 1 << (i % 8);
        std::fs::write(&path, bad).unwrap();
        assert!(Bundle::open(dir.path()).map_or(true, |b| b.sha256() != identity), "byte {i}");
    }
}

#[test]
fn files() {
    refused(|r| std::fs::remove_file(r.join("manifest.json")).unwrap(), &["manifest.json"]);
    refused(|r| std::fs::remove_file(r.join("golden/a.png")).unwrap(), &["a.png", "missing"]);
    refused(|r| std::fs::write(r.join("golden/b.png"), "x").unwrap(), &["b.png", "does not list"]);
    refused(|r| std::fs::write(r.join("weights.safetensors"), [7; 25]).unwrap(), &["weights.safetensors", "size is 25", "24"]);
    refused(|r| std::fs::File::create(r.join("manifest.json")).unwrap().set_len(2 << 20).unwrap(), &["manifest.json", "at most"]);
}

#[cfg(unix)]
#[test]
fn links_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    write(outside.path());
    for name in ["weights.safetensors", "manifest.json"] {
        refused(
            |r| {
                std::fs::rename(r.join(name), outside.path().join(name)).unwrap();
                symlink(outside.path().join(name), r.join(name)).unwrap();
            },
            &[name, "plain file"],
        );
    }
    refused(
        |r| {
            std::fs::remove_dir_all(r.join("golden")).unwrap();
            symlink(outside.path().join("golden"), r.join("golden")).unwrap();
        },
        &["golden", "plain file"],
    );
}

#[test]
fn paths_that_leave() {
    for bad in ["../a.png", "/a.png", "golden/../../a.png", "golden//a.png", "golden\\\\a.png", "c:/a.png", "./a.png", "manifest.json"] {
        refused(|r| edit(r, "\"golden/a.png\": {", &format!("{bad:?}: {{").replace("\\\\\\\\", "\\\\")), &["manifest.json", "files"]);
    }
}

#[test]
fn numbers_and_shapes() {
    refused(|r| edit(r, "\"format\": 1", "\"format\": 2"), &["format 2", "expected 1"]);
    for (from, to, field) in [
        ("\"short_side\": 128", "\"short_side\": 0", "input.short_side"),
        ("\"size_divisor\": 32", "\"size_divisor\": 0", "input.size_divisor"),
        ("\"max_long_side\": 256", "\"max_long_side\": 4000000000", "input.max_long_side"),
        ("\"stride\": 4", "\"stride\": 0", "stride"),
        ("\"anchor_size\": 32.0", "\"anchor_size\": 1e38", "anchor_size"),
        ("\"roi_levels\": 1", "\"roi_levels\": 2", "roi_levels"),
        ("\"canonical_level\": 0", "\"canonical_level\": 1", "canonical_level"),
        ("\"sampling_ratio\": 2", "\"sampling_ratio\": 9", "sampling_ratio"),
        ("\"resolution\": 14", "\"resolution\": 1000000", "resolution"),
        ("\"heatmap_side\": 56", "\"heatmap_side\": 0", "heatmap_side"),
        ("\"post_nms_top_n\": 50", "\"post_nms_top_n\": 4000000000", "post_nms_top_n"),
        ("\"ap\": 0.25", "\"ap\": -1", "ap"),
        ("\"bytes\": 24", "\"bytes\": 99999999999", "at most"),
        ("\"image\": \"golden/a.png\"", "\"image\": \"golden/c.png\"", "golden[0]"),
        ("\"name\": \"test\"", "\"name\": \"\"", "name"),
    ] {
        refused(|r| edit(r, from, to), &["manifest.json", field]);
    }
    refused(|r| edit(r, "\"format\": 1", "\"format\": \"one\""), &["manifest.json"]);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let mut bad = manifest();
    bad.input.std[1] = f32::NAN;
    assert!(seal(dir.path(), bad).unwrap_err().to_string().contains("input.std[1]"));
    assert!(!dir.path().join("manifest.json").exists());
}

/// Readers differ in which of two they take, so that what is checked would not be what is read.
#[test]
fn external_data_that_says_something_twice() {
    let once = graph("weights.safetensors", "8", "16");
    assert_eq!(onnx::external_data(std::io::Cursor::new(&once)).unwrap().len(), 1);
    let entry = |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    for (key, value) in [("location", "a"), ("offset", "0"), ("length", "4")] {
        let twice = field(7, &field(5, &[field(8, b"w"), entry(key, value), entry(key, value)].concat()));
        let message = onnx::external_data(std::io::Cursor::new(&twice)).unwrap_err();
        assert!(message.contains("\"w\"") && message.contains(key) && message.contains("twice"), "{message}");
    }
}

#[test]
fn a_bundle_is_made_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("there/bundle");
    let make = |part: &Path| -> Result<u8, BundleError> {
        write(part);
        seal(part, manifest())?;
        Ok(7)
    };
    let (bundle, made) = build(&out, make).unwrap();
    assert_eq!((bundle.root(), made), (out.as_path(), 7));
    // Not over what is there, nor inside of a bundle; an empty folder is nobody's.
    for taken in [out.clone(), out.join("golden/inner")] {
        assert!(build(&taken, make).is_err(), "{}", taken.display());
    }
    Bundle::open(&out).unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    build(&dir.path().join("empty"), make).unwrap();
    // What fails leaves nothing behind.
    let failed = build(&dir.path().join("failed"), |part| -> Result<(), BundleError> {
        write(part);
        Err(BundleError::Content { path: part.to_owned(), message: "made up".into() })
    });
    assert!(failed.unwrap_err().to_string().contains("made up"));
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["empty", "there"]);
}

#[test]
fn external_data_that_leaves_or_overruns() {
    for (location, offset, length, expected) in [
        ("../weights.safetensors", "8", "16", "leaves"),
        ("/etc/passwd", "0", "1", "leaves"),
        ("other.bin", "8", "16", "no such file"),
        ("weights.safetensors", "9", "16", "beyond"),
        ("weights.safetensors", "18446744073709551615", "16", "beyond"),
        ("weights.safetensors", "minus one", "16", "offset"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        std::fs::write(dir.path().join("box_head.onnx"), graph(location, offset, length)).unwrap();
        let message = seal(dir.path(), manifest()).unwrap_err().to_string();
        assert!(message.contains("box_head.onnx") && message.contains(expected), "{location}: {message}");
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    std::fs::write(dir.path().join("backbone.onnx"), b"this is not a graph").unwrap();
    assert!(seal(dir.path(), manifest()).unwrap_err().to_string().contains("backbone.onnx"));
}

#[test]
fn the_scan_reads_any_bytes() {
    let good = graph("weights.safetensors", "8", "16");
    let found = onnx::external_data(std::io::Cursor::new(&good)).unwrap();
    assert_eq!(found[0].tensor, "w");
    assert_eq!((found[0].offset, found[0].length), (8, Some(16)));
    for i in 0..good.len() {
        for byte in 0..=255 {
            let mut bad = good.clone();
            bad[i] = byte;
            let _: Result<_, _> = onnx::external_data(std::io::Cursor::new(&bad));
        }
        let _: Result<_, _> = onnx::external_data(std::io::Cursor::new(&good[..i]));
    }
}

fn pose(output: PoseOutput) -> Manifest {
    let one_stage = matches!(output, PoseOutput::OneStage(_));
    let mut manifest = manifest();
    manifest.input = InputSpec { short_side: 192, max_long_side: 256, size_divisor: if one_stage { 32 } else { 1 }, ..manifest.input };
    manifest.network = PoseSpec { height: 256, width: 192, output }.into();
    manifest.golden.clear();
    manifest
}

fn heatmaps() -> PoseOutput {
    PoseOutput::Heatmap(HeatmapSpec {
        crop: CropSpec { padding: 1.25, udp: false },
        output: "heatmaps".into(),
        rows: 64,
        columns: 48,
        values: Values::Peak,
        refine: Refine::Dark { blur: 11 },
        shift_flipped: true,
    })
}

fn outputs() -> [PoseOutput; 3] {
    let crop = CropSpec { padding: 1.25, udp: true };
    let simcc = SimccSpec { crop, x: "simcc_x".into(), y: "simcc_y".into(), split_ratio: 2.0, values: Values::Softmax };
    let one_stage = OneStageSpec {
        output: "output0".into(),
        classes: 2,
        class: 1,
        objectness: false,
        letterbox: Letterbox::Centre,
        fill: 114,
        score_threshold: 0.05,
        nms_iou: 0.7,
        max_detections: 100,
    };
    [heatmaps(), PoseOutput::Simcc(simcc), PoseOutput::OneStage(one_stage)]
}

/// A bundle that was signed before there were wrapped models still says what it said, to the byte.
#[test]
fn the_manifest_of_before_keeps_its_bytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../zoo/nano-scenes");
    let bytes = std::fs::read(path.join("manifest.json")).unwrap();
    let bundle = Bundle::open(&path).unwrap();
    let mut again = serde_json::to_vec_pretty(bundle.manifest()).unwrap();
    again.push(b'\n');
    assert_eq!(String::from_utf8(again).unwrap(), String::from_utf8(bytes).unwrap());
}

#[test]
fn wrapped_models_open_as_they_were_sealed() {
    for output in outputs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pose.onnx"), graph("weights/a.bin", "8", "16")).unwrap();
        std::fs::create_dir(dir.path().join("weights")).unwrap();
        std::fs::write(dir.path().join("weights/a.bin"), [7; 24]).unwrap();
        let sealed = seal(dir.path(), pose(output.clone())).unwrap();
        let text = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
        assert!(text.contains("\"pose\"") && !text.contains("\"network\""), "{text}");
        let opened = Bundle::open(dir.path()).unwrap();
        assert_eq!(opened.manifest(), sealed.manifest());
        let pose = opened.manifest().network.pose().unwrap();
        assert_eq!((&pose.output, opened.manifest().graphs()), (&output, &["pose.onnx"][..]));
        assert_eq!(opened.manifest().network.takes_boxes(), output.crop().is_some());
        assert!(opened.detector().unwrap().is_none());
    }
}

#[test]
fn numbers_and_names_of_wrapped_models() {
    let check = |output: PoseOutput, from: &str, to: &str, expected: &str| {
        let text = serde_json::to_string(&pose(output)).unwrap();
        assert!(text.contains(from), "{text} lacks {from}");
        let message = match serde_json::from_str::<Manifest>(&text.replacen(from, to, 1)) {
            Ok(manifest) => manifest.check().unwrap_err(),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    };
    let [heatmap, simcc, one_stage] = outputs();
    for (from, to, expected) in [
        ("\"height\":256", "\"height\":4000000000", "pose.height"),
        ("\"height\":256", "\"height\":255", "input.max_long_side is 256, expected 255 to 255"),
        ("\"short_side\":192", "\"short_side\":128", "input.short_side is 128, expected 192 to 192"),
        ("\"size_divisor\":1", "\"size_divisor\":2", "input.size_divisor"),
        ("\"padding\":1.25", "\"padding\":1e30", "pose.output.crop.padding"),
        ("\"rows\":64", "\"rows\":1000000", "pose.output.rows"),
        ("\"columns\":48", "\"columns\":0", "pose.output.columns"),
        ("\"blur\":11", "\"blur\":12", "odd"),
        ("\"blur\":11", "\"blur\":1001", "pose.output.refine.dark.blur"),
        ("\"output\":\"heatmaps\"", "\"output\":\"\"", "pose.output.output"),
        ("\"kind\":\"heatmap\"", "\"kind\":\"hologram\"", "hologram"),
        ("\"refine\"", "\"rifine\"", "refine"),
    ] {
        check(heatmap.clone(), from, to, expected);
    }
    for (from, to, expected) in [
        ("\"split_ratio\":2.0", "\"split_ratio\":1e9", "pose.output.split_ratio"),
        ("\"simcc_y\"", "\"simcc_x\"", "pose.output.y"),
        ("\"simcc_y\"", "\"a\\u0007b\"", "pose.output.y"),
    ] {
        check(simcc.clone(), from, to, expected);
    }
    for (from, to, expected) in [
        ("\"classes\":2", "\"classes\":4000000000", "pose.output.classes"),
        ("\"class\":1", "\"class\":2", "pose.output.class is 2, expected 0 to 1"),
        ("\"size_divisor\":32", "\"size_divisor\":100", "pose.height is 256, expected a multiple of input.size_divisor 100"),
        ("\"size_divisor\":32", "\"size_divisor\":0", "input.size_divisor"),
        ("\"score_threshold\":0.05", "\"score_threshold\":-1", "pose.output.score_threshold"),
        ("\"nms_iou\":0.7", "\"nms_iou\":2", "pose.output.nms_iou"),
        ("\"max_detections\":100", "\"max_detections\":0", "pose.output.max_detections"),
        ("\"fill\":114", "\"fill\":300", "300"),
    ] {
        check(one_stage.clone(), from, to, expected);
    }
    let both = serde_json::to_string(&manifest()).unwrap();
    let wrapped = serde_json::to_string(&pose(heatmaps())).unwrap();
    let start = wrapped.find("\"pose\"").unwrap();
    let end = wrapped.find(",\"thresholds\"").unwrap();
    let both = both.replacen("\"network\"", &format!("{},\"network\"", &wrapped[start..end]), 1);
    assert!(serde_json::from_str::<Manifest>(&both).unwrap_err().to_string().contains("not both"));
    let neither = wrapped.replacen("\"pose\"", "\"prose\"", 1);
    assert!(serde_json::from_str::<Manifest>(&neither).unwrap_err().to_string().contains("`network` (keypoint R-CNN) or `pose`"));
}

/// A wrapped model may have its weights inside; a graph of ours may not be so large.
#[test]
fn a_wrapped_graph_may_be_as_large_as_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let large = std::fs::File::create(dir.path().join("pose.onnx")).unwrap();
    // A sparse file that is one protobuf field (graph, 7) of an initializer (5) with raw data (9): skipped, not read.
    let bytes: u64 = (MAX_GRAPH_BYTES) + 1000;
    let varint = |mut n: u64| {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let raw = [vec![9 << 3 | 2], varint(bytes)].concat();
    let tensor = [vec![5 << 3 | 2], varint(bytes + raw.len() as u64), raw.clone()].concat();
    let head = [vec![7 << 3 | 2], varint(bytes + tensor.len() as u64), tensor].concat();
    std::io::Write::write_all(&mut &large, &head).unwrap();
    large.set_len(bytes + head.len() as u64).unwrap();
    assert_eq!(onnx::external_data(std::fs::File::open(dir.path().join("pose.onnx")).unwrap()).unwrap(), []);
    seal(dir.path(), pose(heatmaps())).unwrap();
    Bundle::open(dir.path()).unwrap();
    std::fs::rename(dir.path().join("pose.onnx"), dir.path().join("backbone.onnx")).unwrap();
    for name in &GRAPHS[1..] {
        std::fs::write(dir.path().join(name), b"").unwrap();
    }
    let message = seal(dir.path(), Manifest { golden: Vec::new(), ..manifest() }).unwrap_err().to_string();
    assert!(message.contains("backbone.onnx") && message.contains("at most 67108864"), "{message}");
    large.set_len(bytes).unwrap();
    let cut = onnx::external_data(std::fs::File::open(dir.path().join("backbone.onnx")).unwrap()).unwrap_err();
    assert!(cut.contains("cut short"), "{cut}");
}

/// Every manifest of a wrapped model with a byte changed is refused or says something that can be asked for its sizes.
#[test]
fn changed_bytes_of_a_wrapped_manifest() {
    for output in outputs() {
        let good = serde_json::to_vec(&pose(output)).unwrap();
        for i in 0..good.len() {
            for byte in *b"09-.eE\"{}[],:tnx\\\xff" {
                let mut bad = good.clone();
                bad[i] = byte;
                let Ok(manifest) = serde_json::from_slice::<Manifest>(&bad) else { continue };
                if manifest.network.pose().is_some_and(|pose| pose.check(&manifest.input).is_ok()) {
                    let pose = manifest.network.pose().unwrap();
                    assert!(pose.height <= 2048 && pose.width <= 2048 && !pose.output.names().is_empty());
                    match &pose.output {
                        PoseOutput::Heatmap(spec) => assert!(spec.rows * spec.columns <= 512 * 512),
                        PoseOutput::Simcc(spec) => assert!(spec.bins(pose.width) <= 8 * 2048),
                        PoseOutput::OneStage(spec) => assert!(spec.channels(32) <= 4 + 1 + 1000 + 96),
                    }
                }
                let _: Result<(), String> = manifest.check();
            }
        }
    }
}
