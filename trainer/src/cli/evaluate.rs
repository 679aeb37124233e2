//! `omnilabel-trainer evaluate`

use super::common::{bar, load, stop_flag};
use crate::evaluate::{Views, evaluate};
use omnilabel_bundle::Bundle;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Exported bundle
    #[arg(long)]
    model: PathBuf,
    /// COCO keypoint folder with labels
    #[arg(long)]
    data: PathBuf,
    /// Short sides of the ensemble's views, such as 96,128,160
    #[arg(long, value_delimiter = ',')]
    scales: Vec<u32>,
    /// Each view also mirrored
    #[arg(long)]
    flip: bool,
    /// Only the first so many images by id
    #[arg(long)]
    limit: Option<usize>,
    /// Write the detections as a COCO results file (the ensemble's, if there is one)
    #[arg(long)]
    results_out: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let dataset = load(&args.data, None, args.limit)?;
    let bundle = Bundle::open(&args.model)?;
    let teacher = crate::evaluate::load(&bundle)?;
    let views = (args.flip || !args.scales.is_empty()).then_some(Views { scales: args.scales, flip: args.flip });
    let passes = if views.is_some() { 2 } else { 1 };
    let stop = stop_flag()?;
    let progress = bar((dataset.images.len() * passes) as u64, "images")?.with_prefix("evaluate");
    let (evaluation, detections) = evaluate(&teacher, &dataset, views.as_ref(), &|n| progress.set_position(n as u64), &stop)?;
    progress.finish_and_clear();
    if let Some(path) = &args.results_out {
        omnilabel_coco::write_results(path, &detections.results(&dataset))?;
    }
    for reason in &evaluation.unreadable {
        eprintln!("left out: {reason}");
    }
    if args.json {
        println!("{}", serde_json::to_string(&evaluation)?);
        return Ok(());
    }
    println!("{} images, model {}", evaluation.images, bundle.manifest().name);
    match &evaluation.ensemble {
        Some(ensemble) => super::score::print(&[("single", &evaluation.single), ("ensemble", &ensemble.scores)]),
        None => super::score::print(&[("", &evaluation.single)]),
    }
    Ok(())
}
