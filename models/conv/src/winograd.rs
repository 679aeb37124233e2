//! 3×3 convolution of stride 1 by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2016): 36 products where the definition has
//! 144. Interpolated at 0, ±5/8, ±3/2 and ∞: in f32 the error is then twice the definition's, where the usual 0, ±1, ±2 give five
//! times (`tests/accuracy.rs`); all constants of the data's transforms are dyadic and so exact.
//!
//! Weights are transformed at each call, or once ([`Kernels`]) where they stay: the copy is four times their size.

use crate::gemm::{Mat, gemm};
use crate::scratch::scratch;
use crate::vector::{Fused, vectorised};
use crate::{Finish, Geometry, Scalar, Threads};
use rayon::prelude::*;

/// Side of a tile of outputs.
const TILE: usize = 4;
/// Side of a tile of inputs.
const SIDE: usize = TILE + 2;
/// Products per tile.
const PRODUCTS: usize = SIDE * SIDE;
/// Fewer channels than this on either side leave the transforms dearer than what they save.
const MIN_CHANNELS: usize = 16;
/// A block's tiles are a multiple of the widest vector, 16 f32, or padded to one.
const LANES: usize = 16;
/// Tiles in a block: as many as keep its two sets of products within [`BLOCK`] numbers, between these.
const BLOCK_TILES: (usize, usize) = (48, 512);
/// 6 MiB of f32.
const BLOCK: usize = 3 << 19;
/// What transforming the kernel of a pair of channels costs, in products: it writes and reads 36 numbers, beyond the cache where
/// channels are many (measured at 512 × 512).
const KERNEL_COST: usize = 1_500;
/// The most bytes that [`Kernels`] take: beyond, many channels' products outweigh the transform of their kernels.
const KEPT_BYTES: usize = 10 << 20;

/// The interpolation points besides 0 and ∞ are ±A and ±B.
const A: f64 = 0.625;
const B: f64 = 1.5;

/// The 3×3 kernels of a convolution or of its adjoint.
pub(crate) struct Taps<'a, T> {
    data: &'a [T],
    /// From one output channel to the next.
    outer: usize,
    /// From one input channel to the next.
    inner: usize,
    mirrored: bool,
}

impl<'a, T> Taps<'a, T> {
    /// `[o, c, 3, 3]` as they lie.
    pub(crate) fn straight(g: &Geometry, data: &'a [T]) -> Self {
        Self { data, outer: 9 * g.c, inner: 9, mirrored: false }
    }

    /// `[c, o, 3, 3]` mirrored, for `g` = [`Geometry::adjoint`].
    pub(crate) fn adjoint(g: &Geometry, data: &'a [T]) -> Self {
        Self { data, outer: 9, inner: 9 * g.o, mirrored: true }
    }
}

/// Transformed weights, for weights that many calls share.
#[derive(Clone, Debug)]
pub struct Kernels<T>(Vec<T>);

impl<T: Scalar> Kernels<T> {
    /// Those of the weight `[o, c/groups, kh, kw]` of `g`, whatever the size of its maps; `None` where they would not be used, or are large.
    ///
    /// # Panics
    /// When `w` has not the length that `g` says.
    pub fn new(g: &Geometry, w: &[T]) -> Option<Self> {
        assert_eq!(w.len(), g.o * g.patch(), "weight of {g:?}");
        let len = PRODUCTS * g.o * g.c;
        if !fits(g) || len * size_of::<T>() > KEPT_BYTES {
            return None;
        }
        let mut kernels = vec![T::ZERO; len];
        transform(g, &Taps::straight(g, w), &mut kernels, Threads::One);
        Some(Self(kernels))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<T>()
    }
}

/// Tiles of a plane, down and across.
fn tiles(g: &Geometry) -> (usize, usize) {
    (g.oh.div_ceil(TILE), g.ow.div_ceil(TILE))
}

/// Whether this way is one at all.
fn fits(g: &Geometry) -> bool {
    g.kh == 3 && g.kw == 3 && g.stride == 1 && g.groups == 1 && g.c.min(g.o) >= MIN_CHANNELS
}

/// Whether this way beats patches; `kept` kernels cost nothing.
pub(crate) fn pays(g: &Geometry, kept: bool) -> bool {
    let (down, across) = tiles(g);
    // Per pair of channels.
    let products = PRODUCTS * g.n * down * across;
    fits(g) && products + if kept { 0 } else { KERNEL_COST } < 9 * g.n * g.plane()
}

