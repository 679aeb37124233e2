//! How long labels take, counted in steps of 3 %: a device keeps no list of them.

/// Steps for each factor of e.
const STEPS: f64 = 32.0;
/// Of them, enough for 20 minutes; what takes longer counts as that.
const PLACES: usize = 448;

/// Milliseconds, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    /// Empty until the first one.
    counts: Vec<u32>,
}

impl Latencies {
    /// Counts one.
    pub(crate) fn add(&mut self, ms: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; PLACES];
        }
        let place = ((1.0 + ms as f64).ln() * STEPS) as usize;
        self.counts[place.min(PLACES - 1)] += 1;
    }

    /// Counts all of another one.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
            return;
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// A share of them takes no longer, ms: the upper end of a step.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let place = self.counts.iter().position(|&count| {
            seen += u64::from(count);
            seen >= wanted
        })?;
        Some(((place + 1) as f64 / STEPS).exp() - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_a_step() {
        let (mut even, mut odd) = (Latencies::default(), Latencies::default());
        assert_eq!(even.quantile(0.5), None);
        (1..=1000_u64).for_each(|ms| if ms.is_multiple_of(2) { even.add(ms) } else { odd.add(ms) });
        let mut all = Latencies::default();
        all.merge(&even);
        all.merge(&odd);
        all.merge(&Latencies::default());
        assert_eq!(all.count(), 1000);
        for (share, ms) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = all.quantile(share).unwrap();
            assert!(found >= ms && found <= ms * 1.07, "{share}: {found} for {ms}");
        }
        all.add(u64::MAX);
        assert!(all.quantile(1.0).unwrap() > 1_000_000.0);
    }
}
