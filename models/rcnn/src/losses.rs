//! The losses (spec §2) as sums; the caller divides. Each computes value and gradient together in one pass on the host.
//!
//! Inputs are gathered on their device first, so what comes to the host is small; gradients go back the way they came.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::{Add, AddAssign, Mul};
use std::sync::Mutex;

/// β of the smooth-L1 losses.
pub const BETA: f64 = 1.0 / 9.0;

/// Σ binary cross-entropy of `logits` `[n]` against `targets` in `[0, 1]`.
///
/// # Errors
/// Shapes that do not agree.
pub fn bce_with_logits(logits: &Tensor, targets: Vec<f64>) -> Result<Tensor> {
    apply(logits, Kind::Bce(targets))
}

/// Σ smooth-L1 with [`BETA`] of `predictions` `[n]` against `targets`.
///
/// # Errors
/// Shapes that do not agree.
pub fn smooth_l1(predictions: &Tensor, targets: Vec<f64>) -> Result<Tensor> {
    apply(predictions, Kind::SmoothL1(targets))
}

/// Σ over rows with a label of − log softmax: `logits` `[n, c]`, labels below c.
///
/// # Errors
/// Shapes that do not agree, a label out of range.
pub fn cross_entropy(logits: &Tensor, labels: Vec<Option<u32>>) -> Result<Tensor> {
    apply(logits, Kind::CrossEntropy(labels))
}

/// What a heatmap should say.
#[derive(Clone, Debug, PartialEq)]
pub enum Heat {
    /// All of it in this cell: a hard label.
    Cell(u32),
    /// These probabilities, one per cell, row by row, with a sum of one: a soft label.
    Spread(Vec<f32>),
}

/// Σ over maps with a label of the cross-entropy with it, − Σ q · log softmax over the cells of the map enlarged ×2 (bilinear, the keypoint
/// head's last step): `maps` `[n, s, s]`, labels of (2s)² cells. Enlarging here keeps the large maps and their gradients out of memory.
///
/// # Errors
/// Shapes that do not agree, a label out of range.
pub fn heatmap_cross_entropy(maps: &Tensor, labels: Vec<Option<Heat>>) -> Result<Tensor> {
    apply(maps, Kind::Heatmap(labels))
}

/// The elements of `values` at flat positions `indices`, `[indices]`; differentiable.
///
/// # Errors
/// An index out of range.
pub fn pick(values: &Tensor, indices: Vec<u32>) -> Result<Tensor> {
    let count = indices.len();
    values.flatten_all()?.index_select(&Tensor::from_vec(indices, count, values.device())?, 0)
}

fn apply(input: &Tensor, kind: Kind) -> Result<Tensor> {
    input.contiguous()?.to_device(&Device::Cpu)?.apply_op1(HostLoss { kind, slope: Mutex::new(Slope::None) })
}

enum Kind {
    Bce(Vec<f64>),
    SmoothL1(Vec<f64>),
    CrossEntropy(Vec<Option<u32>>),
    Heatmap(Vec<Option<Heat>>),
}

/// The gradient for an output gradient of one, made by the forward pass.
enum Slope {
    None,
    F32(Vec<f32>),
    F64(Vec<f64>),
}

struct HostLoss {
    kind: Kind,
    slope: Mutex<Slope>,
}

