//! `omnilabel-bench`: see the library.

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use omnilabel_bench::compare::Effort;
use omnilabel_bench::report::{Report, head, lines};
use omnilabel_bench::{cases, compare, fixture, ours, side};
use omnilabel_console::say;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The product's speed beside what a user would pick instead.
#[derive(Parser)]
#[command(name = "omnilabel-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the cases, prints a table, writes JSON and a chart.
    Compare(Compare),
    /// Names of the cases.
    List,
    /// This product as a side: requests on standard input, answers on standard output.
    Side {
        /// As whom.
        #[arg(long, value_enum, default_value_t)]
        role: side::Role,
    },
}

#[derive(Args)]
struct Compare {
    /// Only cases whose name begins so; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Small cases and few rounds, in under a minute: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Threads of every side; all cores without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Short side of `resnet50` at inference, px.
    #[arg(long, default_value_t = 800)]
    side: u32,
    /// Rounds at most.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Seconds of a case after which no round is begun; five rounds are made in any case.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The report.
    #[arg(long, default_value = "target/bench/compare.json")]
    json: PathBuf,
    /// The chart; beside the report without it.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Folder for networks and pictures, which later runs find again.
    #[arg(long, default_value = "target/bench/fixtures")]
    work: PathBuf,
}

fn main() -> ExitCode {
    omnilabel_console::log("warn");
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", omnilabel_console::line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Side { role } => side::serve(move |task| ours::prepare(role, task))?,
        Command::List => cases::all(800, false).iter().for_each(|case| say!("{:<20} {}", case.name, case.what)),
        Command::Compare(options) => return compare(&options),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(options: &Compare) -> Result<ExitCode> {
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let work = if options.work.is_absolute() { options.work.clone() } else { fixture::root().join(&options.work) };
    let effort = if options.quick {
        Effort { threads, least: 3, most: 3, budget: Duration::ZERO, run: Duration::from_millis(10), work }
    } else {
        Effort {
            threads,
            least: 5,
            most: options.rounds.max(5),
            budget: Duration::try_from_secs_f64(options.seconds)?,
            run: Duration::from_millis(100),
            work,
        }
    };
    let chosen = |case: &cases::Case| options.only.is_empty() || options.only.iter().any(|name| case.name.starts_with(name.as_str()));
    let cases: Vec<cases::Case> = cases::all(options.side, options.quick).into_iter().filter(chosen).collect();
    if cases.is_empty() {
        bail!("--only: expected the beginning of a name that `omnilabel-bench list` shows, found {:?}", options.only);
    }
    let mut report = Report::new(threads);
    say!("{} threads of {} cores, {}", threads, report.cores, report.processor);
    say!("{}", head());
    for case in &cases {
        let found = compare::run(case, &effort);
        lines(&found).iter().for_each(|line| say!("{line}"));
        report.cases.push(found);
        let svg = options.svg.clone().unwrap_or_else(|| options.json.with_extension("svg"));
        report.write(&options.json, &svg)?;
    }
    say!("ratio: {}", report.ratio);
    Ok(if report.valid() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
