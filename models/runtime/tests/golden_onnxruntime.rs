//! The golden frames' expected values, computed by ONNX Runtime from the same bundle: what a device has to reproduce is no habit of tract's.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod changed;
mod onnx_runtime;

use changed::{changed_weights, noise};
use omnilabel_bundle::{Bundle, seal};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::label::Detection;
use omnilabel_runtime::{Teacher, ViewPlan, check_golden, golden_detections};
use onnx_runtime::OnnxRuntime;

/// Corners of boxes and keypoints, px: boxes of up to 200 px from f32 sums in another order. A device is allowed a hundred times as much.
const POINT_TOLERANCE_PX: f32 = 0.01;
/// Scores, and logits relative to their size where that is above 1. A device is allowed ten times as much.
const SCORE_TOLERANCE: f32 = 1e-4;

fn on_onnxruntime(bundle: &Bundle) -> Option<Teacher> {
    let graphs = OnnxRuntime::start(bundle)?;
    Some(Teacher::with_graphs(Box::new(graphs), bundle.manifest().clone(), bundle.skeleton().clone()).unwrap())
}

/// `bundle` with the values that `teacher` finds on its golden frames, sealed anew.
fn with_values_of(teacher: &Teacher, bundle: &Bundle) -> Bundle {
    for golden in &bundle.manifest().golden {
        let frame = Frame::open(&bundle.path(&golden.image)).unwrap();
        let found = teacher.detect(&frame, &ViewPlan::single(bundle.manifest())).unwrap();
        std::fs::write(bundle.path(&golden.detections), serde_json::to_vec(&found).unwrap()).unwrap();
    }
    seal(bundle.root(), bundle.manifest().clone()).unwrap()
}

fn off(a: &Detection, b: &Detection) -> (f32, f32) {
    let corners = |d: &Detection| [d.rect.x1, d.rect.y1, d.rect.x2, d.rect.y2];
    let points = |d: &Detection| d.keypoints.iter().flat_map(|k| [k.point.x, k.point.y]).collect::<Vec<_>>();
    let scores =
        |d: &Detection| [d.score].into_iter().chain(d.keypoints.iter().flat_map(|k| [k.peak_logit, k.probability])).collect::<Vec<_>>();
    let worst = |a: Vec<f32>, b: Vec<f32>, relative: bool| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs() / if relative { a.abs().max(1.0) } else { 1.0 }))
    };
    (worst([&corners(a)[..], &points(a)].concat(), [&corners(b)[..], &points(b)].concat(), false), worst(scores(a), scores(b), true))
}

#[test]
fn golden_values_are_those_of_onnxruntime() {
    let (_dir, bundle) = changed_weights(|_| false, |value| value);
    let Some(teacher) = on_onnxruntime(&bundle) else { return };
    let mut people = 0;
    for golden in &bundle.manifest().golden {
        let (shipped, frame) = (golden_detections(&bundle, golden).unwrap(), Frame::open(&bundle.path(&golden.image)).unwrap());
        let mut found = teacher.detect(&frame, &ViewPlan::single(bundle.manifest())).unwrap();
        assert_eq!(found.len(), shipped.len(), "{}", golden.image);
        people += found.len();
        // Each has one of its own: scores that are equal but for rounding may swap.
        for (i, expected) in shipped.iter().enumerate() {
            let nearest = (0..found.len()).min_by(|&a, &b| off(expected, &found[a]).0.total_cmp(&off(expected, &found[b]).0)).unwrap();
            let (px, score) = off(expected, &found.swap_remove(nearest));
            assert!(px <= POINT_TOLERANCE_PX && score <= SCORE_TOLERANCE, "{}, detection {i}: {px} px, score {score}", golden.image);
            println!("{}, detection {i}: {px:.1e} px, scores {score:.1e}", golden.image);
        }
    }
    assert!(people > 2, "{people} people compare nothing");
}

/// Against values of ONNX Runtime a device takes the model, and refuses it with weights that are all wrong by at most a fifth of a percent.
#[test]
fn slightly_changed_weights_are_told_from_values_of_onnxruntime() {
    let check = |bundle: &Bundle| check_golden(bundle, &Teacher::load(bundle, 2).unwrap()).unwrap();
    let (_dir, same) = changed_weights(|_| false, |value| value);
    let Some(teacher) = on_onnxruntime(&same) else { return };
    assert_eq!(check(&with_values_of(&teacher, &same)), Ok(()));
    let (_other, noisy) = changed_weights(|_| true, noise(0.2));
    let refused = check(&with_values_of(&teacher, &noisy)).unwrap_err();
    println!("weights changed by up to 0.2 %: {refused}");
}
