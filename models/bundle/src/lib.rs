//! A model is a bundle: a folder with `manifest.json`, ONNX graphs with their weights, and golden frames. This crate reads, checks and
//! writes manifests; it runs nothing.
//!
//! A keypoint R-CNN has three graphs whose weights lie in one safetensors file (ONNX external data):
//!
//! ```text
//! manifest.json           what the outputs mean: skeleton, input, RoI sizes, thresholds, parent, hashes
//! backbone.onnx           image [n,3,h,w] -> features_{l} [n,c,h/s,w/s], objectness_{l} [n,a,h/s,w/s], deltas_{l} [n,4a,h/s,w/s]
//! box_head.onnx           rois [r,c,p,p]  -> class_logits [r,2], box_deltas [r,8]
//! keypoint_head.onnx      rois [r,c,q,q]  -> heatmaps [r,k,m,m]
//! weights.safetensors     every tensor of the three graphs
//! golden/NAME.png, golden/NAME.json   frames and the detections that a device must reproduce
//! ```
//!
//! A pose model of somebody else's is wrapped: `pose.onnx` as it came, what its outputs mean in the manifest, and for a top-down model
//! the bundle that finds people in `detector/`.

mod check;
mod manifest;
pub mod onnx;
mod pose;
mod store;

pub use check::{DETECTOR, GRAPHS, MANIFEST, MAX_FILE_BYTES, MAX_FILES, MAX_GRAPH_BYTES, MAX_MANIFEST_BYTES, POSE_GRAPH, check_path};
pub use manifest::*;
pub use pose::*;
pub use store::*;
