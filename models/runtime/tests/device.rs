//! The pipeline of the GPU on whole bundles, against the one of the CPU. The device is the GPU's kernels compiled as C++, and its graphs
//! run on tract's CPU, cut as for a GPU; with the feature `cuda` and `OMNILABEL_GPU` set it is a real GPU.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "candle_graphs/mod.rs"]
mod candle_graphs;

use candle_graphs::drawn;
use omnilabel_bundle::{Bundle, Manifest, seal};
use omnilabel_detect::frame::Frame;
use omnilabel_gpu::GpuError;
use omnilabel_gpu_shim::Shim;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::label::Detection;
use omnilabel_rcnn::config::Config;
use omnilabel_runtime::device::{DeviceTract, OnCpu};
use omnilabel_runtime::{RuntimeError, Teacher, ViewPlan, check_golden};
use std::path::{Path, PathBuf};

/// f32 sums in another order, through about twenty layers, in boxes of up to 256 px in frames of up to 3 times the network's size; of
/// cuDNN's, which may choose Winograd's algorithm, more than of tract's with another batch.
const BOX_TOLERANCE_PX: f32 = 0.05;
/// Of scores, and, relative to the larger of 1 and the value, of logits.
const SCORE_TOLERANCE: f32 = 5e-4;
/// One pixel of the network to the side, in frame pixels, where two peaks are equal but for rounding.
const MOVED_PX: f32 = 0.1;
/// So many of a hundred keypoints may move: the maps of random networks are flat.
const MOVED_PERCENT: usize = 3;

fn device_teacher(bundle: &Bundle) -> Teacher {
    #[cfg(feature = "_cuda")]
    if std::env::var_os("OMNILABEL_GPU").is_some() {
        return Teacher::load_cuda(bundle).unwrap();
    }
    let graphs = DeviceTract::load(bundle, OnCpu).unwrap();
    Teacher::on_device(Shim, graphs, bundle.manifest().clone(), bundle.skeleton().clone()).unwrap()
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torchvision")
}

fn torchvision() -> (tempfile::TempDir, Bundle) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"] {
        std::fs::copy(tests().join(name), dir.path().join(name)).unwrap();
    }
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(tests().join("manifest.json")).unwrap()).unwrap();
    let bundle = seal(dir.path(), manifest).unwrap();
    (dir, bundle)
}

/// Every detection has its twin in the same place, but for the order of scores that are equal but for rounding.
fn same(found: &[Detection], expected: &[Detection], what: &str) -> [usize; 2] {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (mut points, mut moved) = (0, 0);
    for a in expected {
        let off = |b: &Detection| {
            let (a, b) = (a.rect, b.rect);
            [a.x1 - b.x1, a.y1 - b.y1, a.x2 - b.x2, a.y2 - b.y2].iter().fold(0f32, |m, d| m.max(d.abs()))
        };
        let b = found.iter().min_by(|x, y| off(x).total_cmp(&off(y))).unwrap();
        assert!(off(b) <= BOX_TOLERANCE_PX && (a.score - b.score).abs() <= SCORE_TOLERANCE, "{what}: {a:?} {b:?}");
        assert_eq!(a.keypoints.len(), b.keypoints.len());
        for (a, b) in a.keypoints.iter().zip(&b.keypoints) {
            assert!((a.peak_logit - b.peak_logit).abs() <= SCORE_TOLERANCE * a.peak_logit.abs().max(1.0), "{what}: {a:?} {b:?}");
            assert!((a.probability - b.probability).abs() <= SCORE_TOLERANCE, "{what}: {a:?} {b:?}");
            points += 1;
            let far = (a.point.x - b.point.x).abs().max((a.point.y - b.point.y).abs()) > MOVED_PX;
            moved += usize::from(far || (a.agreement - b.agreement).abs() > 0.01);
        }
    }
    [points, moved]
}

