//! 3×3 convolution of stride 1 by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2016): 36 products where the definition has
//! 144. Interpolated at 0, ±5/8, ±3/2 and ∞: in f32 the error is then twice the definition's, where the usual 0, ±1, ±2 give five
//! times (`tests/accuracy.rs`); all constants of the data's transforms are dyadic and so exact.
//!
//! Weights are transformed at each call, or once ([`crate::Kernels`]) where they stay: the copy is four times their size.

use crate::product::{Left, Right, Sums, interleave, left_len, product, tile};
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
/// The most tiles in a block: as many as keep its two sets of products within [`BLOCK`] numbers, between these.
const BLOCK_TILES: (usize, usize) = (48, 512);
/// 6 MiB of f32.
const BLOCK: usize = 3 << 19;
/// What a block's reading of the kernels costs, in tiles, roughly.
const KERNELS_TILES: usize = 4;
/// So many tiles may share the reading of kernels of more than twice [`BLOCK`] numbers, which no cache holds.
const SHARING_TILES: usize = 224;
/// What transforming the kernel of a pair of channels costs, in products: it writes and reads 36 numbers, beyond the cache where
/// channels are many (measured at 512 × 512).
const KERNEL_COST: usize = 1_500;

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

/// Tiles of a plane, down and across.
fn tiles(g: &Geometry) -> (usize, usize) {
    (g.oh.div_ceil(TILE), g.ow.div_ceil(TILE))
}

/// Whether this way is one at all.
pub(crate) fn fits(g: &Geometry) -> bool {
    g.kh == 3 && g.kw == 3 && g.stride == 1 && g.groups == 1 && g.c.min(g.o) >= MIN_CHANNELS
}

/// Whether this way beats patches; `kept` kernels cost nothing.
pub(crate) fn pays(g: &Geometry, kept: bool) -> bool {
    let (down, across) = tiles(g);
    // Per pair of channels.
    let products = PRODUCTS * g.n * down * across;
    fits(g) && products + if kept { 0 } else { KERNEL_COST } < 9 * g.n * g.plane()
}

/// Rows of tiles in a block: the number with which `workers` are done first, the tiles of a block being padded to panels of `columns`.
fn block_rows(g: &Geometry, columns: usize, workers: usize) -> usize {
    let (down, across) = tiles(g);
    let least = if PRODUCTS * g.c * g.o > 2 * BLOCK { SHARING_TILES } else { BLOCK_TILES.0 };
    let most = (BLOCK / (PRODUCTS * (g.c + g.o))).clamp(least, BLOCK_TILES.1);
    let all = g.n * down;
    // Reading the kernels costs a block what some more tiles would.
    let cost = |rows: usize| (rows * across).next_multiple_of(columns) + KERNELS_TILES;
    let time = |rows: usize| {
        let (blocks, rest) = (all.div_ceil(rows), all % rows);
        let alone = blocks % workers == 1 % workers && rest > 0;
        blocks.div_ceil(workers) * cost(rows) - if alone { cost(rows) - cost(rest) } else { 0 }
    };
    (1..=(most / across).clamp(1, all)).rev().min_by_key(|rows| time(*rows)).unwrap_or(1)
}

/// `y = x ⋆ taps`, then `finish`.
pub(crate) fn forward<T: Scalar>(g: &Geometry, x: &[T], taps: &Taps<'_, T>, finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    scratch(kernels_len::<T>(g), |kernels: &mut [T]| {
        transform(g, taps, kernels, threads);
        forward_transformed(g, x, kernels, finish, y, threads);
    });
}

/// Numbers of all transformed kernels.
pub(crate) fn kernels_len<T: Scalar>(g: &Geometry) -> usize {
    PRODUCTS * left_len::<T>(g.o, g.c)
}

/// All kernels, as left operands: of each panel of output channels `[36, c, channels of a panel]`.
pub(crate) fn transform<T: Scalar>(g: &Geometry, taps: &Taps<'_, T>, kernels: &mut [T], threads: Threads) {
    let rows = tile::<T>().0;
    threads.each(kernels.par_chunks_exact_mut(PRODUCTS * g.c * rows).enumerate(), |(panel, kernels)| {
        let first = panel * rows;
        let count = rows.min(g.o - first);
        scratch(count * PRODUCTS * g.c, |apart| {
            vectorised(KernelsOf { taps, first, c: g.c, kernels: &mut *apart });
            interleave(apart, PRODUCTS * g.c, kernels);
        });
    });
}

