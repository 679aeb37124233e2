//! How sure a difference of APs is: the paired bootstrap over images (Efron and Tibshirani 1993, chapter 16). Images are drawn with
//! replacement, the same ones for every set of results, and every set is scored on them.

use super::{AREAS, GroundTruth, Ranked, ScoreError, match_all, oks_thresholds, predictions};
use omnilabel_coco::ResultRecord;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The APs of sets of results on the same resamples of the images.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampled {
    /// `[sets][resamples]`; resamples on which nobody counts are left out of all.
    pub aps: Vec<Vec<f64>>,
}

/// What resamples say of a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Standard deviation over the resamples.
    pub standard_error: f64,
    /// The 95 % interval between the percentiles 2.5 and 97.5.
    pub interval: [f64; 2],
}

/// How much better one set of results is than another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// AP of the first less AP of the second, on the images as they are.
    pub ap: f64,
    /// Of that difference.
    #[serde(flatten)]
    pub spread: Spread,
    /// The share of resamples on which the first is not better; equal is not better.
    pub not_better: f64,
}

impl Spread {
    /// Of one value per resample; `None` of fewer than two.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n < 2 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        // numpy's linear percentile.
        let percentile = |share: f64| {
            let at = share * (n - 1) as f64;
            let (low, part) = (at.floor() as usize, at.fract());
            sorted[low] + part * (sorted[(low + 1).min(n - 1)] - sorted[low])
        };
        Some(Self { standard_error: variance.sqrt(), interval: [percentile(0.025), percentile(0.975)] })
    }
}

impl Difference {
    /// Of two sets that are `ap` apart on the images as they are, and so far on each resample; `None` of fewer than two resamples.
    pub fn of(ap: f64, differences: &[f64]) -> Option<Self> {
        let not_better = differences.iter().filter(|d| **d <= 0.0).count() as f64 / differences.len().max(1) as f64;
        Some(Self { ap, spread: Spread::of(differences)?, not_better })
    }
}

impl Resampled {
    /// How many resamples there are with anybody who counts.
    pub fn count(&self) -> usize {
        self.aps.first().map_or(0, Vec::len)
    }

    /// AP of set `first` less that of set `second`, which are `ap` apart on the images as they are; `None` without two resamples or such sets.
    pub fn difference(&self, first: usize, second: usize, ap: f64) -> Option<Difference> {
        let (first, second) = (self.aps.get(first)?, self.aps.get(second)?);
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
        Difference::of(ap, &differences)
    }
}

/// Scores each of `sets` on `resamples` drawings of the images, which follow from `seed` alone. `done` is told how many are
/// finished. Multi-threaded (rayon).
///
/// # Errors
/// As [`super::score`].
pub fn bootstrap(
    truth: &GroundTruth,
    sets: &[&[ResultRecord]],
    resamples: usize,
    seed: u64,
    done: &(dyn Fn(usize) + Sync),
) -> Result<Resampled, ScoreError> {
    let thresholds = oks_thresholds();
    let images = &truth.image_ids;
    // [sets][categories]
    let mut matched = Vec::with_capacity(sets.len());
    for results in sets {
        let predicted = predictions(truth, results)?;
        let of = |category: &u64| match_all(truth, &predicted, *category, AREAS[0], &thresholds);
        matched.push(truth.category_ids.iter().map(of).collect::<Vec<_>>());
    }
    let ranked: Vec<Vec<Ranked<'_>>> = matched.iter().map(|set| set.iter().map(|images| Ranked::new(images)).collect()).collect();
    let finished = AtomicUsize::new(0);
    let drawn = |resample: usize| -> Option<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(resample as u64);
        let mut times = vec![0u32; images.len()];
        (0..images.len()).for_each(|_| times[rng.random_range(0..images.len())] += 1);
        let aps = ranked
            .iter()
            .map(|categories| {
                let curves = categories.iter().filter_map(|ranked| ranked.curve(thresholds.len(), |image| f64::from(times[image])));
                let means: Vec<f64> = curves.map(|curve| curve.precision.as_flattened().iter().sum::<f64>()).collect();
                (!means.is_empty()).then(|| means.iter().sum::<f64>() / (means.len() * thresholds.len() * 101) as f64)
            })
            .collect();
        done(finished.fetch_add(1, Ordering::Relaxed) + 1);
        aps
    };
    let found: Vec<Vec<f64>> = (0..resamples).into_par_iter().filter_map(drawn).collect();
    Ok(Resampled { aps: (0..sets.len()).map(|set| found.iter().map(|aps| aps[set]).collect()).collect() })
}

