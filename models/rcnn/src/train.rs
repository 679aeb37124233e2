//! The training step and loop.
//!
//! ```text
//! Run::new(config, options, skeleton flip, init) ─▶ step(samples) ─▶ Losses … checkpoint(dir) / Run::resume(dir)
//! ```

mod average;
mod checkpoint;
mod objective;
mod ranks;
mod replicas;

use crate::RcnnError;
use crate::augment::{Augment, Batch, Draw, Sample, prepare};
use crate::config::{Config, SHORT_SIDES};
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
use ranks::{Seat, share};
use replicas::{State, Worker};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

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
    pub fn wrong(&self) -> Option<(String, String, &'static str)> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rising = self.milestones.windows(2).all(|pair| pair[0] < pair[1]);
        let shares = self.milestones.iter().all(|share| (0.0..=1.0).contains(share));
        let checks = [
            (self.steps > 0, "steps", self.steps.to_string(), "1 or more"),
            (positive(self.lr), "lr", self.lr.to_string(), "a number above 0"),
            (self.batch > 0, "batch", self.batch.to_string(), "1 or more"),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "weight_decay",
                self.weight_decay.to_string(),
                "a number from 0 on",
            ),
            (rising && shares, "milestones", format!("{:?}", self.milestones), "shares of the schedule from 0 to 1, rising"),
            (self.clip.is_none_or(positive), "clip", format!("{:?}", self.clip), "a number above 0"),
            (
                self.short_sides.iter().all(|side| SHORT_SIDES.contains(side)),
                "short_sides",
                format!("{:?}", self.short_sides),
                "16 to 4096 px each",
            ),
            (self.average.is_none_or(|decay| (0.0..1.0).contains(&decay)), "average", format!("{:?}", self.average), "0 to below 1"),
        ];
        let first = checks.into_iter().find(|(good, ..)| !good).map(|(_, key, found, expected)| (key.to_owned(), found, expected));
        let augments = [("augment", Some(&self.augment)), ("generated_augment", self.generated_augment.as_ref())];
        first.or_else(|| {
            augments.into_iter().find_map(|(name, augment)| {
                let (key, found, expected) = augment?.wrong()?;
                Some((format!("{name}.{key}"), found, expected))
            })
        })
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

/// A training run: network, optimiser and the position in the schedule; on several devices a replica of them on each, which have the
/// same weights after every step.
pub struct Run {
    /// The network being trained: on several devices, the first one's.
    pub network: Network,
    /// Options it was started with.
    pub options: TrainOptions,
    flip: Vec<u8>,
    optim: Optim,
    seat: Seat,
    others: Vec<Worker>,
    /// Whether the others have what the first rank has.
    shared: bool,
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

