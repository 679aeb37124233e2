//! The five losses of a batch (spec §2) on anchors and RoIs that the caller chooses: drawn at random in training, given in a
//! comparison with another implementation.

use super::Losses;
use super::ranks::Seat;
use crate::RcnnError;
use crate::losses::{self, Heat};
use crate::network::Network;
use crate::targets::{self, KeypointSample, RoiSample, Sampled, Truth};
use candle_core::{DType, Device, Tensor};
use omnilabel_detect::anchors::anchors;
use omnilabel_detect::boxes::BoxCoder;
use omnilabel_detect::proposals::{LevelOutput, RPN_CODER, proposals};
use omnilabel_keypoints::geometry::Rect;
use rayon::prelude::*;

/// What takes part in the losses, per image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    /// Anchors, by their index in `[level, row, column, ratio]`.
    pub anchors: Vec<Sampled>,
    /// RoIs of the box head; the keypoint head takes the foreground ones with a labelled keypoint inside.
    pub rois: Vec<RoiSample>,
}

/// The losses of `images` `[n, 3, h, w]` and their sum as a tensor, on the given anchors and RoIs.
///
/// # Errors
/// See [`RcnnError`].
pub fn objective_on(network: &Network, images: &Tensor, truths: &[Truth], chosen: &Chosen) -> Result<(Losses, Tensor), RcnnError> {
    if chosen.anchors.len() != truths.len() || chosen.rois.len() != truths.len() {
        let (anchors, rois, images) = (chosen.anchors.len(), chosen.rois.len(), truths.len());
        return Err(RcnnError::Config(format!("anchors of {anchors} and RoIs of {rois} images for {images} images")));
    }
    let anchors = |_: &[Rect], image: usize, _: &Truth| chosen.anchors[image].clone();
    let rois = |_: &[Rect], image: usize, truth: &Truth| {
        let rois = chosen.rois[image].clone();
        let mut unused = targets::generator(0, 0, image, targets::Purpose::Keypoint);
        let keypoints = targets::keypoint_sample(&rois, truth, network.config().network.heatmap_side, None, &mut unused);
        (rois, keypoints)
    };
    objective(network, images, truths, &Seat::alone(), anchors, rois)
}

/// As [`objective_on`]; `choose_anchors` is given all anchors, `choose_rois` the proposals of the present RPN, of one image each. Where there
/// are several ranks, these are the images of one of them; the losses are the whole batch's, the tensor is this rank's part of their sum.
pub(super) fn objective(
    network: &Network,
    images: &Tensor,
    truths: &[Truth],
    seat: &Seat,
    choose_anchors: impl Fn(&[Rect], usize, &Truth) -> Sampled + Sync,
    choose_rois: impl Fn(&[Rect], usize, &Truth) -> (RoiSample, KeypointSample) + Sync,
) -> Result<(Losses, Tensor), RcnnError> {
    let spec = &network.config().network;
    let backbone = network.forward_backbone(images)?;
    let (objectness, rpn_box) = rpn_losses(network, &backbone.objectness, &backbone.deltas, truths, seat, choose_anchors)?;

    let (rois, keypoints): (Vec<RoiSample>, Vec<KeypointSample>) =
        proposed(network, &backbone.objectness, &backbone.deltas, truths, choose_rois)?.into_iter().unzip();
    let flat = |rois: &mut dyn Iterator<Item = &Vec<Rect>>| -> Vec<(usize, Rect)> {
        rois.enumerate().flat_map(|(image, rois)| rois.iter().map(move |&roi| (image, roi))).collect()
    };
    let pooled = |rois: &[(usize, Rect)], roi| network.pool(&backbone.features, rois, roi);
    let boxes = flat(&mut rois.iter().map(|sample| &sample.rois));
    let people = flat(&mut keypoints.iter().map(|sample| &sample.rois));
    let heats: Vec<Option<Heat>> = keypoints.into_iter().flat_map(|sample| sample.heats).collect();
    let [sampled, valid] = seat.sum([boxes.len() as f64, heats.iter().flatten().count() as f64])?.map(|count| count.max(1.0));

    let (class_logits, deltas) = network.box_head(&pooled(&boxes, spec.box_roi)?)?;
    let (classifier, box_reg) = box_losses(network, &class_logits, &deltas, &rois, truths, sampled)?;
    let keypoint = if people.is_empty() {
        // Nothing to learn from in this batch: nought, and the head gets no gradient.
        (&classifier * 0.0)?
    } else {
        let maps = network.keypoint_maps(&pooled(&people, spec.keypoint_roi)?)?;
        let (_, _, rows, columns) = maps.dims4()?;
        (losses::heatmap_cross_entropy(&maps.reshape((heats.len(), rows, columns))?, heats)? / valid)?
    };

    let value = |t: &Tensor| t.to_dtype(DType::F64)?.to_scalar::<f64>();
    let values = [value(&objectness)?, value(&rpn_box)?, value(&classifier)?, value(&box_reg)?, value(&keypoint)?];
    let [o, r, c, b, k] = seat.sum(values)?.map(|value| value as f32);
    let losses = Losses { objectness: o, rpn_box: r, classifier: c, box_reg: b, keypoint: k };
    let total = ((((objectness + rpn_box)? + classifier)? + box_reg)? + keypoint)?;
    Ok((losses, total))
}

/// Of one level: where the sampled anchors lie in the maps, and what they should say.
#[derive(Default)]
struct Picks {
    positions: Vec<u32>,
    labels: Vec<f64>,
    box_positions: Vec<u32>,
    box_targets: Vec<f64>,
}

