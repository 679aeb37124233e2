//! The keypoint domain, without `std` and without allocation.
//!
//! This crate knows no clock, file, socket or thread: it computes. Everything that travels between devices and the centre, and
//! every rule about what a label is, lives here once.
//!
//! | module | what it holds |
//! |---|---|
//! | [`geometry`] | points, boxes, sizes; continuous coordinates (pixel `i` covers `[i, i + 1)`) |
//! | [`skeleton`] | names, flip permutation, edges, OKS sigmas: one table |
//! | [`view`] | the flip/scale transform of one view, with its inverse |
//! | [`heatmap`] | keypoints from one RoI's heatmaps |
//! | [`ensemble`] | the average over views, and how far they agree |
//! | [`oks`] | object keypoint similarity and NMS on it |
//! | [`label`] | detections, thresholds, the hard-label rule |
//! | [`wire`] | versioned messages in CBOR and JSON, and the topics they travel on |
//! | [`release`] | what is signed, and the order of versions |
//! | [`shadow`] | how far two models agree on the same frames |
//! | [`trial`] | the slot state machine: `step(state, event) -> action` |
#![cfg_attr(not(test), no_std)]

pub mod ensemble;
pub mod geometry;
pub mod heatmap;
pub mod label;
pub mod oks;
pub mod release;
pub mod shadow;
pub mod skeleton;
pub mod trial;
pub mod view;
pub mod wire;

/// The most keypoints a skeleton may have.
pub const MAX_KEYPOINTS: usize = 32;
/// The most instances one label carries; what does not fit is counted in [`label::Label::overflow`].
pub const MAX_INSTANCES: usize = 20;
