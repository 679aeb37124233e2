//! The blocks of one release. Each is a file under its hash, so that a restart goes on where it was.

use crate::durable::{remove_file, remove_folder, replace_file};
use crate::slots::write_into;
use crate::update::{VerifiedRelease, is_of_content};
use anyhow::{Context, bail};
use nix::errno::Errno;
use omnilabel_bundle::{Bundle, hex};
use omnilabel_keypoints::release::{ReleaseFile, ReleaseManifest};
use omnilabel_keypoints::wire::{BlockRequest, VERSION};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most blocks that are asked for at a time.
pub const IN_FLIGHT: usize = 8;
/// Where no block came for this long, others are asked for. The wait doubles as long as none comes; a slow link has twice a block's time.
pub const REQUEST_AGAIN: Duration = Duration::from_secs(5);
/// The longest such wait.
pub const REQUEST_AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// Where this device could not do its part, it tries again after this, then after twice as long, and so on; tests do not wait so long.
pub(crate) const PAUSE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(60) };
/// The longest such pause: each try may write as much as there is room for, which wears a flash out.
const PAUSE_AT_MOST: Duration = Duration::from_secs(3600);
/// Folder of the blocks below the state folder.
const BLOCKS: &str = "blocks";

/// What is fetched, and where it lies.
#[derive(Clone, Debug)]
pub struct Fetch {
    manifest: Box<ReleaseManifest>,
    blocks: PathBuf,
    /// The confirmed model: files with the same hash are copied from it.
    confirmed: PathBuf,
    /// In the order in which they are asked for: those of the last request stand at the end.
    missing: VecDeque<String>,
    /// Those of the last request.
    asked: BTreeSet<String>,
    /// When they were asked for, or one came.
    quiet_since: Option<Instant>,
    /// When a block came; before that, when the first ones were asked for.
    came_at: Option<Instant>,
    /// How long it may be quiet.
    wait: Duration,
    /// How many are asked for at a time.
    at_a_time: usize,
    /// Before the next try.
    pause: Duration,
}

impl Fetch {
    /// Begins or goes on with fetching `release` into `STATE/blocks`.
    ///
    /// # Errors
    /// See [`Fetch::look`].
    pub fn begin(release: &VerifiedRelease, state_dir: &Path, confirmed: &Path) -> anyhow::Result<Self> {
        let manifest = Box::new(release.manifest().clone());
        // Paths and block lists are sound whoever called; counters and names are the caller's to judge.
        manifest.check(&manifest.site, &manifest.channel, 0)?;
        let mut fetch = Self {
            manifest,
            blocks: state_dir.join(BLOCKS),
            confirmed: confirmed.to_owned(),
            missing: VecDeque::new(),
            asked: BTreeSet::new(),
            quiet_since: None,
            came_at: None,
            wait: REQUEST_AGAIN,
            at_a_time: IN_FLIGHT,
            pause: PAUSE,
        };
        fetch.look()?;
        Ok(fetch)
    }

