//! Groups of few channels (ResNeXt), directly: four output channels at a time, their sums of a vector of positions in registers.
//!
//! The padded input of a group is laid out by its row's and column's place in a step, `[c, stride, stride, rows, columns]`, flat:
//! what a kernel tap needs of all output positions is then one contiguous run, and the few positions between the rows are computed
//! and dropped.

use crate::scratch::scratch;
use crate::vector::{Fused, vectorised};
use crate::{Finish, Geometry, Scalar, Threads};
use rayon::prelude::*;

/// More channels per group than this fill a matrix product.
const MAX_CHANNELS: usize = 32;
/// Output channels at a time.
const OUTPUTS: usize = 4;
/// Taps of the weight's gradient at a time: a row of most kernels.
const TAPS: usize = 3;
/// Positions at a time: one of the widest vectors.
const LANES: usize = 16;
/// Numbers of a group's rows at a time: 256 KiB of f32.
const BLOCK: usize = 65_536;

/// Whether this way beats patches.
pub(crate) fn pays(g: &Geometry) -> bool {
    let inner = g.c / g.groups;
    g.groups > 1 && inner <= MAX_CHANNELS && g.channels() <= MAX_CHANNELS && g.kh * g.kw > 1
}

/// `y = x ⋆ w`, then `finish`.
pub(crate) fn forward<T: Scalar>(g: &Geometry, x: &[T], w: &[T], finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    let layout = Layout::new(g);
    let (channels, inner, taps) = (g.channels(), g.c / g.groups, layout.taps(g));
    // Of each group and its channels, four at a time: beyond the last one, the last once more.
    let quads = channels.div_ceil(OUTPUTS);
    let mut weights = Vec::with_capacity(g.groups * quads * g.patch());
    for (group, start) in (0..g.groups).flat_map(|group| (0..channels).step_by(OUTPUTS).map(move |start| (group, start))) {
        let of: [&[T]; OUTPUTS] =
            std::array::from_fn(|o| &w[(group * channels + (start + o).min(channels - 1)) * g.patch()..][..g.patch()]);
        weights.extend((0..g.patch()).map(|k| of.map(|w| w[k])));
    }
    threads.each(y.par_chunks_exact_mut(channels * g.plane()).enumerate(), |(index, y)| {
        let (image, group) = (index / g.groups, index % g.groups);
        let x = &x[image * g.input_len() + group * inner * g.h * g.w..][..inner * g.h * g.w];
        let weights = &weights[group * quads * g.patch()..][..quads * g.patch()];
        scratch(inner * layout.per_channel(), |buffer| {
            scratch(OUTPUTS * layout.positions(layout.rows), |sums| {
                for first in (0..g.oh).step_by(layout.rows) {
                    let rows = layout.rows.min(g.oh - first);
                    let positions = layout.positions(rows);
                    let sums = &mut sums[..OUTPUTS * positions];
                    layout.fill(g, x, first, buffer);
                    for (start, weights) in (0..channels).step_by(OUTPUTS).zip(weights.chunks_exact(g.patch())) {
                        vectorised(Sums { taps: &taps, weights, buffer: &*buffer, sums: &mut *sums });
                        for (o, sums) in (start..channels).zip(sums.chunks_exact(positions)) {
                            for row in 0..rows {
                                let at = o * g.plane() + (first + row) * g.ow;
                                let channel = group * channels + o;
                                let whole = image * g.output_len() + channel * g.plane() + (first + row) * g.ow;
                                finish.write(channel, whole, &sums[row * layout.columns..][..g.ow], &mut y[at..at + g.ow]);
                            }
                        }
                    }
                }
            });
        });
    });
}

/// The weights of the adjoint convolution: of each group, the kernels mirrored and its channels exchanged.
pub(crate) fn mirrored<T: Scalar>(g: &Geometry, w: &[T]) -> Vec<T> {
    let (inner, channels, taps) = (g.c / g.groups, g.channels(), g.kh * g.kw);
    let mut adjoint = vec![T::ZERO; w.len()];
    for (to, from) in adjoint.chunks_exact_mut(channels * g.patch()).zip(w.chunks_exact(channels * g.patch())) {
        for (index, kernel) in from.chunks_exact(taps).enumerate() {
            let (o, c) = (index / inner, index % inner);
            let to = &mut to[(c * channels + o) * taps..][..taps];
            to.iter_mut().rev().zip(kernel).for_each(|(to, from)| *to = *from);
        }
    }
    adjoint
}

