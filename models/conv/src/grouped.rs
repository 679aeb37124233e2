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
    let (channels, inner) = (g.channels(), g.c / g.groups);
    let offset = |k: usize| k / (g.kh * g.kw) * layout.per_channel() + layout.tap(k / g.kw % g.kh, k % g.kw);
    let taps: Vec<usize> = (0..g.patch()).map(offset).collect();
    threads.each(y.par_chunks_exact_mut(channels * g.plane()).enumerate(), |(index, y)| {
        let (image, group) = (index / g.groups, index % g.groups);
        let x = &x[image * g.input_len() + group * inner * g.h * g.w..][..inner * g.h * g.w];
        let w = &w[group * channels * g.patch()..][..channels * g.patch()];
        // Beyond the last channel, the last once more.
        let weight = |o: usize, k: usize| w[o.min(channels - 1) * g.patch() + k];
        let of = |start: usize| (0..g.patch()).map(|k| std::array::from_fn(|o| weight(start + o, k))).collect();
        let weights: Vec<Vec<[T; OUTPUTS]>> = (0..channels).step_by(OUTPUTS).map(of).collect();
        for first in (0..g.oh).step_by(layout.rows) {
            let rows = layout.rows.min(g.oh - first);
            scratch(inner * layout.per_channel(), |buffer| {
                layout.fill(g, x, first, buffer);
                let positions = (rows * layout.columns).next_multiple_of(LANES);
                scratch(OUTPUTS * positions, |sums| {
                    for (start, weights) in (0..channels).step_by(OUTPUTS).zip(&weights) {
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
                });
            });
        }
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
}

impl Layout {
    fn new(g: &Geometry) -> Self {
        let columns = g.ow + (g.kw - 1) / g.stride;
        let rows = (BLOCK / (g.c / g.groups * columns * g.stride * g.stride)).clamp(1, g.oh);
        Self { rows, down: rows + (g.kh - 1) / g.stride, columns, stride: g.stride }
    }

    fn per_place(&self) -> usize {
        // The last vector reaches past the last position.
        self.down * self.columns + LANES
    }

    fn per_channel(&self) -> usize {
        self.stride * self.stride * self.per_place()
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
                // The layout reaches a vector past the last position.
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

#[inline(always)]
fn add<T: Scalar, const FMA: bool>(value: T, weight: T, to: T) -> T {
    if FMA { value.mul_add(weight, to) } else { to + value * weight }
}
