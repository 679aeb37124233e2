//! Reads a file of which the disk does not give every byte any more: what it does not give is damage, and costs what lies there.

use super::storage::Storage;
use nix::errno::Errno;
use std::io;

/// Bytes that are read at once where the file cannot be read as a whole.
pub(super) const BLOCK: u64 = 4096;
/// After so many blocks in a row, and after so many in all, that are tried in vain, blocks are passed over, twice as many each time: a
/// failing disk may take seconds for each.
const IN_A_ROW: u32 = 128;
const IN_ALL: u32 = 256;
/// At most 2⁸ blocks (1 MiB) at a time.
const MOST: u32 = 8;

/// What was read of a file.
#[derive(Debug)]
pub(super) struct Salvage {
    /// With zeros where it cannot be read.
    pub(super) bytes: Vec<u8>,
    /// Where the last part ends that cannot be read; 0 when there is none.
    pub(super) unread: u64,
}

/// Whether a failed read says something of this file alone, and not of memory, rights or descriptors: those come back.
pub(super) fn is_of_the_file(error: &io::Error) -> bool {
    let elsewhere =
        matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
    let descriptors = matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE));
    !elsewhere && !descriptors
}

/// Reads what can be read. A file that does not tell its length either counts as one of `longest` bytes.
///
/// # Errors
/// Those that are not of the file ([`is_of_the_file`]).
pub(super) fn read<S: Storage>(storage: &mut S, name: &str, longest: u64) -> io::Result<Salvage> {
    match storage.read(name) {
        Ok(bytes) => Ok(Salvage { bytes, unread: 0 }),
        Err(error) if is_of_the_file(&error) => {
            tracing::error!(%error, file = name, "a segment cannot be read as a whole; what can be is kept");
            let length = storage.length(name).ok().filter(|&length| length > 0);
            read_blocks(storage, name, length.unwrap_or(longest))
        }
        Err(error) => Err(error),
    }
}

/// A block; `None` when the disk does not give it, at the second try either.
fn read_block<S: Storage>(storage: &mut S, name: &str, offset: u64, size: usize) -> io::Result<Option<Vec<u8>>> {
    let first = storage.read_at(name, offset, size);
    let block = first.or_else(|error| if is_of_the_file(&error) { storage.read_at(name, offset, size) } else { Err(error) });
    match block {
        Ok(block) => Ok(Some(block)),
        Err(error) if is_of_the_file(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tries at most [`IN_ALL`] blocks in vain, then about two for each MiB of the file: one before what is passed over, one on the way back.
/// What lies behind the last bad stretch is found as a whole; between two of them, what is shorter than what was passed over may not be.
fn read_blocks<S: Storage>(storage: &mut S, name: &str, length: u64) -> io::Result<Salvage> {
    let last = length.saturating_sub(1) / BLOCK * BLOCK;
    let (mut bytes, mut unread, mut offset) = (vec![0; length as usize], 0, 0);
    // Blocks from `tried` to `unread` were passed over.
    let (mut tried, mut in_a_row, mut in_all) = (0, 0_u32, 0_u32);
    let put = |bytes: &mut [u8], at: u64, block: &[u8]| bytes[at as usize..at as usize + block.len()].copy_from_slice(block);
    while offset < length {
        if let Some(block) = read_block(storage, name, offset, BLOCK.min(length - offset) as usize)? {
            put(&mut bytes, offset, &block);
            // Back to where the bad stretch ends.
            while unread > tried {
                let Some(block) = read_block(storage, name, unread - BLOCK, BLOCK as usize)? else {
                    in_all += 1;
                    break;
                };
                unread -= BLOCK;
                put(&mut bytes, unread, &block);
            }
            (tried, in_a_row) = (unread, 0);
            offset += BLOCK;
        } else {
            (in_a_row, in_all) = (in_a_row + 1, in_all + 1);
            let over = in_a_row.saturating_sub(IN_A_ROW).max(in_all.saturating_sub(IN_ALL)).min(MOST);
            tried = offset + BLOCK;
            // The last block is tried in any case.
            offset = if offset == last { length } else { last.min(offset + (BLOCK << over)) };
            unread = offset;
        }
    }
    Ok(Salvage { bytes, unread })
}
