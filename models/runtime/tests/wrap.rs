//! What `wrap` takes and refuses: every refusal names what was expected and what came, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod onnx;

use omnilabel_bundle::*;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_runtime::Teacher;
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, drawn_person, wrap};
use onnx::{D, Eyes, Net};
use prost::Message;
use std::path::Path;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{StringStringEntryProto, TensorProto};

const CROP: CropSpec = CropSpec { padding: 1.25, udp: false };

fn heatmap() -> WrapKind {
    WrapKind::Heatmap { output: None, crop: CROP, values: Values::Peak, refine: Refine::Quarter, shift_flipped: false }
}

fn simcc() -> WrapKind {
    WrapKind::Simcc { outputs: None, crop: CROP, values: Values::Peak }
}

fn one_stage() -> WrapKind {
    WrapKind::OneStage { spec: onnx::one_stage_spec(), stride: 32 }
}

fn request(dir: &Path, kind: WrapKind) -> WrapRequest {
    WrapRequest {
        onnx: dir.join("model.onnx"),
        out: dir.join("bundle"),
        name: "test".into(),
        skeleton: onnx::skeleton(),
        input: None,
        mean: [0.0; 3],
        std: [1.0; 3],
        channels: Channels::Rgb,
        kind,
        thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
        detector: None,
        frame: drawn_person(),
        boxes: None,
    }
}

/// Wrapping `net` fails with a message that has every one of `expected`, and leaves the folder as it was.
fn refused(net: &Net, kind: WrapKind, change: impl FnOnce(&mut WrapRequest), expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(dir.path(), kind);
    net.save(&request.onnx);
    change(&mut request);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    let message = wrap(&request).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "{message}: something was left behind");
}

/// `x` of the given type and shape goes out as it came in, or as `node` makes of it.
fn straight(element: DataType, dims: &[D], node: Option<(&str, Vec<tract_onnx::pb::AttributeProto>)>, out: &[D]) -> Net {
    let mut net = Net::new();
    let x = net.input("x", element, dims);
    let y = match node {
        Some((op, attributes)) => net.node(op, &[&x], attributes),
        None => x,
    };
    net.output("y", &y, out);
    net
}

const fn square(channels: i64) -> [D; 4] {
    [D::N(1), D::N(channels), D::N(32), D::N(32)]
}

#[test]
fn what_is_no_onnx_file() {
    let dir = tempfile::tempdir().unwrap();
    let request = request(dir.path(), heatmap());
    assert!(wrap(&request).unwrap_err().to_string().contains("model.onnx"));
    for bytes in [&b""[..], b"\x08\x08", b"not a model at all, but long enough to look like one"] {
        std::fs::write(&request.onnx, bytes).unwrap();
        let message = wrap(&request).unwrap_err().to_string();
        assert!(message.contains("model.onnx") && !request.out.exists(), "{message}");
    }
}

#[test]
fn inputs() {
    let f = DataType::Float;
    let take = |net: &Net, expected: &[&str]| refused(net, heatmap(), |_| (), expected);
    take(&straight(f, &[D::N(3), D::N(32), D::N(32)], None, &[D::N(3), D::N(32), D::N(32)]), &["[3, 32, 32]", "[1, 3, height, width]"]);
    take(&straight(DataType::Uint8, &square(3), None, &square(3)), &["U8", "expected F32"]);
    take(&straight(f, &[D::N(1), D::N(32), D::N(32), D::N(3)], None, &square(3)), &["channels come last", "[1, 32, 32, 3]"]);
    take(&straight(f, &square(1), None, &square(1)), &["[1, 1, 32, 32]", "not 3 channels", "[1, 3, 32, 32]"]);
    let four = [D::N(4), D::N(3), D::N(32), D::N(32)];
    take(&straight(f, &four, None, &four), &["fixed batch of 4", "[4, 3, 32, 32]", "batch of 1"]);
    let open = [D::S("n"), D::N(3), D::S("h"), D::S("w")];
    take(&straight(f, &open, None, &open), &["[n, 3, h, w]", "--input"]);
    let other = |request: &mut WrapRequest| request.input = Some((64, 48));
    refused(&straight(f, &square(3), None, &square(3)), heatmap(), other, &["[1, 3, 32, 32]", "[1, 3, 64, 48]"]);
    refused(&straight(f, &square(3), None, &square(3)), heatmap(), |r| r.input = Some((8, 32)), &["pose.height", "8"]);
    let mut two = straight(f, &square(3), None, &square(3));
    two.input("extra", f, &square(3));
    take(&two, &["2 inputs", "extra", "expected one"]);
}

