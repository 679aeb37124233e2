//! Weights that people have: every file format, every naming, and what is refused.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use omnilabel_bundle::{AnchorRule, Channels};
use omnilabel_rcnn::RcnnError;
use omnilabel_rcnn::config::{Config, PRESETS};
use omnilabel_rcnn::export::{ExportMeta, write_bundle};
use omnilabel_rcnn::import::{self, Naming, read_checkpoint};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::write_tensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, Tensor>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoints").join(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_format_holds_the_same_tensors() {
    let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap();
    let expected = expected.as_object().unwrap();
    for file in ["zip.pth", "legacy.pth", "wrapped.pth", "numpy2.pkl", "numpy4.pkl", "numpy5.pkl", "python2.pkl"] {
        let found = read_checkpoint(&golden(file)).unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            "{file}"
        );
        for (name, value) in expected {
            let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
            let numbers: Vec<f32> = serde_json::from_value(value["values"].clone()).unwrap();
            assert_eq!(found[name].dims(), shape, "{file}: {name}");
            assert_eq!(values(&found[name]), numbers, "{file}: {name}");
        }
    }
}

#[test]
fn files_that_are_no_checkpoints_say_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    let zip = std::fs::read(golden("zip.pth")).unwrap();
    let pickle = std::fs::read(golden("numpy4.pkl")).unwrap();
    let cases: [(&[u8], &str); 6] = [
        (b"", "safetensors"),
        (b"hello, this is no checkpoint at all", "expected a safetensors file"),
        (&zip[..zip.len() / 2], "zip"),
        (&pickle[..pickle.len() / 2], "bytes are expected"),
        (b"\x80\x02}.", "no tensor"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "dictionary"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        let error = read_checkpoint(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("weights.bin"), "{error}");
    }
    assert!(matches!(read_checkpoint(&dir.path().join("nowhere.pth")), Err(RcnnError::Io { .. })));
}

/// A text that is remembered and turned into bytes over and over: small on disk, large in memory.
#[test]
fn a_pickle_that_grows_is_refused() {
    let mut bytes = b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00".to_vec();
    bytes.extend(vec![b'a'; 1 << 20]);
    bytes.extend(b"X\x06\x00\x00\x00latin1\x86q\x010");
    for _ in 0..100_000 {
        bytes.extend(b"h\x00h\x01R");
    }
    bytes.push(b'.');
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.pkl");
    std::fs::write(&path, &bytes).unwrap();
    let error = read_checkpoint(&path).unwrap_err().to_string();
    assert!(error.contains("more bytes are made of texts"), "{error}");
}

#[test]
fn numbers_that_are_none_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let bad = Tensor::from_slice(&[1f32, f32::NAN], 2, &Device::Cpu).unwrap();
    write_tensors(&path, &[("conv1.weight".to_owned(), bad)]).unwrap();
    let error = read_checkpoint(&path).unwrap_err().to_string();
    assert!(error.contains("conv1.weight") && error.contains("NaN"), "{error}");
}

/// The wrong architecture is no beginning, even where some tensors fit.
#[test]
fn part_of_another_body_is_no_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let deeper = Config { blocks: vec![3, 4, 8, 3], ..small() };
    for (from, to) in [(small(), deeper.clone()), (deeper, Config { widths: vec![4, 8, 16, 24], ..small() })] {
        write_tensors(&path, &tensors(&from).into_iter().collect::<Vec<_>>()).unwrap();
        let error = Network::new(to, 1).unwrap().init_from(&path).unwrap_err().to_string();
        assert!(error.contains("backbone.body.layer") && error.contains("not the weights of"), "{error}");
    }
}

/// A deterministic mutation fuzzer: no bytes make the reader panic or take memory without bounds.
#[test]
fn any_file_is_refused_or_read() {
    let runs: usize = std::env::var("OMNILABEL_FUZZ_RUNS").map_or(2_000, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    let seeds: Vec<Vec<u8>> =
        ["legacy.pth", "numpy2.pkl", "numpy5.pkl", "zip.pth"].iter().map(|name| std::fs::read(golden(name)).unwrap()).collect();
    let mut state = 1u64;
    let mut below = |n: usize| {
        // Knuth's MMIX generator, upper bits.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n.max(1)
    };
    let mut read = 0;
    for run in 0..runs.min(50_000) {
        let mut bytes = seeds[run % seeds.len()].clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] = below(256) as u8,
                1 => bytes.truncate(at),
                2 => drop(bytes.remove(at)),
                _ => bytes[at] ^= 1 << below(8),
            }
            if bytes.is_empty() {
                break;
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        read += usize::from(read_checkpoint(&path).is_ok());
    }
    // Most changes hit values and leave the structure alone.
    assert!(read > runs.min(50_000) / 100 && read < runs.min(50_000), "{read} of {runs} were read");
}

