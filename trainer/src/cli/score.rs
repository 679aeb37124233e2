//! `omnilabel-trainer score`

use super::common::bar;
use crate::score::{CocoScores, Difference, GroundTruth, bootstrap, score};
use anyhow::Context;
use omnilabel_coco::ResultRecord;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(super) struct Args {
    /// COCO keypoint ground truth (annotations.json)
    #[arg(long)]
    gt: PathBuf,
    /// COCO keypoint results (a JSON list)
    #[arg(long)]
    results: PathBuf,
    /// Other results for the same ground truth: says how much better the first are, and how sure that is
    #[arg(long)]
    against: Option<PathBuf>,
    /// Drawings of the images, with replacement, that say how sure the difference is (100 to 1,000,000)
    #[arg(long, default_value_t = 2000, requires = "against", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    resamples: u32,
    /// Seed of the drawings
    #[arg(long, default_value_t = 0, requires = "against")]
    seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let truth = GroundTruth::read(&args.gt)?;
    let results = omnilabel_coco::read_results(&args.results)?;
    let scores = score(&truth, &results).with_context(|| args.results.display().to_string())?;
    warn_of_strangers(&truth, &args.results, &results);
    let Some(against) = &args.against else {
        if args.json {
            omnilabel_console::say!("{}", serde_json::to_string(&scores)?);
        } else {
            print(&[("", &scores)]);
        }
        return Ok(());
    };
    let others = omnilabel_coco::read_results(against)?;
    let other = score(&truth, &others).with_context(|| against.display().to_string())?;
    warn_of_strangers(&truth, against, &others);
    let progress = bar(u64::from(args.resamples), "resamples")?.with_prefix("compare");
    let done = |n| progress.set_position(n as u64);
    let resampled = bootstrap(&truth, &[&results, &others], args.resamples as usize, args.seed, &done)?;
    progress.finish_and_clear();
    let difference = resampled.difference(0, 1, scores.ap - other.ap);
    let counted = resampled.count();
    let difference = difference.with_context(|| {
        let (gt, asked) = (args.gt.display(), args.resamples);
        format!("{gt}: {counted} of {asked} resamples have anybody who counts, at least 2 are needed; more --resamples may have")
    })?;
    if args.json {
        let report = serde_json::json!({
            "results": scores, "against": other, "difference": difference, "resamples": counted, "seed": args.seed,
        });
        omnilabel_console::say!("{report}");
        return Ok(());
    }
    print(&[("results", &scores), ("against", &other)]);
    let Difference { ap, spread, not_better } = difference;
    let [low, high] = spread.interval;
    omnilabel_console::say!(
        "\nAP {ap:+.4} ± {:.4}, 95 % {low:+.4} to {high:+.4}; not better in {:.1} % of {} resamples of {} images",
        spread.standard_error,
        100.0 * not_better,
        counted,
        truth.image_ids().len()
    );
    if counted < args.resamples as usize {
        omnilabel_console::say!(
            "(of {} resamples, {} have nobody who counts and are left out)",
            args.resamples,
            args.resamples as usize - counted
        );
    }
    Ok(())
}

/// Says how many results are of categories that are not scored, as in pycocotools.
fn warn_of_strangers(truth: &GroundTruth, path: &Path, results: &[ResultRecord]) {
    let strangers = results.iter().filter(|result| !truth.category_ids().contains(&result.category_id)).count();
    if strangers > 0 {
        let (of, known) = (results.len(), truth.category_ids());
        eprintln!(
            "warning: {}: {strangers} of {of} results are of other categories than the ground truth's {known:?} and do not count",
            path.display()
        );
    }
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
