//! The exponential moving average of the weights (spec §7): what an arm exports where it is asked for.

use crate::RcnnError;
use candle_core::{Tensor, Var};

/// Averages of the trained parameters, in their order.
pub(super) struct Average {
    decay: f64,
    pub(super) values: Vec<Tensor>,
}

impl Average {
    /// Begins with the weights as they are.
    pub(super) fn new<'v>(decay: f64, vars: impl Iterator<Item = &'v Var>) -> Result<Self, RcnnError> {
        if !(0.0..1.0).contains(&decay) {
            return Err(RcnnError::Config(format!("`average` is {decay}, expected a decay from 0 and below 1")));
        }
        Ok(Self { decay, values: vars.map(|var| var.as_detached_tensor().copy()).collect::<Result<_, _>>()? })
    }

    /// Takes the weights after `steps` steps in. The first ones are forgotten faster: the decay is at most (1 + steps) / (10 + steps).
    pub(super) fn update<'v>(&mut self, steps: u64, vars: impl Iterator<Item = &'v Var>) -> Result<(), RcnnError> {
        let decay = self.decay.min((1.0 + steps as f64) / (10.0 + steps as f64));
        for (value, var) in self.values.iter_mut().zip(vars) {
            *value = (value.affine(decay, 0.0)? + var.as_detached_tensor().affine(1.0 - decay, 0.0)?)?;
        }
        Ok(())
    }
}