/// ResNet-50's structure with a sixteenth of its width.
fn small() -> Config {
    let mut config = Config::resnet50(17);
    config.stem_channels = 8;
    config.widths = vec![4, 8, 16, 32];
    config.channels = vec![16, 32, 64, 128];
    (config.fpn_channels, config.box_hidden, config.keypoint_channels) = (16, 24, 20);
    config
}

/// Every tensor of a seeded network, batch-norms with statistics that do something.
fn tensors(config: &Config) -> Tensors {
    let network = Network::new(config.clone(), 7).unwrap();
    let mut tensors = Tensors::new();
    for (index, (name, var)) in network.params().all().enumerate() {
        let mut tensor = var.as_detached_tensor();
        if name.contains(".bn") || name.contains("downsample.1") {
            let data: Vec<f32> = (0..tensor.elem_count()).map(|i| 0.5 + ((i * 7 + index * 13) % 11) as f32 / 11.0).collect();
            tensor = Tensor::from_vec(data, tensor.dims(), &Device::Cpu).unwrap();
        }
        tensors.insert(name.to_owned(), tensor);
    }
    tensors
}

fn naming(tensors: &Tensors) -> Naming {
    Naming::of(tensors.keys().map(String::as_str)).unwrap()
}

fn imported(config: Config, tensors: &Tensors) -> Result<Network, RcnnError> {
    import::network(config, tensors, naming(tensors), Path::new("weights.pth"))
}

fn same(network: &Network, expected: &Tensors) {
    for (name, var) in network.params().all() {
        assert_eq!(values(var), values(&expected[name]), "{name}");
    }
}

#[test]
fn the_small_twins_have_the_papers_bodies_and_an_eighth_of_the_channels() {
    for name in &PRESETS[1..5] {
        let (paper, mini) = (Config::preset(name, 17).unwrap(), Config::preset(&format!("mini_{name}"), 17).unwrap());
        let structure = |c: &Config| (c.block, c.blocks.clone(), c.groups, c.stem_kernel, c.stem_pool);
        assert_eq!(structure(&mini), structure(&paper), "{name}");
        assert_eq!(mini.channels, paper.channels.iter().map(|channels| channels / 8).collect::<Vec<_>>(), "{name}");
        let per_group = |c: &Config| c.widths[0] / c.groups;
        assert_eq!(per_group(&mini), (per_group(&paper) / 8).max(1), "{name}");
        assert!(mini.widths.windows(2).all(|pair| pair[1] == 2 * pair[0]), "{name}");
        let heads = |c: &Config| (c.fpn_channels, c.keypoint_convs, c.keypoint_channels, c.network.clone(), c.input.clone());
        assert_eq!(heads(&mini), heads(&Config::nano(17)), "{name}");
        Network::new(mini, 1).unwrap();
    }
}

#[test]
fn the_presets_have_the_parameters_of_the_reference() {
    // Printed by torchvision 0.28: sum(p.numel() for p in model.parameters()) with FrozenBatchNorm2d; models/runtime/tests/parity
    // counts again.
    let expected =
        [("resnet50", 59_137_258), ("resnet101", 78_077_162), ("resnext101_32x4d", 77_673_194), ("resnext101_64x4d", 116_885_738)];
    assert_eq!(PRESETS[1..5], expected.map(|(name, _)| name));
    for (name, parameters) in expected {
        let config = Config::preset(name, 17).unwrap();
        assert_eq!(config.name, name);
        let network = Network::zeros(config, DType::F32).unwrap();
        assert_eq!(network.params().parameters(), parameters, "{name}");
        let part = |prefix: &str| -> usize {
            let of = |(n, _): &(&str, &candle_core::Var)| n.starts_with(prefix) && !n.contains(".bn") && !n.contains("downsample.1");
            network.params().all().filter(of).map(|(_, var)| var.elem_count()).sum()
        };
        // Spec §1.
        if name == "resnet50" {
            let parts = ["backbone.body.", "backbone.fpn.", "rpn.", "roi_heads.box_", "roi_heads.keypoint_"].map(part);
            assert_eq!(parts, [23_454_912, 3_344_384, 593_935, 13_905_930, 17_838_097]);
        }
    }
}