/// [`forward`] with kernels that were transformed before.
pub(crate) fn forward_transformed<T: Scalar>(g: &Geometry, x: &[T], kernels: &[T], finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    let (down, _) = tiles(g);
    // Of each row of tiles, its part of every output plane.
    let mut rows: Vec<Vec<&mut [T]>> = (0..g.n * down).map(|_| Vec::with_capacity(g.o)).collect();
    for (index, plane) in y.chunks_exact_mut(g.plane()).enumerate() {
        for (row, part) in plane.chunks_mut(TILE * g.ow).enumerate() {
            rows[index / g.o * down + row].push(part);
        }
    }
    let workers = if threads == Threads::All { rayon::current_num_threads() } else { 1 };
    let in_block = block_rows(g, tile::<T>().1, workers);
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
    let (channels, columns) = tile::<T>();
    let ld = (rows.len() * across).next_multiple_of(columns);
    scratch(PRODUCTS * g.c * ld, |inputs: &mut [T]| {
        scratch(PRODUCTS * g.o * ld, |sums: &mut [T]| {
            scratch(inputs_buffer(ld, rows.len()), |buffer| {
                vectorised(InputsOf { g, x, first, count: rows.len(), buffer, inputs: &mut *inputs, ld, columns });
            });
            let inputs = &*inputs;
            within.each(sums.par_chunks_exact_mut(g.o * ld).enumerate(), |(product_of, sums)| {
                let left = Left { data: &kernels[product_of * g.c * channels..], stride: PRODUCTS * g.c * channels };
                let right = Right::Panels(&inputs[product_of * g.c * ld..][..g.c * ld]);
                product((g.o, g.c, ld), left, right, &mut [], &mut Sums(sums, ld));
            });
            let tiles = rows.len() * across;
            scratch((TILE * SIDE + TILE * TILE) * tiles, |buffer| {
                vectorised(OutputsOf { g, sums: &*sums, ld, finish, first, buffer, rows });
            });
        });
    });
}

/// The kernels of output channels from `first` on, transformed: `[channels, 36, c]`.
struct KernelsOf<'a, T> {
    taps: &'a Taps<'a, T>,
    first: usize,
    c: usize,
    kernels: &'a mut [T],
}

impl<T: Scalar> Fused for KernelsOf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (o, kernels) in self.kernels.chunks_exact_mut(PRODUCTS * self.c).enumerate() {
            transform_kernels(self.taps, self.first + o, self.c, kernels);
        }
    }
}

/// The inputs of a block's `count` rows of tiles, transformed: of each product a right operand of `ld` tiles in panels of `columns`.
struct InputsOf<'a, T> {
    g: &'a Geometry,
    x: &'a [T],
    first: usize,
    count: usize,
    buffer: &'a mut [T],
    inputs: &'a mut [T],
    ld: usize,
    columns: usize,
}

