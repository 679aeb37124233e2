//! OKS average precision (spec §6): the ten COCO keypoint numbers, with the semantics of pycocotools 2.0.11's `COCOeval`.
//!
//! ```text
//! GroundTruth + results ─▶ matching (per category, area range, image) ─▶ Curve (per category, area range) ─▶ CocoScores
//! ```
//!
//! Like pycocotools, a match to an annotation whose id is 0 counts as none, and the area of a result is that of its `bbox` when the
//! first result has one, otherwise the extent of its keypoints.

mod bootstrap;
mod inspect;
mod matching;

pub use bootstrap::{Difference, Resampled, Spread, bootstrap};
pub use inspect::{Found, Inspection, Met, inspect};

use matching::{ImageMatches, match_image};
use omnilabel_coco::{Dataset, ResultRecord};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Detections per image that count.
pub const MAX_DETECTIONS: usize = 20;
/// COCO's 17 sigmas as pycocotools writes them (before the division by 10).
const COCO_SIGMAS: [f64; 17] = [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89];
/// All, medium, large: inclusive bounds of the area in px².
const AREAS: [[f64; 2]; 3] = [[0.0, 1e10], [1024.0, 9216.0], [9216.0, 1e10]];

/// Why a file could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not JSON of the expected shape.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Ground truth that cannot be scored against.
    #[error("ground truth: {0}")]
    GroundTruth(String),
    /// A result that does not belong to the ground truth.
    #[error("result {index}: {message}")]
    Result {
        /// Position in the results, from 0.
        index: usize,
        /// What was expected, what came.
        message: String,
    },
}

/// One labelled person.
#[derive(Clone, Debug, Deserialize)]
pub struct Truth {
    /// Unique id.
    pub id: u64,
    /// The image.
    pub image_id: u64,
    /// The category; the one with keypoints where the file does not say.
    #[serde(default)]
    pub category_id: Option<u64>,
    /// `[x, y, width, height]`.
    #[serde(default)]
    pub bbox: [f64; 4],
    /// `x, y, v`, flat; empty counts as unlabelled.
    #[serde(default)]
    pub keypoints: Vec<f64>,
    /// Keypoints with v > 0 as the file says; counted where it does not.
    #[serde(default)]
    pub num_keypoints: Option<u32>,
    /// px².
    pub area: f64,
    /// 1 for a crowd.
    #[serde(default)]
    pub iscrowd: u8,
}

impl Truth {
    /// Neither found nor missed: a crowd, or no labelled keypoint.
    fn ignored(&self) -> bool {
        let labelled = self.num_keypoints.map_or_else(|| self.keypoints.chunks(3).any(|k| k.get(2).is_some_and(|v| *v > 0.0)), |n| n > 0);
        self.iscrowd != 0 || !labelled
    }
}

/// What results are scored against.
#[derive(Clone, Debug)]
pub struct GroundTruth {
    /// Ascending, unique.
    image_ids: Vec<u64>,
    /// Ascending, unique.
    category_ids: Vec<u64>,
    /// By (category, image), in file order.
    truths: BTreeMap<(u64, u64), Vec<Truth>>,
    /// One per keypoint, in `f64` as pycocotools has them.
    sigmas: Vec<f64>,
}

