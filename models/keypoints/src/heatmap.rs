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
/// so rows and patches that cannot hold the maximum are skipped: the result is the exact search's, at a fraction of its cost.
///
/// A map without a finite maximum gives the box's centre with probability 0 and logit 0.
///
/// # Panics
/// When `map` has fewer than `side²` values or `side` is 0.
pub fn decode(map: &[f32], side: usize, rect: Rect, kind: MapKind) -> ScoredPoint {
    let map = &map[..side * side];
    let (_, highest) = range(map);
    let (point, peak) = find(map, side, rect, highest);
    let Some(peak_logit) = peak else { return ScoredPoint { point, peak_logit: 0.0, probability: 0.0 } };
    let probability = match kind {
        MapKind::Logits => libm::expf(peak_logit - highest) / sum_of_exp(map, highest),
        MapKind::Probabilities => highest,
    };
    ScoredPoint { point, peak_logit, probability: if probability.is_finite() { probability.clamp(0.0, 1.0) } else { 0.0 } }
}

/// Where the map is brightest, without [`decode`]'s search of the resized map: the first brightest cell's place in the coordinates of `rect`,
/// refined by the parabolas through it and its neighbours ([`refined`]). The box's centre where that cell is not finite.
///
/// # Panics
/// As [`decode`].
pub fn brightest(map: &[f32], side: usize, rect: Rect) -> Point {
    let map = &map[..side * side];
    let found = position(map, range(map).1).filter(|at| map[*at].is_finite());
    found.map_or_else(|| centre(rect), |at| refined((at % side, at / side), side, |x, y| map[y * side + x], rect))
}

/// The place of cell `(x, y)` of a map with `side` rows and columns in the coordinates of `rect`, whose sides count as at least 1 px: across
/// and down moved to the top of the parabola through its value and its two neighbours', by at most half a cell. Beyond the border lies the
/// mirror image.
pub fn refined((x, y): (usize, usize), side: usize, value: impl Fn(usize, usize) -> f32, rect: Rect) -> Point {
    let around = |i: usize| match (i.checked_sub(1), (i + 1 < side).then_some(i + 1)) {
        (Some(before), Some(after)) => (before, after),
        (one, other) => one.or(other).map_or((i, i), |inside| (inside, inside)),
    };
    let offset = |before: f32, top: f32, after: f32| {
        let curvature = before - 2.0 * top + after;
        let offset = 0.5 * (before - after) / curvature;
        if curvature < 0.0 && offset.is_finite() { offset.clamp(-0.5, 0.5) } else { 0.0 }
    };
    let ((left, right), (up, down), top) = (around(x), around(y), value(x, y));
    let (dx, dy) = (offset(value(left, y), top, value(right, y)), offset(value(x, up), top, value(x, down)));
    let (width, height) = (rect.width().max(1.0), rect.height().max(1.0));
    Point { x: rect.x1 + (x as f32 + 0.5 + dx) * (width / side as f32), y: rect.y1 + (y as f32 + 0.5 + dy) * (height / side as f32) }
}

fn centre(rect: Rect) -> Point {
    Point { x: rect.x1 + 0.5 * rect.width().max(1.0), y: rect.y1 + 0.5 * rect.height().max(1.0) }
}

/// The point, and the resized map's maximum where there is one; `highest` is the map's own.
fn find(map: &[f32], side: usize, rect: Rect, highest: f32) -> (Point, Option<f32>) {
    let (width, height) = (rect.width().max(1.0), rect.height().max(1.0));
    let columns = Axis::new(side, width);
    let rows = Axis::new(side, height);
    let Some((x, y, peak)) = peak(map, side, columns, rows, highest) else {
        return (centre(rect), None);
    };
    let point = Point {
        x: rect.x1 + (x as f32 + 0.5) * (width / columns.resized as f32),
        y: rect.y1 + (y as f32 + 0.5) * (height / rows.resized as f32),
    };
    (point, Some(peak))
}

/// Values in a row of independent sums, minima or maxima: what the compiler makes vectors of.
const LANES: usize = 16;

