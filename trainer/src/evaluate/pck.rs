//! PCK, the share of keypoints that lie where they should: within a part of the torso's diameter, left shoulder to right hip (Yang and
//! Ramanan, TPAMI 2013), as LSP's results are given.

use super::Detections;
use omnilabel_coco::{Annotation, Dataset, to_continuous};
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Keypoint, Thresholds};
use serde::{Deserialize, Serialize};

/// The part of the torso's diameter.
pub const PCK_PART: f32 = 0.2;

/// A labelled keypoint of a person whose torso is labelled.
struct Judged<'d> {
    /// Its index in the skeleton.
    joint: usize,
    /// Whether it was found within [`PCK_PART`] of the torso.
    right: bool,
    /// What was found: by the person's detection, the one whose box overlaps the person's most.
    found: Option<(&'d Detection, &'d Keypoint)>,
}

/// Of all labelled keypoints of people whose torso is labelled: those whose person's detection, the one whose box overlaps the person's
/// most, has them within [`PCK_PART`] of the torso. People without any detection count with all of their keypoints. `None` where no
/// torso is labelled, or the skeleton has none.
pub fn pck(dataset: &Dataset, detections: &Detections) -> Option<f64> {
    let judged = judge(dataset, detections);
    let right = judged.iter().filter(|keypoint| keypoint.right).count();
    (!judged.is_empty()).then(|| right as f64 / judged.len() as f64)
}

/// [`pck`] of each keypoint of the skeleton; `None` for one that nobody has labelled, and empty where no torso is labelled.
pub fn pck_by_keypoint(dataset: &Dataset, detections: &Detections) -> Vec<Option<f64>> {
    let judged = judge(dataset, detections);
    let of = |joint: usize| {
        let all = judged.iter().filter(|keypoint| keypoint.joint == joint);
        let (right, count) = all.fold((0_u64, 0_u64), |(right, count), keypoint| (right + u64::from(keypoint.right), count + 1));
        (count > 0).then(|| right as f64 / count as f64)
    };
    if judged.is_empty() { Vec::new() } else { (0..dataset.skeleton.len()).map(of).collect() }
}

/// Values of equally many, sorted by something else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// The least of what they are sorted by.
    pub from: f32,
    /// The most.
    pub to: f32,
    /// How many.
    pub count: usize,
    /// Their mean value.
    pub mean: f64,
}

impl Bin {
    /// `parts` of `values`, each a pair of what is sorted by and the value; fewer where there are fewer values.
    pub fn of(mut values: Vec<(f32, f64)>, parts: usize) -> Vec<Self> {
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bin = |part: usize| {
            let part = values.get(part * values.len() / parts..(part + 1) * values.len() / parts)?;
            let (first, last) = (part.first()?, part.last()?);
            let mean = part.iter().map(|(_, value)| value).sum::<f64>() / part.len() as f64;
            Some(Self { from: first.0, to: last.0, count: part.len(), mean })
        };
        (0..parts).filter_map(bin).collect()
    }
}

/// The share of right ones among the keypoints that become labels, by the agreement of the views on them: `parts` of equally many; none
/// where all agree alike.
pub fn pck_by_agreement(
    dataset: &Dataset,
    detections: &Detections,
    thresholds: Thresholds,
    min_agreement: Option<f32>,
    parts: usize,
) -> Vec<Bin> {
    let values = hard(dataset, detections, thresholds, min_agreement);
    let alike = values.iter().all(|(agreement, _)| *agreement == values[0].0);
    if alike { Vec::new() } else { Bin::of(values, parts) }
}

/// The share of right ones among the keypoints that become labels; `None` where none can be judged.
pub fn pck_of_labels(dataset: &Dataset, detections: &Detections, thresholds: Thresholds, min_agreement: Option<f32>) -> Option<f64> {
    let values = hard(dataset, detections, thresholds, min_agreement);
    (!values.is_empty()).then(|| values.iter().map(|(_, right)| right).sum::<f64>() / values.len() as f64)
}

