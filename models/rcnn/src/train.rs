//! The training step and loop.
//!
//! ```text
//! Run::new(config, options, skeleton flip, init) ─▶ step(samples) ─▶ Losses … checkpoint(dir) / Run::resume(dir)
//! ```

mod checkpoint;

use crate::RcnnError;
use crate::augment::{Augment, Batch, Draw, Sample, prepare};
use crate::config::Config;
use crate::losses;
use crate::network::Network;
use crate::optim::Optim;
pub use crate::optim::{Optimizer, Schedule, learning_rate};
use crate::targets::{self, KeypointSample, MatchRule, Purpose, RoiSample, Sampled, Truth, generator};
use candle_core::{DType, Device, Tensor, Var};
use omnilabel_detect::anchors::anchors;
use omnilabel_detect::boxes::BoxCoder;
use omnilabel_detect::proposals::{LevelOutput, proposals};
use omnilabel_keypoints::geometry::Rect;
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the first weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Random, from this seed.
    Seed(u64),
    /// A safetensors file or bundle's weights: every tensor whose name and shape match is taken; heads of another skeleton are
    /// drawn from the seed.
    File(PathBuf, u64),
}

/// Options of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Optimiser steps.
    pub steps: u64,
    /// Images per step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Linear warm-up steps from lr/3.
    pub warmup: u64,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// What the learning rate does after warm-up.
    pub schedule: Schedule,
    /// With [`Schedule::Steps`]: shares of the schedule at which lr is divided by 10 (0.7 and 0.9, spec §2).
    pub milestones: Vec<f64>,
    /// Gradient norm limit.
    pub clip: Option<f64>,
    /// Augmentation.
    pub augment: Augment,
    /// Short sides drawn from per step (multi-scale training); empty: the config's.
    pub short_sides: Vec<u32>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 16,
            lr: 2e-3,
            weight_decay: 1e-4,
            warmup: 50,
            optimizer: Optimizer::AdamW,
            schedule: Schedule::Cosine,
            milestones: vec![0.7, 0.9],
            clip: Some(10.0),
            augment: Augment::default(),
            short_sides: Vec::new(),
            seed: 1,
        }
    }
}

/// The losses of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// RPN objectness.
    pub objectness: f32,
    /// RPN boxes.
    pub rpn_box: f32,
    /// Box head's classes.
    pub classifier: f32,
    /// Box head's boxes.
    pub box_reg: f32,
    /// Keypoints.
    pub keypoint: f32,
}

impl Losses {
    /// The sum.
    pub fn total(&self) -> f32 {
        self.objectness + self.rpn_box + self.classifier + self.box_reg + self.keypoint
    }

    /// Each loss with its name.
    pub fn named(&self) -> [(&'static str, f32); 5] {
        [
            ("objectness", self.objectness),
            ("rpn_box", self.rpn_box),
            ("classifier", self.classifier),
            ("box_reg", self.box_reg),
            ("keypoint", self.keypoint),
        ]
    }
}

/// A training run: network, optimiser and the position in the schedule.
pub struct Run {
    /// The network being trained.
    pub network: Network,
    /// Options it was started with.
    pub options: TrainOptions,
    flip: Vec<u8>,
    optim: Optim,
    /// Whether the random weights still wait for the first batch's statistics.
    uncalibrated: bool,
    step: u64,
}

/// Box coder weights of the RPN.
const RPN_CODER: BoxCoder = BoxCoder { weights: [1.0; 4] };
/// Share of positives among the RPN's sampled anchors.
const RPN_POSITIVE: f32 = 0.5;

impl Run {
    /// Starts a run. `flip` is the skeleton's flip permutation.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn new(config: Config, options: TrainOptions, flip: &[u8], init: &Init) -> Result<Self, RcnnError> {
        let network = match init {
            Init::Seed(seed) | Init::File(_, seed) => Network::new(config, *seed)?,
        };
        if let Init::File(path, _) = init {
            network.init_from(path)?;
        }
        let mut run = Self::assemble(network, options, flip)?;
        run.uncalibrated = matches!(init, Init::Seed(_));
        Ok(run)
    }

    fn assemble(network: Network, options: TrainOptions, flip: &[u8]) -> Result<Self, RcnnError> {
        let keypoints = network.config().keypoints;
        if flip.len() != keypoints {
            return Err(RcnnError::Config(format!("the flip permutation has {} entries for {keypoints} keypoints", flip.len())));
        }
        let vars: Vec<(String, Var)> = network.params().trainable().map(|(name, var)| (name.to_owned(), var.clone())).collect();
        let optim = Optim::new(options.optimizer, options.weight_decay, options.clip, vars);
        Ok(Self { network, options, flip: flip.to_vec(), optim, uncalibrated: false, step: 0 })
    }

    /// Steps done.
    pub fn step_index(&self) -> u64 {
        self.step
    }

