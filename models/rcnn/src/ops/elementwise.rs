//! Sums with ReLU, and the scaling of rows (a frozen batch-norm folded into a weight).

use super::element::{Element, dispatch, elements, slice, tensor};
#[cfg(feature = "cuda")]
use super::{cuda, kernels};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};
use omnilabel_conv::{positive, relu_backward};
use rayon::prelude::*;

/// `max(a + b, 0)` of two tensors of one shape.
///
/// # Errors
/// When shapes or types differ.
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("add_relu: {:?} and {:?} differ", a.dims(), b.dims());
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, AddRelu)
}

/// Multiplies row `o` of `[o, …]` by `scale[o]`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn scale_rows(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 || scale.dims() != [x.dim(0)?] {
        bail!("scale_rows: scale {:?} does not fit {:?}", scale.dims(), x.dims());
    }
    x.contiguous()?.apply_op2(&scale.contiguous()?, ScaleRows)
}

/// Numbers that a thread takes at least.
const CHUNK: usize = 1 << 15;

struct AddRelu;

struct ScaleRows;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "add_relu"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        dispatch!(name, a.dtype(), T => {
            let (a, b): (&[T], &[T]) = (slice(name, a, al)?, slice(name, b, bl)?);
            let y: Vec<T> = a.par_iter().zip(b).with_min_len(CHUNK).map(|(a, b)| positive(*a + *b)).collect();
            Ok((T::to_cpu_storage_owned(y), al.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, a: &CudaStorage, al: &Layout, b: &CudaStorage, bl: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::forward([(a, al), (b, bl)], |e, [a, b]| kernels::add_relu(e, a, b))?, al.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if y.device().is_cuda() {
            let f = |e: &_, [y, grad]: [&_; 2]| Ok([Some(kernels::add_relu_backward(e, y, grad)?)]);
            return cuda::backward([y, &grad], [y], f).map(|[masked]| (masked.clone(), masked));
        }
        let ((yg, yl), (gg, gl)) = (y.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, y.dtype(), T => {
            let masked = tensor(relu_backward::<T>(elements(name, &yg, yl)?, elements(name, &gg, gl)?), y.shape())?;
            Ok((Some(masked.clone()), Some(masked)))
        })
    }
}

fn rows<T: Element>(x: &[T], scale: &[T]) -> Vec<T> {
    let width = x.len() / scale.len().max(1);
    x.chunks_exact(width.max(1)).zip(scale).flat_map(|(row, s)| row.iter().map(move |v| *v * *s)).collect()
}

impl CustomOp2 for ScaleRows {
    fn name(&self) -> &'static str {
        "scale_rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, s: &CpuStorage, sl: &Layout) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        dispatch!(name, x.dtype(), T => {
            Ok((T::to_cpu_storage_owned(rows::<T>(slice(name, x, xl)?, slice(name, s, sl)?)), xl.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, s: &CudaStorage, sl: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::forward([(x, xl), (s, sl)], |e, [x, s]| kernels::scale_rows(e, x, s))?, xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, s: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let wanted = [x.track_op(), s.track_op()];
            return cuda::backward([x, s, &grad], [x, s], |e, tensors| kernels::scale_rows_backward(e, tensors, wanted))
                .map(|[dx, ds]| (dx, ds));
        }
        let ((xg, xl), (sg, sl), (gg, gl)) = (x.storage_and_layout(), s.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, x.dtype(), T => {
            let (x_data, s_data, dy): (&[T], &[T], &[T]) =
                (elements(name, &xg, xl)?, elements(name, &sg, sl)?, elements(name, &gg, gl)?);
            let dx = if x.track_op() { Some(tensor(rows(dy, s_data), x.shape())?) } else { None };
            let width = (x_data.len() / s_data.len().max(1)).max(1);
            let ds: Vec<T> =
                x_data.chunks_exact(width).zip(dy.chunks_exact(width)).map(|(x, g)| x.iter().zip(g).map(|(x, g)| *x * *g).sum()).collect();
            Ok((dx, if s.track_op() { Some(tensor(ds, s.shape())?) } else { None }))
        })
    }
}
