//! The fully connected layer.

use crate::gemm::{Mat, gemm};
use crate::scratch::scratch;
use crate::{Addend, Finish, Scalar, Threads, Wanted};
use rayon::prelude::*;

/// A product's columns are padded to the widest vector.
const LANES: usize = 16;
/// Side of the squares in which a matrix is transposed.
const SQUARE: usize = 32;

/// `to` `[columns, ld]` is the transpose of `from` `[rows, columns]`, whose rows are `from_ld` apart.
pub(crate) fn transpose<T: Scalar>(from: &[T], rows: usize, columns: usize, from_ld: usize, to: &mut [T], ld: usize, threads: Threads) {
    if rows == 0 || columns == 0 {
        return;
    }
    threads.each(to.par_chunks_mut(SQUARE * ld).enumerate(), |(index, to)| {
        let first = index * SQUARE;
        let last = (first + SQUARE).min(columns);
        for start in (0..rows).step_by(SQUARE) {
            let end = (start + SQUARE).min(rows);
            for (line, column) in to.chunks_mut(ld).zip(first..last) {
                for (to, row) in line[start..end].iter_mut().zip(start..end) {
                    *to = from[row * from_ld + column];
                }
            }
        }
    });
}

/// `y = x · wᵀ`, then `finish`: `[r, i]`, `[o, i]` → `[r, o]`. Of `finish`, the bias and ReLU.
///
/// # Panics
/// When a slice has another length, or there is an addend.
pub fn dense<T: Scalar>((r, i, o): (usize, usize, usize), x: &[T], w: &[T], finish: Finish<'_, T>, threads: Threads) -> Vec<T> {
    assert_eq!((x.len(), w.len()), (r * i, o * i), "input and weight of {r}, {i} and {o}");
    assert!(matches!(finish.add, Addend::None), "a fully connected layer of {r}, {i} and {o} with an addend");
    let mut y = vec![T::ZERO; r * o];
    let ld = r.next_multiple_of(LANES);
    // Both operands have their common dimension innermost: the product is three times as fast with one of them transposed.
    scratch(i * ld, |columns| {
        transpose(x, r, i, i, columns, ld, threads);
        scratch(o * ld, |products| {
            gemm(o, ld, i, Mat::rows(w, i), Mat::rows(columns, ld), products, ld, false, threads);
            transpose(products, o, r, ld, &mut y, o, threads);
        });
    });
    for row in y.chunks_exact_mut(o.max(1)) {
        for (v, channel) in row.iter_mut().zip(0..) {
            let sum = [*v];
            finish.write(channel, 0, &sum, std::slice::from_mut(v));
        }
    }
    y
}

/// Gradients of [`dense`] without its ReLU, given that of its output, `[r, o]`; those not wanted are empty.
///
/// # Panics
/// When a slice has another length.
pub fn dense_backward<T: Scalar>(
    (r, i, o): (usize, usize, usize),
    x: &[T],
    w: &[T],
    dy: &[T],
    wanted: Wanted,
    threads: Threads,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    assert_eq!((x.len(), w.len(), dy.len()), (r * i, o * i, r * o), "input, weight and gradient of {r}, {i} and {o}");
    let mut dx = vec![T::ZERO; if wanted.input { r * i } else { 0 }];
    let mut dw = vec![T::ZERO; if wanted.weight { o * i } else { 0 }];
    let mut db = vec![T::ZERO; if wanted.bias { o } else { 0 }];
    if wanted.input {
        gemm(r, i, o, Mat::rows(dy, o), Mat::rows(w, i), &mut dx, i, false, threads);
    }
    if wanted.weight {
        gemm(o, i, r, Mat::rows(dy, o).t(), Mat::rows(x, i), &mut dw, i, false, threads);
    }
    if wanted.bias {
        for row in dy.chunks_exact(o.max(1)) {
            db.iter_mut().zip(row).for_each(|(sum, v)| *sum += *v);
        }
    }
    (dx, dw, db)
}
