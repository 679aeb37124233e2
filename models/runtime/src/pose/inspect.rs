//! What an ONNX file says about its inputs and outputs.

use crate::RuntimeError;
use serde::Serialize;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::{ValueInfoProto, type_proto};
use tract_onnx::prelude::Framework;

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// ONNX's name of the element type, such as `FLOAT`.
    pub element: String,
    /// Numbers, or names of what is not fixed; `None` without a shape.
    pub shape: Option<Vec<Dim>>,
}

/// A dimension as the file states it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Dim {
    /// Fixed.
    Size(i64),
    /// Any, with its name, `?` without.
    Symbol(String),
}

impl TensorInfo {
    /// The size of dimension `index`, where it is fixed.
    pub fn size(&self, index: usize) -> Option<u32> {
        match self.shape.as_ref()?.get(index)? {
            Dim::Size(size) => u32::try_from(*size).ok(),
            Dim::Symbol(_) => None,
        }
    }

    /// Its number of dimensions, where it has a shape.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }
}

impl std::fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.element)?;
        let Some(shape) = &self.shape else { return f.write_str(" [...]") };
        let dims: Vec<String> = shape
            .iter()
            .map(|dim| match dim {
                Dim::Size(size) => size.to_string(),
                Dim::Symbol(name) => name.clone(),
            })
            .collect();
        write!(f, " [{}]", dims.join(", "))
    }
}

/// The inputs and outputs of an ONNX file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphInfo {
    /// Without those that are weights.
    pub inputs: Vec<TensorInfo>,
    /// In the file's order.
    pub outputs: Vec<TensorInfo>,
}

/// Reads what `path` says about its inputs and outputs.
///
/// # Errors
/// [`RuntimeError::Graph`], when it is not an ONNX file.
pub fn inspect(path: &Path) -> Result<GraphInfo, RuntimeError> {
    let refuse = |message: String| RuntimeError::Graph { graph: path.display().to_string(), message };
    let read = || tract_onnx::onnx().proto_model_for_path(path);
    let proto = std::panic::catch_unwind(AssertUnwindSafe(read)).map_err(|_| refuse("not an ONNX file".to_owned()))?;
    let graph = proto.map_err(|e| refuse(format!("not an ONNX file: {e:#}")))?.graph;
    let graph = graph.ok_or_else(|| refuse("the ONNX file has no graph".to_owned()))?;
    let is_weight = |info: &&ValueInfoProto| !graph.initializer.iter().any(|tensor| tensor.name == info.name);
    let inputs = graph.input.iter().filter(is_weight).map(tensor).collect();
    Ok(GraphInfo { inputs, outputs: graph.output.iter().map(tensor).collect() })
}

fn tensor(info: &ValueInfoProto) -> TensorInfo {
    let kind = info.r#type.as_ref().and_then(|kind| kind.value.as_ref()).map(|type_proto::Value::TensorType(tensor)| tensor);
    let element = kind.and_then(|kind| DataType::try_from(kind.elem_type).ok()).map_or("?", |element| element.as_str_name());
    let dim = |dim: &tract_onnx::pb::tensor_shape_proto::Dimension| match &dim.value {
        Some(dimension::Value::DimValue(size)) => Dim::Size(*size),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name.clone()),
        _ => Dim::Symbol("?".to_owned()),
    };
    let shape = kind.and_then(|kind| kind.shape.as_ref()).map(|shape| shape.dim.iter().map(dim).collect());
    TensorInfo { name: info.name.clone(), element: element.to_owned(), shape }
}
