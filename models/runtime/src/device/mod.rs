//! Keypoint R-CNN on a device with its own memory: the frame goes up once, and what comes back are boxes and labels. The pipeline is
//! written once, for every [`omnilabel_gpu::Device`] and whatever runs the graphs there: CUDA with tract-cuda, and, in tests without a
//! GPU, the kernels compiled as C++ with tract on the CPU.

#[cfg(feature = "_cuda")]
pub(crate) mod cuda;
mod graphs;
mod rcnn;
mod tract;

pub use graphs::{BackboneOn, DeviceGraphs, OnHost};
pub use tract::{DeviceTract, OnCpu, Outputs, Runner};

pub(crate) use rcnn::{DeviceModel, DeviceRcnn};
