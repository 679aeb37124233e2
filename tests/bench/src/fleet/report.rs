//! What a run found: a table for people, JSON for programs.

use super::audit::{Labels, Release};
use super::faults::Kind;
use super::latency::Latencies;
use super::memory::{Memory, Sample};
use crate::stats::Spread;
use serde::Serialize;
use std::collections::BTreeMap;

/// A fault of broker or centre, as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Mark {
    /// Seconds from the first label on.
    pub(crate) at: f64,
    /// How long it lasted.
    pub(crate) seconds: f64,
    /// What it was.
    pub(crate) kind: Kind,
}

/// From commit to acknowledgement, ms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// Labels.
    pub(crate) labels: u64,
    /// Half take no longer.
    pub(crate) p50: f64,
    /// 95 of 100.
    pub(crate) p95: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
}

impl Latency {
    /// `None` without labels.
    pub(crate) fn of(latencies: &Latencies) -> Option<Self> {
        let at = |share| latencies.quantile(share);
        Some(Self { labels: latencies.count(), p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
    }
}

/// Labels that became durable in a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// Median over the seconds of the run.
    pub(crate) median: f64,
    /// All of them over all seconds.
    pub(crate) overall: f64,
}

/// Fills the seconds from `begin` to `end` (since 1970) in which nothing came.
pub(crate) fn seconds(by_second: &BTreeMap<u64, u64>, begin: u64, end: u64) -> Vec<u64> {
    (begin..end).map(|second| by_second.get(&second).copied().unwrap_or(0)).collect()
}

impl Rate {
    /// Of the labels of each second.
    pub(crate) fn of(seconds: &[u64]) -> Self {
        let values: Vec<f64> = seconds.iter().map(|&labels| labels as f64).collect();
        let overall = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { median: Spread::of(&values).map_or(0.0, |spread| spread.median), overall }
    }
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// How it was asked for.
    pub(crate) command: String,
    /// The processor's name.
    pub(crate) processor: String,
    /// Its cores.
    pub(crate) cores: usize,
    /// Simulated devices.
    pub(crate) devices: usize,
    /// Of the faults.
    pub(crate) seed: u64,
    /// Labels asked for, per device and second.
    pub(crate) rate: f64,
    /// Seconds in which labels were made.
    pub(crate) secs: f64,
    /// Seconds from there until everything was acknowledged.
    pub(crate) drain_secs: f64,
    /// Whether somebody ended the faults early.
    pub(crate) interrupted: bool,
    /// What became of the labels.
    pub(crate) labels: Labels,
    /// How many became durable, while labels were made.
    pub(crate) stored_rate: Rate,
    /// Before the first fault.
    pub(crate) calm: Option<Latency>,
    /// Under faults.
    pub(crate) faulty: Option<Latency>,
    /// The centre's memory.
    pub(crate) memory: Memory,
    /// What a label cost.
    pub(crate) costs: Costs,
    /// How often what happened.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Whether there was to be a release.
    pub(crate) release_wanted: bool,
    /// What became of it.
    pub(crate) release: Option<Release>,
    /// Messages at devices that were not what they were to be.
    pub(crate) wrong: u64,
    /// What the centre complained of, and how often.
    pub(crate) troubles: BTreeMap<String, u64>,
    /// What nobody had planned.
    pub(crate) incidents: Vec<String>,
    /// Promises that do not hold.
    pub(crate) broken: Vec<String>,
    /// Faults of broker and centre.
    pub(crate) marks: Vec<Mark>,
    /// Over time.
    pub(crate) samples: Vec<Sample>,
    /// Labels that became durable in each second from the first label on.
    pub(crate) stored_by_second: Vec<u64>,
}

/// What labels cost where they go.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Costs {
    /// Processor seconds of the centre, over all its lives.
    pub(crate) centre_cpu_secs: f64,
    /// Of the broker.
    pub(crate) broker_cpu_secs: f64,
    /// The most that was resident of the broker, KiB.
    pub(crate) broker_rss_kib: u64,
    /// Bytes of the centre's database, pictures among them.
    pub(crate) database_bytes: u64,
    /// Bytes of its event log.
    pub(crate) log_bytes: u64,
}

fn span(secs: Option<f64>) -> String {
    secs.map_or_else(|| "never".to_owned(), |secs| format!("{secs:.1} s"))
}

