//! SGD and AdamW on the parameters' own memory, and learning-rate schedules.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Storage, Tensor, Var, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// SGD with momentum 0.9 (spec §2).
    Sgd,
    /// AdamW, β = (0.9, 0.999), ε = 1e-8.
    AdamW,
}

/// The learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Divided by 10 at every milestone.
    Steps,
    /// Half a cosine down to nought at the last step.
    Cosine,
}

/// The learning rate of `step` (counted from 0) out of `steps`: linear warm-up from a third over `warmup` steps, then the schedule.
/// `milestones` are shares of `steps`.
pub fn learning_rate(schedule: Schedule, peak: f64, step: u64, steps: u64, warmup: u64, milestones: &[f64]) -> f64 {
    let rate = match schedule {
        Schedule::Steps => {
            let passed = milestones.iter().filter(|&&share| step as f64 >= share * steps as f64).count();
            peak * 0.1f64.powi(passed as i32)
        }
        Schedule::Cosine => {
            let progress = (step as f64 / steps.max(1) as f64).min(1.0);
            peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
    };
    if step < warmup { rate * (1.0 / 3.0 + 2.0 / 3.0 * step as f64 / warmup as f64) } else { rate }
}

/// Values summed in one go; sums of chunks are added in order, so a norm does not depend on the number of threads.
const CHUNK: usize = 4096;

/// State of an optimiser: one or two moments per parameter, in the order of the parameters.
pub(crate) struct Optim {
    kind: Optimizer,
    weight_decay: f64,
    clip: Option<f64>,
    /// The parameters by name.
    pub(crate) vars: Vec<(String, Var)>,
    /// First moments (SGD: momentum).
    pub(crate) first: Vec<Moments>,
    /// Second moments (AdamW).
    pub(crate) second: Vec<Moments>,
}

/// As many numbers as a parameter has, where it lies.
pub(crate) enum Moments {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Gpu(crate::ops::cuda::Moments),
}

impl Moments {
    pub(crate) fn new(like: &Tensor, values: Vec<f32>) -> Result<Self> {
        match like.device() {
            Device::Cpu => Ok(Self::Host(values)),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => Ok(Self::Gpu(crate::ops::cuda::Moments::new(like, &values)?)),
            other => bail!("optimiser: a parameter on {other:?}"),
        }
    }

    pub(crate) fn to_vec(&self) -> Result<Vec<f32>> {
        match self {
            Self::Host(values) => Ok(values.clone()),
            #[cfg(feature = "cuda")]
            Self::Gpu(moments) => moments.to_vec(),
        }
    }
}

impl Default for Moments {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl Optim {
    pub(crate) fn new(kind: Optimizer, weight_decay: f64, clip: Option<f64>, vars: Vec<(String, Var)>) -> Result<Self> {
        let zeros = || vars.iter().map(|(_, var)| Moments::new(var, vec![0.0; var.elem_count()])).collect::<Result<Vec<_>>>();
        let second = if kind == Optimizer::AdamW { zeros()? } else { Vec::new() };
        let first = zeros()?;
        Ok(Self { kind, weight_decay, clip, vars, first, second })
    }

    /// Updates all parameters by `gradients`, contiguous and in their order; `step` counts from 0. Returns the gradient's norm before
    /// clipping. A parameter that took no part has none. Weight decay is for matrices and kernels: biases and affine vectors are left out.
    pub(crate) fn step(&mut self, gradients: &[Option<Tensor>], lr: f64, step: u64) -> Result<f64> {
        let norm = square_norms(gradients)?.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let scale = self.clip.map_or(1.0, |clip| if norm > clip { clip / norm } else { 1.0 }) as f32;
        for (index, ((_, var), gradient)) in self.vars.iter().zip(gradients).enumerate() {
            let Some(gradient) = gradient else { continue };
            let decay = if var.rank() >= 2 { self.weight_decay } else { 0.0 };
            let first = std::mem::take(&mut self.first[index]);
            let second = self.second.get_mut(index).map(std::mem::take).unwrap_or_default();
            let update = Update { kind: self.kind, lr, decay, scale, step, moments: Mutex::new((first, second)) };
            let done = var.inplace_op2(gradient, &update);
            if let Ok((first, second)) = update.moments.into_inner() {
                self.first[index] = first;
                if let Some(slot) = self.second.get_mut(index) {
                    *slot = second;
                }
            }
            done?;
        }
        Ok(norm)
    }
}

fn square_norms(gradients: &[Option<Tensor>]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if gradients.iter().flatten().any(|gradient| gradient.device().is_cuda()) {
        return crate::ops::cuda::square_norm(gradients.iter().flatten());
    }
    let mut squares = 0.0;
    for gradient in gradients.iter().flatten() {
        squares += square_norm(gradient)?;
    }
    Ok(squares)
}

fn square_norm(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else { bail!("optimiser: expected f32 on the host") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("optimiser: a gradient is not contiguous") };
    let chunks: Vec<f64> =
        data[start..end].par_chunks(CHUNK).map(|chunk| chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum()).collect();
    Ok(chunks.into_iter().sum())
}

struct Update {
    kind: Optimizer,
    lr: f64,
    decay: f64,
    scale: f32,
    step: u64,
    moments: Mutex<(Moments, Moments)>,
}

impl Update {
    /// What AdamW multiplies the weight with, its rate, and what it multiplies the root with: decay and bias corrections.
    fn adamw(&self) -> [f32; 3] {
        let t = self.step as i32 + 1;
        let shrink = (1.0 - self.lr * self.decay) as f32;
        let rate = (self.lr / (1.0 - 0.9f64.powi(t))) as f32;
        let root = (1.0 / (1.0 - 0.999f64.powi(t)).sqrt()) as f32;
        [shrink, rate, root]
    }
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "optimiser-update"
    }

    fn cpu_fwd(&self, weights: &mut CpuStorage, wl: &Layout, gradient: &CpuStorage, gl: &Layout) -> Result<()> {
        let (CpuStorage::F32(w), CpuStorage::F32(g)) = (weights, gradient) else { bail!("optimiser: expected f32") };
        let (Some((ws, we)), Some((gs, ge))) = (wl.contiguous_offsets(), gl.contiguous_offsets()) else {
            bail!("optimiser: a parameter is not contiguous")
        };
        let (w, g) = (&mut w[ws..we], &g[gs..ge]);
        let Ok(mut moments) = self.moments.lock() else { bail!("optimiser: a thread panicked during an update") };
        let (first, second) = match &mut *moments {
            (Moments::Host(first), Moments::Host(second)) => (first, second),
            #[cfg(feature = "cuda")]
            _ => bail!("optimiser: the moments of a parameter on the CPU lie elsewhere"),
        };
        if w.len() != g.len() || w.len() != first.len() {
            bail!("optimiser: {} weights, {} gradients, {} moments", w.len(), g.len(), first.len());
        }
        let (lr, scale) = (self.lr as f32, self.scale);
        match self.kind {
            Optimizer::Sgd => {
                let decay = self.decay as f32;
                w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(first.par_chunks_mut(CHUNK)).for_each(|((w, g), m)| {
                    for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
                        *m = 0.9 * *m + g * scale + decay * *w;
                        *w -= lr * *m;
                    }
                });
            }
            Optimizer::AdamW => {
                let [shrink, rate, root] = self.adamw();
                let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(moments).for_each(|((w, g), (m, v))| {
                    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * scale;
                        *m = 0.9 * *m + 0.1 * g;
                        *v = 0.999 * *v + 0.001 * g * g;
                        *w = *w * shrink - rate * *m / (v.sqrt() * root + 1e-8);
                    }
                });
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, weights: &mut CudaStorage, wl: &Layout, gradient: &CudaStorage, gl: &Layout) -> Result<()> {
        use crate::ops::cuda;
        let Ok(moments) = self.moments.lock() else { bail!("optimiser: a thread panicked during an update") };
        match (self.kind, &*moments) {
            (Optimizer::Sgd, (Moments::Gpu(first), _)) => {
                cuda::sgd((weights, wl), (gradient, gl), first, [self.lr as f32, self.decay as f32, self.scale])
            }
            (Optimizer::AdamW, (Moments::Gpu(first), Moments::Gpu(second))) => {
                let [shrink, rate, root] = self.adamw();
                cuda::adamw((weights, wl), (gradient, gl), [first, second], [self.scale, shrink, rate, root])
            }
            _ => bail!("optimiser: the moments of a parameter on the GPU lie elsewhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minimises ½‖w − 3‖² for two parameters, one a matrix, and returns the first element after `steps`.
    fn minimise(kind: Optimizer, lr: f64, decay: f64, clip: Option<f64>, steps: u64) -> (f32, f32) {
        let matrix = Var::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let vector = Var::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let vars = vec![("m".to_owned(), matrix.clone()), ("v".to_owned(), vector.clone())];
        let mut optim = Optim::new(kind, decay, clip, vars).unwrap();
        for step in 0..steps {
            let half = |v: &Var| ((v.as_tensor() - 3.0).unwrap().sqr().unwrap().sum_all().unwrap() * 0.5).unwrap();
            let loss = (half(&matrix) + half(&vector)).unwrap();
            let grads = loss.backward().unwrap();
            let gradients: Vec<Option<Tensor>> = optim.vars.iter().map(|(_, var)| grads.get(var.as_tensor()).cloned()).collect();
            optim.step(&gradients, lr, step).unwrap();
        }
        let first = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        (first(&matrix), first(&vector))
    }

    #[test]
    fn updates_are_torchs() {
        // torch.optim.SGD(lr=0.1, momentum=0.9): w1 = 0.3, w2 = 0.3 + 0.1·(0.9·3 + 2.7) = 0.84.
        let (m, v) = minimise(Optimizer::Sgd, 0.1, 0.0, None, 2);
        assert!((m - 0.84).abs() < 1e-6 && (v - 0.84).abs() < 1e-6, "{m} {v}");
        // Adam's first step is lr for any gradient.
        let (m, v) = minimise(Optimizer::AdamW, 0.01, 0.0, None, 1);
        assert!((m - 0.01).abs() < 1e-6 && (v - 0.01).abs() < 1e-6, "{m} {v}");
    }

    #[test]
    fn they_converge_and_decay_only_matrices() {
        for (kind, lr) in [(Optimizer::Sgd, 0.05), (Optimizer::AdamW, 0.1)] {
            let (m, v) = minimise(kind, lr, 0.0, None, 400);
            assert!((m - 3.0).abs() < 1e-2 && (v - 3.0).abs() < 1e-2, "{kind:?} {m} {v}");
            let (m, v) = minimise(kind, lr, 0.5, None, 400);
            assert!(m < 2.9 && (v - 3.0).abs() < 1e-2, "{kind:?} {m} {v}");
        }
    }

    #[test]
    fn clipping_limits_the_norm() {
        // Gradient −3 in seven places: norm 7.94, limited to 1.
        let (m, _) = minimise(Optimizer::Sgd, 1.0, 0.0, Some(1.0), 1);
        assert!((f64::from(m) - 1.0 / 7f64.sqrt()).abs() < 1e-6, "{m}");
    }

    #[test]
    fn the_schedule_warms_up_and_falls() {
        let rate = |schedule, step| learning_rate(schedule, 1.0, step, 1000, 100, &[0.7, 0.9]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(rate(Schedule::Steps, 0), 1.0 / 3.0);
        close(rate(Schedule::Steps, 50), 2.0 / 3.0);
        close(rate(Schedule::Steps, 100), 1.0);
        close(rate(Schedule::Steps, 699), 1.0);
        close(rate(Schedule::Steps, 700), 0.1);
        close(rate(Schedule::Steps, 900), 0.01);
        close(rate(Schedule::Cosine, 500), 0.5);
        close(rate(Schedule::Cosine, 1000), 0.0);
    }
}
