//! Patches as columns, then a matrix product: the way for every shape.
//!
//! The output is partitioned into blocks of whole rows, so that a block's patches stay in the second-level cache; small maps share a
//! block among several images, and of a map too small for several blocks the channels are shared out.

use crate::gemm::Mat;
use crate::im2col::im2col;
use crate::product::{Finished, Left, Right, Sums, left_len, pack_left, product, right_buffer, tile};
use crate::scratch::scratch;
use crate::vector::{Fused, vectorised};
use crate::{Finish, Geometry, Scalar, Threads};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of a block of patches and its outputs: 768 KiB of f32.
const BLOCK: usize = 196_608;
/// Columns of a block, where the map allows: enough to reuse the packed weights.
const COLUMNS: (usize, usize) = (96, 2_048);
/// Fewer blocks than this leave threads idle.
const BLOCKS: usize = 4;

/// How a convolution's outputs are partitioned.
#[derive(Clone, Copy)]
pub(crate) struct Partition {
    /// Numbers of a channel's plane in a block: whole rows, unless the input itself is the patch matrix.
    pub(crate) part: usize,
    /// Images that share a block; more than one only with whole planes.
    pub(crate) images: usize,
}

impl Partition {
    pub(crate) fn new(g: &Geometry) -> Self {
        let plane = g.plane().max(1);
        let columns = (BLOCK / (g.patch() + g.channels())).clamp(COLUMNS.0, COLUMNS.1);
        if plane * 2 <= columns {
            let images = (columns / plane).clamp(1, g.n.div_ceil(BLOCKS).max(1));
            return Self { part: plane, images };
        }
        let part = if g.pointwise() { columns.next_multiple_of(64) } else { columns.div_ceil(g.ow).max(1) * g.ow };
        Self { part: part.min(plane), images: 1 }
    }

    /// Parts of a plane.
    fn parts(self, g: &Geometry) -> usize {
        g.plane().div_ceil(self.part)
    }

    /// The blocks of `images` images.
    pub(crate) fn blocks(self, g: &Geometry, images: usize) -> impl Iterator<Item = Block> {
        let plane = g.plane();
        (0..images).step_by(self.images).flat_map(move |first| {
            let images = first..(first + self.images).min(images);
            (0..plane).step_by(self.part).map(move |start| Block { images: images.clone(), part: start..(start + self.part).min(plane) })
        })
    }
}

/// A part of the plane of one image, or whole planes of several.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) images: Range<usize>,
    pub(crate) part: Range<usize>,
}

impl Block {
    pub(crate) fn columns(&self) -> usize {
        self.images.len() * self.part.len()
    }

    /// Output rows, where the block consists of whole ones.
    pub(crate) fn rows(&self, g: &Geometry) -> Range<usize> {
        self.part.start / g.ow..self.part.end / g.ow
    }
}

/// The patches of a block of one group as a `[patch, columns]` matrix: the input itself where it already is one.
pub(crate) fn patches<'a, T: Scalar>(g: &Geometry, group: usize, x: &'a [T], block: &Block, buffer: &'a mut [T]) -> Mat<'a, T> {
    let len = g.c / g.groups * g.h * g.w;
    let base = |image: usize| image * g.input_len() + group * len;
    if g.pointwise() && block.images.len() == 1 {
        return Mat::rows(&x[base(block.images.start) + block.part.start..][..len - block.part.start], g.h * g.w);
    }
    let ld = block.columns();
    for (index, image) in block.images.clone().enumerate() {
        im2col(g, &x[base(image)..][..len], block.rows(g), buffer, ld, index * block.part.len());
    }
    Mat::rows(buffer, ld)
}

/// The panels of a weight `[o, patch]`, group after group.
pub(crate) fn pack<T: Scalar>(g: &Geometry, w: &[T], panels: &mut [T], threads: Threads) {
    let (channels, patch) = (g.channels(), g.patch());
    let of_group = left_len::<T>(channels, patch);
    for (panels, w) in panels.chunks_exact_mut(of_group.max(1)).zip(w.chunks_exact((channels * patch).max(1))) {
        pack_left(w, patch, panels, threads);
    }
}

