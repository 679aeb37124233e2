//! The outbox: every label lies on disk until the collector's acknowledgement names it (DESIGN.md choice 4).
//!
//! CRC-framed segment files, appended and fsynced in groups. *committed* means fsynced here. A label leaves the outbox when the
//! collector has it, or when the byte budget evicts it, which is counted. Frames are evicted before labels: first the oldest segment
//! with frames loses them; only when no closed segment has frames left, the oldest labels go. It knows no clock and no network.
//!
//! A segment that the disk gives only in parts is damaged where it does not; the others go on.

mod salvage;
mod segment;
mod sender;
mod storage;
#[cfg(test)]
mod tests;

pub use segment::Entry;
pub use sender::{RESEND_FIRST, RESEND_GAP, RESEND_LAST, SEND_WINDOW, Sender};
pub use storage::{Disk, Storage};

use omnilabel_keypoints::wire::{AckMsg, LabelKey};
use salvage::Salvage;
use segment::Extent;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Why the outbox could not do something. The outbox stays usable after every one of them.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The storage failed.
    #[error("outbox: cannot {operation} {file}: {source}")]
    Storage {
        /// What was tried.
        operation: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// No randomness for a new epoch.
    #[error("outbox: no random epoch: {0}")]
    Random(String),
    /// A label with its frame that no message can carry.
    #[error("outbox: a record of {found} bytes, at most {limit}")]
    Size {
        /// Bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

impl OutboxError {
    /// Whether the same may succeed later: when there is room on the disk again.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Random(_))
    }
}

/// How much the outbox keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all segments; the oldest frames, then the oldest labels are evicted beyond it.
    pub max_bytes: u64,
    /// A segment is closed at this size.
    pub segment_bytes: u64,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// A new outbox was made, with a new epoch.
    pub created: bool,
    /// Bytes of torn tails that were cut off; none of them was committed.
    pub torn_bytes: u64,
    /// Bytes of damage, after which the segment goes on, which were committed or which cannot be read.
    pub damaged_bytes: u64,
    /// Labels that the damage took and that are not known to be stored, at most.
    pub lost: u64,
    /// Segments that were damaged or of another epoch: as they were, under another name. Where the file system has no links, a copy with
    /// zeros where a part cannot be read; where there is no room for it, none.
    pub set_aside: Vec<String>,
}

const META: &str = "outbox.json";
/// Room that is kept free: a full disk takes no label, but what makes room has to be written.
const RESERVE: &str = "reserve";
/// The most of it; a segment without its frames is to fit.
const RESERVE_BYTES: u64 = 1 << 20;
/// How the names of files end that were set aside: they are no segments any more.
const ASIDE: &str = ".aside";

/// What must outlive the segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    epoch: u64,
    /// The first sequence that may be given again: sequences below it were used. On disk, sequences below it were committed.
    next: u64,
    evicted: u64,
    /// Segments that end at or before this sequence are to be removed.
    evicted_through: u64,
    #[serde(default)]
    frames_evicted: u64,
    /// Records up to this sequence are to lose their JPEGs.
    #[serde(default)]
    frames_evicted_through: u64,
    collector: u64,
    /// What the collector has, contiguously.
    watermark: u64,
}

#[derive(Debug)]
struct Segment {
    name: String,
    first: u64,
    /// Bytes of valid records and the header.
    bytes: u64,
    /// Sequence after the last record.
    end: u64,
    /// Records that are not acknowledged.
    unacked: u64,
    /// Bytes of all JPEGs.
    jpeg: u64,
}

impl Meta {
    fn new(epoch: u64) -> Self {
        Self { epoch, next: 1, evicted: 0, evicted_through: 0, frames_evicted: 0, frames_evicted_through: 0, collector: 0, watermark: 0 }
    }
}

/// The outbox over some storage.
pub struct Outbox<S> {
    storage: S,
    limits: Limits,
    meta: Meta,
    /// Oldest first; the last one is appended to.
    segments: VecDeque<Segment>,
    /// Files that were set aside, with their bytes, in the order in which they go: they are kept while there is room.
    asides: VecDeque<(String, u64)>,
    /// Committed records that are not acknowledged.
    index: BTreeMap<u64, Extent>,
    /// Appended since the last commit.
    uncommitted: Vec<Extent>,
    /// The bytes of `uncommitted`: after a failed sync the system may forget them, so they are written anew before the next one.
    tail: Vec<u8>,
    /// Whether the file's end is not known to be `tail`.
    dirty: bool,
    /// Whether [`RESERVE`] is there.
    reserved: bool,
    /// Commits until it is tried again: on a disk that stays full that would only wear it out.
    reserve_after: u32,
}

