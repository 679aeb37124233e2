//! What an arm came to: one file per arm, length and seed, of which the tables are made.

use super::ExperimentError;
use super::recipe::Recipe;
use crate::arm::{ArmError, StepReport, write_atomically};
use crate::calibrate::Calibration;
use crate::distill::LabelCount;
use crate::evaluate::{Bin, Views};
use crate::score::CocoScores;
use omnilabel_rcnn::device::Arithmetic;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Points of a curve.
const POINTS: u64 = 50;

/// The result of one arm, length and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The experiment's name.
    pub experiment: String,
    /// The arm's.
    pub arm: String,
    /// Optimiser steps.
    pub steps: u64,
    /// The seed.
    pub seed: u64,
    /// Of recipe and test.
    pub key: String,
    /// How the model was made.
    pub recipe: Recipe,
    /// Images with true labels it was trained on.
    pub manual_images: usize,
    /// Images with generated labels.
    pub generated_images: usize,
    /// Pictures that it should have been trained on, and that could not be read.
    #[serde(default)]
    pub left_out: usize,
    /// The generated labels.
    pub labels: Option<LabelRecord>,
    /// On the held-out labelled images, one view: what choices are made by.
    pub held_out: CocoScores,
    /// On the test images.
    pub test: Test,
    /// Losses over the steps.
    pub curve: Vec<Point>,
    /// Seconds of training.
    pub train_s: f64,
    /// What it was trained on.
    pub machine: Machine,
    /// The program's version.
    pub version: String,
}

/// What was measured on the test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// SHA-256 of `annotations.json`.
    pub sha256: String,
    /// Images.
    pub images: usize,
    /// One view if none.
    pub views: Option<Views>,
    /// The ten numbers.
    pub scores: CocoScores,
    /// AP of the smaller, middle and larger third of the people, by area.
    pub terciles: [f64; 3],
    /// Share of keypoints within 0.2 torso diameters, where the skeleton has a torso.
    pub pck: Option<f64>,
    /// AP on resamples of the images, the same ones in every record of these images, to 5 digits.
    pub resampled: Vec<f64>,
}

/// What the labels of a student are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelRecord {
    /// τ, τ_k and what they gave.
    pub calibration: Calibration,
    /// How many.
    pub count: LabelCount,
    /// How good the detections that they are made of are, where the truth is known.
    pub quality: Option<Quality>,
    /// PCK of the labelled keypoints by the agreement of the views, in fifths, where the truth is known.
    #[serde(default)]
    pub pck_by_agreement: Vec<Bin>,
    /// OKS-AP of the hard labels of pictures by the mean agreement of the views on their instances, in fifths of the pictures that have any.
    #[serde(default)]
    pub ap_by_agreement: Vec<Bin>,
    /// OKS of the detections with the nearest person by their score, in fifths, where the truth is known: the calibration of the score.
    #[serde(default)]
    pub oks_by_score: Vec<Bin>,
}

/// How good a teacher's detections on the unlabelled images are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// OKS-AP of one view.
    pub single_ap: f64,
    /// OKS-AP of all views.
    pub ensemble_ap: f64,
    /// PCK of one view.
    pub single_pck: Option<f64>,
    /// PCK of all views.
    pub ensemble_pck: Option<f64>,
    /// OKS-AP of one view for the smaller, middle and larger third of the people, by area; none in records of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_terciles: Option<[f64; 3]>,
    /// The same of all views.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensemble_terciles: Option<[f64; 3]>,
    /// What one view's hard labels would be, with thresholds of its own; none in records of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_hard: Option<Hard>,
    /// All views' hard labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensemble_hard: Option<Hard>,
}

/// How good it is what the thresholds make of detections: instances from τ on, with their keypoints from τ_k on. How many that are,
/// [`LabelRecord::count`] says. (A picture in which nobody keeps a keypoint teaches nothing, and counts here all the same.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hard {
    /// OKS-AP of the instances with all of their keypoints: a result has a place for each.
    pub ap: f64,
    /// The share of labelled keypoints within 0.2 torso diameters, of people whose torso is known.
    pub pck: Option<f64>,
}

/// Means over the steps since the point before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Sum of all losses.
    pub loss: f32,
    /// Of the keypoints alone.
    pub keypoint: f32,
}

/// Where an arm was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `cpu`, or a GPU.
    pub device: String,
    /// What its products are computed in.
    #[serde(default)]
    pub precision: Arithmetic,
    /// Threads of the processor.
    pub threads: usize,
    /// Its architecture.
    pub arch: String,
}

impl Record {
    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    /// [`ArmError::Io`]; [`ArmError::Json`] for a file that is none, or one of another version.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, ExperimentError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ArmError::io(path)(error).into()),
        };
        Ok(Some(serde_json::from_slice(&text).map_err(|source| ArmError::Json { path: path.to_owned(), source })?))
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), ExperimentError> {
        let mut text = serde_json::to_vec(self).map_err(|source| ArmError::Json { path: path.to_owned(), source })?;
        text.push(b'\n');
        Ok(write_atomically(path, &text)?)
    }
}

/// At most [`POINTS`] means of a training's losses.
pub(super) fn curve(reports: &[StepReport]) -> Vec<Point> {
    let Some(last) = reports.last() else { return Vec::new() };
    let every = last.steps.div_ceil(POINTS).max(1) as usize;
    let mean = |part: &[StepReport], of: fn(&StepReport) -> f32| part.iter().map(of).sum::<f32>() / part.len() as f32;
    let point = |part: &[StepReport]| Point {
        step: part.last().map_or(0, |report| report.step),
        loss: mean(part, |report| report.losses.total()),
        keypoint: mean(part, |report| report.losses.keypoint),
    };
    reports.chunks(every).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_rcnn::train::Losses;

    #[test]
    fn a_curve_has_at_most_fifty_means_and_ends_with_the_last_step() {
        let report = |step| StepReport {
            step,
            steps: 101,
            losses: Losses { keypoint: step as f32, classifier: 1.0, ..Losses::default() },
            lr: 0.1,
            images_per_sec: 1.0,
            elapsed_s: 1.0,
        };
        let points = curve(&(1..=101).map(report).collect::<Vec<_>>());
        // Means of three steps, and of the last two.
        assert_eq!((points.len(), points[0]), (34, Point { step: 3, loss: 3.0, keypoint: 2.0 }));
        assert_eq!(points[33], Point { step: 101, loss: 101.5, keypoint: 100.5 });
        assert_eq!(curve(&[]), []);
    }
}