#[test]
fn torchvision_names_of_today_and_of_before_0_12() {
    let config = small();
    let now = tensors(&config);
    assert_eq!(naming(&now), Naming::Torchvision);
    same(&imported(config.clone(), &now).unwrap(), &now);
    // The names of the published keypointrcnn_resnet50_fpn_coco checkpoint.
    let mut before = Tensors::new();
    for (name, tensor) in &now {
        let name = if name.starts_with("backbone.fpn.") || name.starts_with("rpn.head.conv.") {
            let (head, field) = name.rsplit_once('.').unwrap();
            let head = head.strip_suffix(".0").unwrap();
            format!("{}.{field}", if head == "rpn.head.conv.0" { "rpn.head.conv" } else { head })
        } else {
            name.clone()
        };
        before.insert(name, tensor.clone());
    }
    for name in
        ["backbone.fpn.inner_blocks.0.weight", "backbone.fpn.layer_blocks.3.bias", "rpn.head.conv.weight", "rpn.head.cls_logits.bias"]
    {
        assert!(before.contains_key(name), "{name}");
    }
    same(&imported(config, &before).unwrap(), &now);
}

#[test]
fn a_wrong_tensor_is_named_as_the_file_names_it() {
    let config = small();
    let good = tensors(&config);
    let refused = |change: &dyn Fn(&mut Tensors), name: &str, message: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        match imported(config.clone(), &bad) {
            Err(RcnnError::Weights { path, tensor, message: found }) => {
                assert_eq!((path.as_path(), tensor.as_str()), (Path::new("weights.pth"), name));
                assert!(found.contains(message), "{found}");
            }
            other => panic!("{name}: {other:?}"),
        }
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let missing = "backbone.body.layer3.5.conv2.weight";
    refused(&|t| drop(t.remove(missing)), missing, "missing");
    refused(&|t| drop(t.insert("roi_heads.mask_head.0.weight".into(), zeros(&[1]))), "roi_heads.mask_head.0.weight", "no such tensor");
    // A checkpoint of 14 keypoints.
    let head = "roi_heads.keypoint_predictor.kps_score_lowres.bias";
    refused(&|t| drop(t.insert(head.into(), zeros(&[14]))), head, "shape [14], expected [17]");
    // Another body than was asked for.
    let error = imported(Config { blocks: vec![3, 4, 23, 3], ..config.clone() }, &good).unwrap_err().to_string();
    assert!(error.contains("backbone.body.layer3.10.bn1.bias") && error.contains("missing"), "{error}");
    let error = imported(Config { blocks: vec![3, 4, 5, 3], ..config.clone() }, &good).unwrap_err().to_string();
    assert!(error.contains("backbone.body.layer3.5.") && error.contains("no such tensor"), "{error}");
}

