//! Random numbers of one scene: the same seed, stream and index give the same scene.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Clone, Debug)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Uniform in `[low, high)`.
    pub(crate) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.random::<f32>()
    }

    /// Uniform in `0..count`.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    pub(crate) fn chance(&mut self, probability: f32) -> bool {
        self.0.random::<f32>() < probability
    }

    /// Gaussian (Box–Muller).
    pub(crate) fn normal(&mut self, mean: f32, deviation: f32) -> f32 {
        let radius = (-2.0 * (1.0 - self.0.random::<f32>()).ln()).sqrt();
        mean + deviation * radius * (std::f32::consts::TAU * self.0.random::<f32>()).cos()
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0.random()
    }
}
