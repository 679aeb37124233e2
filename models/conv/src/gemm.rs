//! The matrix product: a bounds-checked face of the `gemm` crate.

use crate::{Scalar, Threads};

/// A matrix inside a slice: element `(i, j)` lies at `i · row + j · column`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major with `row` elements from one row to the next.
    pub(crate) fn rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, column: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// `c = a · b`, or `c += a · b` with `accumulate`; `a` is `[m, k]`, `b` is `[k, n]`, `c` is `[m, n]` row-major with stride `ldc`.
///
/// # Panics
/// When a matrix does not lie inside its slice.
#[expect(unsafe_code, reason = "the gemm crate takes raw pointers; every access is checked to lie inside the slices first")]
#[expect(clippy::too_many_arguments, reason = "the shape of a matrix product")]
pub(crate) fn gemm<T: Scalar>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    c: &mut [T],
    ldc: usize,
    accumulate: bool,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ldc + n <= c.len() && (m == 1 || ldc >= n), "output [{m}, {n}] by {ldc} in {} elements", c.len());
    if k == 0 {
        if !accumulate {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(T::ZERO));
        }
        return;
    }
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len(), "left operand [{m}, {k}] in {} elements", a.data.len());
    assert!((k - 1) * b.row + (n - 1) * b.column < b.data.len(), "right operand [{k}, {n}] in {} elements", b.data.len());
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: all strides are non-negative, so the largest offset of each operand is the one checked above; `c` is borrowed
    // mutably, hence aliases neither `a` nor `b`; `Scalar` is f32 or f64, which gemm supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            ldc as isize,
            accumulate,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}
