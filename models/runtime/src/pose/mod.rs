//! Wrapped pose models: the graph, and the pipelines of top-down and one-stage models.

mod graph;
mod inspect;
mod merge;
mod one_stage;
mod top_down;

pub use graph::{PoseGraph, PoseTensor, TractPose};
pub use inspect::{Dim, GraphInfo, TensorInfo, inspect};
pub(crate) use one_stage::OneStage;
pub(crate) use top_down::TopDown;

use crate::RuntimeError;
use omnilabel_bundle::POSE_GRAPH;

pub(crate) fn refuse(message: String) -> RuntimeError {
    RuntimeError::Graph { graph: POSE_GRAPH.to_owned(), message }
}
