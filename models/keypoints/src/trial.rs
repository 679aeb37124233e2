//! The slot state machine: an update is on trial until it proves itself. Pure: the caller persists [`State`] and carries out
//! [`Action`]s.

use serde::{Deserialize, Serialize};

/// Which of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other slot.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Why a release was refused or reverted. Codes are append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The signature does not verify.
    Signature,
    /// Wrong site, channel, order or form.
    Manifest,
    /// A file or block has another hash.
    Hash,
    /// The bundle does not load.
    Load,
    /// The golden frames gave other labels on this device.
    Golden,
    /// Health limits were broken during probation.
    Health,
    /// The device died during the probation, or again and again on the golden frames.
    Restart,
    /// An event came that does not belong to the phase.
    Unexpected,
    /// Beside the confirmed model it labelled other things, failed or was slow.
    Shadow,
}

/// What the device persists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The slot that is known to work.
    pub confirmed: Slot,
    /// Its release counter, 0 for the provisioned model.
    pub confirmed_counter: u64,
    /// What is going on in the other slot.
    pub phase: Phase,
    /// The highest counter that was ever confirmed or refused, but for what [`Event::Keys`] took back.
    pub highest: u64,
    /// Serial of the set of release keys that this state knows of; 0 while the root key signs releases itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub set: u64,
    /// The confirmed release is none of the owner's, says that set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub beyond: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What is going on in the slot that is not confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Blocks of this release are being fetched.
    Fetching {
        /// Its counter.
        counter: u64,
    },
    /// Fetched and hashed; the golden frames are being tried.
    Testing {
        /// Its counter.
        counter: u64,
        /// Tries begun, but for those that a clean stop ended.
        attempts: u8,
        /// The same of [`Phase::Shadow`], which a power cut may have ended.
        #[serde(default)]
        shadows: u8,
    },
    /// It runs beside the confirmed model, whose labels alone count.
    Shadow {
        /// Its counter.
        counter: u64,
        /// Times begun, but for those that a clean stop ended.
        attempts: u8,
    },
    /// It runs; health is watched for this many more frames.
    Probation {
        /// Its counter.
        counter: u64,
        /// Frames still to go.
        frames_left: u32,
    },
}

impl Phase {
    /// Counter of the release on trial.
    pub const fn counter(self) -> Option<u64> {
        match self {
            Self::Idle => None,
            Self::Fetching { counter } | Self::Testing { counter, .. } | Self::Shadow { counter, .. } | Self::Probation { counter, .. } => {
                Some(counter)
            }
        }
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device started.
    Boot,
    /// The device is about to end cleanly, which says nothing about the release.
    Stop,
    /// A verified release of this counter is offered.
    Offer {
        /// Its counter.
        counter: u64,
    },
    /// The root key named a new set of release keys.
    Keys {
        /// Its serial; of a set that the state knows of nothing changes.
        set: u64,
        /// The newest release that counts, if the set names it.
        newest: Option<u64>,
        /// Whether the signature under the release on trial is of one of its keys.
        trusted: bool,
        /// Whether that under the confirmed release is.
        confirmed_trusted: bool,
    },
    /// All files are there with their hashes.
    Fetched,
    /// The golden frames were reproduced.
    GoldenPassed {
        /// Whether it is to run beside the confirmed model first.
        shadow: bool,
    },
    /// Its time beside the confirmed model is over, and nothing speaks against it.
    Agreed,
    /// A frame was labelled within the health limits.
    HealthyFrame,
    /// Something went wrong in the current phase.
    Failed(Reason),
}

/// What the caller has to do, after it has persisted the new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Fetch the blocks of this release into the slot.
    Fetch(Slot),
    /// Try the golden frames of the slot.
    Test(Slot),
    /// Run the model of the slot beside the confirmed one.
    Shadow(Slot),
    /// Run the model of the slot from the next frame on.
    Swap(Slot),
    /// Back to the confirmed slot; report the reason.
    Revert(Slot, Reason),
    /// The slot is confirmed; report it.
    Confirm(Slot),
    /// The offer is refused without touching anything.
    Refuse,
}

/// The frames of probation after a swap.
pub const PROBATION_FRAMES: u32 = 16;
/// The tries of the golden frames: a device that died during the last one does not try again.
pub const TEST_ATTEMPTS: u8 = 2;
/// How often a release may begin to run beside the confirmed model: that takes hours, in which a device may well lose its power.
pub const SHADOW_ATTEMPTS: u8 = 4;

