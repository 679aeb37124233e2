//! How cost grows: with views, people and pixels at inference, with the batch in training, with devices at the collector. Each point is a
//! case of its own, measured like any other.

use crate::cases::{self, Case};
use crate::compare::{CaseReport, Effort, run};
use serde::{Deserialize, Serialize};

/// What grows, and what is told about it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As `--only` takes it.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What grows.
    pub x: &'static str,
    told: Told,
    cases: Vec<(usize, Case)>,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    /// Milliseconds of a repetition.
    Milliseconds,
    /// So many of x in a second.
    XPerSecond(&'static str),
    /// So many labels in a second.
    LabelsPerSecond,
}

/// A curve for each side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// As `--only` takes it.
    pub name: String,
    /// For people.
    pub title: String,
    /// What grows.
    pub x: String,
    /// What is told about it.
    pub y: String,
    /// Whether x grows by factors.
    #[serde(default)]
    pub logarithmic: bool,
    /// By growing x.
    pub points: Vec<Point>,
}

/// One point of each side's curve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// How much there is.
    pub x: f64,
    /// What is told, by side.
    pub y: Vec<(String, f64)>,
    /// What was measured.
    pub report: CaseReport,
}

/// All curves, of `nano`.
pub fn all() -> Vec<Plan> {
    let curve = |name, title, x, told, cases| Plan { name, title, x, told, cases };
    vec![
        curve("views", "A frame by many views", "views", Told::Milliseconds, cases::by_views(&[1, 2, 4, 6, 10, 14, 18])),
        curve(
            "people",
            "A frame with many people, one view, boxes given",
            "people",
            Told::Milliseconds,
            cases::by_people(&[1, 2, 4, 8, 16, 32, 64]),
        ),
        curve(
            "size",
            "A frame of many pixels, one view, one person",
            "short side, px",
            Told::Milliseconds,
            cases::by_size(&[64, 96, 128, 192, 256, 384, 512]),
        ),
        curve("batch", "Training, 144 px", "batch", Told::XPerSecond("images/s"), cases::by_batch(&[1, 2, 4, 8, 16, 32])),
        curve("devices", "Labels that become durable", "devices", Told::LabelsPerSecond, cases::by_devices(&[1, 10, 100, 1000, 10_000])),
    ]
}

impl Plan {
    /// Only so many points, the smallest.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.cases.truncate(count);
        self
    }

    /// Measures every point; `each` is told of it.
    pub fn measure(&self, effort: &Effort, mut each: impl FnMut(&CaseReport)) -> Curve {
        let points = self.cases.iter().map(|(x, case)| {
            let report = run(case, effort);
            each(&report);
            let told = |seconds: f64| match self.told {
                Told::Milliseconds => 1e3 * seconds,
                Told::XPerSecond(_) => *x as f64 / seconds,
                Told::LabelsPerSecond => case.task.labels as f64 / seconds,
            };
            let y = report.sides.iter().map(|side| (side.side.clone(), told(side.spread.median))).collect();
            Point { x: *x as f64, y, report }
        });
        let y = match self.told {
            Told::Milliseconds => "ms per frame",
            Told::XPerSecond(y) => y,
            Told::LabelsPerSecond => "labels/s",
        };
        let logarithmic = !["views", "people"].contains(&self.name);
        Curve {
            logarithmic,
            name: self.name.to_owned(),
            title: self.title.to_owned(),
            x: self.x.to_owned(),
            y: y.to_owned(),
            points: points.collect(),
        }
    }
}
