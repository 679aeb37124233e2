//! The convolution's gradients.

use crate::dense::transpose;
use crate::forward::Finish;
use crate::gemm::{Mat, gemm};
use crate::im2col::{col2im, im2col};
use crate::patches::{self, Partition};
use crate::scratch::scratch;
use crate::winograd::{self, Taps};
use crate::{Geometry, Scalar, Threads, grouped};
use rayon::prelude::*;

/// Shares of the input's channels, at most: each is a task of its own, whatever the number of threads.
const SHARES: usize = 16;
/// Rows of a product, at least.
const MIN_ROWS: usize = 32;
/// Numbers of a share's patches at a time: 512 KiB of f32.
const BLOCK: usize = 131_072;
/// Columns of a block: enough to outweigh the reading of the sums, few enough for the cache.
const COLUMNS: (usize, usize) = (256, 2_048);
/// Numbers that one task of an elementwise pass takes.
const CHUNK: usize = 1 << 16;

/// What a backward pass computes: input, weight and bias gradients, each when asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of the input.
    pub input: bool,
    /// Of the weight.
    pub weight: bool,
    /// Of the bias.
    pub bias: bool,
}

/// The gradient before a ReLU whose output was `y`.
pub fn relu_backward<T: Scalar>(y: &[T], grad: &[T]) -> Vec<T> {
    let mut masked = vec![T::ZERO; y.len()];
    masked.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).zip(grad.par_chunks(CHUNK)).for_each(|((to, y), grad)| {
        to.iter_mut().zip(y).zip(grad).for_each(|((to, y), g)| *to = if *y > T::ZERO { *g } else { T::ZERO });
    });
    masked
}

/// Gradients of [`crate::forward`] before its bias, addend and ReLU, given that of its output, `dy`; those not wanted are empty. The
/// input is read for the weight's gradient only, the weight for the input's.
///
/// # Panics
/// When a slice that is read has not the length that `g` says.
pub fn backward<T: Scalar>(g: &Geometry, x: &[T], w: &[T], dy: &[T], wanted: Wanted) -> (Vec<T>, Vec<T>, Vec<T>) {
    assert_eq!(dy.len(), g.n * g.output_len(), "gradient of {g:?}");
    assert!(!wanted.weight || x.len() == g.n * g.input_len(), "input of {g:?}");
    assert!(!wanted.input || w.len() == g.o * g.patch(), "weight of {g:?}");
    let mut dx = vec![T::ZERO; if wanted.input { g.n * g.input_len() } else { 0 }];
    let mut dw = vec![T::ZERO; if wanted.weight { g.o * g.patch() } else { 0 }];
    let mut db = vec![T::ZERO; if wanted.bias { g.o } else { 0 }];
    if dy.is_empty() {
        return (dx, dw, db);
    }
    if wanted.input {
        input_gradient(g, w, dy, &mut dx);
    }
    if wanted.weight {
        weight_gradient(g, x, dy, &mut dw);
    }
    if wanted.bias {
        db.par_iter_mut().enumerate().for_each(|(channel, sum)| {
            *sum = (0..g.n).map(|image| sum_of(&dy[image * g.output_len() + channel * g.plane()..][..g.plane()])).sum();
        });
    }
    (dx, dw, db)
}

/// A sum in sixteen lanes: vectorised, and more accurate than one running sum.
fn sum_of<T: Scalar>(values: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += *v);
    }
    lanes.into_iter().sum::<T>() + rest.iter().copied().sum::<T>()
}

/// Channels of one of the shares into which `channels` are divided.
fn share(channels: usize) -> usize {
    channels.div_ceil(SHARES).max(1)
}

