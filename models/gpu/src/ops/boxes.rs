//! Proposals and detections. All sizes are fixed: where there are fewer boxes than room, the rest have no key (0).

use super::{run, sized};
use crate::{Array, Device, GpuError, Kernel, THREADS};
use omnilabel_bundle::NetworkSpec;
use omnilabel_detect::anchors::Anchors;
use omnilabel_detect::proposals::MIN_DETECTION_SIDE;
use omnilabel_keypoints::geometry::{Rect, Size};

/// RPN outputs of one image at one level, as `detect::proposals::LevelOutput`.
pub struct Level<'a, D: Device> {
    /// Logits `[a, rows, columns]`.
    pub objectness: &'a Array<D, f32>,
    /// Deltas `[4a, rows, columns]`.
    pub deltas: &'a Array<D, f32>,
    /// Rows of the map.
    pub rows: usize,
    /// Columns of the map.
    pub columns: usize,
}

/// Boxes by falling score, as many as there is room for.
pub struct Boxes<D: Device> {
    /// `[room, 4]`: x1, y1, x2, y2.
    pub rects: Array<D, f32>,
    /// `[room]`; -1 where there is no box.
    pub scores: Array<D, f32>,
    /// `[room]`; 0 where there is no box.
    pub keys: Array<D, u64>,
}

impl<D: Device> Boxes<D> {
    /// Room for boxes.
    pub fn room(&self) -> usize {
        self.keys.len()
    }

    /// The boxes with their scores.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn download(&self, device: &D) -> Result<Vec<(Rect, f32)>, GpuError> {
        let (rects, scores) = (self.rects.to_vec(device)?, self.scores.to_vec(device)?);
        let boxes = rects.chunks_exact(4).zip(scores).take_while(|(_, score)| *score >= 0.0);
        Ok(boxes.map(|(r, score)| (Rect::new(r[0], r[1], r[2], r[3]), score)).collect())
    }
}

/// Boxes per suppressed group, as in `boxes.cu`.
const MAX_GROUP: usize = 32 * 256;
/// Blocks that walk through one group's keys.
const SELECT_BLOCKS: usize = 64;

