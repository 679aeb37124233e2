//! The layers that everything is made of.

use crate::RcnnError;
use crate::device::Arithmetic;
use crate::ops::{self, ConvSpec};
use crate::params::{Fill, Params};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// ε of a frozen batch-norm (torchvision).
pub(crate) const NORM_EPS: f64 = 1e-5;
/// Kernel, stride and padding of the stem's max-pool.
pub(crate) const STEM_POOL: (usize, usize, usize) = (3, 2, 1);

/// What a pass through the body does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Computes.
    Run,
    /// Computes, and sets each frozen batch-norm's statistics on the way.
    Calibrate,
}

/// Kernel and place of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) spec: ConvSpec,
}

impl Shape {
    /// `kernel`×`kernel` of stride 1 that keeps the size.
    pub(crate) fn same(input: usize, output: usize, kernel: usize) -> Self {
        Self { input, output, kernel, spec: ConvSpec::padded(kernel / 2) }
    }

    pub(crate) fn stride(mut self, stride: usize) -> Self {
        self.spec.stride = stride;
        self
    }

    pub(crate) fn groups(mut self, groups: usize) -> Self {
        self.spec.groups = groups;
        self
    }

    pub(crate) fn relu(mut self) -> Self {
        self.spec.relu = true;
        self
    }

    fn computed_in(mut self, arithmetic: Arithmetic) -> Self {
        self.spec.arithmetic = arithmetic;
        self
    }

    fn weight(&self) -> [usize; 4] {
        [self.output, self.input / self.spec.groups, self.kernel, self.kernel]
    }

    /// He et al.'s standard deviation for ReLU over the fan-out.
    pub(crate) fn he_fan_out(&self) -> Fill {
        Fill::Normal((2.0 / (self.output * self.kernel * self.kernel) as f32).sqrt())
    }

    /// torch's `kaiming_uniform_(a = 1)`.
    pub(crate) fn kaiming_uniform(&self) -> Fill {
        Fill::Uniform((3.0 / (self.input / self.spec.groups * self.kernel * self.kernel) as f32).sqrt())
    }
}

/// A frozen batch-norm: weight and bias may be trained, the statistics are not.
#[derive(Debug)]
struct Norm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl Norm {
    /// `(scale, shift)` of `y = x·scale + shift`.
    fn affine(&self) -> Result<(Tensor, Tensor), RcnnError> {
        let scale = self.weight.mul(&(&self.variance + NORM_EPS)?.sqrt()?.recip()?)?;
        let shift = self.bias.sub(&self.mean.mul(&scale)?)?;
        Ok((scale, shift))
    }
}

/// A convolution with bias or frozen batch-norm, and ReLU where its spec says so.
#[derive(Debug)]
pub(crate) struct Conv {
    /// Name without `.weight`.
    pub(crate) name: String,
    pub(crate) shape: Shape,
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<Norm>,
}

impl Conv {
    /// With a bias that starts at 0.
    pub(crate) fn with_bias(params: &mut Params, name: &str, shape: Shape, fill: Fill) -> Result<Self, RcnnError> {
        let shape = shape.computed_in(params.arithmetic());
        let weight = params.add(&format!("{name}.weight"), &shape.weight(), fill, true)?;
        let bias = params.add(&format!("{name}.bias"), &[shape.output], Fill::Constant(0.0), true)?;
        Ok(Self { name: name.to_owned(), shape, weight, bias: Some(bias), norm: None })
    }

    /// With a frozen batch-norm named `norm`.
    pub(crate) fn with_norm(params: &mut Params, name: &str, norm: &str, shape: Shape, train: Train) -> Result<Self, RcnnError> {
        let shape = shape.computed_in(params.arithmetic());
        let weight = params.add(&format!("{name}.weight"), &shape.weight(), shape.he_fan_out(), train.weight)?;
        let mut vector = |field: &str, value, trained| {
            let (name, fill) = (format!("{norm}.{field}"), Fill::Constant(value));
            if trained { params.add(&name, &[shape.output], fill, true) } else { params.add_buffer(&name, &[shape.output], fill) }
        };
        let norm = Norm {
            weight: vector("weight", 1.0, train.affine)?,
            bias: vector("bias", 0.0, train.affine)?,
            mean: vector("running_mean", 0.0, false)?,
            variance: vector("running_var", 1.0, false)?,
            name: norm.to_owned(),
        };
        Ok(Self { name: name.to_owned(), shape, weight, bias: None, norm: Some(norm) })
    }