#[test]
fn outputs() {
    let net = |k: i64| {
        let mut net = Net::new();
        let x = net.input("x", DataType::Float, &square(3));
        let picks: Vec<String> = vec![x; k as usize / 3];
        let names: Vec<&str> = picks.iter().map(String::as_str).collect();
        let y = net.node("Concat", &names, vec![onnx::int("axis", 1)]);
        net.output("maps", &y, &square(k));
        net
    };
    refused(&net(6), heatmap(), |_| (), &["`maps` has 6 keypoints", "expected 3", "skeleton"]);
    refused(&net(3), heatmap(), |r| r.skeleton = Skeleton::coco17(), &["has 3 keypoints", "expected 17"]);
    let asked =
        WrapKind::Heatmap { output: Some("heat".into()), crop: CROP, values: Values::Peak, refine: Refine::None, shift_flipped: false };
    refused(&net(3), asked, |_| (), &["no output `heat`", "maps FLOAT [1, 3, 32, 32]"]);
    refused(&net(3), simcc(), |_| (), &["expected two outputs", "maps"]);
    refused(&net(3), one_stage(), |_| (), &["no output is of rank 3", "maps"]);
    refused(&onnx::one_stage(false, false), heatmap(), |_| (), &["no output is of rank 4", "output0"]);
    // A rank that the file does not tell truly.
    let flat = straight(DataType::Float, &square(3), Some(("Flatten", vec![])), &square(3));
    refused(&flat, heatmap(), |_| (), &["is [1, 3072]", "[1, 3, rows, columns]"]);
    let cast = straight(DataType::Float, &square(3), Some(("Cast", vec![onnx::int("to", DataType::Float16 as i64)])), &square(3));
    let mut half = cast;
    // Without the identity behind it, which tract would not notice.
    half.graph.output[0].name = half.graph.node[0].output[0].clone();
    refused(&half, heatmap(), |_| (), &["F16", "expected F32"]);
    // Two that would do.
    let mut two = net(3);
    let y = two.graph.node[0].output[0].clone();
    two.output("other", &y, &square(3));
    refused(&two, heatmap(), |_| (), &["several outputs", "--output", "maps", "other"]);
}

#[test]
fn simcc_rows() {
    let mut net = onnx::simcc(Eyes::default());
    let swap = |x: &str, y: &str| WrapKind::Simcc { outputs: Some((x.into(), y.into())), crop: CROP, values: Values::Peak };
    refused(&net, swap("simcc_y", "simcc_x"), |_| (), &["256 bins for 96 px", "192 for 128 px", "as many per pixel"]);
    refused(&net, swap("simcc_x", "nowhere"), |_| (), &["no output `nowhere`", "simcc_y"]);
    refused(&net, simcc(), |r| r.skeleton = Skeleton::coco17(), &["`simcc_x` has 3 keypoints", "expected 17"]);
    // Other names: told by their sizes, whichever comes first.
    let dir = tempfile::tempdir().unwrap();
    for (node, output) in net.graph.node.iter_mut().filter(|node| node.op_type == "Identity").zip(["one", "two"]) {
        node.output[0] = output.into();
    }
    for (info, output) in net.graph.output.iter_mut().zip(["one", "two"]) {
        info.name = output.into();
    }
    net.graph.output.reverse();
    let request = request(dir.path(), simcc());
    net.save(&request.onnx);
    let wrapped = wrap(&request).unwrap();
    assert_eq!(wrapped.outputs, [("one".to_owned(), vec![1, 3, 192]), ("two".to_owned(), vec![1, 3, 256])]);
}

