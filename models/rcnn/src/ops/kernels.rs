//! The convolution and its gradients on slices: patches as columns, then a matrix product.
//!
//! Images are partitioned into jobs (shared among threads); a job goes through its images in blocks of output rows, so that a
//! block of patches stays in the second-level cache. Small maps share one block among several images.

use super::element::Element;
use super::gemm::{Mat, Threads, gemm};
use super::im2col::{Geometry, col2im, im2col};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block of patches: 512 KiB of f32.
const BLOCK: usize = 131_072;
/// A block has at least this many columns where the map allows: the product reuses the packed weights that often.
const MIN_COLUMNS: usize = 192;

impl Geometry {
    /// Output rows per block.
    fn block_rows(&self) -> usize {
        (BLOCK / self.patch().max(1)).max(MIN_COLUMNS).div_ceil(self.ow.max(1)).clamp(1, self.oh.max(1))
    }

    /// Images that share a block.
    fn batch(&self) -> usize {
        (MIN_COLUMNS / (self.oh * self.ow).max(1)).clamp(1, self.n.div_ceil(4).max(1))
    }

    /// Images per job of the backward pass: few jobs where the weights' gradient is large, since each job has its own.
    fn job_images(&self) -> usize {
        let jobs = (1 << 18) / (self.o * self.patch()).max(1);
        let images = self.n.div_ceil(jobs.clamp(4, 16));
        images.next_multiple_of(self.batch()).max(1)
    }

    fn input_len(&self) -> usize {
        self.c * self.h * self.w
    }

    fn output_len(&self) -> usize {
        self.o * self.oh * self.ow
    }
}

/// A block: output rows of one image, or whole maps of several.
struct Block {
    images: Range<usize>,
    rows: Range<usize>,
}

impl Block {
    fn columns(&self, g: &Geometry) -> usize {
        self.images.len() * self.rows.len() * g.ow
    }
}

/// The blocks of `images` images.
fn blocks(g: &Geometry, images: usize) -> impl Iterator<Item = Block> {
    let (batch, rows, oh) = (g.batch(), g.block_rows(), g.oh);
    (0..images).step_by(batch).flat_map(move |first| {
        let last = (first + batch).min(images);
        let rows = if last - first > 1 { oh } else { rows };
        (0..oh).step_by(rows.max(1)).map(move |row| Block { images: first..last, rows: row..(row + rows).min(oh) })
    })
}

/// Runs `f` with a scratch buffer of at least `len` elements, kept by the thread for the next call.
fn scratch<T: Element, R>(len: usize, f: impl FnOnce(&mut Vec<T>) -> R) -> R {
    use std::any::Any;
    use std::cell::RefCell;
    thread_local! {
        static BUFFERS: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = BUFFERS
        .with_borrow_mut(|pool| {
            let index = pool.iter().rposition(|b| b.is::<Vec<T>>())?;
            pool.swap_remove(index).downcast::<Vec<T>>().ok()
        })
        .unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, T::ZERO);
    }
    let result = f(&mut buffer);
    BUFFERS.with_borrow_mut(|pool| pool.push(buffer));
    result
}

/// The patches of a block as a `[patch, columns]` matrix: the input itself where it already is one.
fn patches<'a, T: Element>(g: &Geometry, group: usize, x: &'a [T], block: &Block, buffer: &'a mut [T]) -> Mat<'a, T> {
    let len = g.c / g.groups * g.h * g.w;
    let base = |image: usize| image * g.input_len() + group * len;
    if g.pointwise() && block.images.len() == 1 {
        return Mat::rows(&x[base(block.images.start) + block.rows.start * g.w..][..len - block.rows.start * g.w], g.h * g.w);
    }
    let ld = block.columns(g);
    for (index, image) in block.images.clone().enumerate() {
        im2col(g, &x[base(image)..][..len], block.rows.clone(), buffer, ld, index * block.rows.len() * g.ow);
    }
    Mat::rows(buffer, ld)
}

