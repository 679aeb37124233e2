//! What the network should have answered: matching and sampling of anchors and RoIs, keypoint targets (spec §2). Plain slices.
//!
//! Matching follows torchvision's `Matcher`, sampling its `BalancedPositiveNegativeSampler`. Ours: a candidate that would be
//! background but overlaps an ignore region is neither.

use crate::losses::Heat;
pub use crate::soft::{SoftLabel, SoftTruth};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Ground truth of one image in net pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    /// Size of the image before padding.
    pub net: Size,
    /// Boxes, each with positive width and height.
    pub boxes: Vec<Rect>,
    /// For each box its keypoints; `None` is v = 0.
    pub keypoints: Vec<Vec<Option<Point>>>,
    /// For each box its soft labels, where it has some; or nothing at all, as no box has.
    pub soft: Vec<Option<SoftTruth>>,
    /// Regions that are neither positive nor background.
    pub ignore: Vec<Rect>,
}

/// What a generator is for; each purpose has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Augment = 1,
    Rpn = 2,
    Roi = 3,
    Step = 4,
    Keypoint = 5,
}

/// The generator of one purpose for image `index` of optimiser step `step`.
pub(crate) fn generator(seed: u64, step: u64, index: usize, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (chunk, word) in key.chunks_exact_mut(8).zip([seed, step, index as u64, purpose as u64]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// What a candidate box is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Background.
    Negative,
    /// Neither: does not take part.
    Neither,
    /// Shows the ground-truth box of this index.
    Positive(usize),
}

/// IoU thresholds of a [`match_boxes`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchRule {
    /// Below: background.
    pub low: f32,
    /// At or above: positive.
    pub high: f32,
    /// Whether the best candidates of every ground-truth box are positive too, however low their IoU, ties included.
    pub best_of_box: bool,
}

impl MatchRule {
    /// The RPN's rule.
    pub const RPN: Self = Self { low: 0.3, high: 0.7, best_of_box: true };
    /// The box head's rule.
    pub const ROI: Self = Self { low: 0.5, high: 0.5, best_of_box: false };
}

/// Share of a candidate's area inside an ignore region from which it is no background.
pub const IGNORE_SHARE: f32 = 0.5;

fn intersection(a: &Rect, b: &Rect) -> f32 {
    (a.x2.min(b.x2) - a.x1.max(b.x1)).max(0.0) * (a.y2.min(b.y2) - a.y1.max(b.y1)).max(0.0)
}

/// Matches every candidate; ties between ground-truth boxes go to the first, as torch's `max` does.
pub fn match_boxes(candidates: &[Rect], truth: &[Rect], ignore: &[Rect], rule: MatchRule) -> Vec<Match> {
    let best: Vec<(f32, usize)> = candidates
        .iter()
        .map(|candidate| {
            truth.iter().enumerate().fold((0.0, 0), |best, (index, rect)| {
                let iou = candidate.iou(rect);
                if iou > best.0 { (iou, index) } else { best }
            })
        })
        .collect();
    let mut matches: Vec<Match> = candidates
        .iter()
        .zip(&best)
        .map(|(candidate, &(iou, index))| {
            let ignored = || {
                ignore
                    .iter()
                    .any(|region| intersection(candidate, region) >= IGNORE_SHARE * candidate.area() || candidate.iou(region) >= rule.low)
            };
            if iou >= rule.high && !truth.is_empty() {
                Match::Positive(index)
            } else if (iou >= rule.low && !truth.is_empty()) || ignored() {
                Match::Neither
            } else {
                Match::Negative
            }
        })
        .collect();
    if rule.best_of_box {
        for rect in truth {
            let highest = candidates.iter().map(|candidate| candidate.iou(rect)).fold(0.0, f32::max);
            // A box that no candidate touches has no best one.
            if highest <= 0.0 {
                continue;
            }
            for (index, candidate) in candidates.iter().enumerate() {
                if candidate.iou(rect) == highest {
                    // The candidate keeps its own best box, which need not be this one (torchvision's `set_low_quality_matches_`).
                    matches[index] = Match::Positive(best[index].1);
                }
            }
        }
    }
    matches
}

