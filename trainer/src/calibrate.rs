//! τ and τ_k (spec §4): how many of the teacher's detections become labels.
//!
//! τ is the ⌊n̄·N⌋-th highest score over N unlabelled images, so that a generated image has as many people as a manual one. Camera
//! footage is often empty, so the fleet takes the higher of that and the score from which 90 % of the detections are right.

use crate::samples::is_labelled_person;
use omnilabel_coco::Dataset;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::{Detection, Thresholds};
use serde::{Deserialize, Serialize};

/// The share of right detections that [`Mode::Fleet`] asks for.
pub const FLEET_PRECISION: f64 = 0.9;
/// A detection is right when its box overlaps a person's with this IoU.
pub const BOX_IOU: f32 = 0.5;
/// How far the realised mean may be from n̄ (spec §4).
pub const MEAN_TOLERANCE: f64 = 0.01;

/// How τ is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The higher of the matched τ and τ at 90 % precision on the held-out labels.
    #[default]
    Fleet,
    /// The matched τ alone.
    Paper,
}

/// A mean as the two counts that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mean {
    /// The sum.
    pub total: u64,
    /// Over so many.
    pub over: u64,
}

impl Mean {
    /// As a number; 0 over nothing.
    pub fn value(self) -> f64 {
        self.total as f64 / self.over.max(1) as f64
    }

    /// ⌊mean · `groups`⌋, exactly.
    fn of(self, groups: u64) -> u64 {
        let product = u128::from(self.total) * u128::from(groups) / u128::from(self.over.max(1));
        u64::try_from(product).unwrap_or(u64::MAX)
    }
}

/// What a manual set is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualStats {
    /// Images, with or without people.
    pub images: u64,
    /// People with at least one labelled keypoint, without crowds.
    pub people: u64,
    /// Their labelled keypoints.
    pub keypoints: u64,
}

impl ManualStats {
    /// Of a data set.
    pub fn of(dataset: &Dataset) -> Self {
        let people: Vec<_> = dataset.annotations.iter().filter(|a| is_labelled_person(a)).collect();
        let keypoints: usize = people.iter().map(|a| a.keypoints.chunks(3).filter(|k| k.get(2).is_some_and(|v| *v > 0.0)).count()).sum();
        Self { images: dataset.images.len() as u64, people: people.len() as u64, keypoints: keypoints as u64 }
    }

    /// n̄.
    pub const fn people_per_image(&self) -> Mean {
        Mean { total: self.people, over: self.images }
    }

    /// Labelled keypoints per person who has any.
    pub const fn keypoints_per_person(&self) -> Mean {
        Mean { total: self.keypoints, over: self.people }
    }
}

/// A threshold that matches a mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// Scores at or above it are kept.
    pub threshold: f32,
    /// What was asked for, per image or per person.
    pub wanted_mean: f64,
    /// What the threshold gives; ties and too few scores make it differ.
    pub realised_mean: f64,
}

impl Matched {
    /// Whether the realised mean is within [`MEAN_TOLERANCE`] of the wanted one.
    pub fn holds(&self) -> bool {
        (self.realised_mean - self.wanted_mean).abs() <= MEAN_TOLERANCE * self.wanted_mean
    }
}

/// The ⌊`mean`·`groups`⌋-th highest of `scores`: `groups` are images (scores of instances) or kept people (probabilities of
/// keypoints). With too few scores all are kept; when none is wanted, the threshold lies above all.
pub fn match_mean(scores: &[f32], groups: u64, mean: Mean) -> Matched {
    let mut sorted: Vec<f32> = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let threshold = match usize::try_from(mean.of(groups)).unwrap_or(usize::MAX).min(sorted.len()) {
        0 => sorted.first().map_or(1.0, |s| s.next_up()),
        n => sorted[n - 1],
    };
    let kept = sorted.partition_point(|s| *s >= threshold);
    Matched { threshold, wanted_mean: mean.value(), realised_mean: kept as f64 / groups.max(1) as f64 }
}

/// [`match_mean`] from a histogram over `[0, 1]`: scores are taken as evenly spread within a bin.
pub fn match_mean_histogram(bins: &[u64], groups: u64, mean: Mean) -> Matched {
    let wanted = mean.of(groups) as f64;
    let width = 1.0 / bins.len().max(1) as f64;
    let mut above = 0.0;
    let mut threshold = 0.0;
    for (bin, count) in bins.iter().enumerate().rev() {
        let next = above + *count as f64;
        if next >= wanted {
            let share = if *count == 0 { 0.0 } else { (wanted - above) / *count as f64 };
            threshold = (bin + 1) as f64 * width - share * width;
            above = wanted;
            break;
        }
        above = next;
    }
    Matched { threshold: threshold as f32, wanted_mean: mean.value(), realised_mean: above / groups.max(1) as f64 }
}

/// A detection that is right or wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Its score.
    pub score: f32,
    /// Whether it found a person.
    pub right: bool,
}