/// Rows of tiles in a block: the number whose tiles fill the lanes best.
fn block_rows(g: &Geometry) -> usize {
    let (down, across) = tiles(g);
    let most = (BLOCK / (PRODUCTS * (g.c + g.o))).clamp(BLOCK_TILES.0, BLOCK_TILES.1);
    let waste = |rows: usize| {
        let tiles = rows * across;
        // Few tiles share the weights' packing.
        (tiles.next_multiple_of(LANES) as f64 / tiles as f64) * (1.0 + 4.0 / tiles as f64)
    };
    (1..=(most / across).clamp(1, g.n * down)).min_by(|a, b| waste(*a).total_cmp(&waste(*b))).unwrap_or(1)
}

/// `y = x ⋆ taps`, then `finish`.
pub(crate) fn forward<T: Scalar>(g: &Geometry, x: &[T], taps: &Taps<'_, T>, finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    scratch(PRODUCTS * g.o * g.c, |kernels: &mut [T]| {
        transform(g, taps, kernels, threads);
        multiply(g, x, kernels, finish, y, threads);
    });
}

/// The same with kernels that were transformed before.
pub(crate) fn forward_kept<T: Scalar>(g: &Geometry, x: &[T], kernels: &Kernels<T>, finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    assert_eq!(kernels.0.len(), PRODUCTS * g.o * g.c, "kernels of {g:?}");
    multiply(g, x, &kernels.0, finish, y, threads);
}

/// All kernels: `[o, 36, c]`.
fn transform<T: Scalar>(g: &Geometry, taps: &Taps<'_, T>, kernels: &mut [T], threads: Threads) {
    threads.each(kernels.par_chunks_exact_mut(PRODUCTS * g.c).enumerate(), |(o, kernels)| {
        vectorised(KernelsOf { taps, o, c: g.c, kernels });
    });
}

fn multiply<T: Scalar>(g: &Geometry, x: &[T], kernels: &[T], finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    let (down, _) = tiles(g);
    // Of each row of tiles, its part of every output plane.
    let mut rows: Vec<Vec<&mut [T]>> = (0..g.n * down).map(|_| Vec::with_capacity(g.o)).collect();
    for (index, plane) in y.chunks_exact_mut(g.plane()).enumerate() {
        for (row, part) in plane.chunks_mut(TILE * g.ow).enumerate() {
            rows[index / g.o * down + row].push(part);
        }
    }
    let in_block = block_rows(g);
    let few = rows.len().div_ceil(in_block) < 2;
    let (between, within) = if few { (Threads::One, threads) } else { (threads, Threads::One) };
    between.each(rows.par_chunks_mut(in_block).enumerate(), |(index, rows)| {
        block(g, x, kernels, finish, index * in_block, rows, within);
    });
}

/// The block whose first row of tiles is `first` of all images' rows; `rows` holds its part of each output plane.
fn block<T: Scalar>(
    g: &Geometry,
    x: &[T],
    kernels: &[T],
    finish: Finish<'_, T>,
    first: usize,
    rows: &mut [Vec<&mut [T]>],
    within: Threads,
) {
    let (_, across) = tiles(g);
    let ld = (rows.len() * across).next_multiple_of(LANES);
    scratch(PRODUCTS * g.c * ld, |inputs: &mut [T]| {
        scratch(PRODUCTS * g.o * ld, |sums: &mut [T]| {
            scratch(2 * PRODUCTS * rows.len() * across + TILE * (across + 1), |buffer| {
                vectorised(InputsOf { g, x, first, count: rows.len(), buffer, inputs: &mut *inputs, ld });
            });
            let inputs = &*inputs;
            within.each(sums.par_chunks_exact_mut(g.o * ld).enumerate(), |(product, sums)| {
                let kernel = Mat { data: &kernels[product * g.c..], row: PRODUCTS * g.c, column: 1 };
                let input = Mat::rows(&inputs[product * g.c * ld..][..g.c * ld], ld);
                gemm(g.o, ld, g.c, kernel, input, sums, ld, false, Threads::One);
            });
            let tiles = rows.len() * across;
            scratch((TILE * SIDE + TILE * TILE) * tiles, |buffer| {
                vectorised(OutputsOf { g, sums: &*sums, ld, finish, first, buffer, rows });
            });
        });
    });
}

/// The kernels of one output channel, transformed.
struct KernelsOf<'a, T> {
    taps: &'a Taps<'a, T>,
    o: usize,
    c: usize,
    kernels: &'a mut [T],
}

impl<T: Scalar> Fused for KernelsOf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        transform_kernels(self.taps, self.o, self.c, self.kernels);
    }
}

/// The inputs of a block's `count` rows of tiles, transformed.
struct InputsOf<'a, T> {
    g: &'a Geometry,
    x: &'a [T],
    first: usize,
    count: usize,
    buffer: &'a mut [T],
    inputs: &'a mut [T],
    ld: usize,
}

