//! The choice of τ and τ_k in a round (spec §4), from the raw scores of all of its labels.

use super::{RoundState, Rounds};
use crate::calibrate::{HeldOut, ManualStats, Mode, calibrate, match_mean, match_mean_histogram};
use crate::service::arm::Judgement;
use crate::service::events::Event;
use anyhow::{Context, ensure};
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::wire::{LabelMsg, Message};

impl Rounds {
    /// The lowest score at which the running model's precision is still the wanted one; its highest score when none is. `None` in
    /// `paper` mode.
    pub(super) fn precise(&self, judgement: &Judgement) -> Option<f32> {
        if self.config.calibration.mode == Mode::Paper {
            return None;
        }
        Some(self.held_out(judgement).threshold().1)
    }

    fn held_out<'j>(&self, judgement: &'j Judgement) -> HeldOut<'j> {
        HeldOut { judged: &judgement.judged, precision: self.config.calibration.precision }
    }

    /// The thresholds that a judged model goes out with: its scores are not the running model's. `floor` is what its manifest says.
    pub(super) fn own_thresholds(&self, judgement: &Judgement, floor: f32) -> Thresholds {
        let mode = self.config.calibration.mode;
        calibrate(mode, self.heldout, &judgement.detections, Some(self.held_out(judgement)), floor).thresholds
    }

    /// τ and τ_k of a round. Where the devices' histograms saw more frames than there are labels, τ is matched to them.
    pub(super) async fn calibrate(&self, state: &RoundState) -> anyhow::Result<Thresholds> {
        let manual = ManualStats::of(&self.manual);
        let (mut scores, mut instances) = (Vec::new(), Vec::new());
        let payloads = self.store.payloads(Self::selection(state)).await?;
        let frames = payloads.len() as u64;
        for payload in &payloads {
            let label = LabelMsg::decode(payload).context("a stored label")?.label();
            for instance in label.instances {
                scores.push(instance.detection.score);
                let probabilities: Vec<f32> = instance.detection.keypoints.iter().map(|k| k.probability).collect();
                instances.push((instance.detection.score, probabilities));
            }
        }
        let (seen, bins) = self.store.histogram(state.teacher).await?;
        let matched = if seen > frames {
            match_mean_histogram(&bins, seen, manual.people_per_image())
        } else {
            match_mean(&scores, frames, manual.people_per_image())
        };
        let precise = state.running_judged.as_ref().and_then(|j| j.precise).unwrap_or(0.0);
        let tau = matched.threshold.max(precise);
        let kept: Vec<&Vec<f32>> = instances.iter().filter(|(score, _)| *score >= tau).map(|(_, p)| p).collect();
        ensure!(!kept.is_empty(), "no instance of {frames} labels has a score of τ = {tau:.3} or more: there is nothing to learn from");
        let probabilities: Vec<f32> = kept.iter().flat_map(|p| p.iter().copied()).collect();
        let tau_k = match_mean(&probabilities, kept.len() as u64, manual.keypoints_per_person()).threshold.min(1.0);
        let floor = Bundle::open(&state.running)?.manifest().thresholds.floor.min(tau);
        self.events.emit(Event::Calibrated {
            round: state.round,
            tau,
            tau_k,
            manual_mean: manual.people_per_image().value(),
            realised_mean: kept.len() as f64 / frames.max(1) as f64,
            frames,
            instances: kept.len() as u64,
        });
        Ok(Thresholds { instance: tau, keypoint: tau_k, floor })
    }
}
