//! What the processes hold over time, and whether the centre grows.

use crate::stats::Spread;
use serde::Serialize;

/// A life that is shorter is shown and not judged: its first quarter is still a start.
const SHORTEST_SECS: f64 = 120.0;
/// What the centre may grow by from the first quarter of its last life to the last, KiB. SQLite's page caches (2 MiB for each of four
/// connections) may fill late, and what waits in the link (4,096 messages of a label's or some pictures' size, with the allocator's slack)
/// depends on the moment: 24 MiB. A leak of 32 bytes a label is more than that in ten minutes at 5,000 labels/s.
const ALLOWED_KIB: f64 = 24.0 * 1024.0;
/// And for each device: its name in a few maps, what it last said of its model, its index pages.
const ALLOWED_KIB_A_DEVICE: f64 = 8.0;

/// A moment of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Seconds from the first label on.
    pub(crate) at: f64,
    /// How often the centre was started before.
    pub(crate) life: u32,
    /// The centre's; none while it does not run.
    pub(crate) centre: Option<Usage>,
    /// The broker's.
    pub(crate) broker: Option<Usage>,
    /// Of all simulated devices together.
    pub(crate) devices: Option<Usage>,
    /// Labels committed so far.
    pub(crate) made: u64,
    /// Of these acknowledged.
    pub(crate) cleared: u64,
    /// Devices that are connected.
    pub(crate) connected: u64,
    /// Good devices that have confirmed the release.
    pub(crate) confirmed: u64,
}

/// What one process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Resident, KiB.
    pub(crate) rss_kib: u64,
    /// Of this no pages of files, KiB: what a program allocates and never frees stays there.
    pub(crate) anon_kib: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Processor time since its start, ms.
    pub(crate) cpu_ms: u64,
}

impl Usage {
    /// Of a process; `None` when it is gone.
    pub(crate) fn of(process: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count) as u64;
        let (rss_kib, anon_kib) = (field(&text, "VmRSS:")?, field(&text, "RssAnon:")?);
        Some(Self { rss_kib, anon_kib, descriptors, cpu_ms: (1e3 * crate::load::spent(process)).round() as u64 })
    }
}

/// Seconds of processor time of a process that may have been started again: what each life had at its last sample.
pub(crate) fn cpu_secs(samples: &[Sample], of: fn(&Sample) -> Option<Usage>) -> f64 {
    let mut sum = 0;
    let mut last = 0;
    for usage in samples.iter().filter_map(of) {
        // Less than before: another process.
        sum += if usage.cpu_ms < last { usage.cpu_ms } else { usage.cpu_ms - last };
        last = usage.cpu_ms;
    }
    sum as f64 / 1e3
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The centre's last life.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// How long it was looked at.
    pub(crate) life_secs: f64,
    /// Median of anonymous memory in its first quarter, KiB.
    pub(crate) first_kib: f64,
    /// In its last.
    pub(crate) last_kib: f64,
    /// The last may be so much more.
    pub(crate) allowed_kib: f64,
    /// Whether it was long enough to say.
    pub(crate) judged: bool,
    /// The most that was resident in any life, KiB.
    pub(crate) peak_rss_kib: u64,
    /// Median of open descriptors in the first quarter.
    pub(crate) first_descriptors: f64,
    /// In the last.
    pub(crate) last_descriptors: f64,
    /// At most, in any life.
    pub(crate) most_descriptors: u64,
}

impl Memory {
    /// Of a run with so many devices.
    pub(crate) fn judge(samples: &[Sample], devices: usize) -> Self {
        let seen: Vec<(f64, u32, Usage)> = samples.iter().filter_map(|sample| Some((sample.at, sample.life, sample.centre?))).collect();
        let Some(&(end, life, _)) = seen.last() else { return Self::default() };
        let last: Vec<(f64, Usage)> = seen.iter().filter(|(_, of, _)| *of == life).map(|&(at, _, usage)| (at, usage)).collect();
        let begin = last.first().map_or(end, |(at, _)| *at);
        let quarter = (end - begin) / 4.0;
        let median = |from: f64, to: f64, value: fn(&Usage) -> u64| {
            let values: Vec<f64> = last.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, usage)| value(usage) as f64).collect();
            Spread::of(&values).map_or(0.0, |spread| spread.median)
        };
        Self {
            life_secs: end - begin,
            first_kib: median(begin, begin + quarter, |usage| usage.anon_kib),
            last_kib: median(end - quarter, end, |usage| usage.anon_kib),
            allowed_kib: ALLOWED_KIB + ALLOWED_KIB_A_DEVICE * devices as f64,
            judged: end - begin >= SHORTEST_SECS,
            peak_rss_kib: seen.iter().map(|(_, _, usage)| usage.rss_kib).max().unwrap_or(0),
            first_descriptors: median(begin, begin + quarter, |usage| usage.descriptors),
            last_descriptors: median(end - quarter, end, |usage| usage.descriptors),
            most_descriptors: seen.iter().map(|(_, _, usage)| usage.descriptors).max().unwrap_or(0),
        }
    }

    /// Whether it grew by more than is allowed.
    pub(crate) fn grows(&self) -> bool {
        self.judged && self.last_kib - self.first_kib > self.allowed_kib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life of 50 s, then one that grows by so much a second.
    fn samples(seconds: u32, kib_a_second: u64) -> Vec<Sample> {
        let sample = |at: u32, life, anon_kib| {
            let centre = (at % 7 != 3).then_some(Usage { rss_kib: anon_kib + 9_000, anon_kib, descriptors: 20, cpu_ms: 0 });
            Sample { at: f64::from(at), life, centre, ..Sample::default() }
        };
        let before = (0..50).map(|at| sample(at, 0, 900_000));
        before.chain((0..seconds).map(|at| sample(50 + at, 1, 50_000 + kib_a_second * u64::from(at)))).collect()
    }

    #[test]
    fn growth_is_found_in_the_last_life_alone() {
        let flat = Memory::judge(&samples(400, 10), 1000);
        assert!(flat.judged && !flat.grows(), "{flat:?}");
        assert_eq!((flat.peak_rss_kib, flat.most_descriptors, flat.last_descriptors), (909_000, 20, 20.0));
        let grown = Memory::judge(&samples(400, 200), 1000);
        assert!(grown.grows() && grown.last_kib - grown.first_kib > 50_000.0, "{grown:?}");
        let short = Memory::judge(&samples(100, 2_000), 1000);
        assert!(!short.judged && !short.grows(), "{short:?}");
        assert!(!Memory::judge(&[], 1000).judged);
    }

    #[test]
    fn processor_time_of_all_lives_is_added() {
        let at = |cpu_ms| Sample { broker: Some(Usage { cpu_ms, ..Usage::default() }), ..Sample::default() };
        let samples = [at(100), at(400), Sample::default(), at(50), at(250)];
        assert!((cpu_secs(&samples, |sample| sample.broker) - 0.65).abs() < 1e-9);
        assert!(cpu_secs(&samples, |sample| sample.centre).abs() < 1e-9);
    }

    #[test]
    fn this_process_uses_something() {
        let begin = std::time::Instant::now();
        let mut own = Usage::of(std::process::id()).unwrap();
        // It works until the system has counted it.
        while own.cpu_ms == 0 && begin.elapsed().as_secs() < 60 {
            own = Usage::of(std::process::id()).unwrap();
        }
        assert!(own.cpu_ms > 0, "{own:?}");
        assert!(own.rss_kib > 1000 && own.anon_kib <= own.rss_kib && own.descriptors > 2, "{own:?}");
        assert_eq!(Usage::of(0), None);
    }
}
