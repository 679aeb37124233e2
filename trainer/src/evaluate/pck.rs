//! PCK, the share of keypoints that lie where they should: within a part of the torso's diameter, left shoulder to right hip (Yang and
//! Ramanan, TPAMI 2013), as LSP's results are given.

use super::Detections;
use omnilabel_coco::{Annotation, Dataset, to_continuous};
use omnilabel_keypoints::geometry::{Point, Rect};

/// The part of the torso's diameter.
pub const PCK_PART: f32 = 0.2;

/// Of all labelled keypoints of people whose torso is labelled: those whose person's detection, the one whose box overlaps the person's
/// most, has them within [`PCK_PART`] of the torso. People without any detection count with all of their keypoints. `None` where no
/// torso is labelled, or the skeleton has none.
pub fn pck(dataset: &Dataset, detections: &Detections) -> Option<f64> {
    let index = |name: &str| dataset.skeleton.names().position(|known| known == name);
    let torso = [index("left_shoulder")?, index("right_hip")?];
    let (mut right, mut all) = (0_u64, 0_u64);
    for annotation in dataset.annotations.iter().filter(|a| a.iscrowd == 0) {
        let point = |joint: usize| labelled(annotation, joint);
        let (Some(from), Some(to)) = (point(torso[0]), point(torso[1])) else { continue };
        let near = PCK_PART * distance(from, to);
        let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
        let rect = Rect::from_xywh(x, y, w, h);
        let found = detections.images.binary_search_by_key(&annotation.image_id, |image| image.image_id).ok();
        let found = found.map_or(&[][..], |at| &detections.images[at].detections);
        let overlapping = found.iter().map(|d| (d, rect.iou(&d.rect))).filter(|(_, iou)| *iou > 0.0);
        let best = overlapping.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(d, _)| d);
        for joint in 0..dataset.skeleton.len() {
            let Some(truth) = point(joint) else { continue };
            all += 1;
            let there = best.and_then(|d| d.keypoints.get(joint)).is_some_and(|k| distance(k.point, truth) <= near);
            right += u64::from(there);
        }
    }
    (all > 0).then(|| right as f64 / all as f64)
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
    use omnilabel_keypoints::label::{Detection, Keypoint};
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
    fn without_a_torso_there_is_none() {
        let skeleton = Skeleton::coco17();
        let mut one = person(&skeleton, 1);
        one.keypoints.iter_mut().skip(2).step_by(3).for_each(|v| *v = 0.0);
        let images = vec![ImageRecord { id: 1, file_name: "1.jpg".to_owned(), width: 64, height: 64 }];
        let dataset = Dataset { root: PathBuf::new(), skeleton, images, annotations: vec![one] };
        assert_eq!(pck(&dataset, &Detections::default()), None);
    }
}