#[test]
fn one_stage_outputs() {
    let net = onnx::one_stage(false, false);
    refused(&net, one_stage(), |r| r.skeleton = Skeleton::coco17(), &["[1, 14, 576]", "[1, 56, candidates]", "3 x 17 keypoints"]);
    let many = |request: &mut WrapRequest| {
        if let WrapKind::OneStage { spec, .. } = &mut request.kind {
            spec.classes = 80;
        }
    };
    refused(&net, one_stage(), many, &["[1, 14, 576]", "[1, 93, candidates]", "80 scores", "--classes"]);
    let class = |request: &mut WrapRequest| {
        if let WrapKind::OneStage { spec, .. } = &mut request.kind {
            spec.class = 1;
        }
    };
    refused(&net, one_stage(), class, &["pose.output.class is 1", "0 to 0"]);
    // Scores before their sigmoid.
    let mut logits = Net::new();
    let x = logits.input("x", DataType::Float, &square(3));
    let (shape, less) = (logits.ints(&[1, 3, 1024]), logits.floats(&[1], vec![4.0]));
    let flat = logits.node("Reshape", &[&x, &shape], vec![]);
    let low = logits.node("Sub", &[&flat, &less], vec![]);
    let all = logits.node("Concat", &[low.as_str(); 5], vec![onnx::int("axis", 1)]);
    let (start, end, axis) = (logits.ints(&[0]), logits.ints(&[14]), logits.ints(&[1]));
    let part = logits.node("Slice", &[&all, &start, &end, &axis], vec![]);
    logits.output("out", &part, &[D::N(1), D::N(14), D::N(1024)]);
    refused(&logits, one_stage(), |_| (), &["number 4", "is -4", "from 0 to 1", "sigmoid"]);
    let boxes = |request: &mut WrapRequest| request.boxes = Some(vec![]);
    refused(&net, one_stage(), boxes, &["takes no boxes"]);
}

#[test]
fn what_tract_cannot_run_and_numbers_that_are_none() {
    let strange = straight(DataType::Float, &square(3), Some(("MadeUpOperator", vec![])), &square(3));
    refused(&strange, heatmap(), |_| (), &["model.onnx", "MadeUpOperator"]);
    // 0 / 0 everywhere on an empty picture.
    let mut zero = Net::new();
    let x = zero.input("x", DataType::Float, &square(3));
    let y = zero.node("Div", &[&x, &x], vec![]);
    zero.output("y", &y, &square(3));
    refused(&zero, heatmap(), |_| (), &["`y` on an empty picture", "NaN"]);
    // An output that no node makes.
    let mut lost = straight(DataType::Float, &square(3), None, &square(3));
    lost.graph.node.clear();
    refused(&lost, heatmap(), |_| (), &["model.onnx", "tract"]);
}

#[test]
fn numbers_and_folders() {
    let net = onnx::heatmap(4, Eyes::default(), D::N(1));
    refused(&net, heatmap(), |r| r.std[1] = 0.0, &["input.std[1]"]);
    refused(&net, heatmap(), |r| r.thresholds.instance = 2.0, &["thresholds.instance"]);
    refused(&net, heatmap(), |r| r.name = String::new(), &["name"]);
    let padding = |padding: f32| WrapKind::Heatmap {
        output: None,
        crop: CropSpec { padding, udp: false },
        values: Values::Peak,
        refine: Refine::None,
        shift_flipped: false,
    };
    refused(&net, padding(0.5), |_| (), &["pose.output.crop.padding is 0.5"]);
    refused(&net, padding(f32::NAN), |_| (), &["pose.output.crop.padding is NaN"]);
    let blur =
        |blur| WrapKind::Heatmap { output: None, crop: CROP, values: Values::Peak, refine: Refine::Dark { blur }, shift_flipped: false };
    refused(&net, blur(10), |_| (), &["blur is 10", "odd"]);
    let full = |request: &mut WrapRequest| {
        std::fs::create_dir(&request.out).unwrap();
        std::fs::write(request.out.join("something"), "mine").unwrap();
    };
    refused(&net, heatmap(), full, &["bundle", "not empty"]);
    refused(&net, heatmap(), |r| r.detector = Some("/nowhere/at/all".into()), &["/nowhere/at/all"]);
}

