//! The command line of `omnilabel`. Without a subcommand it runs the demo.

use crate::demo::{DemoArgs, Interrupted};
use crate::{broker, demo};
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use omnilabel_keypoints::geometry::Size;
use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "omnilabel",
    version,
    about = "Cameras that label their own footage and get better from it",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: DemoArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole loop on this machine: broker, centre, two cameras, distillation, release, report (the default)
    Demo(DemoArgs),
    /// Render synthetic footage with exact labels as a COCO keypoint folder
    Scenes(ScenesArgs),
    /// The embedded MQTT 5 broker of the demo, alone; loopback only
    Broker(BrokerArgs),
    /// The device: `omnilabel edge --help`
    #[command(disable_help_flag = true)]
    Edge(Rest),
    /// The centre: `omnilabel trainer --help`
    #[command(disable_help_flag = true)]
    Trainer(Rest),
}

/// Arguments of another role.
#[derive(Debug, Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LookName {
    /// Indoors, bright and even
    Studio,
    /// A street towards evening
    Street,
    /// Both, in turn
    Mixed,
}

#[derive(Debug, Args)]
struct ScenesArgs {
    /// Folder to write `images/` and `annotations.json` into
    #[arg(long)]
    out: PathBuf,
    /// Pictures
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Seed; the same seed gives the same pictures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the camera sees
    #[arg(long, value_enum, default_value = "studio")]
    look: LookName,
    /// Width in pixels
    #[arg(long, default_value_t = DEFAULT_SIZE.width, value_parser = clap::value_parser!(u32).range(32..=2048))]
    width: u32,
    /// Height in pixels
    #[arg(long, default_value_t = DEFAULT_SIZE.height, value_parser = clap::value_parser!(u32).range(32..=2048))]
    height: u32,
}

#[derive(Debug, Args)]
struct BrokerArgs {
    /// Address to listen on; must be loopback
    #[arg(long, default_value = "127.0.0.1:1883")]
    listen: SocketAddr,
}

/// Runs the command line and returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 when interrupted.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {}", omnilabel_console::line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    crate::child::follow_parent()?;
    match cli.command.unwrap_or(Command::Demo(cli.demo)) {
        Command::Demo(args) => demo::run(&args),
        Command::Scenes(args) => scenes(&args),
        Command::Broker(args) => broker::run(args.listen),
        Command::Edge(rest) => omnilabel_edge::cli::run(role("omnilabel edge", rest)),
        Command::Trainer(rest) => omnilabel_trainer::cli::run(role("omnilabel trainer", rest)),
    }
}

fn role(name: &str, rest: Rest) -> Vec<OsString> {
    std::iter::once(OsString::from(name)).chain(rest.args).collect()
}

fn scenes(args: &ScenesArgs) -> anyhow::Result<()> {
    let looks = match args.look {
        LookName::Studio => vec![Look::studio()],
        LookName::Street => vec![Look::street()],
        LookName::Mixed => vec![Look::studio(), Look::street()],
    };
    let size = Size { width: args.width, height: args.height };
    let dataset = write_coco(&args.out, &looks, args.seed, args.count, size).context("rendering scenes")?;
    omnilabel_console::say!("{}: {} pictures, {} people", args.out.display(), dataset.images.len(), dataset.annotations.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_arguments_of_a_role_pass_through_untouched() {
        let cli = Cli::try_parse_from(["omnilabel", "edge", "label", "--model", "x", "--help"]).unwrap();
        let Some(Command::Edge(rest)) = cli.command else { panic!("not edge") };
        assert_eq!(role("omnilabel edge", rest), ["omnilabel edge", "label", "--model", "x", "--help"]);
    }

    #[test]
    fn the_demo_is_the_default() {
        let cli = Cli::try_parse_from(["omnilabel", "--minutes", "3"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.demo.minutes, 3.0);
    }
}
