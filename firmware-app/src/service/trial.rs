//! The core's part that takes releases: it carries out what `omnilabel_keypoints::trial` decides.

use crate::annotate::Model;
use crate::clock::{SET_MS, now_ms};
use crate::service::core::Core;
use crate::service::engine::{Command, Labelled};
use crate::service::shadow::Shadow;
use crate::service::{Event, Outgoing};
use crate::update::{Fetch, PAUSE, VerifiedRelease, may_pass};
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::release::ReleaseError;
use omnilabel_keypoints::trial::{self, Action, Phase, Reason, Slot, State};
use omnilabel_keypoints::wire::{Message, ModelMsg, ReleaseMsg, VERSION};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// No frame is too slow below this: a busy device is not a bad model.
pub(super) const SLOW: Duration = Duration::from_secs(2);
/// Without a frame for this long a probation goes on with the last frames.
const QUIET: Duration = Duration::from_secs(1);
/// What a start of the device says of a trial that was under way.
const DIED: &str = "the device died during the trial";

/// The result of the golden frames.
pub(crate) struct Tested {
    counter: u64,
    result: Result<Arc<Model>, Failure>,
}

/// Why a trial does not go on.
enum Failure {
    /// The release is none for this device.
    Refused(Reason, String),
    /// This device could not do its part, which says nothing about the release.
    Passing(String),
}

impl Failure {
    fn new(reason: Reason, error: &anyhow::Error) -> Self {
        let detail = omnilabel_console::line(error);
        if may_pass(error) { Self::Passing(detail) } else { Self::Refused(reason, detail) }
    }
}

/// The thread that tries the golden frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Test {
    /// It does not run.
    #[default]
    None,
    Runs,
    /// It runs for a trial that is over; `again`: the next trial waits for it.
    Over {
        again: bool,
    },
    /// It does not run: this device could not do its part, and the trial stands still until then.
    Waits {
        until: Instant,
        /// A start of the device, or a try, that the state does not count yet: the model does not run before it does.
        uncounted: bool,
    },
}

/// What `…/model` says about the past.
pub(super) struct Report {
    refused: Option<u64>,
    reason: String,
    /// The last message on the release topic was none.
    bad_message: bool,
    /// Whether it is to be sent.
    pub(super) is_new: bool,
}

impl Report {
    pub(super) fn new(recovered: Option<&str>) -> Self {
        if let Some(reason) = recovered {
            tracing::error!(reason, "the slot state was not readable; the device goes on with a model that verifies");
        }
        let reason = recovered.map_or(String::new(), |reason| format!("recovered: {reason}"));
        Self { refused: None, reason, bad_message: false, is_new: true }
    }

    /// The last refused release, and why.
    pub(super) fn refusal(&self) -> (Option<u64>, &str) {
        (self.refused, &self.reason)
    }

    fn refuse(&mut self, counter: Option<u64>, reason: String) {
        tracing::error!(counter, reason, "a release is refused");
        self.bad_message = false;
        self.is_new = true;
        self.refused = counter;
        self.reason = reason;
    }

    /// A message that is no release of the owner's.
    fn refuse_message(&mut self, reason: String) {
        self.refuse(None, reason);
        self.bad_message = true;
    }

    /// A good one came since.
    fn message_is_good(&mut self) {
        if std::mem::take(&mut self.bad_message) && self.refused.is_none() {
            self.reason.clear();
            self.is_new = true;
        }
    }

    pub(super) fn message(&self, state: &State) -> ModelMsg {
        let mut reason = heapless::String::new();
        for c in self.reason.chars() {
            if reason.push(c).is_err() {
                break;
            }
        }
        ModelMsg { version: VERSION, confirmed: state.confirmed_counter, trial: state.phase.counter(), refused: self.refused, reason }
    }
}

impl Core {
    pub(super) fn boot(&mut self) {
        // A kill after a new set of keys was kept may have left the rest undone.
        self.follow_keys();
        self.tell_beyond();
        self.step(trial::Event::Boot, DIED);
    }

