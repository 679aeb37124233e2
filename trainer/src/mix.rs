//! The 60 : 40 union (spec §5): an exact quota per optimiser step, the remainder carried to the next, at least one manual image each.
//!
//! Everything is a function of (seed, step), so a resumed run draws what the interrupted one would have drawn.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Manual images of every 100 (the paper's 60 : 40).
pub const MANUAL_PERCENT: u8 = 60;

/// One image of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Index into the manual samples.
    Manual(usize),
    /// Index into the generated samples.
    Generated(usize),
}

/// Endless shuffled epochs over `0..len`; the order of each epoch follows from the seed and its number alone.
#[derive(Clone, Debug)]
struct Epochs {
    seed: u64,
    len: u64,
    /// The epoch whose order is at hand.
    current: Option<(u64, Vec<usize>)>,
}

impl Epochs {
    fn new(seed: u64, len: usize) -> Self {
        Self { seed, len: len as u64, current: None }
    }

    /// The `position`-th draw since the start.
    fn at(&mut self, position: u64) -> usize {
        let epoch = position / self.len;
        let order = match self.current.take() {
            Some((number, order)) if number == epoch => order,
            _ => {
                let mut order: Vec<usize> = (0..self.len as usize).collect();
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(epoch);
                order.shuffle(&mut rng);
                order
            }
        };
        let index = order[(position % self.len) as usize];
        self.current = Some((epoch, order));
        index
    }
}

/// Why a mix cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixError {
    /// No manual images.
    #[error("there is no manually labelled image to train on")]
    NoManual,
    /// A batch of no images.
    #[error("the batch must have at least one image")]
    EmptyBatch,
    /// No share.
    #[error("{0} % of the images cannot be manual: expected 1 to 100")]
    Percent(u8),
}

/// Which images each optimiser step sees.
#[derive(Clone, Debug)]
pub struct Mix {
    manual: Epochs,
    generated: Option<Epochs>,
    batch: u64,
    percent: u64,
}

impl Mix {
    /// Steps of `batch` images from `manual` and `generated` samples, `percent` of every 100 manual. Without generated samples every
    /// image is.
    ///
    /// # Errors
    /// See [`MixError`].
    pub fn new(seed: u64, batch: usize, percent: u8, manual: usize, generated: usize) -> Result<Self, MixError> {
        if manual == 0 {
            return Err(MixError::NoManual);
        }
        if batch == 0 {
            return Err(MixError::EmptyBatch);
        }
        if !(1..=100).contains(&percent) {
            return Err(MixError::Percent(percent));
        }
        let generated = (generated > 0).then(|| Epochs::new(seed ^ 0x67656e65, generated));
        Ok(Self { manual: Epochs::new(seed, manual), generated, batch: batch as u64, percent: percent.into() })
    }

    /// Manual images in the first `steps` steps: their share of all, rounded down, but at least one a step.
    fn manual_until(&self, steps: u64) -> u64 {
        if self.generated.is_none() {
            return steps * self.batch;
        }
        (steps * self.batch * self.percent / 100).max(steps)
    }

    /// The images of step `step` (from 0), manual ones first.
    pub fn step(&mut self, step: u64) -> Vec<Pick> {
        let (from, until) = (self.manual_until(step), self.manual_until(step + 1));
        let mut picks: Vec<Pick> = (from..until).map(|p| Pick::Manual(self.manual.at(p))).collect();
        if let Some(generated) = &mut self.generated {
            let (from, until) = (step * self.batch - from, (step + 1) * self.batch - until);
            picks.extend((from..until).map(|p| Pick::Generated(generated.at(p))));
        }
        picks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manual(picks: &[Pick]) -> usize {
        picks.iter().filter(|p| matches!(p, Pick::Manual(_))).count()
    }

    proptest! {
        /// Every step has the batch's size, a manual image, and its quota to within the carried remainder; the total is exact.
        #[test]
        fn quota_is_exact(seed: u64, batch in 2_usize..40, percent in 50_u8..=100, m in 1_usize..50, g in 1_usize..50, steps in 1_u64..60) {
            let mut mix = Mix::new(seed, batch, percent, m, g).unwrap();
            let mut total = 0;
            for step in 0..steps {
                let picks = mix.step(step);
                prop_assert_eq!(picks.len(), batch);
                prop_assert!(manual(&picks) >= 1);
                prop_assert!((manual(&picks) as f64 - f64::from(percent) / 100.0 * batch as f64).abs() < 1.0);
                total += manual(&picks);
            }
            prop_assert_eq!(total as u64, steps * batch as u64 * u64::from(percent) / 100);
        }

        /// Every image is drawn once before any is drawn twice.
        #[test]
        fn epochs_are_permutations(seed: u64, batch in 1_usize..9, m in 1_usize..40) {
            let mut mix = Mix::new(seed, batch, MANUAL_PERCENT, m, 0).unwrap();
            let draws: Vec<Pick> = (0..(3 * m as u64).div_ceil(batch as u64)).flat_map(|s| mix.step(s)).collect();
            for epoch in draws.chunks_exact(m) {
                let mut seen: Vec<usize> = epoch.iter().map(|p| match p { Pick::Manual(i) | Pick::Generated(i) => *i }).collect();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..m).collect::<Vec<_>>());
            }
        }

        /// A step's images do not depend on which steps were asked for before.
        #[test]
        fn any_step_can_be_resumed(seed: u64, batch in 1_usize..20, m in 1_usize..30, g in 0_usize..30, step in 0_u64..100) {
            let mut through = Mix::new(seed, batch, MANUAL_PERCENT, m, g).unwrap();
            let straight = (0..=step).map(|s| through.step(s)).last().unwrap();
            prop_assert_eq!(Mix::new(seed, batch, MANUAL_PERCENT, m, g).unwrap().step(step), straight);
        }
    }

    #[test]
    fn a_batch_of_one_is_always_manual() {
        let mut mix = Mix::new(1, 1, MANUAL_PERCENT, 3, 3).unwrap();
        assert!((0..20).all(|s| manual(&mix.step(s)) == 1));
    }

    #[test]
    fn different_epochs_have_different_orders() {
        let mut mix = Mix::new(5, 100, MANUAL_PERCENT, 100, 0).unwrap();
        assert_ne!(mix.step(0), mix.step(1));
    }

    #[test]
    fn without_manual_images_there_is_no_mix() {
        assert_eq!(Mix::new(1, 4, MANUAL_PERCENT, 0, 9).unwrap_err(), MixError::NoManual);
        assert_eq!([0, 101].map(|percent| Mix::new(1, 4, percent, 9, 9).unwrap_err()), [MixError::Percent(0), MixError::Percent(101)]);
    }
}