fn failed(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> OutboxError {
    let file = file.to_owned();
    move |source| OutboxError::Storage { operation, file, source }
}

impl<S: Storage> Outbox<S> {
    /// Opens the outbox and repairs what a power cut left.
    ///
    /// # Errors
    /// [`OutboxError::Storage`], [`OutboxError::Random`].
    pub fn open(mut storage: S, limits: Limits) -> Result<(Self, Recovery), OutboxError> {
        let mut recovery = Recovery::default();
        let names = storage.list().map_err(failed("list", "the folder"))?;
        let known = if names.iter().any(|name| name == META) { read_meta(&mut storage)? } else { None };
        let (mut found, mut useless) = (Vec::new(), Vec::new());
        // What a replacement did not finish.
        for name in names.iter().filter(|name| name.ends_with(".new")) {
            storage.remove(name).map_err(failed("remove", name))?;
        }
        for name in names.iter().filter(|name| name.ends_with(".seg")) {
            let header = match storage.read_at(name, 0, segment::HEADER) {
                Ok(header) => header,
                // Without a whole header nothing in it was committed: the header is synced before the first record's commit ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    storage.remove(name).map_err(failed("remove", name))?;
                    continue;
                }
                Err(error) if salvage::is_of_the_file(&error) => Vec::new(),
                Err(error) => return Err(failed("read", name)(error)),
            };
            match segment::read_header(&header).or_else(|| segment::read_name(name)) {
                Some((epoch, first)) => found.push((epoch, first, name.clone())),
                None => useless.push(name),
            }
        }
        // Without its meta file the outbox goes on with the epoch of its segments, and only the counts are lost.
        let meta = match (known, found.iter().map(|(epoch, ..)| *epoch).max()) {
            (Some(meta), _) => meta,
            (None, Some(epoch)) => Meta::new(epoch),
            (None, None) => {
                recovery.created = true;
                Meta::new(random_epoch()?)
            }
        };
        let mut outbox = Self {
            storage,
            limits,
            meta,
            segments: VecDeque::new(),
            asides: VecDeque::new(),
            index: BTreeMap::new(),
            uncommitted: Vec::new(),
            tail: Vec::new(),
            dirty: false,
            reserved: names.iter().any(|name| name == RESERVE),
            reserve_after: 0,
        };
        let mut asides: Vec<&String> = names.iter().filter(|name| name.ends_with(ASIDE)).collect();
        // Of one epoch, the oldest first.
        asides.sort();
        for name in asides {
            outbox.add_aside(name.clone());
        }
        for name in useless {
            outbox.set_aside(name, &mut recovery);
        }
        found.sort_by_key(|(epoch, first, ..)| (*epoch, *first));
        let mut done = Vec::new();
        let firsts: Vec<u64> = found.iter().filter(|(epoch, ..)| *epoch == outbox.meta.epoch).map(|(_, first, ..)| *first).collect();
        for (epoch, first, name) in found {
            if epoch != outbox.meta.epoch {
                outbox.set_aside(&name, &mut recovery);
                continue;
            }
            let after = firsts.get(firsts.partition_point(|&other| other <= first)).copied();
            if let Some(name) = outbox.adopt(name, first, after, &mut recovery)? {
                done.push(name);
            }
        }
        // `next` must be on disk before the last segment that tells it goes.
        outbox.write_meta()?;
        for name in done {
            outbox.storage.remove(&name).map_err(failed("remove", &name))?;
        }
        // Some may have made room for others.
        recovery.set_aside.retain(|aside| outbox.asides.iter().any(|(name, _)| name == aside));
        outbox.reserve();
        Ok((outbox, recovery))
    }

    /// Takes over a segment; the next one begins with the sequence `after`. Gives its name back when nothing in it is pending.
    fn adopt(&mut self, name: String, first: u64, after: Option<u64>, recovery: &mut Recovery) -> Result<Option<String>, OutboxError> {
        let longest = self.limits.segment_bytes + (segment::PREFIX + segment::MAX_BODY) as u64;
        let Salvage { bytes, unread } = salvage::read(&mut self.storage, &name, longest).map_err(failed("read", &name))?;
        let (mut extents, mut valid) = segment::scan(&bytes, first);
        // A segment is committed before the next one is begun.
        let committed = after.unwrap_or(self.meta.next);
        let settled = self.meta.watermark.max(self.meta.evicted_through);
        let lost = |from: u64, to: u64| to.saturating_sub(from.max(settled + 1));
        let (mut damaged, mut whole, mut end) = (0, segment::HEADER as u64, first);
        for extent in &extents {
            if extent.offset > whole {
                damaged += extent.offset - whole;
                recovery.lost += lost(end, extent.sequence);
            }
            whole = extent.offset + u64::from(extent.length);
            end = extent.sequence + 1;
        }
        let tail = bytes.len() as u64 - valid;
        if tail > 0 && (end < committed || unread > valid) {
            // How far the last segment went, only its tail tells: what may have been used is not given again.
            let most = end + tail.div_ceil(segment::MIN_RECORD as u64);
            let reached = if after.is_none() && unread > valid { most } else { committed.min(most) };
            damaged += tail;
            recovery.lost += lost(end, reached);
            self.meta.next = self.meta.next.max(reached);
        } else {
            recovery.torn_bytes += tail;
        }
        self.meta.next = self.meta.next.max(end);
        let through = self.meta.frames_evicted_through;
        let mut aside = None;
        let is_damaged = damaged > 0 || unread > 0 || segment::read_header(&bytes).is_none();
        if is_damaged {
            recovery.damaged_bytes += damaged;
            if unread > 0 {
                // What takes the segment's place does not tell how far it may have gone.
                self.write_meta()?;
            }
            if unread > 0 && extents.is_empty() {
                self.set_aside(&name, recovery);
                return Ok(None);
            }
            aside = self.keep_aside(&name, &bytes)?;
        }
        // An eviction of frames that a crash left is finished.
        if is_damaged || extents.iter().any(|extent| extent.jpeg > 0 && extent.sequence <= through) {
            let (clean, moved) = segment::without_jpegs(self.meta.epoch, first, &bytes, &extents, through);
            (valid, extents) = (clean.len() as u64, moved);
            let mut written = self.replace(&name, &clean);
            if written.is_err()
                && let Some(aside) = aside.take()
            {
                // Its room is needed more; and where the segment stays as it is, the next opening sets it aside.
                let _ = self.storage.remove(&aside);
                written = self.replace(&name, &clean);
            }
            written.map_err(failed("write", &name))?;
            if let Some(aside) = aside {
                recovery.set_aside.push(aside.clone());
                self.add_aside(aside);
            }
        } else if tail > 0 {
            self.storage.truncate(&name, valid).map_err(failed("truncate", &name))?;
        }
        let jpeg = extents.iter().map(|extent| u64::from(extent.jpeg)).sum();
        let open: Vec<Extent> = extents.into_iter().filter(|extent| extent.sequence > settled).collect();
        let unacked = open.len() as u64;
        if unacked == 0 {
            return Ok(Some(name));
        }
        // What a crash left in the page cache is not known to be on disk: it is committed by being synced now.
        self.storage.sync(&name).map_err(failed("sync", &name))?;
        self.index.extend(open.into_iter().map(|extent| (extent.sequence, extent)));
        self.segments.push_back(Segment { name, first, bytes: valid, end, unacked, jpeg });
        Ok(None)
    }

    fn write_meta(&mut self) -> Result<(), OutboxError> {
        // Sequences that are not committed may be given again after a power cut: without a gap.
        let meta = Meta { next: self.committed() + 1, ..self.meta.clone() };
        let bytes = serde_json::to_vec(&meta).map_err(|error| failed("encode", META)(error.into()))?;
        self.replace(META, &bytes).map_err(failed("write", META))
    }

    /// Replaces a file; on a full disk in the room of what was set aside, then in the room that was kept for it.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.storage.replace(name, bytes) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && self.remove_aside() => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull && self.reserved => {
                    // It may be gone: there is as much room then as there can be.
                    let _ = self.storage.remove(RESERVE);
                    self.reserved = false;
                }
                result => return result,
            }
        }
    }

    /// Keeps room for the next time, if there is any.
    fn reserve(&mut self) {
        self.reserve_after = self.reserve_after.saturating_sub(1);
        if !self.reserved && self.reserve_after == 0 {
            let bytes = (self.limits.segment_bytes / 8).clamp(4096, RESERVE_BYTES);
            self.reserved = self.storage.replace(RESERVE, &vec![0; bytes as usize]).is_ok();
            self.reserve_after = 1000;
        }
    }

    /// The key of the next label that is appended.
    pub fn next_key(&self) -> LabelKey {
        LabelKey { epoch: self.meta.epoch, sequence: self.meta.next }
    }

    /// Labels committed over the life of the epoch.
    pub fn committed(&self) -> u64 {
        self.meta.next - 1 - self.uncommitted.len() as u64
    }

    /// Labels that are committed and not acknowledged.
    pub fn pending(&self) -> u64 {
        self.index.len() as u64
    }

    /// Labels evicted by the byte budget.
    pub fn evicted(&self) -> u64 {
        self.meta.evicted
    }

    /// Frames evicted by the byte budget, whose labels stayed.
    pub fn frames_evicted(&self) -> u64 {
        self.meta.frames_evicted
    }

    /// Whether the frame of a label was evicted, if it had one.
    pub fn is_frame_evicted(&self, sequence: u64) -> bool {
        sequence <= self.meta.frames_evicted_through
    }

    /// The epoch of the collector that answered last; 0 before the first answer.
    pub fn collector(&self) -> u64 {
        self.meta.collector
    }

    /// Labels appended since the last commit.
    pub fn uncommitted(&self) -> usize {
        self.uncommitted.len()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends a label under [`Outbox::next_key`]. It counts as committed after [`Outbox::commit`]. When the storage is full, a file
    /// that was set aside is removed, or the frames of the oldest segment that has any are evicted, or the oldest segment, and the append
    /// is tried once more.
    ///
    /// # Errors
    /// [`OutboxError::Size`], [`OutboxError::Storage`]; the label is not in the outbox then and its key is free again.
    pub fn append(&mut self, frame: u64, label: Vec<u8>, jpeg: Vec<u8>) -> Result<LabelKey, OutboxError> {
        let key = self.next_key();
        let jpeg_bytes = jpeg.len() as u32;
        let record = segment::record(&Entry { sequence: key.sequence, frame, label, jpeg });
        let limit = segment::MAX_BODY + segment::PREFIX;
        if record.len() > limit {
            return Err(OutboxError::Size { found: record.len(), limit });
        }
        match self.write(key.sequence, &record, jpeg_bytes) {
            Err(OutboxError::Storage { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                // The torn record fills the disk to its last byte: without it there is room for what an eviction writes.
                self.repair_tail()?;
                if self.remove_aside() || self.evict_frames().unwrap_or(false) || self.evict_oldest()? {
                    self.write(key.sequence, &record, jpeg_bytes)?;
                } else {
                    return Err(failed("append to", "the outbox")(source));
                }
            }
            result => result?,
        }
        self.meta.next += 1;
        Ok(key)
    }

    /// `jpeg` of the record's bytes are those of its JPEG.
    fn write(&mut self, sequence: u64, record: &[u8], jpeg: u32) -> Result<(), OutboxError> {
        self.repair_tail()?;
        let full = |segment: &Segment| segment.bytes >= self.limits.segment_bytes || segment.end != sequence;
        if self.segments.back().is_none_or(full) {
            // The old segment's records are committed before a new one is begun, so that one sync is enough for a commit.
            self.commit_tail()?;
            let name = segment::name(self.meta.epoch, sequence);
            let header = segment::header(self.meta.epoch, sequence);
            // A failed attempt may have left a part of the header under this name.
            let names = self.storage.list().map_err(failed("list", "the folder"))?;
            if names.contains(&name) {
                self.storage.truncate(&name, 0).map_err(failed("truncate", &name))?;
            }
            self.storage.append(&name, &header).map_err(failed("create", &name))?;
            self.segments.push_back(Segment { name, first: sequence, bytes: header.len() as u64, end: sequence, unacked: 0, jpeg: 0 });
        }
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        self.dirty = true;
        self.storage.append(&segment.name, record).map_err(failed("append to", &segment.name))?;
        self.dirty = false;
        self.uncommitted.push(Extent { sequence, offset: segment.bytes, length: record.len() as u32, jpeg });
        self.tail.extend_from_slice(record);
        segment.bytes += record.len() as u64;
        segment.jpeg += u64::from(jpeg);
        segment.end = sequence + 1;
        Ok(())
    }

    /// Writes the uncommitted records anew after a failed append or sync.
    fn repair_tail(&mut self) -> Result<(), OutboxError> {
        if let (true, Some(segment)) = (self.dirty, self.segments.back()) {
            let committed = segment.bytes - self.tail.len() as u64;
            // With no record committed, the header may be lost, too.
            let whole = committed <= segment::HEADER as u64;
            let header = if whole { segment::header(self.meta.epoch, segment.first) } else { Vec::new() };
            let keep = if whole { 0 } else { committed };
            self.storage.truncate(&segment.name, keep).map_err(failed("truncate", &segment.name))?;
            self.storage.append(&segment.name, &[header, self.tail.clone()].concat()).map_err(failed("append to", &segment.name))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Makes everything that was appended durable, then keeps to the byte budget. Returns how many labels were committed.
    ///
    /// # Errors
    /// [`OutboxError::Storage`]: nothing new is committed; a later commit tries again.
    pub fn commit(&mut self) -> Result<usize, OutboxError> {
        let count = self.commit_tail()?;
        while self.bytes() + self.aside_bytes() > self.limits.max_bytes && self.remove_aside() {}
        while self.bytes() > self.limits.max_bytes && self.segments.len() > 1 {
            if !self.evict_frames()? {
                self.evict_oldest()?;
            }
        }
        self.reserve();
        Ok(count)
    }

    /// Makes everything that was appended durable.
    fn commit_tail(&mut self) -> Result<usize, OutboxError> {
        let count = self.uncommitted.len();
        if count > 0 {
            self.repair_tail()?;
        }
        if count > 0
            && let Some(segment) = self.segments.back_mut()
        {
            if let Err(error) = self.storage.sync(&segment.name) {
                self.dirty = true;
                return Err(failed("sync", &segment.name)(error));
            }
            self.tail.clear();
            segment.unacked += count as u64;
            self.index.extend(self.uncommitted.drain(..).map(|extent| (extent.sequence, extent)));
        }
        Ok(count)
    }

    fn aside_bytes(&self) -> u64 {
        self.asides.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Gives a segment another name. One that cannot be renamed stays, and every opening leaves it out.
    fn set_aside(&mut self, name: &str, recovery: &mut Recovery) {
        let renamed = self.free_name(name).and_then(|aside| self.storage.rename(name, &aside).map(|()| aside));
        match renamed {
            Ok(aside) => {
                recovery.set_aside.push(aside.clone());
                self.add_aside(aside);
            }
            Err(error) => tracing::error!(%error, file = name, "a segment of no use cannot be renamed"),
        }
    }

    /// Keeps a segment under another name, too: as it is, or else what was read of it. Where not even what was set aside before makes room
    /// for that, nothing is kept.
    fn keep_aside(&mut self, name: &str, bytes: &[u8]) -> Result<Option<String>, OutboxError> {
        let aside = self.free_name(name).map_err(failed("list", "the folder"))?;
        loop {
            match self.storage.link(name, &aside).or_else(|_| self.storage.replace(&aside, bytes)) {
                Ok(()) => return Ok(Some(aside)),
                Err(error) if error.kind() == io::ErrorKind::StorageFull && self.remove_aside() => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::error!(%error, file = name, "no room for a copy of a damaged segment; what is whole in it is kept");
                    return Ok(None);
                }
                Err(error) => return Err(failed("write", &aside)(error)),
            }
        }
    }

    /// The name under which a segment is set aside; what was set aside before keeps its name.
    fn free_name(&mut self, name: &str) -> io::Result<String> {
        let names = self.storage.list()?;
        let (mut aside, mut count) = (format!("{name}{ASIDE}"), 1);
        while names.contains(&aside) {
            count += 1;
            aside = format!("{name}.{count}{ASIDE}");
        }
        Ok(aside)
    }

    fn add_aside(&mut self, name: String) {
        let bytes = self.storage.length(&name).unwrap_or(0);
        self.asides.push_back((name, bytes));
    }

    /// Removes the first of the files that were set aside; false when there is none.
    fn remove_aside(&mut self) -> bool {
        let Some((name, _)) = self.asides.pop_front() else { return false };
        if let Err(error) = self.storage.remove(&name) {
            tracing::warn!(%error, file = name, "what was set aside cannot be removed");
        }
        true
    }

    /// Takes the frames out of the oldest segment that has any and can be read, but not of the one that is appended to; false when there is
    /// none.
    fn evict_frames(&mut self) -> Result<bool, OutboxError> {
        let closed = self.segments.len().saturating_sub(1);
        for at in 0..closed {
            if self.segments.get(at).is_some_and(|segment| segment.jpeg > 0) && self.strip(at)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the frames out of a segment; false when it cannot be read as it was written.
    fn strip(&mut self, at: usize) -> Result<bool, OutboxError> {
        let Some(segment) = self.segments.get(at) else { return Ok(false) };
        let (name, first, end) = (segment.name.clone(), segment.first, segment.end);
        let Ok(bytes) = self.storage.read(&name) else { return Ok(false) };
        let (extents, _) = segment::scan(&bytes, first);
        let through = self.meta.frames_evicted_through.max(end - 1);
        let (clean, moved) = segment::without_jpegs(self.meta.epoch, first, &bytes, &extents, through);
        let moved: BTreeMap<u64, Extent> = moved.into_iter().map(|extent| (extent.sequence, extent)).collect();
        if self.index.range(first..end).any(|(sequence, _)| !moved.contains_key(sequence)) {
            return Ok(false);
        }
        // First the count, durably, then the frames: after a crash between the two, opening finishes. What was counted before a failed
        // attempt is not counted again, and older segments that could not be read are.
        let known = self.meta.frames_evicted_through + 1;
        let lost = self.index.range(known..end.max(known));
        let lost = lost.filter(|(_, extent)| extent.jpeg > 0).count() as u64;
        let before = self.meta.clone();
        self.meta.frames_evicted += lost;
        self.meta.frames_evicted_through = through;
        if let Err(error) = self.write_meta() {
            self.meta = before;
            return Err(error);
        }
        self.replace(&name, &clean).map_err(failed("write", &name))?;
        for (sequence, extent) in self.index.range_mut(first..end) {
            if let Some(moved) = moved.get(sequence) {
                *extent = *moved;
            }
        }
        if let Some(segment) = self.segments.get_mut(at) {
            (segment.bytes, segment.jpeg) = (clean.len() as u64, 0);
        }
        self.reserve_after = 0;
        Ok(true)
    }

    /// Removes the oldest segment but not the one that is appended to; false when there is none.
    fn evict_oldest(&mut self) -> Result<bool, OutboxError> {
        if self.segments.len() < 2 {
            return Ok(false);
        }
        let Some(oldest) = self.segments.front() else { return Ok(false) };
        let (name, end) = (oldest.name.clone(), oldest.end);
        // First the count, durably, then the removal: after a crash between the two, opening finishes the removal.
        let before = self.meta.clone();
        self.meta.evicted += oldest.unacked;
        self.meta.evicted_through = end - 1;
        if let Err(error) = self.write_meta() {
            self.meta = before;
            return Err(error);
        }
        self.index = self.index.split_off(&end);
        self.segments.pop_front();
        self.reserve_after = 0;
        self.storage.remove(&name).map_err(failed("remove", &name))?;
        Ok(true)
    }

    /// Takes an acknowledgement: what it names leaves the outbox. Acknowledgements of other epochs change nothing. A collector
    /// with a new epoch of its own was restored from a backup: only what it names now counts as stored.
    ///
    /// Returns the number of labels it acknowledged.
    ///
    /// # Errors
    /// [`OutboxError::Storage`] when a segment cannot be removed; it is then removed later, or at the next opening. Also when what the new
    /// collector is to get again cannot be read for now: the next acknowledgement tries again.
    pub fn ack(&mut self, ack: &AckMsg) -> Result<u64, OutboxError> {
        if ack.epoch != self.meta.epoch {
            return Ok(0);
        }
        if ack.collector != self.meta.collector {
            if self.meta.collector != 0 {
                self.reindex()?;
                self.meta.watermark = 0;
            }
            self.meta.collector = ack.collector;
        }
        self.meta.watermark = self.meta.watermark.max(ack.watermark.min(self.committed()));
        let mut stored: Vec<u64> = self.index.range(..=self.meta.watermark).map(|(&sequence, _)| sequence).collect();
        for &(from, to) in &ack.stored {
            if from <= to {
                stored.extend(self.index.range(from..=to).map(|(&sequence, _)| sequence));
            }
        }
        let mut count = 0;
        for sequence in stored {
            if self.index.remove(&sequence).is_some() {
                count += 1;
                let at = self.segments.partition_point(|segment| segment.end <= sequence);
                if let Some(segment) = self.segments.get_mut(at) {
                    segment.unacked -= 1;
                }
            }
        }
        self.remove_stored()?;
        Ok(count)
    }

    /// Removes segments of which the collector has everything, but not the one that is appended to.
    fn remove_stored(&mut self) -> Result<(), OutboxError> {
        let kept = self.segments.len().saturating_sub(1);
        let names: Vec<String> = self.segments.iter().take(kept).filter(|segment| segment.unacked == 0).map(|s| s.name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        // The one that is appended to may be lost with the power: then only the meta file tells that their sequences were used.
        self.write_meta()?;
        self.segments.retain(|segment| !names.contains(&segment.name));
        for name in names {
            self.storage.remove(&name).map_err(failed("remove", &name))?;
        }
        Ok(())
    }

    /// Puts every committed record that can be read into the index again. What is wrong with a file costs what lies there; any other error
    /// passes, and all of it is to be done again.
    fn reindex(&mut self) -> Result<(), OutboxError> {
        let uncommitted = self.uncommitted.first().map_or(u64::MAX, |extent| extent.sequence);
        for segment in &mut self.segments {
            let Salvage { bytes, .. } =
                salvage::read(&mut self.storage, &segment.name, segment.bytes).map_err(failed("read", &segment.name))?;
            let (extents, _) = segment::scan(&bytes, segment.first);
            let committed = extents.into_iter().filter(|extent| extent.sequence < uncommitted);
            let before = self.index.len();
            self.index.extend(committed.map(|extent| (extent.sequence, extent)));
            segment.unacked += (self.index.len() - before) as u64;
        }
        Ok(())
    }

    /// The first pending sequence above `after`.
    pub fn next_pending(&self, after: u64) -> Option<u64> {
        self.index.range(after.checked_add(1)?..).next().map(|(&sequence, _)| sequence)
    }

    /// Whether a label is committed and not acknowledged.
    pub fn is_pending(&self, sequence: u64) -> bool {
        self.index.contains_key(&sequence)
    }

    /// Reads a pending label, without its JPEG when that was evicted; `None` when it is not pending any more.
    ///
    /// # Errors
    /// [`OutboxError::Storage`], also when the record is damaged on disk.
    pub fn read(&mut self, sequence: u64) -> Result<Option<Entry>, OutboxError> {
        let Some(extent) = self.index.get(&sequence).copied() else { return Ok(None) };
        let at = self.segments.partition_point(|segment| segment.end <= sequence);
        let Some(segment) = self.segments.get(at) else { return Ok(None) };
        let bytes = self.storage.read_at(&segment.name, extent.offset, extent.length as usize).map_err(failed("read", &segment.name))?;
        match segment::read_record(&bytes) {
            // Between the count and the removal of its frame, too.
            Some((entry, _)) if entry.sequence == sequence && self.is_frame_evicted(sequence) => {
                Ok(Some(Entry { jpeg: Vec::new(), ..entry }))
            }
            Some((entry, _)) if entry.sequence == sequence => Ok(Some(entry)),
            _ => Err(failed("read", &segment.name)(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the record of sequence {sequence} is damaged"),
            ))),
        }
    }

    /// Commits and writes the counts, at the end.
    ///
    /// # Errors
    /// [`OutboxError::Storage`].
    pub fn close(&mut self) -> Result<(), OutboxError> {
        self.commit()?;
        self.write_meta()
    }
}

/// The meta file; `None` when it cannot be used. Of one that cannot be read nothing is guessed: it alone knows which sequences were used when
/// their segments are gone.
fn read_meta<S: Storage>(storage: &mut S) -> Result<Option<Meta>, OutboxError> {
    let bytes = storage.read(META).or_else(|_| storage.read(META)).map_err(failed("read", META))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// Below 2⁶³, so that every database takes it.
fn random_epoch() -> Result<u64, OutboxError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| OutboxError::Random(error.to_string()))?;
    Ok((u64::from_le_bytes(bytes) >> 1).max(1))
}
