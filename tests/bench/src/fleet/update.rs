//! A release at a simulated device: checked, fetched, tried, confirmed, or none of that. Pure; milliseconds come from outside.

use anyhow::{Context, Result, ensure};
use ed25519_dalek::VerifyingKey;
use omnilabel_bundle::hex;
use omnilabel_keypoints::release::ReleaseManifest;
use omnilabel_keypoints::wire::{BlockRequest, Message, ModelMsg, ReleaseMsg, VERSION};
use omnilabel_trainer::service::sign;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most blocks that are asked for at a time, as devices do.
const IN_FLIGHT: usize = 8;
/// What did not come is asked for again after this, ms, as devices do.
const REQUEST_AGAIN: u64 = 5_000;
/// How far above the release the counter lies that was never given.
const BEYOND: u64 = 1_000;

/// How a device takes a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Persona {
    /// Fetches it, tries it, confirms it.
    Good,
    /// Fetches it, tries it, refuses it.
    Refuses,
    /// Says for ever that it tries it.
    Hangs,
    /// Says at once that it has confirmed it.
    LiesAtOnce,
    /// Says that it has confirmed a release that nobody made.
    LiesBeyond,
}

/// A release whose signature is good.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The message that brought it.
    pub(crate) message: Vec<u8>,
    signed: Box<ReleaseMsg>,
    manifest: ReleaseManifest,
    model_hash: u64,
}

impl Offer {
    /// Checks the signature, then what was signed.
    ///
    /// # Errors
    /// It is not for the device.
    pub(crate) fn read(message: &[u8], key: &VerifyingKey, site: &str, channel: &str) -> Result<Self> {
        ensure!(message.len() <= ReleaseMsg::MAX_BYTES, "a release of {} bytes", message.len());
        let signed = ReleaseMsg::decode(message).context("the release message")?;
        let manifest = sign::verify(key, &signed)?;
        manifest.check(site, channel, 0)?;
        let model_hash = sign::model_hash(&manifest).context("a release without the hash of its model's manifest")?;
        Ok(Self { message: message.to_vec(), signed: Box::new(signed), manifest, model_hash })
    }

    /// First 8 bytes of the SHA-256 of its bundle's manifest, as labels name it.
    pub(crate) const fn model_hash(&self) -> u64 {
        self.model_hash
    }

    fn is_turn_of(&self, device: &str) -> bool {
        self.signed.is_turn_of(device, self.manifest.counter)
    }
}

/// What came of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// It was missing.
    Taken,
    /// It is not wanted, or not any more.
    Unwanted,
    /// Its hash is not its name.
    Wrong,
}

#[derive(Debug)]
enum Stage {
    Idle,
    Fetching { offer: Arc<Offer>, missing: BTreeSet<usize>, asked: BTreeSet<usize>, asked_ms: Option<u64> },
    Probation { counter: u64, until_ms: u64 },
}

/// The releases of one device.
#[derive(Debug)]
pub(crate) struct Update {
    persona: Persona,
    probation_ms: u64,
    stage: Stage,
    known: u64,
    confirmed: u64,
    trial: Option<u64>,
    refused: Option<u64>,
}

impl Update {
    /// Of a device with the model of provisioning.
    pub(crate) fn new(persona: Persona, probation_ms: u64) -> Self {
        Self { persona, probation_ms, stage: Stage::Idle, known: 0, confirmed: 0, trial: None, refused: None }
    }

    /// The counter of the model that makes labels: what a liar says is not what it runs.
    pub(crate) const fn model(&self) -> u64 {
        if matches!(self.persona, Persona::Good) { self.confirmed } else { 0 }
    }

    /// Whether blocks are wanted.
    pub(crate) const fn fetches(&self) -> bool {
        matches!(self.stage, Stage::Fetching { .. })
    }

    /// What `…/model` says.
    pub(crate) fn report(&self) -> ModelMsg {
        let mut message =
            ModelMsg { version: VERSION, confirmed: self.confirmed, trial: self.trial, refused: self.refused, ..ModelMsg::default() };
        if self.refused.is_some() {
            // Shorter than the longest reason.
            let _ = message.reason.push_str("golden: a simulated device refuses it");
        }
        message
    }

