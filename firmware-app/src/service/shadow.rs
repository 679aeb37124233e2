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
/// After this the outcome is written again, where it could not be.
const RETRY: Duration = Duration::from_secs(1);

/// A comparison, before it begins and under way.
pub(super) struct Shadow {
    lasts: Duration,
    since: Instant,
    agreement: Agreement,
    /// Why the new model had no label for a frame.
    failed: Option<String>,
    /// Not judged before that.
    next: Instant,
}

impl Shadow {
    pub(super) fn new(lasts: Duration) -> Self {
        let now = Instant::now();
        Self { lasts, since: now, agreement: Agreement::default(), failed: None, next: now }
    }

    fn is_over(&self, now: Instant) -> bool {
        let age = now.duration_since(self.since);
        let enough = age >= self.lasts && (self.agreement.frames >= ENOUGH || age >= 2 * self.lasts);
        now >= self.next && (enough || self.failed.is_some())
    }
}

impl Core {
    pub(super) fn begin_shadow(&mut self) {
        let (Some(model), Some(shadow)) = (self.candidate.clone(), &mut self.shadow) else { return };
        tracing::info!(counter = model.counter(), secs = shadow.lasts.as_secs(), "the new model runs beside the confirmed one");
        *shadow = Shadow::new(shadow.lasts);
        self.tell(Command::Shadow(model));
    }

    /// A frame went through both models.
    pub(super) fn shadowed(&mut self, shadowed: Shadowed) {
        let is_current = self.candidate.as_ref().is_some_and(|candidate| Arc::ptr_eq(candidate, &shadowed.by));
        let Some(shadow) = self.shadow.as_mut().filter(|_| is_current) else { return };
        let teacher = self.confirmed.teacher();
        match shadowed.result {
            Ok(label) => {
                let keypoint = teacher.manifest().thresholds.keypoint;
                shadow.agreement.add(&shadowed.running, &label, teacher.skeleton().sigmas(), keypoint);
                shadow.agreement.took(shadowed.running_took.as_secs_f64(), shadowed.took.as_secs_f64());
            }
            Err(reason) => {
                shadow.failed.get_or_insert(reason);
                self.end_shadow(Instant::now());
            }
        }
    }

    /// Judges the comparison when its time is over, or a frame has failed.
    pub(super) fn end_shadow(&mut self, now: Instant) {
        if !matches!(self.slots.state().phase, Phase::Shadow { .. }) {
            return;
        }
        let Some(shadow) = self.shadow.as_mut().filter(|shadow| shadow.is_over(now)) else { return };
        shadow.next = now + RETRY;
        let (agreement, update) = (shadow.agreement, &self.config.update);
        let limits =
            Limits { f1: update.shadow_f1, people: update.shadow_people, slowdown: update.max_slowdown, slow_secs: SLOW.as_secs_f64() };
        let judged = match &shadow.failed {
            Some(reason) => Err(reason.clone()),
            None => agreement.judge(&limits).map_err(|why| format!("{why}: {agreement}")),
        };
        match judged {
            Ok(()) => {
                tracing::info!("beside the confirmed model the new one did well: {agreement}");
                self.step(trial::Event::Agreed, "");
            }
            Err(why) => self.step(trial::Event::Failed(Reason::Shadow), &why),
        }
    }
}
