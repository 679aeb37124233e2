//! How good labels are, where the truth is known.

use super::ExperimentError;
use super::record::Hard;
use crate::evaluate::{Bin, Detected, Detections, pck_of_labels};
use crate::gallery::FOUND_OKS;
use crate::score::{GroundTruth, inspect, score};
use omnilabel_coco::Dataset;
use omnilabel_keypoints::label::{Detection, Thresholds};
use std::collections::BTreeSet;

/// Parts of equally many labels, by agreement and by score.
pub(super) const PARTS: usize = 5;

/// How good the labels are that these thresholds make of detections.
pub(super) fn hard(
    dataset: &Dataset,
    detections: &Detections,
    thresholds: Thresholds,
    min_agreement: Option<f32>,
) -> Result<Hard, ExperimentError> {
    let kept = detections.from_score(thresholds.instance);
    let ap = score(&GroundTruth::from_dataset(dataset)?, &kept.results(dataset))?.ap;
    Ok(Hard { ap, pck: pck_of_labels(dataset, detections, thresholds, min_agreement) })
}

/// The mean agreement of the views on a picture's people; 0 without any.
fn agreement(image: &Detected) -> f32 {
    image.detections.iter().map(Detection::agreement).sum::<f32>() / image.detections.len().max(1) as f32
}

/// Of the pictures with people from `threshold` on this share, at least one: those on which the views agree most, of equals the lower ids.
pub(super) fn most_agreed(detections: &Detections, threshold: f32, share: f64) -> BTreeSet<u64> {
    let mut kept = detections.from_score(threshold).images;
    kept.retain(|image| !image.detections.is_empty());
    kept.sort_by(|a, b| agreement(b).total_cmp(&agreement(a)).then(a.image_id.cmp(&b.image_id)));
    let count = (kept.len() as f64 * share).round().max(1.0) as usize;
    kept.into_iter().take(count).map(|image| image.image_id).collect()
}

/// OKS-AP of the labels of pictures by the mean agreement on their instances, [`PARTS`] of equally many pictures; none where all agree alike.
pub(super) fn ap_by_agreement(dataset: &Dataset, detections: &Detections, threshold: f32) -> Result<Vec<Bin>, ExperimentError> {
    let mut kept = detections.from_score(threshold).images;
    kept.retain(|image| !image.detections.is_empty());
    kept.sort_by(|a, b| agreement(a).total_cmp(&agreement(b)));
    let (Some(first), Some(last)) = (kept.first().map(agreement), kept.last().map(agreement)) else { return Ok(Vec::new()) };
    let mut bins = Vec::new();
    for part in (0..PARTS).filter(|_| first < last) {
        let mut images = kept[part * kept.len() / PARTS..(part + 1) * kept.len() / PARTS].to_vec();
        let (Some(from), Some(to)) = (images.first().map(agreement), images.last().map(agreement)) else { continue };
        images.sort_by_key(|image| image.image_id);
        let pictures = dataset.subset(|_, image| images.binary_search_by_key(&image.id, |known| known.image_id).is_ok());
        let truth = GroundTruth::from_dataset(&pictures)?;
        let count = images.len();
        let mean = score(&truth, &Detections { images, unreadable: Vec::new() }.results(&pictures))?.ap;
        bins.push(Bin { from, to, count, mean: mean.max(0.0) });
    }
    Ok(bins)
}

