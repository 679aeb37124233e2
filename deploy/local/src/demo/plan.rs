//! How much of everything fits into the minutes.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// What one demo does. The same plan gives the same data and the same schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Minutes on two cores that it was made for.
    pub minutes: f64,
    /// A COCO keypoint folder with `train` and `val`; rendered scenes without it.
    pub data: Option<PathBuf>,
    /// Whether the upper bound is trained live.
    pub upper: bool,
    /// Optimiser steps of every arm.
    pub steps: u64,
    /// Pictures per step.
    pub batch: u64,
    /// Manually labelled pictures at most.
    pub manual: u64,
    /// Held-out labelled pictures for thresholds and gate.
    pub heldout: u64,
    /// Labelled pictures that nothing but the table is made from.
    pub val: u64,
    /// Pictures of each of the two cameras.
    pub footage: u64,
}

/// The minutes for which the shipped upper bound was computed.
pub(super) const DEFAULT_MINUTES: f64 = 8.0;

const BATCH: u64 = 8;
/// Steps of each of two arms per minute of the whole demo.
const STEPS_PER_MINUTE: f64 = 100.0;
/// Each of three arms of a data set of one's own: teacher and student, with the footage's labelling between them.
const DATA_STEPS_PER_MINUTE: f64 = 125.0;
const FOOTAGE_PER_MINUTE: f64 = 50.0;
/// The share of `train` that keeps its labels.
pub(super) const LABELLED_SHARE: f64 = 0.3;

impl Plan {
    /// Rendered scenes.
    pub fn scenes(minutes: f64, upper: bool) -> Self {
        Self {
            minutes,
            data: None,
            upper,
            steps: scale(STEPS_PER_MINUTE, minutes, 10),
            batch: BATCH,
            manual: 60,
            heldout: scale(20.0, minutes.min(DEFAULT_MINUTES), 20),
            val: scale(25.0, minutes.min(DEFAULT_MINUTES), 20),
            footage: scale(FOOTAGE_PER_MINUTE, minutes, 20),
        }
    }

    /// A COCO keypoint folder.
    pub fn folder(data: PathBuf, minutes: f64, upper: bool) -> Self {
        let plan = Self::scenes(minutes, upper);
        Self { data: Some(data), manual: scale(200.0, minutes, 40), steps: scale(DATA_STEPS_PER_MINUTE, minutes, 10), ..plan }
    }
}

fn scale(per_minute: f64, minutes: f64, least: u64) -> u64 {
    ((per_minute * minutes).round() as u64).max(least)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            Some(data) => write!(f, "{}, ", data.display())?,
            None => write!(f, "rendered scenes, ")?,
        }
        write!(f, "{} minutes, {} steps{}", self.minutes, self.steps, if self.upper { ", upper bound trained" } else { "" })
    }
}