/// What the formulas need of `f32` and `f64`.
trait Real: Copy + Send + Sync + Default + Add<Output = Self> + Mul<Output = Self> + AddAssign {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn exp(self) -> Self {
        f32::exp(self)
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
}

impl Kind {
    fn check(&self, dims: &[usize]) -> Result<()> {
        let (expected, rank) = match self {
            Self::Bce(targets) | Self::SmoothL1(targets) => (targets.len(), 1),
            Self::CrossEntropy(labels) => (labels.len(), 2),
            Self::Heatmap(labels) => (labels.len(), 3),
        };
        if dims.len() != rank || dims[0] != expected {
            bail!("loss: input {dims:?} does not fit {expected} targets (rank {rank})");
        }
        let below = |label: u32, classes: usize| {
            if (label as usize) < classes { Ok(()) } else { bail!("loss: label {label} of {classes} classes") }
        };
        match self {
            Self::CrossEntropy(labels) => labels.iter().flatten().try_for_each(|&label| below(label, dims[1])),
            Self::Heatmap(_) if dims[1] != dims[2] => bail!("loss: maps of {}×{}, expected squares", dims[1], dims[2]),
            Self::Heatmap(labels) => {
                let cells = 4 * dims[1] * dims[2];
                labels.iter().flatten().try_for_each(|label| match label {
                    Heat::Cell(label) => below(*label, cells),
                    Heat::Spread(spread) if spread.len() == cells => Ok(()),
                    Heat::Spread(spread) => bail!("loss: a label of {} cells, expected {cells}", spread.len()),
                })
            }
            Self::Bce(_) | Self::SmoothL1(_) => Ok(()),
        }
    }

    /// `dims` are the input's.
    fn evaluate<T: Real>(&self, input: &[T], dims: &[usize]) -> (T, Vec<T>) {
        let columns = dims[1..].iter().product::<usize>().max(1);
        let mut slope = vec![T::default(); input.len()];
        let mut pointwise = |targets: &[f64], f: fn(f64, f64) -> (f64, f64)| {
            let mut sum = 0.0;
            for ((&x, &target), slope) in input.iter().zip(targets).zip(&mut slope) {
                let (value, derivative) = f(x.to_f64(), target);
                sum += value;
                *slope = T::from_f64(derivative);
            }
            sum
        };
        let sum = match self {
            Self::Bce(targets) => pointwise(targets, |x, target| {
                let tail = (-x.abs()).exp();
                let sigmoid = if x >= 0.0 { 1.0 / (1.0 + tail) } else { tail / (1.0 + tail) };
                (x.max(0.0) - x * target + tail.ln_1p(), sigmoid - target)
            }),
            Self::SmoothL1(targets) => pointwise(targets, |x, target| {
                let d = x - target;
                if d.abs() < BETA { (0.5 * d * d / BETA, d / BETA) } else { (d.abs() - 0.5 * BETA, d.signum()) }
            }),
            Self::CrossEntropy(labels) => {
                let rows: Vec<f64> = slope
                    .par_chunks_mut(columns)
                    .zip(input.par_chunks(columns))
                    .zip(labels)
                    .map(|((slope, row), label)| label.map_or(0.0, |label| softmax_row(row, label as usize, slope)))
                    .collect();
                // Summed in order: the same on any number of threads.
                rows.into_iter().sum()
            }
            Self::Heatmap(labels) => {
                let side = dims[1];
                let rows: Vec<f64> = slope
                    .par_chunks_mut(columns)
                    .zip(input.par_chunks(columns))
                    .zip(labels)
                    .map_init(
                        || Scratch::new(side),
                        |scratch, ((slope, map), label)| {
                            label.as_ref().map_or(0.0, |label| {
                                scratch.enlarge(map);
                                let loss = match label {
                                    Heat::Cell(label) => softmax_row(&scratch.large, *label as usize, &mut scratch.slope),
                                    Heat::Spread(spread) => softmax_spread(&scratch.large, spread, &mut scratch.slope),
                                };
                                scratch.adjoint(slope);
                                loss
                            })
                        },
                    )
                    .collect();
                rows.into_iter().sum()
            }
        };
        (T::from_f64(sum), slope)
    }
}

/// Buffers of one thread for [`Kind::Heatmap`].
struct Scratch<T> {
    side: usize,
    /// `[s, 2s]`: rows enlarged.
    wide: Vec<T>,
    /// `[2s, 2s]`.
    large: Vec<T>,
    slope: Vec<T>,
}

impl<T: Real> Scratch<T> {
    fn new(side: usize) -> Self {
        let zeros = |count| vec![T::default(); count];
        Self { side, wide: zeros(2 * side * side), large: zeros(4 * side * side), slope: zeros(4 * side * side) }
    }