#[derive(Deserialize)]
struct GroundTruthFile {
    images: Vec<ImageId>,
    annotations: Vec<Truth>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct ImageId {
    id: u64,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    #[serde(default)]
    keypoints: Vec<String>,
    #[serde(default)]
    sigmas: Option<Vec<f64>>,
}

/// The shortest decimal that names the `f32`: a sigma written `0.026` comes back as the `f64` 0.026, not as the `f32`'s neighbour.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

impl GroundTruth {
    /// Reads a COCO keypoint file. Sigmas come from `categories[].sigmas`, or are COCO's for 17 keypoints.
    ///
    /// # Errors
    /// See [`ScoreError`].
    pub fn read(path: &Path) -> Result<Self, ScoreError> {
        let text = std::fs::read(path).map_err(|source| ScoreError::Io { path: path.to_owned(), source })?;
        let file: GroundTruthFile = serde_json::from_slice(&text).map_err(|source| ScoreError::Json { path: path.to_owned(), source })?;
        let Some(category) = file.categories.iter().find(|c| !c.keypoints.is_empty() || c.sigmas.is_some()) else {
            return Err(ScoreError::GroundTruth(format!("{}: no category has `keypoints`", path.display())));
        };
        let sigmas = match &category.sigmas {
            Some(sigmas) => sigmas.clone(),
            None if category.keypoints.len() == COCO_SIGMAS.len() => COCO_SIGMAS.iter().map(|s| s / 10.0).collect(),
            None => vec![0.08; category.keypoints.len()],
        };
        let category_ids = file.categories.iter().map(|c| c.id).collect();
        let mut truths = file.annotations;
        truths.iter_mut().for_each(|t| t.category_id = t.category_id.or(Some(category.id)));
        Self::new(file.images.into_iter().map(|i| i.id).collect(), category_ids, truths, sigmas)
    }

    /// The ground truth of a data set, all of whose annotations have the data set's skeleton.
    ///
    /// # Errors
    /// [`ScoreError::GroundTruth`].
    pub fn from_dataset(dataset: &Dataset) -> Result<Self, ScoreError> {
        let truths: Vec<Truth> = dataset
            .annotations
            .iter()
            .map(|a| Truth {
                id: a.id,
                image_id: a.image_id,
                category_id: Some(a.category_id),
                bbox: a.bbox,
                keypoints: a.keypoints.clone(),
                num_keypoints: Some(a.num_keypoints),
                area: a.area,
                iscrowd: a.iscrowd,
            })
            .collect();
        let category_ids = BTreeSet::from([dataset.category_id()]);
        let sigmas = dataset.skeleton.sigmas().iter().map(|s| decimal(*s)).collect();
        Self::new(dataset.images.iter().map(|i| i.id).collect(), category_ids, truths, sigmas)
    }

    /// From parts. Annotations of images or categories that are not listed are left out, as in pycocotools.
    ///
    /// # Errors
    /// [`ScoreError::GroundTruth`]: a keypoint list of another length than the sigmas, a duplicate annotation id, a sigma or area
    /// that is not a number.
    pub fn new(images: BTreeSet<u64>, categories: BTreeSet<u64>, annotations: Vec<Truth>, sigmas: Vec<f64>) -> Result<Self, ScoreError> {
        if let Some(bad) = sigmas.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(ScoreError::GroundTruth(format!("the sigma of keypoint {bad} is not a positive number")));
        }
        let mut seen = BTreeSet::new();
        let mut truths: BTreeMap<(u64, u64), Vec<Truth>> = BTreeMap::new();
        for truth in annotations {
            let Some(category) = truth.category_id.filter(|id| categories.contains(id) && images.contains(&truth.image_id)) else {
                continue;
            };
            if !truth.keypoints.is_empty() && truth.keypoints.len() != 3 * sigmas.len() {
                return Err(ScoreError::GroundTruth(format!(
                    "annotation {}: expected {} keypoints (3 numbers each), found {} numbers",
                    truth.id,
                    sigmas.len(),
                    truth.keypoints.len()
                )));
            }
            if !seen.insert(truth.id) {
                return Err(ScoreError::GroundTruth(format!("annotation id {} occurs twice", truth.id)));
            }
            truths.entry((category, truth.image_id)).or_default().push(truth);
        }
        Ok(Self { image_ids: images.into_iter().collect(), category_ids: categories.into_iter().collect(), truths, sigmas })
    }

    /// Only the images for which `keep(id)`.
    #[must_use]
    pub fn restricted(mut self, keep: impl Fn(u64) -> bool) -> Self {
        self.image_ids.retain(|id| keep(*id));
        self.truths.retain(|(_, image), _| keep(*image));
        self
    }

    /// Whether anybody counts: without, every score is −1.
    pub fn counts(&self) -> bool {
        let [low, high] = AREAS[0];
        self.truths.values().flatten().any(|t| !t.ignored() && (low..=high).contains(&t.area))
    }

