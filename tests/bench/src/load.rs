//! How much of the processor others took while a round ran. A busy machine does not slow all sides alike: threads that spin while they
//! wait (OpenMP's) lose more than threads that sleep.

use std::time::Instant;

/// Ticks per second of `/proc` (`USER_HZ`, the same on every Linux that we run on).
const TICKS: f64 = 100.0;

/// From a moment on.
pub struct Load {
    since: Instant,
    busy: f64,
    own: f64,
    processes: Vec<u32>,
}

impl Load {
    /// From now on, apart from this process and `processes`.
    pub fn start(processes: Vec<u32>) -> Self {
        let own = processes.iter().map(|&id| spent(id)).sum();
        Self { since: Instant::now(), busy: busy(), own, processes }
    }

    /// The share of all cores that others took.
    pub fn share(&self) -> f64 {
        let own: f64 = self.processes.iter().map(|&id| spent(id)).sum();
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let others = (busy() - self.busy) - (own - self.own);
        (others / (self.since.elapsed().as_secs_f64() * cores)).max(0.0)
    }
}

/// Seconds that all cores together were busy since the system started.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    ticks.iter().enumerate().filter(|(i, _)| *i < 8 && ![3, 4].contains(i)).map(|(_, ticks)| ticks).sum::<f64>() / TICKS
}

/// Seconds that a process was running.
pub(crate) fn spent(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, which may hold spaces, ends with the last parenthesis; utime and stime are the 14th and 15th field.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_told() {
        let load = Load::start(vec![std::process::id()]);
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!((0.0..=2.0).contains(&load.share()));
    }
}
