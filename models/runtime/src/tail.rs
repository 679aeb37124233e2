//! The end of a pyramid's level, computed only in a window: what known boxes read of it.

use crate::fused::FusedConv;
use std::ops::Range;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// What ends a level of a pyramid: the sum of its lateral convolution and the coarser level, then a 3×3 convolution.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    last: FusedConv,
    /// The lateral convolution, where nothing else needs its sum.
    merge: Option<FusedConv>,
}

/// A map `[c, h, w]`.
pub(crate) type Map<'a> = (&'a [f32], [usize; 3]);

impl Tail {
    /// That of `outlet`, and the outlets that it starts from, when a 3×3 convolution makes it.
    pub(crate) fn of(model: &TypedModel, outlet: OutletId) -> Option<(Self, TVec<OutletId>)> {
        let fused = |outlet: OutletId| model.node(outlet.node).op_as::<FusedConv>();
        let last = fused(outlet).filter(|conv| conv.is_local())?.clone();
        let before = model.node(outlet.node).inputs[0];
        let alone = model.node(before.node).outputs[0].successors.len() == 1 && !model.outputs.contains(&before);
        let merge = fused(before).filter(|conv| alone && conv.is_merge()).cloned();
        let inputs = if merge.is_some() { model.node(before.node).inputs.iter().copied().collect() } else { tvec!(before) };
        Some((Self { last, merge }, inputs))
    }

    /// How many maps it starts from.
    pub(crate) fn inputs(&self) -> usize {
        1 + usize::from(self.merge.is_some())
    }

    /// The cells in `rows` and `columns` of the output for [`Tail::inputs`] maps: `[o, h, w]` with zeros elsewhere.
    pub(crate) fn part(&self, maps: &[Map<'_>], rows: Range<usize>, columns: Range<usize>) -> TractResult<Vec<f32>> {
        ensure!(maps.len() == self.inputs(), "{} maps, expected {}", maps.len(), self.inputs());
        let (x, [c, h, w]) = maps[0];
        let mut y = vec![0.0; self.last.channels() * h * w];
        if rows.is_empty() || columns.is_empty() {
            return Ok(y);
        }
        // A cell around, where there is one, and zeros where there is none.
        let (down, across) =
            (rows.start.saturating_sub(1)..(rows.end + 1).min(h), columns.start.saturating_sub(1)..(columns.end + 1).min(w));
        let mut inner = window(x, [h, w], &down, &across);
        let mut channels = c;
        if let Some(merge) = &self.merge {
            let (add, shape) = maps[1];
            ensure!(shape == [merge.channels(), h, w], "a sum of a map of {h} by {w} and one of {shape:?}");
            inner = merge.inside([c, down.len(), across.len()], &inner, Some(&window(add, [h, w], &down, &across)))?;
            channels = shape[0];
        }
        let (height, width) = (rows.len() + 2, columns.len() + 2);
        let mut padded = vec![0.0; channels * height * width];
        let (top, left) = (down.start + 1 - rows.start, across.start + 1 - columns.start);
        for (to, from) in padded.chunks_exact_mut(height * width).zip(inner.chunks_exact(down.len() * across.len())) {
            for (to, from) in to.chunks_exact_mut(width).skip(top).zip(from.chunks_exact(across.len())) {
                to[left..][..across.len()].copy_from_slice(from);
            }
        }
        let part = self.last.inside([channels, height, width], &padded, None)?;
        for (to, from) in y.chunks_exact_mut(h * w).zip(part.chunks_exact(rows.len() * columns.len())) {
            for (row, from) in rows.clone().zip(from.chunks_exact(columns.len())) {
                to[row * w..][columns.clone()].copy_from_slice(from);
            }
        }
        Ok(y)
    }
}

/// The cells in `rows` and `columns` of each channel of `map`, whose channels are `h` by `w`.
fn window(map: &[f32], [h, w]: [usize; 2], rows: &Range<usize>, columns: &Range<usize>) -> Vec<f32> {
    let mut out = Vec::with_capacity(map.len() / (h * w).max(1) * rows.len() * columns.len());
    for channel in map.chunks_exact(h * w) {
        rows.clone().for_each(|row| out.extend_from_slice(&channel[row * w..][columns.clone()]));
    }
    out
}
