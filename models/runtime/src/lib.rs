//! Runs a model bundle: tract on the CPU, with multi-transform inference (spec §3). This is the code that devices run, and the
//! code with which the trainer judges what it ships.

mod committee;
pub mod device;
mod enlarge;
mod fused;
mod golden;
mod graphs;
mod pass;
mod plan;
mod pose;
mod rcnn;
mod recycled;
mod tail;
mod teacher;
mod tract;
mod workers;
pub mod wrap;

pub use enlarge::Enlargement;
pub use golden::{
    GOLDEN_BOX_TOLERANCE_PX, GOLDEN_SCORE_TOLERANCE, GOLDEN_TIES, GoldenMismatch, NewGolden, check_golden, golden_detections, write_golden,
    write_golden_in,
};
pub use graphs::{BackboneOutput, FeatureLevel, Graphs, Needed, RuntimeError, TractGraphs};
pub use plan::ViewPlan;
pub use pose::{Dim, GraphInfo, PoseGraph, PoseTensor, TensorInfo, TractPose, inspect};
pub use teacher::{Teacher, is_near};
