//! What a round begins with, so that it can be told later, when `trainer.toml` and the data sets are others.

use super::Rounds;
use crate::service::config::{CalibrationConfig, GateConfig, RoundConfig, ServiceConfig};
use crate::service::dataset::folder_sha256;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Seed, data sets and settings of a round when it began. A restart does not change what is written here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// `model.seed`, of the first weights that `model.init` does not give. The training's is among the settings; the gate's resamples and
    /// the sample of the fleet's pictures have the number of the round.
    pub seed: u64,
    /// SHA-256 of `data.manual`, over pictures and annotations.
    pub manual_sha256: String,
    /// The same of `data.heldout`.
    pub heldout_sha256: String,
    /// `[round]`, `[calibration]` and `[gate]` with every default, as JSON: a later version reads them whatever its own keys are.
    pub settings: Value,
}

impl Rounds {
    /// What a round that begins now begins with. Reads every manual and held-out picture.
    pub(super) async fn begun(&self) -> anyhow::Result<Begun> {
        let (manual, heldout) = (self.config.data.manual.clone(), self.config.data.heldout.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            let manual = folder_sha256(&manual).context("`data.manual`")?;
            let heldout = folder_sha256(&heldout).context("`data.heldout`")?;
            anyhow::Ok((manual, heldout))
        });
        let (manual_sha256, heldout_sha256) = hashed.await.context("reading the data sets panicked")??;
        Ok(Begun { seed: self.config.model.seed, manual_sha256, heldout_sha256, settings: self.settings()? })
    }

    /// The settings that decide what comes of a round.
    pub(super) fn settings(&self) -> anyhow::Result<Value> {
        #[derive(Serialize)]
        struct Settings<'c> {
            round: &'c RoundConfig,
            calibration: &'c CalibrationConfig,
            gate: &'c GateConfig,
        }
        let ServiceConfig { round, calibration, gate, .. } = &self.config;
        // By way of the text, as it is stored: a value that is made at once has the `f32` 0.1 as the `f64` 0.10000000149011612.
        let text = serde_json::to_string(&Settings { round, calibration, gate })?;
        Ok(serde_json::from_str(&text)?)
    }
}
