//! COCO's ten keypoint numbers, from the two files.

use crate::side::{Task, Work};
use anyhow::Result;
use omnilabel_trainer::score::{CocoScores, GroundTruth, score};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) struct Score {
    folder: PathBuf,
}

impl Score {
    pub(crate) fn new(task: &Task) -> Self {
        Self { folder: task.folder.clone() }
    }

    fn scores(&self) -> Result<CocoScores> {
        let truth = GroundTruth::read(&self.folder.join("annotations.json"))?;
        let results = omnilabel_coco::read_results(&self.folder.join("results.json"))?;
        Ok(score(&truth, &results)?)
    }
}

impl Work for Score {
    fn check(&mut self) -> Result<Value> {
        Ok(json!({"scores": self.scores()?.named().into_iter().collect::<BTreeMap<_, _>>()}))
    }

    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.scores()?);
        Ok(())
    }
}
