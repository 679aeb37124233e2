//! `omnilabel-trainer check-config`

use crate::service::config::{CollectConfig, ServiceConfig};
use crate::service::store::pictures::Pictures;
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
        let config = CollectConfig::load(&args.config)?;
        Pictures::check(&config.store)?;
        return print(&config, args.json);
    }
    let config = ServiceConfig::load(&args.config)?;
    crate::service::server::release_keys(&config)?;
    Pictures::check(&config.store)?;
    print(&config, args.json)
}

fn print(config: &impl Serialize, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(config)? } else { toml::to_string_pretty(config)? };
    omnilabel_console::say!("{}", text.trim_end());
    Ok(())
}