#[test]
fn detectors() {
    let net = onnx::heatmap(4, Eyes::default(), D::N(1));
    let dir = tempfile::tempdir().unwrap();
    let top_down = request(dir.path(), heatmap());
    net.save(&top_down.onnx);
    wrap(&top_down).unwrap();
    refused(&net, heatmap(), |r| r.detector = Some(top_down.out.clone()), &["`test`", "needs boxes itself"]);

    let mut finder = request(dir.path(), one_stage());
    (finder.onnx, finder.out) = (dir.path().join("finder.onnx"), dir.path().join("finder"));
    onnx::one_stage(false, false).save(&finder.onnx);
    let finder = wrap(&finder).unwrap().bundle;
    refused(&onnx::one_stage(false, false), one_stage(), |r| r.detector = Some(finder.root().to_owned()), &["detector", "by itself"]);

    // Inside, it is as it was; a byte of it that changed is found, and so is a detector where none belongs.
    let mut whole = request(dir.path(), heatmap());
    (whole.out, whole.detector) = (dir.path().join("whole"), Some(finder.root().to_owned()));
    let whole = wrap(&whole).unwrap();
    assert_eq!(whole.bundle.detector().unwrap().unwrap().sha256(), finder.sha256());
    assert!(Teacher::load(&whole.bundle, 1).unwrap().finds_people());
    let path = whole.bundle.root().join("detector/manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"nms_iou\": 0.5", "\"nms_iou\": 7.5")).unwrap();
    assert!(Bundle::open(whole.bundle.root()).unwrap_err().to_string().contains("detector/manifest.json"));
    let error = seal(whole.bundle.root(), whole.bundle.manifest().clone()).unwrap_err().to_string();
    assert!(error.contains("nms_iou"), "{error}");
}

/// Weights outside of the file come along under the names that it has for them; names that leave its folder do not.
#[test]
fn external_data() {
    let net = onnx::heatmap(4, Eyes::default(), D::N(1));
    let outside = |location: &str| {
        let mut model = net.model();
        let graph = model.graph.as_mut().unwrap();
        let mut blob = Vec::new();
        for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.data_type == DataType::Float as i32) {
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
            let bytes = std::mem::take(&mut tensor.raw_data);
            *tensor = TensorProto {
                data_location: Some(DataLocation::External as i32),
                external_data: vec![
                    entry("location", location.into()),
                    entry("offset", blob.len().to_string()),
                    entry("length", bytes.len().to_string()),
                ],
                ..tensor.clone()
            };
            blob.extend(bytes);
        }
        (model.encode_to_vec(), blob)
    };
    let dir = tempfile::tempdir().unwrap();
    let inside = request(dir.path(), heatmap());
    net.save(&inside.onnx);
    let expected = wrap(&inside).unwrap().detections;

    let mut other = request(dir.path(), heatmap());
    let (model, blob) = outside("weights/all.bin");
    std::fs::create_dir(dir.path().join("weights")).unwrap();
    std::fs::write(dir.path().join("weights/all.bin"), &blob).unwrap();
    (other.onnx, other.out) = (dir.path().join("other.onnx"), dir.path().join("other"));
    std::fs::write(&other.onnx, model).unwrap();
    let wrapped = wrap(&other).unwrap();
    assert_eq!(wrapped.detections, expected);
    assert_eq!(wrapped.bundle.manifest().files["weights/all.bin"].bytes, blob.len() as u64);

    for (location, reason) in [
        ("../secret.bin", "leaves the bundle"),
        ("/etc/hostname", "leaves the bundle"),
        ("golden/x.bin", "taken"),
        ("pose.onnx", "taken"),
        ("detector/x", "taken"),
        ("manifest.json", "manifest"),
        ("missing.bin", "missing.bin"),
    ] {
        let mut request = request(dir.path(), heatmap());
        (request.onnx, request.out) = (dir.path().join("bad.onnx"), dir.path().join("bad"));
        std::fs::write(&request.onnx, outside(location).0).unwrap();
        let message = wrap(&request).unwrap_err().to_string();
        assert!(message.contains(reason) && !request.out.exists(), "{location}: {message}");
    }
}

/// Logits taken for confidences are told, and nobody on the picture is.
#[test]
fn warnings() {
    let dir = tempfile::tempdir().unwrap();
    let mut high = request(dir.path(), heatmap());
    high.frame = onnx::picture();
    onnx::heatmap(4, Eyes { gain: 9.0, ..Eyes::default() }, D::N(1)).save(&high.onnx);
    let warnings = wrap(&high).unwrap().warnings;
    assert!(warnings[0].contains("--values sigmoid") && warnings[1].contains("--detector"), "{warnings:?}");
    let mut nobody = request(dir.path(), one_stage());
    (nobody.onnx, nobody.out) = (dir.path().join("other.onnx"), dir.path().join("other"));
    onnx::one_stage(false, false).save(&nobody.onnx);
    let warnings = wrap(&nobody).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("nobody"), "{warnings:?}");
}
