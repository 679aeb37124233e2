//! `omnilabel-trainer rollout`: what people say about the release that goes out.

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::events::EventLog;
use crate::service::steer::{Order, recall, steer};
use crate::service::store::Store;
use anyhow::Context;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// What is to become of the newest release
    #[arg(value_enum)]
    order: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// No further device begins with it
    Halt,
    /// It goes on where it was halted
    Resume,
    /// The next wave begins now
    Promote,
    /// The model before it is signed anew, for all at once
    Recall,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("info");
    let config = ServiceConfig::load(&args.config)?;
    runtime()?.block_on(async {
        let store = Store::attach(&config).await?;
        let by = "hand";
        let events = EventLog::open(&config.state_dir).with_context(|| config.state_dir.display().to_string())?;
        let order = match args.order {
            What::Halt => Order::Halt,
            What::Resume => Order::Resume,
            What::Promote => Order::Promote,
            What::Recall => {
                let (counter, name) = recall(&config, &store, &events, by).await?;
                omnilabel_console::say!("release {counter} ({name}) for channel {}", config.release.channel);
                return Ok(());
            }
        };
        omnilabel_console::say!("{}", steer(&store, &events, order, by).await?);
        Ok(())
    })
}
