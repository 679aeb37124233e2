//! Checkpoints: one safetensors file with weights, moments, position and what the run was started with.

use super::replicas::Answer;
use super::{Run, TrainOptions};
use crate::RcnnError;
use crate::config::Config;
use crate::device::Place;
use crate::network::Network;
use crate::optim::Moments;
use candle_core::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The file inside a checkpoint's folder.
const FILE: &str = "checkpoint.safetensors";
const WEIGHT: &str = "weight/";
const FIRST: &str = "first/";
const SECOND: &str = "second/";
const AVERAGE: &str = "average/";

impl Run {
    /// Writes weights, optimiser state and position, atomically: a crash leaves the old checkpoint or the new one.
    ///
    /// # Errors
    /// [`RcnnError::Io`]; [`RcnnError::Rank`] where a device no longer has the weights of the first one, to the bit.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), RcnnError> {
        let path = dir.join(FILE);
        let bytes = self.to_bytes(&path)?;
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let temporary = dir.join(format!("{FILE}.tmp"));
        let mut file = File::create(&temporary).map_err(|source| io(&temporary, source))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|source| io(&temporary, source))?;
        std::fs::rename(&temporary, &path).map_err(|source| io(&path, source))?;
        File::open(dir).and_then(|folder| folder.sync_all()).map_err(|source| io(dir, source))
    }

    /// Whether `dir` holds a checkpoint. A folder in which only the first one was begun does not.
    pub fn has_checkpoint(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, RcnnError> {
        let mut parts: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let compares = self.shared && !self.others.is_empty();
        let mut weights = Vec::new();
        for (name, var) in self.network.params().all() {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            parts.push((format!("{WEIGHT}{name}"), var.dims().to_vec(), bytes(&values)));
            if compares {
                weights.push((name.to_owned(), values));
            }
        }
        if compares {
            let weights = Arc::new(weights);
            let compared: Vec<_> = self.others.iter().map(|other| other.compare(weights.clone())).collect();
            compared.into_iter().try_for_each(Answer::get)?;
        }
        for (index, (name, var)) in self.optim.vars.iter().enumerate() {
            parts.push((format!("{FIRST}{name}"), var.dims().to_vec(), bytes(&self.optim.first[index].to_vec()?)));
            if let Some(second) = self.optim.second.get(index) {
                parts.push((format!("{SECOND}{name}"), var.dims().to_vec(), bytes(&second.to_vec()?)));
            }
            if let Some(value) = self.average.as_ref().and_then(|average| average.values.get(index)) {
                parts.push((format!("{AVERAGE}{name}"), var.dims().to_vec(), bytes(&value.flatten_all()?.to_vec1::<f32>()?)));
            }
        }
        let bad = |message: String| RcnnError::Checkpoint { path: path.to_owned(), message };
        let mut views = Vec::with_capacity(parts.len());
        for (name, shape, data) in &parts {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).map_err(|e| bad(e.to_string()))?));
        }
        let metadata = HashMap::from([
            ("step".to_owned(), self.step.to_string()),
            ("uncalibrated".to_owned(), self.uncalibrated.to_string()),
            ("config".to_owned(), json(self.network.config(), path)?),
            ("options".to_owned(), json(&self.options, path)?),
            ("flip".to_owned(), json(&self.flip, path)?),
        ]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| bad(e.to_string()))
    }

    /// Continues a run exactly where its checkpoint left it.
    ///
    /// # Errors
    /// [`RcnnError::Checkpoint`] when the configuration or options differ.
    pub fn resume(dir: &Path, config: Config, options: TrainOptions, flip: &[u8]) -> Result<Self, RcnnError> {
        Self::resume_on(dir, config, options, flip, &Place::cpu())
    }

    /// As [`Run::resume`], on a device, which may be another than the run was begun on.
    ///
    /// # Errors
    /// As [`Run::resume`].
    pub fn resume_on(dir: &Path, config: Config, options: TrainOptions, flip: &[u8], place: &Place) -> Result<Self, RcnnError> {
        let path = dir.join(FILE);
        let bad = |message: String| RcnnError::Checkpoint { path: path.clone(), message };
        let bytes = std::fs::read(&path).map_err(|source| io(&path, source))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let none = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        let field = |key: &str| metadata.get(key).ok_or_else(|| bad(format!("`{key}` is missing")));
        for (key, expected) in [("config", json(&config, &path)?), ("options", json(&options, &path)?), ("flip", json(&flip, &path)?)] {
            let found = field(key)?;
            if *found != expected {
                return Err(bad(format!("it belongs to a run with {key} {found}, expected {expected}")));
            }
        }
        let step = field("step")?.parse().map_err(|e| bad(format!("`step`: {e}")))?;
        let uncalibrated = field("uncalibrated")?.parse().map_err(|e| bad(format!("`uncalibrated`: {e}")))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let network = Network::new_on(config, 0, place)?;
        let mut run = Self::assemble(network, options, flip, place)?;
        let values = |prefix: &str, name: &str, shape: &[usize]| {
            let view = tensors.tensor(&format!("{prefix}{name}")).map_err(|e| bad(format!("{prefix}{name}: {e}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                return Err(bad(format!("{prefix}{name} is {:?} {:?}, expected F32 {shape:?}", view.dtype(), view.shape())));
            }
            Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>())
        };
        for (name, var) in run.network.params().all() {
            let shape = var.dims();
            var.set(&Tensor::from_vec(values(WEIGHT, name, shape)?, shape, var.device())?)?;
        }
        let optim = &mut run.optim;
        for (index, (name, var)) in optim.vars.iter().enumerate() {
            optim.first[index] = Moments::new(var, values(FIRST, name, var.dims())?)?;
            if let Some(second) = optim.second.get_mut(index) {
                *second = Moments::new(var, values(SECOND, name, var.dims())?)?;
            }
            if let Some(value) = run.average.as_mut().and_then(|average| average.values.get_mut(index)) {
                *value = Tensor::from_vec(values(AVERAGE, name, var.dims())?, var.dims(), var.device())?;
            }
        }
        run.step = step;
        run.uncalibrated = uncalibrated;
        Ok(run)
    }
}

fn io(path: &Path, source: std::io::Error) -> RcnnError {
    RcnnError::Io { path: path.to_owned(), source }
}

fn json(value: &impl serde::Serialize, path: &Path) -> Result<String, RcnnError> {
    serde_json::to_string(value).map_err(|e| RcnnError::Checkpoint { path: path.to_owned(), message: e.to_string() })
}