/// Of each judged keypoint that becomes a label, the agreement on it and whether it is right, 1 or 0.
fn hard(dataset: &Dataset, detections: &Detections, thresholds: Thresholds, min_agreement: Option<f32>) -> Vec<(f32, f64)> {
    let of = |judged: &Judged<'_>| {
        let (detection, keypoint) = judged.found?;
        let kept = detection.score >= thresholds.instance && keypoint.passes(thresholds.keypoint);
        let kept = kept && min_agreement.is_none_or(|least| keypoint.agreement >= least);
        kept.then_some((keypoint.agreement, if judged.right { 1.0 } else { 0.0 }))
    };
    judge(dataset, detections).iter().filter_map(of).collect()
}

fn judge<'d>(dataset: &Dataset, detections: &'d Detections) -> Vec<Judged<'d>> {
    let index = |name: &str| dataset.skeleton.names().position(|known| known == name);
    let (Some(shoulder), Some(hip)) = (index("left_shoulder"), index("right_hip")) else { return Vec::new() };
    let mut judged = Vec::new();
    for annotation in dataset.annotations.iter().filter(|a| a.iscrowd == 0) {
        let point = |joint: usize| labelled(annotation, joint);
        let (Some(from), Some(to)) = (point(shoulder), point(hip)) else { continue };
        let near = PCK_PART * distance(from, to);
        let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
        let rect = Rect::from_xywh(x, y, w, h);
        let found = detections.images.binary_search_by_key(&annotation.image_id, |image| image.image_id).ok();
        let found = found.map_or(&[][..], |at| &detections.images[at].detections);
        let overlapping = found.iter().map(|d| (d, rect.iou(&d.rect))).filter(|(_, iou)| *iou > 0.0);
        let best = overlapping.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(d, _)| d);
        for joint in 0..dataset.skeleton.len() {
            let Some(truth) = point(joint) else { continue };
            let found = best.and_then(|d| Some((d, d.keypoints.get(joint)?)));
            judged.push(Judged { joint, right: found.is_some_and(|(_, k)| distance(k.point, truth) <= near), found });
        }
    }
    judged
}

fn distance(a: Point, b: Point) -> f32 {
    (a.x - b.x).hypot(a.y - b.y)
}

