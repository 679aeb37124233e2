//! The one graph of a wrapped pose model.

use crate::RuntimeError;
use crate::pose::refuse;
use crate::tract::{Engine, Plans, graph_error, optimized};
use omnilabel_bundle::{POSE_GRAPH, PoseSpec};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

/// One output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoseTensor {
    /// Row-major.
    pub values: Vec<f32>,
    /// Its product is the number of values.
    pub shape: Vec<usize>,
}

/// The graph of a wrapped pose model behind a trait, so that the same pipeline runs on tract and on hand-made outputs.
pub trait PoseGraph: Send + Sync {
    /// The outputs that the manifest names, in its order, for one input `[3, rows, columns]`.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn run(&self, input: &[f32], rows: usize, columns: usize) -> Result<Vec<PoseTensor>, RuntimeError>;

    /// Whether it takes inputs of other sizes than the manifest's.
    fn is_dynamic(&self) -> bool;
}

/// The graph on tract.
pub struct TractPose {
    plans: Plans,
    names: Vec<String>,
    dynamic: bool,
    engine: Engine,
}

impl TractPose {
    /// The graph in the file `path`; `bytes` bounds the size of its weights.
    pub(crate) fn load(path: &Path, bytes: u64, pose: &PoseSpec, engine: Engine) -> Result<Self, RuntimeError> {
        let names = pose.output.names();
        // Somebody else's file: tract may find it malformed by a panic.
        let load = || -> Result<Self, RuntimeError> {
            let (model, dynamic) = parse(path, &names, pose)?;
            let plans = Plans::new(model, optimized, &Arc::default(), bytes);
            // Operators that tract does not have are named now and not with the first frame.
            plans.plan(1, pose.height as usize, pose.width as usize).map_err(graph_error(POSE_GRAPH))?;
            Ok(Self { plans, names: names.clone(), dynamic, engine })
        };
        std::panic::catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| Err(refuse("tract cannot read this graph".to_owned())))
    }
}

impl PoseGraph for TractPose {
    fn run(&self, input: &[f32], rows: usize, columns: usize) -> Result<Vec<PoseTensor>, RuntimeError> {
        let plan = self.plans.plan(1, rows, columns).map_err(graph_error(POSE_GRAPH))?;
        let input = Tensor::from_shape(&[1, 3, rows, columns], input).map_err(graph_error(POSE_GRAPH))?;
        let outputs = self.engine.run(POSE_GRAPH, &plan, input)?;
        let tensor = |(value, name): (&TValue, &String)| {
            if value.datum_type() != f32::datum_type() {
                return Err(refuse(format!("the output `{name}` is of {:?}, expected F32", value.datum_type())));
            }
            let (values, shape) = crate::tract::values_of(value).map_err(graph_error(POSE_GRAPH))?;
            Ok(PoseTensor { values, shape })
        };
        outputs.iter().zip(&self.names).map(tensor).collect()
    }

    fn is_dynamic(&self) -> bool {
        self.dynamic
    }
}

/// The model, and whether its input has no fixed size.
fn parse(path: &Path, names: &[String], pose: &PoseSpec) -> Result<(InferenceModel, bool), RuntimeError> {
    let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut model = onnx.model_for_path(path).map_err(graph_error(POSE_GRAPH))?;
    if model.inputs.len() != 1 {
        let list: Vec<&str> = model.inputs.iter().map(|input| model.node(input.node).name.as_str()).collect();
        return Err(refuse(format!("{} inputs ({}), expected one: the image", list.len(), list.join(", "))));
    }
    let outlets: Vec<&str> = model.outputs.iter().filter_map(|outlet| model.outlet_label(*outlet)).collect();
    let outputs = outlets.join(", ");
    for name in names {
        if model.clone().select_outputs_by_name([name]).is_err() {
            return Err(refuse(format!("there is no output `{name}`, the graph's are: {outputs}")));
        }
    }
    model.select_outputs_by_name(names).map_err(graph_error(POSE_GRAPH))?;

    let fact = model.input_fact(0).map_err(graph_error(POSE_GRAPH))?;
    let kind = fact.datum_type.concretize();
    if kind.is_some_and(|kind| kind != f32::datum_type()) {
        return Err(refuse(format!("the input is of {:?}, expected F32", kind.unwrap_or(f32::datum_type()))));
    }
    let dims: Vec<Option<usize>> =
        fact.shape.dims().map(|dim| dim.concretize().and_then(|dim| dim.to_i64().ok()).and_then(|n| usize::try_from(n).ok())).collect();
    let (rows, columns) = (pose.height as usize, pose.width as usize);
    let shape = || {
        let text: Vec<String> = dims.iter().map(|dim| dim.map_or("?".to_owned(), |n| n.to_string())).collect();
        format!("[{}]", text.join(", "))
    };
    let expected = format!("expected [1, 3, {rows}, {columns}] (batch, channels, height, width)");
    let open = fact.shape.is_open();
    if !open && dims.len() != 4 {
        return Err(refuse(format!("the input {} has {} dimensions, {expected}", shape(), dims.len())));
    }
    let dim = |i: usize| dims.get(i).copied().flatten();
    if let Some(batch) = dim(0).filter(|&batch| batch != 1) {
        return Err(refuse(format!("the input {} has a fixed batch of {batch}, {expected}; export it with a batch of 1 or any", shape())));
    }
    if dim(1).is_some_and(|channels| channels != 3) {
        let last = if dim(3) == Some(3) { "; its channels come last, export it with channels first" } else { "" };
        return Err(refuse(format!("the input {} has not 3 channels, {expected}{last}", shape())));
    }
    if dim(2).is_some_and(|n| n != rows) || dim(3).is_some_and(|n| n != columns) {
        return Err(refuse(format!("the input {} has another size than the manifest says, {expected}", shape())));
    }
    let dynamic = dim(2).is_none() && dim(3).is_none();
    Ok((model, dynamic))
}