/// The outputs (or their gradients) of a block as `[o/groups, columns]`: in place for one image, gathered for several.
fn outputs<'a, T: Element>(g: &Geometry, group: usize, y: &'a [T], block: &Block, buffer: &'a mut [T]) -> Mat<'a, T> {
    let (plane, channels) = (g.oh * g.ow, g.o / g.groups);
    let base = |image: usize| image * g.output_len() + group * channels * plane;
    if block.images.len() == 1 {
        let skip = block.rows.start * g.ow;
        return Mat::rows(&y[base(block.images.start) + skip..][..channels * plane - skip], plane);
    }
    let ld = block.columns(g);
    for (index, image) in block.images.clone().enumerate() {
        for (channel, values) in y[base(image)..][..channels * plane].chunks_exact(plane).enumerate() {
            buffer[channel * ld + index * plane..][..plane].copy_from_slice(values);
        }
    }
    Mat::rows(buffer, ld)
}

/// `y = x ⋆ w + b`, through ReLU when `relu`.
pub(crate) fn forward<T: Element>(g: &Geometry, x: &[T], w: &[T], b: &[T], relu: bool) -> Vec<T> {
    let mut y = vec![T::ZERO; g.n * g.output_len()];
    if y.is_empty() {
        return y;
    }
    let job = g.batch();
    let threads = if g.n <= job { Threads::All } else { Threads::One };
    let (patch, channels, plane) = (g.patch(), g.o / g.groups, g.oh * g.ow);
    y.par_chunks_mut(job * g.output_len()).zip(x.par_chunks(job * g.input_len())).for_each(|(y, x)| {
        let images = y.len() / g.output_len();
        for block in blocks(g, images) {
            let columns = block.columns(g);
            scratch(patch * columns, |buffer| {
                for group in 0..g.groups {
                    let weight = Mat::rows(&w[group * channels * patch..][..channels * patch], patch);
                    let matrix = patches(g, group, x, &block, buffer);
                    if block.images.len() == 1 {
                        let skip = group * channels * plane + block.rows.start * g.ow;
                        let out = &mut y[block.images.start * g.output_len() + skip..];
                        gemm(channels, columns, patch, weight, matrix, out, plane, false, threads);
                        continue;
                    }
                    scratch(channels * columns, |result| {
                        gemm(channels, columns, patch, weight, matrix, result, columns, false, threads);
                        for (index, image) in block.images.clone().enumerate() {
                            let out = &mut y[image * g.output_len() + group * channels * plane..][..channels * plane];
                            for (channel, values) in out.chunks_exact_mut(plane).enumerate() {
                                values.copy_from_slice(&result[channel * columns + index * plane..][..plane]);
                            }
                        }
                    });
                }
            });
        }
        for image in y.chunks_exact_mut(g.output_len()) {
            for (values, bias) in image.chunks_exact_mut(plane).zip(b) {
                if relu {
                    values.iter_mut().for_each(|v| *v = positive(*v + *bias));
                } else {
                    values.iter_mut().for_each(|v| *v += *bias);
                }
            }
        }
    });
    y
}

/// max(v, 0), letting a NaN through so that a diverging run is seen.
pub(crate) fn positive<T: Element>(v: T) -> T {
    if v < T::ZERO { T::ZERO } else { v }
}

/// The gradient before a ReLU whose output was `y`.
pub(crate) fn relu_backward<T: Element>(y: &[T], grad: &[T]) -> Vec<T> {
    y.iter().zip(grad).map(|(y, g)| if *y > T::ZERO { *g } else { T::ZERO }).collect()
}

/// What a backward pass computes: input, weight and bias gradients, each when asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) input: bool,
    pub(crate) weight: bool,
    pub(crate) bias: bool,
}