impl<T: Scalar> Fused for InputsOf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { g, x, first, count, buffer, inputs, ld } = self;
        let (down, across) = tiles(g);
        for channel in 0..g.c {
            let planes = (first..first + count).map(|row| {
                let (image, row) = (row / down, row % down);
                (&x[(image * g.c + channel) * g.h * g.w..][..g.h * g.w], row)
            });
            transform_inputs(g, planes, across, buffer, &mut inputs[channel * ld..], g.c * ld);
        }
    }
}

/// The outputs of a block's rows of tiles from its products, finished.
struct OutputsOf<'a, 'y, T> {
    g: &'a Geometry,
    sums: &'a [T],
    ld: usize,
    finish: Finish<'a, T>,
    first: usize,
    buffer: &'a mut [T],
    rows: &'a mut [Vec<&'y mut [T]>],
}

impl<T: Scalar> Fused for OutputsOf<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { g, sums, ld, finish, first, buffer, rows } = self;
        let (down, across) = tiles(g);
        let tiles = rows.len() * across;
        let (middle, outputs) = buffer.split_at_mut(TILE * SIDE * tiles);
        for channel in 0..g.o {
            transform_sums(&sums[channel * ld..], g.o * ld, tiles, middle, outputs);
            for (index, parts) in rows.iter_mut().enumerate() {
                let (image, row) = ((first + index) / down, (first + index) % down);
                let plane = (image * g.o + channel) * g.plane();
                for (r, out) in parts[channel].chunks_mut(g.ow).enumerate() {
                    let sums = &outputs[(r * tiles + index * across) * TILE..][..g.ow];
                    finish.write(channel, plane + (row * TILE + r) * g.ow, sums, out);
                }
            }
        }
    }
}

/// One direction of the inputs' transform `Bᵀd`.
#[inline(always)]
fn inputs_1d<T: Scalar>(d: [T; SIDE]) -> [T; SIDE] {
    let c = |v: f64| T::of(v);
    let (a2, b2) = (A * A, B * B);
    let even = c(a2 * b2) * d[0] - c(a2 + b2) * d[2] + d[4];
    let odd = c(a2 * b2) * d[1] - c(a2 + b2) * d[3] + d[5];
    let (s1, e1) = (d[4] - c(b2) * d[2], c(A) * d[3] - c(A * b2) * d[1]);
    let (s2, e2) = (d[4] - c(a2) * d[2], c(B) * d[3] - c(B * a2) * d[1]);
    [even, s1 + e1, s1 - e1, s2 + e2, s2 - e2, odd]
}

/// One direction of the outputs' transform `Aᵀm`.
#[inline(always)]
fn sums_1d<T: Scalar>(m: [T; SIDE]) -> [T; TILE] {
    let c = |v: f64| T::of(v);
    let (s1, e1, s2, e2) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
    [m[0] + s1 + s2, c(A) * e1 + c(B) * e2, c(A * A) * s1 + c(B * B) * s2, c(A * A * A) * e1 + c(B * B * B) * e2 + m[5]]
}

/// One direction of the kernels' transform `Gg`.
#[inline(always)]
fn kernels_1d<T: Scalar>(g: [T; 3]) -> [T; SIDE] {
    let c = |v: f64| T::of(v);
    let (a2, b2) = (A * A, B * B);
    let (fa, fb) = (2.0 * a2 * (a2 - b2), 2.0 * b2 * (b2 - a2));
    let (sa, ea) = (c(1.0 / fa) * g[0] + c(a2 / fa) * g[2], c(A / fa) * g[1]);
    let (sb, eb) = (c(1.0 / fb) * g[0] + c(b2 / fb) * g[2], c(B / fb) * g[1]);
    [c(1.0 / (a2 * b2)) * g[0], sa + ea, sa - ea, sb + eb, sb - eb, g[2]]
}

/// The kernels of output channel `o`: `[36, c]`.
#[inline(always)]
fn transform_kernels<T: Scalar>(taps: &Taps<'_, T>, o: usize, c: usize, out: &mut [T]) {
    scratch((9 + 3 * SIDE) * c, |buffer| {
        let (gathered, middle) = buffer.split_at_mut(9 * c);
        for channel in 0..c {
            let kernel = &taps.data[o * taps.outer + channel * taps.inner..][..9];
            for (tap, value) in kernel.iter().enumerate() {
                gathered[if taps.mirrored { 8 - tap } else { tap } * c + channel] = *value;
            }
        }
        for column in 0..3 {
            let rows = std::array::from_fn(|row| &gathered[(row * 3 + column) * c..][..c]);
            let mut parts = middle.chunks_exact_mut(c).skip(column).step_by(3);
            along(rows, std::array::from_fn(|_| parts.next().unwrap_or_default()), kernels_1d);
        }
        for (row, out) in middle.chunks_exact(3 * c).zip(out.chunks_exact_mut(SIDE * c)) {
            let columns = std::array::from_fn(|column| &row[column * c..][..c]);
            let mut parts = out.chunks_exact_mut(c);
            along(columns, std::array::from_fn(|_| parts.next().unwrap_or_default()), kernels_1d);
        }
    });
}

