//! The fully connected layer with fused bias and ReLU.

use super::element::{Element, dispatch, elements, slice, tensor};
use super::gemm::{Mat, Threads, gemm};
use super::kernels::{positive, relu_backward};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// `y = x · wᵀ + b`, through ReLU when `relu`: `[r, i]`, `[o, i]`, `[o]` → `[r, o]`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    dims(x.dims(), weight.dims(), bias.dims())?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear { relu })
}

fn dims(x: &[usize], w: &[usize], b: &[usize]) -> Result<(usize, usize, usize)> {
    match (x, w, b) {
        (&[r, i], &[o, inner], &[bias]) if i == inner && o == bias => Ok((r, i, o)),
        _ => bail!("linear: input {x:?}, weight {w:?} and bias {b:?} do not fit"),
    }
}

struct Linear {
    relu: bool,
}

fn forward<T: Element>(r: usize, i: usize, o: usize, x: &[T], w: &[T], b: &[T], relu: bool) -> Vec<T> {
    let mut y = vec![T::ZERO; r * o];
    gemm(r, o, i, Mat::rows(x, i), Mat::rows(w, i).t(), &mut y, o, false, Threads::All);
    for row in y.chunks_exact_mut(o) {
        row.iter_mut().zip(b).for_each(|(v, bias)| *v += *bias);
        if relu {
            row.iter_mut().for_each(|v| *v = positive(*v));
        }
    }
    y
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
            let y = forward::<T>(r, i, o, slice(name, x, xl)?, slice(name, w, wl)?, slice(name, b, bl)?, self.relu);
            Ok((T::to_cpu_storage_owned(y), Shape::from((r, o))))
        })
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
        let ((xg, xl), (wg, wl), (yg, yl), (gg, gl)) =
            (x.storage_and_layout(), w.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, x.dtype(), T => {
            let incoming = elements::<T>(name, &gg, gl)?;
            let masked = if self.relu { relu_backward(elements(name, &yg, yl)?, incoming) } else { Vec::new() };
            let dy = if self.relu { &masked } else { incoming };
            let (x_data, w_data): (&[T], &[T]) = (elements(name, &xg, xl)?, elements(name, &wg, wl)?);
            let (mut dx, mut dw) = (None, None);
            if x.track_op() {
                let mut data = vec![T::ZERO; r * i];
                gemm(r, i, o, Mat::rows(dy, o), Mat::rows(w_data, i), &mut data, i, false, Threads::All);
                dx = Some(tensor(data, (r, i))?);
            }
            if w.track_op() {
                let mut data = vec![T::ZERO; o * i];
                gemm(o, i, r, Mat::rows(dy, o).t(), Mat::rows(x_data, i), &mut data, i, false, Threads::All);
                dw = Some(tensor(data, (o, i))?);
            }
            let mut db = vec![T::ZERO; o];
            for row in dy.chunks_exact(o) {
                db.iter_mut().zip(row).for_each(|(sum, v)| *sum += *v);
            }
            Ok((dx, dw, Some(tensor(db, o)?)))
        })
    }
}
