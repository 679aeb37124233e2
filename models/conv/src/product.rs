//! The matrix product of packed operands, finished while its sums are in registers.
//!
//! Both operands lie in panels, so that what a step reads is contiguous: the left one's of as many rows, the right one's of as many columns
//! as a tile of sums has that fills the vector registers ([`tile`]). Each sum adds its products in their order, with one rounding each
//! where the CPU has fused multiply-add, in blocks of [`DEPTH`]: a sum depends on neither the tile nor on what is computed beside it. An
//! addend joins the first block; where several images share a block of columns, it comes after the last.

use crate::{Addend, Finish, Scalar, Threads};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Products added before the sums leave the registers: longer blocks write sums less often, shorter ones leave more of a right panel in the
/// first-level cache (256 and 384 were slower on 32 KiB).
const DEPTH: usize = 512;
/// Numbers of a right operand's columns that all rows of the left one run over before the next ones: 256 KiB of f32, half of a second-level
/// cache.
const GROUP: usize = 1 << 16;
/// Columns of a group, a multiple of a tile's.
const GROUP_COLUMNS: usize = 64;
/// The most columns of a tile: two vectors of 16 f32.
const MAX_COLUMNS: usize = 32;

/// Runs `$run::<S, …, ROWS, VECTORS>` with the tile of `S`: sums, a row of the right operand and a number of the left one fill its
/// registers, 16 with AVX2, 32 with AVX-512 and NEON.
macro_rules! with_tile {
    ($simd:ty, ($($type:ty),*), $run:ident($($argument:expr),*)) => {
        match <$simd>::F32_LANES {
            16 => $run::<$simd, $($type,)* 12, 2>($($argument),*),
            8 => $run::<$simd, $($type,)* 6, 2>($($argument),*),
            4 => $run::<$simd, $($type,)* 6, 4>($($argument),*),
            _ => $run::<$simd, $($type,)* 4, 4>($($argument),*),
        }
    };
}

struct Tile<T>(PhantomData<T>);

fn shape<S: Simd, T: Scalar, const R: usize, const V: usize>() -> (usize, usize) {
    (R, V * T::lanes::<S>())
}

impl<T: Scalar> WithSimd for Tile<T> {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
        with_tile!(S, (T), shape())
    }
}

/// Rows of a left panel and columns of a right one on this CPU; the latter divide 32.
pub(crate) fn tile<T: Scalar>() -> (usize, usize) {
    Arch::new().dispatch(Tile::<T>(PhantomData))
}

/// The left operand `[m, k]`: panel `i`, at `i · stride`, holds its rows as `[k, rows of a panel]`, with zeros beyond the last.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
}

/// Numbers of all panels of a left operand `[m, k]`.
pub(crate) fn left_len<T: Scalar>(m: usize, k: usize) -> usize {
    m.next_multiple_of(tile::<T>().0) * k
}

/// The panels of `from`, a row-major `[m, k]`.
pub(crate) fn pack_left<T: Scalar>(from: &[T], k: usize, to: &mut [T], threads: Threads) {
    let rows = tile::<T>().0;
    threads.each(to.par_chunks_exact_mut((rows * k).max(1)).zip(from.par_chunks((rows * k).max(1))), |(to, from)| interleave(from, k, to));
}

/// `to` `[len, rows of a panel]` from as many rows of `len`, with zeros for those that are not there.
pub(crate) fn interleave<T: Scalar>(from: &[T], len: usize, to: &mut [T]) {
    let rows = tile::<T>().0;
    if from.len() < rows * len {
        to.fill(T::ZERO);
    }
    match rows {
        12 => weave::<T, 12>(from, len, to),
        6 => weave::<T, 6>(from, len, to),
        _ => weave::<T, 4>(from, len, to),
    }
}

fn weave<T: Scalar, const R: usize>(from: &[T], len: usize, to: &mut [T]) {
    let (to, _) = to.as_chunks_mut::<R>();
    let last = (from.len() / len).max(1) - 1;
    let rows: [&[T]; R] = std::array::from_fn(|row| &from[row.min(last) * len..][..len]);
    for (at, to) in to.iter_mut().enumerate().take(len) {
        for (to, row) in to.iter_mut().zip(rows).take(last + 1) {
            *to = row[at];
        }
    }
}