/// `count` of `items` without replacement, in ascending order of position.
fn choose<T: Copy>(items: &[T], count: usize, rng: &mut impl Rng) -> Vec<T> {
    if count >= items.len() {
        return items.to_vec();
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    for i in 0..count {
        let j = rng.random_range(i..order.len());
        order.swap(i, j);
    }
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|i| items[i]).collect()
}

/// Candidates that take part in the loss of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sampled {
    /// Candidate and the ground-truth box that it shows.
    pub positive: Vec<(usize, usize)>,
    /// Background candidates.
    pub negative: Vec<usize>,
}

impl Sampled {
    /// How many take part.
    pub fn len(&self) -> usize {
        self.positive.len() + self.negative.len()
    }

    /// Whether none takes part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Draws at most `batch` candidates, at most the share `positive` of them positive; background fills the rest.
pub fn sample(matches: &[Match], batch: usize, positive: f32, rng: &mut impl Rng) -> Sampled {
    let mut positives = Vec::new();
    let mut negatives = Vec::new();
    for (index, matched) in matches.iter().enumerate() {
        match matched {
            Match::Positive(truth) => positives.push((index, *truth)),
            Match::Negative => negatives.push(index),
            Match::Neither => {}
        }
    }
    let most = (batch as f32 * positive) as usize;
    let positive = choose(&positives, most, rng);
    let negative = choose(&negatives, batch - positive.len(), rng);
    Sampled { positive, negative }
}

/// RoIs of one image for the box head, foreground first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoiSample {
    /// In net pixels.
    pub rois: Vec<Rect>,
    /// For each RoI the ground-truth box that it shows, `None` for background.
    pub matched: Vec<Option<usize>>,
}

/// Matches and samples RoIs; the ground-truth boxes are candidates too, as in torchvision.
pub fn roi_sample(proposals: &[Rect], truth: &Truth, batch: usize, positive: f32, rng: &mut impl Rng) -> RoiSample {
    let candidates: Vec<Rect> = proposals.iter().chain(&truth.boxes).copied().collect();
    let matches = match_boxes(&candidates, &truth.boxes, &truth.ignore, MatchRule::ROI);
    let sampled = sample(&matches, batch, positive, rng);
    let foreground = sampled.positive.iter().map(|&(candidate, index)| (candidates[candidate], Some(index)));
    let background = sampled.negative.iter().map(|&candidate| (candidates[candidate], None));
    let (rois, matched) = foreground.chain(background).unzip();
    RoiSample { rois, matched }
}

/// The heatmap cell of a keypoint in a RoI: `side · row + column`, `None` when it lies outside (spec §2; the far edge belongs to
/// the last cell). Computed in f64: a keypoint within f32's rounding of a border between two cells is in the one where it lies.
pub fn keypoint_cell(roi: Rect, point: Point, side: u32) -> Option<u32> {
    let cell = |value: f32, low: f32, high: f32| {
        if value == high {
            return Some(side - 1);
        }
        let [value, low, high] = [value, low, high].map(f64::from);
        let index = ((value - low) * f64::from(side) / (high - low)).floor();
        (index >= 0.0 && index < f64::from(side)).then_some(index as u32)
    };
    Some(side * cell(point.y, roi.y1, roi.y2)? + cell(point.x, roi.x1, roi.x2)?)
}

/// RoIs of one image for the keypoint head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeypointSample {
    /// In net pixels.
    pub rois: Vec<Rect>,
    /// `[rois, k]`: what the heatmap of each keypoint should say, `None` where there is no loss.
    pub heats: Vec<Option<Heat>>,
}