    /// One optimiser step on `samples` (before augmentation). The same samples at the same step give the same weights.
    ///
    /// # Errors
    /// See [`RcnnError`]; a loss that is not finite is an error that names it.
    pub fn step(&mut self, samples: &[&Sample]) -> Result<Losses, RcnnError> {
        if samples.is_empty() {
            return Err(RcnnError::Config("a training step needs at least one sample".to_owned()));
        }
        let batch = self.prepare(samples)?;
        self.calibrate_on(&batch)?;
        let (losses, total) = self.forward(&batch)?;
        for (name, value) in losses.named() {
            if !value.is_finite() {
                return Err(RcnnError::NotFinite { name, step: self.step, value });
            }
        }
        let grads = total.backward()?;
        let o = &self.options;
        let lr = learning_rate(o.schedule, o.lr, self.step, o.steps, o.warmup, &o.milestones);
        let norm = self.optim.step(&grads, lr, self.step)?;
        if !norm.is_finite() {
            return Err(RcnnError::NotFinite { name: "gradient norm", step: self.step, value: norm as f32 });
        }
        self.step += 1;
        Ok(losses)
    }

    /// Calibrates random weights on `samples` (see [`Network::calibrate`]), as the first [`Run::step`] does by itself; nothing
    /// otherwise. For whoever wants to store the weights that training starts from.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn calibrate(&mut self, samples: &[&Sample]) -> Result<(), RcnnError> {
        let batch = self.prepare(samples)?;
        self.calibrate_on(&batch)
    }

    fn calibrate_on(&mut self, batch: &Batch) -> Result<(), RcnnError> {
        if std::mem::take(&mut self.uncalibrated) {
            self.network.calibrate(&images(batch, batch.truths.len())?)?;
        }
        Ok(())
    }

    fn prepare(&self, samples: &[&Sample]) -> Result<Batch, RcnnError> {
        let config = self.network.config();
        let sides = &self.options.short_sides;
        let short_side = if sides.is_empty() {
            config.input.short_side
        } else {
            sides[generator(self.options.seed, self.step, 0, Purpose::Step).random_range(0..sides.len())]
        };
        let draw = Draw {
            augment: &self.options.augment,
            input: &config.input,
            short_side,
            flip: &self.flip,
            seed: self.options.seed,
            step: self.step,
        };
        prepare(samples, draw)
    }

    /// The losses of a batch and their sum as a tensor.
    fn forward(&self, batch: &Batch) -> Result<(Losses, Tensor), RcnnError> {
        let config = self.network.config();
        let count = batch.truths.len();
        let backbone = self.network.forward_backbone(&images(batch, count)?)?;
        let (objectness, rpn_box) = self.rpn_losses(&backbone.objectness, &backbone.deltas, &batch.truths)?;

        let rois = self.rois(&backbone.objectness, &backbone.deltas, &batch.truths)?;
        let pooled = |rois: &[(usize, Rect)], spec| self.network.pool(&backbone.features, rois, spec);
        let flat: Vec<(usize, Rect)> = rois.iter().enumerate().flat_map(|(image, s)| s.rois.iter().map(move |&roi| (image, roi))).collect();
        let (class_logits, deltas) = self.network.box_head(&pooled(&flat, config.network.box_roi)?)?;
        let (classifier, box_reg) = self.box_losses(&class_logits, &deltas, &rois, &batch.truths)?;

        let keypoint_samples = self.keypoint_samples(&rois, &batch.truths);
        let flat: Vec<(usize, Rect)> =
            keypoint_samples.iter().enumerate().flat_map(|(image, s)| s.rois.iter().map(move |&roi| (image, roi))).collect();
        let cells: Vec<Option<u32>> = keypoint_samples.into_iter().flat_map(|s| s.cells).collect();
        let keypoint = if flat.is_empty() {
            // Nothing to learn from in this batch: nought, and the head gets no gradient.
            (&classifier * 0.0)?
        } else {
            let maps = self.network.keypoint_maps(&pooled(&flat, config.network.keypoint_roi)?)?;
            let (_, _, rows, columns) = maps.dims4()?;
            let valid = cells.iter().flatten().count().max(1) as f64;
            (losses::heatmap_cross_entropy(&maps.reshape((cells.len(), rows, columns))?, cells)? / valid)?
        };

        let value = |t: &Tensor| t.to_dtype(DType::F32)?.to_scalar::<f32>();
        let losses = Losses {
            objectness: value(&objectness)?,
            rpn_box: value(&rpn_box)?,
            classifier: value(&classifier)?,
            box_reg: value(&box_reg)?,
            keypoint: value(&keypoint)?,
        };
        let total = ((((objectness + rpn_box)? + classifier)? + box_reg)? + keypoint)?;
        Ok((losses, total))
    }

    /// Objectness and box loss over the sampled anchors of the whole batch, both divided by their number (torchvision).
    fn rpn_losses(&self, objectness: &[Tensor], deltas: &[Tensor], truths: &[Truth]) -> Result<(Tensor, Tensor), RcnnError> {
        let config = self.network.config();
        let mut all = Vec::new();
        let mut shapes = Vec::new();
        for (level, map) in config.network.levels.iter().zip(objectness) {
            let (_, ratios, rows, columns) = map.dims4()?;
            shapes.push((all.len(), ratios, rows, columns));
            all.extend(anchors(*level, &config.network.aspect_ratios, rows, columns));
        }
        let sampled: Vec<Sampled> = truths
            .par_iter()
            .enumerate()
            .map(|(image, truth)| {
                let mut rng = generator(self.options.seed, self.step, image, Purpose::Rpn);
                let matches = targets::match_boxes(&all, &truth.boxes, &truth.ignore, MatchRule::RPN);
                targets::sample(&matches, config.rpn_batch, RPN_POSITIVE, &mut rng)
            })
            .collect();
        // Per level: where the sampled anchors lie in the maps, and what they should say.
        let mut picks = vec![(Vec::new(), Vec::new(), Vec::new(), Vec::new()); shapes.len()];
        for (image, (sample, truth)) in sampled.iter().zip(truths).enumerate() {
            let positives = sample.positive.iter().map(|&(anchor, index)| (anchor, Some(index)));
            for (anchor, matched) in positives.chain(sample.negative.iter().map(|&anchor| (anchor, None))) {
                let level = shapes.partition_point(|shape| shape.0 <= anchor) - 1;
                let (start, ratios, rows, columns) = shapes[level];
                let (cell, ratio) = ((anchor - start) / ratios, (anchor - start) % ratios);
                let (positions, labels, box_positions, box_targets) = &mut picks[level];
                positions.push(((image * ratios + ratio) * rows * columns + cell) as u32);
                labels.push(if matched.is_some() { 1.0 } else { 0.0 });
                if let Some(index) = matched {
                    for (coordinate, delta) in RPN_CODER.encode(all[anchor], truth.boxes[index]).into_iter().enumerate() {
                        let channel = image * 4 * ratios + 4 * ratio + coordinate;
                        box_positions.push((channel * rows * columns + cell) as u32);
                        box_targets.push(delta);
                    }
                }
            }
        }
        let count = sampled.iter().map(Sampled::len).sum::<usize>().max(1) as f64;
        let mut sums = [Tensor::zeros((), DType::F32, &Device::Cpu)?, Tensor::zeros((), DType::F32, &Device::Cpu)?];
        for ((positions, labels, box_positions, box_targets), (map, delta)) in picks.into_iter().zip(objectness.iter().zip(deltas)) {
            if !positions.is_empty() {
                sums[0] = (&sums[0] + losses::bce_with_logits(&losses::pick(map, positions)?, labels)?)?;
            }
            if !box_positions.is_empty() {
                sums[1] = (&sums[1] + losses::smooth_l1(&losses::pick(delta, box_positions)?, box_targets)?)?;
            }
        }
        let [objectness, rpn_box] = sums;
        Ok(((objectness / count)?, (rpn_box / count)?))
    }

    /// Proposals of the present RPN, matched and sampled.
    fn rois(&self, objectness: &[Tensor], deltas: &[Tensor], truths: &[Truth]) -> Result<Vec<RoiSample>, RcnnError> {
        let config = self.network.config();
        let host = |t: &Tensor| t.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>();
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
                let proposed: Vec<Rect> =
                    proposals(&config.network, &config.rpn_train, &outputs, truth.net).into_iter().map(|(rect, _)| rect).collect();
                let mut rng = generator(self.options.seed, self.step, image, Purpose::Roi);
                targets::roi_sample(&proposed, truth, config.roi_batch, config.roi_positive, &mut rng)
            })
            .collect())
    }

    /// Class and box loss, both divided by the number of sampled RoIs of the whole batch (torchvision).
    fn box_losses(
        &self,
        class_logits: &Tensor,
        deltas: &Tensor,
        rois: &[RoiSample],
        truths: &[Truth],
    ) -> Result<(Tensor, Tensor), RcnnError> {
        let coder = BoxCoder { weights: self.network.config().network.box_coder };
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
        let count = labels.len().max(1) as f64;
        let classifier = (losses::cross_entropy(class_logits, labels)? / count)?;
        let box_reg = if positions.is_empty() {
            Tensor::zeros((), DType::F32, &Device::Cpu)?
        } else {
            (losses::smooth_l1(&losses::pick(deltas, positions)?, box_targets)? / count)?
        };
        Ok((classifier, box_reg))
    }

    fn keypoint_samples(&self, rois: &[RoiSample], truths: &[Truth]) -> Vec<KeypointSample> {
        let config = self.network.config();
        rois.iter()
            .zip(truths)
            .enumerate()
            .map(|(image, (sample, truth))| {
                let mut rng = generator(self.options.seed, self.step, image, Purpose::Keypoint);
                targets::keypoint_sample(sample, truth, config.network.heatmap_side, config.keypoint_rois, &mut rng)
            })
            .collect()
    }
}

fn images(batch: &Batch, count: usize) -> Result<Tensor, RcnnError> {
    Ok(Tensor::from_slice(&batch.data, (count, 3, batch.rows, batch.columns), &Device::Cpu)?)
}