/// The right operand `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a, T> {
    /// In panels of [`tile`]'s columns, each `[k, columns]`; `n` is a multiple of the columns.
    Panels(&'a [T]),
    /// Row-major, with so many numbers from one row to the next: packed on the way to `buffer` of [`right_buffer`] numbers.
    Rows(&'a [T], usize),
}

/// Columns of a group of a right operand with `k` rows.
fn group_columns(k: usize) -> usize {
    GROUP / k.clamp(1, DEPTH) / GROUP_COLUMNS * GROUP_COLUMNS
}

/// What packing a group of a right operand `[k, n]` takes.
pub(crate) fn right_buffer(k: usize, n: usize) -> usize {
    group_columns(k).min(n.next_multiple_of(MAX_COLUMNS)) * k.min(DEPTH)
}

/// Where the sums go.
pub(crate) trait Store<T: Scalar> {
    /// Takes the sums of `valid` columns from `column` on of `row`: all blocks' but the first are added to what is there, the last's
    /// complete it.
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, column: usize, valid: usize, sums: [T::Vector<S>; V], block: Block);
}

/// Which of the blocks of products this is.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    first: bool,
    last: bool,
}

/// Sums as they are, row-major, with so many numbers from one row to the next.
pub(crate) struct Sums<'a, T>(pub(crate) &'a mut [T], pub(crate) usize);

impl<T: Scalar> Store<T> for Sums<'_, T> {
    #[inline(always)]
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, column: usize, valid: usize, sums: [T::Vector<S>; V], block: Block) {
        let out = &mut self.0[row * self.1 + column..][..valid];
        each(simd, out, sums, |_, sum, before| if block.first { sum } else { T::plus(simd, sum, before) });
    }
}

/// Outputs, finished: row `r` is output channel `channel + r`, the slice of its own, and begins at index `at + r · plane` of the whole output.
pub(crate) struct Finished<'a, 'y, T> {
    pub(crate) rows: &'a mut [&'y mut [T]],
    pub(crate) finish: Finish<'a, T>,
    pub(crate) channel: usize,
    pub(crate) at: usize,
    pub(crate) plane: usize,
}

impl<T: Scalar> Store<T> for Finished<'_, '_, T> {
    #[inline(always)]
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, column: usize, valid: usize, sums: [T::Vector<S>; V], block: Block) {
        let out = &mut self.rows[row][column..][..valid];
        let mut addend = [T::splat(simd, T::ZERO); V];
        let mut adds = false;
        if let (Addend::Map(add), true) = (self.finish.add, block.first) {
            addend = load(simd, &add[self.at + row * self.plane + column..][..valid]);
            adds = true;
        }
        let onto = matches!(self.finish.add, Addend::Output) || !block.first;
        let bias = T::splat(simd, self.finish.bias.map_or(T::ZERO, |bias| bias[self.channel + row]));
        let (last, relu) = (block.last, self.finish.relu);
        each(simd, out, sums, |i, mut sum, before| {
            if onto {
                sum = T::plus(simd, sum, before);
            }
            if adds {
                sum = T::plus(simd, sum, addend[i]);
            }
            if last {
                sum = T::plus(simd, sum, bias);
                if relu {
                    sum = T::positive(simd, sum);
                }
            }
            sum
        });
    }
}

/// As many numbers as there are, and zeros.
#[inline(always)]
fn load<S: Simd, T: Scalar, const V: usize>(simd: S, from: &[T]) -> [T::Vector<S>; V] {
    if let Some(vectors) = T::vectors::<S>(from).0.first_chunk::<V>() {
        return *vectors;
    }
    let mut whole = [T::ZERO; MAX_COLUMNS];
    whole[..from.len()].copy_from_slice(from);
    T::vectors::<S>(&whole).0.first_chunk::<V>().copied().unwrap_or([T::splat(simd, T::ZERO); V])
}

