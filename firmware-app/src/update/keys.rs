//! Whose signature under a release counts: the root key's, until it has signed a set of release keys; from then on those of the newest set.
//! The root key can then stay offline, and a release key that was lost or stolen is taken out by the next set.

use super::{Refusal, VerifiedRelease};
use crate::durable::replace_file;
use ed25519_dalek::{Signature, VerifyingKey};
use omnilabel_keypoints::release::{KEYS_DOMAIN, KeySet};
use omnilabel_keypoints::wire::{Message, ReleaseMsg};
use std::path::{Path, PathBuf};

/// The newest set, as the message that brought it, under its root signature.
const FILE: &str = "keys.cbor";

/// The keys that a device trusts.
#[derive(Clone, Debug)]
pub struct Trust {
    root: VerifyingKey,
    site: String,
    channel: String,
    /// Where the newest set is kept.
    file: PathBuf,
    set: Set,
    /// No older set counts.
    least: u64,
}

#[derive(Clone, Debug)]
enum Set {
    /// The root key signs releases itself.
    None,
    Known(Known),
    /// There was one and it cannot be read: a set under the root's signature is needed first.
    Unreadable,
}

#[derive(Clone, Debug)]
struct Known {
    serial: u64,
    newest: Option<u64>,
    keys: Vec<VerifyingKey>,
    /// The JSON of the set.
    json: Vec<u8>,
}

impl Trust {
    /// The root key with the set that `folder` holds.
    pub fn open(folder: &Path, root: VerifyingKey, site: &str, channel: &str) -> Self {
        let file = folder.join(FILE);
        let (site, channel) = (site.to_owned(), channel.to_owned());
        let mut trust = Self { root, site, channel, file, set: Set::None, least: 0 };
        match std::fs::read(&trust.file) {
            Ok(bytes) => {
                let read = ReleaseMsg::decode(&bytes).map_err(|error| error.to_string());
                trust.set = match read.and_then(|message| trust.read(&message).map_err(|error| error.to_string())) {
                    Ok(known) => Set::Known(known),
                    Err(error) => {
                        tracing::error!(file = %trust.file.display(), error, "the release keys cannot be read; releases need a set of keys with them");
                        Set::Unreadable
                    }
                };
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(file = %trust.file.display(), %error, "the release keys cannot be read; releases need a set of keys with them");
                trust.set = Set::Unreadable;
            }
        }
        trust
    }

    /// Says that the set `serial` was in use: none that is older counts, even if the newer one's file is gone.
    pub fn not_before(&mut self, serial: u64) {
        self.least = serial;
        if self.serial().unwrap_or(0) < serial {
            tracing::error!(file = %self.file.display(), serial, "the release keys are gone; releases need a set of keys with them");
            self.set = Set::Unreadable;
        }
    }

    /// Serial of the set in use; none while the root key signs itself.
    pub fn serial(&self) -> Option<u64> {
        if let Set::Known(known) = &self.set { Some(known.serial) } else { None }
    }

    /// The newest release that counts of those that were taken under earlier sets, if the set in use says so.
    pub fn newest(&self) -> Option<u64> {
        if let Set::Known(known) = &self.set { known.newest } else { None }
    }

    /// A message's set of keys: under the root's signature, for this site, none older than one that was in use.
    fn read(&self, message: &ReleaseMsg) -> Result<Known, Refusal> {
        let bytes: [u8; 64] = message.keys_signature.as_slice().try_into().map_err(|_| Refusal::KeysSignature)?;
        let signed = [KEYS_DOMAIN, message.keys.as_slice()].concat();
        self.root.verify_strict(&signed, &Signature::from_bytes(&bytes)).map_err(|_| Refusal::KeysSignature)?;
        let set: KeySet = serde_json::from_slice(&message.keys)?;
        set.check(&self.site, self.least.max(self.serial().unwrap_or(0)))?;
        let keys: Option<Vec<VerifyingKey>> = set.keys.iter().map(|key| super::public_key(key)).collect();
        let (keys, json) = (keys.ok_or(Refusal::KeysShape)?, message.keys.to_vec());
        Ok(Known { serial: set.serial, newest: set.newest_of(&self.channel), keys, json })
    }