    /// The next boot goes on with the trial.
    pub(super) fn stop(&mut self) {
        // What is not counted is not taken back.
        if !self.is_uncounted() {
            self.step(trial::Event::Stop, "");
        }
    }

    fn is_uncounted(&self) -> bool {
        matches!(self.test, Test::Waits { uncounted: true, .. })
    }

    pub(super) fn trial_is_open(&self) -> bool {
        self.slots.state().phase != Phase::Idle
    }

    /// One step of the state machine: the new state is on disk before its action is carried out.
    pub(super) fn step(&mut self, event: trial::Event, detail: &str) {
        let before = self.slots.state();
        let (mut state, action) = trial::step(before, event);
        if let (Action::Swap(_), Phase::Probation { frames_left, .. }) = (action, &mut state.phase) {
            *frames_left = self.config.update.probation_frames;
        }
        let counts_down = matches!((before.phase, state.phase), (Phase::Probation { .. }, Phase::Probation { .. }));
        if counts_down {
            self.slots.set_progress(state);
        } else if let Err(error) = self.slots.set(state) {
            // The old state holds, and the trial stands still. What nothing else brings again before a restart is tried again.
            tracing::error!(error = omnilabel_console::line(&error), "the slot state cannot be written");
            if let trial::Event::Boot | trial::Event::Fetched | trial::Event::GoldenPassed { .. } | trial::Event::Failed(_) = event {
                self.put_off(event == trial::Event::Boot);
            }
            return;
        }
        self.report.is_new |= !counts_down && before != state;
        match action {
            Action::None | Action::Refuse => {}
            Action::Fetch(_) => self.begin_fetch(),
            Action::Test(slot) => self.begin_test(slot),
            Action::Shadow(_) => self.begin_shadow(),
            Action::Swap(_) => {
                self.shadow = None;
                if let Some(model) = self.candidate.clone() {
                    tracing::info!(counter = model.counter(), "the new model runs on probation");
                    self.tell(Command::Swap(model));
                }
            }
            Action::Revert(_, reason) => self.revert(before, reason, detail),
            Action::Confirm(slot) => {
                self.end_fetch();
                if let Err(error) = self.slots.note_origin(slot) {
                    tracing::error!(error = omnilabel_console::line(&error), "the origin of the confirmed model is not noted");
                }
                if let Some(model) = self.candidate.take() {
                    tracing::info!(counter = model.counter(), "the new model is confirmed");
                    self.confirmed = model;
                }
                self.mean_secs = None;
                self.report.refused = None;
                self.report.reason.clear();
                self.offer_later();
            }
        }
    }

    /// Tells the engine of a model. Each step of a trial has one at most, and most wait for the engine: the queue is never full.
    pub(super) fn tell(&self, model: Command) {
        if self.commands.try_send(model).is_err() {
            tracing::error!("the engine does not take a model");
        }
    }

    fn revert(&mut self, before: State, reason: Reason, detail: &str) {
        self.shadow = None;
        if self.candidate.take().is_some() {
            self.tell(Command::Swap(Arc::clone(&self.confirmed)));
        }
        let counter = before.phase.counter();
        if matches!(self.test, Test::Runs | Test::Over { .. }) {
            // It may still write: the slot keeps its mark until it is done.
            self.test = Test::Over { again: false };
        } else {
            self.test = Test::None;
            if let Err(error) = self.slots.discard(before.confirmed.other()) {
                tracing::error!(
                    error = omnilabel_console::line(&error),
                    "the refused model is not removed; it is never taken for a good one"
                );
            }
        }
        self.report.refuse(counter, format!("{}: {detail}", name(reason)));
        self.end_fetch();
        self.offer_later();
    }

