//! The exported bundle over a folder, through the code that devices run: single view and ensemble side by side.

mod pck;

pub use pck::{Bin, PCK_PART, pck, pck_by_agreement, pck_by_keypoint, pck_of_labels};

use crate::score::{CocoScores, GroundTruth, ScoreError, score};
use omnilabel_bundle::Bundle;
use omnilabel_coco::{Dataset, ResultRecord, from_continuous};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::label::Detection;
use omnilabel_runtime::{RuntimeError, Teacher, ViewPlan};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The folder has no image to run on.
    #[error("{0}: no images")]
    Empty(std::path::PathBuf),
    /// Nobody in the folder counts, so that no model could be told from another.
    #[error("{0}: no labelled keypoints: no annotation outside crowds has one with v > 0, and nothing can be scored on it")]
    Unlabelled(std::path::PathBuf),
    /// The model labels another skeleton.
    #[error("the model has {model} keypoints, the data set {dataset}: {first}")]
    Skeleton {
        /// Keypoints of the model.
        model: usize,
        /// Keypoints of the data set.
        dataset: usize,
        /// The first that differs.
        first: String,
    },
    /// Every picture failed; the first reason.
    #[error("none of the {images} pictures could be read; the first: {first}")]
    Unreadable {
        /// How many there are.
        images: usize,
        /// What was wrong with the first.
        first: String,
    },
    /// The model failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The results could not be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// It was asked to stop.
    #[error("stopped")]
    Cancelled,
}

/// The detections of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detected {
    /// The image.
    pub image_id: u64,
    /// By falling score.
    pub detections: Vec<Detection>,
}

/// Detections of a folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detections {
    /// In the folder's order, without the unreadable ones.
    pub images: Vec<Detected>,
    /// Pictures that could not be read, with the reason.
    pub unreadable: Vec<String>,
}

impl Detections {
    /// Those from a score on.
    #[must_use]
    pub fn from_score(&self, least: f32) -> Self {
        let of = |image: &Detected| Detected {
            image_id: image.image_id,
            detections: image.detections.iter().filter(|detection| detection.score >= least).cloned().collect(),
        };
        Self { images: self.images.iter().map(of).collect(), unreadable: self.unreadable.clone() }
    }

    /// As COCO results of `dataset`'s category: pixel indices, the probability as the keypoint's score, no `bbox` (so that the area is
    /// the keypoints' extent).
    pub fn results(&self, dataset: &Dataset) -> Vec<ResultRecord> {
        let category_id = dataset.category_id();
        let record = |image_id: u64, d: &Detection| ResultRecord {
            image_id,
            category_id,
            keypoints: d
                .keypoints
                .iter()
                .flat_map(|k| [from_continuous(k.point.x), from_continuous(k.point.y), f64::from(k.probability)])
                .collect(),
            score: f64::from(d.score),
            bbox: None,
        };
        self.images.iter().flat_map(|i| i.detections.iter().map(move |d| record(i.image_id, d))).collect()
    }
}

/// A model for many pictures at once: it has no workers of its own, so each of the caller's threads runs a picture from end to end.
///
/// # Errors
/// [`EvaluateError::Runtime`].
pub fn load(bundle: &Bundle) -> Result<Teacher, EvaluateError> {
    Ok(Teacher::load_alone(bundle)?)
}

/// The same, with another bundle that finds the people whom a top-down model labels.
///
/// # Errors
/// [`EvaluateError::Runtime`]: a top-down model without any detector, too.
pub fn load_detected(bundle: &Bundle, detector: Option<&Bundle>) -> Result<Teacher, EvaluateError> {
    let teacher = load(bundle)?;
    let teacher = match detector {
        Some(detector) => teacher.with_detector(load(detector)?)?,
        None => teacher,
    };
    if teacher.finds_people() { Ok(teacher) } else { Err(RuntimeError::NeedsBoxes { model: bundle.manifest().name.clone() }.into()) }
}

/// Runs `teacher` (see [`load`]) on every picture of `dataset`, one picture per worker thread. `done` is told how many are finished.
///
/// # Errors
/// [`EvaluateError::Empty`], [`EvaluateError::Unreadable`], [`EvaluateError::Runtime`], [`EvaluateError::Cancelled`]. A picture that
/// cannot be read is named in the result and logged, and the others go on.
pub fn detect(
    teacher: &Teacher,
    dataset: &Dataset,
    plan: &ViewPlan,
    done: &(dyn Fn(usize) + Sync),
    cancel: &AtomicBool,
) -> Result<Detections, EvaluateError> {
    if dataset.images.is_empty() {
        return Err(EvaluateError::Empty(dataset.root.clone()));
    }
    let detections = detect_readable(teacher, dataset, plan, done, cancel)?;
    match detections.unreadable.first() {
        Some(first) if detections.images.is_empty() => {
            Err(EvaluateError::Unreadable { images: dataset.images.len(), first: first.clone() })
        }
        _ => Ok(detections),
    }
}

/// As [`detect`], for a part of a folder: it may be empty, or none of its pictures readable.
pub(crate) fn detect_readable(
    teacher: &Teacher,
    dataset: &Dataset,
    plan: &ViewPlan,
    done: &(dyn Fn(usize) + Sync),
    cancel: &AtomicBool,
) -> Result<Detections, EvaluateError> {
    let finished = AtomicUsize::new(0);
    let all: Vec<Result<Detected, String>> = dataset
        .images
        .par_iter()
        .map(|image| {
            if cancel.load(Ordering::Relaxed) {
                return Err(EvaluateError::Cancelled);
            }
            let found = match Frame::open(&dataset.image_path(image)) {
                Ok(frame) => Ok(Detected { image_id: image.id, detections: teacher.detect(&frame, plan)? }),
                Err(error) => Err(error.to_string()),
            };
            done(finished.fetch_add(1, Ordering::Relaxed) + 1);
            Ok(found)
        })
        .collect::<Result<_, EvaluateError>>()?;
    let mut detections = Detections::default();
    for one in all {
        match one {
            Ok(detected) => detections.images.push(detected),
            Err(reason) => {
                tracing::warn!(%reason, "picture left out");
                detections.unreadable.push(reason);
            }
        }
    }
    Ok(detections)
}

