//! `omnilabel-trainer distill`

use super::common::{Stages, TrainFlags, ViewFlags, load, stop_flag};
use crate::calibrate::Mode;
use crate::distill::{DistillConfig, Outcome, distill, split_by_id, split_folder};
use crate::samples::plain_folder;
use anyhow::{Context, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// COCO keypoint folder whose labels are used
    #[arg(long, required_unless_present = "data", requires = "unlabelled")]
    labelled: Option<PathBuf>,
    /// COCO keypoint folder whose annotations are ignored, or a folder of pictures
    #[arg(long, required_unless_present = "data")]
    unlabelled: Option<PathBuf>,
    /// One folder (or one with `train/` and `val/`) instead of --labelled and --unlabelled, divided by --labelled-fraction
    #[arg(long, conflicts_with_all = ["labelled", "unlabelled"])]
    data: Option<PathBuf>,
    /// Share of --data that keeps its labels, the first images by id
    #[arg(long, default_value_t = 0.3, conflicts_with_all = ["labelled", "unlabelled"])]
    labelled_fraction: f64,
    /// Only the first so many images of --data
    #[arg(long, conflicts_with_all = ["labelled", "unlabelled"])]
    images: Option<usize>,
    /// Held-out COCO keypoint folder; with --data, its `val/` by default
    #[arg(long, required_unless_present = "data")]
    val: Option<PathBuf>,
    /// Only the first so many images of the held-out folder
    #[arg(long)]
    val_images: Option<usize>,
    /// Also train the upper bound on the true labels of the unlabelled images
    #[arg(long)]
    upper: bool,
    /// A bundle that is the teacher, instead of training one
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// A bundle that finds people, where --teacher is a top-down pose model without a detector in its bundle
    #[arg(long, requires = "teacher")]
    detector: Option<PathBuf>,
    #[command(flatten)]
    views: ViewFlags,
    /// Optimiser steps of the teacher
    #[arg(long, conflicts_with = "teacher")]
    teacher_steps: Option<u64>,
    /// Optimiser steps of the student and the upper bound
    #[arg(long)]
    student_steps: Option<u64>,
    /// Train the lower bound anew with the student's steps where they differ from the teacher's
    #[arg(long)]
    equal_steps: bool,
    /// How τ is chosen
    #[arg(long, value_enum, default_value = "paper")]
    tau: Mode,
    /// Instances from this share of τ on become ignore regions (the paper has none)
    #[arg(long)]
    ignore_from: Option<f32>,
    #[command(flatten)]
    flags: TrainFlags,
    /// Where everything is written; run again, finished stages are skipped
    #[arg(long)]
    out: PathBuf,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 200)]
    checkpoint_every: u64,
    /// Print the report as JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    args.flags.try_device()?;
    if let Some(share) = args.ignore_from.filter(|share| !(0.0..=1.0).contains(share)) {
        bail!("--ignore-from is {share}, expected a number from 0 to 1");
    }
    let (labelled, unlabelled, left_out) = match (&args.data, &args.labelled, &args.unlabelled) {
        (Some(data), ..) => {
            if !(args.labelled_fraction > 0.0 && args.labelled_fraction < 1.0) {
                bail!("--labelled-fraction must be above 0 and below 1, not {}", args.labelled_fraction);
            }
            let all = load(&split_folder(data, "train"), None, args.images)?;
            let (labelled, unlabelled) = split_by_id(&all, args.labelled_fraction);
            if labelled.images.is_empty() || unlabelled.images.is_empty() {
                let (of, share) = (all.images.len(), args.labelled_fraction);
                bail!(
                    "--labelled-fraction {share} of {of} images leaves {} with labels and {} without; expected some of each",
                    labelled.images.len(),
                    unlabelled.images.len()
                );
            }
            (labelled, unlabelled, Vec::new())
        }
        (None, Some(labelled), Some(unlabelled)) => {
            let labelled = load(labelled, None, None)?;
            let (unlabelled, left_out) = if unlabelled.join("annotations.json").exists() {
                (load(unlabelled, None, None)?, Vec::new())
            } else {
                plain_folder(unlabelled, &labelled.skeleton).with_context(|| unlabelled.display().to_string())?
            };
            (labelled, unlabelled, left_out)
        }
        _ => bail!("give --labelled and --unlabelled, or --data"),
    };
    let val = match (&args.val, &args.data) {
        (Some(val), _) => val.clone(),
        (None, Some(data)) if data.join("val/annotations.json").exists() => data.join("val"),
        _ => bail!("give --val: a held-out COCO keypoint folder"),
    };
    let training = args.flags.resolve(labelled.skeleton.len())?;
    let (teacher_options, student_options) = (training.options(args.teacher_steps)?, training.options(args.student_steps)?);
    let config = DistillConfig {
        val: load(&val, None, args.val_images)?,
        upper: args.upper,
        teacher: args.teacher,
        detector: args.detector,
        equal_steps: args.equal_steps,
        network: training.network,
        teacher_options,
        student_options,
        init: training.init,
        compute: training.compute,
        views: args.views.views()?,
        mode: args.tau,
        ignore_from: args.ignore_from,
        out: args.out,
        checkpoint_every: args.checkpoint_every,
        labelled,
        unlabelled,
        left_out,
    };
    let stop = stop_flag()?;
    let stages = Stages::default();
    match distill(&config, &|event| stages.show(event), &stop)? {
        Outcome::Finished(report) if args.json => omnilabel_console::say!("{}", serde_json::to_string(&report)?),
        Outcome::Finished(report) => omnilabel_console::say!("{}", report.table().trim_end()),
        Outcome::Stopped => omnilabel_console::say!("stopped; the same command continues"),
    }
    Ok(())
}
