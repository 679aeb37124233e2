//! `omnilabel-trainer release`: a bundle signed and published by hand.

use super::run::{runtime, stop_signal};
use crate::service::config::ServiceConfig;
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::rounds::{Publish, copy_bundle, release_bundle};
use crate::service::server::{release_keys, serve_release};
use crate::service::sign::read_key;
use crate::service::store::{Store, StoreError};
use crate::service::waves::Waves;
use anyhow::{Context, bail};
use omnilabel_bundle::{Bundle, hex};
use omnilabel_runtime::{Teacher, check_golden};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// The bundle
    #[arg(long)]
    bundle: PathBuf,
    /// Signing key, instead of the configuration's
    #[arg(long)]
    key: Option<PathBuf>,
    /// Name for people, instead of the manifest's
    #[arg(long)]
    name: Option<String>,
    /// To the whole fleet at once, without the waves of `[rollout]`
    #[arg(long)]
    at_once: bool,
    /// Publish it and serve its blocks until interrupted; without it, the running centre does
    #[arg(long)]
    serve: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let mut config = ServiceConfig::load(&args.config)?;
    if let Some(key) = args.key {
        config.release.key = key;
    }
    if args.serve && !args.at_once && config.rollout.waves.len() > 1 {
        bail!("--serve hears of no device that confirms a release, so that no wave is ever proved: add --at-once, or let the centre run");
    }
    let key = read_key(&config.release.key)?;
    // With a set of keys, one that is not in it would be signed over, or refused by every device.
    release_keys(&config, &key)?;
    let bundle = Bundle::open(&args.bundle)?;
    if bundle.manifest().golden.is_empty() {
        bail!("{}: a device would refuse it: it has no golden frames to prove itself on (`train --golden`)", args.bundle.display());
    }
    if let Err(mismatch) = check_golden(&bundle, &Teacher::load(&bundle, 1)?)? {
        bail!("{}: a device would refuse it: {mismatch}", args.bundle.display());
    }
    std::fs::create_dir_all(&config.state_dir).with_context(|| config.state_dir.display().to_string())?;
    let kept = copy_bundle(&bundle, &config.state_dir.join("releases").join(hex(&bundle.sha256())))?;
    let name = args.name.unwrap_or_else(|| bundle.manifest().name.clone());
    runtime()?.block_on(async {
        // A release may be made before the centre has run.
        let store = match Store::attach(&config).await {
            Err(StoreError::Absent { .. }) => Store::renew(&config).await?,
            attached => attached?,
        };
        let waves = if args.at_once { Waves::at_once(now_ms()) } else { Waves::begin(&config.rollout, now_ms()) };
        let counter = release_bundle(&config, &store, &key, Publish { bundle: &kept, name: &name, round: None, waves }).await?;
        let events = EventLog::open(&config.state_dir).with_context(|| config.state_dir.display().to_string())?;
        events.emit(Event::Released { round: None, counter, name: name.clone(), reason: "by hand".to_owned() });
        omnilabel_console::say!("release {counter} ({name}) for channel {}", config.release.channel);
        if args.serve {
            serve_release(config, store, events, stop_signal()?).await?;
        } else {
            omnilabel_console::say!("the running centre publishes it; without one, use --serve");
        }
        Ok(())
    })
}
