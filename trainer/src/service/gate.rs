//! The gate: whether a student may replace the running model. Pure.

use crate::score::Difference;
use crate::service::config::{DriftMode, GateConfig};
use crate::service::drift::Relabelled;
use serde::{Deserialize, Serialize};

/// What becomes of a student, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision", content = "reason")]
pub enum Decision {
    /// It is signed and released.
    Release(String),
    /// It stays here.
    Refuse(String),
}

impl Decision {
    /// The reason.
    pub fn reason(&self) -> &str {
        let (Self::Release(reason) | Self::Refuse(reason)) = self;
        reason
    }

    /// Whether it goes out.
    pub const fn released(&self) -> bool {
        matches!(self, Self::Release(_))
    }
}

/// What is known of both models on the same held-out manual labels. AP and PCK in `[0, 1]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// AP of the running model.
    pub running: f64,
    /// AP of the student.
    pub candidate: f64,
    /// AP of the student less AP of the running model, on resamples of the images.
    pub differences: Vec<f64>,
    /// What both have a number for: a keypoint's PCK, AP of a third of the people; name, running model, student.
    pub parts: Vec<(String, f64, f64)>,
    /// What both make of the fleet's newest pictures, where that was looked at.
    pub relabelled: Option<Relabelled>,
}

impl Evidence {
    /// How much better the student is than the running model, with the 95 % interval of that; `None` without two resamples.
    pub fn difference(&self) -> Option<Difference> {
        Difference::of(self.candidate - self.running, &self.differences).filter(|difference| difference.ap.is_finite())
    }
}