/// One step: the state after `event`, and what to do. Anything unexpected in a trial reverts to the confirmed slot.
///
/// An offer is refused while another release is tested or on probation; the release topic is retained, so the caller offers it
/// again once the phase is [`Phase::Idle`]. A newer offer takes the place of one that is still being fetched.
pub fn step(state: State, event: Event) -> (State, Action) {
    let slot = state.confirmed.other();
    match (state.phase, event) {
        (_, Event::Offer { counter }) => offer(state, counter),
        (_, Event::Keys { set, newest, trusted, confirmed_trusted }) => keys(state, set, newest, trusted, confirmed_trusted),

        (Phase::Idle, _) => (state, Action::None),

        (Phase::Fetching { .. }, Event::Boot) => (state, Action::Fetch(slot)),
        (Phase::Fetching { .. }, Event::Stop) => (state, Action::None),
        (Phase::Fetching { counter }, Event::Fetched) => {
            (state.with(Phase::Testing { counter, attempts: 1, shadows: 0 }), Action::Test(slot))
        }

        (Phase::Testing { counter, attempts, shadows }, Event::Boot) if attempts < TEST_ATTEMPTS => {
            (state.with(Phase::Testing { counter, attempts: attempts + 1, shadows }), Action::Test(slot))
        }
        (Phase::Testing { counter, attempts, shadows }, Event::Stop) => {
            (state.with(Phase::Testing { counter, attempts: attempts.saturating_sub(1), shadows }), Action::None)
        }
        (Phase::Testing { counter, shadows, .. }, Event::GoldenPassed { shadow: true }) => {
            (state.with(Phase::Shadow { counter, attempts: shadows.saturating_add(1) }), Action::Shadow(slot))
        }
        (Phase::Testing { counter, .. }, Event::GoldenPassed { shadow: false }) | (Phase::Shadow { counter, .. }, Event::Agreed) => {
            (state.with(Phase::Probation { counter, frames_left: PROBATION_FRAMES }), Action::Swap(slot))
        }
        // It is assembled and tried again, and begins anew.
        (Phase::Shadow { counter, attempts }, Event::Boot) if attempts < SHADOW_ATTEMPTS => {
            (state.with(Phase::Testing { counter, attempts: 1, shadows: attempts }), Action::Test(slot))
        }
        (Phase::Shadow { counter, attempts }, Event::Stop) => {
            (state.with(Phase::Testing { counter, attempts: 0, shadows: attempts.saturating_sub(1) }), Action::None)
        }

        // Until the swap, the confirmed model labels the frames.
        (Phase::Fetching { .. } | Phase::Testing { .. } | Phase::Shadow { .. }, Event::HealthyFrame) => (state, Action::None),

        (Phase::Probation { counter, frames_left: 1 }, Event::HealthyFrame) => {
            let highest = state.highest.max(counter);
            let confirmed = State { confirmed: slot, confirmed_counter: counter, phase: Phase::Idle, highest, beyond: false, ..state };
            (confirmed, Action::Confirm(slot))
        }
        (Phase::Probation { counter, frames_left }, Event::HealthyFrame) if frames_left > 1 => {
            (state.with(Phase::Probation { counter, frames_left: frames_left - 1 }), Action::None)
        }
        (Phase::Probation { counter, .. }, Event::Stop) => (state.with(Phase::Testing { counter, attempts: 0, shadows: 0 }), Action::None),
        (Phase::Testing { counter, .. } | Phase::Shadow { counter, .. } | Phase::Probation { counter, .. }, Event::Boot) => {
            revert(state, counter, Reason::Restart)
        }

        (
            Phase::Fetching { counter } | Phase::Testing { counter, .. } | Phase::Shadow { counter, .. } | Phase::Probation { counter, .. },
            Event::Failed(reason),
        ) => revert(state, counter, reason),
        (
            Phase::Fetching { counter } | Phase::Testing { counter, .. } | Phase::Shadow { counter, .. } | Phase::Probation { counter, .. },
            Event::Fetched | Event::GoldenPassed { .. } | Event::Agreed | Event::HealthyFrame,
        ) => revert(state, counter, Reason::Unexpected),
    }
}

/// A verified release of `counter` is offered.
fn offer(state: State, counter: u64) -> (State, Action) {
    if counter <= state.floor() {
        return (state, Action::Refuse);
    }
    let fetch = (state.with(Phase::Fetching { counter }), Action::Fetch(state.confirmed.other()));
    match state.phase {
        Phase::Idle => fetch,
        Phase::Fetching { counter: current } if counter > current => fetch,
        phase if phase.counter() == Some(counter) => (state, Action::None),
        _ => (state, Action::Refuse),
    }
}

/// Another set of release keys is in use. What is on trial and not of its keys goes back; as this says
/// nothing about the release, one that is signed anew is taken again.
///
/// Counters beyond the newest release are forgotten. Where the confirmed release is one of them, and not signed by a key of the set, the
/// newest one takes its place; where something was refused beyond it, whatever is newer than the confirmed one may be tried again.
fn keys(state: State, set: u64, newest: Option<u64>, trusted: bool, confirmed_trusted: bool) -> (State, Action) {
    if set <= state.set {
        return (state, Action::None);
    }
    let is_beyond = |counter: u64| newest.is_some_and(|newest| counter > newest);
    let beyond = is_beyond(state.confirmed_counter) && !confirmed_trusted;
    let highest = match newest {
        Some(newest) if beyond => state.highest.min(newest.saturating_sub(1)),
        Some(newest) if state.highest > newest => state.confirmed_counter,
        _ => state.highest.max(state.confirmed_counter),
    };
    let known = State { set, highest, beyond, ..state };
    match state.phase.counter() {
        Some(counter) if !trusted || counter <= highest => (known.with(Phase::Idle), Action::Revert(state.confirmed, Reason::Signature)),
        _ => (known, Action::None),
    }
}

/// Back to the confirmed slot; the release is not taken again.
fn revert(state: State, counter: u64, reason: Reason) -> (State, Action) {
    let reverted = State { phase: Phase::Idle, highest: state.highest.max(counter), ..state };
    (reverted, Action::Revert(state.confirmed, reason))
}

impl State {
    /// A device whose provisioned model lies in `slot`.
    pub const fn provisioned(slot: Slot) -> Self {
        Self { confirmed: slot, confirmed_counter: 0, phase: Phase::Idle, highest: 0, set: 0, beyond: false }
    }

    /// The counter that an offer has to be above.
    pub const fn floor(&self) -> u64 {
        if self.beyond || self.highest > self.confirmed_counter { self.highest } else { self.confirmed_counter }
    }

    /// The slot whose model labels frames in this state.
    pub const fn running(&self) -> Slot {
        match self.phase {
            Phase::Probation { .. } => self.confirmed.other(),
            Phase::Idle | Phase::Fetching { .. } | Phase::Testing { .. } | Phase::Shadow { .. } => self.confirmed,
        }
    }

    const fn with(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }
}