/// Views beside the single one, and how they become one result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Views {
    /// Short sides, px.
    pub scales: Vec<u32>,
    /// Each with its mirror image.
    pub flip: bool,
    /// What is averaged.
    pub average: Average,
    /// Whether the boxes of all views are pooled before NMS and vote.
    pub box_voting: bool,
}

impl Views {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.scales.len().max(1) * if self.flip { 2 } else { 1 }
    }

    /// The plan for a model.
    pub fn plan(&self, teacher: &Teacher) -> ViewPlan {
        let base = [teacher.manifest().input.short_side];
        let scales = if self.scales.is_empty() { &base[..] } else { &self.scales };
        let plan = ViewPlan::new(teacher.manifest(), scales, self.flip);
        ViewPlan { average: self.average, box_voting: self.box_voting, ..plan }
    }
}

/// The scores of one model on one folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Images that were scored.
    pub images: usize,
    /// Pictures that could not be read; their people count as missed.
    pub unreadable: Vec<String>,
    /// One view at the base scale.
    pub single: CocoScores,
    /// The ensemble, where one was asked for.
    #[serde(default)]
    pub ensemble: Option<Ensemble>,
    /// The ensemble with either average, without and with box voting, where [`compare`] was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compared: Vec<Ensemble>,
}

/// The scores of an ensemble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ensemble {
    /// Its views.
    pub views: Views,
    /// Its scores.
    pub scores: CocoScores,
}

/// Fails unless somebody in the data set counts.
///
/// # Errors
/// [`EvaluateError::Empty`], [`EvaluateError::Unlabelled`], [`EvaluateError::Score`].
pub fn labelled(dataset: &Dataset) -> Result<(), EvaluateError> {
    if dataset.images.is_empty() {
        return Err(EvaluateError::Empty(dataset.root.clone()));
    }
    if GroundTruth::from_dataset(dataset)?.counts() { Ok(()) } else { Err(EvaluateError::Unlabelled(dataset.root.clone())) }
}

/// Fails unless model and data set name the same keypoints in the same order: labels of another order would score as bad ones.
///
/// # Errors
/// [`EvaluateError::Skeleton`].
pub fn same_skeleton(teacher: &Teacher, dataset: &Dataset) -> Result<(), EvaluateError> {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (teacher.skeleton().names().collect(), dataset.skeleton.names().collect());
    let Some(first) = first_difference(&ours, &theirs) else { return Ok(()) };
    Err(EvaluateError::Skeleton { model: ours.len(), dataset: theirs.len(), first })
}

/// Where two lists of names differ first.
pub(crate) fn first_difference(a: &[&str], b: &[&str]) -> Option<String> {
    let at = (0..a.len().max(b.len())).find(|i| a.get(*i) != b.get(*i))?;
    let name = |list: &[&str]| list.get(at).map_or("missing".to_owned(), |n| format!("`{n}`"));
    Some(format!("keypoint {at} is {} there and {} here", name(a), name(b)))
}

/// Runs and scores `teacher` on `dataset`: single view, and the ensemble of `views` if given. Returns the detections too (the
/// ensemble's, where there is one).
///
/// # Errors
/// See [`EvaluateError`].
pub fn evaluate(
    teacher: &Teacher,
    dataset: &Dataset,
    views: Option<&Views>,
    done: &(dyn Fn(usize) + Sync),
    cancel: &AtomicBool,
) -> Result<(Evaluation, Detections), EvaluateError> {
    same_skeleton(teacher, dataset)?;
    let truth = GroundTruth::from_dataset(dataset)?;
    let mut detections = detect(teacher, dataset, &ViewPlan::single(teacher.manifest()), done, cancel)?;
    let single = score(&truth, &detections.results(dataset))?;
    let unreadable = detections.unreadable.clone();
    let mut ensemble = None;
    if let Some(views) = views {
        let images = dataset.images.len();
        detections = detect(teacher, dataset, &views.plan(teacher), &|n| done(images + n), cancel)?;
        ensemble = Some(Ensemble { views: views.clone(), scores: score(&truth, &detections.results(dataset))? });
    }
    Ok((Evaluation { images: dataset.images.len(), unreadable, single, ensemble, compared: Vec::new() }, detections))
}

/// The views of `known` with either average, without and with box voting: what spec §3.4 chooses from. `known` is not run again.
///
/// # Errors
/// See [`EvaluateError`].
pub fn compare(
    teacher: &Teacher,
    dataset: &Dataset,
    known: &Ensemble,
    done: &(dyn Fn(usize) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<Ensemble>, EvaluateError> {
    let truth = GroundTruth::from_dataset(dataset)?;
    let (mut compared, mut before) = (Vec::new(), 0);
    for (average, box_voting) in [Average::Logits, Average::Probabilities].into_iter().flat_map(|a| [(a, false), (a, true)]) {
        let views = Views { average, box_voting, ..known.views.clone() };
        if views == known.views {
            compared.push(known.clone());
            continue;
        }
        let detections = detect(teacher, dataset, &views.plan(teacher), &|n| done(before + n), cancel)?;
        before += dataset.images.len();
        compared.push(Ensemble { scores: score(&truth, &detections.results(dataset))?, views });
    }
    Ok(compared)
}
