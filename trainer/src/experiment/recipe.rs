//! Everything that decides a result, so that one result is never taken for another.

use super::plan::{Arm, Data, Drawn, Labels, Plan, is_whole, whole};
use super::{ExperimentError, Record};
use crate::digest::digest;
use crate::evaluate::Views;
use crate::start;
use omnilabel_coco::Dataset;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::device::Arithmetic;
use omnilabel_rcnn::train::TrainOptions;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// An arm with one length and one seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case<'p> {
    pub(super) arm: &'p Arm,
    pub(super) steps: u64,
    pub(super) seed: u64,
}

impl Case<'_> {
    /// For files and messages.
    pub(super) fn name(&self) -> String {
        format!("{}-{}-seed{}", self.arm.name, self.steps, self.seed)
    }

    /// The arms that label, with the numbers of steps of their own schedules.
    pub(super) fn teachers<'p>(&self, plan: &'p Plan) -> Result<Vec<Case<'p>>, ExperimentError> {
        let case = |arm: &'p Arm| {
            let steps = plan.options(arm, self.seed).map_err(ExperimentError::Start)?.steps;
            Ok(Case { arm, steps, seed: self.seed })
        };
        self.arm.teacher.names().filter_map(|name| plan.arm(name)).map(case).collect()
    }

    /// What the model is made of, from the plan and from what only the data can tell.
    pub(super) fn recipe(&self, plan: &Plan, found: FromData) -> Result<Recipe, ExperimentError> {
        let (arm, data) = (self.arm, &plan.data);
        let options = plan.options(arm, self.seed).map_err(ExperimentError::Start)?;
        let labelling = (arm.labels == Labels::Generated).then(|| LabelRecipe {
            views: arm.views.clone().unwrap_or_else(|| plan.views.clone()),
            footage_sha256: found.footage_sha256,
            unlabelled: arm.unlabelled,
            keep: arm.keep,
            ignore_from: arm.ignore_from,
            min_agreement: arm.min_agreement,
            most_agreed: arm.most_agreed,
            soft: arm.soft,
            manual_percent: arm.manual_percent,
        });
        Ok(Recipe {
            labels: arm.labels,
            network: found.network,
            options: TrainOptions { steps: self.steps, ..options.clone() },
            first_weights: found.first_weights,
            data: DataRecipe {
                train_sha256: found.train_sha256,
                images: data.images,
                labelled: data.labelled,
                draw: data.draw,
                held_out: data.held_out,
                seed: (options.seed != self.seed).then_some(self.seed),
            },
            teacher: found.teacher,
            labelling,
        })
    }

    /// Whether the plan can have led to a record, as far as can be told without the data: `teacher` is the key that its teachers' own records
    /// give.
    pub(super) fn may_have_made(&self, plan: &Plan, record: &Record, teacher: Option<String>) -> Result<bool, ExperimentError> {
        let theirs = &record.recipe;
        let mut network = theirs.network.clone();
        network.name.clear();
        network.name.push_str(plan.preset(self.arm));
        let own = || start::preset(plan.preset(self.arm), network.keypoints).map(|preset| preset.input.short_side);
        let side = match plan.train.short_side {
            Some(side) => side,
            None => own().map_err(|error| ExperimentError::Start(omnilabel_console::line(&error)))?,
        };
        start::resize(&mut network, side);
        let first_weights = match (self.arm.fine_tune, plan.init(self.arm), &theirs.first_weights) {
            (true, ..) => FirstWeights::Teacher,
            (false, Some(_), FirstWeights::File { sha256 }) => FirstWeights::File { sha256: sha256.clone() },
            _ => FirstWeights::Random,
        };
        let footage_sha256 = theirs.labelling.as_ref().and_then(|labelling| labelling.footage_sha256.clone());
        if footage_sha256.is_some() != self.arm.footage.is_some() || plan.init(self.arm).is_some() && first_weights == FirstWeights::Random
        {
            return Ok(false);
        }
        let train_sha256 = theirs.data.train_sha256.clone();
        let expected = self.recipe(plan, FromData { network, first_weights, train_sha256, teacher, footage_sha256 })?;
        let key = record_key(&expected, &record.test.sha256, plan, self.arm, record.machine.precision);
        Ok(expected == *theirs && key == record.key)
    }
}

