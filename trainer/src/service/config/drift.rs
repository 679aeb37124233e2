//! `[drift]` of `trainer.toml`, and what `[gate]` says of it.

use super::ServiceConfig;
use serde::{Deserialize, Serialize};

/// What becomes of a student whose labels differ from the running model's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftMode {
    /// That is not looked at.
    Off,
    /// The reason of its release says so.
    #[default]
    Warn,
    /// It is refused.
    Refuse,
}

/// `[drift]`: when the labels of a device have changed under the same model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriftConfig {
    /// First days of a model on a device that its newest day is compared with.
    pub reference_days: u32,
    /// The distance of Kolmogorov and Smirnov above which they have changed, 0 to 1.
    pub limit: f64,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self { reference_days: 3, limit: 0.25 }
    }
}

/// Whether each value can be: good, key, found, expected.
pub(super) fn checks(config: &ServiceConfig) -> [(bool, &'static str, String, &'static str); 4] {
    let share = |value: f64| value > 0.0 && value < 1.0;
    let (gate, drift) = (&config.gate, &config.drift);
    [
        (share(gate.drift_limit), "gate.drift_limit", gate.drift_limit.to_string(), "between 0 and 1"),
        ((20..=5000).contains(&gate.drift_frames), "gate.drift_frames", gate.drift_frames.to_string(), "20 to 5000"),
        (share(drift.limit), "drift.limit", drift.limit.to_string(), "between 0 and 1"),
        ((1..=90).contains(&drift.reference_days), "drift.reference_days", drift.reference_days.to_string(), "1 to 90"),
    ]
}