    /// Keypoints per person.
    pub fn keypoints(&self) -> usize {
        self.sigmas.len()
    }

    /// Ascending category ids.
    pub fn category_ids(&self) -> &[u64] {
        &self.category_ids
    }

    /// Ascending image ids.
    pub fn image_ids(&self) -> &[u64] {
        &self.image_ids
    }
}

/// The ten COCO keypoint numbers in `[0, 1]`; −1 where no ground truth is counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoScores {
    /// Mean AP over OKS 0.50:0.05:0.95.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// AP at OKS 0.50.
    #[serde(rename = "AP50")]
    pub ap50: f64,
    /// AP at OKS 0.75.
    #[serde(rename = "AP75")]
    pub ap75: f64,
    /// AP of medium people, 32² to 96² px².
    #[serde(rename = "AP_M")]
    pub ap_m: f64,
    /// AP of large people, from 96² px².
    #[serde(rename = "AP_L")]
    pub ap_l: f64,
    /// Mean recall over OKS 0.50:0.05:0.95.
    #[serde(rename = "AR")]
    pub ar: f64,
    /// Recall at OKS 0.50.
    #[serde(rename = "AR50")]
    pub ar50: f64,
    /// Recall at OKS 0.75.
    #[serde(rename = "AR75")]
    pub ar75: f64,
    /// Recall of medium people.
    #[serde(rename = "AR_M")]
    pub ar_m: f64,
    /// Recall of large people.
    #[serde(rename = "AR_L")]
    pub ar_l: f64,
}

impl CocoScores {
    /// Names and values in pycocotools' order.
    pub fn named(&self) -> [(&'static str, f64); 10] {
        [
            ("AP", self.ap),
            ("AP50", self.ap50),
            ("AP75", self.ap75),
            ("AP_M", self.ap_m),
            ("AP_L", self.ap_l),
            ("AR", self.ar),
            ("AR50", self.ar50),
            ("AR75", self.ar75),
            ("AR_M", self.ar_m),
            ("AR_L", self.ar_l),
        ]
    }
}

/// A result as it is matched: stable by falling score, with the area that pycocotools' `loadRes` gives it.
#[derive(Clone, Debug)]
pub(crate) struct Predicted<'r> {
    index: usize,
    keypoints: &'r [f64],
    score: f64,
    area: f64,
}

fn falling(a: f64, b: f64) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
}

/// By (category, image), each stably sorted by falling score and cut at [`MAX_DETECTIONS`].
fn predictions<'r>(truth: &GroundTruth, results: &'r [ResultRecord]) -> Result<BTreeMap<(u64, u64), Vec<Predicted<'r>>>, ScoreError> {
    let boxed = results.first().is_some_and(|r| r.bbox.is_some());
    let mut all: BTreeMap<(u64, u64), Vec<Predicted<'r>>> = BTreeMap::new();
    for (index, record) in results.iter().enumerate() {
        let fail = |message: String| Err(ScoreError::Result { index, message });
        if record.keypoints.len() != 3 * truth.sigmas.len() {
            return fail(format!(
                "expected {} keypoints ({} numbers), found {} keypoints ({} numbers)",
                truth.sigmas.len(),
                3 * truth.sigmas.len(),
                record.keypoints.len() / 3,
                record.keypoints.len()
            ));
        }
        if truth.image_ids.binary_search(&record.image_id).is_err() {
            return fail(format!("image {} is not in the ground truth", record.image_id));
        }
        if !(record.score.is_finite() && record.keypoints.iter().all(|v| v.is_finite())) {
            return fail("a score or coordinate is not a finite number".to_owned());
        }
        let area = match record.bbox {
            Some([_, _, w, h]) if boxed => w * h,
            None if boxed => return fail("expected a `bbox`, as the first result has one".to_owned()),
            _ => extent(&record.keypoints),
        };
        all.entry((record.category_id, record.image_id)).or_default().push(Predicted {
            index,
            keypoints: &record.keypoints,
            score: record.score,
            area,
        });
    }
    for list in all.values_mut() {
        list.sort_by(|a, b| falling(a.score, b.score));
        list.truncate(MAX_DETECTIONS);
    }
    Ok(all)
}