/// `dw = Σ dy ⋆ x` over all images and positions, a group to a task: no sum depends on the number of threads.
pub(crate) fn weight_gradient<T: Scalar>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    let layout = Layout::new(g);
    let (channels, inner, taps) = (g.channels(), g.c / g.groups, layout.taps(g));
    let (of_image, positions) = (inner * layout.per_channel(), layout.positions(layout.rows));
    // Small maps share a block among several images: the lanes of a sum are added up but once for each block.
    let images = if layout.rows < g.oh { 1 } else { (BLOCK / of_image).clamp(1, g.n) };
    dw.par_chunks_exact_mut(channels * g.patch()).enumerate().for_each(|(group, dw)| {
        scratch(images * of_image, |buffer| {
            scratch(images * positions, |grad| {
                for start in (0..g.n).step_by(images) {
                    let count = images.min(g.n - start);
                    for first in (0..g.oh).step_by(layout.rows) {
                        let rows = layout.rows.min(g.oh - first);
                        for (image, buffer) in (start..).zip(buffer.chunks_exact_mut(of_image).take(count)) {
                            let x = &x[image * g.input_len() + group * inner * g.h * g.w..][..inner * g.h * g.w];
                            layout.fill(g, x, first, buffer);
                        }
                        for (o, dw) in dw.chunks_exact_mut(g.patch()).enumerate() {
                            // Nought between the rows, where a tap's run has what belongs to no output.
                            let grad = &mut grad[..count * positions];
                            grad.fill(T::ZERO);
                            for (image, grad) in (start..).zip(grad.chunks_exact_mut(positions)) {
                                let at = image * g.output_len() + (group * channels + o) * g.plane() + first * g.ow;
                                for (to, from) in grad.chunks_mut(layout.columns).zip(dy[at..][..rows * g.ow].chunks_exact(g.ow)) {
                                    to[..g.ow].copy_from_slice(from);
                                }
                            }
                            vectorised(Products { taps: &taps, buffer: &*buffer, of_image, grad: &*grad, positions, sums: dw });
                        }
                    }
                }
            });
        });
    });
}

/// How a block of a group's input lies.
struct Layout {
    /// Output rows of a block.
    rows: usize,
    /// Rows per place.
    down: usize,
    /// Columns per place, and so the distance from one output row to the next.
    columns: usize,
    stride: usize,
    /// Numbers after a place's rows: the last tap's last vector reaches so far.
    tail: usize,
}

impl Layout {
    fn new(g: &Geometry) -> Self {
        let columns = g.ow + (g.kw - 1) / g.stride;
        let rows = (BLOCK / (g.c / g.groups * columns * g.stride * g.stride)).clamp(1, g.oh);
        Self { rows, down: rows + (g.kh - 1) / g.stride, columns, stride: g.stride, tail: LANES + (g.kw - 1) / g.stride }
    }

    fn per_place(&self) -> usize {
        self.down * self.columns + self.tail
    }

    fn per_channel(&self) -> usize {
        self.stride * self.stride * self.per_place()
    }

    /// Positions of so many output rows, those between them included: whole vectors.
    fn positions(&self, rows: usize) -> usize {
        (rows * self.columns).next_multiple_of(LANES)
    }

    /// Where the input of each channel and tap begins for output position 0.
    fn taps(&self, g: &Geometry) -> Vec<usize> {
        let offset = |k: usize| k / (g.kh * g.kw) * self.per_channel() + self.tap(k / g.kw % g.kh, k % g.kw);
        (0..g.patch()).map(offset).collect()
    }

    /// Where the input of tap `(ky, kx)` for output position 0 lies in a channel's numbers.
    fn tap(&self, ky: usize, kx: usize) -> usize {
        (ky % self.stride * self.stride + kx % self.stride) * self.per_place() + ky / self.stride * self.columns + kx / self.stride
    }

