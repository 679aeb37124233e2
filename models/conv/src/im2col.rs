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
    // The rows that are read, their columns held apart by their place in a step: what a tap reads of a row is then one run.
    let first = (rows.start * g.stride).saturating_sub(g.padding).min(g.h);
    let last = ((rows.end - 1) * g.stride + g.kh).saturating_sub(g.padding).clamp(first, g.h);
    let wide = g.w.div_ceil(g.stride);
    scratch((last - first) * g.stride * wide, |apart| {
        for plane in image.chunks_exact(g.h * g.w) {
            for (row, apart) in plane[first * g.w..last * g.w].chunks_exact(g.w).zip(apart.chunks_exact_mut(g.stride * wide)) {
                separate(row, g.stride, wide, apart);
            }
            for tap in 0..g.kh * g.kw {
                let (ky, kx) = (tap / g.kw, tap % g.kw);
                let (lo, hi) = g.columns(kx);
                let line = &mut col[k * ld + offset..][..rows.len() * g.ow];
                k += 1;
                if hi == lo {
                    line.fill(T::ZERO);
                    continue;
                }
                let column = lo * g.stride + kx - g.padding;
                let at = column % g.stride * wide + column / g.stride;
                for (oy, out) in rows.clone().zip(line.chunks_exact_mut(g.ow)) {
                    match g.row(oy, ky) {
                        Some(y) => {
                            out[..lo].fill(T::ZERO);
                            out[hi..].fill(T::ZERO);
                            out[lo..hi].copy_from_slice(&apart[(y - first) * g.stride * wide + at..][..hi - lo]);
                        }
                        None => out.fill(T::ZERO),
                    }
                }
            }
        }
    });
}

/// Column `stride · i + place` of `row` to `apart[place · wide + i]`.
fn separate<T: Scalar>(row: &[T], stride: usize, wide: usize, apart: &mut [T]) {
    match stride {
        1 => apart.copy_from_slice(row),
        2 => {
            let (even, odd) = apart.split_at_mut(wide);
            let pairs = row.chunks_exact(2);
            if let [last] = pairs.remainder() {
                even[wide - 1] = *last;
            }
            for ((even, odd), pair) in even.iter_mut().zip(odd).zip(pairs) {
                (*even, *odd) = (pair[0], pair[1]);
            }
        }
        _ => {
            for (place, apart) in apart.chunks_exact_mut(wide).enumerate() {
                apart.iter_mut().zip(row.iter().skip(place).step_by(stride)).for_each(|(to, from)| *to = *from);
            }
        }
    }
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
