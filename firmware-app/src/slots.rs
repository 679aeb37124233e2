//! The two model slots on disk and what is known about them.
//!
//! ```text
//! STATE/root.pub             the key that releases are signed with (64 hex digits)
//! STATE/a/, STATE/b/         bundles; the one that is not confirmed may be anything
//! STATE/a.release, …         the signed release that a slot came from (none: provisioned)
//! STATE/a.trial, …           the slot is not proven, whatever lies in it
//! STATE/state.json           the slot state, replaced as a whole; STATE/state.old.json is the one before
//! STATE/offer.release        the signed release that is on trial
//! STATE/blocks/{sha256}      blocks that were fetched for it
//! STATE/keys.cbor            the newest set of release keys, as it came ([`crate::update::Trust`])
//! ```
//! State that cannot be read never counts as healthy: the one before is taken, or a proven slot whose bundle verifies.

#[cfg(test)]
mod tests;

use crate::durable::{remove_file, remove_folder, replace_file, sync_folder};
use crate::update::{Fetch, Trust, VerifiedRelease};
use anyhow::{Context, bail};
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::trial::{Phase, Slot, State};
use omnilabel_keypoints::wire::{Message, ReleaseMsg};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// File of the root public key below the state folder.
pub const ROOT_KEY: &str = "root.pub";
const STATE: &str = "state.json";
const OLD: &str = "state.old.json";
const OFFER: &str = "offer.release";
const FORMAT: u32 = 1;
/// The longest time that a release runs in the shadow of the confirmed one.
const MAX_SHADOW: Duration = Duration::from_secs(7 * 86_400);

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    state: State,
    /// CRC-32 of the state's own JSON, so that a flipped bit does not become another valid state.
    crc: u32,
}

/// The slots of a state folder.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    state: State,
    /// Why the state on disk was not taken as it was.
    recovered: Option<String>,
}

/// `a` or `b`.
pub const fn name(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "a",
        Slot::B => "b",
    }
}

fn encode(state: State) -> anyhow::Result<Vec<u8>> {
    let crc = crc32fast::hash(&serde_json::to_vec(&state)?);
    Ok(serde_json::to_vec_pretty(&Record { format: FORMAT, state, crc })?)
}

fn decode(bytes: &[u8]) -> anyhow::Result<State> {
    let record: Record = serde_json::from_slice(bytes).context("not a slot state")?;
    if record.format != FORMAT {
        bail!("slot state of format {}, expected {FORMAT}", record.format);
    }
    if crc32fast::hash(&serde_json::to_vec(&record.state)?) != record.crc {
        bail!("the checksum is wrong");
    }
    Ok(record.state)
}

impl Slots {
    /// Opens the state folder and finds the confirmed slot. `trust` is for the releases that the slots came from.
    ///
    /// # Errors
    /// When nothing was installed, or no proven slot has a bundle that verifies.
    pub fn open(folder: &Path, trust: &Trust) -> anyhow::Result<(Self, Bundle)> {
        let (slots, bundle, rescued) = Self::find(folder, trust)?;
        if rescued {
            slots.write()?;
        }
        slots.tidy()?;
        Ok((slots, bundle))
    }

    /// [`Slots::open`] that writes nothing: to look at a device that may be at work.
    ///
    /// # Errors
    /// See [`Slots::open`].
    pub fn look(folder: &Path, trust: &Trust) -> anyhow::Result<(Self, Bundle)> {
        Self::find(folder, trust).map(|(slots, bundle, _)| (slots, bundle))
    }

