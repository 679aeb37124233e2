//! `omnilabel-trainer run`

use crate::service::arm::Arm;
use crate::service::config::ServiceConfig;
use crate::service::server::{ServeOptions, serve};
use anyhow::Context;
use omnilabel_bundle::Bundle;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// The state folder was restored from a backup: ask the devices for what it misses
    #[arg(long)]
    new_collector_epoch: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = ServiceConfig::load(&args.config)?;
    let running = Bundle::open(&config.model.running).context("`model.running`")?;
    let arm = Arc::new(Arm::new(&config, running.manifest())?);
    let options = ServeOptions { new_collector_epoch: args.new_collector_epoch };
    runtime()?.block_on(async { serve(config, arm, options, stop_signal()?).await })
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("tokio")
}

/// Becomes true with Ctrl-C or SIGTERM; a second one ends the process at once.
pub(super) fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let (set, stop) = watch::channel(false);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).context("SIGINT")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if set.send_replace(true) {
                std::process::exit(130);
            }
            tracing::info!("stopping: the step under way is finished and written; again to stop at once");
        }
    });
    Ok(stop)
}