    /// Position `i` of a doubled axis: its two sources and their weights (align_corners = false, edges repeated).
    fn taps(&self, i: usize) -> [(usize, T); 2] {
        let near = i / 2;
        let far = if i.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(self.side - 1) };
        [(near, T::from_f64(0.75)), (far, T::from_f64(0.25))]
    }

    fn enlarge(&mut self, map: &[T]) {
        let (side, double) = (self.side, 2 * self.side);
        for x in 0..double {
            let [(a, p), (b, q)] = self.taps(x);
            for y in 0..side {
                self.wide[y * double + x] = map[y * side + a] * p + map[y * side + b] * q;
            }
        }
        for y in 0..double {
            let [(a, p), (b, q)] = self.taps(y);
            let (near, far) = (&self.wide[a * double..][..double], &self.wide[b * double..][..double]);
            for ((out, &near), &far) in self.large[y * double..][..double].iter_mut().zip(near).zip(far) {
                *out = near * p + far * q;
            }
        }
    }

    /// The gradient of [`Scratch::enlarge`] at `self.slope`, added to `out`.
    fn adjoint(&mut self, out: &mut [T]) {
        let (side, double) = (self.side, 2 * self.side);
        self.wide.fill(T::default());
        for y in 0..double {
            for (source, weight) in self.taps(y) {
                let row = &self.slope[y * double..][..double];
                for (wide, &slope) in self.wide[source * double..][..double].iter_mut().zip(row) {
                    *wide += slope * weight;
                }
            }
        }
        for x in 0..double {
            for (source, weight) in self.taps(x) {
                for y in 0..side {
                    out[y * side + source] += self.wide[y * double + x] * weight;
                }
            }
        }
    }
}

/// − log softmax at `label`; writes softmax − one-hot to `slope`.
fn softmax_row<T: Real>(row: &[T], label: usize, slope: &mut [T]) -> f64 {
    let log_sum = softmax(row, slope);
    slope[label] = T::from_f64(slope[label].to_f64() - 1.0);
    log_sum - row[label].to_f64()
}

/// − Σ q · log softmax with the probabilities q; writes softmax · Σ q − q to `slope`.
fn softmax_spread<T: Real>(row: &[T], spread: &[f32], slope: &mut [T]) -> f64 {
    let log_sum = softmax(row, slope);
    let total: f64 = spread.iter().map(|&q| f64::from(q)).sum();
    let mut loss = 0.0;
    for ((slope, x), &q) in slope.iter_mut().zip(row).zip(spread) {
        let q = f64::from(q);
        loss += q * (log_sum - x.to_f64());
        *slope = T::from_f64(slope.to_f64() * total - q);
    }
    loss
}

/// Writes the softmax to `out` and gives log Σ exp.
fn softmax<T: Real>(row: &[T], out: &mut [T]) -> f64 {
    let highest = row.iter().fold(f64::NEG_INFINITY, |highest, x| highest.max(x.to_f64()));
    let mut sum = 0.0;
    for (out, x) in out.iter_mut().zip(row) {
        let power = T::from_f64(x.to_f64() - highest).exp();
        *out = power;
        sum += power.to_f64();
    }
    let scale = 1.0 / sum;
    for out in out.iter_mut() {
        *out = T::from_f64(out.to_f64() * scale);
    }
    sum.ln() + highest
}

