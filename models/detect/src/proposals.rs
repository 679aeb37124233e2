//! Proposals from the RPN's outputs, and detections from the box head's (spec §1, torchvision's order of steps).

use crate::anchors::Anchors;
use crate::boxes::BoxCoder;
use crate::nms::nms;
use omnilabel_bundle::{NetworkSpec, RpnSpec};
use omnilabel_keypoints::geometry::{Rect, Size};

/// RPN outputs of one image at one level.
#[derive(Clone, Copy, Debug)]
pub struct LevelOutput<'a> {
    /// Logits `[a, rows, columns]`.
    pub objectness: &'a [f32],
    /// Deltas `[4a, rows, columns]`, anchor-major: channel `4·anchor + coordinate`.
    pub deltas: &'a [f32],
    /// Rows of the map.
    pub rows: usize,
    /// Columns of the map.
    pub columns: usize,
}

/// The box coder of the RPN.
pub const RPN_CODER: BoxCoder = BoxCoder { weights: [1.0; 4] };

/// Detections with a shorter side are dropped, px.
pub const MIN_DETECTION_SIDE: f32 = 1e-2;

/// Proposals of one image in net pixels with their objectness (sigmoid), by falling score: per level the `pre_nms_top_n` best,
/// decoded, clipped to `net` (the size before padding), small ones dropped, NMS per level, then the `post_nms_top_n` best.
/// Cells whose outputs are not finite propose nothing.
pub fn proposals(network: &NetworkSpec, rpn: &RpnSpec, levels: &[LevelOutput<'_>], net: Size) -> Vec<(Rect, f32)> {
    let mut all = Vec::new();
    let finest = levels.first().map_or((0, 0), |level| (level.rows, level.columns));
    for (index, level) in levels.iter().enumerate().take(network.levels.len()) {
        let anchors = Anchors::new(network, index, (level.rows, level.columns), finest);
        let ratios = anchors.per_cell();
        let cells = level.rows * level.columns;
        // The flat index of torchvision: (row · columns + column) · a + anchor.
        let logit = |index: usize| level.objectness[(index % ratios) * cells + index / ratios];
        let mut order: Vec<usize> = (0..cells * ratios).filter(|&i| !logit(i).is_nan()).collect();
        let by_logit = |&a: &usize, &b: &usize| logit(b).total_cmp(&logit(a)).then(a.cmp(&b));
        let top = rpn.pre_nms_top_n as usize;
        if top == 0 {
            continue;
        }
        if order.len() > top {
            order.select_nth_unstable_by(top - 1, by_logit);
            order.truncate(top);
        }
        order.sort_unstable_by(by_logit);
        let (mut boxes, mut scores) = (Vec::new(), Vec::new());
        for index in order {
            let (cell, anchor) = (index / ratios, index % ratios);
            let deltas = std::array::from_fn(|coordinate| level.deltas[(4 * anchor + coordinate) * cells + cell]);
            let reference = anchors.at(cell / level.columns, cell % level.columns, anchor);
            let rect = RPN_CODER.decode(reference, deltas).clipped(net);
            let score = sigmoid(logit(index));
            if rect.is_valid() && rect.width() >= rpn.min_size && rect.height() >= rpn.min_size && score >= rpn.score_threshold {
                boxes.push(rect);
                scores.push(score);
            }
        }
        all.extend(nms(&boxes, &scores, rpn.nms_iou).into_iter().map(|i| (boxes[i], scores[i])));
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(rpn.post_nms_top_n as usize);
    all
}

/// Detections of one image in net pixels with their scores, by falling score: softmax, per-class decode (class 1: person), clip,
/// score threshold, small ones (< 0.01 px) dropped; with `nms` also NMS and the best `max_detections` (box ensembling pools the
/// views' detections before both). RoIs whose outputs are not finite detect nothing.
///
/// `class_logits` is `[rois, 2]`, `box_deltas` `[rois, 8]` (class-major).
pub fn detections(
    network: &NetworkSpec,
    rois: &[Rect],
    class_logits: &[f32],
    box_deltas: &[f32],
    net: Size,
    nms: bool,
) -> Vec<(Rect, f32)> {
    let coder = BoxCoder { weights: network.box_coder };
    let mut found = Vec::new();
    for ((&roi, logits), deltas) in rois.iter().zip(class_logits.chunks_exact(2)).zip(box_deltas.chunks_exact(8)) {
        let highest = logits[0].max(logits[1]);
        let (background, person) = ((logits[0] - highest).exp(), (logits[1] - highest).exp());
        let score = person / (background + person);
        let rect = coder.decode(roi, [deltas[4], deltas[5], deltas[6], deltas[7]]).clipped(net);
        if score > network.score_threshold && rect.is_valid() && rect.width() >= MIN_DETECTION_SIDE && rect.height() >= MIN_DETECTION_SIDE {
            found.push((rect, score));
        }
    }
    if nms {
        suppress(network, &found)
    } else {
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found
    }
}

/// NMS and the best `max_detections` of `found`, by falling score.
pub fn suppress(network: &NetworkSpec, found: &[(Rect, f32)]) -> Vec<(Rect, f32)> {
    let (boxes, scores): (Vec<Rect>, Vec<f32>) = found.iter().copied().unzip();
    let mut kept = nms(&boxes, &scores, network.nms_iou);
    kept.truncate(network.max_detections as usize);
    kept.into_iter().map(|i| found[i]).collect()
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}
