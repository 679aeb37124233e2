//! `omnilabel-trainer dataset export`: labels of the centre, generated or by hand, or a COCO keypoint folder.

use super::open;
use crate::cli::run::runtime;
use crate::formats::table::{Row, RowKeypoint, Source, Table};
use crate::formats::{Coordinates, Format, FormatError, Lost, export, write_folder, write_labels};
use crate::service::config::ServiceConfig;
use crate::service::dataset::{Exporter, HardInstance, hard_instances, picture_name};
use crate::service::hand::Person;
use crate::service::store::Store;
use crate::service::store::audit::{StoredLabel, Which};
use anyhow::{Context, anyhow, bail, ensure};
use omnilabel_bundle::{Bundle, hex, sha256_file};
use omnilabel_coco::Dataset;
use omnilabel_console::say;
use omnilabel_keypoints::label::{Label, Thresholds};
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg, Message};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md): the labels that it has collected
    #[arg(long, required_unless_present = "data", conflicts_with = "data")]
    config: Option<PathBuf>,
    /// A COCO keypoint folder instead: a manual set, or a round's `generated`
    #[arg(long)]
    data: Option<PathBuf>,
    /// New folder
    #[arg(long)]
    out: PathBuf,
    /// What is written
    #[arg(long, value_enum, default_value = "coco")]
    format: To,
    /// Only of this device
    #[arg(long, conflicts_with = "data")]
    device: Option<String>,
    /// Only by the model of this release; 0 is the provisioned one
    #[arg(long, conflicts_with = "data")]
    model: Option<u64>,
    /// Labels that people accepted or corrected, as they said; without it, those that nobody judged
    #[arg(long, conflicts_with_all = ["data", "score", "keypoint"])]
    manual: bool,
    /// τ: people with a lower score are left out; the running model's without it
    #[arg(long, conflicts_with = "data")]
    score: Option<f32>,
    /// τ_k: keypoints with a lower probability are left unlabelled; the running model's without it
    #[arg(long, conflicts_with = "data")]
    keypoint: Option<f32>,
    /// What the keypoints' coordinates count from; what the format's own tool means without it
    #[arg(long, value_enum)]
    coordinates: Option<Coordinates>,
    /// Leave the pictures out, and take labels without pictures in (parquet)
    #[arg(long)]
    without_pictures: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum To {
    /// COCO keypoints: `annotations.json` and `images/`
    Coco,
    /// FiftyOne's COCODetectionDataset: `labels.json` and `data/`
    Fiftyone,
    /// CVAT for images 1.1: `annotations.xml` and `images/`
    Cvat,
    /// Label Studio: `tasks.json`, `label_config.xml` and `images/`
    LabelStudio,
    /// Ultralytics' pose folder: `data.yaml`, `labels/` and `images/`
    Ultralytics,
    /// A table, one row a person: `labels.parquet` and `images/`
    Parquet,
}

