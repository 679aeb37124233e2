//! `omnilabel-trainer dataset`: what the labels are, whether they are whole, and a way out.

mod orphans;

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::dataset::Exporter;
use crate::service::store::Store;
use crate::service::store::audit::{StoredLabel, Which};
use crate::service::verify::{Verified, verify};
use anyhow::{Context, bail, ensure};
use omnilabel_bundle::Bundle;
use omnilabel_coco::Dataset;
use omnilabel_console::say;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg, Message};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Labels and people by device and model
    Stats(Common),
    /// Read every label and picture: are they what was sent, do accounts add up, does a held-out picture occur among them
    Verify(Common),
    /// Pictures in the object store that no label refers to, and labels whose picture is not there
    Orphans(orphans::Args),
    /// Labels with their pictures as a COCO keypoint folder, with where each comes from
    Export(Export),
}

#[derive(clap::Args)]
struct Common {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Export {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// New folder
    #[arg(long)]
    out: PathBuf,
    /// Only of this device
    #[arg(long)]
    device: Option<String>,
    /// Only by the model of this release; 0 is the provisioned one
    #[arg(long)]
    model: Option<u64>,
    /// τ: people with a lower score are left out; the running model's without it
    #[arg(long)]
    score: Option<f32>,
    /// τ_k: keypoints with a lower probability are left unlabelled; the running model's without it
    #[arg(long)]
    keypoint: Option<f32>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("warn");
    match args.what {
        What::Stats(common) => stats(&common),
        What::Verify(common) => run_verify(&common),
        What::Orphans(args) => orphans::run(&args),
        What::Export(export) => run_export(&export),
    }
}

async fn open(config: &ServiceConfig) -> anyhow::Result<Store> {
    Ok(Store::attach(config).await?)
}

#[derive(Default, Serialize)]
struct Group {
    labels: u64,
    pictures: u64,
    refused: u64,
    people: u64,
    kept: u64,
    /// Sum of the views' mean agreement on kept people's keypoints, for the mean.
    #[serde(skip)]
    agreement: f64,
    mean_agreement: Option<f64>,
}

fn stats(args: &Common) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let mut groups: BTreeMap<(String, u64), Group> = BTreeMap::new();
    runtime()?.block_on(async {
        let store = open(&config).await?;
        let look = |label: StoredLabel| {
            let group = groups.entry((label.device.clone(), label.model())).or_default();
            group.labels += 1;
            group.pictures += u64::from(label.jpeg.is_some());
            group.refused += u64::from(label.refused.is_some());
            let message = LabelMsg::decode(&label.payload).with_context(|| format!("label {} of {}", label.id, label.device))?;
            for instance in message.label().instances {
                group.people += 1;
                if instance.kept && !instance.detection.keypoints.is_empty() {
                    group.kept += 1;
                    group.agreement += f64::from(instance.detection.agreement());
                }
            }
            anyhow::Ok(())
        };
        store.each_row(&Which::default(), look).await
    })?;
    for group in groups.values_mut() {
        group.mean_agreement = (group.kept > 0).then(|| group.agreement / group.kept as f64);
    }
    if args.json {
        #[derive(Serialize)]
        struct Row<'a> {
            device: &'a str,
            model: u64,
            #[serde(flatten)]
            group: &'a Group,
        }
        let rows: Vec<Row<'_>> = groups.iter().map(|((device, model), group)| Row { device, model: *model, group }).collect();
        say!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    say!(
        "{:<20} {:>6} {:>9} {:>9} {:>8} {:>9} {:>9} {:>10}",
        "device",
        "model",
        "labels",
        "pictures",
        "refused",
        "people",
        "kept",
        "agreement"
    );
    for ((device, model), Group { labels, pictures, refused, people, kept, mean_agreement, .. }) in &groups {
        let agreement = mean_agreement.map_or("–".to_owned(), |mean| format!("{mean:.2}"));
        say!("{device:<20} {model:>6} {labels:>9} {pictures:>9} {refused:>8} {people:>9} {kept:>9} {agreement:>10}");
    }
    Ok(())
}

