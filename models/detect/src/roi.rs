//! RoI levels and RoIAlign (spec §1).
//!
//! RoIAlign is separable: a pooled cell is the mean over `sampling_ratio²` bilinear samples, and both the samples' grid and the
//! bilinear weights are products of one per axis. So a RoI is `out = Wy · map · Wxᵀ` with a few weights per row, built once per RoI
//! and used for all channels; the backward is the transposed product.

use omnilabel_bundle::{NetworkSpec, RoiSpec};
use omnilabel_keypoints::geometry::Rect;
use rayon::prelude::*;
use std::ops::Range;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The numbers RoIAlign runs in: `f32`, and `f64` for gradient checks.
pub trait Real:
    sealed::Sealed
    + Copy
    + Send
    + Sync
    + PartialOrd
    + From<f32>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
{
    /// The whole part of a number that is not negative; 0 for NaN.
    fn index(self) -> usize;
    /// A small whole number.
    fn whole(n: usize) -> Self;
}

impl Real for f32 {
    fn index(self) -> usize {
        self as usize
    }
    fn whole(n: usize) -> Self {
        n as f32
    }
}

impl Real for f64 {
    fn index(self) -> usize {
        self as usize
    }
    fn whole(n: usize) -> Self {
        n as f64
    }
}

/// Index into `network.levels` of the level a RoI is pooled from: `⌊canonical_level + log2(√area / canonical_size) + 1e-6⌋`
/// (torchvision's order of operations), clipped to the `roi_levels` first levels.
pub fn level(network: &NetworkSpec, roi: Rect) -> usize {
    let side = roi.area().sqrt();
    let level = (network.canonical_level as f32 + (side / network.canonical_size).log2() + 1e-6).floor();
    // A cast saturates and takes NaN to 0.
    (level as usize).min((network.roi_levels as usize).saturating_sub(1))
}

/// One feature map `[c, rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct FeatureMap<'a, T = f32> {
    /// Values.
    pub data: &'a [T],
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Cells per net pixel, 1/stride.
    pub scale: f32,
}

/// The most samples per cell and axis of an adaptive `sampling_ratio`: the side of the largest picture over that of a pooled map.
const MAX_SAMPLES: usize = 1024;

/// One axis of a RoI: for each pooled cell the weights on the map's cells. `taps` are grouped by pooled cell.
struct Axis<T> {
    taps: Vec<(u32, T)>,
    ends: Vec<usize>,
    first: usize,
    last: usize,
}

impl<T: Real> Axis<T> {
    fn new(start: f32, end: f32, scale: f32, cells: usize, spec: RoiSpec) -> Self {
        let (zero, one, half) = (T::whole(0), T::whole(1), T::from(0.5));
        let offset = if spec.aligned { half } else { zero };
        let begin = T::from(start) * T::from(scale) - offset;
        let mut length = T::from(end) * T::from(scale) - offset - begin;
        if !spec.aligned {
            // NaN becomes 1 too.
            length = if length >= one { length } else { one };
        }
        let resolution = spec.resolution as usize;
        let bin = length / T::whole(resolution);
        let samples = match spec.sampling_ratio as usize {
            // ⌈bin⌉; a RoI without a length is not sampled.
            0 if bin > zero => {
                let whole = bin.index().min(MAX_SAMPLES);
                if T::whole(whole) < bin { whole + 1 } else { whole }
            }
            given => given,
        };
        let mut axis = Self { taps: Vec::with_capacity(2 * samples * resolution), ends: Vec::new(), first: usize::MAX, last: 0 };
        for cell in 0..resolution {
            let group = axis.taps.len();
            for sample in 0..samples {
                let at = begin + T::whole(cell) * bin + (T::whole(sample) + half) * bin / T::whole(samples);
                // Samples more than a cell outside count as 0.
                if cells == 0 || !(at >= zero - one && at <= T::whole(cells)) {
                    continue;
                }
                let at = if at > zero { at } else { zero };
                let low = at.index();
                let (low, high, fraction) =
                    if low + 1 >= cells { (cells - 1, cells - 1, zero) } else { (low, low + 1, at - T::whole(low)) };
                axis.add(group, low, (one - fraction) / T::whole(samples));
                axis.add(group, high, fraction / T::whole(samples));
                axis.first = axis.first.min(low);
                axis.last = axis.last.max(high);
            }
            axis.ends.push(axis.taps.len());
        }
        axis
    }