    fn fill<T: Scalar>(&self, g: &Geometry, x: &[T], first: usize, buffer: &mut [T]) {
        let s = self.stride;
        buffer.fill(T::ZERO);
        for (plane, buffer) in x.chunks_exact(g.h * g.w).zip(buffer.chunks_exact_mut(self.per_channel())) {
            for (place, buffer) in buffer.chunks_exact_mut(self.per_place()).enumerate() {
                let (down, across) = (place / s, place % s);
                for (row, line) in buffer.chunks_exact_mut(self.columns).take(self.down).enumerate() {
                    let Some(y) = ((first + row) * s + down).checked_sub(g.padding).filter(|y| *y < g.h) else { continue };
                    // The first column whose source lies inside.
                    let skip = g.padding.saturating_sub(across).div_ceil(s);
                    let source = &plane[y * g.w..][..g.w];
                    let from = (skip * s + across - g.padding).min(g.w);
                    if s == 1 {
                        let (to, from) = (&mut line[skip..], &source[from..]);
                        let count = to.len().min(from.len());
                        to[..count].copy_from_slice(&from[..count]);
                        continue;
                    }
                    for (to, from) in line.iter_mut().skip(skip).zip(source[from..].iter().step_by(s)) {
                        *to = *from;
                    }
                }
            }
        }
    }
}

/// The sums of four output channels at all positions.
struct Sums<'a, T> {
    /// Where the input of each channel and tap begins.
    taps: &'a [usize],
    /// The four channels' weights of each channel and tap.
    weights: &'a [[T; OUTPUTS]],
    buffer: &'a [T],
    /// `[4, positions]`.
    sums: &'a mut [T],
}

impl<T: Scalar> Fused for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { taps, weights, buffer, sums } = self;
        let (positions, zeros) = (sums.len() / OUTPUTS, [T::ZERO; LANES]);
        for at in (0..positions).step_by(LANES) {
            let [mut a, mut b, mut c, mut d] = [zeros; OUTPUTS];
            for (from, [wa, wb, wc, wd]) in taps.iter().zip(weights) {
                // There always is one: the layout reaches past the last position.
                let values = buffer[from + at..].first_chunk::<LANES>().unwrap_or(&zeros);
                // One array to a statement: each then stays in a register.
                a = std::array::from_fn(|i| add::<T, FMA>(values[i], *wa, a[i]));
                b = std::array::from_fn(|i| add::<T, FMA>(values[i], *wb, b[i]));
                c = std::array::from_fn(|i| add::<T, FMA>(values[i], *wc, c[i]));
                d = std::array::from_fn(|i| add::<T, FMA>(values[i], *wd, d[i]));
            }
            for (acc, sums) in [a, b, c, d].iter().zip(sums.chunks_exact_mut(positions)) {
                sums[at..at + LANES].copy_from_slice(acc);
            }
        }
    }
}

/// The products of one output channel's gradient with what each tap saw, added to the sums.
struct Products<'a, T> {
    /// Where the input of each channel and tap begins.
    taps: &'a [usize],
    /// `[images, of_image]`.
    buffer: &'a [T],
    of_image: usize,
    /// `[images, positions]`, whole vectors.
    grad: &'a [T],
    positions: usize,
    /// `[taps]`.
    sums: &'a mut [T],
}

impl<T: Scalar> Fused for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { taps, buffer, of_image, grad, positions, sums } = self;
        let zeros = [T::ZERO; LANES];
        for (taps, sums) in taps.chunks(TAPS).zip(sums.chunks_mut(TAPS)) {
            // Beyond the last tap, the last once more.
            let [ka, kb, kc] = std::array::from_fn(|k| taps[k.min(taps.len() - 1)]);
            let [mut a, mut b, mut c] = [zeros; TAPS];
            for (grad, buffer) in grad.chunks_exact(positions).zip(buffer.chunks_exact(of_image)) {
                for (grad, at) in grad.chunks_exact(LANES).zip((0..).step_by(LANES)) {
                    let grad = grad.first_chunk::<LANES>().unwrap_or(&zeros);
                    let of = |tap: usize| buffer[tap + at..].first_chunk::<LANES>().unwrap_or(&zeros);
                    let (xa, xb, xc) = (of(ka), of(kb), of(kc));
                    a = std::array::from_fn(|i| add::<T, FMA>(xa[i], grad[i], a[i]));
                    b = std::array::from_fn(|i| add::<T, FMA>(xb[i], grad[i], b[i]));
                    c = std::array::from_fn(|i| add::<T, FMA>(xc[i], grad[i], c[i]));
                }
            }
            for (sum, lanes) in sums.iter_mut().zip([a, b, c]) {
                *sum += lanes.into_iter().sum::<T>();
            }
        }
    }
}

#[inline(always)]
fn add<T: Scalar, const FMA: bool>(value: T, weight: T, to: T) -> T {
    if FMA { value.mul_add(weight, to) } else { to + value * weight }
}