fn run_verify(args: &Common) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let heldout = Dataset::load(&config.data.heldout).context("`data.heldout`")?;
    let bar = indicatif::ProgressBar::new_spinner().with_message("labels read");
    let found = runtime()?.block_on(async {
        let store = open(&config).await?;
        verify(&store, &heldout, &|labels| bar.set_position(labels)).await
    })?;
    bar.finish_and_clear();
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        let Verified { labels, pictures, wrong, problems, heldout_unread, leaks, leaked, .. } = &found;
        say!("{labels} labels, {pictures} pictures: {wrong} problems; {leaks} nearly show a held-out picture");
        if *heldout_unread > 0 {
            say!("{heldout_unread} held-out pictures cannot be read, and were compared with nothing");
        }
        problems.iter().for_each(|problem| say!("{problem}"));
        leaked.iter().for_each(|(name, image, bits)| say!("{name}: like {image} of the held-out set, {bits} of 64 bits differ"));
    }
    if found.orphans > 0 && !args.json {
        say!("{} objects of the object store are of no label: `dataset orphans` lists and deletes them", found.orphans);
    }
    if found.wrong > 0 {
        bail!("{} problems", found.wrong);
    }
    Ok(())
}

/// Where an image comes from, a line of `provenance.jsonl`.
#[derive(Serialize)]
struct Provenance<'a> {
    file_name: String,
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
    tau: f32,
    tau_k: f32,
}

fn run_export(args: &Export) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    for (what, given) in [("--score", args.score), ("--keypoint", args.keypoint)] {
        ensure!(given.is_none_or(|given| (0.0..=1.0).contains(&given)), "{what} is {}, expected 0 to 1", given.unwrap_or_default());
    }
    ensure!(!args.out.exists(), "{}: is there already; an export gets a folder of its own", args.out.display());
    let manual = Dataset::load(&config.data.manual).context("`data.manual`")?;
    let exported = runtime()?.block_on(async {
        let store = open(&config).await?;
        let bundle = store.running_release().await?.map_or_else(|| config.model.running.clone(), |row| PathBuf::from(row.bundle));
        let Thresholds { instance, keypoint, floor } = Bundle::open(&bundle)?.manifest().thresholds;
        let thresholds = Thresholds { instance: args.score.unwrap_or(instance), keypoint: args.keypoint.unwrap_or(keypoint), floor };
        let mut exporter = Exporter::new(&args.out, &manual, thresholds, thresholds.instance)?;
        let path = args.out.join("provenance.jsonl");
        let mut provenance = std::io::BufWriter::new(std::fs::File::create(&path).with_context(|| path.display().to_string())?);
        let which = Which { device: args.device.clone(), model: args.model };
        let look = |label: StoredLabel| {
            let Some(jpeg) = label.jpeg.as_ref().filter(|_| label.refused.is_none()) else { return Ok(()) };
            let message = LabelMsg::decode(&label.payload).with_context(|| format!("label {} of {}", label.id, label.device))?;
            let name = format!("{}_{:016x}_{}", label.device, label.key().epoch, label.key().sequence);
            let faces_blurred = message.changes & FACES_BLURRED != 0;
            if !exporter.add(&name, &message.label(), faces_blurred, jpeg)? {
                return Ok(());
            }
            let line = serde_json::to_string(&Provenance {
                file_name: format!("{name}.jpg"),
                device: &label.device,
                epoch: label.key().epoch,
                sequence: label.key().sequence,
                frame: message.frame,
                camera: &message.camera,
                captured_ms: message.captured_ms,
                received_ms: label.received_ms,
                model: label.model(),
                model_hash: format!("{:016x}", message.model_hash),
                views: message.views,
                faces_blurred,
                tau: thresholds.instance,
                tau_k: thresholds.keypoint,
            })?;
            writeln!(provenance, "{line}").with_context(|| path.display().to_string())
        };
        store.each(&which, look).await?;
        provenance.flush().with_context(|| path.display().to_string())?;
        exporter.finish()
    })?;
    if exported.images == 0 {
        bail!("{}: no label with a picture is from this device and model: `dataset stats` lists them", args.out.display());
    }
    say!(
        "{}: {} images, {} people, {} labels skipped whose picture cannot be used; snapshot {}",
        args.out.display(),
        exported.images,
        exported.instances,
        exported.skipped,
        exported.sha256
    );
    Ok(())
}