    /// Ends the trial, or puts it off where the release is not to blame.
    fn failed(&mut self, failure: Failure) {
        let detail = match failure {
            Failure::Refused(reason, detail) => return self.step(trial::Event::Failed(reason), &detail),
            Failure::Passing(detail) => detail,
        };
        tracing::error!(error = detail, "this device cannot go on with the release on trial for now; it tries again");
        let state = self.slots.state();
        let mut uncounted = false;
        if matches!(state.phase, Phase::Testing { .. }) {
            // A part of it takes the room that labels need.
            if let Err(error) = self.slots.discard(state.confirmed.other()) {
                tracing::error!(
                    error = omnilabel_console::line(&error),
                    "what was on trial is not removed; it is never taken for a good one"
                );
            }
            // A try that says nothing about the release does not count.
            self.step(trial::Event::Stop, "");
            uncounted = self.slots.state() != state;
        }
        self.put_off(uncounted);
        self.end_pause_for_newer();
    }

    /// What cannot be tried gives way to a newer release at once.
    fn end_pause_for_newer(&mut self) {
        if self.newer_waits()
            && let Test::Waits { until, .. } = &mut self.test
        {
            *until = Instant::now();
        }
    }

    /// The trial stands still for a while.
    fn put_off(&mut self, uncounted: bool) {
        let pause = self.fetch.as_mut().map_or(PAUSE, Fetch::next_pause);
        let uncounted = uncounted || self.is_uncounted();
        match &mut self.test {
            // It goes on when the thread is done.
            Test::Over { again } => *again = true,
            test => *test = Test::Waits { until: Instant::now() + pause, uncounted },
        }
    }

    /// Goes on with a trial that stands still, when its pause is over.
    fn try_again(&mut self, now: Instant) {
        let Test::Waits { until, .. } = &mut self.test else { return };
        if now < *until {
            return;
        }
        *until = now + PAUSE;
        let is_untried = matches!(self.slots.state().phase, Phase::Testing { .. }) && self.candidate.is_none();
        if is_untried && self.newer_waits() {
            // It does not stand in the way of a newer one for as long as the disk is full.
            return self.step(trial::Event::Failed(Reason::Load), "this device could not try it before a newer release came");
        }
        if !is_untried || self.blocks_are_here() {
            self.go_on();
        }
    }

    /// Whether the release that came meanwhile is newer than the one on trial: an older one does not end it.
    fn newer_waits(&self) -> bool {
        let message = self.later.as_ref().and_then(|payload| ReleaseMsg::decode(payload).ok());
        let release = message.and_then(|message| self.trust.verify_known(&message).ok());
        release.map(|release| release.manifest().counter) > self.slots.state().phase.counter()
    }

    /// Looks whether the disk still gives what was fetched; what it does not give is fetched again, within the trial.
    fn blocks_are_here(&mut self) -> bool {
        // After a restart they are looked for when it goes on.
        let Some(fetch) = &mut self.fetch else { return true };
        if !fetch.is_complete() {
            return false;
        }
        match fetch.look() {
            Ok(()) if fetch.is_complete() => return true,
            Ok(()) => self.put(Outgoing::Subscribe(self.topics.blocks())),
            Err(error) => tracing::error!(error = omnilabel_console::line(&error), "what was fetched cannot be read; it is tried again"),
        }
        // A block that is lost each time is not fetched all the time.
        self.put_off(false);
        false
    }

    /// Does anew what the phase is for.
    fn go_on(&mut self) {
        let state = self.slots.state();
        match state.phase {
            Phase::Fetching { .. } if self.fetch.is_none() => self.begin_fetch(),
            Phase::Fetching { .. } => self.fetched(),
            // Only its state could not be written.
            Phase::Testing { .. } if self.candidate.is_some() => {
                self.step(trial::Event::GoldenPassed { shadow: self.shadow.is_some() }, "");
            }
            Phase::Testing { .. } | Phase::Shadow { .. } | Phase::Probation { .. } if self.is_uncounted() => {
                self.test = Test::None;
                self.step(trial::Event::Boot, DIED);
            }
            Phase::Testing { .. } => self.begin_test(state.confirmed.other()),
            Phase::Idle | Phase::Shadow { .. } | Phase::Probation { .. } => self.test = Test::None,
        }
    }