fn labelled(annotation: &Annotation, joint: usize) -> Option<Point> {
    let [x, y, v] = *annotation.keypoints.get(3 * joint..3 * joint + 3)?.first_chunk::<3>()?;
    (v > 0.0).then(|| Point { x: to_continuous(x), y: to_continuous(y) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Detected;
    use omnilabel_coco::{ImageRecord, from_continuous};
    use omnilabel_keypoints::skeleton::Skeleton;
    use std::path::PathBuf;

    /// A person of a torso 10 px in diameter, whose joints all lie at (20, 20) but for the right hip.
    fn person(skeleton: &Skeleton, image_id: u64) -> Annotation {
        let hip = skeleton.names().position(|name| name == "right_hip").unwrap();
        let joint = |i| [from_continuous(20.0), from_continuous(if i == hip { 30.0 } else { 20.0 }), 2.0];
        let keypoints: Vec<f64> = (0..skeleton.len()).flat_map(joint).collect();
        let num_keypoints = skeleton.len() as u32;
        Annotation {
            id: image_id,
            image_id,
            category_id: 1,
            bbox: [10.0, 10.0, 20.0, 30.0],
            keypoints,
            num_keypoints,
            area: 600.0,
            iscrowd: 0,
        }
    }

    #[test]
    fn joints_count_within_a_fifth_of_the_torso_and_missed_people_with_all_of_theirs() {
        let skeleton = Skeleton::coco17();
        let image = |id| ImageRecord { id, file_name: format!("{id}.jpg"), width: 64, height: 64 };
        let mut annotations: Vec<Annotation> = (1..=2).map(|id| person(&skeleton, id)).collect();
        // One keypoint is not labelled.
        annotations[0].keypoints[2] = 0.0;
        let dataset = Dataset { root: PathBuf::new(), skeleton: skeleton.clone(), images: vec![image(1), image(2)], annotations };
        let mut near = Detection { rect: Rect::new(9.0, 9.0, 31.0, 41.0), score: 0.2, ..Detection::default() };
        for joint in 0..skeleton.len() {
            // Every second joint just within 2 px, the others just not.
            let point = Point { x: 20.0 + if joint % 2 == 0 { 1.99 } else { 2.01 }, y: 20.0 };
            near.keypoints.push(Keypoint { point, ..Keypoint::default() }).unwrap();
        }
        let elsewhere = Detection { rect: Rect::new(40.0, 40.0, 60.0, 60.0), score: 0.9, ..Detection::default() };
        let images = vec![Detected { image_id: 1, detections: vec![elsewhere, near] }];
        let found = pck(&dataset, &Detections { images, unreadable: Vec::new() }).unwrap();
        // Of joints 1 to 16 the even ones, but the right hip, which is joint 12.
        assert_eq!(found, 7.0 / (16.0 + 17.0));
    }

    #[test]
    fn bins_are_of_equally_many_by_rising_order() {
        let values = (0..10).rev().map(|i| (i as f32, f64::from(i % 2))).collect();
        let bins = Bin::of(values, 5);
        assert_eq!(bins.len(), 5);
        assert_eq!(bins[1], Bin { from: 2.0, to: 3.0, count: 2, mean: 0.5 });
        assert_eq!(Bin::of(vec![(1.0, 3.0)], 5), [Bin { from: 1.0, to: 1.0, count: 1, mean: 3.0 }]);
        assert!(Bin::of(Vec::new(), 5).is_empty());
    }

    #[test]
    fn only_keypoints_that_become_labels_are_told_by_agreement() {
        let skeleton = Skeleton::coco17();
        let images = vec![ImageRecord { id: 1, file_name: "1.jpg".to_owned(), width: 64, height: 64 }];
        let dataset = Dataset { root: PathBuf::new(), skeleton: skeleton.clone(), images, annotations: vec![person(&skeleton, 1)] };
        let mut detection = Detection { rect: Rect::new(9.0, 9.0, 31.0, 41.0), score: 0.6, ..Detection::default() };
        for joint in 0..skeleton.len() {
            // The later, the more the views agree, and from 8 on it is where it should be; the first two are too unsure for labels.
            let point = Point { x: 20.0, y: if joint < 8 { 60.0 } else { 20.0 } };
            let probability = if joint < 2 { 0.1 } else { 0.5 };
            detection.keypoints.push(Keypoint { point, probability, agreement: joint as f32 / 17.0, ..Keypoint::default() }).unwrap();
        }
        let detections = Detections { images: vec![Detected { image_id: 1, detections: vec![detection] }], unreadable: Vec::new() };
        let of = |instance, least| pck_by_agreement(&dataset, &detections, Thresholds { instance, keypoint: 0.3, floor: 0.05 }, least, 3);
        let bins = of(0.5, None);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), 15);
        // Joint 12, the right hip, lies elsewhere.
        assert_eq!(bins.iter().map(|bin| bin.mean).collect::<Vec<_>>(), [0.0, 0.8, 0.8]);
        assert_eq!(of(0.5, Some(8.0 / 17.0)).iter().map(|bin| bin.count).sum::<usize>(), 9);
        assert!(of(0.7, None).is_empty());
        let share = |instance| pck_of_labels(&dataset, &detections, Thresholds { instance, keypoint: 0.3, floor: 0.05 }, None);
        assert_eq!((share(0.5), share(0.7)), (Some(8.0 / 15.0), None));
    }

    #[test]
    fn without_a_torso_there_is_none() {
        let skeleton = Skeleton::coco17();
        let mut one = person(&skeleton, 1);
        one.keypoints.iter_mut().skip(2).step_by(3).for_each(|v| *v = 0.0);
        let images = vec![ImageRecord { id: 1, file_name: "1.jpg".to_owned(), width: 64, height: 64 }];
        let dataset = Dataset { root: PathBuf::new(), skeleton, images, annotations: vec![one] };
        assert_eq!(pck(&dataset, &Detections::default()), None);
    }
}
