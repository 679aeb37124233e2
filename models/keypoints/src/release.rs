//! What is signed, and the order of versions. Signature checking itself is the device's (`firmware-app`); nothing here is parsed
//! before the signature over the exact bytes is good.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// What stands before the manifest bytes under the signature, so that no other signed thing can pass for a release.
pub const DOMAIN: &[u8] = b"omnilabel release v1\0";
/// What stands before the bytes of a set of release keys under the root key's signature.
pub const KEYS_DOMAIN: &[u8] = b"omnilabel keys v1\0";
/// Counters are below this: whoever has a release key cannot use up all that there are, and every report of one can be stored.
pub const MAX_COUNTER: u64 = 1 << 48;
/// What stands before the digits in the file of a private key, so that it is not taken for a public one: half of all are points of the
/// curve, too.
pub const PRIVATE_KEY_TAG: &str = "omnilabel-private-key ";
/// The most release keys of a set, and the most channels it names.
pub const MAX_KEYS: usize = 8;
/// The largest set of release keys in bytes.
pub const MAX_KEY_SET: usize = 1024;
/// The largest release manifest in bytes.
pub const MAX_MANIFEST: usize = 32 * 1024;
/// The most files of a release.
pub const MAX_FILES: usize = 32;
/// The most blocks of a release, all files together: what fits into [`MAX_MANIFEST`] as hex. With blocks of 1 MiB, 384 MiB.
pub const MAX_BLOCKS: usize = 384;
/// The largest block in bytes: an MQTT packet with room to spare.
pub const MAX_BLOCK_BYTES: u32 = 1 << 20;

/// Where a device stands in the order in which a release goes out, in thousandths of the fleet: by both, so that it is another device's
/// turn first each time. FNV-1a with the last mixing of MurmurHash3: any even spread would do, this one is what everybody computes.
pub const fn turn(device: &str, counter: u64) -> u16 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let (name, counter) = (device.as_bytes(), counter.to_le_bytes());
    let mut i = 0;
    while i < name.len() + counter.len() {
        let byte = if i < name.len() { name[i] } else { counter[i - name.len()] };
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((hash ^ (hash >> 33)) % 1000) as u16
}

/// One file of a release's bundle. JSON is read with std's serde_json at the edges; the type lives here for both sides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleaseFile {
    /// Path inside the bundle, `/`-separated, without `..`.
    pub path: String<96>,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the whole file, lowercase hex.
    pub sha256: String<64>,
}

/// What the fleet is told to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleaseManifest {
    /// Format, 1.
    pub format: u8,
    /// The site it is for.
    pub site: String<64>,
    /// The channel it is for.
    pub channel: String<64>,
    /// Grows with every release of a site and channel.
    pub counter: u64,
    /// Name for people, such as `round-3`.
    pub name: String<64>,
    /// Size of a block in bytes; the last of a file may be shorter.
    pub block_bytes: u32,
    /// Unix milliseconds after which nobody takes it any more; 0: never. A device without a trusted clock relies on the counter.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expires_ms: u64,
    /// Every file of the bundle.
    pub files: Vec<ReleaseFile, MAX_FILES>,
    /// SHA-256 of each block of each file in order, lowercase hex; [`ReleaseManifest::blocks_of`] has those of one file. One list
    /// for all files, so that the manifest stays below 64 KiB on the stack.
    pub blocks: Vec<String<64>, MAX_BLOCKS>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Who may sign releases, under the root key's signature. JSON, as the manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeySet {
    /// Format, 1.
    pub format: u8,
    /// The site it is for.
    pub site: String<64>,
    /// Grows with every set of a site; a device never goes back to an older one.
    pub serial: u64,
    /// Public Ed25519 keys, lowercase hex.
    pub keys: Vec<String<64>, MAX_KEYS>,
    /// The newest release that the owner made, by channel. Counters beyond it that a device accepted do not count: without this
    /// a stolen key could sign the largest counter there is, and no later release would ever be newer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newest: Vec<Newest, MAX_KEYS>,
}

/// The newest release of a channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Newest {
    /// The channel.
    pub channel: String<64>,
    /// The counter of its newest release; 0: there is none.
    pub counter: u64,
}

/// Why a set of release keys under a good signature is not for this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// A format this code does not know.
    #[error("the format {0} of the release keys is not known")]
    Format(u8),
    /// For another site.
    #[error("the release keys are for another site")]
    Site,
    /// Older than what the device knows.
    #[error("the release keys have the serial {offered}, {known} is known")]
    Serial {
        /// The serial of the set.
        offered: u64,
        /// The serial that the device knows.
        known: u64,
    },
    /// No key, or something else than one.
    #[error("key {0} of the release keys is not 64 hex digits")]
    Key(usize),
}

impl KeySet {
    /// The newest release of a channel, if the set names it.
    pub fn newest_of(&self, channel: &str) -> Option<u64> {
        self.newest.iter().find(|newest| newest.channel == channel).map(|newest| newest.counter)
    }