/// Of a recipe and its test.
pub(super) fn record_key(recipe: &Recipe, test_sha256: &str, plan: &Plan, arm: &Arm, precision: Arithmetic) -> String {
    let all = (recipe, test_sha256, plan.data.test_images, &arm.test_views, plan.resamples);
    match precision {
        Arithmetic::F32 => digest(&all),
        Arithmetic::Bf16 => digest(&(all, precision)),
    }
}

/// The key of those who teach together.
pub(super) fn teacher_key(keys: Vec<String>) -> Option<String> {
    if keys.len() > 1 { Some(digest(&keys)) } else { keys.into_iter().next() }
}

/// What only the data can tell of a recipe.
pub(super) struct FromData {
    pub(super) network: Config,
    pub(super) first_weights: FirstWeights,
    pub(super) train_sha256: String,
    pub(super) teacher: Option<String>,
    pub(super) footage_sha256: Option<String>,
}

/// What a model is made of. Two models of one recipe are the same model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Whose labels.
    pub labels: Labels,
    /// The network.
    pub network: Config,
    /// The schedule, with the seed of all.
    pub options: TrainOptions,
    /// Where the weights begin.
    pub first_weights: FirstWeights,
    /// The images.
    pub data: DataRecipe,
    /// Key of the teacher's recipe; of several, the digest of their keys.
    pub teacher: Option<String>,
    /// How the teacher labels.
    pub labelling: Option<LabelRecipe>,
}

/// Where weights begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstWeights {
    /// Random by the seed.
    Random,
    /// Those of a file.
    File {
        /// Its SHA-256.
        sha256: String,
    },
    /// The teacher's.
    Teacher,
}

/// The images of a seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataRecipe {
    /// SHA-256 of `annotations.json`.
    pub train_sha256: String,
    /// Only the first so many.
    pub images: Option<usize>,
    /// The share that keeps its labels.
    pub labelled: f64,
    /// Which those are.
    pub draw: Drawn,
    /// The share of them that nothing is trained on.
    pub held_out: f64,
    /// The seed that draws them, where it is not the schedule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// How a teacher's detections become labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelRecipe {
    /// Its views.
    pub views: Views,
    /// SHA-256 of footage from elsewhere.
    pub footage_sha256: Option<String>,
    /// The share of the pictures that is used.
    pub unlabelled: f64,
    /// People kept, as a multiple of the manual mean.
    pub keep: f64,
    /// The share of τ from which instances are ignore regions.
    pub ignore_from: Option<f32>,
    /// Keypoints on which the views agree less are left unlabelled.
    pub min_agreement: Option<f32>,
    /// Of the pictures with somebody from τ on, the share that is learnt from: those on which the views agree most.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub most_agreed: f64,
    /// Whether keypoints are learnt from the averaged heatmaps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
    /// Manual images of every 100 of a minibatch.
    pub manual_percent: u8,
}

impl Recipe {
    /// The recipe's name: the first 16 hexadecimal digits of its SHA-256.
    pub fn key(&self) -> String {
        digest(self)
    }
}

/// The parts of the training images for one seed.
pub(super) struct Parts {
    /// Trained on with their labels.
    pub(super) manual: Dataset,
    /// Labelled, too, and never trained on.
    pub(super) held_out: Dataset,
    /// The others, with the labels that only the upper bound and the measurement of labels see.
    pub(super) unlabelled: Dataset,
}