/// Detectron2's names, spelled out where the rule is not plain.
fn detectron2(now: &Tensors) -> Tensors {
    let mut out = Tensors::new();
    for (name, tensor) in now {
        let mut theirs = name
            .replace("backbone.body.conv1", "backbone.bottom_up.stem.conv1")
            .replace("backbone.body.bn1", "backbone.bottom_up.stem.conv1.norm");
        for stage in 1..5 {
            theirs = theirs.replace(&format!("backbone.body.layer{stage}."), &format!("backbone.bottom_up.res{}.", stage + 1));
        }
        for index in 1..4 {
            theirs = theirs.replace(&format!(".bn{index}."), &format!(".conv{index}.norm."));
        }
        theirs = theirs.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm");
        for level in 0..4 {
            theirs = theirs.replace(&format!("fpn.inner_blocks.{level}.0"), &format!("fpn_lateral{}", level + 2));
            theirs = theirs.replace(&format!("fpn.layer_blocks.{level}.0"), &format!("fpn_output{}", level + 2));
        }
        for (a, b) in [
            ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
            ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
            ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
            ("box_head.fc6", "box_head.fc1"),
            ("box_head.fc7", "box_head.fc2"),
            ("keypoint_predictor.kps_score_lowres", "keypoint_head.score_lowres"),
        ] {
            theirs = theirs.replace(a, b);
        }
        for (index, number) in [0, 2, 4, 6, 8, 10, 12, 14].into_iter().zip(1..) {
            theirs = theirs.replace(&format!("keypoint_head.{index}."), &format!("keypoint_head.conv_fcn{number}."));
        }
        let tensor = match theirs.rsplit_once('.').unwrap().0 {
            "roi_heads.box_predictor.cls_score" => {
                Tensor::cat(&[tensor.narrow(0, 1, 1).unwrap(), tensor.narrow(0, 0, 1).unwrap()], 0).unwrap()
            }
            "roi_heads.box_predictor.bbox_pred" => tensor.narrow(0, 4, 4).unwrap(),
            _ => tensor.clone(),
        };
        out.insert(theirs, tensor);
    }
    for name in ["pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0"] {
        out.insert(name.to_owned(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    }
    out
}

#[test]
fn detectron2_names_and_conventions() {
    let config = small();
    let now = tensors(&config);
    let theirs = detectron2(&now);
    // Of the published keypoint_rcnn_R_50_FPN_3x.
    for name in [
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res4.5.conv2.weight",
        "backbone.bottom_up.res2.0.shortcut.norm.weight",
        "backbone.fpn_lateral5.bias",
        "backbone.fpn_output2.weight",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.keypoint_head.conv_fcn8.weight",
        "roi_heads.keypoint_head.score_lowres.weight",
    ] {
        assert!(theirs.contains_key(name), "{name}");
    }
    assert_eq!(naming(&theirs), Naming::Detectron2);
    let network = imported(config.clone(), &theirs).unwrap();
    // There are no deltas of the background.
    let mut expected = now;
    for field in ["weight", "bias"] {
        let name = format!("roi_heads.box_predictor.bbox_pred.{field}");
        let person = expected[&name].narrow(0, 4, 4).unwrap();
        expected.insert(name, Tensor::cat(&[person.zeros_like().unwrap(), person], 0).unwrap());
    }
    same(&network, &expected);
    let mut bad = theirs;
    bad.remove("backbone.fpn_output3.bias");
    assert!(imported(config.clone(), &bad).unwrap_err().to_string().contains("backbone.fpn_output3.bias"));

    let config = import::conventions(config, Naming::Detectron2);
    assert_eq!((config.input.channels, config.input.std, config.network.anchor_rule), (Channels::Bgr, [1.0 / 255.0; 3], AnchorRule::Exact));
    assert!(config.network.stride_in_1x1 && config.network.box_roi.aligned && config.network.keypoint_roi.sampling_ratio == 0);
    // What Detectron2's script makes of a body of torchvision's stays torchvision's.
    assert_eq!(import::conventions(small(), Naming::Detectron2Body), small());
    let resnext = import::conventions(Config::resnext101_32x4d(17), Naming::Detectron2);
    assert!(!resnext.network.stride_in_1x1 && resnext.input.std[0] > 0.2);
    // What they are is in the manifest, and a bundle's own conventions survive a round through it.
    let dir = tempfile::tempdir().unwrap();
    let thresholds = omnilabel_keypoints::label::Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 };
    let skeleton = omnilabel_keypoints::skeleton::Skeleton::coco17();
    let meta = ExportMeta { name: "d2".into(), skeleton, thresholds, parent: None, dataset_sha256: None, ap: None };
    let network = Network::new(config.clone(), 1).unwrap();
    let bundle = write_bundle(&network, &meta, dir.path()).unwrap();
    assert_eq!((&bundle.manifest().input, bundle.manifest().network.rcnn()), (&config.input, Some(&config.network)));
    let text = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
    for field in ["\"bgr\"", "\"stride_in_1x1\"", "\"exact\"", "\"aligned\": true"] {
        assert!(text.contains(field), "{field} in {text}");
    }
}

/// Where the stride sits changes the function, not the shapes.
#[test]
fn the_stride_moves() {
    let at_3x3 = small();
    let mut at_1x1 = at_3x3.clone();
    at_1x1.network.stride_in_1x1 = true;
    let weights = tensors(&at_3x3);
    let image = Tensor::arange(0f32, (3 * 64 * 64) as f32, &Device::Cpu).unwrap().reshape((1, 3, 64, 64)).unwrap().sin().unwrap();
    let outputs = [at_3x3, at_1x1].map(|config| imported(config, &weights).unwrap().forward_backbone(&image).unwrap().features.remove(1));
    assert_eq!(outputs[0].dims(), outputs[1].dims());
    let [a, b] = outputs.each_ref().map(values);
    assert!(a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-3 * a.abs()));
}

