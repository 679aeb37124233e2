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
    /// The GPU where there is one that can be used, else the processor.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// The device.
    pub device: TrainDevice,
    /// The arithmetic.
    pub precision: Arithmetic,
}

/// A device that is open.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) device: Device,
    pub(crate) arithmetic: Arithmetic,
    /// Why it is not the GPU, where that would have been preferred.
    pub instead: Option<String>,
}

impl Place {
    /// The processor.
    pub const fn cpu() -> Self {
        Self { device: Device::Cpu, arithmetic: Arithmetic::F32, instead: None }
    }

    /// candle's name for it.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Compute {
    /// Opens the device.
    ///
    /// # Errors
    /// [`RcnnError::Device`] when there is no such device or it has not this arithmetic.
    pub fn open(self) -> Result<Place, RcnnError> {
        let (device, instead) = match self.device {
            TrainDevice::Cpu => (Device::Cpu, None),
            TrainDevice::Cuda => (cuda()?, None),
            TrainDevice::Auto => match cuda() {
                Ok(device) => (device, None),
                Err(error) => (Device::Cpu, Some(error.to_string())),
            },
        };
        if self.precision == Arithmetic::Bf16 && device.is_cpu() {
            let why = instead.map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(RcnnError::Device(format!("bf16 is for a GPU; the processor computes in f32{why}")));
        }
        Ok(Place { device, arithmetic: self.precision, instead })
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device, RcnnError> {
    crate::ops::open_cuda()
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Device, RcnnError> {
    Err(RcnnError::Device("this program was built without CUDA (cargo's feature `cuda`)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_refused_on_the_processor() {
        let open = |device, precision| Compute { device, precision }.open();
        assert!(open(TrainDevice::Cpu, Arithmetic::F32).unwrap().device().is_cpu());
        let error = open(TrainDevice::Cpu, Arithmetic::Bf16).unwrap_err().to_string();
        assert!(error.contains("bf16") && error.contains("GPU"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_cuda_the_feature_is_named() {
        let open = |device, precision| Compute { device, precision }.open();
        let error = open(TrainDevice::Cuda, Arithmetic::F32).unwrap_err().to_string();
        assert!(error.contains("feature `cuda`"), "{error}");
        let place = open(TrainDevice::Auto, Arithmetic::F32).unwrap();
        assert!(place.device().is_cpu() && place.instead.unwrap().contains("feature `cuda`"));
        let error = open(TrainDevice::Auto, Arithmetic::Bf16).unwrap_err().to_string();
        assert!(error.contains("bf16") && error.contains("feature `cuda`"), "{error}");
    }
}
