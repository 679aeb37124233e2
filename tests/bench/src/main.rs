//! `omnilabel-bench`: see the library.

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use omnilabel_bench::compare::{CaseReport, Ceiling, Effort};
use omnilabel_bench::report::{Report, head, lines};
use omnilabel_bench::{cases, compare, fixture, fleet, ours, scale, side, startup};
use omnilabel_console::say;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What the product's programs take, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Measures how cost grows, prints a table, writes JSON and a chart.
    Scale(Compare),
    /// How long a device takes from its start to its first label at a broker.
    Startup {
        /// How many times.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Simulates a fleet of devices around a real broker and a real centre while everything breaks; fails when a promise does.
    Fleet(fleet::Options),
    /// Draws the chart of one or more reports, whose curves and cases are put together.
    Chart {
        /// What `compare` or `scale` wrote.
        #[arg(required = true)]
        reports: Vec<PathBuf>,
        /// The chart.
        #[arg(long)]
        svg: PathBuf,
    },
    /// Names of the cases and curves.
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
    /// Where the networks run. `cuda`: labelling in a build with the feature `cuda`, training in one with `trainer-cuda`.
    #[arg(long, value_enum, default_value_t)]
    device: side::Device,
    /// Threads of every side; all cores without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Short side of `resnet50` at inference, px.
    #[arg(long, default_value_t = 800)]
    side: u32,
    /// Rounds at most.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Seconds of a case after which no round is begun; five rounds are made in any case. A curve's points take a quarter.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Seconds that a case may wait for others to leave the processor alone.
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// The report; `target/bench/compare.json` or `scale.json` without it.
    #[arg(long)]
    json: Option<PathBuf>,
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
        Command::List => {
            // Where it was built for one.
            let on_gpu = cases::on_gpu(800, false).unwrap_or_default();
            cases::all(800, false).iter().chain(&on_gpu).for_each(|case| say!("{:<20} {}", case.name, case.what));
            scale::all().iter().for_each(|plan| say!("{:<20} {} (scale)", plan.name, plan.title));
        }
        Command::Chart { reports, svg } => {
            let mut all = Report::new(0);
            for path in reports {
                let one: Report = fixture::read_json(&path)?;
                all.cases.extend(one.cases);
                all.curves.retain(|curve| one.curves.iter().all(|newer| newer.name != curve.name));
                all.curves.extend(one.curves);
            }
            all.draw(&svg)?;
        }
        Command::Startup { rounds } => {
            let spread = startup::first_label(rounds)?;
            say!("first label after {:.2} s (median of {rounds}; {:.2} to {:.2})", spread.median, spread.q1, spread.q3);
        }
        Command::Fleet(options) => return Ok(if fleet::run(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Command::Compare(options) => return compare(&options),
        Command::Scale(options) => return scale(&options),
    }
    Ok(ExitCode::SUCCESS)
}

impl Compare {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn effort(&self) -> Result<Effort> {
        let threads = self.threads();
        let work = if self.work.is_absolute() { self.work.clone() } else { fixture::root().join(&self.work) };
        if self.quick {
            let none = Duration::ZERO;
            return Ok(Effort { threads, least: 3, most: 3, budget: none, patience: none, run: Duration::from_millis(10), work });
        }
        Ok(Effort {
            threads,
            least: 5,
            most: self.rounds.max(5),
            budget: Duration::try_from_secs_f64(self.seconds)?,
            patience: Duration::try_from_secs_f64(self.patience)?,
            run: Duration::from_millis(100),
            work,
        })
    }

    fn chosen(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// Where the report and its chart go.
    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        let json = self.json.clone().unwrap_or_else(|| PathBuf::from(format!("target/bench/{name}.json")));
        let svg = self.svg.clone().unwrap_or_else(|| json.with_extension("svg"));
        (json, svg)
    }

    fn nothing<T>(&self) -> Result<T> {
        bail!("--only: expected the beginning of a name that `omnilabel-bench list` shows, found {:?}", self.only)
    }

    fn begin(&self) -> Report {
        let report = Report::new(self.threads());
        say!("{} threads of {} cores, {}", report.threads, report.cores, report.processor);
        say!("{}", head());
        report
    }
}

fn print(report: &CaseReport, ceiling: Option<&Ceiling>) {
    lines(report, ceiling).iter().for_each(|line| say!("{line}"));
}

fn end(report: &Report) -> ExitCode {
    say!("ratio: {}", report.ratio);
    if report.valid() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn compare(options: &Compare) -> Result<ExitCode> {
    let effort = options.effort()?;
    let all = match options.device {
        side::Device::Cpu => cases::all(options.side, options.quick),
        side::Device::Cuda => cases::on_gpu(options.side, options.quick)?,
    };
    let cases: Vec<cases::Case> = all.into_iter().filter(|case| options.chosen(&case.name)).collect();
    if cases.is_empty() {
        return options.nothing();
    }
    let mut report = options.begin();
    if options.device == side::Device::Cuda {
        let found = Ceiling::measure(options.threads())?;
        let products: Vec<String> = found.flops.iter().map(|(name, flops)| format!("{name} {:.1} TFLOP/s", flops / 1e12)).collect();
        say!("ceiling of {}: {}, copies {:.2} TB/s", found.device, products.join(", "), found.bytes / 1e12);
        report.ceiling = Some(found);
    }
    let (json, svg) = options.paths("compare");
    for case in &cases {
        let found = compare::run(case, &effort);
        print(&found, report.ceiling.as_ref());
        report.cases.push(found);
        report.write(&json, &svg)?;
    }
    Ok(end(&report))
}

fn scale(options: &Compare) -> Result<ExitCode> {
    let mut effort = options.effort()?;
    effort.budget /= 4;
    let points = if options.quick { 2 } else { usize::MAX };
    let plans = scale::all().into_iter().filter(|plan| options.chosen(plan.name)).map(|plan| plan.first(points));
    let plans: Vec<scale::Plan> = plans.collect();
    if plans.is_empty() {
        return options.nothing();
    }
    let mut report = options.begin();
    let (json, svg) = options.paths("scale");
    for plan in &plans {
        let curve = plan.measure(&effort, |report| print(report, None));
        report.curves.push(curve);
        report.write(&json, &svg)?;
    }
    Ok(end(&report))
}