/// All kinds of plans on all frames.
fn compare(bundle: &Bundle, frames: &[Frame], short_sides: &[u32], least: usize) {
    let (cpu, device) = (Teacher::load(bundle, 2).unwrap(), device_teacher(bundle));
    let many = ViewPlan::new(bundle.manifest(), short_sides, true);
    let plans = [
        ViewPlan::single(bundle.manifest()),
        many.clone(),
        ViewPlan { average: Average::Probabilities, ..many.clone() },
        ViewPlan { box_voting: true, ..many },
    ];
    let (mut points, mut moved, mut people) = (0, 0, 0);
    for (i, frame) in frames.iter().enumerate() {
        for plan in &plans {
            let what = format!("frame {i}, {} views, voting {}, {:?}", plan.views.len(), plan.box_voting, plan.average);
            let expected = cpu.detect(frame, plan).unwrap();
            let counts = same(&device.detect(frame, plan).unwrap(), &expected, &what);
            (points, moved, people) = (points + counts[0], moved + counts[1], people + expected.len());
            let boxes: Vec<_> = expected.iter().map(|found| (found.rect, found.score)).collect();
            assert_eq!(device.boxes(frame, plan).unwrap().len(), boxes.len(), "{what}");
            let given = device.detect_in(frame, &boxes, plan).unwrap();
            let counts = same(&given, &cpu.detect_in(frame, &boxes, plan).unwrap(), &what);
            (points, moved) = (points + counts[0], moved + counts[1]);
        }
    }
    println!("{people} people, {moved} of {points} keypoints moved");
    assert!(people >= least && moved * 100 <= MOVED_PERCENT * points, "{people} people, {moved} of {points} keypoints moved");
}

#[test]
fn a_bundle_of_torchvision() {
    let (_dir, bundle) = torchvision();
    compare(&bundle, &[Frame::open(&tests().join("picture.png")).unwrap(), drawn(90, 200, 2)], &[96, 128, 160], 20);
}

/// With the stem of a ResNet, whose max-pool is a kernel of ours between two graphs.
#[test]
fn a_network_with_a_pooled_stem() {
    let config = Config { stem_kernel: 7, stem_pool: true, ..Config::nano(3) };
    let (_dir, bundle, _) = candle_graphs::exported(config);
    compare(&bundle, &[drawn(160, 120, 1), drawn(300, 260, 3)], &[96, 128], 20);
}

#[test]
fn detectron2s_conventions() {
    let (_dir, bundle, _) = candle_graphs::exported(Config::nano(3).detectron2(false));
    compare(&bundle, &[drawn(160, 120, 1), drawn(90, 200, 2)], &[96, 128], 10);
}

/// A device must label the golden frames of its release as whoever made them did.
#[test]
fn golden_frames_of_the_shipped_model() {
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../zoo/nano-scenes")).unwrap();
    assert_eq!(check_golden(&bundle, &device_teacher(&bundle)).unwrap(), Ok(()));
}

#[test]
fn another_graph_is_refused() {
    let (_dir, bundle) = torchvision();
    let other = |head: &str| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"] {
            std::fs::copy(tests().join(name), dir.path().join(name)).unwrap();
        }
        std::fs::copy(tests().join(head), dir.path().join("box_head.onnx")).unwrap();
        let bundle = seal(dir.path(), bundle.manifest().clone()).unwrap();
        DeviceTract::<Shim, _>::load(&bundle, OnCpu).err().unwrap().to_string()
    };
    let error = other("keypoint_head.onnx");
    assert!(error.contains("box_head.onnx"), "{error}");
}

#[test]
fn without_a_gpu_the_error_says_what_is_missing() {
    if std::env::var_os("OMNILABEL_GPU").is_some() {
        return;
    }
    let (_dir, bundle) = torchvision();
    let error = Teacher::load_cuda(&bundle).err().unwrap();
    assert!(matches!(&error, RuntimeError::Gpu(GpuError::Missing { .. } | GpuError::Driver { .. })), "{error}");
}
