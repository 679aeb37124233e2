//! A fleet on one machine: many simulated devices, each with a real connection and real messages, one mosquitto and one real centre, while
//! everything around them breaks. What they were promised is checked at the end, `docs/SCALE.md`.
//!
//! | module | what it holds |
//! |---|---|
//! | `outbox` | what a device keeps and sends next (pure) |
//! | `faults` | what goes wrong when (pure) |
//! | `latency` | how long labels take (pure) |
//! | `update` | a release at a device (pure) |
//! | `canary` | the release by waves: who is bad, and how it went out (pure) |
//! | `labels` | what devices send |
//! | `device` | one device as a task |
//! | `shared` | what all devices see |
//! | `yard` | broker and centre as processes |
//! | `conductor` | the run |
//! | `memory` | what processes hold, and whether the centre grows |
//! | `audit` | what the centre has, held against what was made |
//! | `promises` | what has to hold (pure) |
//! | `report`, `draw` | table, JSON, chart |

mod audit;
mod canary;
mod conductor;
mod device;
mod draw;
mod faults;
mod labels;
mod latency;
mod memory;
mod outbox;
mod promises;
mod report;
mod shared;
mod update;
mod yard;

use anyhow::{Result, ensure};
use clap::{ArgAction, Args};
use omnilabel_console::say;
use omnilabel_trainer::service::waves::thousandths;
use std::path::PathBuf;

/// What is simulated.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Simulated devices.
    #[arg(long, default_value_t = 1000)]
    pub devices: usize,
    /// How long labels are made, without the time to drain.
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Labels per device and second.
    #[arg(long, default_value_t = 5.0)]
    pub rate: f64,
    /// Of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Share of labels with a picture.
    #[arg(long, default_value_t = 0.02)]
    pub frames: f64,
    /// Without any fault.
    #[arg(long)]
    pub calm: bool,
    /// Whether a release is made, after a third of the time.
    #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub release: bool,
    /// Share of devices that refuse the release; a third as many hang, and a third as many lie.
    #[arg(long, default_value_t = 0.03)]
    pub bad: f64,
    /// Percent of the fleet in each wave of the release, rising, the last 100; 100 alone: to all at once.
    #[arg(long, value_delimiter = ',', default_value = "5,25,100", value_name = "PERCENT")]
    pub waves: Vec<f64>,
    /// Seconds for which a device tries a release.
    #[arg(long, default_value_t = 10.0)]
    pub probation: f64,
    /// KiB of blocks that the centre publishes in a second; every device that fetches gets all of them.
    #[arg(long, default_value_t = 256)]
    pub block_rate: u64,
    /// Seconds that everything may take to drain after the last fault.
    #[arg(long, default_value_t = 900.0)]
    pub drain: f64,
    /// The report; `target/bench/fleet.json` without it.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The chart; beside the report without it.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

impl Options {
    fn timeline(&self) -> faults::Timeline {
        faults::Timeline::new(60.0 * self.minutes, !self.calm)
    }

    /// Thousandths of the fleet in each wave.
    fn shares(&self) -> Vec<u16> {
        thousandths(&self.waves)
    }

    /// Who is what.
    fn personas(&self) -> Result<Vec<update::Persona>> {
        canary::personas(self.seed, self.devices, if self.release { self.bad } else { 0.0 }, &self.shares())
    }

    fn check(&self) -> Result<()> {
        let share = 0.0..=1.0;
        ensure!((1..=20_000).contains(&self.devices), "--devices is {}, expected 1 to 20000", self.devices);
        ensure!((0.1..=24.0 * 60.0).contains(&self.minutes), "--minutes is {}, expected 0.1 to 1440", self.minutes);
        ensure!((0.01..=100.0).contains(&self.rate), "--rate is {}, expected 0.01 to 100", self.rate);
        ensure!(share.contains(&self.frames), "--frames is {}, expected 0 to 1", self.frames);
        ensure!(share.contains(&self.bad), "--bad is {}, expected 0 to 1", self.bad);
        ensure!((0.0..=3600.0).contains(&self.probation), "--probation is {}, expected 0 to 3600", self.probation);
        ensure!((0.0..=86_400.0).contains(&self.drain), "--drain is {}, expected 0 to 86400", self.drain);
        ensure!(self.block_rate > 0, "--block-rate is 0, expected 1 or more");
        let whole = self.waves.last() == Some(&100.0) && self.waves.iter().all(|percent| (0.1..=100.0).contains(percent));
        ensure!(
            whole && self.shares().windows(2).all(|pair| pair[0] < pair[1]),
            "--waves are {:?}, expected percent of the fleet, from 0.1 on, rising, the last 100",
            self.waves
        );
        self.personas().map(drop)
    }
}

/// Simulates a fleet, prints the table, writes JSON and chart; whether every promise held.
///
/// # Errors
/// The options cannot be, there is no mosquitto, the system allows too few descriptors, or a program of the product cannot be used.
///
/// # Panics
/// As the system tests do: where a program that is needed is not built.
pub fn run(options: &Options) -> Result<bool> {
    options.check()?;
    yard::descriptors(options.devices)?;
    let report = conductor::Conductor::start(options)?.run()?;
    let json = options.json.clone().unwrap_or_else(|| PathBuf::from("target/bench/fleet.json"));
    let svg = options.svg.clone().unwrap_or_else(|| json.with_extension("svg"));
    conductor::write(&report, &json, &svg)?;
    report.lines().iter().for_each(|line| say!("{line}"));
    say!("{}, {}", json.display(), svg.display());
    Ok(report.broken.is_empty())
}