/// The foreground RoIs with at least one labelled keypoint inside, at most `limit` of them.
pub fn keypoint_sample(sample: &RoiSample, truth: &Truth, side: u32, limit: Option<usize>, rng: &mut impl Rng) -> KeypointSample {
    let mut candidates = Vec::new();
    for (&roi, matched) in sample.rois.iter().zip(&sample.matched) {
        let Some(index) = *matched else { continue };
        let keypoints = &truth.keypoints[index];
        if keypoints.iter().flatten().any(|&point| keypoint_cell(roi, point, side).is_some()) {
            candidates.push((roi, index));
        }
    }
    let chosen = choose(&candidates, limit.unwrap_or(usize::MAX), rng);
    let heats = chosen.iter().flat_map(|&(roi, index)| {
        let soft = truth.soft.get(index).and_then(Option::as_ref);
        truth.keypoints[index].iter().enumerate().map(move |(keypoint, point)| match (point, soft) {
            (Some(_), Some(soft)) => soft.on(keypoint, roi, side).map(Heat::Spread),
            (Some(point), None) => keypoint_cell(roi, *point, side).map(Heat::Cell),
            (None, _) => None,
        })
    });
    let heats = heats.collect();
    KeypointSample { rois: chosen.into_iter().map(|(roi, _)| roi).collect(), heats }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> ChaCha8Rng {
        generator(7, 3, 0, Purpose::Rpn)
    }

    #[test]
    fn keypoint_cells_follow_the_specification() {
        let roi = Rect::new(0.0, 0.0, 56.0, 56.0);
        let cell = |x, y| keypoint_cell(roi, Point { x, y }, 56);
        assert_eq!(cell(10.5, 20.2), Some(1130));
        assert_eq!(cell(56.0, 56.0), Some(56 * 55 + 55));
        assert_eq!(cell(0.0, 0.0), Some(0));
        assert_eq!(cell(-0.1, 3.0), None);
        assert_eq!(cell(3.0, 56.1), None);
        // 1.4e-6 of a cell above row 51; the product of f32 numbers is 51.0.
        let (roi, value) = (Rect::new(84.43679, 63.768906, 128.0, 96.0), 93.12222f32);
        assert_eq!((value - roi.y1) * (1.0 / (roi.y2 - roi.y1) * 56.0), 51.0);
        assert_eq!(keypoint_cell(roi, Point { x: 84.994995, y: value }, 56), Some(56 * 50));
    }

    #[test]
    fn an_anchor_is_positive_between_or_negative_by_its_iou() {
        let truth = [Rect::new(0.0, 0.0, 10.0, 10.0)];
        let candidates = [
            Rect::new(0.0, 0.0, 10.0, 10.0),  // 1
            Rect::new(0.0, 0.0, 10.0, 7.0),   // 0.7
            Rect::new(0.0, 0.0, 10.0, 5.0),   // 0.5
            Rect::new(0.0, 0.0, 10.0, 2.9),   // 0.29
            Rect::new(50.0, 0.0, 60.0, 10.0), // 0
        ];
        let matches = match_boxes(&candidates, &truth, &[], MatchRule::RPN);
        assert_eq!(matches, [Match::Positive(0), Match::Positive(0), Match::Neither, Match::Negative, Match::Negative]);
        assert_eq!(match_boxes(&candidates, &truth, &[], MatchRule::ROI)[2], Match::Positive(0));
    }

    #[test]
    fn every_box_gets_its_best_anchors_with_ties_and_an_untouched_box_gets_none() {
        let truth = [Rect::new(0.0, 0.0, 10.0, 10.0), Rect::new(500.0, 500.0, 510.0, 510.0)];
        let candidates = [Rect::new(-5.0, 0.0, 5.0, 10.0), Rect::new(5.0, 0.0, 15.0, 10.0), Rect::new(8.0, 0.0, 18.0, 10.0)];
        let matches = match_boxes(&candidates, &truth, &[], MatchRule::RPN);
        assert_eq!(matches, [Match::Positive(0), Match::Positive(0), Match::Negative]);
    }

    #[test]
    fn a_best_anchor_keeps_the_box_it_overlaps_most() {
        // The first candidate is the best one of box 1 too, but shows box 0.
        let truth = [Rect::new(0.0, 0.0, 10.0, 10.0), Rect::new(9.0, 0.0, 30.0, 10.0)];
        let matches = match_boxes(&[Rect::new(0.0, 0.0, 11.0, 10.0)], &truth, &[], MatchRule::RPN);
        assert_eq!(matches, [Match::Positive(0)]);
    }

    #[test]
    fn ignored_regions_are_not_background_and_do_not_unmake_positives() {
        let truth = [Rect::new(0.0, 0.0, 10.0, 10.0)];
        let ignore = [Rect::new(0.0, 0.0, 40.0, 40.0)];
        let candidates = [Rect::new(0.0, 0.0, 10.0, 10.0), Rect::new(20.0, 20.0, 30.0, 30.0), Rect::new(100.0, 0.0, 110.0, 9.0)];
        for rule in [MatchRule::RPN, MatchRule::ROI] {
            assert_eq!(match_boxes(&candidates, &truth, &ignore, rule), [Match::Positive(0), Match::Neither, Match::Negative]);
        }
    }

    #[test]
    fn sampling_keeps_the_shares_and_repeats_by_seed() {
        let mut matches = vec![Match::Negative; 500];
        for i in 0..100 {
            matches[i * 5] = Match::Positive(i % 3);
        }
        let sampled = sample(&matches, 64, 0.25, &mut rng());
        assert_eq!((sampled.positive.len(), sampled.negative.len()), (16, 48));
        assert_eq!(sampled, sample(&matches, 64, 0.25, &mut rng()));
        assert_ne!(sampled, sample(&matches, 64, 0.25, &mut generator(7, 4, 0, Purpose::Rpn)));
        for &(index, truth) in &sampled.positive {
            assert_eq!(matches[index], Match::Positive(truth));
        }
        for &index in &sampled.negative {
            assert_eq!(matches[index], Match::Negative);
        }
        // Few positives: background fills up.
        let few = sample(&matches[..20], 12, 0.5, &mut rng());
        assert_eq!((few.positive.len(), few.negative.len()), (4, 8));
    }

    #[test]
    fn ground_truth_boxes_are_rois_too() {
        let truth = Truth {
            net: Size { width: 100, height: 100 },
            boxes: vec![Rect::new(10.0, 10.0, 40.0, 90.0)],
            keypoints: vec![vec![Some(Point { x: 20.0, y: 20.0 }), None, Some(Point { x: 60.0, y: 20.0 })]],
            ..Truth::default()
        };
        let sample = roi_sample(&[Rect::new(60.0, 0.0, 90.0, 30.0)], &truth, 8, 0.25, &mut rng());
        assert_eq!(sample.rois, [truth.boxes[0], Rect::new(60.0, 0.0, 90.0, 30.0)]);
        assert_eq!(sample.matched, [Some(0), None]);
        let keypoints = keypoint_sample(&sample, &truth, 56, None, &mut rng());
        assert_eq!(keypoints.rois, [truth.boxes[0]]);
        assert_eq!(keypoints.heats, [Some(Heat::Cell(56 * 7 + 18)), None, None]);
        assert!(keypoint_sample(&sample, &truth, 56, Some(0), &mut rng()).rois.is_empty());
    }

    #[test]
    fn an_empty_image_gives_background_only() {
        let truth = Truth { net: Size { width: 10, height: 10 }, ..Truth::default() };
        let sample = roi_sample(&[Rect::new(1.0, 1.0, 5.0, 5.0)], &truth, 8, 0.25, &mut rng());
        assert_eq!(sample.matched, [None]);
        let matches = match_boxes(&[Rect::new(0.0, 0.0, 3.0, 3.0)], &[], &[], MatchRule::RPN);
        assert_eq!(matches, [Match::Negative]);
    }
}
