//! A release on its way in: verified before anything in it is parsed, fetched block by block, assembled from blocks and from what the
//! confirmed model has already. What state the trial is in is [`crate::slots`]' and `omnilabel_keypoints::trial`'s.

mod fetch;
mod keys;

#[cfg(test)]
mod tests;

pub(crate) use fetch::PAUSE;
#[cfg(test)]
pub(crate) use fetch::faults;
pub use fetch::{Fetch, IN_FLIGHT, REQUEST_AGAIN, REQUEST_AGAIN_AT_MOST};
pub use keys::Trust;

use anyhow::{Context, bail};
use ed25519_dalek::{Signature, VerifyingKey};
use omnilabel_keypoints::release::{DOMAIN, KeySetError, PRIVATE_KEY_TAG, ReleaseManifest};
use omnilabel_keypoints::wire::ReleaseMsg;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a release was refused before a byte of it was fetched.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The signature is of no trusted key over these bytes.
    #[error("the signature does not verify against a trusted key")]
    Signature,
    /// The signature under the set of release keys is not the root key's.
    #[error("the signature under the release keys does not verify against the root key")]
    KeysSignature,
    /// The root key signed a set that is not for this device.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// The root key signed two sets with one serial.
    #[error("another set of release keys with the serial {0} is known: sign this one with a larger serial")]
    KeysSerial(u64),
    /// Hex digits that are no point of the curve.
    #[error("one of the release keys is no Ed25519 key")]
    KeysShape,
    /// The set that the device had cannot be read.
    #[error("the release keys cannot be read: a release with the set of keys is needed")]
    KeysMissing,
    /// A new set cannot be kept.
    #[error("{path}: the new release keys cannot be kept: {source}")]
    KeysFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Signed, but not a manifest.
    #[error("the signed manifest is not of the expected shape: {0}")]
    Manifest(#[from] serde_json::Error),
}

/// A manifest whose signature is good. There is no other way to make one than [`VerifiedRelease::verify`].
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedRelease {
    manifest: ReleaseManifest,
}

impl VerifiedRelease {
    /// Checks the signature over the exact bytes under the domain string, and only then reads them.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(message: &ReleaseMsg, key: &VerifyingKey) -> Result<Self, Refusal> {
        let bytes: [u8; 64] = message.signature.as_slice().try_into().map_err(|_| Refusal::Signature)?;
        let signed = [DOMAIN, message.manifest.as_slice()].concat();
        key.verify_strict(&signed, &Signature::from_bytes(&bytes)).map_err(|_| Refusal::Signature)?;
        Ok(Self { manifest: serde_json::from_slice(&message.manifest)? })
    }

    /// What was signed.
    pub fn manifest(&self) -> &ReleaseManifest {
        &self.manifest
    }
}

/// Whether the disk or the system failed, which says nothing about a release and may pass: no room, a quota, a medium that does not answer
/// or takes no writes, no descriptors. What a path, a length or a missing file of a manifest brings about on a sound disk is not counted.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| !is_of_content(error.kind()))
}

fn is_of_content(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof
            | ErrorKind::FileTooLarge
    )
}

/// Reads a public key: 64 hex digits.
///
/// # Errors
/// Names the file and what was expected.
pub fn read_public_key(path: &Path) -> anyhow::Result<VerifyingKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the root public key", path.display()))?;
    let text = text.trim();
    if path.extension().is_some_and(|end| end == "key") || text.starts_with(PRIVATE_KEY_TAG) {
        bail!("{}: this is a private key, which no device is to have; expected the root key's release.pub", path.display());
    }
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{}: expected a public Ed25519 key of 64 hex digits", path.display());
    }
    public_key(text).with_context(|| format!("{}: not a point of the Ed25519 curve", path.display()))
}

/// A key of 64 hex digits.
fn public_key(text: &str) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(&omnilabel_bundle::unhex(text)?.try_into().ok()?).ok()
}
