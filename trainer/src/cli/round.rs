//! `omnilabel-trainer round`: a round by hand.

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::store::Store;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = ServiceConfig::load(&args.config)?;
    runtime()?.block_on(async {
        Store::attach(&config).await?.want_round().await?;
        omnilabel_console::say!("the running centre begins a round as soon as none is under way and there is a new label with its picture");
        Ok(())
    })
}