    /// Brings the trial and the order of releases in line with the set of keys in use.
    fn follow_keys(&mut self) {
        let set = self.trust.serial().unwrap_or(0);
        if set > self.slots.state().set {
            let (newest, trusted) = (self.trust.newest(), self.slots.offer(&self.trust).is_some());
            let confirmed_trusted = self.slots.confirmed_release(&self.trust).is_some();
            let keys = trial::Event::Keys { set, newest, trusted, confirmed_trusted };
            self.step(keys, "its key does not sign releases any more");
            self.tell_beyond();
        }
    }

    fn tell_beyond(&mut self) {
        if self.slots.state().beyond {
            let confirmed = self.slots.state().confirmed_counter;
            let reason = format!("release {confirmed} was confirmed under keys that count no more; it runs until another is confirmed");
            self.report.refuse(None, reason);
        }
    }

    /// A message on the release topic, from anyone who may write there.
    pub(super) fn offered(&mut self, payload: &[u8]) {
        // An empty retained message takes a release back.
        if payload.is_empty() {
            return;
        }
        let message = match ReleaseMsg::decode(payload) {
            Ok(message) => message,
            Err(error) => return self.report.refuse_message(format!("not a release message: {error}")),
        };
        let verified = self.trust.verify(&message);
        if verified.is_ok()
            && let Err(error) = self.slots.renew(&message, payload)
        {
            tracing::error!(error = omnilabel_console::line(&error), "the release that was signed anew cannot be kept");
        }
        // A new set of keys counts whatever becomes of the release beside it, and again where the state could not be written.
        self.follow_keys();
        let release: VerifiedRelease = match verified {
            Ok(release) => release,
            Err(error) => return self.report.refuse_message(error.to_string()),
        };
        self.report.message_is_good();
        let manifest = release.manifest();
        let counter = manifest.counter;
        let state = self.slots.state();
        match manifest.check(&self.config.broker.site, &self.config.channel, state.floor()) {
            Ok(()) => {}
            // The retained release comes again with every connect.
            Err(ReleaseError::Counter { offered, .. }) if offered == state.confirmed_counter || Some(offered) == self.report.refused => {
                return;
            }
            Err(error) => return self.report.refuse(Some(counter), error.to_string()),
        }
        // What it has begun it ends, whatever the share of the fleet is now.
        if state.phase.counter() != Some(counter) && !message.is_turn_of(&self.config.device, counter) {
            tracing::debug!(counter, "a release goes out, and it is not this device's turn yet");
            // Nor when the trial under way ends: it may have been halted since it was put aside.
            self.later = None;
            return;
        }
        // A device without a clock relies on the counter.
        let now = now_ms();
        if let Err(error) = manifest.check_time(if now >= SET_MS { now } else { 0 }) {
            if self.report.refused != Some(counter) {
                self.report.refuse(Some(counter), error.to_string());
            }
            return;
        }
        let (_, action) = trial::step(state, trial::Event::Offer { counter });
        let same = state.phase == Phase::Fetching { counter } && self.fetch.is_none();
        match action {
            Action::Fetch(_) => {
                if let Err(error) = self.slots.keep_offer(payload) {
                    tracing::error!(error = omnilabel_console::line(&error), "the release cannot be kept");
                    return;
                }
                tracing::info!(counter, name = manifest.name.as_str(), "a signed release is offered");
                self.step(trial::Event::Offer { counter }, "");
            }
            Action::None if same && self.slots.keep_offer(payload).is_ok() => self.begin_fetch(),
            // Another release is on trial; this one is taken up afterwards.
            Action::Refuse => {
                self.later = Some(payload.to_vec());
                self.end_pause_for_newer();
            }
            _ => {}
        }
    }

    fn offer_later(&mut self) {
        if let Some(payload) = self.later.take() {
            self.offered(&payload);
        }
    }