    /// Looks which blocks are here. What the medium does not give any more is missing, as is what has another hash.
    ///
    /// # Errors
    /// When the folder cannot be used, or the system cannot read a file for now.
    pub fn look(&mut self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.blocks).with_context(|| self.blocks.display().to_string())?;
        let mut missing = BTreeSet::new();
        for (index, file) in self.manifest.files.iter().enumerate() {
            let is_here = match local_copy(&self.confirmed, file) {
                Ok(bytes) => bytes.is_some(),
                Err(error) if is_lost(&error) => false,
                Err(error) => return Err(error).with_context(|| self.confirmed.join(file.path.as_str()).display().to_string()),
            };
            if !is_here {
                missing.extend(self.manifest.blocks_of(index).iter().map(|hash| hash.as_str().to_owned()));
            }
        }
        let wanted = missing.clone();
        for entry in std::fs::read_dir(&self.blocks).with_context(|| self.blocks.display().to_string())? {
            let path = entry.with_context(|| self.blocks.display().to_string())?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match wanted.contains(&name).then(|| read(&path)) {
                Some(Ok(bytes)) if hex(&Sha256::digest(&bytes)) == name => {
                    missing.remove(&name);
                }
                // The one that is fetched takes its place.
                Some(Err(error)) if is_lost(&error) => tracing::warn!(%error, block = name, "the disk has lost a block"),
                Some(Err(error)) if !is_of_content(error.kind()) => return Err(error).with_context(|| path.display().to_string()),
                // Of another release, or torn.
                _ => remove_file(&path).with_context(|| path.display().to_string())?,
            }
        }
        self.missing = missing.into_iter().collect();
        self.restart();
        Ok(())
    }

    /// Counter of the release.
    pub fn counter(&self) -> u64 {
        self.manifest.counter
    }

    /// Blocks that are not here.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Whether every block is here.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// The connection is new: what was asked for may not come.
    pub fn restart(&mut self) {
        self.asked.clear();
        (self.quiet_since, self.came_at, self.wait) = (None, None, REQUEST_AGAIN);
    }

    /// What to ask for now, if anything. What is late is likelier to be on its way than lost: it is asked for again after all others.
    pub fn request(&mut self, now: Instant) -> Option<BlockRequest> {
        let is_quiet = self.quiet_since.is_some_and(|since| now.duration_since(since) >= self.wait);
        if is_quiet && !self.asked.is_empty() {
            self.asked.clear();
            self.at_a_time = (self.at_a_time / 2).max(1);
            self.wait = (2 * self.wait).min(REQUEST_AGAIN_AT_MOST);
        }
        if self.missing.is_empty() || !self.asked.is_empty() {
            return None;
        }
        let count = self.at_a_time.min(self.missing.len());
        let wanted: Vec<String> = self.missing.iter().take(count).cloned().collect();
        self.missing.rotate_left(count);
        self.quiet_since = Some(now);
        self.came_at.get_or_insert(now);
        // A hash of the manifest has 64 digits and IN_FLIGHT is less than a request holds.
        let blocks = wanted.iter().filter_map(|hash| heapless::String::try_from(hash.as_str()).ok()).collect();
        self.asked.extend(wanted);
        Some(BlockRequest { version: VERSION, counter: self.manifest.counter, blocks })
    }

    /// Takes a block. One that is not wanted is ignored, whoever asked for it; one with another hash than its topic says, too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn block(&mut self, hash: &str, bytes: &[u8], now: Instant) -> anyhow::Result<()> {
        let Some(place) = self.missing.iter().position(|missing| missing == hash) else { return Ok(()) };
        if bytes.len() > self.manifest.block_bytes as usize || hex(&Sha256::digest(bytes)) != hash {
            tracing::warn!(hash, bytes = bytes.len(), "a block with another hash than its name is dropped");
            return Ok(());
        }
        let path = self.blocks.join(hash);
        replace_file(&path, bytes).with_context(|| path.display().to_string())?;
        self.missing.remove(place);
        self.asked.remove(hash);
        self.at_a_time = (self.at_a_time + 1).min(IN_FLIGHT);
        self.quiet_since = Some(now);
        if let Some(before) = self.came_at.replace(now) {
            self.wait = (2 * now.duration_since(before)).clamp(REQUEST_AGAIN, REQUEST_AGAIN_AT_MOST);
        }
        Ok(())
    }

    /// How long to wait before what this device could not do is tried again.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (2 * pause).min(PAUSE_AT_MOST);
        pause
    }

    /// Builds the bundle in `slot` from blocks and local files, each file checked by its hash, and opens it.
    ///
    /// # Errors
    /// What does not fit together; the slot is then not usable, which no state calls usable.
    pub fn assemble(&self, slot: &Path) -> anyhow::Result<Bundle> {
        if slot.exists() {
            remove_folder(slot).with_context(|| slot.display().to_string())?;
        }
        for (index, file) in self.manifest.files.iter().enumerate() {
            let bytes = match local_copy(&self.confirmed, file) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => self.join(index, file)?,
                // Its blocks are here, where it was lost when they were looked for.
                Err(error) => self.join(index, file).map_err(|_| {
                    let path = self.confirmed.join(file.path.as_str());
                    anyhow::Error::from(error).context(path.display().to_string())
                })?,
            };
            if bytes.len() as u64 != file.bytes || hex(&Sha256::digest(&bytes)) != file.sha256.as_str() {
                bail!("{}: the blocks do not make the file that was signed", file.path);
            }
            write_into(slot, &file.path, &bytes)?;
        }
        Bundle::open(slot).context("the bundle of the release does not verify")
    }

    fn join(&self, index: usize, file: &ReleaseFile) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for hash in self.manifest.blocks_of(index) {
            let path = self.blocks.join(hash.as_str());
            let block = read(&path).map_err(|error| match error.kind() {
                // It was here when they were looked for: not the release's fault.
                io::ErrorKind::NotFound => io::Error::other("the block is not here any more"),
                _ => error,
            });
            bytes.extend(block.with_context(|| path.display().to_string())?);
            if bytes.len() as u64 > file.bytes {
                bail!("{}: the blocks are longer than the file that was signed", file.path);
            }
        }
        Ok(bytes)
    }

    /// Removes the blocks, after the release was confirmed or given up.
    pub fn clean(state_dir: &Path) {
        let blocks = state_dir.join(BLOCKS);
        match remove_folder(&blocks) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %blocks.display(), "cannot remove fetched blocks");
            }
            _ => {}
        }
    }
}

/// The bytes of the confirmed model's file of the same path, if they are the ones that were signed.
///
/// # Errors
/// When it may be there and cannot be read.
fn local_copy(confirmed: &Path, file: &ReleaseFile) -> io::Result<Option<Vec<u8>>> {
    let path = confirmed.join(file.path.as_str());
    let found = std::fs::metadata(&path).and_then(|meta| if meta.len() == file.bytes { read(&path).map(Some) } else { Ok(None) });
    match found {
        Ok(bytes) => Ok(bytes.filter(|bytes| hex(&Sha256::digest(bytes)) == file.sha256.as_str())),
        Err(error) if is_of_content(error.kind()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the medium does not give a file any more, in the words of block layers and file systems: that lasts. A want of descriptors,
/// memory or rights does not.
fn is_lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EIO | Errno::ENODATA | Errno::EILSEQ | Errno::EBADMSG))
}

/// Reads a file. In tests each can be made to fail.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    #[cfg(test)]
    faults::check(path)?;
    std::fs::read(path)
}

/// Files that cannot be read, under test.
#[cfg(test)]
pub(crate) mod faults {
    use nix::errno::Errno;
    use std::collections::HashMap;
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};

    /// Open, a file keeps its number.
    static FAULTS: LazyLock<Mutex<HashMap<PathBuf, (File, Errno)>>> = LazyLock::new(Mutex::default);

    /// Lets every read of a file fail, but not of one that takes its place.
    pub(crate) fn set(path: &Path, error: Errno) {
        let file = File::open(path).unwrap();
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), (file, error));
    }

    /// It can be read again.
    pub(crate) fn mend(path: &Path) {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    pub(super) fn check(path: &Path) -> io::Result<()> {
        let faults = FAULTS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, error)) = faults.get(path) else { return Ok(()) };
        let is_same = std::fs::metadata(path)?.ino() == file.metadata()?.ino();
        if is_same { Err(io::Error::from_raw_os_error(*error as i32)) } else { Ok(()) }
    }
}
