//! Convolution and transposed convolution with fused bias and ReLU.

use super::element::{dispatch, elements, optional, slice};
#[cfg(feature = "cuda")]
use super::{cuda, kernels};
use crate::device::Arithmetic;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use omnilabel_conv::{Finish, Geometry, Scalar, Threads, Wanted, backward, forward, positive, relu_backward};

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Step in both directions.
    pub stride: usize,
    /// Zeros added on all four sides.
    pub padding: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Whether ReLU follows.
    pub relu: bool,
    /// What the products are computed in, on a GPU.
    pub arithmetic: Arithmetic,
}

impl ConvSpec {
    /// Stride 1, one group, no ReLU.
    pub const fn padded(padding: usize) -> Self {
        Self { stride: 1, padding, groups: 1, relu: false, arithmetic: Arithmetic::F32 }
    }

    /// The same with a ReLU behind it.
    pub const fn with_relu(self) -> Self {
        Self { relu: true, ..self }
    }
}

/// `y = x ⋆ w + b`, through ReLU where the spec says so: `[n, c, h, w]`, `[o, c/groups, kh, kw]`, `[o]` → `[n, o, h', w']`.
///
/// # Errors
/// When shapes or types do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Result<Tensor> {
    geometry(x.dims(), weight.dims(), spec)?;
    let bias = bias_or_zeros(bias, weight.dim(0)?, x)?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, Conv { spec })
}

/// The transposed convolution (torch's layout): `[n, c, h, w]`, `[c, o, k, k]`, `[o]` → `[n, o, s(h−1)+k−2p, …]`. One group.
///
/// # Errors
/// When shapes or types do not fit.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Result<Tensor> {
    transposed(x.dims(), weight.dims(), spec)?;
    let bias = bias_or_zeros(bias, weight.dim(1)?, x)?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias, ConvTranspose { spec })
}

fn bias_or_zeros(bias: Option<&Tensor>, channels: usize, x: &Tensor) -> Result<Tensor> {
    match bias {
        Some(bias) if bias.dims() == [channels] => bias.contiguous(),
        Some(bias) => bail!("convolution: bias {:?}, expected [{channels}]", bias.dims()),
        None => Tensor::zeros(channels, x.dtype(), x.device()),
    }
}

pub(super) fn geometry(x: &[usize], weight: &[usize], spec: ConvSpec) -> Result<Geometry> {
    let (&[n, c, h, w], &[o, inner, kh, kw]) = (x, weight) else {
        bail!("conv2d: input {x:?} and weight {weight:?}, both need four dimensions");
    };
    let ConvSpec { stride, padding, groups, .. } = spec;
    match Geometry::new([n, c, h, w], [o, inner, kh, kw], stride, padding, groups) {
        Some(geometry) => Ok(geometry),
        None => bail!("conv2d: weight {weight:?} with {spec:?} does not fit input {x:?}"),
    }
}

/// The geometry of the convolution whose input gradient the transposed convolution is.
pub(super) fn transposed(x: &[usize], weight: &[usize], spec: ConvSpec) -> Result<Geometry> {
    let (&[n, o, oh, ow], &[inner, c, kh, kw]) = (x, weight) else {
        bail!("conv_transpose2d: input {x:?} and weight {weight:?}, both need four dimensions");
    };
    let ConvSpec { stride, padding, groups, .. } = spec;
    let size = |out: usize, kernel: usize| (out.saturating_sub(1) * stride + kernel).checked_sub(2 * padding);
    match (size(oh, kh), size(ow, kw)) {
        (Some(h), Some(w)) if stride > 0 && groups == 1 && o == inner && oh > 0 && ow > 0 => {
            Ok(Geometry { n, c, h, w, o, kh, kw, stride, padding, groups, oh, ow })
        }
        _ => bail!("conv_transpose2d: weight {weight:?} with {spec:?} does not fit input {x:?}"),
    }
}

struct Conv {
    spec: ConvSpec,
}

