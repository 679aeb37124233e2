//! `GET /metrics`: the centre's numbers in Prometheus' text format (version 0.0.4). `deploy/grafana` shows them. Whatever is here is cheap:
//! nothing reads labels or pictures.

use super::Site;
use super::answer::Failure;
use super::fleet::Fleet;
use super::health::{Health, Totals};
use crate::service::gate::Decision;
use crate::service::rounds::RoundState;
use crate::service::store::counts::DeviceCounts;
use crate::service::store::look::ReleaseNote;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use nix::sys::statvfs::{Statvfs, statvfs};
use omnilabel_keypoints::release::turn;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// `GET /metrics`
pub(super) async fn metrics(Shared(site): Shared<Arc<Site>>) -> Result<Response, Failure> {
    let fleet = site.fleet.get(&site.centre.store).await?;
    let rounds = site.centre.store.rounds().await?;
    let releases = site.centre.store.releases(1).await?;
    let mut text = Text::default();
    // Of which site it is says who collects: the numbers carry no label that is the same on all of them.
    text.family("info", GAUGE, "The centre's version; always 1.", &[(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)]);
    devices(&mut text, &fleet);
    drift(&mut text, &fleet);
    collector(&mut text, &site.centre.health);
    training(&mut text, &rounds);
    rollout(&mut text, releases.first(), &fleet);
    disk(&mut text, &site.state_dir);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response())
}

