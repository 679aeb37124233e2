//! What was measured: a table for people, JSON for programs, a chart.

use crate::chart;
use crate::compare::{CaseReport, Ceiling, QUIET};
use crate::scale::Curve;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was measured, and on what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// How it was asked for.
    pub command: String,
    /// The processor's name.
    pub processor: String,
    /// Its cores, as far as this process may use them.
    pub cores: usize,
    /// Threads of every side.
    pub threads: usize,
    /// Of the GPU, where one was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Ceiling>,
    /// What `ratio` means.
    pub ratio: String,
    /// One per case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<CaseReport>,
    /// How cost grows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<Curve>,
}

impl Report {
    /// Of nothing yet.
    pub fn new(threads: usize) -> Self {
        let processor = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Self {
            command: format!("omnilabel-bench {}", arguments.join(" ")),
            processor: processor.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            ceiling: None,
            ratio: "seconds of the peer over seconds of omnilabel in the same round; above 1 omnilabel is faster".to_owned(),
            cases: Vec::new(),
            curves: Vec::new(),
        }
    }

    /// Writes it beside its chart.
    ///
    /// # Errors
    /// The disk or the chart library refuses.
    pub fn write(&self, json: &Path, svg: &Path) -> Result<()> {
        for folder in [json, svg].into_iter().filter_map(Path::parent).filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::write(json, serde_json::to_vec_pretty(self)?).with_context(|| json.display().to_string())?;
        self.draw(svg)
    }

    /// Draws its chart.
    ///
    /// # Errors
    /// The disk or the chart library refuses.
    pub fn draw(&self, svg: &Path) -> Result<()> {
        let drawn = if self.curves.is_empty() { chart::ratios(&self.cases)? } else { chart::curves(&self.curves)? };
        std::fs::write(svg, drawn).with_context(|| svg.display().to_string())
    }

    /// Whether every case compared like with like.
    pub fn valid(&self) -> bool {
        let points = self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| &point.report));
        self.cases.iter().chain(points).all(|case| case.invalid.is_none())
    }
}

/// The table's head.
pub fn head() -> String {
    format!("{:<46} {:<13} {:>11} {:>9}  ratio (quartiles)", "case", "side", "one takes", "peak")
}

/// A case's lines of the table.
pub fn lines(case: &CaseReport, ceiling: Option<&Ceiling>) -> Vec<String> {
    if let Some(reason) = &case.invalid {
        return vec![format!("{:<46} INVALID: {reason}", case.what)];
    }
    let mut lines = Vec::new();
    for (index, side) in case.sides.iter().enumerate() {
        let ratio = side.ratio.map_or(String::new(), |r| format!("{:>6.2}x  ({:.2} to {:.2})", r.median, r.q1, r.q3));
        let what = if index == 0 { case.what.as_str() } else { "" };
        let peak = side.memory.peak as f64 / 1e6;
        lines.push(format!("{what:<46} {:<13} {:>11} {peak:>6.0} MB  {ratio}", side.side, time(side.spread.median)));
    }
    let left = if case.disturbed > 0 { format!(", {} left out", case.disturbed) } else { String::new() };
    let busy = if case.others > QUIET { ": TOO BUSY, do not quote" } else { "" };
    lines.push(format!("    {} rounds{left}; others took {:.0} % of the processor{busy}", case.rounds, 100.0 * case.others));
    for side in &case.sides {
        if let Some((flops, most)) = case.flops.zip(ceiling.and_then(|ceiling| ceiling.of(case.precision))) {
            let (rate, seconds) = (case.pictures as f64 / side.spread.median, side.spread.median);
            let share = 100.0 * flops / seconds / most;
            lines.push(format!(
                "    {}: {rate:.1} pictures/s, {:.2} TFLOP/s, {share:.1} % of the ceiling",
                side.side,
                flops / seconds / 1e12
            ));
        }
    }
    lines.extend(case.sides.iter().filter_map(|side| Some(format!("    {}: {}", side.side, side.agreement.as_ref()?))));
    lines
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}
