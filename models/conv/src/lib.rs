//! Convolution on slices, forward and backward, in f32 and f64: what training (`rcnn`) and inference (`runtime`) spend their time in.
//! No tensors, no graphs.
//!
//! | file | what |
//! |---|---|
//! | `geometry` | shapes, and what follows from them |
//! | `forward`, `backward` | which way is taken; bias, addend and ReLU while the results are in the cache |
//! | `winograd` | 3×3 of stride 1: F(4×4, 3×3), a quarter of the multiplications |
//! | `grouped` | groups of few channels, directly |
//! | `patches`, `im2col` | everything else: patches as columns, then a matrix product |
//! | `dense` | the fully connected layer |
//! | `vector` | loops compiled for the widest vectors that the CPU has |
//! | `kernels` | weights made ready once |
//! | `product` | the matrix product of packed operands |
//! | `gemm` | the matrix product of backward passes and full layers: a bounds-checked face of the `gemm` crate |
//!
//! Each output is computed by itself, in the same order whatever shares the work: no result depends on the number of threads.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};

mod backward;
mod dense;
mod forward;
mod gemm;
mod geometry;
mod grouped;
mod im2col;
mod kernels;
mod patches;
mod product;
mod scalar;
mod scratch;
mod vector;
mod winograd;

pub use backward::{Wanted, backward, relu_backward};
pub use dense::{dense, dense_backward};
pub use forward::{Addend, Finish, forward, forward_into};
pub use geometry::Geometry;
pub use kernels::Kernels;
pub use scalar::{Scalar, positive};

/// Whether one operation is shared among the threads of the current rayon pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The caller does it alone: its neighbours are at work on other images.
    One,
    /// All threads take part.
    All,
}

impl Threads {
    /// Runs `work` on every item, which are independent of each other.
    pub(crate) fn each<I: IndexedParallelIterator>(self, items: I, work: impl Fn(I::Item) + Sync + Send) {
        // Items that are never shared out stay with the caller.
        let least = if self == Self::One { usize::MAX } else { 1 };
        items.with_min_len(least).for_each(work);
    }
}
