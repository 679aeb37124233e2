//! What the gate looks at beside the two APs.

use super::{Judged, Rounds};
use crate::score::{GroundTruth, bootstrap, terciles};
use crate::service::gate::Evidence;
use omnilabel_coco::Dataset;
use std::path::PathBuf;

/// Resamples of the held-out pictures for the gate: a share of 95 % is then known to within 1.4 points (two standard errors of a binomial).
const RESAMPLES: usize = 1000;

impl Rounds {
    /// What a model found on the held-out pictures, as COCO results.
    pub(super) fn results(&self, round: u64, which: &str) -> PathBuf {
        self.folder(round).join(format!("{which}.results.json"))
    }

    /// What the gate looks at beside the two APs: the same resamples of the held-out pictures for both, thirds of the people, keypoints.
    pub(super) fn evidence(&self, round: u64, running: &Judged, candidate: &Judged) -> anyhow::Result<Evidence> {
        let truth = GroundTruth::from_dataset(&Dataset::load(&self.config.data.heldout)?)?;
        let mut evidence = Evidence { running: running.ap, candidate: candidate.ap, ..Evidence::default() };
        let paths = ["running", "candidate"].map(|which| self.results(round, which));
        let [before, after] = paths.map(|path| omnilabel_coco::read_results(&path));
        let (before, after) = (before?, after?);
        let resampled = bootstrap(&truth, &[&after, &before], RESAMPLES, round, &|_| ())?;
        evidence.differences = resampled.aps[0].iter().zip(&resampled.aps[1]).map(|(after, before)| after - before).collect();
        let thirds = [terciles(&truth, &before)?, terciles(&truth, &after)?];
        for (at, name) in ["the smallest third", "the middle third", "the largest third"].into_iter().enumerate() {
            // Nobody in it: no number.
            if thirds[0][at] >= 0.0 {
                evidence.parts.push((name.to_owned(), thirds[0][at], thirds[1][at]));
            }
        }
        let keypoints = self.manual.skeleton.names().zip(running.pck.iter().zip(&candidate.pck));
        evidence.parts.extend(keypoints.filter_map(|(name, (before, after))| Some((name.to_owned(), (*before)?, (*after)?))));
        Ok(evidence)
    }
}
