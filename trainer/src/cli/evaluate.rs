//! `omnilabel-trainer evaluate`

use super::common::{ViewFlags, bar, load, stop_flag};
use crate::evaluate::{Views, compare, evaluate};
use crate::gallery::Gallery;
use anyhow::Context;
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::ensemble::Average;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Exported bundle
    #[arg(long)]
    model: PathBuf,
    /// Bundle that finds people for a top-down pose model, instead of the detector in its own bundle
    #[arg(long)]
    detector: Option<PathBuf>,
    /// COCO keypoint folder with labels
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    views: ViewFlags,
    /// Also score the views with either average, without and with box voting
    #[arg(long)]
    compare: bool,
    /// Only the first so many images by id
    #[arg(long)]
    limit: Option<usize>,
    /// Write the detections as a COCO results file (the ensemble's, if there is one)
    #[arg(long)]
    results_out: Option<PathBuf>,
    /// Draw predictions beside labels into this folder, the worst pictures first, with an `index.html` (a new or empty folder, or one
    /// that was drawn into before)
    #[arg(long)]
    draw: Option<PathBuf>,
    /// Draw only so many pictures, the worst
    #[arg(long, requires = "draw")]
    draw_limit: Option<NonZeroUsize>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let dataset = load(&args.data, None, args.limit)?;
    let bundle = Bundle::open(&args.model)?;
    let detector = args.detector.as_deref().map(Bundle::open).transpose()?;
    let teacher = crate::evaluate::load_detected(&bundle, detector.as_ref())?;
    let views = Some(args.views.views()?).filter(|views| args.compare || *views != Views::default());
    let passes = 1 + usize::from(views.is_some()) + 3 * usize::from(args.compare);
    let open = |folder: &PathBuf| Gallery::open(folder, &bundle.manifest().name, &dataset, bundle.manifest().thresholds);
    let gallery = args.draw.as_ref().map(open).transpose()?;
    if let Some(path) = &args.results_out {
        omnilabel_coco::may_become_results(path).context("--results-out")?;
    }
    let stop = stop_flag()?;
    let progress = bar((dataset.images.len() * passes) as u64, "images")?.with_prefix("evaluate");
    let (mut evaluation, detections) = evaluate(&teacher, &dataset, views.as_ref(), &|n| progress.set_position(n as u64), &stop)?;
    if let Some(ensemble) = evaluation.ensemble.as_ref().filter(|_| args.compare) {
        let first = 2 * dataset.images.len();
        evaluation.compared = compare(&teacher, &dataset, ensemble, &|n| progress.set_position((first + n) as u64), &stop)?;
    }
    progress.finish_and_clear();
    if let Some(path) = &args.results_out {
        omnilabel_coco::write_results(path, &detections.results(&dataset))?;
    }
    for reason in &evaluation.unreadable {
        eprintln!("left out: {reason}");
    }
    let scores = evaluation.ensemble.as_ref().map_or(&evaluation.single, |ensemble| &ensemble.scores);
    let line = format!("{} pictures: AP {:.4}, AP50 {:.4}, AR {:.4}.", evaluation.images, scores.ap, scores.ap50, scores.ar);
    let page = gallery.map(|gallery| gallery.draw(&detections, args.draw_limit, &[line])).transpose()?;
    if args.json {
        let mut told = serde_json::to_value(&evaluation)?;
        if let Some(page) = &page {
            told["drawn"] = serde_json::to_value(page)?;
        }
        omnilabel_console::say!("{told}");
        return Ok(());
    }
    omnilabel_console::say!("{} images, model {}", evaluation.images, bundle.manifest().name);
    let mut columns = vec![("single", &evaluation.single)];
    match &evaluation.ensemble {
        Some(_) if args.compare => columns.extend(evaluation.compared.iter().map(|e| (name(&e.views), &e.scores))),
        Some(ensemble) => columns.push(("ensemble", &ensemble.scores)),
        None => columns[0].0 = "",
    }
    super::score::print(&columns);
    if let Some(page) = &page {
        omnilabel_console::say!("drawn: {}", page.display());
    }
    Ok(())
}

/// The column of a comparison.
const fn name(views: &Views) -> &'static str {
    match (views.average, views.box_voting) {
        (Average::Logits, false) => "logits",
        (Average::Logits, true) => "logits+vote",
        (Average::Probabilities, false) => "prob",
        (Average::Probabilities, true) => "prob+vote",
    }
}
