//! The core's part that compares a release with the confirmed model on the device's own frames, before it may label any.

use crate::service::core::Core;
use crate::service::engine::{Command, Shadowed};
use crate::service::trial::SLOW;
use omnilabel_keypoints::shadow::{Agreement, Limits};
use omnilabel_keypoints::trial::{self, Phase, Reason};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// With fewer frames the comparison goes on, for twice its time at most.
const ENOUGH: u32 = 16;
/// After this it is judged again, where the outcome could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// A comparison under way.
pub(super) struct Shadow {
    since: Instant,
    lasts: Duration,
    agreement: Agreement,
}

impl Shadow {
    fn is_over(&self, now: Instant) -> bool {
        let age = now.duration_since(self.since);
        age >= self.lasts && (self.agreement.frames >= ENOUGH || age >= 2 * self.lasts)
    }
}

impl Core {
    pub(super) fn begin_shadow(&mut self) {
        let Some(model) = self.candidate.clone() else { return };
        let lasts = self.slots.shadow_lasts();
        tracing::info!(counter = model.counter(), secs = lasts.as_secs(), "the new model runs beside the confirmed one");
        if self.commands.try_send(Command::Shadow(model)).is_err() {
            tracing::error!("the engine does not take a model");
        }
        self.shadow = Some(Shadow { since: Instant::now(), lasts, agreement: Agreement::default() });
    }

    /// A frame went through both models.
    pub(super) fn shadowed(&mut self, shadowed: Shadowed) {
        let is_current = self.candidate.as_ref().is_some_and(|candidate| Arc::ptr_eq(candidate, &shadowed.by));
        let Some(shadow) = self.shadow.as_mut().filter(|_| is_current) else { return };
        let teacher = self.confirmed.teacher();
        match &shadowed.result {
            Ok(label) => {
                let keypoint = teacher.manifest().thresholds.keypoint;
                shadow.agreement.add(&shadowed.running, label, teacher.skeleton().sigmas(), keypoint);
                shadow.agreement.took(shadowed.running_took.as_secs_f64(), shadowed.took.as_secs_f64());
            }
            Err(reason) => self.step(trial::Event::Failed(Reason::Shadow), reason),
        }
    }

    /// Judges the comparison when its time is over.
    pub(super) fn end_shadow(&mut self, now: Instant) {
        let Some(shadow) = self.shadow.as_ref().filter(|shadow| shadow.is_over(now)) else { return };
        if !matches!(self.slots.state().phase, Phase::Shadow { .. }) {
            return;
        }
        let (agreement, update) = (shadow.agreement, &self.config.update);
        let limits =
            Limits { f1: update.shadow_f1, people: update.shadow_people, slowdown: update.max_slowdown, slow_secs: SLOW.as_secs_f64() };
        match agreement.judge(&limits) {
            Ok(()) => {
                tracing::info!("beside the confirmed model the new one did well: {agreement}");
                self.step(trial::Event::Agreed, "");
            }
            Err(why) => self.step(trial::Event::Failed(Reason::Shadow), &format!("{why}: {agreement}")),
        }
        if let Some(shadow) = &mut self.shadow {
            // The state could not be written.
            shadow.lasts = now.duration_since(shadow.since) + RETRY;
        }
    }
}
