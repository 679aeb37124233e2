//! Golden frames: the detections a device must reproduce before it trusts a model.

use crate::{RuntimeError, Teacher, ViewPlan};
use omnilabel_bundle::{Bundle, BundleError, GoldenFrame, seal};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;
use std::path::Path;

/// How far a box corner or keypoint may be from the golden one, in px of the network's input: another CPU sums in another order,
/// which moves a heatmap's peak by at most one cell of the resized map (1 px) and a box by far less.
pub const GOLDEN_BOX_TOLERANCE_PX: f32 = 1.5;
/// How far a score may be from the golden one; logits, relative to their size where that is above 1.
pub const GOLDEN_SCORE_TOLERANCE: f32 = 1e-3;
/// The share of a frame's keypoints whose heatmap may have two equal peaks, of which another CPU picks the other.
pub const GOLDEN_TIES: f32 = 0.05;

/// The first difference.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{image}: {message}")]
pub struct GoldenMismatch {
    /// The frame.
    pub image: String,
    /// What differs, by how much.
    pub message: String,
}

/// Runs every golden frame. `Ok(Err(_))` names the first difference.
///
/// # Errors
/// When a frame cannot be read or run.
pub fn check_golden(bundle: &Bundle, teacher: &Teacher) -> Result<Result<(), GoldenMismatch>, RuntimeError> {
    let manifest = bundle.manifest();
    for golden in &manifest.golden {
        let expected = golden_detections(bundle, golden)?;
        let frame = Frame::open(&bundle.path(&golden.image))?;
        let plan = ViewPlan::single(manifest);
        let found = if teacher.is_self_contained() {
            teacher.detect(&frame, &plan)?
        } else {
            // The golden frame was made without this detector, or without any.
            let boxes: Vec<(Rect, f32)> = expected.iter().map(|detection| (detection.rect, detection.score)).collect();
            teacher.detect_in(&frame, &boxes, &plan)?
        };
        let at_threshold = teacher.score_threshold() + GOLDEN_SCORE_TOLERANCE;
        let tolerance_px = |detection: &Detection| GOLDEN_BOX_TOLERANCE_PX * teacher.grain_px(&frame, detection);
        if let Err(message) = compare(&expected, &found, &tolerance_px, at_threshold) {
            return Ok(Err(GoldenMismatch { image: golden.image.clone(), message }));
        }
    }
    Ok(Ok(()))
}

/// What must be found on a golden frame.
///
/// # Errors
/// [`RuntimeError::Bundle`] names the file.
pub fn golden_detections(bundle: &Bundle, golden: &GoldenFrame) -> Result<Vec<Detection>, RuntimeError> {
    let path = bundle.path(&golden.detections);
    let bytes = std::fs::read(&path).map_err(|source| BundleError::Io { path: path.clone(), source })?;
    Ok(serde_json::from_slice(&bytes).map_err(|source| BundleError::Json { path, source })?)
}