    /// Weight and bias with the batch-norm folded in.
    pub(crate) fn folded(&self) -> Result<(Tensor, Tensor), RcnnError> {
        match (&self.norm, &self.bias) {
            (Some(norm), _) => {
                let (scale, shift) = norm.affine()?;
                Ok((ops::scale_rows(&self.weight, &scale)?, shift))
            }
            (None, Some(bias)) => Ok((self.weight.clone(), bias.clone())),
            (None, None) => Ok((self.weight.clone(), Tensor::zeros(self.shape.output, self.weight.dtype(), self.weight.device())?)),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, RcnnError> {
        let (weight, bias) = self.folded()?;
        Ok(ops::conv2d(x, &weight, Some(&bias), self.shape.spec)?)
    }

    /// [`Conv::forward`], after setting the batch-norm's statistics to those of this input when the pass calibrates.
    pub(crate) fn forward_pass(&self, x: &Tensor, params: Pass) -> Result<Tensor, RcnnError> {
        if let (Pass::Calibrate, Some(norm)) = (params, &self.norm) {
            let raw = ops::conv2d(&x.detach(), &self.weight.detach(), None, ConvSpec { relu: false, ..self.shape.spec })?;
            let channels = raw.transpose(0, 1)?.flatten_from(1)?.contiguous()?;
            let mean = channels.mean_keepdim(1)?;
            let variance = channels.broadcast_sub(&mean)?.sqr()?.mean(1)?;
            overwrite(&norm.mean, &mean.flatten_all()?)?;
            overwrite(&norm.variance, &variance)?;
            // Nobody asks for a gradient of this: nothing is kept for one.
            return Ok(self.forward(x)?.detach());
        }
        self.forward(x)
    }

    /// Where `tensors` holds this convolution folded (an exported bundle), puts the equivalent weight and batch-norm in its place.
    pub(crate) fn unfold(&self, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), RcnnError> {
        let Some(norm) = &self.norm else { return Ok(()) };
        let (weight, bias) = (folded_name(&self.name, "weight"), folded_name(&self.name, "bias"));
        if let (Some(weight), Some(bias)) = (tensors.remove(&weight), tensors.remove(&bias)) {
            let ones = bias.ones_like()?;
            tensors.insert(format!("{}.weight", self.name), weight);
            tensors.insert(format!("{}.running_mean", norm.name), ones.zeros_like()?);
            tensors.insert(format!("{}.running_var", norm.name), (&ones - NORM_EPS)?);
            tensors.insert(format!("{}.weight", norm.name), ones);
            tensors.insert(format!("{}.bias", norm.name), bias);
        }
        Ok(())
    }

    /// Names of the exported weight and bias, see [`Conv::folded`].
    pub(crate) fn exported_names(&self) -> (String, String) {
        match self.norm {
            Some(_) => (folded_name(&self.name, "weight"), folded_name(&self.name, "bias")),
            None => (format!("{}.weight", self.name), format!("{}.bias", self.name)),
        }
    }
}

/// Name of a tensor with its batch-norm folded in.
fn folded_name(name: &str, field: &str) -> String {
    format!("{name}.folded.{field}")
}

/// Overwrites a statistic through its detached handle, which shares the parameter's storage.
fn overwrite(target: &Tensor, value: &Tensor) -> Result<(), RcnnError> {
    let value = value.detach().contiguous()?;
    Ok(target.slice_set(&value, 0, 0)?)
}

/// Which tensors of a convolution with batch-norm are trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Train {
    pub(crate) weight: bool,
    pub(crate) affine: bool,
}

/// A fully connected layer.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) name: String,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) relu: bool,
    arithmetic: Arithmetic,
}

impl Linear {
    /// torch's default initialisation: weight and bias uniform in ±1/√inputs.
    pub(crate) fn new(params: &mut Params, name: &str, inputs: usize, outputs: usize, relu: bool) -> Result<Self, RcnnError> {
        let fill = Fill::Uniform(1.0 / (inputs as f32).sqrt());
        let weight = params.add(&format!("{name}.weight"), &[outputs, inputs], fill, true)?;
        let bias = params.add(&format!("{name}.bias"), &[outputs], fill, true)?;
        Ok(Self { name: name.to_owned(), weight, bias, relu, arithmetic: params.arithmetic() })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, RcnnError> {
        Ok(ops::linear_in(x, &self.weight, &self.bias, self.relu, self.arithmetic)?)
    }
}
