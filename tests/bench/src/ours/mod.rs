//! This product as a side.

mod detect;
mod ingest;
mod score;
mod train;
mod wire;

use crate::side::{Kind, Role, Task, Work};
use anyhow::Result;

/// Gets ready for a task.
///
/// # Errors
/// Its files cannot be read.
pub fn prepare(role: Role, task: &Task) -> Result<Box<dyn Work>> {
    Ok(match task.kind {
        Kind::Train => Box::new(train::Train::new(task)?),
        Kind::Detect => Box::new(detect::Detect::new(task)?),
        Kind::Score => Box::new(score::Score::new(task)),
        Kind::Encode | Kind::Decode => Box::new(wire::Wire::new(task, role == Role::SerdeJson)?),
        Kind::Ingest => Box::new(ingest::Ingest::new(task, role)?),
    })
}
