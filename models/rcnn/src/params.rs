//! Named parameters: torchvision's names, ordered by name, in and out of safetensors files.

use crate::RcnnError;
use crate::device::{Arithmetic, Place};
pub use candle_core::DType;
use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How a fresh parameter is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// One value.
    Constant(f32),
    /// Uniform in `±bound`.
    Uniform(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
}

/// A tensor of the network.
#[derive(Clone, Debug)]
struct Param {
    var: Var,
    /// Whether the optimiser moves it.
    trainable: bool,
    /// Whether it is a weight or bias, frozen or not, and no part of a frozen batch-norm.
    parameter: bool,
}

/// All tensors of a network by name, in the order of the names. f32, or f64 for gradient checks on the CPU.
#[derive(Debug)]
pub struct Params {
    /// Without one, fresh tensors are 0.
    seed: Option<u64>,
    dtype: DType,
    place: Place,
    map: BTreeMap<String, Param>,
}

impl Params {
    /// No parameters yet; fresh ones are drawn from `seed` and their name, so that neither order nor threads matter.
    pub fn new(seed: u64) -> Self {
        Self { seed: Some(seed), dtype: DType::F32, place: Place::cpu(), map: BTreeMap::new() }
    }

    /// No parameters yet; fresh ones are 0, for whoever loads all of them.
    pub fn zeros(dtype: DType) -> Self {
        Self { seed: None, dtype, place: Place::cpu(), map: BTreeMap::new() }
    }

    /// The same on a device, before any is added.
    pub fn on(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// The device that they lie on.
    pub fn device(&self) -> &Device {
        &self.place.device
    }

    /// What layers compute in.
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        self.place.arithmetic
    }

    /// Adds a parameter and returns the handle that a layer computes with: part of the graph only when `trainable`. A value set
    /// later is seen through the handle.
    ///
    /// # Errors
    /// [`RcnnError::Config`] when the name is taken.
    pub fn add(&mut self, name: &str, shape: &[usize], fill: Fill, trainable: bool) -> Result<Tensor, RcnnError> {
        self.insert(name, shape, fill, trainable, true)
    }

    /// Adds a part of a frozen batch-norm that the optimiser does not move.
    ///
    /// # Errors
    /// As [`Params::add`].
    pub fn add_buffer(&mut self, name: &str, shape: &[usize], fill: Fill) -> Result<Tensor, RcnnError> {
        self.insert(name, shape, fill, false, false)
    }