/// `detect::proposals::proposals`, room for `post_nms_top_n`.
///
/// # Errors
/// See [`GpuError`].
pub fn proposals<D: Device>(device: &D, network: &NetworkSpec, levels: &[Level<'_, D>], net: Size) -> Result<Boxes<D>, GpuError> {
    let rpn = &network.rpn;
    let levels = &levels[..levels.len().min(network.levels.len())];
    let (limit, room) = (rpn.pre_nms_top_n as usize, rpn.post_nms_top_n as usize);
    let groups = levels.len();
    group_fits("RPN candidates per level", limit)?;
    // Empty arrays would be no memory at all.
    let most = limit.max(1) * groups.max(1);
    let all = Boxes {
        rects: Array::<D, f32>::zeros(device, 4 * most)?,
        scores: Array::<D, f32>::zeros(device, most)?,
        keys: Array::<D, u64>::zeros(device, most)?,
    };
    if limit > 0 && groups > 0 {
        let anchors = network.aspect_ratios.len();
        let mut starts = vec![0u32];
        for level in levels {
            sized(Kernel::RpnKeys, "objectness", level.objectness, anchors * level.rows * level.columns)?;
            sized(Kernel::RpnDecode, "deltas", level.deltas, 4 * anchors * level.rows * level.columns)?;
            starts.push(starts[starts.len() - 1] + (anchors * level.rows * level.columns) as u32);
        }
        let sorted = best_of_each(device, levels, &starts, anchors, limit)?;
        decode(device, network, levels, net, &sorted, &all)?;
        suppress(device, &all.rects, &all.keys, groups, limit, rpn.nms_iou)?;
    }
    let sorted = rank(device, &all.keys, 1, most, room)?;
    take(device, sorted, &all.rects, &all.scores)
}

/// Each level's `limit` highest logits: keys `[levels, limit]` by falling key.
fn best_of_each<D: Device>(
    device: &D,
    levels: &[Level<'_, D>],
    starts: &[u32],
    anchors: usize,
    limit: usize,
) -> Result<Array<D, u64>, GpuError> {
    let groups = levels.len();
    let total = starts[groups] as usize;
    let keys = Array::<D, u64>::zeros(device, total)?;
    for (level, &start) in levels.iter().zip(starts) {
        let cells = level.rows * level.columns;
        run(device, Kernel::RpnKeys, anchors * cells, 1, &[level.objectness, &keys, &anchors, &cells, &start])?;
    }
    let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) as usize;
    let walkers = longest.min(SELECT_BLOCKS * THREADS);
    let starts = Array::from_slice(device, starts)?;
    let (prefix, histogram) = (Array::<D, u64>::zeros(device, groups)?, Array::<D, u32>::zeros(device, 256 * groups)?);
    let remaining = Array::from_slice(device, &vec![limit as u32; groups])?;
    for shift in (0..64usize).step_by(8).rev() {
        run(device, Kernel::SelectCount, walkers, groups, &[&keys, &starts, &prefix, &histogram, &shift])?;
        run(device, Kernel::SelectDigit, 1, groups, &[&histogram, &prefix, &remaining, &shift])?;
    }
    let (counters, chosen) = (Array::<D, u32>::zeros(device, groups)?, Array::<D, u64>::zeros(device, groups * limit)?);
    run(device, Kernel::SelectTake, walkers, groups, &[&keys, &starts, &prefix, &counters, &chosen, &limit])?;
    rank(device, &chosen, groups, limit, limit)
}

/// Each group's `limit` highest of `count` keys by falling key.
fn rank<D: Device>(device: &D, keys: &Array<D, u64>, groups: usize, count: usize, limit: usize) -> Result<Array<D, u64>, GpuError> {
    sized(Kernel::Rank, "keys", keys, groups * count)?;
    let sorted = Array::<D, u64>::zeros(device, groups * limit)?;
    if limit > 0 {
        run(device, Kernel::Rank, count, groups, &[keys, &sorted, &count, &limit])?;
    }
    Ok(sorted)
}

/// All levels' candidates as boxes with keys of their scores.
fn decode<D: Device>(
    device: &D,
    network: &NetworkSpec,
    levels: &[Level<'_, D>],
    net: Size,
    sorted: &Array<D, u64>,
    out: &Boxes<D>,
) -> Result<(), GpuError> {
    let rpn = &network.rpn;
    let limit = sorted.len() / levels.len();
    let finest = (levels[0].rows, levels[0].columns);
    let (width, height) = (net.width as f32, net.height as f32);
    for (index, level) in levels.iter().enumerate() {
        let anchors = Anchors::new(network, index, (level.rows, level.columns), finest);
        let base: Vec<f32> = (0..anchors.per_cell())
            .flat_map(|ratio| {
                let Rect { x1, y1, x2, y2 } = anchors.at(0, 0, ratio);
                [x1, y1, x2, y2]
            })
            .collect();
        let base = Array::from_slice(device, &base)?;
        let own = sorted.slice(index * limit..(index + 1) * limit);
        let (ratios, cells, first) = (anchors.per_cell(), level.rows * level.columns, index * limit);
        let (stride_y, stride_x) = anchors.stride();
        let arrays: [&dyn super::IntoArg<D>; 7] = [&own, level.objectness, level.deltas, &base, &out.rects, &out.scores, &out.keys];
        let sizes: [&dyn super::IntoArg<D>; 7] = [&limit, &first, &ratios, &cells, &level.columns, &stride_x, &stride_y];
        let limits: [&dyn super::IntoArg<D>; 4] = [&width, &height, &rpn.min_size, &rpn.score_threshold];
        let args: Vec<&dyn super::IntoArg<D>> = arrays.into_iter().chain(sizes).chain(limits).collect();
        run(device, Kernel::RpnDecode, limit, 1, &args)?;
    }
    Ok(())
}

/// Greedy NMS of each group's `count` boxes in their order: the keys of those that go become 0.
fn suppress<D: Device>(
    device: &D,
    rects: &Array<D, f32>,
    keys: &Array<D, u64>,
    groups: usize,
    count: usize,
    iou: f32,
) -> Result<(), GpuError> {
    group_fits("boxes of an NMS", count)?;
    sized(Kernel::NmsMask, "boxes", rects, 4 * groups * count)?;
    sized(Kernel::NmsMask, "keys", keys, groups * count)?;
    let words = count.div_ceil(32);
    let mask = Array::<D, u32>::zeros(device, groups * count * words)?;
    run(device, Kernel::NmsMask, count * words, groups, &[rects, keys, &mask, &count, &words, &iou])?;
    run(device, Kernel::NmsSweep, 1, groups, &[&mask, keys, &count, &words])
}

/// The boxes of `sorted` keys, whose indices are places in `rects` and `scores`.
fn take<D: Device>(device: &D, sorted: Array<D, u64>, rects: &Array<D, f32>, scores: &Array<D, f32>) -> Result<Boxes<D>, GpuError> {
    let room = sorted.len();
    let (out, out_scores) = (Array::<D, f32>::zeros(device, 4 * room)?, Array::<D, f32>::zeros(device, room)?);
    run(device, Kernel::TakeBoxes, room, 1, &[&sorted, rects, scores, &out, &out_scores, &room])?;
    Ok(Boxes { rects: out, scores: out_scores, keys: sorted })
}

/// `detect::proposals::detections` of `rois`, room for `max_detections`, or, without `nms`, for all of them.
///
/// # Errors
/// See [`GpuError`].
pub fn detections<D: Device>(
    device: &D,
    network: &NetworkSpec,
    rois: &Boxes<D>,
    class_logits: &Array<D, f32>,
    box_deltas: &Array<D, f32>,
    net: Size,
    nms: bool,
) -> Result<Boxes<D>, GpuError> {
    let count = rois.room();
    sized(Kernel::Detect, "class_logits", class_logits, 2 * count)?;
    sized(Kernel::Detect, "box_deltas", box_deltas, 8 * count)?;
    let (rects, scores) = (Array::<D, f32>::zeros(device, 4 * count)?, Array::<D, f32>::zeros(device, count)?);
    let keys = Array::<D, u64>::zeros(device, count)?;
    let [wx, wy, ww, wh] = &network.box_coder;
    let (width, height) = (net.width as f32, net.height as f32);
    let arrays: [&dyn super::IntoArg<D>; 7] = [&rois.rects, &rois.keys, class_logits, box_deltas, &rects, &scores, &keys];
    let rest: [&dyn super::IntoArg<D>; 9] = [&count, wx, wy, ww, wh, &width, &height, &network.score_threshold, &MIN_DETECTION_SIDE];
    let args: Vec<&dyn super::IntoArg<D>> = arrays.into_iter().chain(rest).collect();
    run(device, Kernel::Detect, count, 1, &args)?;
    let sorted = rank(device, &keys, 1, count, count)?;
    if !nms {
        return take(device, sorted, &rects, &scores);
    }
    let in_order = take(device, sorted, &rects, &scores)?;
    suppress(device, &in_order.rects, &in_order.keys, 1, count, network.nms_iou)?;
    // What stays closes up: its keys still name places in `rects`.
    let kept = rank(device, &in_order.keys, 1, count, network.max_detections as usize)?;
    take(device, kept, &rects, &scores)
}

pub(super) fn group_fits(what: &'static str, found: usize) -> Result<(), GpuError> {
    if found <= MAX_GROUP { Ok(()) } else { Err(GpuError::Limit { what, found, most: MAX_GROUP }) }
}