/// `out = f(i, sums[i], out)` for each vector.
#[inline(always)]
fn each<S: Simd, T: Scalar, const V: usize>(
    simd: S,
    out: &mut [T],
    sums: [T::Vector<S>; V],
    f: impl Fn(usize, T::Vector<S>, T::Vector<S>) -> T::Vector<S>,
) {
    if let Some(out) = T::vectors_mut::<S>(out).0.first_chunk_mut::<V>() {
        for i in 0..V {
            out[i] = f(i, sums[i], out[i]);
        }
        return;
    }
    let before: [T::Vector<S>; V] = load(simd, out);
    let mut whole = [T::ZERO; MAX_COLUMNS];
    for (i, to) in T::vectors_mut::<S>(&mut whole).0.iter_mut().take(V).enumerate() {
        *to = f(i, sums[i], before[i]);
    }
    out.copy_from_slice(&whole[..out.len()]);
}

/// `left · right` to `store`: `[m, k]`, `[k, n]` → `[m, n]`. `buffer` is of [`right_buffer`] numbers where the right operand lies in rows.
///
/// # Panics
/// When an operand is not that long.
pub(crate) fn product<T: Scalar>(
    (m, k, n): (usize, usize, usize),
    left: Left<'_, T>,
    right: Right<'_, T>,
    buffer: &mut [T],
    store: &mut impl Store<T>,
) {
    Arch::new().dispatch(Product { shape: (m, k, n), left, right, buffer, store });
}

struct Product<'a, T, D> {
    shape: (usize, usize, usize),
    left: Left<'a, T>,
    right: Right<'a, T>,
    buffer: &'a mut [T],
    store: &'a mut D,
}

impl<T: Scalar, D: Store<T>> WithSimd for Product<'_, T, D> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        with_tile!(S, (T, D), run(simd, self));
    }
}

#[inline(always)]
fn run<S: Simd, T: Scalar, D: Store<T>, const R: usize, const V: usize>(simd: S, work: Product<'_, T, D>) {
    let Product { shape: (m, k, n), left, right, buffer, store } = work;
    let columns = V * T::lanes::<S>();
    // Without any products the sums are 0.
    let depth = k.div_ceil(k.div_ceil(DEPTH).max(1));
    let mut from = 0;
    loop {
        let len = depth.min(k - from);
        let block = Block { first: from == 0, last: from + len == k };
        for group in (0..n).step_by(group_columns(k)) {
            let width = group_columns(k).min(n - group);
            if let Right::Rows(rows, ld) = right {
                pack_right(&rows[from * ld + group..], ld, (len, width), columns, buffer);
            }
            for row in (0..m).step_by(R) {
                let left = &left.data[row / R * left.stride + from * R..][..len * R];
                for column in (0..width).step_by(columns) {
                    let right = match right {
                        Right::Panels(panels) => &panels[(group + column) * k + from * columns..][..len * columns],
                        Right::Rows(..) => &buffer[column * len..][..len * columns],
                    };
                    let valid = columns.min(width - column);
                    for (i, sums) in sums::<S, T, R, V>(simd, left, right).into_iter().enumerate().take(m - row) {
                        store.put(simd, row + i, group + column, valid, sums, block);
                    }
                }
            }
        }
        from += len;
        if from == k {
            return;
        }
    }
}

/// The sums of one tile.
#[inline(always)]
fn sums<S: Simd, T: Scalar, const R: usize, const V: usize>(simd: S, left: &[T], right: &[T]) -> [[T::Vector<S>; V]; R] {
    let mut sums = [[T::splat(simd, T::ZERO); V]; R];
    let (right, _) = T::vectors::<S>(right).0.as_chunks::<V>();
    for (left, right) in left.as_chunks::<R>().0.iter().zip(right) {
        for i in 0..R {
            let left = T::splat(simd, left[i]);
            for j in 0..V {
                sums[i][j] = T::multiply_add(simd, left, right[j], sums[i][j]);
            }
        }
    }
    sums
}

/// `to`, panels of `[len, columns]`, from `len` rows of `width` numbers that are `ld` apart; zeros beyond the last column.
#[inline(always)]
fn pack_right<T: Scalar>(from: &[T], ld: usize, (len, width): (usize, usize), columns: usize, to: &mut [T]) {
    for (row, from) in from.chunks(ld.max(1)).take(len).enumerate() {
        for (panel, part) in from[..width].chunks(columns).enumerate() {
            let to = &mut to[(panel * len + row) * columns..][..columns];
            if part.len() == columns {
                to.copy_from_slice(part);
            } else {
                to[..part.len()].copy_from_slice(part);
                to[part.len()..].fill(T::ZERO);
            }
        }
    }
}
