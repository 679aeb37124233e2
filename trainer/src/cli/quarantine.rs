//! `omnilabel-trainer quarantine`: what could not be used, message by message, while the centre runs or not.

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::store::Store;
use crate::service::store::quarantine::{MAX_MESSAGES, QuarantineRow};
use anyhow::Context;
use chrono::DateTime;
use omnilabel_console::say;
use omnilabel_keypoints::wire::topic;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The whole quarantine.
const ALL: u32 = MAX_MESSAGES as u32;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The newest messages that could not be used, and why
    List(ListArgs),
    /// What is kept of the payload of one
    Show(ShowArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// On topics of this device alone
    #[arg(long)]
    device: Option<String>,
    /// With this text in the reason alone
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// For scripts
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ShowArgs {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// Its number in the list
    id: i64,
    /// New file for the bytes; - is standard output
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    omnilabel_console::log("warn");
    match &args.what {
        What::List(args) => list(args),
        What::Show(args) => show(args),
    }
}

/// A message with what its topic says. Anybody may have sent it.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    row: QuarantineRow,
    /// `None` of a topic that is no device's of this site; so is `kind`.
    device: Option<String>,
    kind: Option<&'static str>,
}

impl Told {
    fn of(row: QuarantineRow, config: &ServiceConfig) -> Self {
        let parsed = topic::parse_device(&config.broker.prefix, &config.broker.site, &row.topic);
        let parsed = parsed.map(|(device, kind)| (device.to_owned(), kind.name()));
        let (device, kind) = parsed.unzip();
        Self { row, device, kind }
    }
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let is_chosen = args.device.is_some() || args.reason.is_some();
    let rows = runtime()?.block_on(async {
        let store = Store::attach(&config).await?;
        anyhow::Ok(store.quarantined(if is_chosen { ALL } else { args.limit }).await?)
    })?;
    let wanted = |told: &Told| {
        args.device.as_ref().is_none_or(|device| told.device.as_ref() == Some(device))
            && args.reason.as_ref().is_none_or(|text| told.row.reason.contains(text))
    };
    let told: Vec<Told> = rows.into_iter().map(|row| Told::of(row, &config)).filter(wanted).take(args.limit as usize).collect();
    if args.json {
        say!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    say!("{:>10}  {:<19}  {:<20} {:<10} {:>8}  reason", "id", "when (UTC)", "device", "kind", "bytes");
    for Told { row, device, kind } in &told {
        let QuarantineRow { id, received_ms, topic, reason, bytes } = row;
        let (device, kind) = (device.as_deref().unwrap_or("–"), kind.unwrap_or("–"));
        // A topic of anybody's may have what a terminal obeys.
        let elsewhere = if kind == "–" { format!(": {topic:?}") } else { String::new() };
        say!(
            "{id:>10}  {}  {device:<20} {kind:<10} {bytes:>8}  {reason}{elsewhere}",
            DateTime::from_timestamp_millis(*received_ms).unwrap_or_default().format("%F %T")
        );
    }
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let config = ServiceConfig::load(&args.config)?;
    let id = args.id;
    let found = runtime()?.block_on(async { anyhow::Ok(Store::attach(&config).await?.quarantined_one(id).await?) })?;
    let (row, payload) = found.with_context(|| format!("no message {id} is in quarantine: `quarantine list` says which are"))?;
    let said = format!("{} of {} bytes of message {id}: {}", payload.len(), row.bytes, row.reason);
    if args.out == Path::new("-") {
        let mut out = std::io::stdout().lock();
        out.write_all(&payload).and_then(|()| out.flush()).context("standard output")?;
        eprintln!("{said}");
    } else {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        // It may be a picture.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&args.out).and_then(|mut file| file.write_all(&payload));
        written.with_context(|| args.out.display().to_string())?;
        say!("{}: {said}", args.out.display());
    }
    Ok(())
}
