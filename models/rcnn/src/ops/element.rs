//! From candle's storages to slices and back.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use omnilabel_conv::Scalar;

/// The scalars that the operations run on: f32 and f64.
pub(crate) trait Element: WithDType + Scalar {}

impl Element for f32 {}

impl Element for f64 {}

/// The elements of a contiguous operand of operation `op`.
pub(crate) fn slice<'a, T: Element>(op: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let data = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("{op}: operand of shape {:?} is not contiguous", layout.shape()),
    }
}

/// The elements of a contiguous tensor on the CPU: `guard` and `layout` come from `Tensor::storage_and_layout`.
pub(crate) fn elements<'a, T: Element>(
    op: &'static str,
    guard: &'a impl std::ops::Deref<Target = Storage>,
    layout: &Layout,
) -> Result<&'a [T]> {
    match &**guard {
        Storage::Cpu(storage) => slice(op, storage, layout),
        _ => bail!("{op}: only implemented on the CPU"),
    }
}

/// A tensor on the CPU from its elements.
pub(crate) fn tensor<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape: Shape = shape.into();
    Tensor::from_vec(data, shape, &candle_core::Device::Cpu)
}

/// A gradient of the shape of `like`, where it was wanted.
pub(crate) fn optional<T: Element>(wanted: bool, data: Vec<T>, like: &Tensor) -> Result<Option<Tensor>> {
    if wanted { tensor(data, like.shape()).map(Some) } else { Ok(None) }
}

/// Runs `$body` with `$T` bound to the scalar type of `$dtype`.
macro_rules! dispatch {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("{}: f32 or f64 expected, got {other:?}", $op),
        }
    };
}
pub(crate) use dispatch;

/// Implements the graph side of a unary operation from `forward::<T>(&self, &[T], &[usize]) -> (Vec<T>, Vec<usize>)` and
/// `backward::<T>(&self, input: &[T], output: &[T], grad: &[T], input_dims: &[usize]) -> Vec<T>`.
macro_rules! unary_op {
    ($type:ty, $name:literal) => {
        impl candle_core::CustomOp1 for $type {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(
                &self,
                storage: &candle_core::CpuStorage,
                layout: &candle_core::Layout,
            ) -> candle_core::Result<(candle_core::CpuStorage, candle_core::Shape)> {
                use candle_core::WithDType;
                use candle_core::backend::BackendStorage;
                crate::ops::element::dispatch!($name, storage.dtype(), T => {
                    let (data, dims) = self.forward::<T>(crate::ops::element::slice($name, storage, layout)?, layout.dims());
                    Ok((T::to_cpu_storage_owned(data), candle_core::Shape::from(dims)))
                })
            }

            #[cfg(feature = "cuda")]
            fn cuda_fwd(
                &self,
                storage: &candle_core::CudaStorage,
                layout: &candle_core::Layout,
            ) -> candle_core::Result<(candle_core::CudaStorage, candle_core::Shape)> {
                use crate::ops::kernels::Unary;
                let y = crate::ops::cuda::forward([(storage, layout)], |e, [x]| self.forward_on(e, x, layout.dims()))?;
                Ok((y, candle_core::Shape::from(self.out_dims(layout.dims()))))
            }

            fn bwd(
                &self,
                input: &candle_core::Tensor,
                output: &candle_core::Tensor,
                grad: &candle_core::Tensor,
            ) -> candle_core::Result<Option<candle_core::Tensor>> {
                if !input.track_op() {
                    return Ok(None);
                }
                let grad = grad.contiguous()?;
                #[cfg(feature = "cuda")]
                if input.device().is_cuda() {
                    use crate::ops::kernels::Unary;
                    let f = |e: &_, [x, grad]: [&_; 2]| Ok([Some(self.backward_on(e, x, grad, input.dims())?)]);
                    return crate::ops::cuda::backward([input, &grad], [input], f).map(|[dx]| dx);
                }
                let ((ig, il), (og, ol), (gg, gl)) = (input.storage_and_layout(), output.storage_and_layout(), grad.storage_and_layout());
                crate::ops::element::dispatch!($name, input.dtype(), T => {
                    use crate::ops::element::elements;
                    let data = self.backward::<T>(
                        elements($name, &ig, il)?,
                        elements($name, &og, ol)?,
                        elements($name, &gg, gl)?,
                        input.dims(),
                    );
                    Ok(Some(crate::ops::element::tensor(data, input.dims())?))
                })
            }
        }
    };
}
pub(crate) use unary_op;
