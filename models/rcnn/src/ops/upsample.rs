//! Doubling of maps: nearest (FPN) and bilinear (keypoint head, `align_corners = false`).

use super::element::{Element, unary_op};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// `[n, c, h, w]` → `[n, c, 2h, 2w]`, every cell four times.
///
/// # Errors
/// When the input has not four dimensions.
pub fn upsample_nearest2(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    x.contiguous()?.apply_op1(Nearest)
}

/// `[n, c, h, w]` → `[n, c, 2h, 2w]`, bilinear with half-pixel centres and the border repeated.
///
/// # Errors
/// When the input has not four dimensions.
pub fn upsample_bilinear2(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    x.contiguous()?.apply_op1(Bilinear)
}

pub(super) struct Nearest;

impl Nearest {
    fn forward<T: Element>(&self, x: &[T], dims: &[usize]) -> (Vec<T>, Vec<usize>) {
        let (h, w) = (dims[2], dims[3]);
        let mut y = vec![T::ZERO; 4 * x.len()];
        y.par_chunks_mut((4 * h * w).max(1)).zip(x.par_chunks((h * w).max(1))).for_each(|(y, x)| {
            for (out, row) in y.chunks_exact_mut(4 * w).zip(x.chunks_exact(w)) {
                let (upper, lower) = out.split_at_mut(2 * w);
                upper.chunks_exact_mut(2).zip(row).for_each(|(pair, v)| pair.fill(*v));
                lower.copy_from_slice(upper);
            }
        });
        (y, vec![dims[0], dims[1], 2 * h, 2 * w])
    }

    fn backward<T: Element>(&self, x: &[T], _: &[T], grad: &[T], dims: &[usize]) -> Vec<T> {
        let (h, w) = (dims[2], dims[3]);
        let mut dx = vec![T::ZERO; x.len()];
        dx.par_chunks_mut((h * w).max(1)).zip(grad.par_chunks((4 * h * w).max(1))).for_each(|(dx, grad)| {
            for (row, rows) in dx.chunks_exact_mut(w).zip(grad.chunks_exact(4 * w)) {
                let (upper, lower) = rows.split_at(2 * w);
                for ((to, a), b) in row.iter_mut().zip(upper.chunks_exact(2)).zip(lower.chunks_exact(2)) {
                    *to = a[0] + a[1] + b[0] + b[1];
                }
            }
        });
        dx
    }
}

unary_op!(Nearest, "upsample_nearest2");

pub(super) struct Bilinear;

/// Output `o` lies a quarter of a cell from the centre of source `near` and three quarters from that of `far`.
fn sources(o: usize, size: usize) -> (usize, usize) {
    let near = o / 2;
    let far = if o.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(size - 1) };
    (near, far)
}

impl Bilinear {
    fn forward<T: Element>(&self, x: &[T], dims: &[usize]) -> (Vec<T>, Vec<usize>) {
        let (h, w) = (dims[2], dims[3]);
        let (a, b) = (T::of(0.75), T::of(0.25));
        let mut y = vec![T::ZERO; 4 * x.len()];
        y.par_chunks_mut((4 * h * w).max(1)).zip(x.par_chunks((h * w).max(1))).for_each(|(y, x)| {
            let mut mixed = vec![T::ZERO; w];
            for (oy, out) in y.chunks_exact_mut(2 * w).enumerate() {
                let (near, far) = sources(oy, h);
                for ((m, p), q) in mixed.iter_mut().zip(&x[near * w..]).zip(&x[far * w..]) {
                    *m = a * *p + b * *q;
                }
                for (ox, v) in out.iter_mut().enumerate() {
                    let (near, far) = sources(ox, w);
                    *v = a * mixed[near] + b * mixed[far];
                }
            }
        });
        (y, vec![dims[0], dims[1], 2 * h, 2 * w])
    }

    fn backward<T: Element>(&self, x: &[T], _: &[T], grad: &[T], dims: &[usize]) -> Vec<T> {
        let (h, w) = (dims[2], dims[3]);
        let (a, b) = (T::of(0.75), T::of(0.25));
        let mut dx = vec![T::ZERO; x.len()];
        dx.par_chunks_mut((h * w).max(1)).zip(grad.par_chunks((4 * h * w).max(1))).for_each(|(dx, grad)| {
            let mut mixed = vec![T::ZERO; w];
            for (oy, row) in grad.chunks_exact(2 * w).enumerate() {
                mixed.fill(T::ZERO);
                for (ox, g) in row.iter().enumerate() {
                    let (near, far) = sources(ox, w);
                    mixed[near] += a * *g;
                    mixed[far] += b * *g;
                }
                let (near, far) = sources(oy, h);
                dx[near * w..].iter_mut().zip(&mixed).for_each(|(to, m)| *to += a * *m);
                dx[far * w..].iter_mut().zip(&mixed).for_each(|(to, m)| *to += b * *m);
            }
        });
        dx
    }
}

unary_op!(Bilinear, "upsample_bilinear2");
