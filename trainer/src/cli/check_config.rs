//! `omnilabel-trainer check-config`

use crate::service::config::ServiceConfig;
use crate::service::store::pictures::Pictures;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    crate::service::server::release_keys(&config)?;
    Pictures::check(&config.store)?;
    let text = if args.json { serde_json::to_string_pretty(&config)? } else { toml::to_string_pretty(&config)? };
    omnilabel_console::say!("{}", text.trim_end());
    Ok(())
}
