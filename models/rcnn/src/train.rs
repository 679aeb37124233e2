//! The training step and loop.
//!
//! ```text
//! Run::new(config, options, skeleton flip, init) ─▶ step(samples) ─▶ Losses … checkpoint(dir) / Run::resume(dir)
//! ```

mod average;
mod checkpoint;
mod objective;

use crate::RcnnError;
use crate::augment::{Augment, Batch, Draw, Sample, prepare};
use crate::config::Config;
use crate::device::Place;
use crate::network::Network;
use crate::optim::Optim;
pub use crate::optim::{Optimizer, Schedule, learning_rate};
use crate::targets::{self, MatchRule, Purpose, Truth, generator};
use average::Average;
use candle_core::{Tensor, Var};
use objective::objective;
pub use objective::{Chosen, objective_on};
use omnilabel_keypoints::geometry::Rect;
use rand::Rng;
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
    /// Augmentation of samples with generated labels, where it is another (spec §7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated_augment: Option<Augment>,
    /// Short sides drawn from per step (multi-scale training); empty: the config's.
    pub short_sides: Vec<u32>,
    /// Decay of the exponential moving average of the weights that is exported instead of the last ones (spec §7); after s steps at most
    /// (1 + s) / (10 + s), so that 0.9996 is reached after 22,500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
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
            generated_augment: None,
            short_sides: Vec::new(),
            average: None,
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// The first number that is out of its range, if one is: its key, its value, and what was expected.
    pub fn wrong(&self) -> Option<(&'static str, String, &'static str)> {
        let cutout = |augment: &Augment| (0.0..=1.0).contains(&augment.cutout);
        let generated = self.generated_augment.as_ref();
        let checks = [
            (self.lr.is_finite() && self.lr > 0.0, "lr", self.lr.to_string(), "a number above 0"),
            (self.batch > 0, "batch", self.batch.to_string(), "1 or more"),
            (self.average.is_none_or(|decay| (0.0..1.0).contains(&decay)), "average", format!("{:?}", self.average), "0 to below 1"),
            (cutout(&self.augment), "augment.cutout", self.augment.cutout.to_string(), "0 to 1"),
            (
                generated.is_none_or(cutout),
                "generated_augment.cutout",
                generated.map_or(0.0, |augment| augment.cutout).to_string(),
                "0 to 1",
            ),
        ];
        checks.into_iter().find(|(good, ..)| !good).map(|(_, key, found, expected)| (key, found, expected))
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
    average: Option<Average>,
    /// Whether the random weights still wait for the first batch's statistics.
    uncalibrated: bool,
    step: u64,
}

/// Share of positives among the RPN's sampled anchors.
const RPN_POSITIVE: f32 = 0.5;

impl Run {
    /// Starts a run. `flip` is the skeleton's flip permutation.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn new(config: Config, options: TrainOptions, flip: &[u8], init: &Init) -> Result<Self, RcnnError> {
        Self::new_on(config, options, flip, init, &Place::cpu())
    }

    /// As [`Run::new`], on a device.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn new_on(config: Config, options: TrainOptions, flip: &[u8], init: &Init, place: &Place) -> Result<Self, RcnnError> {
        let network = match init {
            Init::Seed(seed) | Init::File(_, seed) => Network::new_on(config, *seed, place)?,
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
        let average = options.average.map(|decay| Average::new(decay, vars.iter().map(|(_, var)| var))).transpose()?;
        let optim = Optim::new(options.optimizer, options.weight_decay, options.clip, vars)?;
        Ok(Self { network, options, flip: flip.to_vec(), optim, average, uncalibrated: false, step: 0 })
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
        if let Some(average) = &mut self.average {
            average.update(self.step, self.optim.vars.iter().map(|(_, var)| var))?;
        }
        Ok(losses)
    }

    /// Gives the network the average of its weights, where one is kept: for the end of a run, after its last checkpoint.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn take_average(&mut self) -> Result<(), RcnnError> {
        if let Some(average) = self.average.take() {
            self.optim.vars.iter().zip(&average.values).try_for_each(|((_, var), value)| var.set(value))?;
        }
        Ok(())
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
            self.network.calibrate(&self.images(batch)?)?;
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
            generated: self.options.generated_augment.as_ref().unwrap_or(&self.options.augment),
            input: &config.input,
            short_side,
            flip: &self.flip,
            seed: self.options.seed,
            step: self.step,
        };
        prepare(samples, draw)
    }

    /// The losses of a batch and their sum as a tensor, on anchors and RoIs drawn for this step.
    fn forward(&self, batch: &Batch) -> Result<(Losses, Tensor), RcnnError> {
        let config = self.network.config();
        let rng = |image, purpose| generator(self.options.seed, self.step, image, purpose);
        let anchors = |candidates: &[Rect], image: usize, truth: &Truth| {
            let matches = targets::match_boxes(candidates, &truth.boxes, &truth.ignore, MatchRule::RPN);
            targets::sample(&matches, config.rpn_batch, RPN_POSITIVE, &mut rng(image, Purpose::Rpn))
        };
        let rois = |proposed: &[Rect], image: usize, truth: &Truth| {
            let rois = targets::roi_sample(proposed, truth, config.roi_batch, config.roi_positive, &mut rng(image, Purpose::Roi));
            let (side, limit) = (config.network.heatmap_side, config.keypoint_rois);
            let keypoints = targets::keypoint_sample(&rois, truth, side, limit, &mut rng(image, Purpose::Keypoint));
            (rois, keypoints)
        };
        objective(&self.network, &self.images(batch)?, &batch.truths, anchors, rois)
    }

    /// `[n, 3, h, w]`, where the network is.
    fn images(&self, batch: &Batch) -> Result<Tensor, RcnnError> {
        let shape = (batch.truths.len(), 3, batch.rows, batch.columns);
        Ok(Tensor::from_slice(&batch.data, shape, self.network.params().device())?)
    }
}