/// Every expected detection above the threshold is found once, and no other.
fn compare(expected: &[Detection], found: &[Detection], tolerance_px: &dyn Fn(&Detection) -> f32, at_threshold: f32) -> Result<(), String> {
    let mut left: Vec<&Detection> = found.iter().collect();
    let mut ties = 0usize;
    for (i, golden) in expected.iter().enumerate() {
        let tolerance_px = tolerance_px(golden);
        let distance = |other: &Detection| corners(golden).zip(corners(other)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let nearest = (0..left.len()).min_by(|&a, &b| distance(left[a]).total_cmp(&distance(left[b])));
        let Some(at) = nearest.filter(|&at| distance(left[at]) <= tolerance_px) else {
            if golden.score <= at_threshold {
                continue;
            }
            let nearest = nearest.map_or("there is none".to_owned(), |at| format!("the nearest is {} px off", distance(left[at])));
            return Err(format!("detection {i} is missing: {nearest}, tolerance {tolerance_px}"));
        };
        let other = left.swap_remove(at);
        let close = |what: &str, a: f32, b: f32| {
            let off = (a - b).abs() / a.abs().max(1.0);
            if off <= GOLDEN_SCORE_TOLERANCE { Ok(()) } else { Err(format!("detection {i}: {what} is {b}, expected {a}")) }
        };
        close("score", golden.score, other.score)?;
        if golden.keypoints.len() != other.keypoints.len() {
            return Err(format!("detection {i}: {} keypoints, expected {}", other.keypoints.len(), golden.keypoints.len()));
        }
        for (k, (a, b)) in golden.keypoints.iter().zip(&other.keypoints).enumerate() {
            close(&format!("the logit of keypoint {k}"), a.peak_logit, b.peak_logit)?;
            close(&format!("the probability of keypoint {k}"), a.probability, b.probability)?;
            let off = (a.point.x - b.point.x).abs().max((a.point.y - b.point.y).abs());
            if off.is_nan() || off > tolerance_px {
                ties += 1;
                let all: usize = expected.iter().map(|d| d.keypoints.len()).sum();
                if ties as f32 > GOLDEN_TIES * all as f32 {
                    return Err(format!("detection {i}: keypoint {k} is {off} px off, tolerance {tolerance_px}"));
                }
            }
        }
    }
    match left.iter().find(|d| d.score > at_threshold) {
        None => Ok(()),
        Some(extra) => {
            Err(format!("a detection with score {} at {:?} is not among the {} expected", extra.score, extra.rect, expected.len()))
        }
    }
}

fn corners(detection: &Detection) -> impl Iterator<Item = f32> {
    let rect = detection.rect;
    [rect.x1, rect.y1, rect.x2, rect.y2].into_iter()
}

/// A frame to become a golden one.
pub struct NewGolden<'f> {
    /// ASCII letters, digits, `-` and `_`.
    pub name: &'f str,
    /// The picture.
    pub frame: &'f Frame,
    /// The boxes to label in (frame px, with scores); found where `None`.
    pub boxes: Option<&'f [(Rect, f32)]>,
}

/// Replaces the golden frames of the bundle in `root` by `frames` with what the model finds on them (single view, base scale), and
/// seals it again. Names consist of ASCII letters, digits, `-` and `_`.
///
/// # Errors
/// See [`RuntimeError`].
pub fn write_golden(root: &Path, frames: &[(&str, Frame)]) -> Result<Bundle, RuntimeError> {
    let frames: Vec<NewGolden<'_>> = frames.iter().map(|(name, frame)| NewGolden { name, frame, boxes: None }).collect();
    write_golden_in(root, &frames)
}

/// The same where boxes are given: a top-down model without a detector in its bundle has no others.
///
/// # Errors
/// See [`RuntimeError`].
pub fn write_golden_in(root: &Path, frames: &[NewGolden<'_>]) -> Result<Bundle, RuntimeError> {
    let bundle = Bundle::open(root)?;
    let teacher = Teacher::load(&bundle, 1)?;
    let plan = ViewPlan::single(bundle.manifest());
    let mut manifest = bundle.manifest().clone();
    for old in std::mem::take(&mut manifest.golden) {
        for name in [old.image, old.detections] {
            let path = root.join(name);
            std::fs::remove_file(&path).map_err(|source| BundleError::Io { path, source })?;
        }
    }
    let folder = root.join("golden");
    std::fs::create_dir_all(&folder).map_err(|source| BundleError::Io { path: folder, source })?;
    for &NewGolden { name, frame, boxes } in frames {
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(RuntimeError::Request(format!("golden frame {name:?}: expected 1 to 64 letters, digits, - or _")));
        }
        let golden = GoldenFrame { image: format!("golden/{name}.png"), detections: format!("golden/{name}.json") };
        let json = root.join(&golden.detections);
        let detections = match boxes {
            Some(boxes) => teacher.detect_in(frame, boxes, &plan)?,
            None => teacher.detect(frame, &plan)?,
        };
        let detections = serde_json::to_vec(&detections).map_err(|source| BundleError::Json { path: json.clone(), source })?;
        for (path, bytes) in [(root.join(&golden.image), frame.to_png()), (json, detections)] {
            std::fs::write(&path, bytes).map_err(|source| BundleError::Io { path, source })?;
        }
        manifest.golden.push(golden);
    }
    Ok(seal(root, manifest)?)
}