impl Parts {
    /// At least one image in each, where there are three.
    pub(super) fn of(all: &Dataset, data: &Data, seed: u64) -> Self {
        let order = match data.draw {
            Drawn::First => all.images.iter().map(|image| image.id).collect(),
            Drawn::Random => shuffled(all, seed, 0),
        };
        let count = |of: usize, share: f64| ((of as f64 * share).round() as usize).clamp(1, of.max(2) - 1);
        let (labelled, unlabelled) = order.split_at(count(order.len(), data.labelled).max(2).min(order.len()));
        let (held_out, manual) = labelled.split_at(count(labelled.len(), data.held_out).min(labelled.len()));
        Self { manual: only(all, manual), held_out: only(all, held_out), unlabelled: only(all, unlabelled) }
    }
}

/// A share of a data set's images, of which a smaller one is a part.
pub(super) fn share(all: &Dataset, share: f64, seed: u64) -> Dataset {
    if share >= 1.0 {
        return all.clone();
    }
    let count = ((all.images.len() as f64 * share).round() as usize).max(1);
    only(all, &shuffled(all, seed, 1)[..count.min(all.images.len())])
}

fn shuffled(all: &Dataset, seed: u64, stream: u64) -> Vec<u64> {
    let mut order: Vec<u64> = all.images.iter().map(|image| image.id).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    order.shuffle(&mut rng);
    order
}

fn only(all: &Dataset, ids: &[u64]) -> Dataset {
    let ids: BTreeSet<u64> = ids.iter().copied().collect();
    all.subset(|_, image| ids.contains(&image.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_coco::ImageRecord;
    use omnilabel_keypoints::skeleton::Skeleton;
    use std::path::PathBuf;

    fn images(n: u64) -> Dataset {
        let images = (1..=n).map(|id| ImageRecord { id, file_name: format!("{id}.jpg"), width: 8, height: 8 }).collect();
        Dataset { root: PathBuf::new(), skeleton: Skeleton::coco17(), images, annotations: Vec::new() }
    }

    fn ids(dataset: &Dataset) -> BTreeSet<u64> {
        dataset.images.iter().map(|image| image.id).collect()
    }

    fn data(draw: Drawn) -> Data {
        Data { train: PathBuf::new(), test: PathBuf::new(), images: None, test_images: None, labelled: 0.3, draw, held_out: 0.1 }
    }

    #[test]
    fn every_image_is_in_one_part_and_the_labelled_ones_differ_by_seed() {
        let all = images(1000);
        let parts: Vec<Parts> = [1, 2].map(|seed| Parts::of(&all, &data(Drawn::Random), seed)).into();
        for part in &parts {
            let sizes = [&part.manual, &part.held_out, &part.unlabelled].map(|part| part.images.len());
            assert_eq!(sizes, [270, 30, 700]);
            let together: BTreeSet<u64> = [&part.manual, &part.held_out, &part.unlabelled].into_iter().flat_map(ids).collect();
            assert_eq!(together.len(), 1000);
        }
        assert_ne!(ids(&parts[0].manual), ids(&parts[1].manual));
        assert_eq!(ids(&Parts::of(&all, &data(Drawn::Random), 1).manual), ids(&parts[0].manual));
        let first = Parts::of(&all, &data(Drawn::First), 1);
        assert_eq!(ids(&first.unlabelled), (301..=1000).collect());
    }

    #[test]
    fn few_images_still_have_every_part() {
        let part = Parts::of(&images(4), &data(Drawn::First), 1);
        assert_eq!([&part.manual, &part.held_out, &part.unlabelled].map(|part| part.images.len()), [1, 1, 2]);
    }

    #[test]
    fn a_smaller_share_is_a_part_of_a_larger_one() {
        let all = images(100);
        let (quarter, half) = (share(&all, 0.25, 3), share(&all, 0.5, 3));
        assert_eq!((quarter.images.len(), half.images.len()), (25, 50));
        assert!(ids(&quarter).is_subset(&ids(&half)));
        assert_eq!(ids(&share(&all, 1.0, 3)), ids(&all));
    }
}