/// Numbers that [`pack`] writes.
pub(crate) fn packed_len<T: Scalar>(g: &Geometry) -> usize {
    g.groups * left_len::<T>(g.channels(), g.patch())
}

/// `y = x ⋆ w`, then `finish`.
pub(crate) fn forward<T: Scalar>(g: &Geometry, x: &[T], w: &[T], finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    scratch(packed_len::<T>(g), |panels: &mut [T]| {
        pack(g, w, panels, threads);
        forward_packed(g, x, panels, finish, y, threads);
    });
}

/// The same with the weight's panels.
pub(crate) fn forward_packed<T: Scalar>(g: &Geometry, x: &[T], panels: &[T], finish: Finish<'_, T>, y: &mut [T], threads: Threads) {
    let partition = Partition::new(g);
    let (parts, patch, channels) = (partition.parts(g), g.patch(), g.channels());
    let blocks: Vec<Block> = partition.blocks(g, g.n).collect();
    // Groups, or shares of the channels, whole panels, go in parallel where blocks are few.
    let rows = tile::<T>().0;
    let share =
        if blocks.len() >= BLOCKS { channels } else { channels.div_ceil(BLOCKS.div_ceil(blocks.len() * g.groups)).next_multiple_of(rows) };
    // Of each block and share, its part of every output plane.
    let per_group = channels.div_ceil(share);
    let mut tasks: Vec<(usize, usize, Vec<&mut [T]>)> = Vec::with_capacity(blocks.len() * g.groups * per_group);
    for index in 0..blocks.len() {
        for share in 0..g.groups * per_group {
            tasks.push((index, share, Vec::new()));
        }
    }
    for (index, plane) in y.chunks_exact_mut(g.plane()).enumerate() {
        let (image, channel) = (index / g.o, index % g.o);
        let at = channel / channels * per_group + channel % channels / share;
        for (part, values) in plane.chunks_mut(partition.part).enumerate() {
            let block = image / partition.images * parts + part;
            tasks[block * g.groups * per_group + at].2.push(values);
        }
    }
    threads.each(tasks.par_iter_mut(), |(index, at, outputs)| {
        let block = &blocks[*index];
        let (group, first) = (*at / per_group, *at % per_group * share);
        let count = share.min(channels - first);
        let columns = block.columns();
        let left = Left { data: &panels[group * left_len::<T>(channels, patch) + first * patch..], stride: rows * patch };
        let (channel, shape) = (group * channels + first, (count, patch, columns));
        let gathered = if g.pointwise() && block.images.len() == 1 { 0 } else { patch * columns };
        scratch(right_buffer(patch, columns), |buffer| {
            scratch(gathered, |matrix| {
                let matrix = patches(g, group, x, block, matrix);
                let right = Right::Rows(matrix.data, matrix.row);
                if block.images.len() == 1 {
                    let at = block.images.start * g.output_len() + channel * g.plane() + block.part.start;
                    let mut outputs = Finished { rows: outputs, finish, channel, at, plane: g.plane() };
                    return product(shape, left, right, buffer, &mut outputs);
                }
                scratch(count * columns, |sums: &mut [T]| {
                    product(shape, left, right, buffer, &mut Sums(&mut *sums, columns));
                    vectorised(Outputs { g, block, first: channel, count, sums, finish, outputs });
                });
            });
        });
    });
}

/// The outputs of `count` channels of a block from their sums, image by image.
struct Outputs<'a, 'y, T> {
    g: &'a Geometry,
    block: &'a Block,
    first: usize,
    count: usize,
    sums: &'a [T],
    finish: Finish<'a, T>,
    outputs: &'a mut [&'y mut [T]],
}

impl<T: Scalar> Fused for Outputs<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { g, block, first, count, sums, finish, outputs } = self;
        for (index, out) in outputs.iter_mut().enumerate() {
            let (image, channel) = (index / count, index % count);
            let sums = &sums[channel * block.columns() + image * block.part.len()..][..block.part.len()];
            let at = (block.images.start + image) * g.output_len() + (first + channel) * g.plane() + block.part.start;
            finish.write(first + channel, at, sums, out);
        }
    }
}
