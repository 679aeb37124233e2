//! The command line: `run(std::env::args_os())` is what the binary does, so that `omnilabel` can start itself as this role.

mod boxes;
mod doctor;
mod draw;
mod label;
mod wrap;

use crate::config::EdgeConfig;
use crate::slots::Slots;
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use tokio::sync::watch;

/// Labels a camera's frames with a keypoint teacher, delivers the labels over MQTT and takes signed models back.
#[derive(Parser)]
#[command(name = "omnilabel-edge", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the appliance.
    Run(ConfigArgs),
    /// Checks a configuration and prints it with every default filled in.
    CheckConfig(ConfigArgs),
    /// Tells what is wrong with a device, and what to do about it.
    Doctor(ConfigArgs),
    /// Labels a folder of images and writes COCO results.
    Label(label::LabelArgs),
    /// The models of a device.
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration (TOML), see docs/EDGE.md.
    #[arg(long)]
    config: PathBuf,
    /// Writes the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ModelCommand {
    /// Puts the first model and the root public key into a state folder.
    Install {
        /// The model bundle.
        #[arg(long)]
        bundle: PathBuf,
        /// The device's state folder (`state_dir` of its configuration).
        #[arg(long)]
        data_dir: PathBuf,
        /// The public key that releases are signed with: a file of 64 hex digits.
        #[arg(long)]
        root_key: Option<PathBuf>,
    },
    /// Makes a bundle of an ONNX pose model (heatmaps, SimCC, one-stage) and tries it on a picture.
    Wrap(Box<wrap::WrapArgs>),
}

/// Parses `args` (with the program name first) and runs the command.
///
/// # Errors
/// Whatever the command reports.
pub fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            error.print()?;
            return Ok(());
        }
        Err(error) => error.exit(),
    };
    omnilabel_console::log("info,tract=warn,rumqttc=warn");
    match cli.command {
        Command::Run(args) => appliance(&args),
        Command::CheckConfig(args) => {
            let config = EdgeConfig::load(&args.config)?;
            let text = if args.json { serde_json::to_string_pretty(&config)? } else { toml::to_string_pretty(&config)? };
            omnilabel_console::say!("{}", text.trim_end());
            Ok(())
        }
        Command::Doctor(args) => doctor::run(&args),
        Command::Label(args) => label::run(&args),
        Command::Model { command: ModelCommand::Wrap(args) } => wrap::run(&args),
        Command::Model { command: ModelCommand::Install { bundle, data_dir, root_key } } => {
            Slots::install(&data_dir, &bundle, root_key.as_deref())?;
            omnilabel_console::say!("installed {} in {}", bundle.display(), data_dir.display());
            Ok(())
        }
    }
}

fn appliance(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = EdgeConfig::load(&args.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start tokio")?;
    let (stop, stopped) = watch::channel(false);
    let summary = runtime.block_on(async {
        let signals = tokio::spawn(signals(stop));
        let summary = crate::service::run(config, stopped).await;
        signals.abort();
        summary
    })?;
    // A camera that waits for its stream holds a thread; nothing waits for it.
    runtime.shutdown_background();
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string(&summary)?);
    } else {
        omnilabel_console::say!(
            "frames {} bad {} skipped {} dropped {} committed {} pending {} evicted {} model {}",
            summary.frames,
            summary.bad_frames,
            summary.skipped_frames,
            summary.dropped,
            summary.committed,
            summary.pending,
            summary.evicted,
            summary.model
        );
    }
    Ok(())
}

/// The first SIGTERM or Ctrl-C ends the run cleanly, the second at once.
async fn signals(stop: watch::Sender<bool>) {
    for count in 1.. {
        if let Err(error) = signal().await {
            tracing::error!(%error, "signals are not handled");
            // Keeps the sender: without it nobody could tell a stop from this.
            return std::future::pending().await;
        }
        if count > 1 {
            std::process::exit(130);
        }
        tracing::info!("ending: the outbox is flushed, the broker is told");
        stop.send_replace(true);
    }
}

#[cfg(unix)]
async fn signal() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn signal() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
