//! Quotas outlive a restart.

use crate::durable::replace_file;
use crate::policy::Quota;
use crate::service::core::Core;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often quotas are noted when they change.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(5);
/// What a restart has to know of the quota of frames …
pub(super) const FRAMES_QUOTA: &str = "frames.quota";
/// … and of labels.
pub(super) const LABELS_QUOTA: &str = "labels.quota";

/// A quota as a restart finds it.
pub(super) fn read_quota(path: &Path) -> Quota {
    let read = std::fs::read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
    read.unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(%error, file = %path.display(), "a quota cannot be read: the hour and the day begin anew");
        }
        Quota::default()
    })
}

/// Notes a quota for a restart.
fn note_quota(path: &Path, quota: Quota) {
    let written = serde_json::to_vec(&quota).map_err(std::io::Error::from).and_then(|bytes| replace_file(path, &bytes));
    if let Err(error) = written {
        tracing::warn!(%error, file = %path.display(), "a quota cannot be noted");
    }
}

impl Core {
    pub(super) fn note_quotas(&mut self, now: Instant) {
        let publish = &self.config.publish;
        let (_, labels, frames) = self.noted;
        if let Some(quota) = self.labels_quota.filter(|_| self.labels_quota != labels) {
            note_quota(&self.config.state_dir.join(LABELS_QUOTA), quota);
        }
        if (publish.frames_per_hour > 0 || publish.frames_per_day > 0) && self.frames_quota != frames {
            note_quota(&self.config.state_dir.join(FRAMES_QUOTA), self.frames_quota);
        }
        self.noted = (now, self.labels_quota, self.frames_quota);
    }
}