struct ConvTranspose {
    spec: ConvSpec,
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let g = geometry(xl.dims(), wl.dims(), self.spec)?;
        let name = self.name();
        dispatch!(name, x.dtype(), T => {
            let finish = Finish { bias: Some(slice(name, b, bl)?), relu: self.spec.relu, ..Finish::default() };
            let y = forward::<T>(&g, slice(name, x, xl)?, slice(name, w, wl)?, finish, Threads::All);
            Ok((T::to_cpu_storage_owned(y), Shape::from((g.n, g.o, g.oh, g.ow))))
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
        let g = geometry(xl.dims(), wl.dims(), self.spec)?;
        let y = cuda::forward([(x, xl), (w, wl), (b, bl)], |e, operands| kernels::conv(e, self.spec, &g, operands))?;
        Ok((y, Shape::from((g.n, g.o, g.oh, g.ow))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let g = geometry(x.dims(), w.dims(), self.spec)?;
        let wanted = Wanted { input: x.track_op(), weight: w.track_op(), bias: b.track_op() };
        let name = self.name();
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward([x, w, y, &grad], [x, w, b], |e, tensors| kernels::conv_backward(e, self.spec, &g, tensors, wanted))
                .map(Gradients::from);
        }
        let ((xg, xl), (wg, wl), (yg, yl), (gg, gl)) =
            (x.storage_and_layout(), w.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, x.dtype(), T => {
            let incoming = elements::<T>(name, &gg, gl)?;
            let masked = if self.spec.relu { relu_backward(elements(name, &yg, yl)?, incoming) } else { Vec::new() };
            let dy = if self.spec.relu { &masked } else { incoming };
            let (dx, dw, db) = backward::<T>(&g, elements(name, &xg, xl)?, elements(name, &wg, wl)?, dy, wanted);
            Ok((optional(wanted.input, dx, x)?, optional(wanted.weight, dw, w)?, optional(wanted.bias, db, b)?))
        })
    }
}

impl CustomOp3 for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
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
        let g = transposed(xl.dims(), wl.dims(), self.spec)?;
        let name = self.name();
        dispatch!(name, x.dtype(), T => {
            let (x, w, b): (&[T], &[T], &[T]) = (slice(name, x, xl)?, slice(name, w, wl)?, slice(name, b, bl)?);
            let wanted = Wanted { input: true, weight: false, bias: false };
            let (mut y, _, _) = backward::<T>(&g, &[], w, x, wanted);
            for image in y.chunks_exact_mut(g.c * g.h * g.w) {
                for (plane, bias) in image.chunks_exact_mut(g.h * g.w).zip(b) {
                    plane.iter_mut().for_each(|v| *v += *bias);
                    if self.spec.relu {
                        plane.iter_mut().for_each(|v| *v = positive(*v));
                    }
                }
            }
            Ok((T::to_cpu_storage_owned(y), Shape::from((g.n, g.c, g.h, g.w))))
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
        let g = transposed(xl.dims(), wl.dims(), self.spec)?;
        let y = cuda::forward([(x, xl), (w, wl), (b, bl)], |e, operands| kernels::conv_transpose(e, self.spec, &g, operands))?;
        Ok((y, Shape::from((g.n, g.c, g.h, g.w))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let g = transposed(x.dims(), w.dims(), self.spec)?;
        let name = self.name();
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let wanted = Wanted { input: x.track_op(), weight: w.track_op(), bias: b.track_op() };
            return cuda::backward([x, w, y, &grad], [x, w, b], |e, tensors| {
                kernels::conv_transpose_backward(e, self.spec, &g, tensors, wanted)
            })
            .map(Gradients::from);
        }
        let ((xg, xl), (wg, wl), (yg, yl), (gg, gl)) =
            (x.storage_and_layout(), w.storage_and_layout(), y.storage_and_layout(), grad.storage_and_layout());
        dispatch!(name, x.dtype(), T => {
            let incoming = elements::<T>(name, &gg, gl)?;
            let masked = if self.spec.relu { relu_backward(elements(name, &yg, yl)?, incoming) } else { Vec::new() };
            let dy = if self.spec.relu { &masked } else { incoming };
            let (x_data, w_data): (&[T], &[T]) = (elements(name, &xg, xl)?, elements(name, &wg, wl)?);
            // The operation is the adjoint of a convolution, so its input gradient is that convolution of the gradient.
            let dx = if x.track_op() { forward::<T>(&g, dy, w_data, Finish::default(), Threads::All) } else { Vec::new() };
            let wanted = Wanted { input: false, weight: w.track_op(), bias: false };
            let (_, dw, _) = backward::<T>(&g, dy, w_data, x_data, wanted);
            let mut db = vec![T::ZERO; g.c];
            for image in dy.chunks_exact(g.c * g.h * g.w) {
                for (sum, plane) in db.iter_mut().zip(image.chunks_exact(g.h * g.w)) {
                    *sum += plane.iter().copied().sum::<T>();
                }
            }
            Ok((optional(x.track_op(), dx, x)?, optional(wanted.weight, dw, w)?, optional(b.track_op(), db, b)?))
        })
    }
}
