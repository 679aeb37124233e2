use super::*;

/// People of one keypoint pair, as large as told, each on an image of its own.
fn people(areas: &[f64]) -> GroundTruth {
    let truth = |(at, area): (usize, &f64)| Truth {
        id: at as u64 + 1,
        image_id: at as u64 + 1,
        category_id: Some(1),
        bbox: [0.0, 0.0, area.sqrt(), area.sqrt()],
        keypoints: vec![0.0, 0.0, 2.0, area.sqrt(), area.sqrt(), 2.0],
        num_keypoints: None,
        area: *area,
        iscrowd: 0,
    };
    let images = (1..=areas.len() as u64).collect();
    GroundTruth::new(images, BTreeSet::from([1]), areas.iter().enumerate().map(truth).collect(), vec![0.1; 2]).unwrap()
}

/// Every person found exactly, or far from where it is.
fn results(areas: &[f64], found: impl Fn(f64) -> bool) -> Vec<ResultRecord> {
    let record = |(at, area): (usize, &f64)| {
        let shift = if found(*area) { 0.0 } else { 1e4 };
        let keypoints = vec![shift, shift, 1.0, shift + area.sqrt(), shift + area.sqrt(), 1.0];
        ResultRecord { image_id: at as u64 + 1, category_id: 1, keypoints, score: 0.9, bbox: None }
    };
    areas.iter().enumerate().map(record).collect()
}

#[test]
fn thirds_by_area_are_scored_apart() {
    let areas = [900.0, 100.0, 1600.0, 400.0, 2500.0, 3600.0];
    let truth = people(&areas);
    for (from, to, expected) in [(0.0, 1e9, [1.0, 1.0, 1.0]), (2000.0, 1e9, [0.0, 0.0, 1.0]), (800.0, 2000.0, [0.0, 1.0, 0.0])] {
        let found = terciles(&truth, &results(&areas, |area| (from..to).contains(&area))).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            // The precision's ε in the denominator, as pycocotools has it.
            assert!((found - expected).abs() < 1e-12, "{from} to {to}: {found} of {expected}");
        }
    }
    assert_eq!(terciles(&people(&[]), &[]).unwrap(), [-1.0; 3]);
}
