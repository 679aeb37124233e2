//! Where a peak lies between the cells of its map.

use omnilabel_bundle::Refine;

/// Column and row of the peak at cell `at` of `map`, which has `columns` columns and non-negative values around its peaks.
pub(super) fn refine(map: &[f32], columns: usize, at: usize, how: Refine, udp: bool) -> (f32, f32) {
    let rows = map.len() / columns;
    let (x, y) = (at % columns, at / columns);
    let (dx, dy) = match how {
        Refine::None => (0.0, 0.0),
        Refine::Quarter => quarter(map, columns, x, y),
        Refine::Dark { blur } if udp => dark_udp(&smoothed(map, columns, blur as usize, 1e-3, 50.0), columns, x, y),
        Refine::Dark { blur } => dark(&smoothed(map, columns, blur as usize, 1e-10, f32::INFINITY), columns, x, y),
    };
    // A step of many cells means that the map has no peak there; published code takes it all the same, beyond the map.
    let place = |at: usize, step: f32, cells: usize| (at as f32 + if step.is_finite() { step } else { 0.0 }).clamp(-1.0, cells as f32);
    (place(x, dx, columns), place(y, dy, rows))
}

/// A quarter of a cell towards the higher neighbour, within the border (SimpleBaseline's `get_final_preds`).
fn quarter(map: &[f32], columns: usize, x: usize, y: usize) -> (f32, f32) {
    let rows = map.len() / columns;
    if x <= 1 || y <= 1 || x + 1 >= columns || y + 1 >= rows {
        return (0.0, 0.0);
    }
    let value = |x: usize, y: usize| map[y * columns + x];
    let step = |difference: f32| if difference == 0.0 { 0.0 } else { 0.25 * difference.signum() };
    (step(value(x + 1, y) - value(x - 1, y)), step(value(x, y + 1) - value(x, y - 1)))
}

/// The logarithm of the map after a Gaussian of `size` cells (zero beyond the border, scaled so that its maximum stays).
fn smoothed(map: &[f32], columns: usize, size: usize, low: f32, high: f32) -> Vec<f32> {
    // OpenCV's σ for a kernel of this size.
    let sigma = 0.3 * ((size as f64 - 1.0) * 0.5 - 1.0) + 0.8;
    let half = size / 2;
    let weights: Vec<f64> = (0..size).map(|i| (-(i as f64 - half as f64).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|w| (w / total) as f32).collect();
    let rows = map.len() / columns;
    let pass = |source: &[f32], step: usize, cells: usize, at: fn(usize, usize) -> usize| -> Vec<f32> {
        (0..source.len())
            .map(|i| {
                let here = at(i, columns);
                let taps = weights.iter().enumerate().filter_map(|(j, w)| {
                    let there = (here + j).checked_sub(half).filter(|&there| there < cells)?;
                    Some(w * source[i + step * there - step * here])
                });
                taps.sum()
            })
            .collect()
    };
    let along = pass(map, 1, columns, |i, columns| i % columns);
    let mut out = pass(&along, columns, rows, |i, columns| i / columns);
    let highest = |map: &[f32]| map.iter().copied().fold(0.0, f32::max);
    let (before, after) = (highest(map), highest(&out));
    let gain = if after > 0.0 { before / after } else { 1.0 };
    out.iter_mut().for_each(|v| *v = (*v * gain).clamp(low, high).ln());
    out
}

/// The Newton step −H⁻¹∇ with central differences two cells wide (DARK's `taylor`).
fn dark(log: &[f32], columns: usize, x: usize, y: usize) -> (f32, f32) {
    let rows = log.len() / columns;
    if x <= 1 || y <= 1 || x + 2 >= columns || y + 2 >= rows {
        return (0.0, 0.0);
    }
    let value = |dx: isize, dy: isize| log[(y as isize + dy) as usize * columns + (x as isize + dx) as usize];
    let gradient = [0.5 * (value(1, 0) - value(-1, 0)), 0.5 * (value(0, 1) - value(0, -1))];
    let xx = 0.25 * (value(2, 0) - 2.0 * value(0, 0) + value(-2, 0));
    let yy = 0.25 * (value(0, 2) - 2.0 * value(0, 0) + value(0, -2));
    let xy = 0.25 * (value(1, 1) - value(-1, 1) - value(1, -1) + value(-1, -1));
    newton(gradient, xx, yy, xy)
}

/// The same with neighbouring cells, the border repeated (mmpose's `refine_keypoints_dark_udp`).
fn dark_udp(log: &[f32], columns: usize, x: usize, y: usize) -> (f32, f32) {
    let rows = log.len() / columns;
    let value = |dx: isize, dy: isize| {
        let at = |i: usize, d: isize, n: usize| (i as isize + d).clamp(0, n as isize - 1) as usize;
        log[at(y, dy, rows) * columns + at(x, dx, columns)]
    };
    let here = value(0, 0);
    let gradient = [0.5 * (value(1, 0) - value(-1, 0)), 0.5 * (value(0, 1) - value(0, -1))];
    let xx = value(1, 0) - 2.0 * here + value(-1, 0) + f32::EPSILON;
    let yy = value(0, 1) - 2.0 * here + value(0, -1) + f32::EPSILON;
    let xy = 0.5 * (value(1, 1) - value(1, 0) - value(0, 1) + 2.0 * here - value(-1, 0) - value(0, -1) + value(-1, -1));
    newton(gradient, xx, yy, xy)
}

fn newton([dx, dy]: [f32; 2], xx: f32, yy: f32, xy: f32) -> (f32, f32) {
    let determinant = xx * yy - xy * xy;
    if determinant == 0.0 {
        return (0.0, 0.0);
    }
    (-(yy * dx - xy * dy) / determinant, -(xx * dy - xy * dx) / determinant)
}
