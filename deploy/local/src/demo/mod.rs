//! The whole loop on one machine, stage by stage; the same command continues an interrupted one.
//!
//! ```text
//! data ─▶ teacher ─▶ provision ─▶ fleet: label, collect, train, judge, release, install ─▶ evaluate ─▶ report
//!                                   └── beside it: the lower bound
//! ```

mod arms;
mod data;
mod evaluate;
mod files;
mod fleet;
pub mod outcome;
mod pictures;
mod plan;
mod show;
mod state;
mod watch;

pub use plan::Plan;

use crate::report;
use crate::zoo::Zoo;
use anyhow::Context;
use clap::Args;
use data::Folders;
use show::Show;
use state::{Stage, State};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Arguments of the demo.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Folder of the demo; the same command continues what lies there
    #[arg(long, default_value = "omnilabel-demo")]
    pub dir: PathBuf,
    /// How long it may take on two cores; data and schedule follow
    #[arg(long, default_value_t = plan::DEFAULT_MINUTES, value_parser = minutes)]
    pub minutes: f64,
    /// A COCO keypoint folder with train/ and val/ instead of rendered scenes
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Also train the upper bound: every frame with its true labels
    #[arg(long)]
    pub with_upper_bound: bool,
    /// Remove what lies in --dir and start over
    #[arg(long)]
    pub fresh: bool,
    /// Print the outcome as one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number of minutes".to_owned())?;
    if (0.1..=600.0).contains(&value) { Ok(value) } else { Err("expected 0.1 to 600 minutes".to_owned()) }
}

/// The demo was interrupted; everything is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; the same command continues from here")
    }
}

impl std::error::Error for Interrupted {}

static STOP: AtomicBool = AtomicBool::new(false);

/// Fails with [`Interrupted`] once Ctrl-C or SIGTERM came.
fn check() -> anyhow::Result<()> {
    if STOP.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
}

/// What every stage needs.
struct Demo<'c> {
    plan: &'c Plan,
    folders: &'c Folders,
    zoo: &'c Zoo,
    /// The demo's folder, absolute.
    root: &'c Path,
    show: &'c Show,
}

impl Demo<'_> {
    fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// The model that labels: shipped, or the arm that was trained on the labelled part.
    fn teacher(&self) -> anyhow::Result<PathBuf> {
        if self.plan.data.is_none() { self.zoo.teacher() } else { Ok(arms::bundle(self.root, arms::LOWER)) }
    }
}

/// Runs the demo and prints its outcome.
///
/// # Errors
/// What went wrong and where to look; [`Interrupted`] after Ctrl-C.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let plan = match &args.data {
        None => Plan::scenes(args.minutes, args.with_upper_bound),
        Some(data) => {
            data::read(data)?;
            let data = data.canonicalize().with_context(|| data.display().to_string())?;
            Plan::folder(data, args.minutes, args.with_upper_bound)
        }
    };
    if args.fresh {
        State::discard(&args.dir)?;
    }
    let mut state = State::open(&args.dir, plan)?;
    let logs = state.root().join("logs");
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    log_to(&logs.join("demo.log"))?;
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("the signal handler could not be installed")?;
    crate::child::stop_leftovers(state.root());
    let zoo = Zoo::extract(&state.root().join("zoo"))?;
    let started = Instant::now();
    let done = stages(&mut state, &zoo);
    state.spend(started.elapsed().as_secs_f64())?;
    done?;
    conclude(&state, &zoo, args)
}

/// Runs every stage that is not done.
fn stages(state: &mut State, zoo: &Zoo) -> anyhow::Result<()> {
    let (plan, root) = (state.plan().clone(), state.root().to_owned());
    let (folders, show) = (Folders::new(&root), Show::new());
    let context = Demo { plan: &plan, folders: &folders, zoo, root: &root, show: &show };
    if !state.is_done(Stage::Data) {
        show.say("preparing the pictures");
        folders.prepare(&plan, &check)?;
        state.finish(Stage::Data)?;
    }
    if !state.is_done(Stage::Teacher) {
        if plan.data.is_some() {
            arms::train_alone(&context, arms::LOWER, &folders.manual(), "training the teacher (it is the lower bound, too)")?;
        }
        state.finish(Stage::Teacher)?;
    }
    if !state.is_done(Stage::Provision) {
        fleet::provision(&context)?;
        state.finish(Stage::Provision)?;
    }
    if !state.is_done(Stage::Fleet) {
        fleet::run(&context)?;
        state.finish(Stage::Fleet)?;
    }
    if !state.is_done(Stage::Upper) {
        if plan.upper {
            arms::train_alone(&context, arms::UPPER, &folders.upper(), "training the upper bound")?;
        }
        state.finish(Stage::Upper)?;
    }
    if !state.is_done(Stage::Evaluate) {
        evaluate::run(&context)?;
        state.finish(Stage::Evaluate)?;
    }
    show.clear();
    Ok(())
}

/// Table or JSON, and the report.
fn conclude(state: &State, zoo: &Zoo, args: &DemoArgs) -> anyhow::Result<()> {
    let (folders, show) = (Folders::new(state.root()), Show::new());
    let context = Demo { plan: state.plan(), folders: &folders, zoo, root: state.root(), show: &show };
    let mut outcome = evaluate::outcome(&context)?;
    outcome.seconds = state.seconds();
    let pictures = pictures::pictures(&context, &outcome)?;
    let page = report::write(&state.root().join("report"), &outcome, &pictures)?;
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string(&outcome)?);
    } else {
        omnilabel_console::say!("\n{}\nreport: {}", outcome.table()?, page.display());
    }
    Ok(())
}

fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(file))
        .try_init()
        .map_err(|error| anyhow::anyhow!("no log: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_checked() {
        assert_eq!(minutes("2.5"), Ok(2.5));
        assert!(minutes("0").is_err() && minutes("soon").is_err() && minutes("NaN").is_err());
    }
}
