//! Who changed what, and who tried: one JSON object a line in `state_dir/audit.jsonl`, appended and fsynced. What cannot be written here is
//! not done.

use super::guard::{Peer, Who};
use crate::service::events::now_ms;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The name of the file in the state folder.
pub(crate) const FILE: &str = "audit.jsonl";
/// Characters of a request and of an outcome that are kept.
const MAX_TEXT: usize = 300;

/// See the module. Cloning shares it.
#[derive(Clone)]
pub(super) struct Audit {
    file: Arc<Mutex<File>>,
}

impl Audit {
    /// Opens the file, readable by the centre alone, and ends a line that a crash tore.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(state_dir.join(FILE))?;
        if file.seek(SeekFrom::End(0))? > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file: Arc::new(Mutex::new(file)) })
    }

    /// Writes one line: who (nobody known: `None`), from where, asked for what, and what came of it.
    pub(super) async fn note(&self, peer: Peer, who: Option<&Who>, request: &str, outcome: &str) -> io::Result<()> {
        let short = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
        let line = json!({
            "at_ms": now_ms(), "peer": peer.0, "role": who.map(|who| who.role.name()), "request": short(request), "outcome": short(outcome),
        });
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_data()
        });
        written.await.map_err(io::Error::other)?
    }
}
