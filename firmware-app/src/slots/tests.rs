//! Whatever happens to the state on disk, the device starts with a model that verifies, or says why not.

use super::*;
use crate::testing::{bundle, key, release, sign, trust};
use omnilabel_keypoints::trial::Phase;
use omnilabel_keypoints::wire::Encoding;

fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("bundle");
    bundle(&source, "first", 1, 500);
    let public = folder.path().join("public");
    std::fs::write(&public, omnilabel_bundle::hex(key().verifying_key().as_bytes())).unwrap();
    Slots::install(&folder.path().join("state"), &source, Some(&public)).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir) -> anyhow::Result<(Slots, Bundle)> {
    Slots::open(&folder.path().join("state"), &trust(&folder.path().join("state")))
}

/// The device confirmed release 4 in slot B.
fn updated() -> tempfile::TempDir {
    let folder = installed();
    let (mut slots, _) = open(&folder).unwrap();
    let next = bundle(&slots.path(Slot::B), "second", 2, 700);
    let (manifest, _) = release(&next, 4);
    slots.keep_offer(&crate::publish::encode(&sign(&manifest, &key()), Encoding::Cbor).unwrap()).unwrap();
    slots.set(State { phase: Phase::Probation { counter: 4, frames_left: 1 }, ..slots.state() }).unwrap();
    slots.set(State { confirmed: Slot::B, confirmed_counter: 4, phase: Phase::Idle, highest: 4, ..State::provisioned(Slot::B) }).unwrap();
    slots.note_origin(Slot::B).unwrap();
    folder
}

#[test]
fn an_installed_model_opens_and_is_not_installed_twice() {
    let folder = installed();
    let (slots, model) = open(&folder).unwrap();
    assert_eq!((slots.state(), slots.recovered()), (State::provisioned(Slot::A), None));
    assert_eq!(model.manifest().name, "first");
    let again = Slots::install(&folder.path().join("state"), &folder.path().join("bundle"), None).unwrap_err();
    assert!(again.to_string().contains("installed already"), "{again}");
    assert_eq!(crate::update::read_public_key(&folder.path().join("state").join(ROOT_KEY)).unwrap(), key().verifying_key());
}

#[test]
fn a_model_is_installed_in_the_place_of_damaged_ones_and_the_order_of_releases_stays() {
    let folder = updated();
    let (state, bundle) = (folder.path().join("state"), folder.path().join("bundle"));
    let install = |key: Option<&Path>| Slots::install(&state, &bundle, key).map_err(|error| error.to_string());
    assert!(install(None).unwrap_err().contains("installed already"));
    let damage = |slot: &str| {
        let path = state.join(slot).join("weights.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    damage("b");
    assert!(install(None).unwrap_err().contains("installed already"), "the one before still works");
    damage("a");
    assert!(open(&folder).unwrap_err().to_string().contains("no slot has a model that verifies"));
    // Not while somebody may write there, and not for another owner.
    let held = lock(&state).unwrap();
    assert!(install(None).unwrap_err().contains("another omnilabel-edge runs"));
    drop(held);
    let other = folder.path().join("other.pub");
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[3; 32]).verifying_key();
    std::fs::write(&other, omnilabel_bundle::hex(stranger.as_bytes())).unwrap();
    assert!(install(Some(&other)).unwrap_err().contains("another root key"));
    std::fs::write(state.join("outbox.seen"), "stays").unwrap();

    install(None).unwrap();
    let (slots, model) = open(&folder).unwrap();
    assert_eq!((model.manifest().name.as_str(), slots.recovered()), ("first", None));
    let now = slots.state();
    assert_eq!((now.confirmed_counter, now.highest, now.floor()), (0, 4, 4), "an older release is not taken again");
    assert!(state.join("outbox.seen").exists());
    assert_eq!(crate::update::read_public_key(&state.join(ROOT_KEY)).unwrap(), key().verifying_key());
}

#[test]
fn nothing_installed_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.contains("model install"), "{error}");
}

