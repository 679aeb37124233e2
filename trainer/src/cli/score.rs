//! `omnilabel-trainer score`

use crate::score::{CocoScores, GroundTruth, score};
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// COCO keypoint ground truth (annotations.json)
    #[arg(long)]
    gt: PathBuf,
    /// COCO keypoint results (a JSON list)
    #[arg(long)]
    results: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let truth = GroundTruth::read(&args.gt)?;
    let results = omnilabel_coco::read_results(&args.results)?;
    let scores = score(&truth, &results).with_context(|| args.results.display().to_string())?;
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string(&scores)?);
    } else {
        print(&[("", &scores)]);
    }
    Ok(())
}

/// One column per named set of scores.
pub(super) fn print(columns: &[(&str, &CocoScores)]) {
    if columns.len() > 1 {
        omnilabel_console::say!("{:<6}{}", "", columns.iter().map(|(name, _)| format!(" {name:>11}")).collect::<String>());
    }
    for (row, (name, _)) in columns.first().map(|(_, s)| s.named()).into_iter().flatten().enumerate() {
        omnilabel_console::say!("{name:<6}{}", columns.iter().map(|(_, s)| format!(" {:>11.4}", s.named()[row].1)).collect::<String>());
    }
}