impl CustomOp1 for HostLoss {
    fn name(&self) -> &'static str {
        "host-loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.kind.check(layout.dims())?;
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("loss: the input is not contiguous") };
        let dims = layout.dims();
        let (value, slope) = match storage {
            CpuStorage::F32(data) => {
                let (value, slope) = self.kind.evaluate(&data[start..end], dims);
                (CpuStorage::F32(vec![value]), Slope::F32(slope))
            }
            CpuStorage::F64(data) => {
                let (value, slope) = self.kind.evaluate(&data[start..end], dims);
                (CpuStorage::F64(vec![value]), Slope::F64(slope))
            }
            _ => bail!("loss: expected f32 or f64"),
        };
        match self.slope.lock() {
            Ok(mut slot) => *slot = slope,
            Err(_) => bail!("loss: a thread panicked while it held the gradient"),
        }
        Ok((value, Shape::from(())))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let factor = grad_res.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let Ok(mut slot) = self.slope.lock() else { bail!("loss: a thread panicked while it held the gradient") };
        let grad = match std::mem::replace(&mut *slot, Slope::None) {
            Slope::F32(mut slope) => {
                let factor = factor as f32;
                slope.par_iter_mut().for_each(|s| *s *= factor);
                Tensor::from_vec(slope, arg.shape(), arg.device())?
            }
            Slope::F64(mut slope) => {
                slope.par_iter_mut().for_each(|s| *s *= factor);
                Tensor::from_vec(slope, arg.shape(), arg.device())?
            }
            Slope::None => bail!("loss: backward ran twice"),
        };
        Ok(Some(grad))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Central differences in f64 with step 1e-5: the error is dominated by curvature, well under this.
    const FINITE_DIFFERENCE: f64 = 1e-7;

    fn check(shape: &[usize], values: &[f64], loss: impl Fn(&Tensor) -> Result<Tensor>) {
        let var = Var::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap();
        // An upstream factor, so that the chain rule is checked too.
        let scaled = (loss(&var).unwrap() * 0.3).unwrap();
        let grads = scaled.backward().unwrap();
        let grad: Vec<f64> = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for i in 0..values.len() {
            let at = |delta: f64| {
                let mut moved = values.to_vec();
                moved[i] += delta;
                let tensor = Tensor::from_vec(moved, shape, &Device::Cpu).unwrap();
                loss(&tensor).unwrap().to_scalar::<f64>().unwrap()
            };
            let expected = 0.3 * (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((grad[i] - expected).abs() < FINITE_DIFFERENCE, "element {i}: {} against {expected}", grad[i]);
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let targets = vec![1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        check(&[6], &[0.3, -2.0, 0.0, 40.0, -40.0, 1.1], |x| bce_with_logits(x, targets.clone()));
        check(&[6], &[0.95, -2.0, 1.3, 0.05, 0.9, 0.01], |x| smooth_l1(x, targets.clone()));
        check(&[3, 4], &[0.1, -0.4, 2.0, 0.3, 9.0, 8.0, -7.0, 0.0, 1.0, 1.0, 1.0, 1.0], |x| cross_entropy(x, vec![Some(2), None, Some(0)]));
        let maps: Vec<f64> = (0..27).map(|i| f64::from(i * 7 % 11) / 3.0 - 1.5).collect();
        let spread: Vec<f32> = (0..36).map(|i| i as f32 / 630.0).collect();
        check(&[3, 3, 3], &maps, |x| {
            heatmap_cross_entropy(x, vec![Some(Heat::Cell(35)), None, Some(Heat::Cell(13))])?
                + heatmap_cross_entropy(x, vec![None, Some(Heat::Spread(spread.clone())), None])?
        });
        check(&[2, 3], &[0.1, -0.4, 2.0, 0.3, 0.7, -0.6], |x| bce_with_logits(&pick(x, vec![5, 0, 0])?, vec![1.0, 0.0, 1.0]));
    }

    #[test]
    fn values_are_the_textbook_ones_and_stable() {
        let scalar = |t: Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
        let tensor = |v: &[f32]| Tensor::from_slice(v, v.len(), &Device::Cpu).unwrap();
        assert!((scalar(bce_with_logits(&tensor(&[0.0, 0.0]), vec![0.0, 1.0])) - 2.0 * 2f32.ln()).abs() < 1e-6);
        assert_eq!(scalar(bce_with_logits(&tensor(&[1000.0, -1000.0]), vec![0.0, 1.0])), 2000.0);
        // |d| = 1 lies in the linear part, 1/18 in the quadratic one.
        assert!((scalar(smooth_l1(&tensor(&[1.0, 1.0 / 18.0]), vec![0.0, 0.0])) - (1.0 - 1.0 / 18.0 + 1.0 / 72.0)).abs() < 1e-6);
        let rows = Tensor::from_slice(&[1e4f32, 0.0, 0.0, 0.0], (2, 2), &Device::Cpu).unwrap();
        assert!((scalar(cross_entropy(&rows, vec![Some(1), Some(0)])) - (1e4 + 2f32.ln())).abs() < 1e-2);
    }

    #[test]
    fn an_enlarged_heatmaps_loss_is_that_of_the_head() {
        let maps = Tensor::rand(-3f32, 3.0, (6, 14, 14), &Device::Cpu).unwrap();
        let labels = vec![Some(0), Some(783), None, Some(100), Some(28), Some(400)];
        let cells = labels.iter().map(|label| label.map(Heat::Cell)).collect();
        let large = crate::ops::upsample_bilinear2(&maps.unsqueeze(0).unwrap()).unwrap().reshape((6, 784)).unwrap();
        let scalar = |t: Result<Tensor>| t.unwrap().to_scalar::<f32>().unwrap();
        let (a, b) = (scalar(heatmap_cross_entropy(&maps, cells)), scalar(cross_entropy(&large, labels)));
        // f32 rounding of five logits of up to 3.
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }

    #[test]
    fn a_soft_label_with_all_in_one_cell_is_a_hard_one() {
        let var = Var::from_tensor(&Tensor::rand(-3f32, 3.0, (2, 14, 14), &Device::Cpu).unwrap()).unwrap();
        let hot = |cell: usize| Heat::Spread((0..784).map(|i| f32::from(u8::from(i == cell))).collect());
        let both = [vec![Some(Heat::Cell(100)), Some(Heat::Cell(783))], vec![Some(hot(100)), Some(hot(783))]].map(|labels| {
            let loss = heatmap_cross_entropy(&var, labels).unwrap();
            let slope: Vec<f32> = loss.backward().unwrap().get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            (loss.to_scalar::<f32>().unwrap(), slope)
        });
        assert_eq!(both[0], both[1]);
    }

    #[test]
    fn no_label_is_a_zero_that_backpropagates() {
        let var = Var::from_slice(&[1.0f32, 2.0], (1, 2), &Device::Cpu).unwrap();
        let loss = cross_entropy(&var, vec![None]).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        let grads = loss.backward().unwrap();
        assert_eq!(grads.get(&var).unwrap().to_vec2::<f32>().unwrap(), [[0.0, 0.0]]);
    }

    #[test]
    fn wrong_targets_are_refused() {
        let rows = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(cross_entropy(&rows, vec![Some(3), None]).is_err());
        assert!(cross_entropy(&rows, vec![None]).is_err());
        assert!(bce_with_logits(&rows, vec![0.0, 1.0]).is_err());
        let maps = Tensor::zeros((2, 3, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(heatmap_cross_entropy(&maps, vec![Some(Heat::Cell(36)), None]).is_err());
        assert!(heatmap_cross_entropy(&maps, vec![Some(Heat::Cell(35)), None]).is_ok());
        assert!(heatmap_cross_entropy(&maps, vec![Some(Heat::Spread(vec![0.0; 35])), None]).is_err());
        assert!(heatmap_cross_entropy(&maps, vec![Some(Heat::Spread(vec![0.0; 36])), None]).is_ok());
    }
}
