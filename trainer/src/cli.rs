//! The command line: `run(std::env::args_os())` is what the binary does, so that `omnilabel` can start itself as this role.
//!
//! One file per subcommand: its arguments and what it prints.

mod backup;
mod check_config;
mod collect;
mod common;
mod dataset;
mod distill;
mod evaluate;
mod experiment;
mod import;
mod keygen;
mod keys;
mod presets;
mod quarantine;
mod release;
mod rollout;
mod round;
mod run;
mod score;
mod status;
mod train;

use clap::{Parser, Subcommand};
use std::ffi::OsString;

#[derive(Parser)]
#[command(name = "omnilabel-trainer", version, about = "The centre of Omnilabel: trains, evaluates, distils, collects and releases")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a keypoint R-CNN on a COCO keypoint folder and export it as a bundle
    Train(train::Args),
    /// Make a bundle of somebody else's weights: torchvision's or Detectron2's keypoint R-CNN
    Import(import::Args),
    /// The network presets: parameters, cost, and what they measure here
    Presets(presets::Args),
    /// Run an exported bundle over a labelled folder and score it
    Evaluate(evaluate::Args),
    /// Score a COCO results file: the ten keypoint numbers of pycocotools
    Score(score::Args),
    /// The whole method on folders: teacher, labels, calibration, student, comparison
    Distill(distill::Args),
    /// Arms, seeds and ablations of a plan, in one table with its errors
    Experiment(experiment::Args),
    /// The centre as a service: collect, retrain, prove, sign, release
    Run(run::Args),
    /// A further collector of the database that a `run` uses: labels in, acknowledgements out
    Collect(collect::Args),
    /// Check the configuration of `run` and print it with every default filled in
    CheckConfig(check_config::Args),
    /// Draw a signing key
    Keygen(keygen::Args),
    /// Say with the root key which keys may sign releases
    Keys(keys::Args),
    /// Sign and publish a bundle by hand
    Release(release::Args),
    /// What the collected labels are, whether they are whole, and a way out
    Dataset(dataset::Args),
    /// Copy what the centre knows, while it runs
    Backup(backup::Args),
    /// Put a backup into an empty state folder
    Restore(backup::RestoreArgs),
    /// Ask the centre for a round with the labels that are there
    Round(round::Args),
    /// Halt, resume or promote the release that goes out, or take it back
    Rollout(rollout::Args),
    /// What the centre has: devices, labels, rounds, the release that goes out, what it could not use
    Status(status::Args),
    /// The messages that could not be used, with the reason and what is kept of each
    Quarantine(quarantine::Args),
}

/// Parses `args` (with the program name first) and runs the command.
///
/// # Errors
/// Whatever the command reports.
pub fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    match Cli::try_parse_from(args) {
        Ok(cli) => match cli.command {
            Command::Train(args) => train::run(args),
            Command::Import(args) => import::run(args),
            Command::Presets(args) => presets::run(args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Score(args) => score::run(args),
            Command::Distill(args) => distill::run(args),
            Command::Experiment(args) => experiment::run(args),
            Command::Run(args) => run::run(args),
            Command::Collect(args) => collect::run(&args),
            Command::CheckConfig(args) => check_config::run(&args),
            Command::Keygen(args) => keygen::run(args),
            Command::Keys(args) => keys::run(args),
            Command::Release(args) => release::run(args),
            Command::Dataset(args) => dataset::run(args),
            Command::Backup(args) => backup::run(&args),
            Command::Restore(args) => backup::run_restore(&args),
            Command::Round(args) => round::run(&args),
            Command::Rollout(args) => rollout::run(args),
            Command::Status(args) => status::run(args),
            Command::Quarantine(args) => quarantine::run(&args),
        },
        Err(error) => error.exit(),
    }
}