/// The least and the greatest value, NaN left out.
pub fn range(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let widen = |low: &mut f32, high: &mut f32, v: f32| {
        *low = if v < *low { v } else { *low };
        *high = if v > *high { v } else { *high };
    };
    let chunks = values.chunks_exact(LANES);
    for (i, v) in chunks.remainder().iter().enumerate() {
        widen(&mut low[i], &mut high[i], *v);
    }
    for chunk in chunks {
        for i in 0..LANES {
            widen(&mut low[i], &mut high[i], chunk[i]);
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The first place of a value.
fn position(values: &[f32], value: f32) -> Option<usize> {
    let mut start = 0;
    for chunk in values.chunks(4 * LANES) {
        if chunk.iter().fold(false, |any, v| any | (*v == value)) {
            return chunk.iter().position(|v| *v == value).map(|i| start + i);
        }
        start += chunk.len();
    }
    None
}

/// `Σ exp(v − highest)`.
fn sum_of_exp(values: &[f32], highest: f32) -> f32 {
    let mut sums = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    for (i, v) in chunks.remainder().iter().enumerate() {
        sums[i] = exp(v - highest);
    }
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += exp(chunk[i] - highest);
        }
    }
    sums.into_iter().sum()
}

/// `eˣ` for `x` ≤ 0 within 2 units in the last place, 1e-38 and less as about 1e-38: without branches, so that it runs in vectors.
/// Cody and Waite's reduction to |r| ≤ ln 2 / 2, then the polynomial of Cephes' `expf`. NaN stays NaN.
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, whose bits are then the lowest.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p * r + c;
    }
    (p * r * r + r + 1.0) * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
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
        // The floor, without a call.
        let whole = at as i32;
        let cell = whole - i32::from(at < whole as f32);
        (cell as isize, at - cell as f32)
    }

    /// The source indices `cell − 1 … cell + 2`, clamped to the border.
    fn taps(&self, cell: isize) -> [usize; 4] {
        [-1, 0, 1, 2].map(|d| (cell + d).clamp(0, self.side as isize - 1) as usize)
    }

    /// The first output that lies in a cell past `cell`.
    fn cell_end(&self, cell: isize) -> usize {
        let past = |i: usize| self.source(i).0 > cell;
        let mut end = ((((cell + 1) as f32 + 0.5) / self.scale) as usize).min(self.resized);
        while end > 0 && past(end - 1) {
            end -= 1;
        }
        while end < self.resized && !past(end) {
            end += 1;
        }
        end
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

/// Resized columns that are computed together.
const CHUNK: usize = 64;

/// A chunk of resized columns, and what is known of the source rows in them.
struct Chunk {
    start: usize,
    len: usize,
    /// The source columns that it reads.
    span: Range<usize>,
    /// Source columns and weights of the four taps.
    taps: [[u16; CHUNK]; 4],
    weights: [[f32; CHUNK]; 4],
    /// The latest source row of each remainder by four: four neighbours are at hand at a time.
    lines: [Line; 4],
}

#[derive(Clone, Copy)]
struct Line {
    /// Whose range this is.
    ranged: Option<usize>,
    range: (f32, f32),
    /// Whose values these are: the row resized, as PyTorch's CPU kernel does first.
    resized: Option<usize>,
    values: [f32; CHUNK],
}

impl Chunk {
    fn new(columns: Axis, start: usize) -> Self {
        let len = CHUNK.min(columns.resized - start);
        let (mut taps, mut shares) = ([[0; CHUNK]; 4], [[0.0; CHUNK]; 4]);
        for i in 0..len {
            let (cell, t) = columns.source(start + i);
            let (at, w) = (columns.taps(cell), weights(t));
            for tap in 0..4 {
                (taps[tap][i], shares[tap][i]) = (at[tap] as u16, w[tap]);
            }
        }
        let span = usize::from(taps[0][0])..usize::from(taps[3][len - 1]) + 1;
        let line = Line { ranged: None, range: (0.0, 0.0), resized: None, values: [0.0; CHUNK] };
        Self { start, len, span, taps, weights: shares, lines: [line; 4] }
    }

    /// Least and greatest value of source row `y` among the columns that are read.
    fn range(&mut self, map: &[f32], side: usize, y: usize) -> (f32, f32) {
        let line = &mut self.lines[y % 4];
        if line.ranged != Some(y) {
            (line.ranged, line.range) = (Some(y), range(&map[y * side..][self.span.clone()]));
        }
        line.range
    }

    fn resize(&mut self, map: &[f32], side: usize, y: usize) {
        let line = &mut self.lines[y % 4];
        if line.resized != Some(y) {
            line.resized = Some(y);
            let row = &map[y * side..][..side];
            for i in 0..self.len {
                let at = |tap: usize| row[usize::from(self.taps[tap][i])];
                let w = |tap: usize| self.weights[tap][i];
                line.values[i] = blend([w(0), w(1), w(2), w(3)], [at(0), at(1), at(2), at(3)]);
            }
        }
    }
}

/// Column, row and value of the first maximum of the resized map, whose own maximum is `highest`.
fn peak(map: &[f32], side: usize, columns: Axis, rows: Axis, highest: f32) -> Option<(usize, usize, f32)> {
    // A first candidate close to the answer makes the bound sharp from the start.
    let brightest = position(map, highest).unwrap_or(0);
    let (x, y) = (columns.nearest(brightest % side), rows.nearest(brightest / side));
    let ((cx, tx), (cy, ty)) = (columns.source(x), rows.source(y));
    let (xs, wx) = (columns.taps(cx), weights(tx));
    let mut best = (x, y, blend(weights(ty), rows.taps(cy).map(|y| blend(wx, xs.map(|x| map[y * side + x])))));
    if !best.2.is_finite() {
        best.2 = f32::NEG_INFINITY;
    }
    for start in (0..columns.resized).step_by(CHUNK) {
        let mut chunk = Chunk::new(columns, start);
        let mut y0 = 0;
        while y0 < rows.resized {
            let cell = rows.source(y0).0;
            let y1 = rows.cell_end(cell);
            search(map, side, &mut chunk, (rows, y0..y1, rows.taps(cell)), &mut best);
            y0 = y1;
        }
    }
    best.2.is_finite().then_some(best)
}

/// Evaluates a chunk of the resized rows `range_y`, which lie between the source rows `ys`, unless their bound rules the maximum out.
fn search(
    map: &[f32],
    side: usize,
    chunk: &mut Chunk,
    (rows, range_y, ys): (Axis, Range<usize>, [usize; 4]),
    best: &mut (usize, usize, f32),
) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for y in ys {
        let range = chunk.range(map, side, y);
        (low, high) = (low.min(range.0), high.max(range.1));
    }
    // A bound of ∞ − ∞ rules nothing out.
    if high + OVERSHOOT * (high - low) + ROUNDING * high.abs().max(low.abs()) < best.2 {
        return;
    }
    for y in ys {
        chunk.resize(map, side, y);
    }
    let lines = ys.map(|y| &chunk.lines[y % 4].values);
    for y in range_y {
        let w = weights(rows.source(y).1);
        let mut values = [0.0; CHUNK];
        let mut any = false;
        for (i, value) in values.iter_mut().enumerate() {
            *value = blend(w, [lines[0][i], lines[1][i], lines[2][i], lines[3][i]]);
            any |= *value >= best.2;
        }
        if any {
            for (i, &v) in values[..chunk.len].iter().enumerate() {
                let x = chunk.start + i;
                if v > best.2 || (v == best.2 && (y, x) < (best.1, best.0)) {
                    *best = (x, y, v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let (found, expected) = (exp(x), libm::exp(f64::from(x)));
            assert!((f64::from(found) - expected).abs() <= 2.0 * f64::from(f32::EPSILON) * expected, "{x}: {found}, {expected}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp(f32::NEG_INFINITY) < 2e-38);
    }
}
