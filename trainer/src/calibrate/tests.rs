use super::*;
use proptest::prelude::*;

fn detection(rect: [f32; 4], score: f32, probabilities: &[f32]) -> Detection {
    let keypoints = probabilities.iter().map(|p| omnilabel_keypoints::label::Keypoint { probability: *p, ..Default::default() });
    Detection { rect: Rect::new(rect[0], rect[1], rect[2], rect[3]), score, keypoints: keypoints.collect() }
}

proptest! {
    /// Distinct scores, enough of them: the mean is matched to within the floor of one instance.
    #[test]
    fn matched_mean(seed in 0_u32..1000, frames in 10_u64..200, total in 100_u64..3000) {
        let mean = Mean { total, over: 1000 };
        let n = frames as u32 * 4;
        let scores: Vec<f32> = (0..n).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1_000_003) as f32 / 1_000_003.0 + i as f32 * 1e-7).collect();
        let matched = match_mean(&scores, frames, mean);
        let kept = scores.iter().filter(|s| **s >= matched.threshold).count() as f64 / frames as f64;
        prop_assert_eq!(kept, matched.realised_mean);
        let mean = mean.value();
        prop_assert!(kept <= mean + 4.0 / frames as f64 && kept > mean - 1.0 / frames as f64 - 1e-12);
    }

    /// The histogram's τ keeps what the scores' τ keeps, to within the scores of one bin.
    #[test]
    fn histogram_agrees_with_scores(frames in 50_u64..300, total in 200_u64..2000) {
        let mean = Mean { total, over: 1000 };
        let n = frames * 3;
        let scores: Vec<f32> = (0..n).map(|i| ((i * 7919) % n) as f32 / n as f32).collect();
        let mut bins = vec![0_u64; 256];
        for s in &scores {
            bins[((s * 256.0) as usize).min(255)] += 1;
        }
        let (a, b) = (match_mean(&scores, frames, mean), match_mean_histogram(&bins, frames, mean));
        prop_assert!((a.threshold - b.threshold).abs() <= 1.0 / 256.0 + 1.0 / n as f32, "{a:?} {b:?}");
        prop_assert!((b.realised_mean - mean.value()).abs() <= 1.0 / frames as f64);
    }
}

#[test]
fn the_realised_mean_is_within_one_percent() {
    let scores: Vec<f32> = (0..5000_u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32).collect();
    let mean = Mean { total: 17, over: 10 };
    assert!(match_mean(&scores, 1000, mean).holds());
    assert!(!match_mean(&scores[..100], 1000, mean).holds(), "100 scores cannot give 1.7 per image on 1000 images");
    assert!(!match_mean(&[0.5; 3000], 1000, mean).holds(), "a tie keeps all");
}

/// 0.29 · 100 is below 29 in floating point, as are many such products.
#[test]
fn the_rank_is_exact() {
    let scores: Vec<f32> = (0..1000_u16).map(|i| 1.0 - f32::from(i) / 1000.0).collect();
    for total in 1..=100 {
        let mean = Mean { total, over: 100 };
        let matched = match_mean(&scores, 100, mean);
        assert_eq!((matched.threshold, matched.realised_mean), (scores[total as usize - 1], mean.value()), "{total} of 100");
        let bins: Vec<u64> = vec![1; 1000];
        assert_eq!(match_mean_histogram(&bins, 100, mean).realised_mean, mean.value(), "{total} of 100");
    }
}

#[test]
fn nothing_wanted_keeps_nothing() {
    let matched = match_mean(&[0.3, 0.9], 10, Mean { total: 1, over: 20 });
    assert_eq!(matched.realised_mean, 0.0);
    assert!(matched.threshold > 0.9);
}

#[test]
fn precision_counts_ties_together() {
    let judged = |list: &[(f32, bool)]| list.iter().map(|(score, right)| Judged { score: *score, right: *right }).collect::<Vec<_>>();
    assert_eq!(threshold_at_precision(&judged(&[(0.9, true), (0.8, true), (0.7, false), (0.6, false)]), 0.9), Some(0.8));
    // 0.8 is right once and wrong once: 2 of 3 is not 90 %.
    assert_eq!(threshold_at_precision(&judged(&[(0.9, true), (0.8, true), (0.8, false)]), 0.9), Some(0.9));
    assert_eq!(threshold_at_precision(&judged(&[(0.9, false)]), 0.9), None);
    // A dip that recovers does not end the search.
    let dip: Vec<(f32, bool)> = (0..30).map(|i| (1.0 - i as f32 / 100.0, i != 1)).collect();
    assert_eq!(threshold_at_precision(&judged(&dip), 0.9), Some(1.0 - 29.0 / 100.0));
}

#[test]
fn fleet_takes_the_stricter_threshold_and_paper_the_match() {
    let matched = Matched { threshold: 0.4, wanted_mean: 1.0, realised_mean: 1.0 };
    let held_out = |judged| Some(HeldOut { judged, precision: FLEET_PRECISION });
    let good = [Judged { score: 0.95, right: true }, Judged { score: 0.6, right: true }, Judged { score: 0.5, right: false }];
    assert_eq!(instance_threshold(Mode::Fleet, &matched, held_out(&good)), (0.6, Some(0.6)));
    assert_eq!(instance_threshold(Mode::Paper, &matched, held_out(&good)), (0.4, None));
    let hopeless = [Judged { score: 0.95, right: false }, Judged { score: 0.6, right: true }];
    assert_eq!(instance_threshold(Mode::Fleet, &matched, held_out(&hopeless)), (0.95, None));
}

#[test]
fn keypoints_match_the_manual_set() {
    let manual = ManualStats { images: 10, people: 10, keypoints: 20 };
    let frames: Vec<Vec<Detection>> = (0..100)
        .map(|i| {
            let p = i as f32 / 1000.0;
            vec![
                detection([0.0, 0.0, 10.0, 10.0], 0.5 + p, &[0.9 - p, 0.7 - p, 0.3 - p]),
                detection([0.0, 0.0, 9.0, 9.0], 0.1 + p, &[0.99; 3]),
            ]
        })
        .collect();
    let found = calibrate(Mode::Paper, manual, &frames, None, 0.05);
    assert!(found.instance.holds() && found.keypoint.holds(), "{found:?}");
    assert!((0.5..0.51).contains(&found.thresholds.instance) && (0.55..0.62).contains(&found.thresholds.keypoint), "{found:?}");
}

#[test]
fn ignore_regions_are_a_switch() {
    let detections = [detection([0.0; 4], 0.9, &[]), detection([0.0; 4], 0.5, &[]), detection([0.0; 4], 0.2, &[])];
    let kept = split(&detections, 0.6, Some(0.5));
    assert_eq!((kept.people.len(), kept.ignored.len()), (1, 1));
    let kept = split(&detections, 0.6, None);
    assert_eq!((kept.people.len(), kept.ignored.len()), (1, 0));
}