    fn insert(&mut self, name: &str, shape: &[usize], fill: Fill, trainable: bool, parameter: bool) -> Result<Tensor, RcnnError> {
        if self.map.contains_key(name) {
            return Err(RcnnError::Config(format!("two tensors are named `{name}`")));
        }
        let var = match self.seed {
            Some(seed) => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(name));
                let len = shape.iter().product();
                let data: Vec<f32> = match fill {
                    Fill::Constant(value) => vec![value; len],
                    Fill::Uniform(bound) => (0..len).map(|_| rng.random_range(-bound..=bound)).collect(),
                    Fill::Normal(std) => (0..len).map(|_| std * normal(&mut rng)).collect(),
                };
                Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(self.device())?)?
            }
            None => Var::zeros(shape, self.dtype, self.device())?,
        };
        let handle = if trainable { var.as_tensor().clone() } else { var.as_detached_tensor() };
        self.map.insert(name.to_owned(), Param { var, trainable, parameter });
        Ok(handle)
    }

    /// The parameters that the optimiser moves, by name.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.map.iter().filter(|(_, p)| p.trainable).map(|(name, p)| (name.as_str(), &p.var))
    }

    /// Every tensor, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.map.iter().map(|(name, p)| (name.as_str(), &p.var))
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.map.get(name).map(|p| &p.var)
    }

    /// The type of every tensor.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of scalars that the optimiser moves.
    pub fn count(&self) -> usize {
        self.trainable().map(|(_, var)| var.elem_count()).sum()
    }

    /// Number of weights and biases, frozen ones counted, frozen batch-norms not (as `torch.nn.Module.parameters` counts them).
    pub fn parameters(&self) -> usize {
        self.map.values().filter(|p| p.parameter).map(|p| p.var.elem_count()).sum()
    }

    /// Overwrites the values of a tensor.
    ///
    /// # Errors
    /// [`RcnnError::Config`] when there is no such tensor or it has another size.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<(), RcnnError> {
        match self.get(name) {
            Some(var) if var.elem_count() == values.len() => {
                Ok(var.set(&Tensor::from_slice(values, var.shape(), var.device())?.to_dtype(var.dtype())?)?)
            }
            Some(var) => Err(RcnnError::Config(format!("tensor `{name}` has {} values, got {}", var.elem_count(), values.len()))),
            None => Err(RcnnError::Config(format!("no tensor `{name}`"))),
        }
    }

    /// Writes every tensor to a safetensors file, which is replaced in one step.
    ///
    /// # Errors
    /// [`RcnnError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), RcnnError> {
        let tensors: Vec<(String, Tensor)> = self.all().map(|(name, var)| (name.to_owned(), var.as_detached_tensor())).collect();
        write_tensors(path, &tensors)
    }

    /// Reads every tensor from a safetensors file.
    ///
    /// # Errors
    /// [`RcnnError::Weights`] names the first tensor that is missing, surplus or of another shape; nothing is changed then.
    pub fn load(&self, path: &Path) -> Result<(), RcnnError> {
        self.load_tensors(&read_tensors(path)?, path)
    }

    /// As [`Params::load`], from tensors that were read from `path`.
    ///
    /// # Errors
    /// As [`Params::load`].
    pub fn load_tensors(&self, tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<(), RcnnError> {
        let weights = |tensor: &str, message: String| RcnnError::Weights { path: path.to_owned(), tensor: tensor.to_owned(), message };
        for (name, var) in self.all() {
            let found = tensors.get(name).ok_or_else(|| weights(name, "missing".to_owned()))?;
            if found.dims() != var.dims() {
                return Err(weights(name, format!("shape {:?}, expected {:?}", found.dims(), var.dims())));
            }
        }
        if let Some(name) = tensors.keys().find(|name| !self.map.contains_key(*name)) {
            return Err(weights(name, "the network has no such tensor".to_owned()));
        }
        self.assign(tensors).map(drop)
    }

    /// Sets every tensor whose name and shape match and returns the names of the network's tensors that kept their value.
    ///
    /// # Errors
    /// When a value cannot be set.
    pub fn assign(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<String>, RcnnError> {
        let mut skipped = Vec::new();
        for (name, var) in self.all() {
            match tensors.get(name) {
                Some(tensor) if tensor.dims() == var.dims() => var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?,
                _ => skipped.push(name.to_owned()),
            }
        }
        Ok(skipped)
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One normal deviate (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// The type of the numbers in a weights file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Four bytes each.
    #[default]
    F32,
    /// Two bytes each, for slow links and small disks; rounded to 11 significant bits.
    F16,
}

/// Writes f32 tensors to a safetensors file in the order of their names, replacing it in one step.
///
/// # Errors
/// [`RcnnError::Io`] or [`RcnnError::Weights`].
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), RcnnError> {
    write_tensors_as(path, tensors, Precision::F32)
}

/// As [`write_tensors`], rounded to `precision`.
///
/// # Errors
/// As [`write_tensors`]; [`RcnnError::Weights`] names a tensor with a number that the precision cannot hold.
pub fn write_tensors_as(path: &Path, tensors: &[(String, Tensor)], precision: Precision) -> Result<(), RcnnError> {
    let io = |source| RcnnError::Io { path: path.to_owned(), source };
    let mut blobs = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = match precision {
            Precision::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Precision::F16 => {
                if let Some(value) = values.iter().find(|v| v.is_finite() && !half::f16::from_f32(**v).is_finite()) {
                    let message = format!("{value} does not fit into 16 bits");
                    return Err(RcnnError::Weights { path: path.to_owned(), tensor: name.clone(), message });
                }
                values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
            }
        };
        blobs.push((name, tensor.dims().to_vec(), bytes));
    }
    let unsound = |name: &str, error: safetensors::SafeTensorError| RcnnError::Weights {
        path: path.to_owned(),
        tensor: name.to_owned(),
        message: error.to_string(),
    };
    let mut views = BTreeMap::new();
    for (name, dims, bytes) in &blobs {
        let dtype = if precision == Precision::F16 { Dtype::F16 } else { Dtype::F32 };
        views.insert(name.as_str(), TensorView::new(dtype, dims.clone(), bytes).map_err(|e| unsound(name, e))?);
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| unsound("", e))?;
    let temporary = path.with_extension("safetensors.new");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        std::io::Write::write_all(&mut file, &bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(io)
}

/// Reads the f32 tensors of a safetensors file.
///
/// # Errors
/// [`RcnnError::Io`], or [`RcnnError::Weights`] for a damaged file or a tensor of another type.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, RcnnError> {
    let bytes = std::fs::read(path).map_err(|source| RcnnError::Io { path: path.to_owned(), source })?;
    let weights = |tensor: &str, message: String| RcnnError::Weights { path: path.to_owned(), tensor: tensor.to_owned(), message };
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| weights("", format!("not a safetensors file: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(weights(&name, format!("type {:?}, expected F32", view.dtype())));
        }
        let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.insert(name, Tensor::from_vec(values, view.shape(), &Device::Cpu)?);
    }
    Ok(tensors)
}
