//! RoIAlign over a pyramid, through the code that inference runs (`omnilabel_detect::roi`).

use super::element::{Element, dispatch, elements, slice, tensor};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use omnilabel_bundle::{NetworkSpec, RoiSpec};
use omnilabel_detect::roi::{FeatureMap, Real, align, align_backward, level};
use omnilabel_keypoints::geometry::Rect;
use rayon::prelude::*;

/// Pools each RoI (batch index, rectangle in net pixels) from its own level: levels `[n, c, h, w]`, finest first → `[r, c, q, q]`
/// in the order of `rois`.
///
/// # Errors
/// When the levels do not fit each other or a batch index is out of range.
pub fn roi_align(network: &NetworkSpec, levels: &[Tensor], rois: &[(usize, Rect)], spec: RoiSpec) -> Result<Tensor> {
    let count = network.roi_levels as usize;
    if levels.len() < count || network.levels.len() < count || count == 0 {
        bail!("roi_align: {} levels, {count} expected", levels.len());
    }
    let (images, channels, ..) = levels[0].dims4()?;
    let mut maps = Vec::with_capacity(count);
    let mut start = 0;
    for (tensor, level) in levels.iter().zip(&network.levels).take(count) {
        let (n, c, rows, columns) = tensor.dims4()?;
        if (n, c) != (images, channels) {
            bail!("roi_align: level of shape {:?}, expected [{images}, {channels}, …]", tensor.dims());
        }
        maps.push(Map { start, rows, columns, scale: 1.0 / level.stride as f32 });
        start += c * rows * columns;
    }
    if let Some((index, _)) = rois.iter().find(|(index, _)| *index >= images) {
        bail!("roi_align: RoI of image {index} of {images}");
    }
    let rois = rois.iter().map(|&(image, rect)| Roi { image, rect, level: level(network, rect).min(count - 1) }).collect();
    // One operand holds all levels of an image behind each other: candle's custom operations take three tensors at most.
    let flat: Vec<Tensor> = levels[..count].iter().map(|t| t.flatten_from(1)).collect::<Result<_>>()?;
    Tensor::cat(&flat, 1)?.contiguous()?.apply_op1(RoiAlign { maps, channels, per_image: start, rois, spec })
}

/// Where a level lies inside an image's part of the operand.
struct Map {
    start: usize,
    rows: usize,
    columns: usize,
    scale: f32,
}

struct Roi {
    image: usize,
    rect: Rect,
    level: usize,
}

struct RoiAlign {
    maps: Vec<Map>,
    channels: usize,
    per_image: usize,
    rois: Vec<Roi>,
    spec: RoiSpec,
}

impl RoiAlign {
    fn roi_len(&self) -> usize {
        self.channels * (self.spec.resolution * self.spec.resolution) as usize
    }

    fn forward<T: Element + Real>(&self, x: &[T]) -> Vec<T> {
        let mut y = vec![T::ZERO; self.rois.len() * self.roi_len()];
        y.par_chunks_mut(self.roi_len()).zip(&self.rois).for_each(|(out, roi)| {
            let map = &self.maps[roi.level];
            let data = &x[roi.image * self.per_image + map.start..][..self.channels * map.rows * map.columns];
            let map = FeatureMap { data, channels: self.channels, rows: map.rows, columns: map.columns, scale: map.scale };
            align(map, roi.rect, self.spec, out);
        });
        y
    }

    fn backward<T: Element + Real>(&self, grad: &[T], len: usize) -> Vec<T> {
        let mut dx = vec![T::ZERO; len];
        dx.par_chunks_mut(self.per_image).enumerate().for_each(|(image, dx)| {
            for (roi, grad) in self.rois.iter().zip(grad.chunks_exact(self.roi_len())).filter(|(roi, _)| roi.image == image) {
                let map = &self.maps[roi.level];
                let part = &mut dx[map.start..][..self.channels * map.rows * map.columns];
                align_backward(part, self.channels, map.rows, map.columns, map.scale, roi.rect, self.spec, grad);
            }
        });
        dx
    }
}

impl CustomOp1 for RoiAlign {
    fn name(&self) -> &'static str {
        "roi_align"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let side = self.spec.resolution as usize;
        let shape = Shape::from((self.rois.len(), self.channels, side, side));
        dispatch!(self.name(), x.dtype(), T => Ok((T::to_cpu_storage_owned(self.forward::<T>(slice(self.name(), x, layout)?)), shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let (gg, gl) = grad.storage_and_layout();
        dispatch!(self.name(), x.dtype(), T => {
            Ok(Some(tensor(self.backward::<T>(elements(self.name(), &gg, gl)?, x.elem_count()), x.shape())?))
        })
    }
}