/// Gradients of [`forward`] without its ReLU; those not wanted are empty.
pub(crate) fn backward<T: Element>(g: &Geometry, x: &[T], w: &[T], dy: &[T], wanted: Wanted) -> (Vec<T>, Vec<T>, Vec<T>) {
    let mut dx = vec![T::ZERO; if wanted.input { g.n * g.input_len() } else { 0 }];
    let (patch, plane) = (g.patch(), g.oh * g.ow);
    let weights = if wanted.weight { g.o * patch } else { 0 };
    let mut dw = vec![T::ZERO; weights];
    let mut db = vec![T::ZERO; if wanted.bias { g.o } else { 0 }];
    if g.n * plane == 0 {
        return (dx, dw, db);
    }
    let images = g.job_images();
    let jobs = g.n.div_ceil(images);
    let mut dx_jobs: Vec<&mut [T]> = if wanted.input { dx.chunks_mut(images * g.input_len()).collect() } else { Vec::new() };
    dx_jobs.resize_with(jobs, Default::default);
    let parts: Vec<Vec<T>> = dx_jobs
        .into_par_iter()
        .zip(dy.par_chunks(images * g.output_len()))
        .enumerate()
        .map(|(job, (dx, dy))| {
            let images_here = dy.len() / g.output_len();
            // The input is read for the weights' gradient only; a transposed convolution has none at hand.
            let x = if wanted.weight { &x[job * images * g.input_len()..][..images_here * g.input_len()] } else { &[] };
            let mut dw = vec![T::ZERO; weights];
            for block in blocks(g, images_here) {
                for group in 0..g.groups {
                    block_backward(g, group, &block, x, w, dy, dx, &mut dw);
                }
            }
            dw
        })
        .collect();
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(to, from)| *to += from);
    }
    if wanted.bias {
        for image in dy.chunks_exact(g.output_len()) {
            for (sum, values) in db.iter_mut().zip(image.chunks_exact(plane)) {
                *sum += sum_of(values);
            }
        }
    }
    (dx, dw, db)
}

/// A sum in eight lanes: vectorised, and more accurate than one running sum.
fn sum_of<T: Element>(values: &[T]) -> T {
    let mut lanes = [T::ZERO; 8];
    let chunks = values.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += *v);
    }
    lanes.into_iter().sum::<T>() + rest.iter().copied().sum::<T>()
}

#[expect(clippy::too_many_arguments, reason = "operands and results of one block")]
fn block_backward<T: Element>(g: &Geometry, group: usize, block: &Block, x: &[T], w: &[T], dy: &[T], dx: &mut [T], dw: &mut [T]) {
    let (patch, channels) = (g.patch(), g.o / g.groups);
    let columns = block.columns(g);
    let gathered = if block.images.len() > 1 { channels * columns } else { 0 };
    scratch(gathered, |grads| {
        let grad = outputs(g, group, dy, block, grads);
        scratch(patch * columns, |buffer| {
            if !dw.is_empty() {
                let matrix = patches(g, group, x, block, buffer);
                let out = &mut dw[group * channels * patch..][..channels * patch];
                gemm(channels, patch, columns, grad, matrix.t(), out, patch, true, Threads::One);
            }
            if !dx.is_empty() && g.pointwise() && block.images.len() == 1 {
                let weight = Mat::rows(&w[group * channels * patch..][..channels * patch], patch);
                let at = block.images.start * g.input_len() + group * patch * g.h * g.w + block.rows.start * g.w;
                gemm(patch, columns, channels, weight.t(), grad, &mut dx[at..], g.h * g.w, false, Threads::One);
            } else if !dx.is_empty() {
                let weight = Mat::rows(&w[group * channels * patch..][..channels * patch], patch);
                gemm(patch, columns, channels, weight.t(), grad, buffer, columns, false, Threads::One);
                let len = g.c / g.groups * g.h * g.w;
                for (index, image) in block.images.clone().enumerate() {
                    let target = &mut dx[image * g.input_len() + group * len..][..len];
                    col2im(g, target, block.rows.clone(), buffer, columns, index * block.rows.len() * g.ow);
                }
            }
        });
    });
}
