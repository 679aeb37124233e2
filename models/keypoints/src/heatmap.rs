//! Keypoints from the heatmaps of one RoI (spec §3.5–6).

use crate::geometry::{Point, Rect};
use core::ops::Range;

/// Where a keypoint is, and how sure the network is of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoredPoint {
    /// Position in the coordinates of the RoI's box.
    pub point: Point,
    /// The highest value of the bicubically resized map (what torchvision returns).
    pub peak_logit: f32,
    /// In `[0, 1]`: `exp(max) / Σ exp` over the RoI grid for logits, the peak cell for probabilities.
    pub probability: f32,
}

/// What the values of a map mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Logits of a softmax over the grid.
    Logits,
    /// Probabilities that sum to one over the grid.
    Probabilities,
}

/// The most pixels a box is resized to on one axis; a larger box is searched on a grid of this many points.
pub const MAX_RESIZED: usize = 4096;

/// Decodes one keypoint from `map` (`[side, side]`, row-major) of the RoI `rect`.
///
/// The map is resized bicubically (a = −0.75, align_corners = false, PyTorch's convention) to (⌈h⌉, ⌈w⌉) of the box, whose sides
/// count as at least 1 px, without being stored; `X = x1 + (i + 0.5) · w / ⌈w⌉` at the first maximum in row-major order.
/// Between four source columns and rows the resized values cannot exceed their maximum by more than [`OVERSHOOT`] of their range,
/// so patches that cannot hold the maximum are skipped: the result is the exact search's, at a fraction of its cost.
///
/// A map without a finite maximum gives the box's centre with probability 0 and logit 0.
///
/// # Panics
/// When `map` has fewer than `side²` values or `side` is 0.
pub fn decode(map: &[f32], side: usize, rect: Rect, kind: MapKind) -> ScoredPoint {
    let map = &map[..side * side];
    let (width, height) = (rect.width().max(1.0), rect.height().max(1.0));
    let columns = Axis::new(side, width);
    let rows = Axis::new(side, height);
    let Some((x, y, peak)) = peak(map, side, columns, rows) else {
        let centre = Point { x: rect.x1 + 0.5 * width, y: rect.y1 + 0.5 * height };
        return ScoredPoint { point: centre, peak_logit: 0.0, probability: 0.0 };
    };
    let point = Point {
        x: rect.x1 + (x as f32 + 0.5) * (width / columns.resized as f32),
        y: rect.y1 + (y as f32 + 0.5) * (height / rows.resized as f32),
    };
    let highest = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let probability = match kind {
        MapKind::Logits => libm::expf(peak - highest) / map.iter().map(|v| libm::expf(v - highest)).sum::<f32>(),
        MapKind::Probabilities => highest,
    };
    ScoredPoint { point, peak_logit: peak, probability: if probability.is_finite() { probability.clamp(0.0, 1.0) } else { 0.0 } }
}

/// How far bicubic interpolation can leave the range of its 4 × 4 patch, as a share of that range: the negative weights of one
/// axis sum to at most n = 0.1875 (a = −0.75, t = ½), of both to 2 · n · (1 + n).
pub const OVERSHOOT: f32 = 2.0 * 0.1875 * 1.1875;

/// Rounding of the 16 products may lift a value above its bound by this share of the patch's magnitude: 16 · f32::EPSILON, doubled.
const ROUNDING: f32 = 32.0 * f32::EPSILON;

/// One axis of the resize.
#[derive(Clone, Copy)]
struct Axis {
    side: usize,
    resized: usize,
    scale: f32,
}

impl Axis {
    fn new(side: usize, length: f32) -> Self {
        let resized = (libm::ceilf(length) as usize).clamp(1, MAX_RESIZED);
        Self { side, resized, scale: side as f32 / resized as f32 }
    }

    /// The source cell left of output `index` (may be −1) and the fraction past its centre.
    fn source(&self, index: usize) -> (isize, f32) {
        let at = self.scale * (index as f32 + 0.5) - 0.5;
        let cell = libm::floorf(at);
        (cell as isize, at - cell)
    }

