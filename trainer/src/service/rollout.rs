//! The way out: the retained signed manifest, and its blocks on request, each once for all who wait for it.

use crate::service::sign::SignedKeys;
use crate::service::store::ledger::ReleaseRow;
use omnilabel_keypoints::release::ReleaseManifest;
use omnilabel_keypoints::wire::{BlockRequest, Encoding, Message, ReleaseMsg, VERSION};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A block that was sent is not sent again for this long: the first requests of a fleet come together.
pub const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// Why a release cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file changed since it was signed.
    #[error("{path}: block {sha256} at byte {offset} has another hash than was signed")]
    Changed {
        /// The file.
        path: PathBuf,
        /// The block.
        sha256: String,
        /// Where.
        offset: u64,
    },
    /// The stored manifest is not one.
    #[error("release {counter}: {message}")]
    Manifest {
        /// Which.
        counter: u64,
        /// What is wrong.
        message: String,
    },
}

#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    offset: u64,
    bytes: usize,
}

/// The newest release, ready to be served.
#[derive(Debug)]
pub struct Rollout {
    counter: u64,
    message: Box<ReleaseMsg>,
    blocks: HashMap<String, Place>,
    queue: VecDeque<String>,
    queued: HashSet<String>,
    sent: HashMap<String, Instant>,
}

impl Rollout {
    /// Indexes the blocks of a release, which travels with `keys`.
    ///
    /// # Errors
    /// [`RolloutError::Manifest`].
    pub fn new(release: &ReleaseRow, keys: Option<&SignedKeys>) -> Result<Self, RolloutError> {
        let counter = release.counter();
        let refuse = |message: String| RolloutError::Manifest { counter, message };
        let manifest: ReleaseManifest = serde_json::from_slice(&release.manifest).map_err(|e| refuse(e.to_string()))?;
        let long = || refuse("longer than a message can be".to_owned());
        let mut message = ReleaseMsg {
            version: VERSION,
            manifest: heapless::Vec::from_slice(&release.manifest).map_err(|_| long())?,
            signature: heapless::Vec::from_slice(&release.signature).map_err(|_| long())?,
            shadow_secs: 60 * u32::from(release.waves().map_err(|e| refuse(e.to_string()))?.shadow_minutes),
            ..ReleaseMsg::default()
        };
        if let Some(keys) = keys {
            keys.attach(&mut message).map_err(|error| refuse(error.to_string()))?;
        }
        let root = PathBuf::from(&release.bundle);
        let mut blocks = HashMap::new();
        for (index, file) in manifest.files.iter().enumerate() {
            let mut offset = 0;
            for sha256 in manifest.blocks_of(index) {
                let bytes = u64::from(manifest.block_bytes).min(file.bytes.saturating_sub(offset)) as usize;
                blocks.insert(sha256.as_str().to_owned(), Place { path: root.join(file.path.as_str()), offset, bytes });
                offset += bytes as u64;
            }
        }
        Ok(Self { counter, message: Box::new(message), blocks, queue: VecDeque::new(), queued: HashSet::new(), sent: HashMap::new() })
    }

    /// The release's counter.
    pub const fn counter(&self) -> u64 {
        self.counter
    }

    /// What is published, retained, on `…/release/{channel}`.
    ///
    /// # Errors
    /// [`RolloutError::Manifest`].
    pub fn message(&self) -> Result<Vec<u8>, RolloutError> {
        let mut buffer = vec![0; ReleaseMsg::MAX_BYTES];
        let refuse = |message: String| RolloutError::Manifest { counter: self.counter, message };
        let length = self.message.encode(Encoding::Cbor, &mut buffer).map_err(|e| refuse(e.to_string()))?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Says how many thousandths of the fleet have to wait; whether that is new.
    pub fn hold_back(&mut self, waiting: u16) -> bool {
        std::mem::replace(&mut self.message.waiting, waiting) != waiting
    }

    /// Queues the wanted blocks that this release has, that do not wait already and were not sent a moment ago. The queue is
    /// bounded by the release's number of blocks. Returns how many are unknown.
    pub fn request(&mut self, request: &BlockRequest, now: Instant) -> usize {
        let mut unknown = 0;
        for sha256 in &request.blocks {
            let name = sha256.as_str();
            if !self.blocks.contains_key(name) {
                unknown += 1;
            } else if !self.queued.contains(name) && self.sent.get(name).is_none_or(|at| now.duration_since(*at) >= REPEAT_AFTER) {
                self.queued.insert(name.to_owned());
                self.queue.push_back(name.to_owned());
            }
        }
        unknown
    }

    /// Whether a block waits to be sent.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next block to send, with its name; checked against the signed hash.
    ///
    /// # Errors
    /// [`RolloutError::Io`], [`RolloutError::Changed`]; the block is then out of the queue.
    pub fn next(&mut self, now: Instant) -> Option<Result<(String, Vec<u8>), RolloutError>> {
        let name = self.queue.pop_front()?;
        self.queued.remove(&name);
        let place = self.blocks.get(&name)?;
        let read = || {
            let mut file = std::fs::File::open(&place.path)?;
            file.seek(SeekFrom::Start(place.offset))?;
            let mut bytes = vec![0; place.bytes];
            file.read_exact(&mut bytes).map(|()| bytes)
        };
        Some(match read() {
            Err(source) => Err(RolloutError::Io { path: place.path.clone(), source }),
            Ok(bytes) if omnilabel_bundle::hex(&Sha256::digest(&bytes)) != name => {
                Err(RolloutError::Changed { path: place.path.clone(), sha256: name, offset: place.offset })
            }
            Ok(bytes) => {
                self.sent.insert(name.clone(), now);
                Ok((name, bytes))
            }
        })
    }
}
