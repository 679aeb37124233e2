//! Anchors of one FPN level (torchvision's `AnchorGenerator`: base anchors rounded, cell `(i, j)` shifted by `stride · (j, i)`).

use omnilabel_bundle::LevelSpec;
use omnilabel_keypoints::geometry::Rect;

/// The anchors of the cell at the origin, one per ratio: area `anchor_size²`, corners rounded half to even.
pub fn base_anchors(level: LevelSpec, aspect_ratios: &[f32]) -> Vec<Rect> {
    aspect_ratios
        .iter()
        .map(|ratio| {
            let h_ratio = ratio.sqrt();
            let w_ratio = 1.0 / h_ratio;
            let (w, h) = (w_ratio * level.anchor_size, h_ratio * level.anchor_size);
            let half = |side: f32| (side / 2.0).round_ties_even();
            Rect::new(half(-w), half(-h), half(w), half(h))
        })
        .collect()
}

/// The anchor of one cell.
pub(crate) fn shifted(base: Rect, stride: u32, row: usize, column: usize) -> Rect {
    let (x, y) = ((column as u64 * u64::from(stride)) as f32, (row as u64 * u64::from(stride)) as f32);
    Rect::new(base.x1 + x, base.y1 + y, base.x2 + x, base.y2 + y)
}

/// All anchors of a level in the order `[row, column, ratio]`.
///
/// torchvision divides the padded size by the map's size to get the stride; that is `level.stride` when the padding is a multiple
/// of it, as `size_divisor` has to make sure.
pub fn anchors(level: LevelSpec, aspect_ratios: &[f32], rows: usize, columns: usize) -> Vec<Rect> {
    let base = base_anchors(level, aspect_ratios);
    let mut all = Vec::with_capacity(rows * columns * base.len());
    for row in 0..rows {
        for column in 0..columns {
            all.extend(base.iter().map(|&anchor| shifted(anchor, level.stride, row, column)));
        }
    }
    all
}
