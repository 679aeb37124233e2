//! RoIAlign over a pyramid, through the code that inference runs (`omnilabel_detect::roi`).

#[cfg(feature = "cuda")]
use super::cuda;
use super::element::{Element, dispatch, elements, slice, tensor};
#[cfg(any(test, feature = "cuda"))]
use super::kernels::{Engine, On, failed};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use omnilabel_bundle::{NetworkSpec, RoiSpec};
use omnilabel_detect::roi::{FeatureMap, Real, align, align_backward, level};
#[cfg(any(test, feature = "cuda"))]
use omnilabel_gpu::ops::BatchRois;
use omnilabel_keypoints::geometry::Rect;
use rayon::prelude::*;

/// Pools each RoI (batch index, rectangle in net pixels) from its own level: levels `[n, c, h, w]`, finest first → `[r, c, q, q]`
/// in the order of `rois`.
///
/// # Errors
/// When the levels do not fit each other or a batch index is out of range.
pub fn roi_align(network: &NetworkSpec, levels: &[Tensor], rois: &[(usize, Rect)], spec: RoiSpec) -> Result<Tensor> {
    let (maps, operation) = prepared(network, levels, rois, spec)?;
    maps.apply_op1(operation)
}

/// The operand and the operation.
pub(super) fn prepared(network: &NetworkSpec, levels: &[Tensor], rois: &[(usize, Rect)], spec: RoiSpec) -> Result<(Tensor, RoiAlign)> {
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
    let (network, rois) = (network.clone(), rois.to_vec());
    // One operand holds all levels of an image behind each other: candle's custom operations take three tensors at most.
    let flat: Vec<Tensor> = levels[..count].iter().map(|t| t.flatten_from(1)).collect::<Result<_>>()?;
    Ok((Tensor::cat(&flat, 1)?.contiguous()?, RoiAlign { network, maps, channels, per_image: start, rois, spec }))
}

/// Where a level lies inside an image's part of the operand.
struct Map {
    start: usize,
    rows: usize,
    columns: usize,
    scale: f32,
}

pub(super) struct RoiAlign {
    network: NetworkSpec,
    maps: Vec<Map>,
    channels: usize,
    per_image: usize,
    /// Image and rectangle.
    rois: Vec<(usize, Rect)>,
    spec: RoiSpec,
}

impl RoiAlign {
    fn roi_len(&self) -> usize {
        self.channels * (self.spec.resolution * self.spec.resolution) as usize
    }

    /// The level that a RoI is pooled from.
    fn map(&self, rect: Rect) -> &Map {
        &self.maps[level(&self.network, rect).min(self.maps.len() - 1)]
    }

    fn forward<T: Element + Real>(&self, x: &[T]) -> Vec<T> {
        let mut y = vec![T::ZERO; self.rois.len() * self.roi_len()];
        y.par_chunks_mut(self.roi_len()).zip(&self.rois).for_each(|(out, &(image, rect))| {
            let map = self.map(rect);
            let data = &x[image * self.per_image + map.start..][..self.channels * map.rows * map.columns];
            let map = FeatureMap { data, channels: self.channels, rows: map.rows, columns: map.columns, scale: map.scale };
            align(map, rect, self.spec, out);
        });
        y
    }

    fn backward<T: Element + Real>(&self, grad: &[T], len: usize) -> Vec<T> {
        let mut dx = vec![T::ZERO; len];
        dx.par_chunks_mut(self.per_image).enumerate().for_each(|(image, dx)| {
            for (&(_, rect), grad) in self.rois.iter().zip(grad.chunks_exact(self.roi_len())).filter(|(roi, _)| roi.0 == image) {
                let map = self.map(rect);
                let part = &mut dx[map.start..][..self.channels * map.rows * map.columns];
                align_backward(part, self.channels, map.rows, map.columns, map.scale, rect, self.spec, grad);
            }
        });
        dx
    }
}

#[cfg(any(test, feature = "cuda"))]
impl RoiAlign {
    /// What the RoIs take from maps of as many images as `len` numbers hold.
    fn batch<E: Engine>(&self, e: &E, len: usize) -> Result<BatchRois<E::Device>> {
        let grids: Vec<(usize, usize)> = self.maps.iter().map(|map| (map.rows, map.columns)).collect();
        let maps = (len / self.per_image.max(1), self.channels, grids.as_slice());
        BatchRois::new(e.device(), &self.network, maps, &self.rois, self.spec).map_err(failed)
    }

    pub(super) fn forward_on<E: Engine>(&self, e: &E, maps: &On<E>) -> Result<On<E>> {
        let out = e.empty(self.rois.len() * self.roi_len())?;
        self.batch(e, maps.len())?.pool(e.device(), maps, &out).map_err(failed)?;
        Ok(out)
    }

    /// `len` is the maps'.
    pub(super) fn backward_on<E: Engine>(&self, e: &E, grad: &On<E>, len: usize) -> Result<On<E>> {
        let out = e.zeros(len)?;
        self.batch(e, len)?.pool_backward(e.device(), grad, &out).map_err(failed)?;
        Ok(out)
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let side = self.spec.resolution as usize;
        let y = cuda::forward([(x, layout)], |e, [maps]| self.forward_on(e, maps))?;
        Ok((y, Shape::from((self.rois.len(), self.channels, side, side))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let f = |e: &_, [grad]: [&_; 1]| Ok([Some(self.backward_on(e, grad, x.elem_count())?)]);
            return cuda::backward([&grad], [x], f).map(|[dx]| dx);
        }
        let (gg, gl) = grad.storage_and_layout();
        dispatch!(self.name(), x.dtype(), T => {
            Ok(Some(tensor(self.backward::<T>(elements(self.name(), &gg, gl)?, x.elem_count()), x.shape())?))
        })
    }
}
