//! `omnilabel-edge label`: a folder of images in, COCO results out.

use super::boxes::{self, Given};
use super::draw::Drawing;
use crate::annotate;
use crate::camera::images_of;
use crate::config::{TeacherConfig, TeacherDevice};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use omnilabel_bundle::Bundle;
use omnilabel_coco::{Dataset, ResultRecord, from_continuous, write_results};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_runtime::{RuntimeError, is_near};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AverageArg {
    Logits,
    Probabilities,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
    Auto,
}

/// Arguments of `label`.
#[derive(Args)]
pub(super) struct LabelArgs {
    /// The model bundle.
    #[arg(long)]
    model: PathBuf,
    /// A bundle that finds people for a top-down pose model, instead of the detector in its own bundle.
    #[arg(long, conflicts_with = "boxes")]
    detector: Option<PathBuf>,
    /// A folder of JPEG or PNG images, or a COCO folder (`annotations.json` and `images/`). Results name the category of the folder's
    /// annotations; without annotations it is 1, COCO's person.
    #[arg(long)]
    images: PathBuf,
    /// The results file (JSON).
    #[arg(long)]
    out: PathBuf,
    /// Short sides of the views in px; the model's own when not given.
    #[arg(long, value_delimiter = ',')]
    scales: Vec<u32>,
    /// Adds the mirror image of each view.
    #[arg(long)]
    flip: bool,
    /// Boxes to label in instead of the model's own: JSON, `[{"image_id": 1, "bbox": [x, y, w, h], "score": 0.9}, …]`. Entries that
    /// cannot be used are named and left out.
    #[arg(long)]
    boxes: Option<PathBuf>,
    /// What is averaged over the views.
    #[arg(long, value_enum, default_value = "logits")]
    average: AverageArg,
    /// Where a keypoint R-CNN runs; `auto`: on the GPU if it can.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceArg,
    /// Pools the boxes of all views.
    #[arg(long)]
    box_voting: bool,
    /// Instances below this score are left out, of the results (where the default is 0) and of `--draw` (where it is the model's τ).
    #[arg(long)]
    min_score: Option<f32>,
    /// Draws boxes, skeletons and scores over the pictures, into this folder, with an `index.html`; a new or empty folder, or one that
    /// was drawn into before.
    #[arg(long)]
    draw: Option<PathBuf>,
    /// Worker threads; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Writes the summary as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct LabelSummary {
    images: usize,
    labelled: usize,
    instances: usize,
    /// Images that could not be read, with the reason.
    bad: Vec<String>,
    /// Boxes of `--boxes` that could not be used, with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bad_boxes: Vec<String>,
    /// The page of `--draw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drawn: Option<PathBuf>,
}

/// COCO's person.
const PERSON: u64 = 1;

/// The images to label with their ids, and the category of results.
fn images(folder: &Path) -> anyhow::Result<(Vec<(u64, PathBuf)>, u64)> {
    let parent = folder.parent().filter(|_| folder.file_name().is_some_and(|name| name == "images"));
    let root = [Some(folder), parent].into_iter().flatten().find(|root| root.join("annotations.json").is_file());
    if let Some(root) = root {
        let dataset = Dataset::load(root)?;
        let images = dataset.images.iter().map(|image| (image.id, dataset.image_path(image))).collect();
        return Ok((images, dataset.category_id()));
    }
    let files = images_of(folder)?;
    let stem = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
    let stems: Vec<Option<u64>> = files.iter().map(stem).collect();
    // Numbers in names are ids when every name has one and no two are the same; else images are counted from 1.
    let distinct: BTreeSet<u64> = stems.iter().flatten().copied().collect();
    let numbered = distinct.len() == files.len();
    let id = |(i, id): (usize, Option<u64>)| id.filter(|_| numbered).unwrap_or(i as u64 + 1);
    Ok((stems.into_iter().enumerate().map(id).zip(files).collect(), PERSON))
}

fn record(image_id: u64, category_id: u64, detection: &Detection) -> ResultRecord {
    let point =
        |k: &omnilabel_keypoints::label::Keypoint| [from_continuous(k.point.x), from_continuous(k.point.y), f64::from(k.probability)];
    ResultRecord {
        image_id,
        category_id,
        keypoints: detection.keypoints.iter().flat_map(point).collect(),
        score: f64::from(detection.score),
        // With a box, pycocotools would take the box's area for the keypoints'.
        bbox: None,
    }
}

/// Why box `index` of `--boxes` is left out once its picture is known.
fn far_away(path: &Path, index: usize, image: u64, rect: Rect, size: Size) -> String {
    let (Rect { x1, y1, .. }, Size { width, height }) = (rect, size);
    let bbox = format!("[{x1}, {y1}, {}, {}]", rect.width(), rect.height());
    format!("{}: box {index} of image {image}: bbox is {bbox}, far outside of the picture of {width} x {height} px", path.display())
}

/// What is drawn: from `--min-score` on, else all given boxes, else what passes the model's τ.
fn drawn_from(bundle: &Bundle, args: &LabelArgs) -> Thresholds {
    let thresholds = bundle.manifest().thresholds;
    let given = args.boxes.as_ref().map(|_| f32::NEG_INFINITY);
    Thresholds { instance: args.min_score.or(given).unwrap_or(thresholds.instance), ..thresholds }
}

