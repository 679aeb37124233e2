//! `omnilabel-trainer keys`: the root key says which keys may sign releases.

use crate::service::sign::{SignedKeys, read_key, read_public};
use anyhow::{Context, bail};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The root key, whose public half devices were provisioned with; it is needed for nothing else and can stay offline
    #[arg(long)]
    root: PathBuf,
    /// The site of the devices
    #[arg(long)]
    site: String,
    /// Above that of every earlier set: devices never go back
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    serial: u64,
    /// A public key that may sign releases; may be repeated
    #[arg(long = "key", required = true)]
    keys: Vec<PathBuf>,
    /// The newest release that you made on a channel (`released` of the event log; 0: none yet); repeated for every channel. What
    /// devices took beyond it, under a stolen key, counts no more
    #[arg(long, required = true, value_name = "CHANNEL=COUNTER", value_parser = newest)]
    newest: Vec<(String, u64)>,
    /// The file for `release.keys` of trainer.toml
    #[arg(long)]
    out: PathBuf,
}

fn newest(text: &str) -> Result<(String, u64), String> {
    let (channel, counter) = text.split_once('=').ok_or("expected CHANNEL=COUNTER, such as stable=12")?;
    let counter = counter.parse().map_err(|_| format!("`{counter}` is no counter"))?;
    Ok((channel.to_owned(), counter))
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let root = read_key(&args.root)?;
    let keys = args.keys.iter().map(|path| read_public(path)).collect::<Result<Vec<_>, _>>()?;
    let signed = SignedKeys::sign(&root, &args.site, args.serial, &keys, &args.newest)?;
    if args.out.exists() {
        bail!("{}: a set of keys is never overwritten; name another file", args.out.display());
    }
    let text = serde_json::to_string_pretty(&signed)? + "\n";
    let written = std::fs::File::create_new(&args.out).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.with_context(|| args.out.display().to_string())?;
    omnilabel_console::say!("{}: set {} of {} keys for {}", args.out.display(), args.serial, keys.len(), args.site);
    omnilabel_console::say!("devices take it with the next release message; from then on none but these keys signs releases");
    Ok(())
}
