//! RoIAlign.

use super::{run, sized};
use crate::{Array, Device, GpuError, Kernel};
use omnilabel_bundle::{NetworkSpec, RoiSpec};

/// One feature map `[channels, rows, columns]`.
pub struct MapOn<D: Device> {
    /// Values.
    pub data: Array<D, f32>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// The maps that RoIs are pooled from, finest first.
pub struct Features<D: Device> {
    /// One per level, at least the network's `roi_levels`.
    pub maps: Vec<MapOn<D>>,
    /// Of every map.
    pub channels: usize,
}

/// How many sides of a map a RoI may span: a box reaches out of its frame by at most the frame's side, to the left and to the right.
const MAX_SPAN: usize = 3;

/// `detect::roi::pool` of `rois` `[count, 4]` into `out` `[count, channels, resolution, resolution]`.
///
/// # Errors
/// See [`GpuError`].
pub fn pool<D: Device>(
    device: &D,
    network: &NetworkSpec,
    features: &Features<D>,
    rois: &Array<D, f32>,
    spec: RoiSpec,
    out: &Array<D, f32>,
) -> Result<(), GpuError> {
    let (count, resolution, channels) = (rois.len() / 4, spec.resolution as usize, features.channels);
    let one = channels * resolution * resolution;
    let levels = features.maps.len().min(network.roi_levels as usize).min(network.levels.len());
    sized(Kernel::RoiAlign, "the pooled maps", out, count * one)?;
    if levels == 0 || one == 0 {
        return Ok(());
    }
    let maps = &features.maps[..levels];
    for map in maps {
        sized(Kernel::RoiAlign, "a feature map", &map.data, channels * map.rows * map.columns)?;
    }
    let grids: Vec<(usize, usize)> = maps.iter().map(|map| (map.rows, map.columns)).collect();
    let Taps { levels, counts, at, weights, capacity, .. } = Taps::new(device, network, &grids, rois, spec)?;
    for (level, map) in maps.iter().enumerate() {
        let args: [&dyn super::IntoArg<D>; 12] =
            [&map.data, &levels, &counts, &at, &weights, out, &level, &channels, &map.rows, &map.columns, &resolution, &capacity];
        run(device, Kernel::RoiAlign, one, count, &args)?;
    }
    Ok(())
}

/// What RoIs take from the maps: of each its level, and the weights of each pooled cell along both axes.
pub(super) struct Taps<D: Device> {
    /// Of every level.
    pub(super) rows: Array<D, u32>,
    /// Of every level.
    pub(super) columns: Array<D, u32>,
    /// `[rois]`.
    pub(super) levels: Array<D, u32>,
    /// `[rois, 2, resolution]`.
    pub(super) counts: Array<D, u32>,
    /// `[rois, 2, resolution, capacity]`.
    pub(super) at: Array<D, u32>,
    /// As `at`.
    pub(super) weights: Array<D, f32>,
    pub(super) capacity: usize,
}

impl<D: Device> Taps<D> {
    /// Of `rois` `[count, 4]` on the network's first levels, rows and columns of which are `grids`.
    pub(super) fn new(
        device: &D,
        network: &NetworkSpec,
        grids: &[(usize, usize)],
        rois: &Array<D, f32>,
        spec: RoiSpec,
    ) -> Result<Self, GpuError> {
        let (count, resolution) = (rois.len() / 4, spec.resolution as usize);
        let table = |of: &dyn Fn(&(usize, usize)) -> usize| {
            Array::from_slice(device, &grids.iter().map(|grid| of(grid) as u32).collect::<Vec<_>>())
        };
        let (rows, columns) = (table(&|grid| grid.0)?, table(&|grid| grid.1)?);
        let scales: Vec<f32> = network.levels[..grids.len()].iter().map(|level| 1.0 / level.stride as f32).collect();
        let scales = Array::from_slice(device, &scales)?;
        let capacity = capacity(grids, spec);
        let groups = count * 2 * resolution;
        let (levels, counts) = (Array::<D, u32>::zeros(device, count)?, Array::<D, u32>::zeros(device, groups)?);
        let (at, weights) = (Array::<D, u32>::zeros(device, groups * capacity)?, Array::<D, f32>::zeros(device, groups * capacity)?);
        let tables: [&dyn super::IntoArg<D>; 8] = [rois, &rows, &columns, &scales, &levels, &counts, &at, &weights];
        let (level_count, canonical_level, canonical_size) = (&grids.len(), &network.canonical_level, &network.canonical_size);
        let (ratio, aligned) = (&spec.sampling_ratio, &spec.aligned);
        let rest: [&dyn super::IntoArg<D>; 8] =
            [&count, level_count, &resolution, ratio, aligned, &capacity, canonical_level, canonical_size];
        let args: Vec<&dyn super::IntoArg<D>> = tables.into_iter().chain(rest).collect();
        run(device, Kernel::RoiTaps, groups, 1, &args)?;
        Ok(Self { rows, columns, levels, counts, at, weights, capacity })
    }
}

/// The most map cells that one pooled cell takes from along one axis: two per sample, or, where there are as many samples as cells,
/// one more than the cells it spans; never more than there are.
fn capacity(grids: &[(usize, usize)], spec: RoiSpec) -> usize {
    let cells = grids.iter().map(|&(rows, columns)| rows.max(columns)).max().unwrap_or(0);
    let most = match spec.sampling_ratio as usize {
        0 => (MAX_SPAN * cells).div_ceil(spec.resolution.max(1) as usize) + 3,
        ratio => 2 * ratio,
    };
    most.min(cells).max(1)
}