/// Area of the box around all keypoints.
fn extent(keypoints: &[f64]) -> f64 {
    let span = |axis: usize| {
        let values = keypoints.iter().skip(axis).step_by(3);
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
        high - low
    };
    span(0) * span(1)
}

/// numpy's `linspace(.5, .95, 10)`.
fn oks_thresholds() -> [f64; 10] {
    let step = (0.95 - 0.5) / 9.0;
    std::array::from_fn(|i| if i == 9 { 0.95 } else { i as f64 * step + 0.5 })
}

/// The matches of one category in one area range, an entry for each image.
fn match_all(
    truth: &GroundTruth,
    predicted: &BTreeMap<(u64, u64), Vec<Predicted<'_>>>,
    category: u64,
    area: [f64; 2],
    thresholds: &[f64],
) -> Vec<ImageMatches> {
    let matches = |image: &u64| {
        let gts = truth.truths.get(&(category, *image)).map_or(&[][..], Vec::as_slice);
        let dts = predicted.get(&(category, *image)).map_or(&[][..], Vec::as_slice);
        match_image(gts, dts, &truth.sigmas, area, thresholds)
    };
    truth.image_ids.iter().map(matches).collect()
}

/// Scores results against the ground truth.
///
/// # Errors
/// [`ScoreError::Result`]: another skeleton (expected and found keypoint counts), an unknown image, a number that is not finite.
pub fn score(truth: &GroundTruth, results: &[ResultRecord]) -> Result<CocoScores, ScoreError> {
    let predicted = predictions(truth, results)?;
    let thresholds = oks_thresholds();
    // [category][area] → curve
    let curves: Vec<[Option<Curve>; 3]> = truth
        .category_ids
        .iter()
        .map(|category| {
            AREAS.map(|area| {
                let images = match_all(truth, &predicted, *category, area, &thresholds);
                Ranked::new(&images).curve(thresholds.len(), |_| 1.0)
            })
        })
        .collect();
    let mean = |area: usize, threshold: Option<usize>, pick: fn(&Curve, usize) -> &[f64]| {
        let range = threshold.map_or(0..thresholds.len(), |t| t..t + 1);
        let (mut sum, mut n) = (0.0, 0_usize);
        for curve in curves.iter().filter_map(|c| c[area].as_ref()) {
            for t in range.clone() {
                let values = pick(curve, t);
                sum += values.iter().sum::<f64>();
                n += values.len();
            }
        }
        if n == 0 { -1.0 } else { sum / n as f64 }
    };
    let ap = |area, threshold| mean(area, threshold, |curve, t| &curve.precision[t]);
    let ar = |area, threshold| mean(area, threshold, |curve, t| std::slice::from_ref(&curve.recall[t]));
    Ok(CocoScores {
        ap: ap(0, None),
        ap50: ap(0, Some(0)),
        ap75: ap(0, Some(5)),
        ap_m: ap(1, None),
        ap_l: ap(2, None),
        ar: ar(0, None),
        ar50: ar(0, Some(0)),
        ar75: ar(0, Some(5)),
        ar_m: ar(1, None),
        ar_l: ar(2, None),
    })
}

/// AP of the smaller, middle and larger third of the people who count, by area; −1 where a third is empty.
///
/// # Errors
/// As [`score`].
pub fn terciles(truth: &GroundTruth, results: &[ResultRecord]) -> Result<[f64; 3], ScoreError> {
    let predicted = predictions(truth, results)?;
    let thresholds = oks_thresholds();
    let mut areas: Vec<f64> = truth.truths.values().flatten().filter(|t| !t.ignored()).map(|t| t.area).collect();
    areas.sort_by(f64::total_cmp);
    let bound = |third: usize| areas.get(third * areas.len() / 3).copied().unwrap_or(0.0);
    // Bounds are inclusive.
    let ranges = [[0.0, bound(1).next_down()], [bound(1), bound(2).next_down()], [bound(2), AREAS[0][1]]];
    let ap = |area: [f64; 2]| {
        let of = |category: &u64| Ranked::new(&match_all(truth, &predicted, *category, area, &thresholds)).curve(thresholds.len(), |_| 1.0);
        let curves: Vec<Curve> = truth.category_ids.iter().filter_map(of).collect();
        let sum: f64 = curves.iter().map(|curve| curve.precision.as_flattened().iter().sum::<f64>()).sum();
        if curves.is_empty() { -1.0 } else { sum / (curves.len() * thresholds.len() * 101) as f64 }
    };
    Ok(ranges.map(ap))
}