#[cfg(test)]
mod tests {
    use super::super::{Truth, score};
    use super::*;
    use std::collections::BTreeSet;

    /// Images with one to three people of three keypoints, and results that miss by `noise` px.
    fn scene(images: u64, noise: f64, seed: u64) -> (Vec<Truth>, Vec<ResultRecord>) {
        let (mut truths, mut results) = (Vec::new(), Vec::new());
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut missing = ChaCha8Rng::seed_from_u64(seed);
        for image_id in 1..=images {
            for _ in 0..rng.random_range(1..4) {
                let keypoints: Vec<f64> = (0..3).flat_map(|_| [rng.random_range(0.0..400.0), rng.random_range(0.0..400.0), 2.0]).collect();
                let found = keypoints.chunks(3).flat_map(|k| [k[0] + missing.random_range(-noise..noise), k[1], 1.0]).collect();
                let id = truths.len() as u64 + 1;
                let truth = Truth {
                    id,
                    image_id,
                    category_id: Some(1),
                    bbox: [0.0, 0.0, 400.0, 400.0],
                    keypoints,
                    num_keypoints: None,
                    area: 5000.0,
                    iscrowd: 0,
                };
                truths.push(truth);
                results.push(ResultRecord {
                    image_id,
                    category_id: 1,
                    keypoints: found,
                    score: missing.random_range(0.0..1.0),
                    bbox: None,
                });
            }
        }
        (truths, results)
    }

    fn truth_of(truths: Vec<Truth>, images: u64) -> GroundTruth {
        GroundTruth::new((1..=images).collect(), BTreeSet::from([1]), truths, vec![0.05, 0.07, 0.1]).unwrap()
    }

    /// An image that is drawn twice is two images.
    #[test]
    fn a_resample_scores_as_its_copies_do() {
        let (truths, results) = scene(9, 12.0, 1);
        let truth = truth_of(truths.clone(), 9);
        let found = bootstrap(&truth, &[&results], 40, 3, &|_| ()).unwrap();
        for (resample, ap) in found.aps[0].iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            rng.set_stream(resample as u64);
            let (mut copied_truths, mut copied_results) = (Vec::new(), Vec::new());
            for copy in 1..=9 {
                let image = truth.image_ids[rng.random_range(0..9usize)];
                for truth in truths.iter().filter(|truth| truth.image_id == image) {
                    copied_truths.push(Truth { id: copied_truths.len() as u64 + 1, image_id: copy, ..truth.clone() });
                }
                let own = results.iter().filter(|result| result.image_id == image);
                copied_results.extend(own.map(|result| ResultRecord { image_id: copy, ..result.clone() }));
            }
            let expected = score(&truth_of(copied_truths, 9), &copied_results).unwrap().ap;
            assert!((ap - expected).abs() < 1e-12, "{ap}, {expected}");
        }
        assert!(found.aps[0].windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_better_set_is_told_from_an_equal_one() {
        let (truths, worse) = scene(120, 25.0, 1);
        let (_, better) = scene(120, 8.0, 2);
        let truth = truth_of(truths, 120);
        let found = bootstrap(&truth, &[&better, &worse, &worse], 400, 1, &|_| ()).unwrap();
        let ap = |results| score(&truth, results).unwrap().ap;
        let difference = found.difference(0, 1, ap(&better) - ap(&worse)).unwrap();
        let Spread { standard_error, interval: [low, high] } = difference.spread;
        assert!(low > 0.0 && low < difference.ap && difference.ap < high && difference.not_better == 0.0, "{difference:?}");
        // Of a normal distribution the interval is 3.92 standard errors wide.
        assert!(((high - low) / standard_error - 3.92).abs() < 0.5, "{difference:?}");
        let same = found.difference(1, 2, 0.0).unwrap();
        assert_eq!((same.spread.standard_error, same.spread.interval, same.not_better), (0.0, [0.0; 2], 1.0));
        assert_eq!(found.difference(0, 3, 0.0), None);
        assert_eq!(bootstrap(&truth, &[&better], 3, 1, &|_| ()).unwrap(), bootstrap(&truth, &[&better], 3, 1, &|_| ()).unwrap());
    }

    #[test]
    fn percentiles_are_numpys() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 8.0]).unwrap();
        // numpy.percentile([4, 1, 2, 8], [2.5, 97.5]) and numpy.std(ddof=1).
        assert!((spread.interval[0] - 1.075).abs() < 1e-12 && (spread.interval[1] - 7.7).abs() < 1e-12, "{spread:?}");
        assert!((spread.standard_error - 3.095_695_936_834_452).abs() < 1e-12, "{spread:?}");
        assert_eq!(Spread::of(&[1.0]), None);
    }
}
