//! What all devices and the conductor see.

use super::Options;
use super::faults::Timeline;
use super::labels::{Press, encode};
use super::update::Offer;
use anyhow::Result;
use ed25519_dalek::VerifyingKey;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{StatusMsg, VERSION};
use omnilabel_link::LinkConfig;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The channel of the release.
pub(crate) const CHANNEL: &str = "stable";

/// A device's name, by its number.
pub(crate) fn name(index: usize) -> String {
    format!("sim-{index:05}")
}

/// What devices do. It only ever goes on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// They connect.
    Connecting,
    /// They make labels.
    Working,
    /// They make no more, and nothing goes wrong any more.
    Draining,
    /// They say their last status and end.
    Closing,
}

/// Counts of all devices together.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Labels committed.
    pub(crate) made: AtomicU64,
    /// Of these acknowledged.
    pub(crate) cleared: AtomicU64,
    /// Devices that are connected.
    pub(crate) connected: AtomicU64,
    /// Good devices that have confirmed the release.
    pub(crate) confirmed: AtomicU64,
    /// Devices that have tried the release and refused it.
    pub(crate) refused: AtomicU64,
}

/// What all see.
pub(crate) struct Shared {
    pub(crate) link: LinkConfig,
    pub(crate) press: Press,
    pub(crate) timeline: Timeline,
    pub(crate) seed: u64,
    pub(crate) rate: f64,
    pub(crate) probation_ms: u64,
    /// The last will.
    pub(crate) offline: Vec<u8>,
    pub(crate) totals: Totals,
    pub(crate) interrupts: AtomicU64,
    key: VerifyingKey,
    start: Instant,
    unix_ms: u64,
    phase: AtomicU8,
    /// When the first label was due, ms.
    begin_ms: AtomicU64,
    /// The release that was checked last: its devices share it.
    offer: Mutex<Option<Arc<Offer>>>,
}

impl Shared {
    /// The run's clock begins here.
    pub(crate) fn new(options: &Options, link: LinkConfig, key: VerifyingKey) -> Result<Self> {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let offline = encode(&StatusMsg { version: VERSION, online: false, ..StatusMsg::default() })?;
        Ok(Self {
            link,
            press: Press::new(options.seed, options.frames, unix_ms),
            timeline: options.timeline(),
            seed: options.seed,
            rate: options.rate,
            probation_ms: (1e3 * options.probation) as u64,
            offline,
            totals: Totals::default(),
            interrupts: AtomicU64::new(0),
            key,
            start: Instant::now(),
            unix_ms,
            phase: AtomicU8::new(Phase::Connecting as u8),
            begin_ms: AtomicU64::new(0),
            offer: Mutex::new(None),
        })
    }

    /// Milliseconds of the run's clock.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// The same since 1970.
    pub(crate) fn unix(&self, ms: u64) -> u64 {
        self.unix_ms + ms
    }

    /// Seconds from the first label on.
    pub(crate) fn secs(&self, ms: u64) -> f64 {
        ms.saturating_sub(self.begin_ms()) as f64 / 1e3
    }

    /// When the first label was due, ms of the run's clock.
    pub(crate) fn begin_ms(&self) -> u64 {
        self.begin_ms.load(Ordering::Acquire)
    }

    /// What devices are to do.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connecting,
            1 => Phase::Working,
            2 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// Tells devices what to do.
    pub(crate) fn enter(&self, phase: Phase) {
        if phase == Phase::Working {
            self.begin_ms.store(self.now(), Ordering::Release);
        }
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// `…/{device}/{kind}`.
    pub(crate) fn topic(&self, device: &str, kind: Kind) -> String {
        topic::device(&self.link.prefix, &self.link.site, device, kind).as_str().to_owned()
    }

    /// `…/release/{channel}`.
    pub(crate) fn release_topic(&self) -> String {
        topic::release(&self.link.prefix, &self.link.site, CHANNEL).as_str().to_owned()
    }

    /// `…/blocks/+`.
    pub(crate) fn blocks_topic(&self) -> String {
        topic::block(&self.link.prefix, &self.link.site, "+").as_str().to_owned()
    }

    /// Checks a release, as each device does for itself; what is the same is kept once.
    pub(crate) fn offer(&self, message: &[u8]) -> Result<Arc<Offer>> {
        let offer = Offer::read(message, &self.key, &self.link.site, CHANNEL)?;
        let mut known = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.message == message) {
            return Ok(Arc::clone(known));
        }
        self.press.learn(offer.model_hash());
        let offer = Arc::new(offer);
        *known = Some(Arc::clone(&offer));
        Ok(offer)
    }
}
