//! People from a one-stage model's output.

use crate::nms::nms;
use crate::pose::Placement;
use omnilabel_bundle::OneStageSpec;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::skeleton::Skeleton;

/// The most candidates that enter NMS, best first: its cost grows with their square.
const MAX_CANDIDATES: usize = 3000;

/// A person that one view found, in frame pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The box.
    pub rect: Rect,
    /// In `[0, 1]`.
    pub score: f32,
    /// Each keypoint with its visibility in `[0, 1]`; mirrored back.
    pub keypoints: Vec<(Point, f32)>,
}

/// People above the threshold after NMS, by falling score. `values` has `count` candidates of [`OneStageSpec::channels`] numbers:
/// number c of candidate i is at `c · count + i`, `transposed` at `i · channels + c`.
///
/// # Panics
/// When `values` is shorter than that.
pub fn candidates(
    spec: &OneStageSpec,
    skeleton: &Skeleton,
    values: &[f32],
    count: usize,
    transposed: bool,
    placement: &Placement,
    flip: bool,
) -> Vec<Candidate> {
    let channels = spec.channels(skeleton.len());
    let values = &values[..channels * count];
    let at = |i: usize, c: usize| if transposed { values[i * channels + c] } else { values[c * count + i] };
    let classes = 4 + usize::from(spec.objectness);
    let own = spec.class as usize;
    let score = |i: usize| {
        let class = at(i, classes + own);
        // A candidate is of its best class.
        if (0..spec.classes as usize).any(|c| at(i, classes + c) > class) {
            return 0.0;
        }
        let score = if spec.objectness { class * at(i, 4) } else { class };
        if score.is_finite() { score.clamp(0.0, 1.0) } else { 0.0 }
    };
    let mut order: Vec<(usize, f32)> = (0..count).map(|i| (i, score(i))).filter(|&(_, score)| score > spec.score_threshold).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(MAX_CANDIDATES);
    let rect = |i: usize| {
        let (x, y, w, h) = (at(i, 0), at(i, 1), at(i, 2), at(i, 3));
        let corner = |x: f32, y: f32| placement.frame_from_input(Point { x, y });
        let (a, b) = (corner(x - 0.5 * w, y - 0.5 * h), corner(x + 0.5 * w, y + 0.5 * h));
        placement.clipped(Rect::new(a.x.min(b.x), a.y.min(b.y), a.x.max(b.x), a.y.max(b.y)))
    };
    let boxes: Vec<(usize, f32, Rect)> = order.into_iter().map(|(i, score)| (i, score, rect(i))).collect();
    let boxes: Vec<_> = boxes.into_iter().filter(|(_, _, rect)| rect.is_valid() && rect.area() > 0.0).collect();
    let (rects, scores): (Vec<Rect>, Vec<f32>) = boxes.iter().map(|&(_, score, rect)| (rect, score)).unzip();
    let kept = nms(&rects, &scores, spec.nms_iou);
    let first = classes + spec.classes as usize;
    let person = |&kept: &usize| {
        let (i, score, rect) = boxes[kept];
        let keypoint = |k: usize| {
            let source = if flip { usize::from(skeleton.flip()[k]) } else { k };
            let c = first + 3 * source;
            let index = placement.frame_from_input(Point { x: at(i, c), y: at(i, c + 1) });
            (Point { x: index.x + 0.5, y: index.y + 0.5 }, at(i, c + 2).clamp(0.0, 1.0))
        };
        Candidate { rect, score, keypoints: (0..skeleton.len()).map(keypoint).collect() }
    };
    kept.iter().take(spec.max_detections as usize).map(person).collect()
}
