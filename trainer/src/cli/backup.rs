//! `omnilabel-trainer backup` and `restore`.

use super::run::runtime;
use crate::service::backup::{About, Outside, PG_DUMP, backup, restore};
use crate::service::config::ServiceConfig;
use crate::service::events::now_ms;
use crate::service::store::{Place, Store};
use omnilabel_console::say;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre, which may run (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// New folder of the backup
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = ServiceConfig::load(&args.config)?;
    let About { labels, bundles, outside, .. } = runtime()?.block_on(async {
        let store = Store::attach(&config).await?;
        backup(&store, &args.out, now_ms()).await
    })?;
    say!("{}: {labels} labels, {bundles} bundles; not in it: keys, certificates, data sets", args.out.display());
    if let Some(Outside { place, pictures }) = outside {
        say!("not in it either: {pictures} pictures, which stay in {place}; they are backed up there, not before this backup");
    }
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// `trainer.toml` of the centre, whose `state_dir` holds none yet
    #[arg(long)]
    config: PathBuf,
    /// What `backup` wrote
    #[arg(long)]
    from: PathBuf,
}

pub(super) fn run_restore(args: &RestoreArgs) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = ServiceConfig::load(&args.config)?;
    anyhow::ensure!(config.store.url.is_none(), "{PG_DUMP}");
    let (about, lacking) = runtime()?.block_on(restore(&args.from, &Place::from(&config)))?;
    say!("{}: {} labels, {} bundles; devices send again what they still hold", config.state_dir.display(), about.labels, about.bundles);
    if lacking > 0 {
        let place = config.store.pictures.as_deref().unwrap_or_default();
        say!("{lacking} pictures are not in {place}: `dataset verify` names their labels; put them there before a round needs them");
    }
    Ok(())
}
