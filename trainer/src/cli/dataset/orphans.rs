//! `omnilabel-trainer dataset orphans`

use super::open;
use crate::cli::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::events::now_ms;
use crate::service::store::pictures::Compared;
use crate::service::verify::ORPHAN_MS;
use anyhow::{bail, ensure};
use omnilabel_console::say;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre, which may run (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// Delete the pictures that no label refers to
    #[arg(long)]
    delete: bool,
    /// For scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let Some(place) = config.store.picture_url() else {
        bail!("{}: no `store.pictures`: all pictures lie in the database", args.config.display());
    };
    let found = runtime()?.block_on(async {
        let store = open(&config).await?;
        anyhow::Ok(store.compare_pictures(now_ms().saturating_sub(ORPHAN_MS), args.delete).await?)
    })?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        let Compared { referred, missing, missing_names, orphans, orphan_bytes, orphan_names, deleted } = &found;
        say!("{place}: {referred} pictures are referred to, {missing} of them are not there; {orphans} of no label, {orphan_bytes} bytes");
        missing_names.iter().for_each(|name| say!("missing {name}"));
        orphan_names.iter().for_each(|name| say!("orphan {name}"));
        if args.delete {
            say!("{deleted} deleted");
        }
    }
    ensure!(found.missing == 0, "{} pictures are missing: `dataset verify` names their labels", found.missing);
    Ok(())
}
