//! `omnilabel-trainer check-config`

use crate::service::config::{CollectConfig, ConfigError, ServiceConfig, StoreConfig};
use crate::service::store::pictures::Pictures;
use crate::service::store::postgres;
use crate::service::{server, sign, web};
use anyhow::Context;
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// The file is a `collector.toml`, the configuration of `collect`
    #[arg(long)]
    collector: bool,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.collector {
        let is_other = || ServiceConfig::load(&args.config).is_ok();
        let config = CollectConfig::load(&args.config).map_err(|error| hint(error, is_other, "of `run`: expected no --collector"))?;
        print(&config, args.json)?;
        return on_disk(&config.store);
    }
    let is_other = || CollectConfig::load(&args.config).is_ok();
    let config = ServiceConfig::load(&args.config).map_err(|error| hint(error, is_other, "of `collect`: expected --collector"))?;
    print(&config, args.json)?;
    // Secrets may be where the service runs and nowhere else.
    let key = &config.release.key;
    if key.try_exists().with_context(|| format!("`release.key`: {}", key.display()))? {
        let key = sign::read_key(key).context("`release.key`")?;
        server::release_keys(&config, &key)?;
    }
    web::check(&config.web)?;
    on_disk(&config.store)
}

/// Checks the files that a store names: the configuration is printed by then, for who wants to read it all the same.
fn on_disk(config: &StoreConfig) -> anyhow::Result<()> {
    postgres::check(config)?;
    Ok(Pictures::check(config)?)
}

/// Says what a file is that is the other one.
fn hint(error: ConfigError, is_other: impl Fn() -> bool, what: &str) -> anyhow::Error {
    if is_other() { anyhow::anyhow!("{error} (this is the configuration {what})") } else { error.into() }
}

fn print(config: &impl Serialize, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(config)? } else { toml::to_string_pretty(config)? };
    omnilabel_console::say!("{}", text.trim_end());
    Ok(())
}