/// Compares the two exported bundles.
pub fn decide(evidence: &Evidence, config: &GateConfig) -> Decision {
    let Evidence { running, candidate, differences, parts, relabelled } = evidence;
    let (running, candidate) = (*running, *candidate);
    if !candidate.is_finite() || !running.is_finite() {
        return Decision::Refuse(format!("AP cannot be compared: running {running}, candidate {candidate}"));
    }
    if candidate < 0.0 || running < 0.0 {
        return Decision::Refuse(format!(
            "the held-out labels cannot tell the models apart, nobody in them counts: running AP {running}, candidate AP {candidate}"
        ));
    }
    let gain = config.min_improvement.unwrap_or(-config.margin);
    let mut said = format!("candidate AP {candidate:.4}, running AP {running:.4}");
    if let Some(Difference { ap, spread, .. }) = evidence.difference() {
        let [low, high] = spread.interval;
        said += &format!(": {ap:+.4} (95 %: {low:+.4} to {high:+.4})");
    }
    said += &format!(", needed {:.4}", running + gain);
    let reached = differences.iter().filter(|difference| **difference >= gain).count() as f64 / differences.len().max(1) as f64;
    if !differences.is_empty() {
        said += &format!(", reached on {:.1} % of {} resamples of the images", 100.0 * reached, differences.len());
    }
    if candidate < running + gain {
        return Decision::Refuse(said);
    }
    if let Some(sure) = config.sure
        && (differences.is_empty() || reached < sure)
    {
        return Decision::Refuse(format!("{said}: {:.1} % needed", 100.0 * sure));
    }
    let worst = parts.iter().max_by(|a, b| (a.1 - a.2).total_cmp(&(b.1 - b.2))).filter(|(_, before, after)| after < before);
    if let Some((name, before, after)) = worst {
        said += &format!("; the largest fall is {name}'s, from {:.1} to {:.1} %", 100.0 * before, 100.0 * after);
        if config.max_regression.is_some_and(|most| before - after > most) {
            return Decision::Refuse(format!(
                "{said}: at most {:.1} points are allowed",
                100.0 * config.max_regression.unwrap_or_default()
            ));
        }
    }
    if let Some(relabelled) = relabelled {
        said += &format!("; {relabelled}");
        let named = || {
            let drifted: Vec<_> = relabelled.compared.iter().filter(|compared| compared.drifted).map(|one| one.what.name()).collect();
            drifted.join(" and ")
        };
        match config.drift {
            _ if !relabelled.has_drifted() => {}
            DriftMode::Refuse => return Decision::Refuse(format!("{said}: {} may change by {} at most", named(), config.drift_limit)),
            DriftMode::Warn | DriftMode::Off => {
                said += &format!(": {} changed by more than {}, which `gate.drift` lets pass", named(), config.drift_limit);
            }
        }
    }
    Decision::Release(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(running: f64, candidate: f64, margin: f64, gain: Option<f64>, released: bool) {
        let config = GateConfig { margin, min_improvement: gain, ..GateConfig::default() };
        let decision = decide(&Evidence { running, candidate, ..Evidence::default() }, &config);
        assert_eq!(decision.released(), released, "{decision:?}");
        let compared = running >= 0.0 && candidate >= 0.0;
        assert_eq!(decision.reason().contains(&format!("candidate AP {candidate:.4}")), compared, "{decision:?}");
    }

    #[test]
    fn the_margin_is_the_limit() {
        check(0.50, 0.60, 0.01, None, true);
        check(0.50, 0.4901, 0.01, None, true);
        check(0.50, 0.4899, 0.01, None, false);
        check(0.50, 0.50, 0.01, Some(0.02), false);
        check(0.50, 0.5201, 0.01, Some(0.02), true);
        check(0.50, f64::NAN, 0.01, None, false);
        check(f64::NAN, 0.5, 0.01, None, false);
        check(0.0, 0.0, 0.0, None, true);
        check(-1.0, -1.0, 0.01, None, false);
        check(-1.0, 0.5, 0.01, None, false);
        let nobody = Evidence { running: -1.0, candidate: -1.0, ..Evidence::default() };
        assert!(decide(&nobody, &GateConfig::default()).reason().contains("nobody in them counts"));
    }

    #[test]
    fn an_improvement_has_to_be_sure_when_that_is_asked_for() {
        let evidence = |bad: usize| Evidence {
            running: 0.5,
            candidate: 0.52,
            differences: (0..100).map(|i| if i < bad { -0.03 } else { 0.02 }).collect(),
            ..Evidence::default()
        };
        let config = GateConfig { margin: 0.01, sure: Some(0.95), ..GateConfig::default() };
        assert!(decide(&evidence(5), &config).released());
        let refused = decide(&evidence(6), &config);
        assert!(!refused.released() && refused.reason().contains("94.0 % of 100 resamples"), "{refused:?}");
        assert!(decide(&evidence(6), &GateConfig { sure: None, ..config.clone() }).released());
        let unknown = Evidence { differences: Vec::new(), ..evidence(0) };
        assert!(!decide(&unknown, &config).released(), "nothing is sure that was not looked at");
    }

    #[test]
    fn a_difference_is_told_with_its_interval() {
        let evidence = Evidence {
            running: 0.412,
            candidate: 0.431,
            differences: (0..=1000).map(|i| f64::from(i) * 4e-5 - 0.005).collect(),
            ..Evidence::default()
        };
        let [low, high] = evidence.difference().unwrap().spread.interval;
        assert!((low + 0.004).abs() < 1e-9 && (high - 0.034).abs() < 1e-9, "{low}, {high}");
        let expected = "candidate AP 0.4310, running AP 0.4120: +0.0190 (95 %: -0.0040 to +0.0340), needed 0.4070, reached on 100.0 %";
        let released = decide(&evidence, &GateConfig::default());
        assert!(released.released() && released.reason().starts_with(expected), "{released:?}");
        let refused = decide(&evidence, &GateConfig { min_improvement: Some(0.02), ..GateConfig::default() });
        assert!(!refused.released() && refused.reason().contains("+0.0190 (95 %: -0.0040 to +0.0340), needed 0.4320"), "{refused:?}");
        let one = Evidence { differences: vec![0.02], ..evidence.clone() };
        assert!(one.difference().is_none() && !decide(&one, &GateConfig::default()).reason().contains("95 %"));
        assert_eq!(Evidence { running: f64::NAN, ..evidence }.difference(), None, "a row with it could not be read again");
    }

    #[test]
    fn labels_that_drift_are_told_or_refused() {
        use crate::service::drift::tests::{counts, frame};
        let before = counts(100, &frame(1, 0.8, 40.0, 12));
        let check = |people, mode, released: bool, expected: &str| {
            let config = GateConfig { drift: mode, ..GateConfig::default() };
            let compared = crate::service::drift::compare(&before, &counts(100, &frame(people, 0.8, 40.0, 12)), config.drift_limit);
            let relabelled = Relabelled { frames: 130, empty: 30, unseen: 7, compared, ..Relabelled::default() };
            let evidence = Evidence { running: 0.5, candidate: 0.6, relabelled: Some(relabelled), ..Evidence::default() };
            let decision = decide(&evidence, &config);
            assert!(decision.released() == released && decision.reason().contains(expected), "{decision:?}");
        };
        let figures = "labels of 130 pictures of the fleet (7 of them after the snapshot, 30 without anybody), distances: people a frame";
        for mode in [DriftMode::Warn, DriftMode::Refuse] {
            check(1, mode, true, &format!("{figures} 0.00 (1.00 to 1.00), score 0.00"));
        }
        check(2, DriftMode::Warn, true, "people a frame changed by more than 0.25, which `gate.drift` lets pass");
        check(2, DriftMode::Refuse, false, &format!("{figures} 1.00 (1.00 to 2.00)"));
        check(2, DriftMode::Refuse, false, ": people a frame may change by 0.25 at most");
        let nothing = Evidence { running: 0.5, candidate: 0.6, relabelled: Some(Relabelled::default()), ..Evidence::default() };
        assert!(decide(&nothing, &GateConfig { drift: DriftMode::Refuse, ..GateConfig::default() }).released());
    }

    #[test]
    fn no_part_may_fall_by_more_than_is_allowed() {
        let parts = [("left_hand", 0.9, 0.95), ("right_foot", 0.8, 0.69), ("small people", 0.4, 0.35)];
        let parts = parts.map(|(name, before, after)| (name.to_owned(), before, after)).to_vec();
        let evidence = Evidence { running: 0.5, candidate: 0.6, parts, ..Evidence::default() };
        let decide = |most| decide(&evidence, &GateConfig { max_regression: most, ..GateConfig::default() });
        assert!(decide(None).released() && decide(Some(0.12)).released());
        let refused = decide(Some(0.1));
        assert!(!refused.released() && refused.reason().contains("right_foot's, from 80.0 to 69.0 %"), "{refused:?}");
    }
}