/// Whether a result is right at one OKS threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Position in the results.
    pub index: usize,
    /// Its score.
    pub score: f64,
    /// `None` when it matches an ignored person, which counts neither way.
    pub correct: Option<bool>,
}

/// Judges every counted result at one OKS threshold, over all areas, by falling score.
///
/// # Errors
/// As [`score`].
pub fn judge(truth: &GroundTruth, results: &[ResultRecord], oks: f64) -> Result<Vec<Judged>, ScoreError> {
    let predicted = predictions(truth, results)?;
    let mut judged = Vec::new();
    for ((category, image), dts) in &predicted {
        let gts = truth.truths.get(&(*category, *image)).map_or(&[][..], Vec::as_slice);
        let matches = match_image(gts, dts, &truth.sigmas, AREAS[0], &[oks]);
        for (d, dt) in dts.iter().enumerate() {
            let outcome = matches.outcomes[d];
            judged.push(Judged { index: dt.index, score: dt.score, correct: (!outcome.ignored).then_some(outcome.matched) });
        }
    }
    judged.sort_by(|a, b| falling(a.score, b.score));
    Ok(judged)
}

/// Precision at 101 recalls and final recall, per OKS threshold.
#[derive(Clone, Debug)]
struct Curve {
    precision: Vec<[f64; 101]>,
    recall: Vec<f64>,
}

/// Images' detections by falling score.
struct Ranked<'m> {
    images: &'m [ImageMatches],
    /// Image and detection.
    order: Vec<(usize, usize)>,
}

impl<'m> Ranked<'m> {
    fn new(images: &'m [ImageMatches]) -> Self {
        let mut order: Vec<(f64, usize, usize)> = Vec::new();
        for (i, image) in images.iter().enumerate() {
            order.extend(image.scores.iter().enumerate().map(|(d, s)| (*s, i, d)));
        }
        order.sort_by(|a, b| falling(a.0, b.0));
        Self { images, order: order.into_iter().map(|(_, i, d)| (i, d)).collect() }
    }

    /// Of images that are there `times` often; `None` when no ground truth counts.
    fn curve(&self, thresholds: usize, times: impl Fn(usize) -> f64) -> Option<Curve> {
        let (images, order) = (self.images, &self.order);
        let positives: f64 = images.iter().enumerate().map(|(i, image)| times(i) * image.counted as f64).sum();
        if positives == 0.0 {
            return None;
        }
        let mut precision = Vec::with_capacity(thresholds);
        let mut recall = Vec::with_capacity(thresholds);
        for t in 0..thresholds {
            let (mut tp, mut fp) = (0.0, 0.0);
            let (mut pr, mut rc) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
            for (i, d) in order {
                let outcome = images[*i].outcomes[t * images[*i].scores.len() + d];
                if !outcome.ignored {
                    *(if outcome.matched { &mut tp } else { &mut fp }) += times(*i);
                }
                pr.push(tp / (fp + tp + f64::EPSILON));
                rc.push(tp / positives);
            }
            for i in (1..pr.len()).rev() {
                if pr[i] > pr[i - 1] {
                    pr[i - 1] = pr[i];
                }
            }
            precision.push(std::array::from_fn(|r| {
                let wanted = if r == 100 { 1.0 } else { r as f64 * 0.01 };
                let at = rc.partition_point(|have| *have < wanted);
                pr.get(at).copied().unwrap_or(0.0)
            }));
            recall.push(rc.last().copied().unwrap_or(0.0));
        }
        Some(Curve { precision, recall })
    }
}

#[cfg(test)]
mod tests;
