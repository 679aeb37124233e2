//! The format of a segment file.
//!
//! ```text
//! segment = header record*
//! header  = "OLOB" version:u8 epoch:u64 first_sequence:u64 crc32(everything before):u32
//! record  = length:u32 crc32(body):u32 body[length]
//! body    = sequence:u64 frame:u64 label_length:u32 label jpeg      (no JPEG: empty)
//! ```
//! All integers are little-endian. A record is valid when its length fits, its CRC agrees and its sequence is above the one before it
//! (the next one, unless records between were lost). Bytes that make no valid record are damage when a valid one follows them, else
//! the tail. The file's name repeats epoch and first sequence, for a damaged header.

const MAGIC: &[u8; 4] = b"OLOB";
const VERSION: u8 = 1;
/// Bytes of a header.
pub(crate) const HEADER: usize = 4 + 1 + 8 + 8 + 4;
/// Bytes before a record's body.
pub(crate) const PREFIX: usize = 8;
/// Bytes of a body before the label.
const FIXED: usize = 8 + 8 + 4;
/// The shortest record.
pub(crate) const MIN_RECORD: usize = PREFIX + FIXED;
/// After damage, a record is looked for at every byte: only one that is no further ahead than this is worth a checksum.
const MAX_JUMP: u64 = 1 << 32;
/// The longest body, a label with the largest frame that fits a packet.
pub(crate) const MAX_BODY: usize = 4 * 1024 * 1024;

/// One label with its frame, as it lies in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Sequence within the epoch.
    pub sequence: u64,
    /// Frame id.
    pub frame: u64,
    /// The encoded label message.
    pub label: Vec<u8>,
    /// The JPEG that travels with it; empty when none does.
    pub jpeg: Vec<u8>,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) sequence: u64,
    /// Offset of the prefix.
    pub(crate) offset: u64,
    /// Bytes with the prefix.
    pub(crate) length: u32,
    /// Those of the JPEG.
    pub(crate) jpeg: u32,
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn header(epoch: u64, first: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.extend_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Epoch and first sequence of a segment, or `None` when the header is not whole.
pub(crate) fn read_header(bytes: &[u8]) -> Option<(u64, u64)> {
    let head = bytes.get(..HEADER)?;
    let good = head.starts_with(MAGIC) && head[4] == VERSION && u32_at(head, HEADER - 4)? == crc32fast::hash(&head[..HEADER - 4]);
    if good { Some((u64_at(head, 5)?, u64_at(head, 13)?)) } else { None }
}

/// A record with its prefix.
pub(crate) fn record(entry: &Entry) -> Vec<u8> {
    let length = FIXED + entry.label.len() + entry.jpeg.len();
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&entry.sequence.to_le_bytes());
    bytes.extend_from_slice(&entry.frame.to_le_bytes());
    bytes.extend_from_slice(&(entry.label.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&entry.label);
    bytes.extend_from_slice(&entry.jpeg);
    let crc = crc32fast::hash(&bytes[PREFIX..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The record at the start of `bytes` and its length with the prefix, or `None` when it is not whole.
pub(crate) fn read_record(bytes: &[u8]) -> Option<(Entry, usize)> {
    let length = u32_at(bytes, 0)? as usize;
    if !(FIXED..=MAX_BODY).contains(&length) {
        return None;
    }
    let body = bytes.get(PREFIX..PREFIX + length)?;
    if crc32fast::hash(body) != u32_at(bytes, 4)? {
        return None;
    }
    let label = u32_at(body, 16)? as usize;
    let entry = Entry {
        sequence: u64_at(body, 0)?,
        frame: u64_at(body, 8)?,
        label: body.get(FIXED..FIXED.checked_add(label)?)?.to_vec(),
        jpeg: body.get(FIXED + label..)?.to_vec(),
    };
    Some((entry, PREFIX + length))
}

/// The name of a segment's file.
pub(crate) fn name(epoch: u64, first: u64) -> String {
    format!("{epoch:016x}-{first:016x}.seg")
}

/// Epoch and first sequence as [`name`] wrote them.
pub(crate) fn read_name(name: &str) -> Option<(u64, u64)> {
    let (epoch, first) = name.strip_suffix(".seg")?.split_once('-')?;
    Some((u64::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(first, 16).ok()?))
}

/// The valid records of a segment, and the bytes up to the end of the last one. Between two of them there may be damage.
pub(crate) fn scan(bytes: &[u8], first: u64) -> (Vec<Extent>, u64) {
    let (mut extents, mut end, mut next) = (Vec::new(), HEADER.min(bytes.len()), first);
    let mut at = end;
    while at + MIN_RECORD <= bytes.len() {
        let near = u64_at(bytes, at + PREFIX).is_some_and(|sequence| sequence.checked_sub(next).is_some_and(|jump| jump < MAX_JUMP));
        match if near { read_record(&bytes[at..]) } else { None } {
            Some((entry, length)) => {
                let jpeg = entry.jpeg.len() as u32;
                extents.push(Extent { sequence: entry.sequence, offset: at as u64, length: length as u32, jpeg });
                next = entry.sequence + 1;
                at += length;
                end = at;
            }
            None => at += 1,
        }
    }
    (extents, end as u64)
}

/// The segment with its valid records alone, those up to the sequence `through` without their JPEGs; and where they lie then.
pub(crate) fn without_jpegs(epoch: u64, first: u64, bytes: &[u8], extents: &[Extent], through: u64) -> (Vec<u8>, Vec<Extent>) {
    let mut clean = header(epoch, first);
    let mut moved = Vec::with_capacity(extents.len());
    for extent in extents {
        let from = extent.offset as usize;
        let record = &bytes[from..from + extent.length as usize];
        let offset = clean.len() as u64;
        match read_record(record).filter(|_| extent.sequence <= through && extent.jpeg > 0) {
            Some((entry, _)) => clean.extend(self::record(&Entry { jpeg: Vec::new(), ..entry })),
            None => clean.extend_from_slice(record),
        }
        let length = (clean.len() as u64 - offset) as u32;
        let jpeg = if extent.sequence <= through { 0 } else { extent.jpeg };
        moved.push(Extent { sequence: extent.sequence, offset, length, jpeg });
    }
    (clean, moved)
}
