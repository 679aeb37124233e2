//! `omnilabel-trainer status`: what the centre has, while it runs or not.

use super::run::runtime;
use crate::service::config::ServiceConfig;
use crate::service::drift::fleet::FleetDrift;
use crate::service::events::now_ms;
use crate::service::store::Store;
use crate::service::store::counts::DeviceCounts;
use crate::service::waves::{self, Tally, Waves};
use omnilabel_console::say;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Reasons of the quarantine that are shown.
const REASONS: u32 = 20;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `trainer.toml` of the centre (docs/CENTRE.md)
    #[arg(long)]
    config: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Status {
    devices: Vec<DeviceCounts>,
    missing: u64,
    drifts: BTreeMap<String, FleetDrift>,
    rounds: Vec<Round>,
    release: Option<Release>,
    quarantine: Vec<(String, u64)>,
}

#[derive(Serialize)]
struct Round {
    round: u64,
    running_ap: Option<f64>,
    candidate_ap: Option<f64>,
    verdict: String,
}

#[derive(Serialize)]
struct Release {
    counter: u64,
    name: String,
    waves: Waves,
    tally: Tally,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    omnilabel_console::log("warn");
    let config = ServiceConfig::load(&args.config)?;
    let status = runtime()?.block_on(look(&config))?;
    if args.json {
        say!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

async fn look(config: &ServiceConfig) -> anyhow::Result<Status> {
    let store = Store::attach(config).await?;
    let devices = store.counts().await?;
    let rounds = store.rounds().await?.into_iter().map(|state| Round {
        round: state.round,
        running_ap: state.running_judged.map(|judged| judged.ap),
        candidate_ap: state.candidate_judged.map(|judged| judged.ap),
        verdict: match (state.released, state.decision, state.failed) {
            (Some(counter), ..) => format!("release {counter}"),
            (None, Some(decision), _) => decision.reason().to_owned(),
            (None, None, Some(error)) => format!("failed {} times: {error}", state.failures),
            (None, None, None) => "under way".to_owned(),
        },
    });
    let release = match store.latest_release().await? {
        Some(row) => {
            let waves = row.waves()?;
            let tally = waves::tally(&store.standings(now_ms()).await?, row.counter(), row.model_hash(), waves.share());
            Some(Release { counter: row.counter(), name: row.name, waves, tally })
        }
        None => None,
    };
    let drifts = store.drifts().await?;
    let missing = devices.iter().map(DeviceCounts::missing).sum();
    Ok(Status { rounds: rounds.collect(), release, quarantine: store.quarantine_reasons(REASONS).await?, missing, drifts, devices })
}

fn print(status: &Status) {
    let now = now_ms();
    say!("{:<20} {:>7} {:>10} {:>10} {:>8} {:>8} {:>8}  model", "device", "", "committed", "stored", "evicted", "pending", "missing");
    for device in &status.devices {
        let (online, missing) = (if device.is_there(now) { "online" } else { "gone" }, device.missing());
        let DeviceCounts { device: name, committed, stored, evicted, pending, confirmed, trial, refused_release, reason, .. } = device;
        let trial = trial.map_or(String::new(), |trial| format!(", {trial} on trial"));
        let refused = refused_release.map_or(String::new(), |refused| format!(", {refused} refused ({reason})"));
        say!("{name:<20} {online:>7} {committed:>10} {stored:>10} {evicted:>8} {pending:>8} {missing:>8}  {confirmed}{trial}{refused}");
    }
    for (device, drift) in &status.drifts {
        if let Some(trouble) = drift.trouble() {
            say!("{device}: its labels have changed since the first days of release {}: {trouble}", drift.model);
        }
    }
    for round in &status.rounds {
        let ap = |ap: Option<f64>| ap.map_or("–".to_owned(), |ap| format!("{:.1}", 100.0 * ap));
        say!("round {}: AP {} → {}: {}", round.round, ap(round.running_ap), ap(round.candidate_ap), round.verdict);
    }
    if let Some(Release { counter, name, waves, tally }) = &status.release {
        let state = match (&waves.halted, waves.complete) {
            (Some(reason), _) => format!("halted: {reason}"),
            (None, true) => "complete".to_owned(),
            (None, false) => format!("wave {} of {}", waves.wave + 1, waves.shares.len()),
        };
        let share = f64::from(waves.share()) / 10.0;
        let Tally { devices, online, confirmed, refused, trying } = tally;
        say!(
            "release {counter} ({name}): {state}, {share} % of the fleet: {confirmed} confirmed, {refused} refused, {trying} on trial, of \
             {online} that are there and {devices} in all"
        );
    }
    for (reason, count) in &status.quarantine {
        say!("in quarantine: {count} × {reason}");
    }
}
