//! Results that do not belong to the ground truth are refused by what was expected and found.
#![allow(clippy::unwrap_used)]

use omnilabel_coco::ResultRecord;
use omnilabel_trainer::score::{GroundTruth, ScoreError, score};
use std::collections::BTreeSet;

fn truth() -> GroundTruth {
    GroundTruth::new(BTreeSet::from([1]), BTreeSet::from([1]), Vec::new(), vec![0.1; 14]).unwrap()
}

fn result(image_id: u64, keypoints: usize) -> ResultRecord {
    ResultRecord { image_id, category_id: 1, keypoints: vec![1.0; 3 * keypoints], score: 0.5, bbox: None }
}

fn check(results: &[ResultRecord], expect: &[&str]) {
    let error = score(&truth(), results).unwrap_err();
    assert!(matches!(error, ScoreError::Result { .. }));
    for part in expect {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn results_of_another_skeleton() {
    check(&[result(1, 14), result(1, 17)], &["result 1", "expected 14 keypoints", "found 17 keypoints"]);
}

#[test]
fn results_of_an_unknown_image() {
    check(&[result(9, 14)], &["image 9"]);
}

#[test]
fn a_box_on_some_results_only() {
    check(&[ResultRecord { bbox: Some([0.0, 0.0, 5.0, 5.0]), ..result(1, 14) }, result(1, 14)], &["result 1", "bbox"]);
}

#[test]
fn without_ground_truth_every_number_is_minus_one() {
    let scores = score(&truth(), &[result(1, 14)]).unwrap();
    assert!(scores.named().iter().all(|(_, v)| *v == -1.0), "{scores:?}");
}
