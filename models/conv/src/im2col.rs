//! Patches as columns, and back.

use crate::scratch::scratch;
use crate::{Geometry, Scalar};
use std::ops::Range;

/// Writes the patches of output rows `rows` of one image's channel group (`[c/groups, h, w]`) to columns
/// `offset..offset + rows·ow` of `col`, a row-major `[patch, ld]`.
pub(crate) fn im2col<T: Scalar>(g: &Geometry, image: &[T], rows: Range<usize>, col: &mut [T], ld: usize, offset: usize) {
    let mut k = 0;
    if g.shifted() {
        for plane in image.chunks_exact(g.h * g.w) {
            for tap in 0..g.kh * g.kw {
                let (ky, kx) = (tap / g.kw, tap % g.kw);
                let line = &mut col[k * ld + offset..][..rows.len() * g.ow];
                let (part, source) = g.shift(ky, kx, &rows);
                line[..part.start].fill(T::ZERO);
                line[part.end..].fill(T::ZERO);
                line[part.clone()].copy_from_slice(&plane[source..source + part.len()]);
                clear_border(g, kx, line);
                k += 1;
            }
        }
        return;
    }
    // What a kernel column reads of every row, by the rows' place in a step: a tap of all output rows is then one run.
    let below = |place: usize| (g.kh - 1 - place) / g.stride;
    let plane = (rows.len() + below(0)) * g.ow;
    scratch(g.stride.min(g.kh) * g.kw * plane, |runs| {
        for image in image.chunks_exact(g.h * g.w) {
            for (place, runs) in runs.chunks_exact_mut(g.kw * plane).enumerate() {
                for row in 0..rows.len() + below(place) {
                    let source = g.row(rows.start + row, place).map(|y| &image[y * g.w..][..g.w]);
                    for (kx, run) in runs.chunks_exact_mut(plane).enumerate() {
                        let run = &mut run[row * g.ow..][..g.ow];
                        match source {
                            Some(source) => strided(g, kx, source, run),
                            None => run.fill(T::ZERO),
                        }
                    }
                }
            }
            for tap in 0..g.kh * g.kw {
                let (ky, kx) = (tap / g.kw, tap % g.kw);
                let run = &runs[(ky % g.stride * g.kw + kx) * plane + ky / g.stride * g.ow..][..rows.len() * g.ow];
                col[k * ld + offset..][..run.len()].copy_from_slice(run);
                k += 1;
            }
        }
    });
}

/// What kernel column `kx` reads of a row of the image, for every output column.
fn strided<T: Scalar>(g: &Geometry, kx: usize, row: &[T], out: &mut [T]) {
    let (lo, hi) = g.columns(kx);
    out[..lo].fill(T::ZERO);
    out[hi..].fill(T::ZERO);
    if lo == hi {
        return;
    }
    let (from, out) = (&row[lo * g.stride + kx - g.padding..], &mut out[lo..hi]);
    if g.stride == 2 {
        let (pairs, last) = from.as_chunks::<2>();
        out.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair[0]);
        if let (Some(to), Some(from)) = (out.get_mut(pairs.len()), last.first()) {
            *to = *from;
        }
        return;
    }
    out.iter_mut().zip(from.iter().step_by(g.stride)).for_each(|(to, from)| *to = *from);
}

/// Zeroes the columns of `line` whose source for kernel column `kx` lies outside the image.
fn clear_border<T: Scalar>(g: &Geometry, kx: usize, line: &mut [T]) {
    let (lo, hi) = g.columns(kx);
    if lo > 0 || hi < g.ow {
        for row in line.chunks_exact_mut(g.ow) {
            row[..lo].fill(T::ZERO);
            row[hi..].fill(T::ZERO);
        }
    }
}

/// The adjoint of [`im2col`]: adds the columns to the image's channel group. Uses `col` up.
pub(crate) fn col2im<T: Scalar>(g: &Geometry, image: &mut [T], rows: Range<usize>, col: &mut [T], ld: usize, offset: usize) {
    let mut k = 0;
    if g.shifted() {
        for plane in image.chunks_exact_mut(g.h * g.w) {
            for tap in 0..g.kh * g.kw {
                let (ky, kx) = (tap / g.kw, tap % g.kw);
                let line = &mut col[k * ld + offset..][..rows.len() * g.ow];
                clear_border(g, kx, line);
                let (part, target) = g.shift(ky, kx, &rows);
                let target = &mut plane[target..target + part.len()];
                target.iter_mut().zip(&line[part]).for_each(|(to, from)| *to += *from);
                k += 1;
            }
        }
        return;
    }
    for plane in image.chunks_exact_mut(g.h * g.w) {
        for ky in 0..g.kh {
            for kx in 0..g.kw {
                let (lo, hi) = g.columns(kx);
                let line = &col[k * ld + offset..][..rows.len() * g.ow];
                for (oy, from) in rows.clone().zip(line.chunks_exact(g.ow)) {
                    if let (Some(y), true) = (g.row(oy, ky), hi > lo) {
                        let target = &mut plane[y * g.w + lo * g.stride + kx - g.padding..(y + 1) * g.w];
                        if g.stride == 1 {
                            for (to, from) in target.iter_mut().zip(&from[lo..hi]) {
                                *to += *from;
                            }
                        } else {
                            for (to, from) in target.iter_mut().step_by(g.stride).zip(&from[lo..hi]) {
                                *to += *from;
                            }
                        }
                    }
                }
                k += 1;
            }
        }
    }
}
