//! This product as a side.

mod detect;
mod train;

use crate::side::{Kind, Task, Work};
use anyhow::Result;

/// Gets ready for a task.
///
/// # Errors
/// Its files cannot be read.
pub fn prepare(task: &Task) -> Result<Box<dyn Work>> {
    Ok(match task.kind {
        Kind::Train => Box::new(train::Train::new(task)?),
        Kind::Detect => Box::new(detect::Detect::new(task)?),
    })
}