impl Report {
    /// The table.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} devices, {} labels/s each, {:.0} s, seed {}{}; {} cores, {}",
            self.devices,
            self.rate,
            self.secs,
            self.seed,
            if self.interrupted { ", interrupted" } else { "" },
            self.cores,
            self.processor
        )];
        let mut row = |name: &str, value: String| lines.push(format!("  {name:<34} {value}"));
        let labels = &self.labels;
        row("labels made", format!("{} in {} outboxes", labels.made, labels.outboxes));
        row("labels stored", labels.stored.to_string());
        row("labels lost", labels.lost.to_string());
        row("labels stored twice (the schema forbids it)", labels.twice.to_string());
        row("labels compared byte by byte, other than made", format!("{}, {}", labels.compared, labels.altered));
        row("missing by the centre's account", labels.missing.to_string());
        row("sent again / arrived again", format!("{} / {}", labels.again, labels.repeated));
        row("labels stored per second", format!("{:.0} median, {:.0} overall", self.stored_rate.median, self.stored_rate.overall));
        row("drained after", format!("{:.1} s", self.drain_secs));
        for (name, latency) in [("commit to acknowledged, calm", &self.calm), ("commit to acknowledged, faults", &self.faulty)] {
            if let Some(Latency { labels, p50, p95, p99 }) = latency {
                row(name, format!("p50 {p50:.0} ms, p95 {p95:.0} ms, p99 {p99:.0} ms ({labels} labels)"));
            }
        }
        let (memory, mib) = (&self.memory, |kib: f64| kib / 1024.0);
        let verdict = match (memory.judged, memory.grows()) {
            (false, _) => "too short to judge",
            (true, false) => "does not grow",
            (true, true) => "GROWS",
        };
        row(
            "centre, first and last quarter",
            format!(
                "{:.1} MiB, {:.1} MiB anonymous over {:.0} s: {verdict}",
                mib(memory.first_kib),
                mib(memory.last_kib),
                memory.life_secs
            ),
        );
        row("centre, resident at most", format!("{:.1} MiB", mib(memory.peak_rss_kib as f64)));
        let (costs, each) = (&self.costs, labels.stored.max(1) as f64);
        let (centre, broker) = (1e6 * costs.centre_cpu_secs / each, 1e6 * costs.broker_cpu_secs / each);
        row("processor a label, centre / broker", format!("{centre:.0} µs / {broker:.0} µs"));
        row("broker, resident at most", format!("{:.1} MiB", mib(costs.broker_rss_kib as f64)));
        let (database, log) = (costs.database_bytes as f64 / each, costs.log_bytes as f64 / each);
        row("database / event log a label", format!("{database:.0} bytes (pictures among them) / {log:.1} bytes"));
        let (first, last, most) = (memory.first_descriptors, memory.last_descriptors, memory.most_descriptors);
        row("centre, descriptors", format!("{first:.0}, then {last:.0}, {most} at most"));
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{count} {name}")).collect();
        row("faults", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") });
        if let Some(release) = &self.release {
            let pair = |(all, seen): (u64, u64)| format!("{seen} of {all}");
            row("release confirmed", format!("{} of {} good devices", release.confirmed, release.good));
            row("  refused / hung / lied", [release.refused, release.hung, release.lied].map(pair).join(" / "));
            let times = [release.half_secs, release.most_secs, release.all_secs].map(span);
            row("  50 %, 90 %, all confirmed after", times.join(", "));
            row("  blocks taken by devices", release.blocks.to_string());
            let canary = &release.canary;
            for wave in &canary.opened {
                let (percent, devices) = (f64::from(wave.share) / 10.0, wave.devices);
                row("  wave opened", format!("{percent} %, {devices} devices, after {:.1} s", wave.secs));
            }
            // What goes to all at once is complete as it is made.
            if canary.wanted.len() > 1 {
                row("  complete after", span(canary.complete_secs));
                row("  centre killed meanwhile", canary.kills.to_string());
            }
            row("  began / before their turn", format!("{} / {}", canary.began, canary.early.len()));
        }
        let troubles: Vec<String> = self.troubles.iter().map(|(what, count)| format!("{count} {what}")).collect();
        row("the centre's complaints", if troubles.is_empty() { "none".to_owned() } else { troubles.join(", ") });
        lines.extend(self.broken.iter().map(|promise| format!("BROKEN: {promise}")));
        if self.broken.is_empty() {
            lines.push("every promise held".to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_without_labels_count() {
        let by_second = BTreeMap::from([(9, 5), (10, 4), (12, 8), (14, 100)]);
        let found = seconds(&by_second, 10, 14);
        assert_eq!(found, [4, 0, 8, 0]);
        assert_eq!(Rate::of(&found), Rate { median: 2.0, overall: 3.0 });
        assert_eq!(Rate::of(&[]), Rate::default());
    }

    #[test]
    fn a_broken_promise_stands_at_the_end() {
        let report = Report { broken: vec!["it was lost".to_owned()], ..Report::default() };
        assert_eq!(report.lines().last().map(String::as_str), Some("BROKEN: it was lost"));
        assert_eq!(Report::default().lines().last().map(String::as_str), Some("every promise held"));
    }
}
