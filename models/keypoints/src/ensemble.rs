//! The average over views on the RoI grid (spec §3.3–4), and how far the views agree.

use crate::geometry::Point;
use crate::skeleton::Skeleton;
use serde::{Deserialize, Serialize};

/// What is averaged over the views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Logits (Detectron's choice).
    #[default]
    Logits,
    /// Softmax probabilities over the grid.
    Probabilities,
}

/// Adds the maps of one view (`[k, side, side]`) to `sum` (same shape). Mirrored views are unmirrored: channels are permuted by
/// `skeleton.flip()` and x is reversed. With [`Average::Probabilities`] each map passes a softmax over its grid first.
///
/// # Panics
/// When `sum` or `view` is shorter than `[k, side, side]`.
pub fn accumulate(sum: &mut [f32], view: &[f32], side: usize, skeleton: &Skeleton, flip: bool, average: Average) {
    let cells = side * side;
    for (channel, target) in sum.chunks_exact_mut(cells).enumerate().take(skeleton.len()) {
        let source = if flip { usize::from(skeleton.flip()[channel]) } else { channel };
        let map = &view[source * cells..(source + 1) * cells];
        // Softmax as exp(v − shift) · gain; the identity for logits.
        let (shift, gain) = match average {
            Average::Logits => (0.0, 1.0),
            Average::Probabilities => {
                let highest = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                (highest, 1.0 / map.iter().map(|v| libm::expf(v - highest)).sum::<f32>())
            }
        };
        let cell = |v: f32| if average == Average::Logits { v } else { libm::expf(v - shift) * gain };
        for (to, from) in target.chunks_exact_mut(side).zip(map.chunks_exact(side)) {
            for (x, value) in to.iter_mut().enumerate() {
                *value += cell(if flip { from[side - 1 - x] } else { from[x] });
            }
        }
    }
}

/// Unmirrors the maps of one mirrored view (`[k, side, side]`) where they lie: what [`accumulate`] with `flip` adds of logits.
///
/// # Panics
/// When `view` is shorter than `[k, side, side]`.
pub fn unmirror(view: &mut [f32], side: usize, skeleton: &Skeleton) {
    let cells = side * side;
    for channel in 0..skeleton.len() {
        let other = usize::from(skeleton.flip()[channel]);
        if other > channel {
            let (before, after) = view.split_at_mut(other * cells);
            before[channel * cells..][..cells].swap_with_slice(&mut after[..cells]);
        }
    }
    view[..skeleton.len() * cells].chunks_exact_mut(side.max(1)).for_each(<[f32]>::reverse);
}

/// Divides the sum of `n` views by `n`.
pub fn finish(sum: &mut [f32], n: usize) {
    let share = 1.0 / n.max(1) as f32;
    sum.iter_mut().for_each(|v| *v *= share);
}

/// Agreement of the views on one keypoint in `[0, 1]`: the mean over views of the OKS kernel
/// `exp(−d² / (2 · (2σ)² · area))` between each view's own point and the ensemble's, found in one way; 1 without views.
pub fn agreement(points: &[Point], ensemble: Point, sigma: f32, area_px2: f32) -> f32 {
    if points.is_empty() {
        return 1.0;
    }
    let reach = 2.0 * (2.0 * sigma) * (2.0 * sigma) * area_px2.max(f32::EPSILON);
    let kernel = |p: &Point| {
        let (dx, dy) = (p.x - ensemble.x, p.y - ensemble.y);
        libm::expf(-(dx * dx + dy * dy) / reach)
    };
    let mean = points.iter().map(kernel).sum::<f32>() / points.len() as f32;
    if mean.is_finite() { mean.clamp(0.0, 1.0) } else { 0.0 }
}