    /// Verifies a release. A newer set of keys that comes with it is kept first, so that an older one never counts again.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(&mut self, message: &ReleaseMsg) -> Result<VerifiedRelease, Refusal> {
        if !message.keys.is_empty() {
            let read = self.read(message)?;
            match &self.set {
                Set::Known(known) if known.json == read.json => {}
                Set::Known(known) if known.serial == read.serial => return Err(Refusal::KeysSerial(read.serial)),
                _ => {
                    self.keep(message).map_err(|source| Refusal::KeysFile { path: self.file.clone(), source })?;
                    tracing::info!(serial = read.serial, keys = read.keys.len(), "a new set of release keys, signed by the root key");
                    self.set = Set::Known(read);
                }
            }
        }
        self.verify_known(message)
    }

    /// Verifies a release by the keys that are known.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify_known(&self, message: &ReleaseMsg) -> Result<VerifiedRelease, Refusal> {
        let keys = match &self.set {
            Set::None => std::slice::from_ref(&self.root),
            Set::Known(known) => known.keys.as_slice(),
            Set::Unreadable => return Err(Refusal::KeysMissing),
        };
        keys.iter()
            .find_map(|key| VerifiedRelease::verify(message, key).ok())
            // Its error, where no key fits: a set has one at least.
            .map_or_else(|| VerifiedRelease::verify(message, &keys[0]), Ok)
    }

    fn keep(&self, message: &ReleaseMsg) -> std::io::Result<()> {
        let alone = ReleaseMsg { manifest: heapless::Vec::new(), signature: heapless::Vec::new(), ..message.clone() };
        let bytes = crate::publish::encode(&alone, omnilabel_keypoints::wire::Encoding::Cbor).map_err(std::io::Error::other)?;
        replace_file(&self.file, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{key, key_set, sign, with_keys};
    use ed25519_dalek::SigningKey;
    use omnilabel_keypoints::release::ReleaseManifest;

    fn release_key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    /// A release signed by `signer`, with the set `serial` of `keys` under `root`'s signature.
    fn message(signer: &SigningKey, root: &SigningKey, site: &str, serial: u64, keys: &[&SigningKey]) -> ReleaseMsg {
        with_keys(sign(&manifest(), signer), root, &key_set(site, serial, keys, None))
    }

    fn manifest() -> ReleaseManifest {
        ReleaseManifest { format: 1, counter: 7, ..ReleaseManifest::default() }
    }

    #[test]
    fn keys_follow_the_root_and_never_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let (root, a, b) = (key(), release_key(21), release_key(22));
        let open = || Trust::open(folder.path(), root.verifying_key(), "yard", "stable");
        let mut trust = open();
        trust.verify(&sign(&manifest(), &root)).unwrap();
        assert!(trust.verify(&sign(&manifest(), &a)).is_err(), "a key that nobody vouches for");
        assert!(trust.verify(&message(&a, &a, "yard", 1, &[&a])).is_err(), "a set that its own key signed");
        assert!(trust.verify(&message(&a, &root, "field", 1, &[&a])).is_err(), "another site's set");
        assert_eq!(trust.serial(), None, "nothing that was refused is kept");

        trust.verify(&message(&a, &root, "yard", 3, &[&a, &b])).unwrap();
        for mut trust in [trust, open()] {
            assert_eq!(trust.serial(), Some(3));
            for signer in [&a, &b] {
                trust.verify(&sign(&manifest(), signer)).unwrap();
                trust.verify_known(&sign(&manifest(), signer)).unwrap();
            }
            assert!(trust.verify(&sign(&manifest(), &root)).is_err(), "with release keys, the root key signs keys alone");
            let other = trust.verify(&message(&a, &root, "yard", 3, &[&a])).unwrap_err().to_string();
            assert!(other.contains("another set") && other.contains('3'), "{other}");
            let older = trust.verify(&message(&a, &root, "yard", 2, &[&a])).unwrap_err().to_string();
            assert!(older.contains('2') && older.contains('3'), "{older}");
        }
        // `a` was stolen: the next set is without it, and takes it out even with a release that it did not sign.
        let mut trust = open();
        trust.verify(&message(&b, &root, "yard", 4, &[&b])).unwrap();
        assert!(open().verify(&sign(&manifest(), &a)).is_err());
        assert!(open().verify(&message(&a, &root, "yard", 3, &[&a, &b])).is_err(), "the old set is played again");
        open().verify(&sign(&manifest(), &b)).unwrap();
    }

    #[test]
    fn a_set_counts_although_the_release_beside_it_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (root, a, b) = (key(), release_key(21), release_key(22));
        let mut trust = Trust::open(folder.path(), root.verifying_key(), "yard", "stable");
        trust.verify(&message(&a, &root, "yard", 1, &[&a])).unwrap();
        assert!(trust.verify(&message(&a, &root, "yard", 2, &[&b])).is_err());
        assert_eq!(trust.serial(), Some(2));
    }

    #[test]
    fn without_its_file_no_older_set_counts_either() {
        let folder = tempfile::tempdir().unwrap();
        let (root, a, b) = (key(), release_key(21), release_key(22));
        let mut trust = Trust::open(folder.path(), root.verifying_key(), "yard", "stable");
        trust.not_before(2);
        assert!(trust.verify(&sign(&manifest(), &root)).is_err(), "the root key signs releases again");
        assert!(trust.verify(&message(&a, &root, "yard", 1, &[&a])).is_err(), "a stolen key comes back with its set");
        trust.verify(&message(&b, &root, "yard", 2, &[&b])).unwrap();
        trust.not_before(2);
        assert_eq!(trust.serial(), Some(2));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_set_or_its_file_trusts_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let (root, a) = (key(), release_key(21));
        let good = message(&a, &root, "yard", 1, &[&a]);
        for byte in 0..good.keys.len() + good.keys_signature.len() {
            let mut bad = good.clone();
            let (set, signature) = (&mut bad.keys, &mut bad.keys_signature);
            *(if byte < set.len() { &mut set[byte] } else { &mut signature[byte - good.keys.len()] }) ^= 1 << (byte % 8);
            assert!(Trust::open(folder.path(), root.verifying_key(), "yard", "stable").verify(&bad).is_err(), "byte {byte}");
        }
        Trust::open(folder.path(), root.verifying_key(), "yard", "stable").verify(&good).unwrap();
        let file = folder.path().join(FILE);
        let bytes = std::fs::read(&file).unwrap();
        for byte in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1 << (byte % 8);
            std::fs::write(&file, &damaged).unwrap();
            let mut trust = Trust::open(folder.path(), root.verifying_key(), "yard", "stable");
            // Fields around the set may change without harm; the set itself and its signature may not.
            if trust.serial().is_none() {
                assert!(trust.verify(&sign(&manifest(), &root)).is_err(), "byte {byte}: the root key signs releases again");
                assert!(trust.verify(&sign(&manifest(), &a)).is_err(), "byte {byte}");
                trust.verify(&good).unwrap();
            } else {
                trust.verify(&sign(&manifest(), &a)).unwrap();
            }
        }
    }
}
