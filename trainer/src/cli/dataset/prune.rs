//! `omnilabel-trainer dataset prune`

use super::open;
use crate::cli::run::runtime;
use crate::service::config::{RetentionConfig, ServiceConfig};
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::retention::{Pruned, prune};
use anyhow::{Context, ensure};
use omnilabel_console::say;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// Only say what would be dropped
    #[arg(long, conflicts_with = "yes", required_unless_present = "yes")]
    dry_run: bool,
    /// Drop it
    #[arg(long)]
    yes: bool,
    /// In place of `retention.picture_days`
    #[arg(long)]
    picture_days: Option<u32>,
    /// In place of `retention.label_days`
    #[arg(long)]
    label_days: Option<u32>,
    /// In place of `retention.picture_bytes`
    #[arg(long)]
    picture_bytes: Option<u64>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let limits = RetentionConfig {
        picture_days: args.picture_days.or(config.retention.picture_days),
        label_days: args.label_days.or(config.retention.label_days),
        picture_bytes: args.picture_bytes.or(config.retention.picture_bytes),
    };
    ensure!(limits.is_on(), "{}: no `[retention]`; expected it, or --picture-days, --label-days or --picture-bytes", args.config.display());
    for (good, key, found, expected) in limits.checks() {
        ensure!(good, "{key} is {found}, expected {expected}");
    }
    let (pruned, snapshots) = runtime()?.block_on(async {
        let store = open(&config).await?;
        let pruned = prune(&store, &limits, now_ms(), args.dry_run, || false).await?;
        let mut snapshots = Vec::new();
        for round in store.rounds().await?.iter().filter(|round| pruned.rounds.contains(&round.round)) {
            let folder = config.state_dir.join("rounds").join(round.round.to_string()).join("generated");
            let kept = folder.join("annotations.json").exists();
            snapshots.push((round.round, kept.then_some(folder), round.dataset_sha256.clone()));
        }
        store.close().await;
        anyhow::Ok((pruned, snapshots))
    })?;
    if args.yes && pruned.is_something() {
        let events = EventLog::open(&config.state_dir).with_context(|| config.state_dir.display().to_string())?;
        events.emit(Event::Pruned(pruned.clone()));
    }
    let failed = pruned.unfinished.clone().map_or(Ok(()), |why| Err(anyhow::anyhow!(why)));
    if args.json {
        say!("{}", serde_json::to_string_pretty(&pruned)?);
        return failed;
    }
    let Pruned { labels, pictures_of_labels, pictures_by_age, pictures_by_size, bytes, kept_in_use, kept_judged, kept_unsettled, .. } =
        &pruned;
    say!("{}", if args.yes { "dropped:" } else { "would be dropped:" });
    for (what, count) in [
        ("labels older than label_days", labels),
        ("pictures of these labels", pictures_of_labels),
        ("pictures older than picture_days", pictures_by_age),
        ("pictures beyond picture_bytes", pictures_by_size),
        ("bytes of pictures", bytes),
    ] {
        say!("{count:>14} {what}");
    }
    say!(
        "due and kept: {kept_in_use} that the round under way may read, {kept_judged} judged by a person, \
         {kept_unsettled} awaiting a picture"
    );
    for (round, folder, sha256) in snapshots {
        let sha256 = sha256.unwrap_or_default();
        match folder {
            Some(folder) => say!("round {round}: its data set {sha256} is in {} alone", folder.display()),
            None => say!("round {round}: its data set {sha256} is nowhere whole any more"),
        }
    }
    failed
}