/// Every detection's score with its OKS with the nearest person who counts.
pub(super) fn oks_of_scores(dataset: &Dataset, detections: &Detections) -> Result<Vec<(f32, f64)>, ExperimentError> {
    let truth = GroundTruth::from_dataset(dataset)?;
    let mut found = Vec::new();
    for image in &detections.images {
        let one = Detections { images: vec![image.clone()], unreadable: Vec::new() };
        let inspection = inspect(&truth, image.image_id, &one.results(dataset), FOUND_OKS)?;
        found.extend(inspection.detections.iter().map(|detection| (detection.score as f32, detection.best_oks.unwrap_or(0.0))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{ManualStats, Mode, calibrate};
    use omnilabel_coco::{Annotation, ImageRecord, from_continuous};
    use omnilabel_keypoints::geometry::{Point, Rect};
    use omnilabel_keypoints::label::Keypoint;
    use omnilabel_keypoints::skeleton::Skeleton;
    use std::path::PathBuf;

    /// A person a picture, and a label for each, of which the ones with less agreement lie elsewhere.
    fn pictures(count: u64) -> (Dataset, Detections) {
        let skeleton = Skeleton::coco17();
        let images = (1..=count).map(|id| ImageRecord { id, file_name: format!("{id}.jpg"), width: 64, height: 64 }).collect();
        let at = |joint: usize| Point { x: 12.0 + joint as f32, y: 14.0 + joint as f32 };
        let person = |id: u64| Annotation {
            id,
            image_id: id,
            category_id: 1,
            bbox: [10.0, 10.0, 20.0, 30.0],
            keypoints: (0..17).flat_map(|joint| [from_continuous(at(joint).x), from_continuous(at(joint).y), 2.0]).collect(),
            num_keypoints: 17,
            area: 600.0,
            iscrowd: 0,
        };
        let detected = |id: u64| {
            let off = if 2 * id > count { 0.0 } else { 30.0 };
            let mut detection = Detection { rect: Rect::new(10.0, 10.0, 30.0, 40.0), score: 0.9, ..Detection::default() };
            for joint in 0..17 {
                let point = Point { x: at(joint).x + off, y: at(joint).y };
                let keypoint = Keypoint { point, probability: 0.5, agreement: id as f32 / count as f32, ..Keypoint::default() };
                detection.keypoints.push(keypoint).unwrap();
            }
            let unsure = Detection { rect: Rect::new(40.0, 40.0, 60.0, 60.0), score: 0.1, keypoints: detection.keypoints.clone() };
            Detected { image_id: id, detections: vec![detection, unsure] }
        };
        let dataset = Dataset { root: PathBuf::new(), skeleton, images, annotations: (1..=count).map(person).collect() };
        (dataset, Detections { images: (1..=count).map(detected).collect(), unreadable: Vec::new() })
    }

    #[test]
    fn hard_labels_are_what_passes_the_thresholds() {
        let (dataset, detections) = pictures(10);
        let unlabelled: Vec<_> = detections.images.iter().map(|image| image.detections.clone()).collect();
        let thresholds = calibrate(Mode::Paper, ManualStats::of(&dataset), &unlabelled, None, 0.05).thresholds;
        let all = hard(&dataset, &detections, thresholds, None).unwrap();
        assert_eq!(all.pck, Some(0.5));
        // Five of ten are found, and five wrong ones are as sure.
        assert!(all.ap > 0.2 && all.ap < 0.6, "{all:?}");
        assert_eq!(hard(&dataset, &detections, thresholds, Some(0.55)).unwrap(), Hard { pck: Some(1.0), ..all });
        assert_eq!(most_agreed(&detections, thresholds.instance, 0.3), BTreeSet::from([8, 9, 10]));
        assert_eq!(most_agreed(&detections, thresholds.instance, 0.01), BTreeSet::from([10]));
        assert_eq!(most_agreed(&detections, 0.95, 1.0), BTreeSet::new(), "nobody is that sure");
        let none = Detections { images: vec![Detected { image_id: 1, detections: Vec::new() }], unreadable: Vec::new() };
        assert_eq!(hard(&dataset, &none, thresholds, None).unwrap(), Hard { ap: 0.0, pck: None });
    }

    #[test]
    fn labels_on_which_the_views_agree_are_told_from_the_others() {
        let (dataset, mut detections) = pictures(20);
        let bins = ap_by_agreement(&dataset, &detections, 0.5).unwrap();
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [4; 5]);
        assert_eq!(bins.iter().map(|bin| bin.mean > 0.99).collect::<Vec<_>>(), [false, false, false, true, true], "{bins:?}");
        assert!(bins[0].mean < 0.01 && bins[2].mean > 0.2, "{bins:?}");
        assert!(ap_by_agreement(&dataset, &detections, 0.95).unwrap().is_empty());
        for keypoint in detections.images.iter_mut().flat_map(|image| &mut image.detections).flat_map(|one| &mut one.keypoints) {
            keypoint.agreement = 1.0;
        }
        assert!(ap_by_agreement(&dataset, &detections, 0.5).unwrap().is_empty(), "one view agrees with itself");
    }
}