    /// A release came to the device of this name; whether it begins with it, which is to be reported. What it has begun it ends, whatever
    /// the share of the fleet is later.
    pub(crate) fn offered(&mut self, offer: &Arc<Offer>, device: &str) -> bool {
        let counter = offer.manifest.counter;
        if counter <= self.known || !offer.is_turn_of(device) {
            return false;
        }
        self.known = counter;
        self.stage = Stage::Idle;
        match self.persona {
            Persona::Good | Persona::Refuses => {
                self.trial = Some(counter);
                let missing = distinct(&offer.manifest).into_values().collect();
                self.stage = Stage::Fetching { offer: Arc::clone(offer), missing, asked: BTreeSet::new(), asked_ms: None };
            }
            Persona::Hangs => self.trial = Some(counter),
            Persona::LiesAtOnce => self.confirmed = counter,
            Persona::LiesBeyond => self.confirmed = counter + BEYOND,
        }
        true
    }

    /// The connection is new: what was asked for may not come.
    pub(crate) fn restart(&mut self) {
        if let Stage::Fetching { asked, asked_ms, .. } = &mut self.stage {
            asked.clear();
            *asked_ms = None;
        }
    }

    /// What to ask for now, if anything.
    pub(crate) fn request(&mut self, now: u64) -> Option<BlockRequest> {
        let Stage::Fetching { offer, missing, asked, asked_ms } = &mut self.stage else { return None };
        if asked_ms.is_some_and(|at| now.saturating_sub(at) >= REQUEST_AGAIN) {
            asked.clear();
        }
        if missing.is_empty() || !asked.is_empty() {
            return None;
        }
        asked.extend(missing.iter().take(IN_FLIGHT));
        *asked_ms = Some(now);
        let blocks = asked.iter().filter_map(|&index| offer.manifest.blocks.get(index).cloned()).collect();
        Some(BlockRequest { version: VERSION, counter: offer.manifest.counter, blocks })
    }

    /// A block came, whoever asked for it.
    pub(crate) fn block(&mut self, name: &str, bytes: &[u8]) -> Block {
        let Stage::Fetching { offer, missing, asked, .. } = &mut self.stage else { return Block::Unwanted };
        let blocks = &offer.manifest.blocks;
        let Some(index) = missing.iter().copied().find(|&index| blocks.get(index).is_some_and(|block| block.as_str() == name)) else {
            return Block::Unwanted;
        };
        if bytes.len() > offer.manifest.block_bytes as usize || hex(&Sha256::digest(bytes)) != name {
            return Block::Wrong;
        }
        missing.remove(&index);
        asked.remove(&index);
        Block::Taken
    }

    /// Time passes; whether the probation ended, which is to be reported.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        match &self.stage {
            Stage::Fetching { offer, missing, .. } if missing.is_empty() => {
                self.stage = Stage::Probation { counter: offer.manifest.counter, until_ms: now + self.probation_ms };
                false
            }
            Stage::Probation { counter, until_ms } if now >= *until_ms => {
                if self.persona == Persona::Good {
                    self.confirmed = *counter;
                } else {
                    self.refused = Some(*counter);
                }
                self.trial = None;
                self.stage = Stage::Idle;
                true
            }
            _ => false,
        }
    }
}