/// The body of torchvision's classifier, of Detectron2's, of Caffe2's.
fn bodies(now: &Tensors) -> [(Naming, Tensors); 3] {
    let zero = || Tensor::zeros((10, 2), DType::F32, &Device::Cpu).unwrap();
    let body = || now.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.body.")?.to_owned(), tensor.clone())));
    let mut torchvision: Tensors = body().collect();
    torchvision.insert("fc.weight".into(), zero());
    let mut detectron: Tensors = detectron2(now)
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("backbone.bottom_up.")?.to_owned(), tensor)))
        .collect();
    detectron.insert("stem.fc.weight".into(), zero());
    let mut caffe = Tensors::new();
    for (name, tensor) in body() {
        if name.ends_with("running_mean") || name.ends_with("running_var") {
            continue;
        }
        let mut theirs = name;
        for stage in 1..5 {
            for block in 0..6 {
                theirs = theirs.replace(&format!("layer{stage}.{block}."), &format!("res{}_{block}_", stage + 1));
            }
        }
        for (index, letter) in [(1, "a"), (2, "b"), (3, "c")] {
            if theirs.starts_with("res") {
                theirs = theirs.replace(&format!("conv{index}.weight"), &format!("branch2{letter}_w"));
                theirs = theirs.replace(&format!("bn{index}.weight"), &format!("branch2{letter}_bn_s"));
                theirs = theirs.replace(&format!("bn{index}.bias"), &format!("branch2{letter}_bn_b"));
            }
        }
        for (a, b) in [
            ("downsample.0.weight", "branch1_w"),
            ("downsample.1.weight", "branch1_bn_s"),
            ("downsample.1.bias", "branch1_bn_b"),
            ("conv1.weight", "conv1_w"),
            ("bn1.weight", "res_conv1_bn_s"),
            ("bn1.bias", "res_conv1_bn_b"),
        ] {
            theirs = theirs.replace(a, b);
        }
        caffe.insert(theirs, tensor);
    }
    caffe.insert("pred_w".into(), zero());
    caffe.insert("conv1_w_momentum".into(), zero());
    assert!(["conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res4_5_branch2c_bn_b"].iter().all(|name| caffe.contains_key(*name)));
    [(Naming::TorchvisionBody, torchvision), (Naming::Detectron2Body, detectron), (Naming::Caffe2Body, caffe)]
}

#[test]
fn a_body_is_a_beginning_and_no_model() {
    let config = small();
    let now = tensors(&config);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("body.safetensors");
    for (expected, body) in bodies(&now) {
        assert_eq!(naming(&body), expected);
        let error = imported(config.clone(), &body).unwrap_err().to_string();
        assert!(error.contains("--init"), "{error}");
        let write = |body: &Tensors| {
            let list: Vec<_> = body.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
            write_tensors(&path, &list).unwrap();
        };
        write(&body);
        // The same beginning for teacher and student, whatever their heads.
        for (keypoints, seed) in [(17, 3), (14, 4)] {
            let network = Network::new(Config { keypoints, ..config.clone() }, seed).unwrap();
            let fresh: Tensors = network.params().all().map(|(name, var)| (name.to_owned(), var.copy().unwrap())).collect();
            let kept = network.init_from(&path).unwrap();
            assert!(kept.iter().all(|name| !name.starts_with("backbone.body.")) && kept.len() > 30, "{kept:?}");
            for (name, var) in network.params().all() {
                let is_statistic = name.ends_with("running_mean") || name.ends_with("running_var");
                match name.starts_with("backbone.body.") {
                    true if expected == Naming::Caffe2Body && is_statistic => {
                        let value = if name.ends_with("var") { 1.0 - 1e-5 } else { 0.0 };
                        assert!(values(var).iter().all(|v| *v == value), "{name}");
                    }
                    true => assert_eq!(values(var), values(&now[name]), "{name}"),
                    false => assert_eq!(values(var), values(&fresh[name]), "{name}"),
                }
            }
        }
        // All of it or nothing.
        let network = Network::new(config.clone(), 1).unwrap();
        let victim = body.keys().find(|name| name.contains("res3") || name.contains("layer2")).unwrap().clone();
        let mut part = body.clone();
        part.remove(&victim);
        write(&part);
        let error = network.init_from(&path).unwrap_err().to_string();
        assert!(error.contains(&victim) && error.contains("missing"), "{error}");
        let mut more = body;
        more.insert("layer9.0.conv1.weight".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
        write(&more);
        let error = network.init_from(&path).unwrap_err().to_string();
        assert!(error.contains("layer9.0.conv1.weight"), "{error}");
    }
}

#[test]
fn a_detector_with_other_heads_gives_what_fits() {
    let config = small();
    let now = tensors(&config);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("detector.safetensors");
    for theirs in [now.clone(), detectron2(&now)] {
        let list: Vec<_> = theirs.into_iter().collect();
        write_tensors(&path, &list).unwrap();
        let network = Network::new(Config { keypoints: 14, ..config.clone() }, 5).unwrap();
        let kept = network.init_from(&path).unwrap();
        let head = "roi_heads.keypoint_predictor.kps_score_lowres";
        assert_eq!(kept, [format!("{head}.bias"), format!("{head}.weight")]);
        assert_eq!(
            values(network.params().get("roi_heads.box_predictor.cls_score.weight").unwrap()),
            values(&now["roi_heads.box_predictor.cls_score.weight"])
        );
    }
}
