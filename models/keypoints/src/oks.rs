//! Object keypoint similarity (spec §6) and NMS on it.

use crate::MAX_KEYPOINTS;
use crate::geometry::Point;

/// OKS of `predicted` against `truth` over the keypoints with `visible[i]`, or `None` when none is visible.
/// `exp(−d² / (2 · (2σ)² · (area + ε)))`, averaged; ε = `f64::EPSILON` as in pycocotools.
pub fn oks(predicted: &[Point], truth: &[Point], visible: &[bool], sigmas: &[f32], area_px2: f64) -> Option<f64> {
    let mut sum = 0.0;
    let mut count = 0u32;
    for (((p, t), _), &sigma) in predicted.iter().zip(truth).zip(visible).zip(sigmas).filter(|(((_, _), v), _)| **v) {
        let (dx, dy) = (f64::from(p.x) - f64::from(t.x), f64::from(p.y) - f64::from(t.y));
        let variance = f64::from(2.0 * sigma) * f64::from(2.0 * sigma);
        sum += libm::exp(-(dx * dx + dy * dy) / variance / (area_px2 + f64::EPSILON) / 2.0);
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// Greedy NMS on OKS: `order[i]` lists instances by falling score; writes `keep[i]`. The area of an instance is the mean of the
/// two box areas; every keypoint counts.
///
/// # Panics
/// When `order` names an instance that `poses`, `areas_px2` or `keep` does not have.
pub fn oks_nms(poses: &[&[Point]], areas_px2: &[f32], order: &[usize], sigmas: &[f32], threshold: f64, keep: &mut [bool]) {
    keep.fill(false);
    for (rank, &i) in order.iter().enumerate() {
        let rival = |&&j: &&usize| keep[j] && similarity(poses[i], poses[j], sigmas, 0.5 * (areas_px2[i] + areas_px2[j])) > threshold;
        let beaten = order[..rank].iter().find(rival).is_some();
        keep[i] = !beaten;
    }
}

/// OKS over all keypoints.
fn similarity(a: &[Point], b: &[Point], sigmas: &[f32], area_px2: f32) -> f64 {
    const ALL: [bool; MAX_KEYPOINTS] = [true; MAX_KEYPOINTS];
    oks(a, b, &ALL, sigmas, f64::from(area_px2)).unwrap_or(0.0)
}
