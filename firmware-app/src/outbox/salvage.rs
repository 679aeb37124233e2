//! Reads a file of which the disk does not give every byte any more: what it does not give is damage, and costs what lies there.

use super::storage::Storage;
use nix::errno::Errno;
use std::io;

/// Bytes that are read at once where the file cannot be read as a whole.
pub(super) const BLOCK: u64 = 4096;
/// So many blocks are tried in vain, then the rest counts as unreadable: a failing disk may take seconds for each.
const IN_VAIN: u32 = 128;

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

fn read_blocks<S: Storage>(storage: &mut S, name: &str, length: u64) -> io::Result<Salvage> {
    let (mut bytes, mut unread, mut in_vain) = (Vec::new(), 0, 0);
    for offset in (0..length).step_by(BLOCK as usize) {
        let size = BLOCK.min(length - offset) as usize;
        let block = if in_vain < IN_VAIN { storage.read_at(name, offset, size).map(Some) } else { Ok(None) };
        match block {
            Ok(Some(block)) => bytes.extend(block),
            Err(error) if !is_of_the_file(&error) => return Err(error),
            Ok(None) | Err(_) => {
                in_vain += 1;
                unread = offset + size as u64;
                bytes.resize(unread as usize, 0);
            }
        }
    }
    Ok(Salvage { bytes, unread })
}