    /// Adds a weight to the group that starts at `group`, whose indices rise.
    fn add(&mut self, group: usize, index: usize, weight: T) {
        match self.taps[group..].iter_mut().find(|tap| tap.0 == index as u32) {
            Some(tap) => tap.1 += weight,
            None => self.taps.push((index as u32, weight)),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &[(u32, T)]> {
        self.ends.iter().scan(0, |start, &end| Some(&self.taps[std::mem::replace(start, end)..end]))
    }

    /// The touched cells, empty when none is.
    fn span(&self) -> Range<usize> {
        if self.taps.is_empty() { 0..0 } else { self.first..self.last + 1 }
    }
}

fn axes<T: Real>(rows: usize, columns: usize, scale: f32, roi: Rect, spec: RoiSpec) -> (Axis<T>, Axis<T>) {
    (Axis::new(roi.y1, roi.y2, scale, rows, spec), Axis::new(roi.x1, roi.x2, scale, columns, spec))
}

/// Rows and columns of a map of `rows` and `columns` cells, of `scale` cells per net pixel, that [`align`] reads for a RoI; empty where it
/// reads none.
pub fn reach(rows: usize, columns: usize, scale: f32, roi: Rect, spec: RoiSpec) -> (Range<usize>, Range<usize>) {
    let (y, x) = axes::<f32>(rows, columns, scale, roi, spec);
    (y.span(), x.span())
}

/// RoIAlign of one RoI in net pixels: writes `[c, resolution, resolution]` to `out`.
pub fn align<T: Real>(map: FeatureMap<'_, T>, roi: Rect, spec: RoiSpec, out: &mut [T]) {
    let (y, x) = axes::<T>(map.rows, map.columns, map.scale, roi, spec);
    let (span, side) = (x.span(), spec.resolution as usize);
    let mut row = vec![T::whole(0); span.len()];
    for channel in 0..map.channels {
        let plane = &map.data[channel * map.rows * map.columns..][..map.rows * map.columns];
        let out = &mut out[channel * side * side..][..side * side];
        for (y_taps, out) in y.groups().zip(out.chunks_exact_mut(side)) {
            row.fill(T::whole(0));
            for &(index, weight) in y_taps {
                let source = &plane[index as usize * map.columns..][span.clone()];
                for (sum, &value) in row.iter_mut().zip(source) {
                    *sum += weight * value;
                }
            }
            for (x_taps, out) in x.groups().zip(out) {
                let mut sum = T::whole(0);
                for &(index, weight) in x_taps {
                    sum += weight * row[index as usize - span.start];
                }
                *out = sum;
            }
        }
    }
}

/// Adds the gradient of [`align`] to `grad_map` (`[c, rows, columns]`): `grad_out` is `[c, resolution, resolution]`.
#[expect(clippy::too_many_arguments, reason = "mirrors `align` with the map's shape spelled out")]
pub fn align_backward<T: Real>(
    grad_map: &mut [T],
    channels: usize,
    rows: usize,
    columns: usize,
    scale: f32,
    roi: Rect,
    spec: RoiSpec,
    grad_out: &[T],
) {
    let (y, x) = axes::<T>(rows, columns, scale, roi, spec);
    let (span, side) = (x.span(), spec.resolution as usize);
    let mut row = vec![T::whole(0); span.len()];
    for channel in 0..channels {
        let plane = &mut grad_map[channel * rows * columns..][..rows * columns];
        let grad_out = &grad_out[channel * side * side..][..side * side];
        for (y_taps, grad_out) in y.groups().zip(grad_out.chunks_exact(side)) {
            row.fill(T::whole(0));
            for (x_taps, &gradient) in x.groups().zip(grad_out) {
                for &(index, weight) in x_taps {
                    row[index as usize - span.start] += weight * gradient;
                }
            }
            for &(index, weight) in y_taps {
                let target = &mut plane[index as usize * columns..][span.clone()];
                for (sum, &value) in target.iter_mut().zip(&row) {
                    *sum += weight * value;
                }
            }
        }
    }
}

/// Pools every RoI from its own level: `[rois, c, resolution, resolution]`, in the order of `rois`. Multi-threaded (rayon).
/// `maps` are the network's levels in order, at least the `roi_levels` first.
pub fn pool(network: &NetworkSpec, maps: &[FeatureMap<'_>], rois: &[Rect], spec: RoiSpec) -> Vec<f32> {
    let Some(first) = maps.first() else { return Vec::new() };
    let one = first.channels * (spec.resolution as usize).pow(2);
    let mut out = vec![0.0; rois.len() * one];
    if one > 0 {
        out.par_chunks_mut(one).zip(rois).for_each(|(out, &roi)| align(maps[level(network, roi).min(maps.len() - 1)], roi, spec, out));
    }
    out
}