/// `to[·][i] = f(from[·][i])` for every `i`.
#[inline(always)]
fn along<T: Scalar, const N: usize, const M: usize>(from: [&[T]; N], to: [&mut [T]; M], f: impl Fn([T; N]) -> [T; M]) {
    let len = to.iter().map(|part| part.len()).chain(from.iter().map(|part| part.len())).min().unwrap_or(0);
    let from = from.map(|part| &part[..len]);
    let mut to = to.map(|part| &mut part[..len]);
    for i in 0..len {
        let values = f(std::array::from_fn(|n| from[n][i]));
        for (part, value) in to.iter_mut().zip(values) {
            part[i] = value;
        }
    }
}

/// One channel's tiles: of each plane a row of `across` tiles, to `out[p · step + tile]` for product `p`.
///
/// Columns are held apart by their place in a tile, `[6 rows, 6 places, tiles]`, so that every step runs over whole vectors.
#[inline(always)]
fn transform_inputs<'a, T: Scalar>(
    g: &Geometry,
    planes: impl ExactSizeIterator<Item = (&'a [T], usize)>,
    across: usize,
    buffer: &mut [T],
    out: &mut [T],
    step: usize,
) {
    let tiles = planes.len() * across;
    let (line, buffer) = buffer.split_at_mut(TILE * (across + 1));
    let (apart, down) = buffer.split_at_mut(PRODUCTS * tiles);
    let inside = g.w.min(line.len() - g.padding);
    line.fill(T::ZERO);
    for (index, (plane, row)) in planes.enumerate() {
        for (side, apart) in apart.chunks_exact_mut(SIDE * tiles).enumerate() {
            let mut places = apart.chunks_exact_mut(tiles).map(|place| &mut place[index * across..][..across]);
            match (row * TILE + side).checked_sub(g.padding).filter(|y| *y < g.h) {
                Some(y) => {
                    line[g.padding..g.padding + inside].copy_from_slice(&plane[y * g.w..][..inside]);
                    let mut next = || places.next().unwrap_or_default();
                    let (p0, p1, p2, p3, p4, p5) = (next(), next(), next(), next(), next(), next());
                    let four = p0.iter_mut().zip(&mut *p1).zip(p2).zip(p3);
                    for ((((a, b), c), d), four) in four.zip(line.chunks_exact(TILE)) {
                        (*a, *b, *c, *d) = (four[0], four[1], four[2], four[3]);
                    }
                    // The last two places are the first two of the next tile.
                    for (place, (from, to)) in [(&*p0, p4), (&*p1, p5)].into_iter().enumerate() {
                        to[..across - 1].copy_from_slice(&from[1..]);
                        to[across - 1] = line[TILE * across + place];
                    }
                }
                None => places.for_each(|place| place.fill(T::ZERO)),
            }
        }
    }
    let all = SIDE * tiles;
    {
        let from = std::array::from_fn(|side| &apart[side * all..][..all]);
        let mut parts = down.chunks_exact_mut(all);
        along(from, std::array::from_fn(|_| parts.next().unwrap_or_default()), inputs_1d);
    }
    for (from, out) in down.chunks_exact(all).zip(out.chunks_mut(SIDE * step)) {
        let mut parts = out.chunks_mut(step).map(|part| &mut part[..tiles]);
        let from = std::array::from_fn(|place| &from[place * tiles..][..tiles]);
        along(from, std::array::from_fn(|_| parts.next().unwrap_or_default()), inputs_1d);
    }
}

/// One channel's outputs, `[4 rows, tiles, 4 columns]`, from its products: product `p` of a tile lies at `sums[p · step + tile]`.
#[inline(always)]
fn transform_sums<T: Scalar>(sums: &[T], step: usize, tiles: usize, middle: &mut [T], outputs: &mut [T]) {
    for column in 0..SIDE {
        let from = std::array::from_fn(|row| &sums[(row * SIDE + column) * step..][..tiles]);
        let mut parts = middle.chunks_exact_mut(tiles).skip(column).step_by(SIDE);
        along(from, std::array::from_fn(|_| parts.next().unwrap_or_default()), sums_1d::<T>);
    }
    for (row, out) in middle.chunks_exact(SIDE * tiles).zip(outputs.chunks_exact_mut(TILE * tiles)) {
        let from: [&[T]; SIDE] = std::array::from_fn(|column| &row[column * tiles..][..tiles]);
        for (tile, four) in out.chunks_exact_mut(TILE).enumerate() {
            four.copy_from_slice(&sums_1d(std::array::from_fn(|column| from[column][tile])));
        }
    }
}
