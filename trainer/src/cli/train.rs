//! `omnilabel-trainer train`

use super::common::{TrainFlags, Weights, bar, load, stop_flag};
use crate::arm::{ArmConfig, ArmOutcome, amend, begun, provisional, train_arm};
use crate::distill::calibrate_on;
use crate::evaluate::{evaluate, labelled};
use crate::mix::MANUAL_PERCENT;
use crate::samples::SampleSet;
use anyhow::{Context, bail};
use omnilabel_bundle::{Bundle, hex};
use omnilabel_coco::Dataset;
use omnilabel_rcnn::params::Precision;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// COCO keypoint folder: `images/` and `annotations.json`
    #[arg(long)]
    data: PathBuf,
    /// Use only this share of the images, the first by id
    #[arg(long)]
    limit_fraction: Option<f64>,
    /// Use only the first so many images by id
    #[arg(long)]
    images: Option<usize>,
    /// Optimiser steps
    #[arg(long)]
    steps: Option<u64>,
    #[command(flatten)]
    flags: TrainFlags,
    /// Where the arm is written; the bundle is OUT/bundle
    #[arg(long)]
    out: PathBuf,
    /// Held-out COCO keypoint folder: scores the exported bundle and calibrates its thresholds
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Name in the bundle's manifest
    #[arg(long, default_value = "model")]
    name: String,
    /// Steps between checkpoints (0: only when stopped)
    #[arg(long, default_value_t = 200)]
    checkpoint_every: u64,
    /// Golden frames of the bundle
    #[arg(long, default_value_t = 2)]
    golden: usize,
    /// Precision of the weights in the bundle; either way the graphs compute in f32
    #[arg(long, value_enum, default_value = "f32")]
    weights: Weights,
    /// Continue what OUT holds
    #[arg(long)]
    resume: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.out.join("arm.json").exists() && !args.resume && begun(&args.out) {
        bail!("{} holds a training run; --resume continues it, another --out begins anew", args.out.display());
    }
    args.flags.try_device()?;
    let dataset = load(&args.data, args.limit_fraction, args.images)?;
    let eval = args.eval.as_deref().map(|dir| load(dir, None, None)).transpose()?;
    if let Some(eval) = &eval {
        labelled(eval).context("--eval")?;
    }
    let training = args.flags.resolve(dataset.skeleton.len())?;
    let options = training.options(args.steps)?;
    let samples = SampleSet::load(&dataset)?;
    for left_out in &samples.left_out {
        eprintln!("left out: {}: {}", left_out.name, left_out.reason);
    }
    let arm = ArmConfig {
        name: args.name,
        network: training.network,
        options,
        init: training.init,
        out: args.out.clone(),
        checkpoint_every: args.checkpoint_every,
        thresholds: provisional(),
        parent: None,
        golden: args.golden,
        manual_percent: MANUAL_PERCENT,
        weights: if args.weights == Weights::F16 { Precision::F16 } else { Precision::F32 },
        compute: training.compute,
    };
    let stop = stop_flag()?;
    let progress = bar(arm.options.steps, "steps")?.with_prefix("train");
    let outcome = train_arm(
        &arm,
        &samples,
        None,
        &mut |r| {
            progress.set_position(r.step);
            progress.set_message(format!("loss {:.3} kp {:.3} {:.1} img/s", r.losses.total(), r.losses.keypoint, r.images_per_sec));
        },
        &stop,
    )?;
    progress.finish_and_clear();
    let bundle = match outcome {
        ArmOutcome::Stopped { step } => {
            omnilabel_console::say!("stopped after step {step} of {}; --resume continues", arm.options.steps);
            return Ok(());
        }
        ArmOutcome::Finished(bundle) => *bundle,
    };
    finish(&bundle, eval.as_ref(), samples.left_out.len(), args.json, &stop)
}

/// Evaluates, amends and reports.
fn finish(
    bundle: &Bundle,
    eval: Option<&Dataset>,
    left_out: usize,
    json: bool,
    stop: &std::sync::atomic::AtomicBool,
) -> anyhow::Result<()> {
    let mut evaluation = None;
    let mut sealed = bundle.clone();
    if let Some(dataset) = eval {
        let progress = bar(dataset.images.len() as u64, "images")?.with_prefix("evaluate");
        let (scores, detections) = evaluate(&crate::evaluate::load(bundle)?, dataset, None, &|n| progress.set_position(n as u64), stop)?;
        progress.finish_and_clear();
        let thresholds = calibrate_on(dataset, &detections).thresholds;
        sealed = amend(bundle.root(), |manifest| {
            manifest.ap = Some(scores.single.ap);
            manifest.thresholds = thresholds;
        })?;
        evaluation = Some(scores);
    }
    if json {
        let report = serde_json::json!({
            "bundle": sealed.root(), "sha256": hex(&sealed.sha256()), "left_out": left_out, "evaluation": evaluation,
        });
        omnilabel_console::say!("{report}");
        return Ok(());
    }
    omnilabel_console::say!("bundle {} ({})", sealed.root().display(), &hex(&sealed.sha256())[..12]);
    if let Some(evaluation) = &evaluation {
        super::score::print(&[("", &evaluation.single)]);
    }
    Ok(())
}