/// Judges the detections of one image (by falling score) by box overlap with its annotations. Those on crowds count neither way.
pub fn judge_boxes(dataset: &Dataset, image_id: u64, detections: &[Detection], into: &mut Vec<Judged>) {
    let annotations = dataset.annotations_of(image_id);
    let boxes: Vec<(Rect, bool)> = annotations
        .iter()
        .map(|a| {
            let [x, y, w, h] = a.bbox.map(|v| v as f32);
            (Rect::from_xywh(x, y, w, h), a.iscrowd != 0)
        })
        .collect();
    let mut taken = vec![false; boxes.len()];
    for detection in detections {
        let best = boxes
            .iter()
            .enumerate()
            .filter(|(i, (_, crowd))| !crowd && !taken[*i])
            .map(|(i, (rect, _))| (i, rect.iou(&detection.rect)))
            .filter(|(_, iou)| *iou >= BOX_IOU)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((i, _)) = best {
            taken[i] = true;
            into.push(Judged { score: detection.score, right: true });
        } else if !boxes.iter().any(|(rect, crowd)| *crowd && share_inside(&detection.rect, rect) >= BOX_IOU) {
            into.push(Judged { score: detection.score, right: false });
        }
    }
}

/// The part of `a` that lies in `b`.
fn share_inside(a: &Rect, b: &Rect) -> f32 {
    let width = (a.x2.min(b.x2) - a.x1.max(b.x1)).max(0.0);
    let height = (a.y2.min(b.y2) - a.y1.max(b.y1)).max(0.0);
    if a.area() > 0.0 { width * height / a.area() } else { 0.0 }
}

/// The lowest score such that at least `precision` of the detections at or above it are right, or `None` when no score is.
pub fn threshold_at_precision(judged: &[Judged], precision: f64) -> Option<f32> {
    let mut sorted = judged.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    let (mut right, mut lowest) = (0_usize, None);
    for (i, one) in sorted.iter().enumerate() {
        right += usize::from(one.right);
        let last_of_tie = sorted.get(i + 1).is_none_or(|next| next.score < one.score);
        if last_of_tie && right as f64 >= precision * (i + 1) as f64 {
            lowest = Some(one.score);
        }
    }
    lowest
}

/// Detections on held-out labels, and what is asked of them.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut<'j> {
    /// Every detection, right or wrong.
    pub judged: &'j [Judged],
    /// The share of right ones from τ on.
    pub precision: f64,
}

impl HeldOut<'_> {
    /// The lowest score at which the precision is reached, and that score or, when there is none, the highest: no label would be
    /// trustworthy, and matching a mean would keep that many wrong ones.
    pub fn threshold(&self) -> (Option<f32>, f32) {
        let at = threshold_at_precision(self.judged, self.precision);
        (at, at.or_else(|| self.judged.iter().map(|j| j.score).max_by(f32::total_cmp)).unwrap_or(0.0))
    }
}

/// What a calibration found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// How.
    pub mode: Mode,
    /// n̄ and the like.
    pub manual: ManualStats,
    /// τ by the match.
    pub instance: Matched,
    /// τ at the wanted precision, where held-out labels were given and reach it.
    pub at_precision: Option<f32>,
    /// τ_k by the match.
    pub keypoint: Matched,
    /// What labels are made with.
    pub thresholds: Thresholds,
}

/// τ from the match and, in [`Mode::Fleet`], from held-out judgements (see [`HeldOut::threshold`]).
pub fn instance_threshold(mode: Mode, matched: &Matched, held_out: Option<HeldOut<'_>>) -> (f32, Option<f32>) {
    match (mode, held_out) {
        (Mode::Fleet, Some(held_out)) => {
            let (at, strict) = held_out.threshold();
            (matched.threshold.max(strict), at)
        }
        _ => (matched.threshold, None),
    }
}

/// Calibrates from all detections of all unlabelled images.
pub fn calibrate(mode: Mode, manual: ManualStats, unlabelled: &[Vec<Detection>], held_out: Option<HeldOut<'_>>, floor: f32) -> Calibration {
    let scores: Vec<f32> = unlabelled.iter().flatten().map(|d| d.score).collect();
    let instance = match_mean(&scores, unlabelled.len() as u64, manual.people_per_image());
    let (tau, at_precision) = instance_threshold(mode, &instance, held_out);
    let kept: Vec<&Detection> = unlabelled.iter().flatten().filter(|d| d.score >= tau).collect();
    let probabilities: Vec<f32> = kept.iter().flat_map(|d| d.keypoints.iter().map(|k| k.probability)).collect();
    let keypoint = match_mean(&probabilities, kept.len() as u64, manual.keypoints_per_person());
    // A threshold above all scores may lie above 1, which no manifest may say.
    let thresholds = Thresholds { instance: tau.min(1.0), keypoint: keypoint.threshold.min(1.0), floor: floor.min(tau) };
    Calibration { mode, manual, instance, at_precision, keypoint, thresholds }
}

/// One image's detections after τ.
#[derive(Clone, Debug, Default)]
pub struct Kept<'d> {
    /// At or above τ.
    pub people: Vec<&'d Detection>,
    /// Just under τ.
    pub ignored: Vec<&'d Detection>,
}

/// Splits detections at τ. `ignore_from` is the share of τ from which an instance that is not kept becomes an ignore region;
/// `None` is the paper's rule: it becomes background.
pub fn split<'d>(detections: &'d [Detection], tau: f32, ignore_from: Option<f32>) -> Kept<'d> {
    let people = detections.iter().filter(|d| d.score >= tau).collect();
    let low = ignore_from.map_or(tau, |share| share * tau);
    let ignored = detections.iter().filter(|d| d.score < tau && d.score >= low).collect();
    Kept { people, ignored }
}

#[cfg(test)]
mod tests;