pub(super) fn run(args: &LabelArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.model)?;
    let average = match args.average {
        AverageArg::Logits => Average::Logits,
        AverageArg::Probabilities => Average::Probabilities,
    };
    if let Some(scale) = args.scales.iter().find(|scale| !(16..=4096).contains(*scale)) {
        bail!("--scales has {scale}, expected short sides of 16 to 4096 px");
    }
    if let Some(score) = args.min_score.filter(|score| !score.is_finite()) {
        bail!("--min-score is {score}, expected a number");
    }
    if args.threads > 256 {
        bail!("--threads is {}, expected 0 to 256", args.threads);
    }
    let config = TeacherConfig {
        scales: args.scales.clone(),
        flip: args.flip,
        average,
        box_voting: args.box_voting,
        threads: args.threads,
        device: match args.device {
            DeviceArg::Cpu => TeacherDevice::Cpu,
            DeviceArg::Cuda => TeacherDevice::Cuda,
            DeviceArg::Auto => TeacherDevice::Auto,
        },
        detector: args.detector.clone(),
        ..TeacherConfig::default()
    };
    let mut plan = annotate::plan(bundle.manifest(), &config);
    plan.score_floor = args.min_score.unwrap_or(0.0);
    if let (Some(detector), false) = (&args.detector, bundle.manifest().network.takes_boxes()) {
        bail!("--detector {}: `{}` finds people by itself and takes no detector", detector.display(), bundle.manifest().name);
    }
    let teacher = annotate::teacher(&bundle, &config)?;
    if args.boxes.is_none() && !teacher.finds_people() {
        return Err(RuntimeError::NeedsBoxes { model: bundle.manifest().name.clone() }.into());
    }
    omnilabel_coco::may_become_results(&args.out).context("--out")?;
    let (images, category) = images(&args.images)?;
    if images.is_empty() {
        bail!("{}: no image to label, expected .jpg, .jpeg or .png files", args.images.display());
    }
    let ids: BTreeSet<u64> = images.iter().map(|(id, _)| *id).collect();
    let given = args.boxes.as_deref().map(|path| boxes::read(path, |id| ids.contains(&id))).transpose()?;
    let (boxes, bad_boxes) =
        given.map_or((None, Vec::new()), |Given { boxes, left_out }| (args.boxes.as_deref().zip(Some(boxes)), left_out));
    bad_boxes.iter().for_each(|reason| tracing::warn!("{reason}"));
    let open = |folder: &PathBuf| Drawing::open(folder, &args.images, &images, bundle.skeleton(), drawn_from(&bundle, args));
    let mut drawing = args.draw.as_ref().map(open).transpose()?;
    let mut undrawn = None;
    let mut results = Vec::new();
    let mut summary = LabelSummary { images: images.len(), labelled: 0, instances: 0, bad: Vec::new(), bad_boxes, drawn: None };
    for (id, path) in &images {
        let frame = match Frame::open(path) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!("{error}");
                summary.bad.push(error.to_string());
                continue;
            }
        };
        let detections = match &boxes {
            Some((file, boxes)) => match boxes.get(id) {
                Some(boxes) => {
                    let mut near = Vec::with_capacity(boxes.len());
                    for &(index, rect, score) in boxes {
                        if is_near(rect, frame.size) {
                            near.push((rect, score));
                            continue;
                        }
                        let reason = far_away(file, index, *id, rect, frame.size);
                        tracing::warn!("{reason}");
                        summary.bad_boxes.push(reason);
                    }
                    teacher.detect_in(&frame, &near, &plan)?
                }
                None => Vec::new(),
            },
            None => teacher.detect(&frame, &plan)?,
        };
        summary.labelled += 1;
        summary.instances += detections.len();
        if let Some(Err(error)) = drawing.as_mut().map(|drawing| drawing.add(*id, path, &frame, &detections)) {
            undrawn = Some(error);
            drawing = None;
        }
        results.extend(detections.iter().map(|detection| record(*id, category, detection)));
    }
    if summary.labelled == 0 {
        bail!("{}: none of the {} images could be read; the first: {}", args.images.display(), images.len(), summary.bad[0]);
    }
    write_results(&args.out, &results)?;
    // A full disk of pictures costs no results.
    if let Some(error) = undrawn {
        return Err(error).with_context(|| format!("{} is written; drawing was given up", args.out.display()));
    }
    summary.drawn = drawing.map(|drawing| drawing.finish(&summary.bad)).transpose()?;
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string(&summary)?);
    } else {
        omnilabel_console::say!("labelled {} of {} images, {} instances", summary.labelled, summary.images, summary.instances);
        if !summary.bad.is_empty() {
            omnilabel_console::say!("warning: {} images could not be read:", summary.bad.len());
            summary.bad.iter().for_each(|reason| omnilabel_console::say!("  {reason}"));
        }
        if !summary.bad_boxes.is_empty() {
            omnilabel_console::say!("warning: {} boxes could not be used:", summary.bad_boxes.len());
            summary.bad_boxes.iter().for_each(|reason| omnilabel_console::say!("  {reason}"));
        }
        if let Some(page) = &summary.drawn {
            omnilabel_console::say!("drawn: {}", page.display());
        }
    }
    Ok(())
}