impl<T: Scalar> Fused for InputsOf<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let (down, _) = tiles(self.g);
        for channel in 0..self.g.c {
            let planes = (self.first..self.first + self.count).map(|row| {
                let (image, row) = (row / down, row % down);
                (&self.x[(image * self.g.c + channel) * self.g.h * self.g.w..][..self.g.h * self.g.w], row)
            });
            let out = &mut self.inputs[channel * self.columns..];
            match self.columns {
                32 => transform_inputs::<T, 32>(self.g, planes, self.ld, self.buffer, out),
                16 => transform_inputs::<T, 16>(self.g, planes, self.ld, self.buffer, out),
                8 => transform_inputs::<T, 8>(self.g, planes, self.ld, self.buffer, out),
                _ => transform_inputs::<T, 4>(self.g, planes, self.ld, self.buffer, out),
            }
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

/// What [`transform_inputs`] of `count` rows of tiles, `ld` in all, works in: twice the lines and what they have beyond their tiles, and
/// a line's places.
fn inputs_buffer(ld: usize, count: usize) -> usize {
    2 * SIDE * (TILE * ld + 2 * count) + SIDE * ld
}

/// One channel's tiles, of each plane a row of them, to `out`, which begins at the channel's row of the first panel: `C` tiles of product
/// `p` from tile `t` on go to `p · c · ld + t · c`.
///
/// The lines of all rows of tiles lie behind each other, then apart by their columns' place in a tile, so that every step runs over many
/// tiles.
#[inline(always)]
fn transform_inputs<'a, T: Scalar, const C: usize>(
    g: &Geometry,
    planes: impl ExactSizeIterator<Item = (&'a [T], usize)>,
    ld: usize,
    buffer: &mut [T],
    out: &mut [T],
) {
    let (_, across) = tiles(g);
    let count = planes.len();
    let tiles = count * across;
    // Four columns of each tile, and two more of a row's last.
    let line = TILE * ld + 2 * count;
    let (lines, buffer) = buffer.split_at_mut(SIDE * line);
    let (down, places) = buffer.split_at_mut(SIDE * line);
    let width = TILE * across;
    for (index, (plane, row)) in planes.enumerate() {
        for (side, line) in lines.chunks_exact_mut(line).enumerate() {
            let (line, beyond) = line.split_at_mut(TILE * ld);
            let (line, beyond) = (&mut line[index * width..][..width], &mut beyond[2 * index..][..2]);
            let Some(y) = (row * TILE + side).checked_sub(g.padding).filter(|y| *y < g.h) else {
                line.fill(T::ZERO);
                beyond.fill(T::ZERO);
                continue;
            };
            let from = &plane[y * g.w..][..g.w];
            let inside = g.w.min(width - g.padding);
            line[..g.padding].fill(T::ZERO);
            line[g.padding..][..inside].copy_from_slice(&from[..inside]);
            line[g.padding + inside..].fill(T::ZERO);
            for (column, beyond) in (width - g.padding..).zip(beyond) {
                *beyond = from.get(column).copied().unwrap_or(T::ZERO);
            }
        }
    }
    {
        let from = std::array::from_fn(|side| &lines[side * line..][..line]);
        let mut parts = down.chunks_exact_mut(line);
        along(from, std::array::from_fn(|_| parts.next().unwrap_or_default()), inputs_1d);
    }
    let (out, _) = out.as_chunks_mut::<C>();
    for (row, line) in down.chunks_exact(line).enumerate() {
        let (line, beyond) = line.split_at(TILE * ld);
        apart(&line[..TILE * tiles], across, beyond, ld, places);
        let places: [&[[T; C]]; SIDE] = std::array::from_fn(|place| places[place * ld..][..ld].as_chunks().0);
        for panel in 0..ld / C {
            let from = places.map(|place| &place[panel]);
            let mut to = [[T::ZERO; C]; SIDE];
            for i in 0..C {
                let values = inputs_1d(std::array::from_fn(|place| from[place][i]));
                (0..SIDE).for_each(|place| to[place][i] = values[place]);
            }
            for (place, to) in to.into_iter().enumerate() {
                out[((row * SIDE + place) * (ld / C) + panel) * g.c] = to;
            }
        }
    }
}

/// A line's columns by their place in a tile, `[6, ld]`; `beyond` are the two after each row of `across` tiles.
#[inline(always)]
fn apart<T: Scalar>(line: &[T], across: usize, beyond: &[T], ld: usize, places: &mut [T]) {
    let (fours, _) = line.as_chunks::<TILE>();
    let tiles = fours.len();
    let mut parts = places.chunks_exact_mut(ld).map(|place| &mut place[..tiles]);
    let mut next = || parts.next().unwrap_or_default();
    let (p0, p1, p2, p3, p4, p5) = (next(), next(), next(), next(), next(), next());
    for (tile, four) in fours.iter().enumerate() {
        (p0[tile], p1[tile], p2[tile], p3[tile]) = (four[0], four[1], four[2], four[3]);
    }
    // The last two places are the first two of the next tile.
    p4[..tiles - 1].copy_from_slice(&p0[1..]);
    p5[..tiles - 1].copy_from_slice(&p1[1..]);
    for (index, beyond) in beyond.as_chunks::<2>().0.iter().enumerate() {
        let last = index * across + across - 1;
        (p4[last], p5[last]) = (beyond[0], beyond[1]);
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
        let (fours, _) = out.as_chunks_mut::<TILE>();
        let fours = &mut fours[..tiles];
        for tile in 0..tiles {
            fours[tile] = sums_1d(std::array::from_fn(|column| from[column][tile]));
        }
    }
}