    /// The slots with the confirmed bundle, and whether this is not the state on disk.
    fn find(folder: &Path, trust: &Trust) -> anyhow::Result<(Self, Bundle, bool)> {
        let read = |name: &str| {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            decode(&bytes).with_context(|| path.display().to_string())
        };
        let mut reasons = Vec::new();
        let mut candidates = Vec::new();
        for file in [STATE, OLD] {
            match read(file) {
                // How the trial of the state before went on is not known: that says nothing about the release.
                Ok(state) if file == OLD => candidates.push(State { phase: Phase::Idle, ..state }),
                Ok(state) => candidates.push(state),
                Err(error) => reasons.push(omnilabel_console::line(&error)),
            }
        }
        if candidates.is_empty() && !folder.join(name(Slot::A)).exists() && !folder.join(name(Slot::B)).exists() {
            bail!("{}: no model is installed; run `omnilabel-edge model install` first", folder.display());
        }
        let old = reasons.first().cloned();
        for (index, state) in candidates.iter().enumerate() {
            match Bundle::open(&folder.join(name(state.confirmed))) {
                Ok(bundle) => {
                    let recovered = if index > 0 { Some(reasons.join("; ")) } else { old.filter(|reason| !reason.contains(OLD)) };
                    let rescued = recovered.is_some();
                    return Ok((Self { folder: folder.to_owned(), state: *state, recovered }, bundle, rescued));
                }
                Err(error) => reasons.push(format!("the confirmed model does not verify: {error}")),
            }
        }
        // Neither state can be acted on: the newest bundle that verifies, as confirmed as anything here can be.
        let (set, highest) = newest(&candidates);
        let mut whole = Vec::new();
        for slot in [Slot::A, Slot::B] {
            match Bundle::open(&folder.join(name(slot))) {
                Ok(_) if trial_mark(folder, slot).exists() => reasons.push(format!("slot {} was on trial", name(slot))),
                Ok(bundle) => whole.push((counter_of(folder, slot, trust), slot, bundle)),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        whole.sort_by_key(|(counter, ..)| *counter);
        let Some((counter, slot, bundle)) = whole.pop() else {
            bail!("{}: no slot has a model that verifies: {}", folder.display(), reasons.join("; "));
        };
        let state = State { confirmed_counter: counter, highest: highest.max(counter), set, ..State::provisioned(slot) };
        Ok((Self { folder: folder.to_owned(), state, recovered: Some(reasons.join("; ")) }, bundle, true))
    }

    /// Puts the first model and the root key into a fresh state folder, or a model in the place of damaged ones: the order of releases, the
    /// root key and the outbox then stay as they are.
    ///
    /// # Errors
    /// When the bundle does not verify, the key is none, a model that works is installed already or the appliance runs.
    pub fn install(folder: &Path, bundle: &Path, root_key: Option<&Path>) -> anyhow::Result<()> {
        let source = Bundle::open(bundle).context("the bundle cannot be installed")?;
        if folder.exists() && !folder.is_dir() {
            bail!("{}: is a file, expected the state folder or nothing", folder.display());
        }
        let known: Vec<State> = [STATE, OLD].iter().filter_map(|name| decode(&std::fs::read(folder.join(name)).ok()?).ok()).collect();
        let installed = folder.join(STATE).exists() || folder.join(OLD).exists();
        let _lock = if installed { Some(lock(folder)?) } else { None };
        let proven = |slot: Slot| !trial_mark(folder, slot).exists() && Bundle::open(&folder.join(name(slot))).is_ok();
        if installed && [Slot::A, Slot::B].into_iter().any(proven) {
            bail!("{}: a model is installed already; updates come as signed releases", folder.display());
        }
        if installed && let (Some(given), Ok(there)) = (root_key, crate::update::read_public_key(&folder.join(ROOT_KEY))) {
            let given = crate::update::read_public_key(given)?;
            if given != there {
                bail!("{}: another root key is provisioned; a new owner begins with a state folder of its own", folder.display());
            }
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        if let Some(path) = root_key {
            let key = crate::update::read_public_key(path)?;
            replace_file(&folder.join(ROOT_KEY), format!("{}\n", omnilabel_bundle::hex(key.as_bytes())).as_bytes())
                .with_context(|| folder.join(ROOT_KEY).display().to_string())?;
        }
        // What the damaged one came from says nothing of this one.
        for path in [origin(folder, Slot::A), trial_mark(folder, Slot::A)].iter().filter(|path| path.exists()) {
            remove_file(path).with_context(|| path.display().to_string())?;
        }
        let slot = folder.join(name(Slot::A));
        if slot.exists() {
            remove_folder(&slot).with_context(|| slot.display().to_string())?;
        }
        for file in source.manifest().files.keys().map(String::as_str).chain(["manifest.json"]) {
            let bytes = std::fs::read(source.path(file)).with_context(|| source.path(file).display().to_string())?;
            write_into(&slot, file, &bytes)?;
        }
        Bundle::open(&slot).context("the bundle changed while it was installed")?;
        let (set, highest) = newest(&known);
        let state = State { highest, set, ..State::provisioned(Slot::A) };
        Self { folder: folder.to_owned(), state, recovered: None }.write()
    }

    /// What is known.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why the state on disk was not taken as it was, for the report.
    pub fn recovered(&self) -> Option<&str> {
        self.recovered.as_deref()
    }

    /// The folder of a slot.
    pub fn path(&self, slot: Slot) -> PathBuf {
        self.folder.join(name(slot))
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the state, durably, before it is acted on.
    ///
    /// # Errors
    /// When it cannot be written; the old state then holds.
    pub fn set(&mut self, state: State) -> anyhow::Result<()> {
        if state == self.state {
            return Ok(());
        }
        let before = self.state;
        self.state = state;
        self.write().inspect_err(|_| self.state = before)
    }

    /// Counts a frame of the probation: not written, as a restart reverts a probation however far it is.
    pub fn set_progress(&mut self, state: State) {
        self.state = state;
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = self.folder.join(STATE);
        // Only a state that can be read is worth keeping as the one before.
        if let Ok(old) = std::fs::read(&path)
            && decode(&old).is_ok()
        {
            replace_file(&self.folder.join(OLD), &old).with_context(|| self.folder.join(OLD).display().to_string())?;
        }
        replace_file(&path, &encode(self.state)?).with_context(|| path.display().to_string())
    }

    /// Keeps the signed release that is on trial, as it came.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_offer(&self, payload: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(OFFER);
        replace_file(&path, payload).with_context(|| path.display().to_string())
    }

    /// The signed release that was on trial, its signature checked anew.
    pub fn offer(&self, trust: &Trust) -> Option<VerifiedRelease> {
        let payload = std::fs::read(self.folder.join(OFFER)).ok()?;
        trust.verify_known(&ReleaseMsg::decode(&payload).ok()?).ok()
    }

    /// How long the release on trial runs in the shadow of the confirmed one, says its message; a week at most.
    ///
    /// # Errors
    /// When the message cannot be read.
    pub fn shadow_lasts(&self) -> anyhow::Result<Duration> {
        let path = self.folder.join(OFFER);
        let payload = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let message = ReleaseMsg::decode(&payload).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(Duration::from_secs(u64::from(message.shadow_secs)).min(MAX_SHADOW))
    }

    /// The signed release that the confirmed slot came from, if a key that counts has signed it.
    pub fn confirmed_release(&self, trust: &Trust) -> Option<VerifiedRelease> {
        let payload = std::fs::read(origin(&self.folder, self.state.confirmed)).ok()?;
        trust.verify_known(&ReleaseMsg::decode(&payload).ok()?).ok()
    }

    /// Keeps a message in place of each that holds the same release: it may be signed by a key that counts longer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn renew(&self, message: &ReleaseMsg, payload: &[u8]) -> anyhow::Result<()> {
        for path in [self.folder.join(OFFER), origin(&self.folder, Slot::A), origin(&self.folder, Slot::B)] {
            let Ok(kept) = std::fs::read(&path) else { continue };
            let same = ReleaseMsg::decode(&kept).is_ok_and(|kept| kept.manifest == message.manifest);
            if same && kept != payload {
                replace_file(&path, payload).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Notes that a slot's bundle is the release that was on trial and is confirmed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_origin(&self, slot: Slot) -> anyhow::Result<()> {
        let (from, to) = (self.folder.join(OFFER), origin(&self.folder, slot));
        let payload = std::fs::read(&from).with_context(|| from.display().to_string())?;
        replace_file(&to, &payload).with_context(|| to.display().to_string())?;
        self.remove(&trial_mark(&self.folder, slot))
    }

    /// Marks a slot before anything is written into it: it is not taken for a proven one.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn begin_trial(&self, slot: Slot) -> anyhow::Result<()> {
        let path = trial_mark(&self.folder, slot);
        replace_file(&path, b"").with_context(|| path.display().to_string())
    }

    /// Empties a slot that was on trial; one that was not stays. The mark goes last.
    ///
    /// # Errors
    /// When something cannot be removed; the mark is then still there.
    pub fn discard(&self, slot: Slot) -> anyhow::Result<()> {
        let mark = trial_mark(&self.folder, slot);
        if !mark.exists() {
            return Ok(());
        }
        let path = self.path(slot);
        if path.exists() {
            remove_folder(&path).with_context(|| path.display().to_string())?;
        }
        self.remove(&origin(&self.folder, slot))?;
        self.remove(&mark)
    }

    /// Finishes what a kill after a confirmation or a revert left.
    fn tidy(&self) -> anyhow::Result<()> {
        if self.state.phase == Phase::Idle {
            self.discard(self.state.confirmed.other())?;
            Fetch::clean(&self.folder);
        }
        self.remove(&trial_mark(&self.folder, self.state.confirmed))
    }

    /// Removes a file of the state folder, durably, if it is there.
    fn remove(&self, path: &Path) -> anyhow::Result<()> {
        if path.exists() {
            remove_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// One process to a state folder; released when the file is closed.
///
/// # Errors
/// When there is no such folder, or another process has it.
pub(crate) fn lock(folder: &Path) -> anyhow::Result<std::fs::File> {
    if !folder.exists() {
        bail!("{}: no such state folder; run `omnilabel-edge model install` first", folder.display());
    }
    if !folder.is_dir() {
        bail!("{}: is a file, expected the state folder", folder.display());
    }
    let path = folder.join("lock");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!("another omnilabel-edge runs in {}", folder.display()),
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The newest set of keys that states know of, and the counter that an offer has to be above: a newer set may have taken back what was the
/// highest one before.
fn newest(states: &[State]) -> (u64, u64) {
    let set = states.iter().map(|state| state.set).max().unwrap_or(0);
    (set, states.iter().filter(|state| state.set == set).map(State::floor).max().unwrap_or(0))
}

/// The mark of a slot that is not proven.
fn trial_mark(folder: &Path, slot: Slot) -> PathBuf {
    folder.join(format!("{}.trial", name(slot)))
}

/// The signed release that a slot came from.
fn origin(folder: &Path, slot: Slot) -> PathBuf {
    folder.join(format!("{}.release", name(slot)))
}

/// The counter of the release that a slot came from; 0 when it has none that verifies.
fn counter_of(folder: &Path, slot: Slot, trust: &Trust) -> u64 {
    let payload = std::fs::read(origin(folder, slot)).unwrap_or_default();
    let release = ReleaseMsg::decode(&payload).ok().and_then(|message| trust.verify_known(&message).ok());
    release.map_or(0, |release| release.manifest().counter)
}

/// Writes a file of a bundle and makes it durable. `name` was checked to stay inside.
pub(crate) fn write_into(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    replace_file(&path, bytes).with_context(|| path.display().to_string())?;
    sync_folder(folder).with_context(|| folder.display().to_string())
}