    fn begin_fetch(&mut self) {
        // One of an older release is none of this one.
        self.fetch = None;
        let confirmed = self.slots.path(self.slots.state().confirmed);
        let Some(release) = self.slots.offer(&self.trust) else {
            tracing::warn!("the release on trial is not on disk; it is fetched when it is offered again");
            return;
        };
        match Fetch::begin(&release, self.slots.folder(), &confirmed) {
            Ok(fetch) => {
                tracing::info!(counter = fetch.counter(), missing = fetch.missing(), "fetching the blocks of a release");
                self.fetch = Some(fetch);
                self.put(Outgoing::Subscribe(self.topics.blocks()));
                self.fetched();
            }
            Err(error) => self.failed(Failure::new(Reason::Hash, &error)),
        }
    }

    fn end_fetch(&mut self) {
        if self.fetch.take().is_some() {
            self.put(Outgoing::Unsubscribe(self.topics.blocks()));
        }
        Fetch::clean(self.slots.folder());
    }

    pub(super) fn block(&mut self, hash: &str, payload: &[u8]) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| !fetch.is_complete()) else { return };
        if let Err(error) = fetch.block(hash, payload, Instant::now()) {
            // A full disk: the block is asked for again.
            tracing::error!(error = omnilabel_console::line(&error), "a block cannot be kept");
            return;
        }
        self.fetched();
    }

    fn fetched(&mut self) {
        if !self.fetch.as_ref().is_some_and(Fetch::is_complete) {
            return;
        }
        // What others fetch is nothing to this device, which may compare the two models for days.
        self.put(Outgoing::Unsubscribe(self.topics.blocks()));
        // Where blocks were lost in a trial, it goes on after its pause.
        if matches!(self.slots.state().phase, Phase::Fetching { .. }) {
            self.step(trial::Event::Fetched, "");
        }
    }

    /// Assembles, loads and tries the bundle on a thread of its own: labelling goes on meanwhile.
    fn begin_test(&mut self, slot: Slot) {
        let Phase::Testing { counter, .. } = self.slots.state().phase else { return };
        if let Test::Over { again } = &mut self.test {
            *again = true;
            return;
        }
        if self.fetch.is_none()
            && let Some(release) = self.slots.offer(&self.trust)
        {
            // After a restart: the blocks lie where they lay.
            let confirmed = self.slots.path(self.slots.state().confirmed);
            match Fetch::begin(&release, self.slots.folder(), &confirmed) {
                Ok(fetch) => self.fetch = Some(fetch),
                Err(error) => return self.failed(Failure::new(Reason::Hash, &error)),
            }
        }
        let Some(fetch) = self.fetch.clone() else {
            return match self.slots.shadow_lasts() {
                Err(error) => self.failed(Failure::new(Reason::Hash, &error)),
                Ok(_) => self.step(trial::Event::Failed(Reason::Hash), "what is on disk after a restart is not the signed release"),
            };
        };
        if !fetch.is_complete() {
            self.put(Outgoing::Subscribe(self.topics.blocks()));
            let missing = fetch.missing();
            return self.failed(Failure::Passing(format!("{missing} blocks are not here any more; they are fetched again")));
        }
        if let Err(error) = self.slots.begin_trial(slot) {
            return self.failed(Failure::new(Reason::Load, &error));
        }
        let (path, loader, events) = (self.slots.path(slot), Arc::clone(&self.loader), self.events.clone());
        let test = move || {
            let result = try_bundle(&fetch, &path, counter, loader.as_ref());
            let _ = events.blocking_send(Event::Tested(Box::new(Tested { counter, result })));
        };
        match std::thread::Builder::new().name("trial".into()).spawn(test) {
            Ok(_) => self.test = Test::Runs,
            Err(error) => self.failed(Failure::Passing(error.to_string())),
        }
    }

    pub(super) fn tested(&mut self, tested: Tested) {
        if let Test::Over { again } = std::mem::take(&mut self.test) {
            // Of a trial that is over, whatever it found.
            let slot = self.slots.state().confirmed.other();
            if let Err(error) = self.slots.discard(slot) {
                tracing::error!(
                    error = omnilabel_console::line(&error),
                    "what was on trial is not removed; it is never taken for a good one"
                );
            }
            if again {
                self.go_on();
            }
            return;
        }
        if !matches!(self.slots.state().phase, Phase::Testing { counter, .. } if counter == tested.counter) {
            return;
        }
        match tested.result {
            Ok(model) => {
                // The blocks stay until the end: after a clean stop the bundle is assembled and tried again.
                let lasts = match self.slots.shadow_lasts() {
                    Ok(lasts) => lasts,
                    Err(error) => return self.failed(Failure::new(Reason::Load, &error)),
                };
                self.candidate = Some(model);
                self.shadow = (!lasts.is_zero()).then(|| Shadow::new(lasts));
                self.step(trial::Event::GoldenPassed { shadow: self.shadow.is_some() }, "");
            }
            Err(failure) => self.failed(failure),
        }
    }

    /// Health: what a labelled frame says about the model that made it.
    pub(super) fn judge(&mut self, labelled: &Labelled) {
        // With fewer views a frame takes less time, whichever model labels it.
        let views = labelled.views.max(1) as f64;
        let secs = labelled.took.as_secs_f64() / views;
        // Not by the counter: a thief's release may have that of the owner's.
        if Arc::ptr_eq(&labelled.by, &self.confirmed) {
            if labelled.result.is_ok() {
                self.mean_secs = Some(self.mean_secs.map_or(secs, |mean| 0.9 * mean + 0.1 * secs));
            }
            return;
        }
        let Phase::Probation { counter, .. } = self.slots.state().phase else { return };
        if labelled.model.0 != counter || !self.candidate.as_ref().is_some_and(|candidate| Arc::ptr_eq(&labelled.by, candidate)) {
            return;
        }
        let limit = self.mean_secs.map_or(f64::INFINITY, |mean| mean * views * self.config.update.max_slowdown).max(SLOW.as_secs_f64());
        match &labelled.result {
            Err(reason) => self.step(trial::Event::Failed(Reason::Health), reason),
            Ok(_) if secs * views > limit => {
                let detail = format!("a frame took {:.2} s, at most {limit:.2} s are allowed", secs * views);
                self.step(trial::Event::Failed(Reason::Health), &detail);
            }
            Ok(_) => self.step(trial::Event::HealthyFrame, ""),
        }
    }

    /// What is due in a trial without anything else happening.
    pub(super) fn without_frames(&mut self, now: Instant) {
        self.try_again(now);
        if matches!(self.slots.state().phase, Phase::Probation { .. }) && now.duration_since(self.last_frame) >= QUIET {
            self.last_frame = now - QUIET + Duration::from_millis(50);
            // One at a time, and none in the way of a model: in a queue they would fill it while a slow frame is labelled.
            self.replay.store(true, Ordering::Relaxed);
        }
    }
}

fn try_bundle(fetch: &Fetch, slot: &std::path::Path, counter: u64, loader: &dyn super::Loader) -> Result<Arc<Model>, Failure> {
    let bundle: Bundle = fetch.assemble(slot).map_err(|error| Failure::new(Reason::Hash, &error))?;
    if bundle.manifest().golden.is_empty() {
        return Err(Failure::Refused(Reason::Golden, "the release has none to be tried on".to_owned()));
    }
    // The graphs come from outside: whatever the loader does with them, the device goes on.
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let model = loader.load(&bundle, counter).map_err(|error| Failure::new(Reason::Load, &error))?;
        loader.golden(&bundle, &model).map_err(|error| Failure::new(Reason::Golden, &error))?;
        Ok(Arc::new(model))
    }));
    tried.unwrap_or_else(|_| Err(Failure::Refused(Reason::Load, "loading or trying the model panicked".to_owned())))
}

fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Signature => "signature",
        Reason::Manifest => "manifest",
        Reason::Hash => "hash",
        Reason::Load => "load",
        Reason::Golden => "golden frames",
        Reason::Health => "health",
        Reason::Restart => "restart",
        Reason::Unexpected => "unexpected",
        Reason::Shadow => "shadow",
    }
}