/// Of every hash, the first place in the list: blocks with the same bytes travel once.
fn distinct(manifest: &ReleaseManifest) -> BTreeMap<&str, usize> {
    let mut places = BTreeMap::new();
    for (index, block) in manifest.blocks.iter().enumerate() {
        places.entry(block.as_str()).or_insert(index);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of twelve blocks, the last as the first.
    fn offer(counter: u64) -> (Arc<Offer>, Vec<(String, Vec<u8>)>) {
        let contents: Vec<Vec<u8>> = (0..12).map(|index| vec![index % 11; 4]).collect();
        let names: Vec<String> = contents.iter().map(|bytes| hex(&Sha256::digest(bytes))).collect();
        let blocks = names.iter().map(|name| name.chars().collect()).collect();
        let manifest = ReleaseManifest { counter, block_bytes: 4, blocks, ..ReleaseManifest::default() };
        let offer = Offer { message: Vec::new(), signed: Box::default(), manifest, model_hash: 7 };
        (Arc::new(offer), names.into_iter().zip(contents).collect())
    }

    #[test]
    fn a_device_waits_for_its_turn() {
        let (all, _) = offer(3);
        let held = |waiting| {
            let (offer, _) = offer(3);
            let signed = Box::new(ReleaseMsg { waiting, ..ReleaseMsg::default() });
            let Offer { message, manifest, model_hash, .. } = Arc::into_inner(offer).unwrap();
            Arc::new(Offer { message, signed, manifest, model_hash })
        };
        let turn = omnilabel_keypoints::release::turn("a", 3);
        for persona in [Persona::Good, Persona::Hangs, Persona::LiesAtOnce] {
            let mut update = Update::new(persona, 1000);
            assert!(!update.offered(&held(1000), "a") && !update.offered(&held(1000 - turn), "a"));
            let report = update.report();
            assert_eq!((report.confirmed, report.trial, update.fetches(), update.request(0)), (0, None, false, None));
            let its = held(999 - turn);
            assert!(update.offered(&its, "a") && !update.offered(&all, "a"));
            assert!(!update.offered(&held(1000), "a") && update.fetches() == (persona == Persona::Good), "what is begun is ended");
        }
    }

    fn fetch(update: &mut Update, blocks: &[(String, Vec<u8>)], now: u64) -> usize {
        let mut taken = 0;
        while let Some(request) = update.request(now) {
            assert!(request.blocks.len() <= IN_FLIGHT);
            for name in &request.blocks {
                let (name, bytes) = blocks.iter().find(|(known, _)| known == name.as_str()).unwrap();
                assert_eq!(update.block(name, bytes), Block::Taken);
                assert_eq!(update.block(name, bytes), Block::Unwanted, "a second time");
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn a_good_device_fetches_everything_once_and_confirms_after_its_probation() {
        let (offer, blocks) = offer(3);
        let mut update = Update::new(Persona::Good, 1000);
        assert!(update.offered(&offer, "a") && !update.offered(&offer, "a"), "a release is news once");
        assert_eq!((update.report().confirmed, update.report().trial), (0, Some(3)));
        assert_eq!(update.block(&blocks[1].0, &blocks[1].1), Block::Taken, "what others asked for is kept");
        assert_eq!(update.block(&blocks[2].0, &blocks[1].1), Block::Wrong);
        assert_eq!(update.block(&blocks[2].0, &[7; 5]), Block::Wrong, "too long");
        assert!(!update.tick(0) && update.fetches());
        assert_eq!(fetch(&mut update, &blocks, 0), 10, "eleven are different, one was there");
        assert!(!update.tick(100) && !update.fetches());
        assert!(!update.tick(1099) && update.tick(1100) && !update.tick(5000));
        assert_eq!((update.model(), update.report().trial, update.report().refused), (3, None, None));
    }

    #[test]
    fn what_does_not_come_is_asked_for_again() {
        let (offer, blocks) = offer(1);
        let mut update = Update::new(Persona::Good, 0);
        update.offered(&offer, "a");
        let first = update.request(0).unwrap();
        assert_eq!(update.request(REQUEST_AGAIN - 1), None);
        let asked = blocks.iter().find(|(name, _)| name == first.blocks[0].as_str()).unwrap();
        assert_eq!(update.block(&asked.0, &asked.1), Block::Taken);
        let again = update.request(REQUEST_AGAIN).unwrap();
        assert!(!again.blocks.contains(&first.blocks[0]) && again.blocks.contains(&first.blocks[1]));
        update.restart();
        assert_eq!(update.request(REQUEST_AGAIN), Some(again), "a new connection asks at once");
    }

    #[test]
    fn the_others_say_what_they_are_to_say() {
        let (offer, blocks) = offer(5);
        let end = |persona| {
            let mut update = Update::new(persona, 10);
            assert!(update.offered(&offer, "a"));
            fetch(&mut update, &blocks, 0);
            update.tick(0);
            update.tick(100_000);
            let report = update.report();
            assert_eq!(update.model(), 0);
            (report.confirmed, report.trial, report.refused, report.reason.is_empty())
        };
        assert_eq!(end(Persona::Refuses), (0, None, Some(5), false));
        assert_eq!(end(Persona::Hangs), (0, Some(5), None, true));
        assert_eq!(end(Persona::LiesAtOnce), (5, None, None, true));
        assert_eq!(end(Persona::LiesBeyond), (5 + BEYOND, None, None, true));
    }
}
