//! Patches as columns, and back.

use super::element::Element;
use std::ops::Range;

/// The geometry of a convolution: input `[n, c, h, w]`, kernel `[o, c/groups, kh, kw]`, output `[n, o, oh, ow]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    pub(crate) c: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) o: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) groups: usize,
    pub(crate) oh: usize,
    pub(crate) ow: usize,
}

impl Geometry {
    /// Rows of the patch matrix of one group.
    pub(crate) fn patch(&self) -> usize {
        self.c / self.groups * self.kh * self.kw
    }

    /// Whether the input itself is the patch matrix.
    pub(crate) fn pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == 1 && self.padding == 0
    }

    /// For kernel column `kx`: the output columns `[lo, hi)` whose input column lies inside the image.
    fn columns(&self, kx: usize) -> (usize, usize) {
        let lo = self.padding.saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        let hi = (self.w + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        (lo, hi.max(lo))
    }

    /// Whether output and input have one grid: a row of patches is then the image, shifted.
    fn shifted(&self) -> bool {
        self.stride == 1 && self.ow == self.w && self.padding < self.kw
    }

    /// For kernel tap `(ky, kx)` on one grid: the part of `rows` whose input row lies inside, and within these rows the elements
    /// (counted from the first row of `rows`) that have a source inside the plane, and where in the plane that source starts.
    fn shift(&self, ky: usize, kx: usize, rows: &Range<usize>) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(ky).clamp(rows.start, rows.end);
        let last = (self.h + self.padding).saturating_sub(ky).clamp(first, rows.end);
        // Source of element `i` is `i + ahead − behind`; the few beyond the plane's ends belong to border columns.
        let (ahead, behind) = ((rows.start + ky) * self.w + kx, self.padding * (self.w + 1));
        let start = ((first - rows.start) * self.w).max(behind.saturating_sub(ahead));
        let end = ((last - rows.start) * self.w).min((self.h * self.w + behind).saturating_sub(ahead));
        if start < end { (start..end, start + ahead - behind) } else { (0..0, 0) }
    }

    /// The input row of output row `oy` and kernel row `ky`, when inside.
    fn row(&self, oy: usize, ky: usize) -> Option<usize> {
        (oy * self.stride + ky).checked_sub(self.padding).filter(|y| *y < self.h)
    }
}

/// Writes the patches of output rows `rows` of one image's channel group (`[c/groups, h, w]`) to columns
/// `offset..offset + rows·ow` of `col`, a row-major `[patch, ld]`.
pub(crate) fn im2col<T: Element>(g: &Geometry, image: &[T], rows: Range<usize>, col: &mut [T], ld: usize, offset: usize) {
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
    for plane in image.chunks_exact(g.h * g.w) {
        for ky in 0..g.kh {
            for kx in 0..g.kw {
                let (lo, hi) = g.columns(kx);
                let line = &mut col[k * ld + offset..][..rows.len() * g.ow];
                for (oy, out) in rows.clone().zip(line.chunks_exact_mut(g.ow)) {
                    match g.row(oy, ky) {
                        Some(y) if hi > lo => {
                            out[..lo].fill(T::ZERO);
                            out[hi..].fill(T::ZERO);
                            let source = &plane[y * g.w + lo * g.stride + kx - g.padding..(y + 1) * g.w];
                            if g.stride == 1 {
                                out[lo..hi].copy_from_slice(&source[..hi - lo]);
                            } else {
                                for (to, from) in out[lo..hi].iter_mut().zip(source.iter().step_by(g.stride)) {
                                    *to = *from;
                                }
                            }
                        }
                        _ => out.fill(T::ZERO),
                    }
                }
                k += 1;
            }
        }
    }
}

/// Zeroes the columns of `line` whose source for kernel column `kx` lies outside the image.
fn clear_border<T: Element>(g: &Geometry, kx: usize, line: &mut [T]) {
    let (lo, hi) = g.columns(kx);
    if lo > 0 || hi < g.ow {
        for row in line.chunks_exact_mut(g.ow) {
            row[..lo].fill(T::ZERO);
            row[hi..].fill(T::ZERO);
        }
    }
}

/// The adjoint of [`im2col`]: adds the columns to the image's channel group. Uses `col` up.
pub(crate) fn col2im<T: Element>(g: &Geometry, image: &mut [T], rows: Range<usize>, col: &mut [T], ld: usize, offset: usize) {
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
