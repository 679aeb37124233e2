//! Non-maximum suppression.

use omnilabel_keypoints::geometry::Rect;

/// Greedy NMS: indices that stay, by falling score (ties: lower index first). A box goes when its IoU with a kept one is > `iou`.
pub fn nms(boxes: &[Rect], scores: &[f32], iou: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len().min(scores.len())).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.iter().all(|&k| boxes[k].iou(&boxes[i]) <= iou) {
            kept.push(i);
        }
    }
    kept
}

/// Score-weighted box voting: the corners of `rect` become the score-weighted mean over `pool` of boxes with IoU >= `iou`.
/// Without such a box, or with no score above 0 among them, `rect` stays.
pub fn vote(rect: Rect, pool: &[Rect], scores: &[f32], iou: f32) -> Rect {
    let mut sum = [0f64; 4];
    let mut weight = 0f64;
    for (other, &score) in pool.iter().zip(scores) {
        if score > 0.0 && rect.iou(other) >= iou {
            let score = f64::from(score);
            weight += score;
            for (sum, corner) in sum.iter_mut().zip([other.x1, other.y1, other.x2, other.y2]) {
                *sum += score * f64::from(corner);
            }
        }
    }
    if weight > 0.0 {
        let [x1, y1, x2, y2] = sum.map(|s| (s / weight) as f32);
        Rect::new(x1, y1, x2, y2)
    } else {
        rect
    }
}
