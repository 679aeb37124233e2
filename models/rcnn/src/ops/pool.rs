//! Max-pooling of the stem, and the subsampling that makes P6.

use super::element::{Element, unary_op};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Max-pooling `[n, c, h, w]` → `[n, c, h', w']` with zero-size-safe `−∞` padding; a tie's gradient goes to the first.
///
/// # Errors
/// When the input has not four dimensions or the window does not fit.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if stride == 0 || kernel <= padding || h + 2 * padding < kernel || w + 2 * padding < kernel {
        bail!("max_pool2d: kernel {kernel}, stride {stride}, padding {padding} do not fit {:?}", x.dims());
    }
    x.contiguous()?.apply_op1(MaxPool { kernel, stride, padding })
}

/// Every second row and column, from the first: max-pooling with kernel 1 and stride 2 (P6 from P5).
///
/// # Errors
/// When the input has not four dimensions.
pub fn subsample2(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    x.contiguous()?.apply_op1(MaxPool { kernel: 1, stride: 2, padding: 0 })
}

pub(super) struct MaxPool {
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

impl MaxPool {
    pub(super) fn out(&self, size: usize) -> usize {
        (size + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// The window of output `o` in `0..size`.
    fn window(&self, o: usize, size: usize) -> std::ops::Range<usize> {
        let start = o * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(size)
    }

    /// Index of the first maximum of every window of a plane.
    fn argmax<'a, T: Element>(&'a self, plane: &'a [T], h: usize, w: usize) -> impl Iterator<Item = usize> + 'a {
        (0..self.out(h)).flat_map(move |oy| {
            (0..self.out(w)).map(move |ox| {
                let (rows, columns) = (self.window(oy, h), self.window(ox, w));
                let mut best = rows.start * w + columns.start;
                for y in rows {
                    for x in columns.clone() {
                        if plane[y * w + x] > plane[best] {
                            best = y * w + x;
                        }
                    }
                }
                best
            })
        })
    }

    fn forward<T: Element>(&self, x: &[T], dims: &[usize]) -> (Vec<T>, Vec<usize>) {
        let (h, w) = (dims[2], dims[3]);
        let (oh, ow) = (self.out(h), self.out(w));
        let mut y = vec![T::ZERO; dims[0] * dims[1] * oh * ow];
        y.par_chunks_mut(oh * ow).zip(x.par_chunks(h * w)).for_each(|(y, plane)| {
            y.iter_mut().zip(self.argmax(plane, h, w)).for_each(|(to, from)| *to = plane[from]);
        });
        (y, vec![dims[0], dims[1], oh, ow])
    }

    fn backward<T: Element>(&self, x: &[T], _: &[T], grad: &[T], dims: &[usize]) -> Vec<T> {
        let (h, w) = (dims[2], dims[3]);
        let (oh, ow) = (self.out(h), self.out(w));
        let mut dx = vec![T::ZERO; x.len()];
        dx.par_chunks_mut(h * w).zip(x.par_chunks(h * w)).zip(grad.par_chunks(oh * ow)).for_each(|((dx, plane), grad)| {
            self.argmax(plane, h, w).zip(grad).for_each(|(to, g)| dx[to] += *g);
        });
        dx
    }
}

unary_op!(MaxPool, "max_pool2d");
