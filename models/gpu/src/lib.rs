//! What lies between the graphs of a keypoint R-CNN as GPU kernels: the image transform, max-pooling, proposals, NMS, RoIAlign,
//! detections, heatmaps; and what training needs beside convolutions and matrix products. Each is the twin of a function of `detect` or
//! `keypoints`, and compared with it in `tests/`, or of an operation of `rcnn`, and compared with it there. The kernels (`kernels/*.cu`)
//! are one source for two compilers: NVRTC, for a GPU, and C++, for tests without one (`omnilabel-gpu-shim`). What they run on is behind
//! [`Device`], so that whoever chains them is written once.
//!
//! It knows no graphs, no tract, no bundles on disk.

#[cfg(any(feature = "cuda", feature = "cuda-12060", feature = "cuda-linked"))]
pub mod cuda;
mod device;
mod kernel;
pub mod ops;

pub use device::{Arg, Array, Device, Element, GpuError};
pub use kernel::{Kernel, Part, THREADS};
