//! The fully connected layer with fused bias and ReLU.

use super::element::{dispatch, elements, optional, slice};
#[cfg(feature = "cuda")]
use super::{cuda, kernels};
use crate::device::Arithmetic;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use omnilabel_conv::{Finish, Threads, Wanted, dense, dense_backward, relu_backward};

/// `y = x · wᵀ + b`, through ReLU when `relu`: `[r, i]`, `[o, i]`, `[o]` → `[r, o]`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    linear_in(x, weight, bias, relu, Arithmetic::F32)
}

/// As [`linear`]; on a GPU the products are computed in `arithmetic`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn linear_in(x: &Tensor, weight: &Tensor, bias: &Tensor, relu: bool, arithmetic: Arithmetic) -> Result<Tensor> {
    dims(x.dims(), weight.dims(), bias.dims())?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear { relu, arithmetic })
}

fn dims(x: &[usize], w: &[usize], b: &[usize]) -> Result<(usize, usize, usize)> {
    match (x, w, b) {
        (&[r, i], &[o, inner], &[bias]) if i == inner && o == bias => Ok((r, i, o)),
        _ => bail!("linear: input {x:?}, weight {w:?} and bias {b:?} do not fit"),
    }
}

struct Linear {
    relu: bool,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "a GPU's"))]
    arithmetic: Arithmetic,
}

#[cfg(feature = "cuda")]
impl Linear {
    fn dense(&self, (r, i, o): (usize, usize, usize)) -> kernels::Dense {
        kernels::Dense { r, i, o, relu: self.relu, arithmetic: self.arithmetic }
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (r, i, o) = dims(xl.dims(), wl.dims(), bl.dims())?;
        let name = self.name();
        dispatch!(name, x.dtype(), T => {
            let finish = Finish { bias: Some(slice(name, b, bl)?), relu: self.relu, ..Finish::default() };
            let y = dense::<T>((r, i, o), slice(name, x, xl)?, slice(name, w, wl)?, finish, Threads::All);
            Ok((T::to_cpu_storage_owned(y), Shape::from((r, o))))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let dense = self.dense(dims(xl.dims(), wl.dims(), bl.dims())?);
        let y = cuda::forward([(x, xl), (w, wl), (b, bl)], |e, operands| kernels::dense(e, dense, operands))?;
        Ok((y, Shape::from((dense.r, dense.o))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (r, i, o) = dims(x.dims(), w.dims(), b.dims())?;
        let name = self.name();
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let dense = self.dense((r, i, o));
            let wanted = Wanted { input: x.track_op(), weight: w.track_op(), bias: b.track_op() };
            return cuda::backward([x, w, y, &grad], [x, w, b], |e, tensors| kernels::dense_backward(e, dense, tensors, wanted))
                .map(Into::into);
        }
        let ((xg, xl), (wg, wl), (yg, yl), (gg, gl)) =
            (x.storage_and_layout(), w.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, x.dtype(), T => {
            let incoming = elements::<T>(name, &gg, gl)?;
            let masked = if self.relu { relu_backward(elements(name, &yg, yl)?, incoming) } else { Vec::new() };
            let dy = if self.relu { &masked } else { incoming };
            let wanted = Wanted { input: x.track_op(), weight: w.track_op(), bias: b.track_op() };
            let (x_data, w_data) = (elements(name, &xg, xl)?, elements(name, &wg, wl)?);
            let (dx, dw, db) = dense_backward::<T>((r, i, o), x_data, w_data, dy, wanted, Threads::All);
            Ok((optional(wanted.input, dx, x)?, optional(wanted.weight, dw, w)?, optional(wanted.bias, db, b)?))
        })
    }
}