    /// The source indices `cell − 1 … cell + 2`, clamped to the border.
    fn taps(&self, cell: isize) -> [usize; 4] {
        [-1, 0, 1, 2].map(|d| (cell + d).clamp(0, self.side as isize - 1) as usize)
    }

    /// The first output past `start` that lies in another cell.
    fn cell_end(&self, start: usize, cell: isize) -> usize {
        (start + 1..self.resized).find(|&i| self.source(i).0 != cell).unwrap_or(self.resized)
    }

    /// The output nearest to the centre of source cell `index`.
    fn nearest(&self, index: usize) -> usize {
        (((index as f32 + 0.5) / self.scale) as usize).min(self.resized - 1)
    }
}

/// The four weights at fraction `t` (Keys 1981, a = −0.75; PyTorch's `get_cubic_upsample_coefficients`).
fn weights(t: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// The weighted sum of four taps.
fn blend(weights: [f32; 4], taps: [f32; 4]) -> f32 {
    weights[0] * taps[0] + weights[1] * taps[1] + weights[2] * taps[2] + weights[3] * taps[3]
}

/// The four source rows `ys` at one output column: along the row first, as PyTorch's CPU kernel does.
fn column(map: &[f32], side: usize, xs: [usize; 4], wx: [f32; 4], ys: [usize; 4]) -> [f32; 4] {
    ys.map(|y| blend(wx, xs.map(|x| map[y * side + x])))
}

/// Column, row and value of the first maximum of the resized map.
fn peak(map: &[f32], side: usize, columns: Axis, rows: Axis) -> Option<(usize, usize, f32)> {
    // A first candidate close to the answer makes the bound sharp from the start.
    let brightest = (0..map.len()).fold(0, |best, i| if map[i] > map[best] { i } else { best });
    let (x, y) = (columns.nearest(brightest % side), rows.nearest(brightest / side));
    let ((cx, tx), (cy, ty)) = (columns.source(x), rows.source(y));
    let mut best = (x, y, blend(weights(ty), column(map, side, columns.taps(cx), weights(tx), rows.taps(cy))));
    if !best.2.is_finite() {
        best.2 = f32::NEG_INFINITY;
    }
    let mut y0 = 0;
    while y0 < rows.resized {
        let cell_y = rows.source(y0).0;
        let y1 = rows.cell_end(y0, cell_y);
        let ys = rows.taps(cell_y);
        let mut x0 = 0;
        while x0 < columns.resized {
            let cell_x = columns.source(x0).0;
            let x1 = columns.cell_end(x0, cell_x);
            let xs = columns.taps(cell_x);
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for y in ys {
                for x in xs {
                    low = low.min(map[y * side + x]);
                    high = high.max(map[y * side + x]);
                }
            }
            let bound = high + OVERSHOOT * (high - low) + ROUNDING * high.abs().max(low.abs());
            if bound >= best.2 {
                search(map, side, (columns, x0..x1, xs), (rows, y0..y1, ys), &mut best);
            }
            x0 = x1;
        }
        y0 = y1;
    }
    best.2.is_finite().then_some(best)
}

/// Evaluates every output of one patch.
fn search(
    map: &[f32],
    side: usize,
    (columns, range_x, xs): (Axis, Range<usize>, [usize; 4]),
    (rows, range_y, ys): (Axis, Range<usize>, [usize; 4]),
    best: &mut (usize, usize, f32),
) {
    // The rows' weights are kept for a strip of rows at a time.
    const STRIP: usize = 64;
    let mut wy = [[0.0; 4]; STRIP];
    let mut y0 = range_y.start;
    while y0 < range_y.end {
        let strip = &mut wy[..STRIP.min(range_y.end - y0)];
        strip.iter_mut().enumerate().for_each(|(i, w)| *w = weights(rows.source(y0 + i).1));
        for x in range_x.clone() {
            let taps = column(map, side, xs, weights(columns.source(x).1), ys);
            for (i, &w) in strip.iter().enumerate() {
                let (y, v) = (y0 + i, blend(w, taps));
                if v > best.2 || (v == best.2 && (y, x) < (best.1, best.0)) {
                    *best = (x, y, v);
                }
            }
        }
        y0 += strip.len();
    }
}
