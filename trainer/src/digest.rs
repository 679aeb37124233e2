//! Digests of files and of values.

use omnilabel_bundle::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// SHA-256 of a file.
pub(crate) fn file_sha256(path: &Path) -> std::io::Result<String> {
    Ok(hex(&Sha256::digest(std::fs::read(path)?)))
}

/// The first 16 hexadecimal digits of the SHA-256 of a value's JSON.
pub(crate) fn digest(value: &impl Serialize) -> String {
    // Only a map with keys that are no strings fails, and there is none.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut hash = hex(&Sha256::digest(text));
    hash.truncate(16);
    hash
}