impl To {
    const fn format(self) -> Option<Format> {
        match self {
            Self::Coco => Some(Format::Coco),
            Self::Fiftyone => Some(Format::Fiftyone),
            Self::Cvat => Some(Format::Cvat),
            Self::LabelStudio => Some(Format::LabelStudio),
            Self::Ultralytics => Some(Format::Ultralytics),
            Self::Parquet => None,
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    for (what, given) in [("--score", args.score), ("--keypoint", args.keypoint)] {
        ensure!(given.is_none_or(|given| (0.0..=1.0).contains(&given)), "{what} is {}, expected 0 to 1", given.unwrap_or_default());
    }
    ensure!(!args.out.exists(), "{}: is there already; an export gets a folder of its own", args.out.display());
    let table = args.format == To::Parquet;
    ensure!(table || !args.without_pictures, "--without-pictures is for parquet: other formats need their pictures");
    ensure!(!table || args.coordinates.is_none(), "--coordinates is not for parquet, which has COCO's");
    match (&args.data, &args.config) {
        (Some(data), _) => folder(args, &Dataset::load(data).context("--data")?),
        (None, Some(config)) => {
            let done = collected(args, &ServiceConfig::load(config)?);
            if done.is_err() {
                // The folder was not there before; what went wrong is told already.
                drop(std::fs::remove_dir_all(&args.out));
            }
            done
        }
        (None, None) => bail!("expected --config or --data"),
    }
}

fn tell(lost: &Lost, format: To) {
    let Lost { crowds, keypoints, boxes } = lost;
    if format == To::Ultralytics && crowds + keypoints + boxes > 0 {
        say!("not in this format: {crowds} crowds, {keypoints} keypoints outside of their picture, the outside of {boxes} boxes");
    }
}

/// A COCO folder in another format.
fn folder(args: &Args, dataset: &Dataset) -> anyhow::Result<()> {
    let out = &args.out;
    let people = dataset.annotations.len();
    match args.format.format() {
        Some(format) => tell(&export(dataset, format, args.coordinates, out)?, args.format),
        None => write_folder(out, |part| folder_table(dataset, part, args.without_pictures))?,
    }
    say!("{}: {} images, {people} people and crowds", out.display(), dataset.images.len());
    Ok(())
}

fn folder_table(dataset: &Dataset, out: &Path, without_pictures: bool) -> Result<(), FormatError> {
    let mut table = Table::create(&out.join("labels.parquet"))?;
    for image in &dataset.images {
        let path = dataset.image_path(image);
        let io = |source| FormatError::Io { path: path.clone(), source };
        let bytes = std::fs::read(&path).map_err(io)?;
        let sha256: Arc<str> = hex(&Sha256::digest(&bytes)).into();
        let picture: Arc<str> = image.file_name.as_str().into();
        if !without_pictures {
            let to = out.join("images").join(&image.file_name);
            std::fs::create_dir_all(to.parent().unwrap_or(out)).and_then(|()| std::fs::write(&to, &bytes)).map_err(io)?;
        }
        for annotation in dataset.annotations_of(image.id) {
            let place = |k: &[f64]| RowKeypoint { place: [k[0], k[1], k[2]], score: None };
            table.add(Row {
                picture: Arc::clone(&picture),
                sha256: Some(Arc::clone(&sha256)),
                size: (image.width, image.height),
                crowd: annotation.iscrowd == 1,
                bbox: annotation.bbox,
                keypoints: annotation.keypoints.chunks_exact(3).map(place).collect(),
                ..Row::default()
            })?;
        }
    }
    table.finish().map(drop)
}

/// Where an image comes from, a line of `provenance.jsonl`.
#[derive(Serialize)]
struct Provenance<'a> {
    file_name: String,
    sha256: String,
    device: &'a str,
    epoch: u64,
    sequence: u64,
    frame: u64,
    camera: &'a str,
    captured_ms: u64,
    received_ms: i64,
    model: u64,
    model_hash: String,
    views: u16,
    faces_blurred: bool,
    /// Of generated labels; a person is told no threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    tau: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tau_k: Option<f32>,
    /// Of generated labels, in the order of the image's annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    people: Option<Vec<PersonProvenance>>,
    /// What a person said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    judged_ms: Option<i64>,
}

#[derive(Serialize)]
struct PersonProvenance {
    score: f32,
    /// Mean over the keypoints.
    agreement: f32,
}

/// A label of the store, read.
struct Read {
    name: String,
    message: LabelMsg,
    label: Label,
    faces_blurred: bool,
}

fn read(stored: &StoredLabel) -> anyhow::Result<Read> {
    let message = LabelMsg::decode(&stored.payload).with_context(|| format!("label {} of {}", stored.id, stored.device))?;
    let name = picture_name(&stored.device, stored.key());
    let (label, faces_blurred) = (message.label(), message.changes & FACES_BLURRED != 0);
    Ok(Read { name, message, label, faces_blurred })
}

/// Whether a label is of those that are wanted: what a person judged is no generated one any more.
fn is_wanted(args: &Args, stored: &StoredLabel) -> bool {
    stored.refused.is_none() && if args.manual { stored.people.is_some() } else { stored.verdict.is_none() }
}

/// Whom the picture shows, by who accepted or corrected the label, where that is asked for.
fn by_hand(args: &Args, stored: &StoredLabel) -> anyhow::Result<Option<Vec<Person>>> {
    let said = stored.people.as_deref().filter(|_| args.manual).map(serde_json::from_str).transpose();
    said.with_context(|| format!("the verdict on label {} of {}", stored.id, stored.device))
}

/// The labels of the centre.
fn collected(args: &Args, config: &ServiceConfig) -> anyhow::Result<()> {
    let manual = Dataset::load(&config.data.manual).context("`data.manual`")?;
    runtime()?.block_on(async {
        let store = open(config).await?;
        let bundle = store.running_release().await?.map_or_else(|| config.model.running.clone(), |row| PathBuf::from(row.bundle));
        let Thresholds { instance, keypoint, floor } = Bundle::open(&bundle)?.manifest().thresholds;
        let thresholds = Thresholds { instance: args.score.unwrap_or(instance), keypoint: args.keypoint.unwrap_or(keypoint), floor };
        match args.format.format() {
            Some(format) => collected_folder(args, &store, &manual, thresholds, format).await,
            None => collected_table(args, &store, &manual, thresholds).await,
        }
    })
}

fn nothing(args: &Args) -> anyhow::Error {
    let of = if args.manual { "that a person accepted or corrected" } else { "with a picture that nobody judged" };
    anyhow!("{}: no label {of} is from this device and model: `dataset stats` lists them", args.out.display())
}

async fn collected_folder(args: &Args, store: &Store, manual: &Dataset, thresholds: Thresholds, format: Format) -> anyhow::Result<()> {
    let out = &args.out;
    let mut exporter = match args.manual {
        true => Exporter::by_hand(out, manual)?,
        false => Exporter::new(out, manual, thresholds, thresholds.instance)?,
    };
    let path = out.join("provenance.jsonl");
    let mut provenance = std::io::BufWriter::new(std::fs::File::create(&path).with_context(|| path.display().to_string())?);
    let which = Which { device: args.device.clone(), model: args.model };
    let look = |stored: StoredLabel| {
        let Some(jpeg) = stored.jpeg.as_ref().filter(|_| is_wanted(args, &stored)) else { return Ok(()) };
        let Read { name, message, label, faces_blurred } = read(&stored)?;
        let is_used = match by_hand(args, &stored)? {
            Some(people) => exporter.add_by_hand(&name, label.size, &people, jpeg)?,
            None => exporter.add(&name, &label, faces_blurred, jpeg)?,
        };
        if !is_used {
            return Ok(());
        }
        let person = |hard: &HardInstance<'_>| PersonProvenance { score: hard.detection.score, agreement: hard.detection.agreement() };
        let people = || -> Vec<PersonProvenance> {
            let hard = hard_instances(&label, &manual.skeleton, thresholds, thresholds.instance, faces_blurred);
            hard.iter().map(person).collect()
        };
        let line = serde_json::to_string(&Provenance {
            file_name: format!("{name}.jpg"),
            sha256: hex(&Sha256::digest(jpeg)),
            device: &stored.device,
            epoch: stored.key().epoch,
            sequence: stored.key().sequence,
            frame: message.frame,
            camera: &message.camera,
            captured_ms: message.captured_ms,
            received_ms: stored.received_ms,
            model: stored.model(),
            model_hash: format!("{:016x}", message.model_hash),
            views: message.views,
            faces_blurred,
            tau: (!args.manual).then_some(thresholds.instance),
            tau_k: (!args.manual).then_some(thresholds.keypoint),
            people: (!args.manual).then(people),
            verdict: stored.verdict.as_deref(),
            version: stored.version.filter(|_| args.manual),
            judged_ms: stored.at_ms.filter(|_| args.manual),
        })?;
        writeln!(provenance, "{line}").with_context(|| path.display().to_string())
    };
    store.each(&which, look).await?;
    provenance.flush().with_context(|| path.display().to_string())?;
    let exported = exporter.finish()?;
    if exported.images == 0 {
        return Err(nothing(args));
    }
    if format != Format::Coco || args.coordinates.is_some() {
        let dataset = Dataset::load(out)?;
        let (from, to) = (out.join("images"), out.join(format.pictures()));
        if from != to {
            std::fs::rename(&from, &to).with_context(|| to.display().to_string())?;
        }
        // Its place is taken by the format's own file, or by none.
        let ours = out.join("annotations.json");
        std::fs::remove_file(&ours).with_context(|| ours.display().to_string())?;
        tell(&write_labels(&dataset, format, args.coordinates, out)?, args.format);
    }
    say!(
        "{}: {} images, {} people, {} labels skipped whose picture cannot be used; snapshot {}",
        out.display(),
        exported.images,
        exported.instances,
        exported.skipped,
        exported.sha256
    );
    Ok(())
}

async fn collected_table(args: &Args, store: &Store, manual: &Dataset, thresholds: Thresholds) -> anyhow::Result<()> {
    let images = args.out.join("images");
    let folder = if args.without_pictures { &args.out } else { &images };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = args.out.join("labels.parquet");
    let mut table = Table::create(&path)?;
    let which = Which { device: args.device.clone(), model: args.model };
    let mut labels = 0_u64;
    let look = |stored: StoredLabel| {
        if !is_wanted(args, &stored) || (stored.jpeg.is_none() && !args.without_pictures) {
            return Ok(());
        }
        let Read { name, message, label, faces_blurred } = read(&stored)?;
        labels += 1;
        let file_name = format!("{name}.jpg");
        if let Some(jpeg) = stored.jpeg.as_ref().filter(|_| !args.without_pictures) {
            let path = images.join(&file_name);
            std::fs::write(&path, jpeg).with_context(|| path.display().to_string())?;
        }
        let source = Arc::new(Source {
            device: stored.device.clone(),
            epoch: stored.key().epoch,
            sequence: stored.key().sequence,
            frame: message.frame,
            camera: message.camera.as_str().to_owned(),
            captured_ms: message.captured_ms,
            received_ms: stored.received_ms,
            model: stored.model(),
            model_hash: message.model_hash,
            views: message.views,
            faces_blurred,
            thresholds: (!args.manual).then_some((thresholds.instance, thresholds.keypoint)),
        });
        let (picture, sha256): (Arc<str>, Option<Arc<str>>) = (file_name.into(), stored.sha256.as_deref().map(|sha256| hex(sha256).into()));
        let row = |person: &Person| Row {
            picture: Arc::clone(&picture),
            sha256: sha256.clone(),
            size: (label.size.width, label.size.height),
            source: Some(Arc::clone(&source)),
            bbox: person.bbox(),
            keypoints: person.coco().chunks_exact(3).map(|k| RowKeypoint { place: [k[0], k[1], k[2]], score: None }).collect(),
            ..Row::default()
        };
        if let Some(people) = by_hand(args, &stored)? {
            people.iter().try_for_each(|person| table.add(row(person)))?;
            return Ok(());
        }
        for hard in hard_instances(&label, &manual.skeleton, thresholds, thresholds.instance, faces_blurred) {
            let mut one = Row { score: Some((hard.detection.score, hard.detection.agreement())), crowd: hard.crowd, ..row(&hard.person) };
            for (keypoint, seen) in one.keypoints.iter_mut().zip(&hard.detection.keypoints) {
                keypoint.score = Some((seen.probability, seen.agreement));
            }
            table.add(one)?;
        }
        anyhow::Ok(())
    };
    store.each(&which, look).await?;
    let rows = table.finish()?;
    if labels == 0 {
        return Err(nothing(args));
    }
    let sha256 = hex(&sha256_file(&path)?);
    say!("{}: {labels} labels, {rows} people; snapshot {sha256}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests;
