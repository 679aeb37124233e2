//! What a network is trained on, and in which arithmetic.

use crate::RcnnError;
use candle_core::Device;
use serde::{Deserialize, Serialize};

/// Which device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainDevice {
    /// The processor.
    #[default]
    Cpu,
    /// The first NVIDIA GPU that the process sees, or an error.
    Cuda,
    /// The GPU where there is one that can be used, else the processor. Several GPUs, or an error, where there is one and not as many.
    Auto,
}

/// What convolutions and matrix products are computed in. Weights, losses, sums and everything else are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// f32. On a GPU convolutions take TF32's products, as PyTorch's do; `NVIDIA_TF32_OVERRIDE=0` forbids it.
    #[default]
    F32,
    /// bfloat16 operands and results, f32 sums. On a GPU only.
    Bf16,
}

/// What a run is asked to compute on. It may differ from one resumption to the next; results then agree but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// The device.
    pub device: TrainDevice,
    /// The arithmetic.
    pub precision: Arithmetic,
    /// How many GPUs train one network, each on its share of every batch: the first ones that the process sees. Above 1 with NCCL only.
    pub gpus: usize,
}

impl Default for Compute {
    fn default() -> Self {
        Self { device: TrainDevice::Cpu, precision: Arithmetic::F32, gpus: 1 }
    }
}

/// A device that is open, or several.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) device: Device,
    /// Beside the first.
    others: Vec<Device>,
    pub(crate) arithmetic: Arithmetic,
    /// Why it is not the GPU, where that would have been preferred.
    pub instead: Option<String>,
}

impl Place {
    /// The processor.
    pub const fn cpu() -> Self {
        Self { device: Device::Cpu, others: Vec::new(), arithmetic: Arithmetic::F32, instead: None }
    }

    /// candle's name for it; the first one's.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// This and another one, in the arithmetic of this: a run on both has a replica on each. The same device twice is for checks of
    /// what replicas exchange.
    #[must_use]
    pub fn beside(mut self, other: Self) -> Self {
        self.others.push(other.device);
        self.others.extend(other.others);
        self
    }

    /// Each alone.
    pub(crate) fn each(&self) -> Vec<Self> {
        let alone = |device: &Device| Self { device: device.clone(), others: Vec::new(), arithmetic: self.arithmetic, instead: None };
        std::iter::once(&self.device).chain(&self.others).map(alone).collect()
    }
}

impl Compute {
    /// Opens the device, or the devices.
    ///
    /// # Errors
    /// [`RcnnError::Device`] when there is no such device, or fewer than were asked for, or it has not this arithmetic.
    pub fn open(self) -> Result<Place, RcnnError> {
        if self.gpus == 0 {
            return Err(RcnnError::Device("0 GPUs: expected 1 or more".to_owned()));
        }
        let gpus = || match gpus(self.gpus)?.split_first() {
            Some((first, others)) => Ok((first.clone(), others.to_vec())),
            None => Err(RcnnError::Device("there is no GPU".to_owned())),
        };
        let cpu = || (Device::Cpu, Vec::new());
        let ((device, others), instead) = match self.device {
            TrainDevice::Cpu if self.gpus > 1 => {
                return Err(RcnnError::Device(format!("{} GPUs are asked for, and to train on the processor", self.gpus)));
            }
            TrainDevice::Cpu => (cpu(), None),
            TrainDevice::Cuda => (gpus()?, None),
            TrainDevice::Auto => match gpus() {
                Ok(devices) => (devices, None),
                // Who asked for several does not mean the processor.
                Err(error) if self.gpus > 1 && one_gpu().is_ok() => return Err(error),
                Err(error) => (cpu(), Some(error.to_string())),
            },
        };
        if self.precision == Arithmetic::Bf16 && device.is_cpu() {
            let why = instead.map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(RcnnError::Device(format!("bf16 is for a GPU; the processor computes in f32{why}")));
        }
        Ok(Place { device, others, arithmetic: self.precision, instead })
    }
}

#[cfg(feature = "cuda")]
fn gpus(count: usize) -> Result<Vec<Device>, RcnnError> {
    if count > 1 && !cfg!(feature = "nccl") {
        return Err(RcnnError::Device(format!("{count} GPUs: this program was built without NCCL (cargo's feature `nccl`)")));
    }
    let all = (0..count).map(|ordinal| crate::ops::open_cuda(ordinal, count)).collect::<Result<_, _>>()?;
    #[cfg(feature = "nccl")]
    if count > 1 {
        crate::ops::nccl::check()?;
    }
    Ok(all)
}

fn one_gpu() -> Result<Vec<Device>, RcnnError> {
    gpus(1)
}

#[cfg(not(feature = "cuda"))]
fn gpus(_: usize) -> Result<Vec<Device>, RcnnError> {
    Err(RcnnError::Device("this program was built without CUDA (cargo's feature `cuda`)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_refused_on_the_processor() {
        let open = |device, precision| Compute { device, precision, gpus: 1 }.open();
        assert!(open(TrainDevice::Cpu, Arithmetic::F32).unwrap().device().is_cpu());
        let error = open(TrainDevice::Cpu, Arithmetic::Bf16).unwrap_err().to_string();
        assert!(error.contains("bf16") && error.contains("GPU"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_cuda_the_feature_is_named() {
        let open = |device, precision| Compute { device, precision, gpus: 1 }.open();
        let error = open(TrainDevice::Cuda, Arithmetic::F32).unwrap_err().to_string();
        assert!(error.contains("feature `cuda`"), "{error}");
        let place = open(TrainDevice::Auto, Arithmetic::F32).unwrap();
        assert!(place.device().is_cpu() && place.instead.unwrap().contains("feature `cuda`"));
        let error = open(TrainDevice::Auto, Arithmetic::Bf16).unwrap_err().to_string();
        assert!(error.contains("bf16") && error.contains("feature `cuda`"), "{error}");
    }

    #[test]
    fn gpus_are_counted_where_there_can_be_some() {
        let open = |device, gpus| Compute { device, gpus, ..Compute::default() }.open();
        let error = open(TrainDevice::Cpu, 2).unwrap_err().to_string();
        assert!(error.contains("2 GPUs") && error.contains("processor"), "{error}");
        assert!(open(TrainDevice::Cpu, 0).unwrap_err().to_string().contains("expected 1 or more"));
        assert_eq!(Place::cpu().beside(Place::cpu()).count(), 2);
    }
}
