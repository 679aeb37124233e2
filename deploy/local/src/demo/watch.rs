//! What the centre's events add up to. Pure: the same events give the same standing, so a resumed demo reads them again from the start.

use super::outcome::{Calibrated, LossCurve, Release};
use omnilabel_trainer::service::Event;
use std::collections::BTreeMap;

/// Where the fleet stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// Labels stored and repeated by device.
    pub(super) labels: BTreeMap<String, (u64, u64)>,
    /// Labels in the round.
    pub(super) round_labels: Option<u64>,
    pub(super) calibrated: Option<Calibrated>,
    /// Step and steps.
    pub(super) step: Option<(u64, u64)>,
    pub(super) images_per_sec: f64,
    pub(super) losses: LossCurve,
    /// AP of the running model and the student at the gate.
    pub(super) gate: (Option<f64>, Option<f64>),
    pub(super) release: Option<Release>,
    /// Confirmed, and refused with its reason, by device.
    pub(super) models: BTreeMap<String, (u64, Option<(u64, String)>)>,
    /// The last thing that failed.
    pub(super) error: Option<String>,
}

impl Standing {
    /// Takes one event in; returns a line for people when it is news.
    pub(super) fn take(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Labels { device, stored, duplicates } => {
                self.labels.insert(device.clone(), (*stored, *duplicates));
                None
            }
            Event::RoundStarted { round, labels, .. } => {
                self.round_labels = Some(*labels);
                Some(format!("round {round} begins with {labels} labels"))
            }
            Event::Calibrated { tau, tau_k, manual_mean, realised_mean, .. } => {
                let (tau, tau_k, manual_mean, realised_mean) = (*tau, *tau_k, *manual_mean, *realised_mean);
                self.calibrated = Some(Calibrated { tau, tau_k, manual_mean, realised_mean });
                Some(format!(
                    "thresholds: τ {tau:.3}, τ_k {tau_k:.4}; {realised_mean:.2} people a generated picture, {manual_mean:.2} a manual one"
                ))
            }
            Event::Train { step, steps, losses, images_per_sec, .. } => {
                self.step = Some((*step, *steps));
                self.images_per_sec = *images_per_sec;
                // A resumed training repeats the steps after its checkpoint.
                self.losses.points.retain(|point| point.0 < *step);
                self.losses.points.push((*step, losses.total(), losses.keypoint));
                None
            }
            Event::Evaluated { which, ap, .. } => {
                let (slot, name) = if which == "running" { (&mut self.gate.0, "running model") } else { (&mut self.gate.1, "student") };
                *slot = Some(*ap);
                Some(format!("gate: AP {:.1} of the {name} on held-out labels", 100.0 * ap))
            }
            Event::Refused { reason, .. } => {
                self.release = Some(Release { counter: None, name: String::new(), reason: reason.clone(), gate: None });
                Some(format!("the gate refuses the student: {reason}"))
            }
            Event::Released { counter, name, reason, .. } => {
                self.release = Some(Release { counter: Some(*counter), name: name.clone(), reason: reason.clone(), gate: None });
                Some(format!("release {counter} ({name}): {reason}"))
            }
            Event::DeviceModel { device, confirmed, trial, refused, reason } => {
                let news = match (trial, refused) {
                    (Some(trial), _) => Some(format!("{device} tries release {trial}")),
                    (None, Some(refused)) if refused > confirmed => Some(format!("{device} refused release {refused}: {reason}")),
                    (None, _) if *confirmed > 0 => Some(format!("{device} runs release {confirmed}")),
                    _ => None,
                };
                self.models.insert(device.clone(), (*confirmed, refused.map(|refused| (refused, reason.clone()))));
                news
            }
            Event::Error { what, message } => {
                self.error = Some(format!("{what}: {message}"));
                Some(format!("centre: {what}: {message}"))
            }
            Event::Rejected { messages, last } => Some(format!("centre: {messages} messages rejected, the last: {last}")),
            _ => None,
        }
    }

    /// The release with both APs of the gate.
    pub(super) fn release(&self) -> Release {
        let gate = self.gate.0.zip(self.gate.1);
        let none = Release { reason: "no round was finished".to_owned(), ..Release::default() };
        Release { gate, ..self.release.clone().unwrap_or(none) }
    }

    /// Whether every device of `devices` runs the release or said why not; true when there is none.
    pub(super) fn settled(&self, devices: &[&str]) -> bool {
        let Some(release) = &self.release else { return false };
        let Some(counter) = release.counter else { return true };
        devices.iter().all(|device| {
            let model = self.models.get(*device);
            model.is_some_and(|(confirmed, refused)| {
                *confirmed >= counter || refused.as_ref().is_some_and(|(refused, _)| *refused >= counter)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64, keypoint: f32) -> Event {
        let json = serde_json::json!({
            "event": "train", "round": 1, "step": step, "steps": 40, "images_per_sec": 10.0,
            "losses": {"objectness": 0.0, "rpn_box": 0.0, "classifier": 0.0, "box_reg": 0.0, "keypoint": keypoint},
        });
        serde_json::from_value(json).unwrap()
    }

    fn model(device: &str, confirmed: u64, refused: Option<u64>) -> Event {
        Event::DeviceModel { device: device.into(), confirmed, trial: None, refused, reason: "golden".into() }
    }

    #[test]
    fn a_fleet_is_settled_when_each_device_runs_the_release_or_refused_it() {
        let mut standing = Standing::default();
        let devices = ["a", "b"];
        assert!(!standing.settled(&devices));
        standing.take(&Event::Released { round: Some(1), counter: 2, name: "round-1".into(), reason: "better".into() });
        standing.take(&model("a", 2, None));
        assert!(!standing.settled(&devices));
        standing.take(&model("b", 1, Some(1)));
        assert!(!standing.settled(&devices), "an older refusal does not count");
        standing.take(&model("b", 1, Some(2)));
        assert!(standing.settled(&devices));
        let mut refused = Standing::default();
        refused.take(&Event::Refused { round: 1, reason: "worse".into() });
        assert!(refused.settled(&devices));
        assert_eq!(refused.release().reason, "worse");
    }

    #[test]
    fn a_resumed_training_replaces_the_steps_it_repeats() {
        let mut standing = Standing::default();
        for (step, keypoint) in [(10, 4.0), (20, 3.0), (30, 2.0), (20, 2.5), (30, 1.5)] {
            standing.take(&train(step, keypoint));
        }
        let points: Vec<(u64, f32)> = standing.losses.points.iter().map(|p| (p.0, p.2)).collect();
        assert_eq!(points, [(10, 4.0), (20, 2.5), (30, 1.5)]);
        assert_eq!(standing.step, Some((30, 40)));
    }
}
