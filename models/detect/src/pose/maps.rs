//! Heatmaps and SimCC rows: mirrored back, brought to the base crop's grid, averaged, and their peaks found. A SimCC row is a map with one
//! row, or one column.

use crate::pose::refine::refine;
use omnilabel_bundle::{Refine, Values};
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::skeleton::Skeleton;

/// One axis of a map: `cells` cells, `units` of which make the crop's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Cells.
    pub cells: usize,
    /// Cells per side of the crop; 0 for an axis that the map does not have.
    pub units: f64,
}

impl Axis {
    /// An axis that the map does not have.
    pub const NONE: Self = Self { cells: 1, units: 0.0 };

    /// The share of the crop's side at cell `at`.
    pub fn share(&self, at: f32) -> f64 {
        f64::from(at) / self.units.max(f64::MIN_POSITIVE)
    }

    /// Where each cell of the base crop's axis lies in a crop that is `zoom` times as large; `None` beyond that crop.
    fn taps(&self, zoom: f64) -> Vec<Option<(usize, usize, f32)>> {
        let last = self.cells - 1;
        let tap = |i: usize| {
            if zoom == 1.0 || self.units == 0.0 {
                return Some((i, i, 0.0));
            }
            let at = ((i as f64 / self.units - 0.5) * zoom + 0.5) * self.units;
            if at < -0.5 || at > last as f64 + 0.5 {
                return None;
            }
            let at = at.clamp(0.0, last as f64);
            let low = (at as usize).min(last);
            Some((low, (low + 1).min(last), (at - low as f64) as f32))
        };
        (0..self.cells).map(tap).collect()
    }
}

/// Values count as no larger than this, so that a sum of views is a number.
const LARGEST: f32 = 1e30;

/// What the maps of a model look like and mean.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'s> {
    /// Along y.
    pub rows: Axis,
    /// Along x.
    pub columns: Axis,
    /// What the values are.
    pub values: Values,
    /// How the peak is refined.
    pub refine: Refine,
    /// Whether cells are a unit less than the crop (see [`crate::pose::Crop`]).
    pub udp: bool,
    /// Shift the maps of a mirrored crop right by a cell.
    pub shift_flipped: bool,
    /// The keypoints.
    pub skeleton: &'s Skeleton,
}

/// A keypoint on a map.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peak {
    /// Column, refined.
    pub x: f32,
    /// Row, refined.
    pub y: f32,
    /// The highest value.
    pub value: f32,
    /// In `[0, 1]`.
    pub probability: f32,
}

/// The average over views on the base crop's grid.
#[derive(Clone, Debug)]
pub struct Sum {
    values: Vec<f32>,
    views: Vec<u32>,
}

impl Evidence<'_> {
    /// Cells of a map.
    pub fn cells(&self) -> usize {
        self.rows.cells * self.columns.cells
    }

    /// Nothing yet.
    pub fn empty(&self) -> Sum {
        Sum { values: vec![0.0; self.skeleton.len() * self.cells()], views: vec![0; self.cells()] }
    }

    /// Adds the maps `[k, rows, columns]` of a view whose crop was mirrored or not and `zoom` times as large.
    ///
    /// # Panics
    /// When `maps` is shorter than `[k, rows, columns]`.
    pub fn add(&self, sum: &mut Sum, maps: &[f32], flip: bool, zoom: f64, average: Average) {
        let (columns, cells) = (self.columns.cells, self.cells());
        let (ys, xs) = (self.rows.taps(zoom), self.columns.taps(zoom));
        // Mirroring back, and the shift behind it.
        let mirrored = flip && self.columns.units > 0.0;
        let shift = usize::from(mirrored && self.shift_flipped);
        let column = |x: usize| if mirrored { columns - 1 - x.saturating_sub(shift) } else { x };
        for (channel, target) in sum.values.chunks_exact_mut(cells).enumerate() {
            let source = if flip { usize::from(self.skeleton.flip()[channel]) } else { channel };
            let map = &maps[source * cells..][..cells];
            let activation = Activation::of(self.values, average == Average::Probabilities, map);
            let value = |y: usize, x: usize| activation.apply(map[y * columns + column(x)]).clamp(-LARGEST, LARGEST);
            for (y, tap_y) in ys.iter().enumerate() {
                let Some((top, bottom, down)) = *tap_y else { continue };
                for (x, tap_x) in xs.iter().enumerate() {
                    let Some((left, right, across)) = *tap_x else { continue };
                    let row = |y: usize| {
                        if across == 0.0 { value(y, left) } else { value(y, left) * (1.0 - across) + value(y, right) * across }
                    };
                    target[y * columns + x] += if down == 0.0 { row(top) } else { row(top) * (1.0 - down) + row(bottom) * down };
                }
            }
        }
        for (y, tap_y) in ys.iter().enumerate() {
            for (x, tap_x) in xs.iter().enumerate() {
                sum.views[y * columns + x] += u32::from(tap_y.is_some() && tap_x.is_some());
            }
        }
    }

    /// The keypoints of the average: each cell's mean over the views that saw it. Cells that no view saw count as the lowest that was.
    pub fn peaks(&self, mut sum: Sum, average: Average) -> Vec<Peak> {
        for map in sum.values.chunks_exact_mut(self.cells()) {
            let mut lowest = f32::INFINITY;
            for (value, &views) in map.iter_mut().zip(&sum.views).filter(|(_, views)| **views > 0) {
                *value /= views as f32;
                lowest = lowest.min(*value);
            }
            let lowest = if lowest.is_finite() { lowest } else { 0.0 };
            map.iter_mut().zip(&sum.views).filter(|(_, views)| **views == 0).for_each(|(value, _)| *value = lowest);
        }
        // Probabilities were averaged as such; else the average is still what the network gave.
        let logits = self.values != Values::Peak && average == Average::Logits;
        sum.values.chunks_exact(self.cells()).map(|map| self.peak(map, logits)).collect()
    }

    fn peak(&self, map: &[f32], logits: bool) -> Peak {
        let columns = self.columns.cells;
        let at = (0..map.len()).fold(0, |best, i| if map[i] > map[best] { i } else { best });
        let activation = if logits { Activation::of(self.values, true, map) } else { Activation::None };
        let probability = activation.apply(map[at]);
        let (x, y) = match self.refine {
            Refine::Dark { .. } if logits => {
                let map: Vec<f32> = map.iter().map(|&v| activation.apply(v)).collect();
                refine(&map, columns, at, self.refine, self.udp)
            }
            _ => refine(map, columns, at, self.refine, self.udp),
        };
        let probability = if probability.is_finite() { probability.clamp(0.0, 1.0) } else { 0.0 };
        Peak { x, y, value: map[at], probability }
    }
}

/// From values to probabilities.
#[derive(Clone, Copy)]
enum Activation {
    None,
    Sigmoid,
    /// `exp(v − highest) · gain`.
    Softmax {
        highest: f32,
        gain: f32,
    },
}

impl Activation {
    fn of(values: Values, wanted: bool, map: &[f32]) -> Self {
        match values {
            Values::Sigmoid if wanted => Self::Sigmoid,
            Values::Softmax if wanted => {
                let highest = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                Self::Softmax { highest, gain: 1.0 / map.iter().map(|v| (v - highest).exp()).sum::<f32>() }
            }
            _ => Self::None,
        }
    }

    fn apply(self, value: f32) -> f32 {
        match self {
            Self::None => value,
            Self::Sigmoid => 1.0 / (1.0 + (-value).exp()),
            Self::Softmax { highest, gain } => (value - highest).exp() * gain,
        }
    }
}