    /// Checks that the set is for `site`, not older than `known`, and well-formed.
    ///
    /// # Errors
    /// See [`KeySetError`].
    pub fn check(&self, site: &str, known: u64) -> Result<(), KeySetError> {
        if self.format != 1 {
            return Err(KeySetError::Format(self.format));
        }
        if self.site != site {
            return Err(KeySetError::Site);
        }
        if self.serial < known.max(1) {
            return Err(KeySetError::Serial { offered: self.serial, known });
        }
        match self.keys.iter().position(|key| !is_digest(key)) {
            Some(index) => Err(KeySetError::Key(index)),
            None if self.keys.is_empty() => Err(KeySetError::Key(0)),
            None => Ok(()),
        }
    }
}

/// Why a verified manifest is not for this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// A format this code does not know.
    #[error("release format {0} is not known")]
    Format(u8),
    /// For another site.
    #[error("the release is for another site")]
    Site,
    /// For another channel.
    #[error("the release is for another channel")]
    Channel,
    /// Not newer than what the device has confirmed or refused.
    #[error("release {offered} is not newer than {known}")]
    Counter {
        /// The counter of the release.
        offered: u64,
        /// The highest counter the device has accepted.
        known: u64,
    },
    /// Beyond all counters.
    #[error("the counter {0} is not below 2⁴⁸")]
    Large(u64),
    /// Its time is over.
    #[error("the release has expired")]
    Expired,
    /// A path leaves the bundle, or a size or count is out of bounds.
    #[error("file {0} of the release has a bad path, size or block list")]
    File(usize),
}

impl ReleaseManifest {
    /// Checks that its time is not over, by a clock that is trusted.
    ///
    /// # Errors
    /// [`ReleaseError::Expired`].
    pub fn check_time(&self, now_ms: u64) -> Result<(), ReleaseError> {
        if self.expires_ms > 0 && now_ms > self.expires_ms { Err(ReleaseError::Expired) } else { Ok(()) }
    }

    /// Checks that the release is for `site` and `channel`, newer than `known`, and well-formed.
    ///
    /// # Errors
    /// See [`ReleaseError`].
    pub fn check(&self, site: &str, channel: &str, known: u64) -> Result<(), ReleaseError> {
        if self.format != 1 {
            return Err(ReleaseError::Format(self.format));
        }
        if self.site != site {
            return Err(ReleaseError::Site);
        }
        if self.channel != channel {
            return Err(ReleaseError::Channel);
        }
        if self.counter >= MAX_COUNTER {
            return Err(ReleaseError::Large(self.counter));
        }
        if self.counter <= known {
            return Err(ReleaseError::Counter { offered: self.counter, known });
        }
        if self.files.is_empty() || self.block_bytes == 0 || self.block_bytes > MAX_BLOCK_BYTES {
            return Err(ReleaseError::File(0));
        }
        let mut end = 0;
        for (index, file) in self.files.iter().enumerate() {
            let repeated = self.files[..index].iter().any(|other| other.path == file.path);
            end += file.block_count(self.block_bytes).min(MAX_BLOCKS as u64 + 1) as usize;
            if repeated || end > self.blocks.len() || !is_inside(&file.path) || !is_digest(&file.sha256) {
                return Err(ReleaseError::File(index));
            }
            if !self.blocks_of(index).iter().all(|block| is_digest(block)) {
                return Err(ReleaseError::File(index));
            }
        }
        if end == self.blocks.len() { Ok(()) } else { Err(ReleaseError::File(self.files.len())) }
    }

    /// The digests of the blocks of file `index`; empty where the list is too short ([`Self::check`] refuses such a manifest).
    pub fn blocks_of(&self, index: usize) -> &[String<64>] {
        let count = |file: &ReleaseFile| usize::try_from(file.block_count(self.block_bytes)).unwrap_or(usize::MAX);
        let Some(file) = self.files.get(index) else { return &[] };
        let start = self.files[..index].iter().fold(0usize, |sum, file| sum.saturating_add(count(file)));
        self.blocks.get(start..start.saturating_add(count(file))).unwrap_or(&[])
    }
}

impl ReleaseFile {
    /// Blocks of `block_bytes` that the file has; the last may be shorter, an empty file has none.
    pub fn block_count(&self, block_bytes: u32) -> u64 {
        self.bytes.div_ceil(u64::from(block_bytes.max(1)))
    }
}

/// Whether `text` is a SHA-256 digest in lowercase hex.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `path` is relative, has no empty, `.` or `..` component and no backslash, colon or NUL.
pub fn is_inside(path: &str) -> bool {
    let outside = |part: &str| part.is_empty() || part == "." || part == "..";
    !path.contains(['\\', '\0', ':']) && !path.split('/').any(outside)
}
