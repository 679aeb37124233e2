//! What lies in the state folder to tell a restored database: the collector epoch and the number of its commits; with PostgreSQL who the
//! collector is and the number of its own. It is written after every commit and before the acknowledgement, without fsync: after a power
//! failure it may be older than the database, which is the normal state; a database older than its marker was restored.

use super::StoreError;
use std::io::Write;
use std::path::Path;

/// The contents of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) collector: u64,
    pub(super) commits: u64,
}

/// The marker of a database in the same folder.
pub(super) const FILE: &str = "collector.marker";
/// The marker of one of several collectors.
pub(super) const SHARED: &str = "shared.marker";

/// `None` when it is missing or torn: the caller then assumes the worst, which only costs repeated messages.
pub(super) fn read(state_dir: &Path, file: &str) -> Result<Option<Marker>, StoreError> {
    let path = state_dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.strip_suffix('\n').and_then(|line| {
            let (collector, commits) = line.split_once(' ')?;
            Some(Marker { collector: u64::from_str_radix(collector, 16).ok()?, commits: commits.parse().ok()? })
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

/// Replaces the marker.
pub(super) fn write(state_dir: &Path, file: &str, marker: Marker) -> Result<(), StoreError> {
    let (path, fresh) = (state_dir.join(file), state_dir.join(format!("{file}.new")));
    let line = format!("{:016x} {}\n", marker.collector, marker.commits);
    std::fs::File::create(&fresh)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, &path))
        .map_err(|source| StoreError::Io { path, source })
}
