//! Folders that one process at a time works in.

use super::ArmError;
use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind};
use std::path::Path;

/// `ENOLCK` of Linux: a network file system without a server for locks.
const NO_LOCKS: i32 = 37;

/// Who has the right to work at what a file stands for, as long as that file is open.
#[derive(Debug)]
pub(crate) enum Lock {
    /// This process.
    Held(File),
    /// Everybody: the file system knows no locks.
    Nobody(File, Error),
    /// Another process, or another part of this one.
    Elsewhere,
}

impl Lock {
    /// # Errors
    /// [`ArmError::Io`].
    pub(crate) fn of(path: &Path) -> Result<Self, ArmError> {
        let file = File::create(path).map_err(ArmError::io(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self::Held(file)),
            Err(TryLockError::WouldBlock) => Ok(Self::Elsewhere),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(NO_LOCKS) => {
                Ok(Self::Nobody(file, error))
            }
            Err(TryLockError::Error(error)) => Err(ArmError::io(path)(error)),
        }
    }
}

/// The right to write in a folder that exists, as long as the file is open.
///
/// # Errors
/// [`ArmError::Busy`], [`ArmError::Io`].
pub(crate) fn hold(folder: &Path) -> Result<File, ArmError> {
    match Lock::of(&folder.join("lock"))? {
        Lock::Held(file) => Ok(file),
        Lock::Nobody(file, error) => {
            tracing::warn!(folder = %folder.display(), %error, "no locks here; one process at a time");
            Ok(file)
        }
        Lock::Elsewhere => Err(ArmError::Busy { path: folder.to_owned() }),
    }
}
