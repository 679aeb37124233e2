//! Differentiable operations with their own forward and backward: on the CPU in f32 and f64 (f64 is for gradient checks), with the feature
//! `cuda` also on an NVIDIA GPU.
//!
//! candle 0.11 lacks or miscomputes the gradients of several operations that a feature pyramid needs, and its convolution's
//! backward runs at a tenth of its matrix product's speed. Everything here is a `CustomOp`, so it takes part in candle's graph; convolutions
//! and fully connected layers are `omnilabel_conv`'s.
//! No operation here depends on the number of threads: work is partitioned by the shapes alone.
//!
//! | function | shapes |
//! |---|---|
//! | [`conv2d`] | `[n, c, h, w]`, `[o, c/g, kh, kw]`, `[o]` → `[n, o, h', w']` |
//! | [`conv_transpose2d`] | `[n, c, h, w]`, `[c, o, k, k]`, `[o]` → `[n, o, s(h−1)+k−2p, …]` |
//! | [`linear`] | `[r, i]`, `[o, i]`, `[o]` → `[r, o]` |
//! | [`scale_rows`] | `[o, …]`, `[o]` → `[o, …]` |
//! | [`max_pool2d`], [`subsample2`] | `[n, c, h, w]` → `[n, c, h', w']` |
//! | [`upsample_nearest2`], [`upsample_bilinear2`] | `[n, c, h, w]` → `[n, c, 2h, 2w]` |
//! | [`add_relu`] | two of one shape → that shape |
//! | [`roi_align`] | levels `[n, c, h, w]`, RoIs → `[r, c, q, q]` |

mod conv;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod element;
mod elementwise;
#[cfg(any(test, feature = "cuda"))]
mod kernels;
mod linear;
#[cfg(feature = "nccl")]
pub(crate) mod nccl;
mod pool;
mod roi;
mod upsample;

pub use conv::{ConvSpec, conv_transpose2d, conv2d};
#[cfg(feature = "cuda")]
pub(crate) use cuda::open as open_cuda;
pub use elementwise::{add_relu, scale_rows};
pub use linear::{linear, linear_in};
pub use pool::{max_pool2d, subsample2};
pub use roi::roi_align;
pub use upsample::{upsample_bilinear2, upsample_nearest2};
