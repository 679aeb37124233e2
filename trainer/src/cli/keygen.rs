//! `omnilabel-trainer keygen`

use crate::service::sign::{PUBLIC, keygen};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder for `release.key` (stays at the centre) and `release.pub`
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let (private, public) = keygen(&args.out)?;
    omnilabel_console::say!("private key: {} (mode 0600; who has it can change what the fleet runs)", private.display());
    omnilabel_console::say!(
        "public key:  {} ({PUBLIC} of the root key goes to every device; that of a release key to `omnilabel-trainer keys --key`)",
        public.display()
    );
    Ok(())
}
