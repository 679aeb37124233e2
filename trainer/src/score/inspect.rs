//! One image looked at closely: which detection found whom, how well, and who was missed.

use super::matching::{match_image, oks};
use super::{AREAS, GroundTruth, ScoreError, Truth, predictions};
use omnilabel_coco::ResultRecord;

/// One detection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Position in the results.
    pub index: usize,
    /// Its score.
    pub score: f64,
    /// The highest OKS with a person who counts, whether it was matched or not; `None` without such a person.
    pub best_oks: Option<f64>,
    /// Whether it found somebody; `None` when it matches a person who does not count.
    pub correct: Option<bool>,
}

/// One labelled person.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Met {
    /// The annotation.
    pub id: u64,
    /// Whether the person counts: no crowd, and with a labelled keypoint.
    pub counts: bool,
    /// OKS of the detection that found the person.
    pub oks: Option<f64>,
}

/// What became of one image's detections and people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// By falling score, the first [`super::MAX_DETECTIONS`].
    pub detections: Vec<Found>,
    /// In file order.
    pub people: Vec<Met>,
}

impl Inspection {
    /// Σ OKS of those who were found / (people who count + wrong detections): 1 when everybody is where the labels say and nobody else,
    /// and where there is nobody.
    pub fn quality(&self) -> f64 {
        let total = self.people.iter().filter(|p| p.counts).count() + self.wrong();
        // From +0: the sum of nothing is −0.
        let found = self.people.iter().filter(|p| p.counts).filter_map(|p| p.oks).fold(0.0, |sum, oks| sum + oks);
        if total == 0 { 1.0 } else { found / total as f64 }
    }

    /// People who count and were not found.
    pub fn missed(&self) -> usize {
        self.people.iter().filter(|p| p.counts && p.oks.is_none()).count()
    }

    /// Detections of nobody.
    pub fn wrong(&self) -> usize {
        self.detections.iter().filter(|d| d.correct == Some(false)).count()
    }
}

/// Matches the results of one image at one OKS threshold, over all areas, as [`super::score`] does it.
///
/// # Errors
/// As [`super::score`], also for results of another image.
pub fn inspect(truth: &GroundTruth, image: u64, results: &[ResultRecord], threshold: f64) -> Result<Inspection, ScoreError> {
    if let Some((index, other)) = results.iter().enumerate().find(|(_, r)| r.image_id != image) {
        return Err(ScoreError::Result { index, message: format!("expected image {image}, found {}", other.image_id) });
    }
    let predicted = predictions(truth, results)?;
    let mut inspection = Inspection::default();
    for category in &truth.category_ids {
        let gts: &[Truth] = truth.truths.get(&(*category, image)).map_or(&[], Vec::as_slice);
        let dts = predicted.get(&(*category, image)).map_or(&[][..], Vec::as_slice);
        let matches = match_image(gts, dts, &truth.sigmas, AREAS[0], &[threshold]);
        let met = |gt: &Truth| {
            let mut finders = dts.iter().zip(&matches.outcomes).filter(|(_, outcome)| outcome.found == Some(gt.id));
            Met { id: gt.id, counts: !gt.ignored(), oks: finders.next().map(|(dt, _)| oks(gt, dt.keypoints, &truth.sigmas)) }
        };
        inspection.people.extend(gts.iter().map(met));
        for (dt, outcome) in dts.iter().zip(&matches.outcomes) {
            let similar = gts.iter().filter(|gt| !gt.ignored()).map(|gt| oks(gt, dt.keypoints, &truth.sigmas));
            inspection.detections.push(Found {
                index: dt.index,
                score: dt.score,
                best_oks: similar.max_by(f64::total_cmp),
                correct: (!outcome.ignored).then_some(outcome.matched),
            });
        }
    }
    Ok(inspection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn person(id: u64, x: f64, iscrowd: u8) -> Truth {
        Truth {
            id,
            image_id: 1,
            category_id: Some(1),
            bbox: [x, 0.0, 20.0, 40.0],
            keypoints: vec![x, 5.0, 2.0, x + 20.0, 35.0, 2.0],
            num_keypoints: None,
            area: 800.0,
            iscrowd,
        }
    }

    fn detection(x: f64, score: f64) -> ResultRecord {
        ResultRecord { image_id: 1, category_id: 1, keypoints: vec![x, 5.0, 1.0, x + 20.0, 35.0, 1.0], score, bbox: None }
    }

    fn check(results: &[ResultRecord]) -> Inspection {
        let people = vec![person(11, 0.0, 0), person(12, 100.0, 0), person(13, 200.0, 1)];
        let truth = GroundTruth::new(BTreeSet::from([1]), BTreeSet::from([1]), people, vec![0.1; 2]).unwrap();
        inspect(&truth, 1, results, 0.5).unwrap()
    }

    #[test]
    fn found_missed_wrong_and_neither_are_told_apart() {
        // Beside person 11, somebody twice, in the crowd, and nobody.
        let told = check(&[detection(1.0, 0.5), detection(0.0, 0.9), detection(200.0, 0.7), detection(400.0, 0.8)]);
        let order: Vec<(usize, Option<bool>)> = told.detections.iter().map(|d| (d.index, d.correct)).collect();
        assert_eq!(order, [(1, Some(true)), (3, Some(false)), (2, None), (0, Some(false))]);
        assert_eq!(told.detections[0].best_oks, Some(1.0));
        assert!(told.detections[1].best_oks.is_some_and(|oks| oks < 1e-6));
        // The second one on person 11 is a duplicate, however near it is.
        assert!(told.detections[3].best_oks.is_some_and(|oks| oks > 0.9), "{told:?}");
        let met: Vec<(u64, bool, bool)> = told.people.iter().map(|p| (p.id, p.counts, p.oks.is_some())).collect();
        assert_eq!(met, [(11, true, true), (12, true, false), (13, false, true)]);
        assert_eq!((told.missed(), told.wrong()), (1, 2));
        assert_eq!(told.quality(), 0.25);
    }

    #[test]
    fn everybody_found_is_the_best_and_an_empty_image_has_nothing_wrong() {
        assert_eq!(check(&[detection(0.0, 0.9), detection(100.0, 0.9)]).quality(), 1.0);
        assert_eq!(Inspection::default().quality(), 1.0);
        assert_eq!(format!("{:.2}", check(&[]).quality()), "0.00");
    }
}
