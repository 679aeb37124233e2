//! Runs a model bundle: tract on the CPU, with multi-transform inference (spec §3). This is the code that devices run, and the
//! code with which the trainer judges what it ships.

mod golden;
mod graphs;
mod pass;
mod teacher;

pub use golden::{GOLDEN_BOX_TOLERANCE_PX, GOLDEN_SCORE_TOLERANCE, GOLDEN_TIES, GoldenMismatch, check_golden, write_golden};
pub use graphs::{BackboneOutput, Graphs, RuntimeError, TractGraphs};
pub use teacher::{Teacher, ViewPlan};