/// A number of a device's account: name, kind, help, where it is.
type Column = (&'static str, &'static str, &'static str, fn(&DeviceCounts) -> u64);

/// The accounts of the devices.
fn devices(text: &mut Text, fleet: &Fleet) {
    let there = |device: &DeviceCounts| u64::from(device.is_there(fleet.at_ms));
    text.one("devices", GAUGE, "Known devices.", fleet.devices.len() as u64);
    text.one("devices_online", GAUGE, "Devices that are connected.", fleet.devices.iter().map(there).sum());
    let account: [Column; 12] = [
        ("labels_committed_total", COUNTER, "Labels made and fsynced on the device, by its last status.", |d| d.committed),
        ("labels_stored_total", COUNTER, "Labels stored, each once.", |d| d.stored),
        ("labels_duplicate_total", COUNTER, "Labels that came again.", |d| d.duplicates),
        ("labels_conflict_total", COUNTER, "Labels that came again with other bytes.", |d| d.conflicts),
        ("labels_refused_total", COUNTER, "Labels stored that are not trained on.", |d| d.refused),
        ("labels_evicted_total", COUNTER, "Labels dropped by the outbox's byte budget, by the device's last status.", |d| d.evicted),
        ("labels_pending", GAUGE, "In the device's outbox.", |d| d.pending),
        ("labels_missing", GAUGE, "Committed, neither stored nor evicted.", DeviceCounts::missing),
        ("labels_lost", GAUGE, "Committed, neither stored nor evicted nor in the outbox.", DeviceCounts::lost),
        ("frames_stored_total", COUNTER, "Frames stored.", |d| d.frames),
        ("device_release", GAUGE, "Counter of the release that the device confirmed; 0 is the first model.", |d| d.confirmed),
        ("device_trial", GAUGE, "Counter of the release that the device tries; 0 is none.", |d| d.trial.unwrap_or(0)),
    ];
    for (name, kind, help, value) in account {
        text.by_device(name, kind, help, fleet, |device| value(device) as f64);
    }
    text.by_device("device_online", GAUGE, "Whether the device is connected.", fleet, |device| there(device) as f64);
    let seen = "When the device was last heard of, Unix time.";
    text.by_device("device_seen_timestamp_seconds", GAUGE, seen, fleet, |device| device.seen_ms as f64 / 1000.0);
}

/// How the devices' labels have changed.
fn drift(text: &mut Text, fleet: &Fleet) {
    let compared = || fleet.drifts.iter().flat_map(|(device, drift)| drift.compared.iter().map(move |one| (device.as_str(), one)));
    let labels = |device, key| vec![("device", device), ("statistic", key)];
    let distances: Vec<_> =
        compared().map(|(device, one)| (labels(device, one.what.key()), (1000.0 * one.distance).round() / 1000.0)).collect();
    let help = "Kolmogorov-Smirnov distance of a device's newest day of labels from its model's first days.";
    text.family("drift", GAUGE, help, &distances);
    let drifted: Vec<_> = compared().map(|(device, one)| (labels(device, one.what.key()), f64::from(u8::from(one.drifted)))).collect();
    text.family("drifted", GAUGE, "Whether that is above the limit, and no chance.", &drifted);
}

/// The broker and the way into the store.
fn collector(text: &mut Text, health: &Health) {
    text.one("broker_connected", GAUGE, "Whether the broker is connected.", u64::from(health.is_connected()));
    let rejected: Vec<_> = health.rejections().map(|(reason, count)| (vec![("reason", reason)], count as f64)).collect();
    text.family("messages_rejected_total", COUNTER, "Messages that could not be used, since the start.", &rejected);
    let Totals { commits, commit_secs, commit_failures, frames_refused, acks, blocks } = health.totals();
    text.one("commits_total", COUNTER, "Batches stored, since the start.", commits);
    text.family("commit_seconds_total", COUNTER, "Time that they took.", &[(Vec::new(), commit_secs)]);
    text.one("commit_failures_total", COUNTER, "Batches that could not be stored and are tried again, since the start.", commit_failures);
    text.one("frames_refused_total", COUNTER, "Pictures that came and were not kept, since the start.", frames_refused);
    text.one("acks_total", COUNTER, "Acknowledgements published, since the start.", acks);
    text.one("blocks_published_total", COUNTER, "Blocks of releases published, since the start.", blocks);
}

/// The rounds and what the gate said.
fn training(text: &mut Text, rounds: &[RoundState]) {
    let count = |is: fn(&RoundState) -> bool| rounds.iter().filter(|round| is(round)).count() as u64;
    text.one("rounds", GAUGE, "Rounds that were begun.", rounds.len() as u64);
    text.one("rounds_ended", GAUGE, "Rounds that ended.", count(|round| round.ended));
    let decided = [
        ("release", count(|round| round.decision.as_ref().is_some_and(Decision::released))),
        ("refuse", count(|round| round.decision.as_ref().is_some_and(|decision| !decision.released()))),
    ];
    let decisions = decided.map(|(decision, rounds)| (vec![("decision", decision)], rounds as f64));
    text.family("rounds_decided", GAUGE, "Rounds by what the gate said.", &decisions);
    let under_way = rounds.last().filter(|round| !round.ended);
    text.one("round_failures", GAUGE, "Failures of the round under way.", under_way.map_or(0, |round| u64::from(round.failures)));
    let judged = rounds.iter().rev().find_map(|round| Some((round.running_judged.as_ref()?, round.candidate_judged.as_ref()?)));
    let ap = judged.map(|(running, candidate)| [("running", running.ap), ("candidate", candidate.ap)]);
    let ap: Vec<_> = ap.into_iter().flatten().map(|(model, ap)| (vec![("model", model)], ap)).collect();
    text.family("round_ap", GAUGE, "AP on the held-out labels in the last round that judged both models, 0 to 1.", &ap);
}

/// How the newest release goes out.
fn rollout(text: &mut Text, newest: Option<&ReleaseNote>, fleet: &Fleet) {
    let mut confirmed: BTreeMap<u64, u64> = BTreeMap::new();
    for device in &fleet.devices {
        *confirmed.entry(device.confirmed).or_default() += 1;
    }
    let counters: Vec<(String, u64)> = confirmed.into_iter().map(|(counter, devices)| (counter.to_string(), devices)).collect();
    let confirmed: Vec<_> = counters.iter().map(|(counter, devices)| (vec![("release", counter.as_str())], *devices as f64)).collect();
    text.family("release_confirmed", GAUGE, "Devices that confirmed a release; 0 is the first model.", &confirmed);
    let counter = newest.map_or(0, |release| release.counter.cast_unsigned());
    text.one("release_newest", GAUGE, "Counter of the newest release; 0 is none.", counter);

    let waves = newest.map(ReleaseNote::waves);
    let is = |what: bool| u64::from(what);
    let (wave, of) = waves.as_ref().map_or((0, 0), |waves| (waves.wave as u64 + 1, waves.shares.len() as u64));
    text.one("rollout_wave", GAUGE, "The wave of the newest release that is under way, from 1; 0 without a release.", wave);
    text.one("rollout_waves", GAUGE, "How many waves it has.", of);
    let share = waves.as_ref().map_or(0.0, |waves| f64::from(waves.share()) / 1000.0);
    text.family("rollout_share", GAUGE, "Share of the fleet whose turn has come, 0 to 1.", &[(Vec::new(), share)]);
    text.one("rollout_complete", GAUGE, "Whether all waves proved it.", is(waves.as_ref().is_some_and(|waves| waves.complete)));
    text.one("rollout_halted", GAUGE, "Whether it is halted.", is(waves.as_ref().is_some_and(|waves| waves.halted.is_some())));

    let shares = waves.map(|waves| waves.shares).unwrap_or_default();
    let said: Vec<_> = by_wave(&shares, counter, &fleet.devices).into_iter().collect();
    let numbers: Vec<String> = (1..=shares.len()).map(|wave| wave.to_string()).collect();
    let samples: Vec<_> = said
        .iter()
        .filter_map(|((wave, state), devices)| Some((vec![("wave", numbers.get(*wave)?.as_str()), ("state", *state)], *devices as f64)))
        .collect();
    text.family("rollout_devices", GAUGE, "Devices by their wave of the newest release and what they say of it.", &samples);
}

/// Devices by the wave that they are in, from 0, and what they say of a release: every state of every wave.
fn by_wave(shares: &[u16], counter: u64, devices: &[DeviceCounts]) -> BTreeMap<(usize, &'static str), u64> {
    let states = ["confirmed", "refused", "trying", "silent"];
    let mut said: BTreeMap<_, u64> = (0..shares.len()).flat_map(|wave| states.map(|state| ((wave, state), 0))).collect();
    for device in devices {
        let Some(wave) = shares.iter().position(|share| turn(&device.device, counter) < *share) else { continue };
        let state = match () {
            () if device.refused_release == Some(counter) => "refused",
            () if device.confirmed == counter => "confirmed",
            () if device.trial == Some(counter) => "trying",
            () => "silent",
        };
        *said.entry((wave, state)).or_default() += 1;
    }
    said
}

/// The disk of the state folder; nothing where the system does not tell.
fn disk(text: &mut Text, state_dir: &Path) {
    let disk = statvfs(state_dir);
    if let Err(error) = &disk {
        tracing::warn!("{}: the size of its disk: {error}", state_dir.display());
    }
    let bytes =
        |blocks: fn(&Statvfs) -> f64| disk.iter().map(|disk| (Vec::new(), blocks(disk) * disk.fragment_size() as f64)).collect::<Vec<_>>();
    text.family("disk_size_bytes", GAUGE, "The disk of the state folder.", &bytes(|disk| disk.blocks() as f64));
    text.family("disk_free_bytes", GAUGE, "What is free of it.", &bytes(|disk| disk.blocks_available() as f64));
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// A number with its labels.
type Sample<'f> = (Vec<(&'static str, &'f str)>, f64);

/// Prometheus' text.
#[derive(Default)]
struct Text(String);

impl Text {
    /// A number of the centre.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help, &[(Vec::new(), value as f64)]);
    }

    /// A number of each device.
    fn by_device(&mut self, name: &str, kind: &str, help: &str, fleet: &Fleet, value: impl Fn(&DeviceCounts) -> f64) {
        let samples: Vec<_> = fleet.devices.iter().map(|device| (vec![("device", device.device.as_str())], value(device))).collect();
        self.family(name, kind, help, &samples);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[Sample<'_>]) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP omnilabel_centre_{name} {help}\n# TYPE omnilabel_centre_{name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "omnilabel_centre_{name}{labels} {value}");
        }
    }
}

/// A label's value, as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_one_head_and_its_samples() {
        let mut text = Text::default();
        text.family("seen_total", COUNTER, "Seen.", &[(vec![("device", "a\"b\\c\nd")], 3.0), (Vec::new(), 0.25)]);
        let expected = "# HELP omnilabel_centre_seen_total Seen.\n# TYPE omnilabel_centre_seen_total counter\n\
                        omnilabel_centre_seen_total{device=\"a\\\"b\\\\c\\nd\"} 3\nomnilabel_centre_seen_total 0.25\n";
        assert_eq!(text.0, expected);
    }

    #[test]
    fn every_device_is_in_one_wave_and_says_one_thing() {
        let device = |index: u64| DeviceCounts {
            device: format!("cam-{index}"),
            confirmed: 7 * u64::from(index.is_multiple_of(4)),
            refused_release: (index % 4 == 1).then_some(7),
            trial: (index % 4 == 2).then_some(7),
            ..DeviceCounts::default()
        };
        let devices: Vec<_> = (0..400).map(device).collect();
        let said = by_wave(&[50, 250, 1000], 7, &devices);
        assert_eq!(said.len(), 12, "{said:?}");
        for state in ["confirmed", "refused", "trying", "silent"] {
            let each = [0, 1, 2].map(|wave| said[&(wave, state)]);
            assert_eq!(each.iter().sum::<u64>(), 100, "{said:?}");
            assert!(each[0] < each[1] && each[1] < each[2], "5 %, 20 % and 75 %: {said:?}");
        }
        assert!(by_wave(&[], 0, &devices).is_empty(), "without a release there are no waves");
    }
}
