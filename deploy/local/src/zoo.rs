//! The shipped model: the files of `models/zoo`, inside the binary.
//!
//! ```text
//! nano-scenes/            the teacher: a bundle, trained on the demo's manual labels
//! init.safetensors        the weights that the teacher and every arm of the demo start from
//! nano-scenes.json        how they were made, and the upper bound that was computed beforehand
//! ```

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/zoo.rs"));

/// Folder of the teacher.
pub const TEACHER: &str = "nano-scenes";
/// Weights that every arm starts from.
pub const INIT: &str = "init.safetensors";
/// How they were made.
pub const RECORD: &str = "nano-scenes.json";

/// What stands beside the weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The commands that made the files, in order.
    #[serde(default)]
    pub commands: Vec<String>,
    /// The upper bound of the demo with its default arguments.
    #[serde(default)]
    pub upper_bound: Option<UpperBound>,
}

/// An arm that was trained beforehand with every frame of the footage labelled truly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpperBound {
    /// AP in `[0, 1]` on the demo's validation scenes, single view.
    pub ap: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Labelled pictures it was trained on.
    pub images: u64,
    /// The command that made it.
    pub command: String,
}

/// The extracted files.
#[derive(Clone, Debug)]
pub struct Zoo {
    root: PathBuf,
}

impl Zoo {
    /// Writes the files below `root`, where they are not there already.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn extract(root: &Path) -> anyhow::Result<Self> {
        for (name, bytes) in FILES {
            let path = root.join(name);
            if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64) {
                continue;
            }
            let folder = path.parent().unwrap_or(root);
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The teacher's bundle.
    ///
    /// # Errors
    /// The binary was built without it.
    pub fn teacher(&self) -> anyhow::Result<PathBuf> {
        let path = self.root.join(TEACHER);
        if !path.join("manifest.json").is_file() {
            bail!("this binary was built without models/zoo/{TEACHER}: build it in a checkout that has the folder");
        }
        Ok(path)
    }

    /// The initial weights, when the zoo has some.
    pub fn init(&self) -> Option<PathBuf> {
        Some(self.root.join(INIT)).filter(|path| path.is_file())
    }

    /// How they were made.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn record(&self) -> anyhow::Result<Record> {
        let path = self.root.join(RECORD);
        if !path.is_file() {
            return Ok(Record::default());
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}
