//! The gate: whether a student may replace the running model. Pure.

use crate::service::config::GateConfig;
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

/// Compares the AP of the two exported bundles on the same held-out manual labels, both in `[0, 1]`.
pub fn decide(running_ap: f64, candidate_ap: f64, config: &GateConfig) -> Decision {
    if !candidate_ap.is_finite() || !running_ap.is_finite() {
        return Decision::Refuse(format!("AP cannot be compared: running {running_ap}, candidate {candidate_ap}"));
    }
    if candidate_ap < 0.0 || running_ap < 0.0 {
        return Decision::Refuse(format!(
            "the held-out labels cannot tell the models apart, nobody in them counts: running AP {running_ap}, candidate AP {candidate_ap}"
        ));
    }
    let needed = config.min_improvement.map_or(running_ap - config.margin, |gain| running_ap + gain);
    let numbers = format!("candidate AP {candidate_ap:.4}, running AP {running_ap:.4}, needed {needed:.4}");
    if candidate_ap >= needed { Decision::Release(numbers) } else { Decision::Refuse(numbers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(running: f64, candidate: f64, margin: f64, gain: Option<f64>, released: bool) {
        let decision = decide(running, candidate, &GateConfig { margin, min_improvement: gain });
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
        assert!(decide(-1.0, -1.0, &GateConfig::default()).reason().contains("nobody in them counts"));
    }
}
