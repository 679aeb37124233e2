//! `omnilabel-trainer dataset`: what the labels are, whether they are whole, a way in, a way out, and an end.
//!
//! | file | what it holds |
//! |---|---|
//! | `dataset.rs` | `stats`, `verify` |
//! | `import` | `import` |
//! | `export` | `export` |
//! | `orphans` | `orphans` |
//! | `prune` | `prune` |

mod export;
mod import;
mod orphans;
mod prune;

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::hand::Verdict;
use crate::service::store::Store;
use crate::service::store::audit::{StoredLabel, Which};
use crate::service::verify::{Verified, verify};
use anyhow::Context;
use omnilabel_coco::Dataset;
use omnilabel_console::say;
use omnilabel_keypoints::wire::{LabelMsg, Message};
use serde::Serialize;
use std::collections::BTreeMap;
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
    /// Read every label and picture: is it what was sent, do accounts add up, is a held-out picture among them or the manual ones
    Verify(Common),
    /// Pictures in the object store that no label refers to, and labels whose picture is not there
    Orphans(orphans::Args),
    /// Make a COCO keypoint folder of labels that were made with another tool
    Import(import::Args),
    /// Labels with their pictures in the format of another tool, with where each comes from
    Export(export::Args),
    /// Drop what `[retention]` says, now
    Prune(prune::Args),
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

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("warn");
    match args.what {
        What::Stats(common) => stats(&common),
        What::Verify(common) => run_verify(&common),
        What::Orphans(args) => orphans::run(&args),
        What::Import(args) => import::run(&args),
        What::Export(args) => export::run(&args),
        What::Prune(args) => prune::run(&args),
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
    accepted: u64,
    corrected: u64,
    rejected: u64,
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
            match label.verdict.as_deref().map(str::parse).transpose().with_context(|| format!("label {} of {}", label.id, label.device))? {
                Some(Verdict::Accepted) => group.accepted += 1,
                Some(Verdict::Corrected) => group.corrected += 1,
                Some(Verdict::Rejected) => group.rejected += 1,
                None => {}
            }
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
        "{:<20} {:>6} {:>9} {:>9} {:>8} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "device",
        "model",
        "labels",
        "pictures",
        "refused",
        "people",
        "kept",
        "agreement",
        "accepted",
        "corrected",
        "rejected"
    );
    for ((device, model), group) in &groups {
        let Group { labels, pictures, refused, people, kept, accepted, corrected, rejected, mean_agreement, .. } = group;
        let agreement = mean_agreement.map_or("–".to_owned(), |mean| format!("{mean:.2}"));
        let by_hand = format!("{accepted:>9} {corrected:>9} {rejected:>9}");
        say!("{device:<20} {model:>6} {labels:>9} {pictures:>9} {refused:>8} {people:>9} {kept:>9} {agreement:>10} {by_hand}");
    }
    Ok(())
}

fn run_verify(args: &Common) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let heldout = Dataset::load(&config.data.heldout).context("`data.heldout`")?;
    let bar = indicatif::ProgressBar::new_spinner().with_message("labels read");
    let manual = Dataset::load(&config.data.manual).context("`data.manual`")?;
    let found = runtime()?.block_on(async {
        let store = open(&config).await?;
        verify(&store, &manual, &heldout, &|labels| bar.set_position(labels)).await
    })?;
    bar.finish_and_clear();
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        let Verified { labels, pictures, verdicts, wrong, problems, heldout_unread, manual_unread, leaks, leaked, .. } = &found;
        say!("{labels} labels, {pictures} pictures, {verdicts} verdicts by hand: {wrong} problems; {leaks} nearly show a held-out picture");
        if *heldout_unread > 0 {
            say!("{heldout_unread} held-out pictures cannot be read, and were compared with nothing");
        }
        if *manual_unread > 0 {
            say!("{manual_unread} manual pictures cannot be read, and were compared with nothing");
        }
        problems.iter().for_each(|problem| say!("{problem}"));
        leaked.iter().for_each(|(name, image, bits)| say!("{name}: like {image} of the held-out set, {bits} of 64 bits differ"));
    }
    if found.orphans > 0 && !args.json {
        say!("{} objects of the object store are of no label: `dataset orphans` lists and deletes them", found.orphans);
    }
    found.whole()
}