fn input_gradient<T: Scalar>(g: &Geometry, w: &[T], dy: &[T], dx: &mut [T]) {
    if let Some(adjoint) = g.adjoint() {
        if winograd::pays(&adjoint, false) {
            return winograd::forward(&adjoint, dy, &Taps::adjoint(&adjoint, w), Finish::default(), dx, Threads::All);
        }
        if grouped::pays(&adjoint) {
            return grouped::forward(&adjoint, dy, &grouped::mirrored(g, w), Finish::default(), dx, Threads::All);
        }
        if g.pointwise() && g.groups == 1 {
            let mut transposed = vec![T::ZERO; w.len()];
            transpose(w, g.o, g.c, g.c, &mut transposed, g.o, Threads::All);
            return patches::forward(&adjoint, dy, &transposed, Finish::default(), dx, Threads::All);
        }
    }
    // Of each image and group, shares of the channels; a share's patches are added to its planes block by block.
    let (inner, channels, taps, plane) = (g.c / g.groups, g.channels(), g.kh * g.kw, g.plane());
    let share = share(inner);
    let partition = Partition { part: BLOCK.div_ceil(share * taps).div_ceil(g.ow).clamp(1, g.oh) * g.ow, images: 1 };
    let planes = dx
        .par_chunks_mut(inner * g.h * g.w)
        .enumerate()
        .flat_map(|(index, dx)| dx.par_chunks_mut(share * g.h * g.w).enumerate().map(move |(share, dx)| (index, share, dx)));
    planes.for_each(|(index, number, dx)| {
        let (image, group) = (index / g.groups, index % g.groups);
        let rows = dx.len() / (g.h * g.w) * taps;
        for block in partition.blocks(g, 1) {
            let columns = block.columns();
            scratch(rows * columns, |buffer| {
                let weight = Mat::rows(&w[group * channels * g.patch() + number * share * taps..], g.patch()).t();
                let grad = &dy[image * g.output_len() + group * channels * plane + block.part.start..];
                gemm(rows, columns, channels, weight, Mat::rows(grad, plane), buffer, columns, false, Threads::One);
                col2im(g, dx, block.rows(g), buffer, columns, 0);
            });
        }
    });
}

fn weight_gradient<T: Scalar>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    if grouped::pays(g) {
        return grouped::weight_gradient(g, x, dy, dw);
    }
    let (inner, channels, patch) = (g.c / g.groups, g.channels(), g.patch());
    for group in 0..g.groups {
        let dw = &mut dw[group * channels * patch..][..channels * patch];
        // The product of two matrices with their common dimension innermost is slow: the gradient, or the smaller input, is transposed
        // once for all.
        if g.pointwise() && inner < channels {
            product(g, (x, inner), (dy, channels), group, dw);
        } else {
            scratch(patch * channels, |sums: &mut [T]| {
                product(g, (dy, channels), (x, inner), group, sums);
                transpose(sums, patch, channels, channels, dw, patch, Threads::All);
            });
        }
    }
}

/// The products of the patches of one group of `left` with `right`, a map of as many columns, summed over all images:
/// `sums` `[left's patches, right's channels]`. Where `left` is the gradient of a pointwise convolution, its patches are itself.
fn product<T: Scalar>(g: &Geometry, (right, columns_of_sums): (&[T], usize), (left, inner): (&[T], usize), group: usize, sums: &mut [T]) {
    let (taps, plane, n) = (g.kh * g.kw, g.plane(), columns_of_sums);
    let (left_len, left_plane) = (g.groups * inner * g.h * g.w, g.h * g.w);
    let share = share(inner).max(MIN_ROWS.div_ceil(taps)).min(inner);
    // Whole rows, or whole planes of several images.
    let columns = (BLOCK / (share * taps)).clamp(COLUMNS.0, COLUMNS.1);
    let partition = if plane * 2 <= columns {
        Partition { part: plane, images: (columns / plane).max(1) }
    } else {
        Partition { part: columns.div_ceil(g.ow).clamp(1, g.oh) * g.ow, images: 1 }
    };
    scratch(g.n * plane * n, |transposed: &mut [T]| {
        transposed.par_chunks_exact_mut(plane * n).enumerate().for_each(|(image, to)| {
            let from = &right[(image * g.groups + group) * n * plane..][..n * plane];
            transpose(from, n, plane, plane, to, n, Threads::One);
        });
        let transposed = &*transposed;
        sums.par_chunks_mut(share * taps * n).enumerate().for_each(|(number, sums)| {
            let rows = sums.len() / n;
            for (index, block) in partition.blocks(g, g.n).enumerate() {
                let columns = block.columns();
                let right = Mat::rows(&transposed[(block.images.start * plane + block.part.start) * n..][..columns * n], n);
                let from = |image: usize| image * left_len + (group * inner + number * share) * left_plane;
                if g.pointwise() && block.images.len() == 1 {
                    let left = Mat::rows(&left[from(block.images.start) + block.part.start..], plane);
                    gemm(rows, n, columns, left, right, sums, n, index > 0, Threads::One);
                    continue;
                }
                scratch(rows * columns, |buffer| {
                    for (index, image) in block.images.clone().enumerate() {
                        let left = &left[from(image)..][..rows / taps * left_plane];
                        im2col(g, left, block.rows(g), buffer, columns, index * block.part.len());
                    }
                    gemm(rows, n, columns, Mat::rows(buffer, columns), right, sums, n, index > 0, Threads::One);
                });
            }
        });
    });
}
