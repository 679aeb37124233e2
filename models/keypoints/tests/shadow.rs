//! How far two models agree, on labels made by hand.

use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Keypoint, Label, Thresholds};
use omnilabel_keypoints::shadow::{Agreement, Disagreement, Limits};

const SIGMAS: [f32; 4] = [0.05; 4];
const LIMITS: Limits = Limits { f1: 0.4, people: 3.0, slowdown: 5.0, slow_secs: 2.0 };

/// People of 40 × 80 px at these places, with every keypoint `off` px from where it is.
fn label(places: &[f32], off: f32) -> Label {
    let person = |x: &f32| {
        let keypoint = |index: usize| Keypoint {
            point: Point { x: x + 10.0 * index as f32 + off, y: 20.0 * index as f32 },
            // The last one is hidden.
            probability: if index < 3 { 0.9 } else { 0.01 },
            ..Keypoint::default()
        };
        Detection { rect: Rect::new(*x, 0.0, x + 40.0, 80.0), score: 0.9, keypoints: (0..4).map(keypoint).collect() }
    };
    let people: Vec<Detection> = places.iter().map(person).collect();
    Label::from_detections(Size { width: 640, height: 480 }, &people, Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 })
}

fn agreement(frames: u32, confirmed: &Label, candidate: &Label) -> Agreement {
    let mut agreement = Agreement::default();
    (0..frames).for_each(|_| agreement.add(confirmed, candidate, &SIGMAS, 0.2));
    agreement
}

#[test]
fn the_same_people_agree_and_others_do_not() {
    let two = label(&[0.0, 200.0], 0.0);
    let same = agreement(20, &two, &two);
    assert_eq!((same.frames, same.confirmed, same.candidate, same.matched), (20, 40, 40, 40));
    assert_eq!((same.f1(), same.mean_oks()), (Some(1.0), Some(1.0)));
    assert_eq!(same.judge(&LIMITS), Ok(()));

    // exp(−3² / (2 · 0.1² · 3200)) = 0.8688
    let near = agreement(20, &two, &label(&[200.0, 0.0], 3.0));
    assert_eq!(near.f1(), Some(1.0));
    assert!((near.mean_oks().unwrap() - (-9.0_f64 / 64.0).exp()).abs() < 1e-6, "{near}");

    let elsewhere = agreement(20, &two, &label(&[400.0, 500.0], 0.0));
    assert_eq!((elsewhere.f1(), elsewhere.mean_oks(), elsewhere.judge(&LIMITS)), (Some(0.0), None, Err(Disagreement::F1)));
    assert_eq!(elsewhere.to_string(), "40 and 40 people in 20 frames, F1 0.00, 0 and 0 ms");

    // One of the two: 2·20 / 60.
    let half = agreement(20, &two, &label(&[200.0], 0.0));
    assert!((half.f1().unwrap() - 2.0 / 3.0).abs() < 1e-12 && half.judge(&LIMITS).is_ok());
}

#[test]
fn a_person_matches_once() {
    let twice = agreement(20, &label(&[0.0], 0.0), &label(&[0.0, 0.0], 0.0));
    assert_eq!((twice.confirmed, twice.candidate, twice.matched), (20, 40, 20));
}

#[test]
fn hidden_keypoints_count_only_where_there_are_no_others() {
    let (mut one, mut other) = (label(&[0.0], 0.0), label(&[0.0], 0.0));
    other.instances[0].detection.keypoints[3].point.x += 300.0;
    assert_eq!(agreement(1, &one, &other).mean_oks(), Some(1.0));
    one.instances[0].detection.keypoints.iter_mut().for_each(|keypoint| keypoint.probability = 0.0);
    assert_eq!(agreement(1, &one, &other).mean_oks(), Some(0.75));
    other.instances[0].detection.keypoints[0].point.x = f32::NAN;
    assert_eq!(agreement(1, &one, &other).matched, 0, "what is no number matches nobody");
}

#[test]
fn more_or_fewer_people_are_a_disagreement_in_both_directions() {
    let (none, one, four) = (label(&[], 0.0), label(&[0.0], 0.0), label(&[0.0, 100.0, 200.0, 300.0], 0.0));
    for (confirmed, candidate) in [(&one, &four), (&four, &one), (&none, &one), (&one, &none)] {
        assert_eq!(agreement(20, confirmed, candidate).judge(&LIMITS), Err(Disagreement::People));
    }
    assert_eq!(agreement(15, &none, &one).judge(&LIMITS), Ok(()), "15 people are too few");
    assert_eq!((agreement(500, &none, &none).judge(&LIMITS), agreement(500, &none, &none).f1()), (Ok(()), None));
}

#[test]
fn a_slow_model_is_told_from_a_slow_device() {
    let check = |confirmed_secs, candidate_secs, expected| {
        let mut agreement = agreement(10, &label(&[], 0.0), &label(&[], 0.0));
        (0..10).for_each(|_| agreement.took(confirmed_secs, candidate_secs));
        assert_eq!(agreement.judge(&LIMITS), expected, "{agreement}");
    };
    check(0.1, 1.9, Ok(()));
    check(0.1, 2.1, Err(Disagreement::Slow));
    check(3.0, 14.0, Ok(()));
    check(3.0, 16.0, Err(Disagreement::Slow));
}
