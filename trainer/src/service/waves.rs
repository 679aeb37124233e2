//! How a release goes out: in waves, each a larger share of the fleet than the one before, and each only when the devices of the one before
//! have proved it. What counts is what devices say that they *confirmed*, after a probation on their own frames, not what was
//! delivered. Pure: devices and the time come from outside.
//!
//! One device is one vote, in its own wave. One that is gone does not count, one that hangs can delay and not block, one that lies can add
//! or take away its own vote alone. In a wave of one or two devices that vote is everything: waves are to be as large as the trust in one.

use crate::service::config::RolloutConfig;
use omnilabel_keypoints::release::turn;
use serde::{Deserialize, Serialize};

/// Where a release stands. Kept as JSON in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waves {
    /// Thousandths of the fleet in each wave, rising, the last 1000.
    pub shares: Vec<u16>,
    /// The wave under way, from 0.
    pub wave: usize,
    /// Since when, Unix ms.
    pub since_ms: u64,
    /// Where it stopped, and why; a person may let it go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// The last wave has proved it.
    #[serde(default)]
    pub complete: bool,
    /// Refusals that a person knew of who let it go on.
    #[serde(default)]
    pub pardoned: u64,
    /// Minutes for which devices compare it with their model before they try it.
    #[serde(default)]
    pub shadow_minutes: u16,
}

/// Of percent.
pub fn thousandths(waves: &[f64]) -> Vec<u16> {
    waves.iter().map(|percent| (percent * 10.0).round() as u16).collect()
}

impl Waves {
    /// At the start of the first wave. With a single one, nothing waits for its proof.
    pub fn begin(config: &RolloutConfig, now_ms: u64) -> Self {
        let shadow_minutes = config.shadow_minutes;
        if config.waves.len() < 2 {
            return Self { shadow_minutes, ..Self::at_once(now_ms) };
        }
        Self { shares: thousandths(&config.waves), wave: 0, since_ms: now_ms, halted: None, complete: false, pardoned: 0, shadow_minutes }
    }

    /// To everybody at once, without proof and comparison: what people decide, such as a recall.
    pub fn at_once(now_ms: u64) -> Self {
        Self { shares: vec![1000], wave: 0, since_ms: now_ms, halted: None, complete: true, pardoned: 0, shadow_minutes: 0 }
    }

    /// Thousandths of the fleet whose turn has come.
    pub fn share(&self) -> u16 {
        self.shares.get(self.wave).copied().unwrap_or(1000)
    }

    /// Thousandths of the fleet that may not begin with it.
    pub fn waiting(&self) -> u16 {
        if self.halted.is_some() { 1000 } else { 1000 - self.share().min(1000) }
    }

    /// Whether nothing is decided about it any more.
    pub const fn is_over(&self) -> bool {
        self.complete || self.halted.is_some()
    }
}

/// What is known of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub device: String,
    /// Whether it is connected and was heard of lately.
    pub online: bool,
    /// Counter of the release that it says it confirmed.
    pub confirmed: u64,
    /// The release on trial.
    pub trial: Option<u64>,
    /// The last one that it refused.
    pub refused: Option<u64>,
    /// Counter and hash of the model that made its last label.
    pub labelled: Option<(u64, u64)>,
}

/// The devices whose turn has come, by what they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// All of them.
    pub devices: u64,
    /// Of these connected.
    pub online: u64,
    /// Of those with the release confirmed.
    pub confirmed: u64,
    /// Of those that refused it, or label with something else under its number.
    pub refused: u64,
    /// Of those that try it.
    pub trying: u64,
}

/// Counts the devices whose turn has come. `hash`: of the release's model.
pub fn tally(devices: &[Standing], counter: u64, hash: Option<u64>, share: u16) -> Tally {
    let mut tally = Tally::default();
    for device in devices.iter().filter(|device| turn(&device.device, counter) < share) {
        tally.devices += 1;
        // What a device said that is gone holds; what it would say is not waited for.
        let has_spoken = device.confirmed == counter || device.refused == Some(counter);
        if !device.online && !has_spoken {
            continue;
        }
        tally.online += 1;
        let other_model = device.labelled.is_some_and(|(model, of)| model == counter && hash.is_some_and(|hash| hash != of));
        if device.refused == Some(counter) || other_model {
            tally.refused += 1;
        } else if device.confirmed == counter {
            tally.confirmed += 1;
        } else if device.trial == Some(counter) {
            tally.trying += 1;
        }
    }
    tally
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet.
    Wait,
    /// The next wave begins, for this reason.
    Advance(String),
    /// The last wave is through, for this reason.
    Complete(String),
    /// It stops where it is, for this reason.
    Halt(String),
}

/// Judges the wave under way.
pub fn judge(waves: &Waves, tally: Tally, now_ms: u64, config: &RolloutConfig) -> Decision {
    if waves.is_over() {
        return Decision::Wait;
    }
    let Tally { devices, online, confirmed, refused, .. } = tally;
    let last = waves.wave + 1 >= waves.shares.len();
    let on = |reason: String| if last { Decision::Complete(reason) } else { Decision::Advance(reason) };
    let of = format!("of {online} devices that are there, {confirmed} confirmed and {refused} refused it");
    let refusals = refused.saturating_sub(waves.pardoned);
    // One device's word alone decides only where there are hardly others.
    let alone = refusals == 1 && online > 2 && config.max_refused > 0.0;
    if !alone && refusals as f64 > config.max_refused * online as f64 {
        return Decision::Halt(format!("{of}: more than {} %", 100.0 * config.max_refused));
    }
    let age_ms = now_ms.saturating_sub(waves.since_ms);
    if devices == 0 && !last {
        return on("no device is in this wave".to_owned());
    }
    // Nobody confirms it before the comparison is over.
    let deadline_minutes = u64::from(config.deadline_minutes) + u64::from(waves.shadow_minutes);
    let overdue = age_ms >= deadline_minutes * 60_000;
    if online == 0 {
        let gone = format!("none of the {devices} devices in this wave was there within {deadline_minutes} minutes");
        return if overdue && !last { on(gone) } else { Decision::Wait };
    }
    if age_ms < u64::from(config.settle_seconds) * 1000 {
        return Decision::Wait;
    }
    // Those that refused it have spoken; the others are waited for.
    if confirmed > 0 && confirmed as f64 >= config.confirmed * (online - refused) as f64 {
        return on(of);
    }
    if !overdue {
        return Decision::Wait;
    }
    if 2 * confirmed > online {
        return on(format!("{of} within {deadline_minutes} minutes: the others are not waited for"));
    }
    Decision::Halt(format!("{of} within {deadline_minutes} minutes: not even half of them"))
}

#[cfg(test)]
mod tests;
