//! `omnilabel-trainer experiment`

use super::common::{DeviceFlags, Stages, stop_flag};
use crate::experiment::{Outcome, Plan, Setup, experiment};
use anyhow::bail;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The plan: a TOML file with the data, the seeds and the arms
    plan: PathBuf,
    /// The folder from which the plan's images are named, instead of the plan's own
    #[arg(long)]
    data: Option<PathBuf>,
    /// Models, labels and the report; run again, what is there is not done again
    #[arg(long)]
    out: PathBuf,
    /// One result file per arm, length and seed, of which the report is made; OUT/records by default
    #[arg(long)]
    records: Option<PathBuf>,
    /// Run only these arms and what they need
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Run nothing: make the report of the records that there are, without the data
    #[arg(long, conflicts_with = "only")]
    report: bool,
    #[command(flatten)]
    device: DeviceFlags,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 200)]
    checkpoint_every: u64,
    /// Print the report as JSON instead of tables
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let plan = Plan::read(&args.plan, args.data.as_deref())?;
    if let Some(name) = args.only.iter().find(|name| plan.arm(name).is_none()) {
        let known: Vec<&str> = plan.arms.iter().map(|arm| arm.name.as_str()).collect();
        bail!("--only has `{name}`, expected arms of the plan: {}", known.join(", "));
    }
    if !args.report {
        args.device.try_device()?;
    }
    let setup = Setup {
        plan,
        records: args.records.unwrap_or_else(|| args.out.join("records")),
        out: args.out,
        only: args.only,
        report_only: args.report,
        compute: args.device.compute(),
        checkpoint_every: args.checkpoint_every,
    };
    let stop = stop_flag()?;
    let stages = Stages::default();
    match experiment(&setup, &|event| stages.show(event), &stop)? {
        Outcome::Finished(summary) if args.json => omnilabel_console::say!("{}", serde_json::to_string(&summary)?),
        Outcome::Finished(summary) => {
            omnilabel_console::say!("{}", summary.tables().trim_end());
            omnilabel_console::say!("report: {}", setup.out.join("report.md").display());
        }
        Outcome::Stopped if args.json => omnilabel_console::say!("{}", serde_json::json!({"stopped": true})),
        Outcome::Stopped => omnilabel_console::say!("stopped; the same command continues"),
    }
    Ok(())
}