    /// As [`Run::new`], on a device, or on several, each of which takes its share of every batch.
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
        let mut run = Self::assemble(network, options, flip, place)?;
        run.uncalibrated = matches!(init, Init::Seed(_));
        Ok(run)
    }

    fn assemble(network: Network, options: TrainOptions, flip: &[u8], place: &Place) -> Result<Self, RcnnError> {
        let keypoints = network.config().keypoints;
        if flip.len() != keypoints {
            return Err(RcnnError::Config(format!("the flip permutation has {} entries for {keypoints} keypoints", flip.len())));
        }
        let places = place.each();
        let (batch, ranks) = (options.batch, places.len());
        if batch < ranks {
            return Err(RcnnError::Config(format!("`batch` is {batch}, expected {ranks} or more: one image for each of {ranks} devices")));
        }
        let vars = replicas::vars(&network);
        let average = options.average.map(|decay| Average::new(decay, vars.iter().map(|(_, var)| var))).transpose()?;
        let optim = Optim::new(options.optimizer, options.weight_decay, options.clip, vars)?;
        let devices: Vec<_> = places.iter().map(|place| place.device.clone()).collect();
        let mut seats = Seat::around(&devices)?.into_iter();
        let seat = seats.next().unwrap_or_else(Seat::alone);
        let others = seats.zip(places.into_iter().skip(1));
        let others =
            others.map(|(seat, place)| Worker::start(network.config().clone(), &options, seat, place)).collect::<Result<_, _>>()?;
        let flip = flip.to_vec();
        Ok(Self { network, options, flip, optim, seat, others, shared: false, average, uncalibrated: false, step: 0 })
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
        let ranks = self.seat.ranks();
        if samples.len() < ranks {
            let message = format!("a training step on {} samples needs at least one for each of {ranks} devices", samples.len());
            return Err(RcnnError::Config(message));
        }
        let batch = self.prepare(samples)?;
        self.calibrate_on(&batch)?;
        self.share()?;
        let o = &self.options;
        let lr = learning_rate(o.schedule, o.lr, self.step, o.steps, o.warmup, &o.milestones);
        let (seed, step, batch) = (o.seed, self.step, Arc::new(batch));
        let task = |rank| Part { images: share(samples.len(), rank, ranks), seed, step, lr };
        let theirs: Vec<_> = self.others.iter().zip(1..).map(|(other, rank)| other.step(batch.clone(), task(rank))).collect();
        let ours = part(&self.network, &mut self.optim, &self.seat, &batch, &task(0));
        // All are waited for. What one rank failed of is said before what that made the others fail of.
        let outcomes = std::iter::once(ours).chain(theirs.into_iter().map(replicas::Answer::get));
        let (mut losses, mut failed) = (None, None);
        for outcome in outcomes {
            match outcome {
                Ok(found) => losses = losses.or(Some(found)),
                Err(error @ RcnnError::Rank { .. }) => failed = failed.or(Some(error)),
                Err(error) if matches!(failed, None | Some(RcnnError::Rank { .. })) => failed = Some(error),
                Err(_) => {}
            }
        }
        let losses = match (failed, losses) {
            (None, Some(losses)) => losses,
            (failed, _) => return Err(failed.unwrap_or_else(|| RcnnError::Rank { rank: 0, message: "gave no losses".to_owned() })),
        };
        self.step += 1;
        if let Some(average) = &mut self.average {
            average.update(self.step, self.optim.vars.iter().map(|(_, var)| var))?;
        }
        Ok(losses)
    }

    /// Gives the other ranks what the first one has, unless they have it.
    fn share(&mut self) -> Result<(), RcnnError> {
        if !self.shared && !self.others.is_empty() {
            let state = Arc::new(State::of(&self.network, &self.optim)?);
            let given: Vec<_> = self.others.iter().map(|other| other.give(state.clone())).collect();
            given.into_iter().try_for_each(replicas::Answer::get)?;
        }
        self.shared = true;
        Ok(())
    }

    /// Gives the network the average of its weights, where one is kept: for the end of a run, after its last checkpoint.
    ///
    /// # Errors
    /// See [`RcnnError`].
    pub fn take_average(&mut self) -> Result<(), RcnnError> {
        if let Some(average) = self.average.take() {
            self.optim.vars.iter().zip(&average.values).try_for_each(|((_, var), value)| var.set(value))?;
            self.shared = false;
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
            self.network.calibrate(&images(&self.network, batch, 0..batch.truths.len())?)?;
            self.shared = false;
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
}

/// One rank's part of a step.
struct Part {
    /// Which images of the batch are its.
    images: Range<usize>,
    seed: u64,
    step: u64,
    lr: f64,
}

/// Does a rank's part of a step: the losses of the whole batch and, unless one of them is not finite, an update of this rank's weights
/// by the whole batch's gradient.
fn part(network: &Network, optim: &mut Optim, seat: &Seat, batch: &Batch, task: &Part) -> Result<Losses, RcnnError> {
    seat.attend(|| {
        let (losses, gradients) = gradients(network, &optim.vars, seat, batch, task)?;
        let norm = optim.step(&gradients, task.lr, task.step)?;
        if !norm.is_finite() {
            return Err(RcnnError::NotFinite { name: "gradient norm", step: task.step, value: norm as f32 });
        }
        Ok(losses)
    })
}

/// The losses of the whole batch and their gradients by `vars`, the same at every rank.
fn gradients(
    network: &Network,
    vars: &[(String, Var)],
    seat: &Seat,
    batch: &Batch,
    task: &Part,
) -> Result<(Losses, Vec<Option<Tensor>>), RcnnError> {
    let (losses, total) = forward(network, seat, batch, task)?;
    for (name, value) in losses.named() {
        if !value.is_finite() {
            return Err(RcnnError::NotFinite { name, step: task.step, value });
        }
    }
    let mut grads = total.backward()?;
    let mine = vars.iter().map(|(_, var)| grads.remove(var.as_tensor()).map(|gradient| gradient.contiguous()).transpose());
    let mine = mine.collect::<Result<_, _>>()?;
    // The activations' gradients are no longer needed, and the sums need room.
    drop((grads, total));
    Ok((losses, seat.reduce(mine, vars)?))
}

/// The losses of the whole batch, and the sum of this rank's part of them as a tensor, on anchors and RoIs drawn for this step.
fn forward(network: &Network, seat: &Seat, batch: &Batch, task: &Part) -> Result<(Losses, Tensor), RcnnError> {
    let config = network.config();
    // Drawn for an image's place in the whole batch: the same on any number of ranks.
    let rng = |image, purpose| generator(task.seed, task.step, task.images.start + image, purpose);
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
    let pixels = images(network, batch, task.images.clone())?;
    objective(network, &pixels, &batch.truths[task.images.clone()], seat, anchors, rois)
}

/// Images of a batch, `[n, 3, h, w]`, where the network is and in its type.
fn images(network: &Network, batch: &Batch, which: Range<usize>) -> Result<Tensor, RcnnError> {
    let shape = (which.len(), 3, batch.rows, batch.columns);
    let one = 3 * batch.rows * batch.columns;
    let pixels = &batch.data[which.start * one..which.end * one];
    Ok(Tensor::from_slice(pixels, shape, network.params().device())?.to_dtype(network.params().dtype())?)
}

#[cfg(test)]
mod tests;