#[test]
fn a_flipped_bit_anywhere_in_the_state_never_means_another_state() {
    let folder = updated();
    let path = folder.path().join("state").join(STATE);
    let good = std::fs::read(&path).unwrap();
    let state = open(&folder).unwrap().0.state();
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 1 << (index % 8);
        std::fs::write(&path, &bad).unwrap();
        let (slots, model) = open(&folder).unwrap();
        // Either the flip changed nothing that is read (white space), or the state before it was taken, whose probation may have ended in any
        // way: the release is taken again.
        let first = slots.state() == State::provisioned(Slot::A) && model.manifest().name == "first";
        assert!(first && slots.recovered().is_some() || slots.state() == state, "byte {index}: {:?}", slots.state());
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(open(&folder).unwrap().0.recovered().is_some());
    assert_eq!(open(&folder).unwrap().0.recovered(), None, "what was found is the state from now on");
}

#[test]
fn without_any_state_the_newest_model_that_verifies_is_taken() {
    let folder = updated();
    let state = folder.path().join("state");
    for file in [STATE, OLD] {
        std::fs::write(state.join(file), "{}").unwrap();
    }
    let (slots, model) = open(&folder).unwrap();
    assert_eq!((model.manifest().name.as_str(), slots.state().confirmed_counter, slots.state().highest), ("second", 4, 4));
    assert!(slots.recovered().unwrap().contains(STATE));
    // What was found is the state from now on.
    assert_eq!(open(&folder).unwrap().0.state(), slots.state());
}

#[test]
fn what_is_on_trial_or_was_refused_is_never_taken_for_a_proven_model() {
    let folder = installed();
    let state = folder.path().join("state");
    let (slots, _) = open(&folder).unwrap();
    slots.begin_trial(Slot::B).unwrap();
    bundle(&slots.path(Slot::B), "on trial", 2, 700);
    let damage = || std::fs::write(state.join("a/weights.safetensors"), "rot").unwrap();
    let good = std::fs::read(state.join("a/weights.safetensors")).unwrap();
    let good_state = std::fs::read(state.join(STATE)).unwrap();
    damage();
    assert!(format!("{:#}", open(&folder).unwrap_err()).contains("slot b was on trial"));
    std::fs::write(state.join("a/weights.safetensors"), &good).unwrap();
    std::fs::write(state.join(STATE), "{}").unwrap();
    assert_eq!(open(&folder).unwrap().1.manifest().name, "first");

    // A kill in the middle of a revert: the mark is there, and the next opening finishes.
    std::fs::write(state.join(STATE), &good_state).unwrap();
    slots.begin_trial(Slot::B).unwrap();
    bundle(&slots.path(Slot::B), "refused", 2, 700);
    open(&folder).unwrap();
    assert!(!slots.path(Slot::B).exists() && !trial_mark(&state, Slot::B).exists());

    // What was confirmed before is not on trial: it stays.
    bundle(&slots.path(Slot::B), "before", 3, 700);
    slots.discard(Slot::B).unwrap();
    damage();
    assert_eq!(open(&folder).unwrap().1.manifest().name, "before");
}

#[test]
fn a_kill_between_confirmation_and_its_mark_leaves_the_confirmed_model() {
    let folder = updated();
    let (slots, _) = open(&folder).unwrap();
    slots.begin_trial(Slot::B).unwrap();
    assert_eq!(open(&folder).unwrap().1.manifest().name, "second");
    assert!(!trial_mark(slots.folder(), Slot::B).exists());
}

#[test]
fn a_damaged_confirmed_model_gives_way_to_the_other_slot_and_two_damaged_ones_to_an_error() {
    let folder = updated();
    let weights = |slot: &str| folder.path().join("state").join(slot).join("weights.safetensors");
    let mut bytes = std::fs::read(weights("b")).unwrap();
    bytes[5] ^= 1;
    std::fs::write(weights("b"), &bytes).unwrap();
    let (slots, model) = open(&folder).unwrap();
    assert_eq!(model.manifest().name, "first");
    assert!(slots.recovered().unwrap().contains("weights.safetensors"));
    std::fs::remove_file(weights("a")).unwrap();
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.contains("no slot has a model that verifies"), "{error}");
}
