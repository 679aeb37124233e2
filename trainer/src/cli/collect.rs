//! `omnilabel-trainer collect`

use super::run::{runtime, stop_signal};
use crate::service::collect::collect;
use crate::service::config::CollectConfig;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `collector.toml` (docs/CENTRE.md, Several collectors)
    #[arg(long)]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = CollectConfig::load(&args.config)?;
    runtime()?.block_on(async { collect(config, stop_signal()?).await })
}