/// Objectness and box loss over the sampled anchors of the whole batch, both divided by their number (torchvision).
fn rpn_losses(
    network: &Network,
    objectness: &[Tensor],
    deltas: &[Tensor],
    truths: &[Truth],
    seat: &Seat,
    choose: impl Fn(&[Rect], usize, &Truth) -> Sampled + Sync,
) -> Result<(Tensor, Tensor), RcnnError> {
    let ratios = network.config().network.aspect_ratios.len();
    let mut grids = Vec::new();
    let mut starts = Vec::new();
    let mut count = 0;
    for map in objectness {
        let (_, _, rows, columns) = map.dims4()?;
        grids.push((rows, columns));
        starts.push(count);
        count += rows * columns * ratios;
    }
    let all = anchors(&network.config().network, &grids);
    let sampled: Vec<Sampled> = truths.par_iter().enumerate().map(|(image, truth)| choose(&all, image, truth)).collect();
    let mut picks: Vec<Picks> = grids.iter().map(|_| Picks::default()).collect();
    for (image, (sample, truth)) in sampled.iter().zip(truths).enumerate() {
        let positives = sample.positive.iter().map(|&(anchor, index)| (anchor, Some(index)));
        for (anchor, matched) in positives.chain(sample.negative.iter().map(|&anchor| (anchor, None))) {
            let level = starts.partition_point(|&start| start <= anchor) - 1;
            let (rows, columns) = grids[level];
            let (cell, ratio) = ((anchor - starts[level]) / ratios, (anchor - starts[level]) % ratios);
            let picks = &mut picks[level];
            picks.positions.push(((image * ratios + ratio) * rows * columns + cell) as u32);
            picks.labels.push(if matched.is_some() { 1.0 } else { 0.0 });
            if let Some(index) = matched {
                for (coordinate, delta) in RPN_CODER.encode(all[anchor], truth.boxes[index]).into_iter().enumerate() {
                    let channel = image * 4 * ratios + 4 * ratio + coordinate;
                    picks.box_positions.push((channel * rows * columns + cell) as u32);
                    picks.box_targets.push(delta);
                }
            }
        }
    }
    let [count] = seat.sum([sampled.iter().map(Sampled::len).sum::<usize>() as f64])?.map(|count| count.max(1.0));
    let mut sums = [zero(network)?, zero(network)?];
    for (picks, (map, delta)) in picks.into_iter().zip(objectness.iter().zip(deltas)) {
        if !picks.positions.is_empty() {
            sums[0] = (&sums[0] + losses::bce_with_logits(&losses::pick(map, picks.positions)?, picks.labels)?)?;
        }
        if !picks.box_positions.is_empty() {
            sums[1] = (&sums[1] + losses::smooth_l1(&losses::pick(delta, picks.box_positions)?, picks.box_targets)?)?;
        }
    }
    let [objectness, rpn_box] = sums;
    Ok(((objectness / count)?, (rpn_box / count)?))
}

/// A loss of nothing, in the network's type.
fn zero(network: &Network) -> Result<Tensor, RcnnError> {
    Ok(Tensor::zeros((), network.params().dtype(), &Device::Cpu)?)
}

/// What `choose` makes of each image's proposals.
fn proposed<T: Send>(
    network: &Network,
    objectness: &[Tensor],
    deltas: &[Tensor],
    truths: &[Truth],
    choose: impl Fn(&[Rect], usize, &Truth) -> T + Sync,
) -> Result<Vec<T>, RcnnError> {
    let config = network.config();
    let host = |t: &Tensor| t.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>();
    let mut levels = Vec::new();
    for (map, delta) in objectness.iter().zip(deltas) {
        let (_, ratios, rows, columns) = map.dims4()?;
        levels.push((host(map)?, host(delta)?, ratios * rows * columns, rows, columns));
    }
    Ok(truths
        .par_iter()
        .enumerate()
        .map(|(image, truth)| {
            let outputs: Vec<LevelOutput<'_>> = levels
                .iter()
                .map(|(objectness, deltas, size, rows, columns)| LevelOutput {
                    objectness: &objectness[image * size..][..*size],
                    deltas: &deltas[4 * image * size..][..4 * size],
                    rows: *rows,
                    columns: *columns,
                })
                .collect();
            let found = proposals(&config.network, &config.rpn_train, &outputs, truth.net);
            let rects: Vec<Rect> = found.into_iter().map(|(rect, _)| rect).collect();
            choose(&rects, image, truth)
        })
        .collect())
}

/// Class and box loss, both divided by `count`, the number of sampled RoIs of the whole batch (torchvision).
fn box_losses(
    network: &Network,
    class_logits: &Tensor,
    deltas: &Tensor,
    rois: &[RoiSample],
    truths: &[Truth],
    count: f64,
) -> Result<(Tensor, Tensor), RcnnError> {
    let coder = BoxCoder { weights: network.config().network.box_coder };
    let width = deltas.dim(1)?;
    let (mut labels, mut positions, mut box_targets) = (Vec::new(), Vec::new(), Vec::new());
    for (sample, truth) in rois.iter().zip(truths) {
        for (&roi, matched) in sample.rois.iter().zip(&sample.matched) {
            if let Some(index) = *matched {
                for (coordinate, delta) in coder.encode(roi, truth.boxes[index]).into_iter().enumerate() {
                    // Columns 4 to 7: the deltas of class 1.
                    positions.push((labels.len() * width + 4 + coordinate) as u32);
                    box_targets.push(delta);
                }
            }
            labels.push(Some(u32::from(matched.is_some())));
        }
    }
    let classifier = (losses::cross_entropy(class_logits, labels)? / count)?;
    let box_reg =
        if positions.is_empty() { zero(network)? } else { (losses::smooth_l1(&losses::pick(deltas, positions)?, box_targets)? / count)? };
    Ok((classifier, box_reg))
}
