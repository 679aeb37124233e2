//! Changes of files that a power cut leaves either undone or done. In tests every one of them, and all
//! after it, can be made to fail.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Makes names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    power::step(folder)?;
    File::open(folder)?.sync_all()
}

/// Replaces a file as a whole, durably.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let mut name = path.file_name().ok_or_else(|| io::Error::other("a path without a file name"))?.to_owned();
    name.push(".new");
    let fresh = folder.join(name);
    #[cfg(test)]
    power::step(path).inspect_err(|_| drop(std::fs::write(&fresh, &bytes[..bytes.len() / 2])))?;
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    // A full disk keeps no half of it.
    write().inspect_err(|_| drop(std::fs::remove_file(&fresh)))?;
    #[cfg(test)]
    power::step(path)?;
    std::fs::rename(&fresh, path)?;
    sync_folder(folder)
}

/// Removes a file, durably.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    power::step(path)?;
    std::fs::remove_file(path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes a folder with all that is in it, durably. A power cut may leave a part of it.
pub(crate) fn remove_folder(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    power::step(path)?;
    #[cfg(test)]
    power::step(path).inspect_err(|_| power::remove_half(path))?;
    std::fs::remove_dir_all(path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// The power supply of state folders under test.
#[cfg(test)]
pub(crate) mod power {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};

    #[derive(Clone, Copy, Debug)]
    struct Supply {
        steps: usize,
        cut_at: usize,
    }

    static SUPPLIES: LazyLock<Mutex<HashMap<PathBuf, Supply>>> = LazyLock::new(Mutex::default);

    /// Counts the steps of `folder` from now on; the one with the index `cut_at`, and all after it, fail.
    pub(crate) fn supply(folder: &Path, cut_at: usize) {
        SUPPLIES.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned(), Supply { steps: 0, cut_at });
    }

    /// Steps so far.
    pub(crate) fn steps(folder: &Path) -> usize {
        let supplies = SUPPLIES.lock().unwrap_or_else(PoisonError::into_inner);
        supplies.get(folder).map_or(0, |supply| supply.steps)
    }

    /// Whether the power is gone.
    pub(crate) fn is_cut(folder: &Path) -> bool {
        let supplies = SUPPLIES.lock().unwrap_or_else(PoisonError::into_inner);
        supplies.get(folder).is_some_and(|supply| supply.steps > supply.cut_at)
    }

    /// Steps so far; everything works again.
    pub(crate) fn restore(folder: &Path) -> usize {
        SUPPLIES.lock().unwrap_or_else(PoisonError::into_inner).remove(folder).map_or(0, |supply| supply.steps)
    }

    /// What belongs to labels has tests of its own, and its own pace.
    fn is_of_slots(inside: &Path) -> bool {
        let name = inside.iter().next().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        matches!(name.as_str(), "" | "a" | "b" | "blocks" | "keys.cbor")
            || ["a.", "b.", "state.", "offer."].iter().any(|start| name.starts_with(start))
    }

    pub(super) fn step(path: &Path) -> io::Result<()> {
        let mut supplies = SUPPLIES.lock().unwrap_or_else(PoisonError::into_inner);
        let supply = supplies.iter_mut().find(|(folder, _)| path.strip_prefix(folder).is_ok_and(is_of_slots));
        let Some((_, supply)) = supply else { return Ok(()) };
        supply.steps += 1;
        if supply.steps > supply.cut_at { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    /// Every second file of a folder.
    pub(super) fn remove_half(folder: &Path) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.step_by(2).filter(|entry| entry.path().is_file()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
