//! A builder of ONNX graphs whose weights lie in a safetensors file.

use crate::RcnnError;
use crate::network::{Conv, Linear};
use crate::params::Precision;
use candle_core::{Tensor, WithDType};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// The operator set of the graphs.
const OPSET: i64 = 17;
/// The version of the file format that came with it.
const IR_VERSION: i64 = 8;

/// One dimension of an input or output: a number or a symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dim<'a> {
    Size(usize),
    Symbol(&'a str),
}

/// A graph in the making. Every value is named as the node that makes it.
pub(crate) struct Graph {
    proto: GraphProto,
    weights: Vec<(String, Tensor)>,
}

impl Graph {
    pub(crate) fn new(name: &str) -> Self {
        Self { proto: GraphProto { name: name.to_owned(), ..Default::default() }, weights: Vec::new() }
    }

    /// Declares an input.
    pub(crate) fn input(&mut self, name: &str, dims: &[Dim<'_>]) -> String {
        self.proto.input.push(value_info(name, dims));
        name.to_owned()
    }

    /// Declares a value as an output.
    pub(crate) fn output(&mut self, name: &str, dims: &[Dim<'_>]) {
        self.proto.output.push(value_info(name, dims));
    }

    /// Adds a node named as its output.
    pub(crate) fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: op.to_owned(),
            attribute: attributes,
            ..Default::default()
        });
        name.to_owned()
    }

    /// Adds a weight once, however many nodes use it.
    pub(crate) fn weight(&mut self, name: &str, tensor: &Tensor) -> String {
        if !self.weights.iter().any(|(known, _)| known == name) {
            self.weights.push((name.to_owned(), tensor.detach()));
        }
        name.to_owned()
    }

    /// Adds a small constant that belongs to the structure, such as axes, inside the graph.
    fn constant<T: WithDType>(&mut self, name: &str, data_type: DataType, values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> String {
        self.proto.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: vec![values.len() as i64],
            data_type: data_type as i32,
            raw_data: values.iter().flat_map(bytes).collect(),
            ..Default::default()
        });
        name.to_owned()
    }

    /// A convolution with given weight and bias names; `output` names its result, before its ReLU if it has one.
    pub(crate) fn conv_named(&mut self, x: &str, weight: &str, bias: &str, conv: ConvAttributes, output: &str) -> String {
        let ConvAttributes { kernel, stride, padding, groups, relu } = conv;
        let inner = if relu { format!("{output}.linear") } else { output.to_owned() };
        let attributes = vec![
            ints("kernel_shape", &[kernel; 2]),
            ints("strides", &[stride; 2]),
            ints("pads", &[padding; 4]),
            ints("dilations", &[1; 2]),
            int("group", groups),
        ];
        let y = self.node("Conv", &inner, &[x, weight, bias], attributes);
        if relu { self.node("Relu", output, &[&y], Vec::new()) } else { y }
    }

    /// A layer's convolution with its batch-norm folded in.
    pub(crate) fn conv(&mut self, conv: &Conv, x: &str, output: &str) -> Result<String, RcnnError> {
        let (weight, bias) = conv.folded()?;
        let (weight_name, bias_name) = conv.exported_names();
        let (weight, bias) = (self.weight(&weight_name, &weight), self.weight(&bias_name, &bias));
        let spec = conv.shape.spec;
        let attributes = ConvAttributes {
            kernel: conv.shape.kernel as i64,
            stride: spec.stride as i64,
            padding: spec.padding as i64,
            groups: spec.groups as i64,
            relu: spec.relu,
        };
        Ok(self.conv_named(x, &weight, &bias, attributes, output))
    }

    /// A fully connected layer on `[r, i]`.
    pub(crate) fn linear(&mut self, layer: &Linear, x: &str, output: &str) -> String {
        let weight = self.weight(&format!("{}.weight", layer.name), &layer.weight);
        let bias = self.weight(&format!("{}.bias", layer.name), &layer.bias);
        let inner = if layer.relu { format!("{output}.linear") } else { output.to_owned() };
        let y = self.node("Gemm", &inner, &[x, &weight, &bias], vec![int("transB", 1)]);
        if layer.relu { self.node("Relu", output, &[&y], Vec::new()) } else { y }
    }

    /// Nearest-neighbour enlargement ×2.
    pub(crate) fn double(&mut self, x: &str, output: &str) -> String {
        let scales = self.constant(&format!("{output}.scales"), DataType::Float, &[1f32, 1.0, 2.0, 2.0], |v| v.to_le_bytes().to_vec());
        let attributes =
            vec![string("mode", "nearest"), string("coordinate_transformation_mode", "asymmetric"), string("nearest_mode", "floor")];
        self.node("Resize", output, &[x, "", &scales], attributes)
    }

    /// Bilinear enlargement ×2 (half pixels, align_corners = false) of maps with `side` rows and columns, as two products with a
    /// constant matrix, `A · x · Aᵀ`: tract's linear Resize takes as long as the convolutions before it, and the GPU runtime has none.
    pub(crate) fn double_bilinear(&mut self, x: &str, side: usize, output: &str) -> String {
        let mut rows = vec![0f32; 2 * side * side];
        for (i, row) in rows.chunks_exact_mut(side).enumerate() {
            let at = (i as f32 / 2.0 - 0.25).clamp(0.0, (side - 1) as f32);
            let (low, fraction) = (at as usize, at.fract());
            row[low] += 1.0 - fraction;
            row[(low + 1).min(side - 1)] += fraction;
        }
        let columns: Vec<f32> = (0..2 * side * side).map(|i| rows[i % (2 * side) * side + i / (2 * side)]).collect();
        let rows = self.matrix(&format!("{output}.rows"), [2 * side, side], &rows);
        let columns = self.matrix(&format!("{output}.columns"), [side, 2 * side], &columns);
        let wide = self.node("MatMul", &format!("{output}.wide"), &[x, &columns], Vec::new());
        self.node("MatMul", output, &[&rows, &wide], Vec::new())
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2], values: &[f32]) -> String {
        let name = self.constant(name, DataType::Float, values, |v| v.to_le_bytes().to_vec());
        if let Some(last) = self.proto.initializer.last_mut() {
            last.dims = shape.map(|side| side as i64).to_vec();
        }
        name
    }

    /// Every second row and column. A slice and not a max-pool, which the GPU runtime has no kernel for.
    pub(crate) fn subsample(&mut self, x: &str, output: &str) -> String {
        let mut constant = |field: &str, values: [i64; 2]| {
            self.constant(&format!("{output}.{field}"), DataType::Int64, &values, |v| v.to_le_bytes().to_vec())
        };
        let starts = constant("starts", [0, 0]);
        let ends = constant("ends", [i64::from(i32::MAX); 2]);
        let axes = constant("axes", [2, 3]);
        let steps = constant("steps", [2, 2]);
        self.node("Slice", output, &[x, &starts, &ends, &axes, &steps], Vec::new())
    }

    /// Puts a Cast to f32 between every weight and the nodes that use it.
    fn widen(&mut self) {
        let wide = |name: &str| format!("{name}.f32");
        for node in &mut self.proto.node {
            for input in node.input.iter_mut().filter(|input| self.weights.iter().any(|(name, _)| name == *input)) {
                *input = wide(input);
            }
        }
        let casts = self.weights.iter().map(|(name, _)| NodeProto {
            input: vec![name.clone()],
            output: vec![wide(name)],
            name: wide(name),
            op_type: "Cast".to_owned(),
            attribute: vec![int("to", DataType::Float as i64)],
            ..Default::default()
        });
        let casts: Vec<NodeProto> = casts.collect();
        self.proto.node.splice(..0, casts);
    }

    /// The weights, to be written before [`Graph::finish`].
    pub(crate) fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// The model; `place` gives the offset and length in bytes of a weight inside `file`.
    pub(crate) fn finish(
        mut self,
        file: &str,
        precision: Precision,
        place: impl Fn(&str) -> Option<(u64, u64)>,
    ) -> Result<ModelProto, RcnnError> {
        let stored = match precision {
            Precision::F32 => DataType::Float,
            Precision::F16 => {
                self.widen();
                DataType::Float16
            }
        };
        for (name, tensor) in &self.weights {
            let (offset, length) = place(name).ok_or_else(|| RcnnError::Config(format!("weight `{name}` is not in `{file}`")))?;
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
            self.proto.initializer.push(TensorProto {
                name: name.clone(),
                dims: tensor.dims().iter().map(|d| *d as i64).collect(),
                data_type: stored as i32,
                data_location: Some(DataLocation::External as i32),
                external_data: vec![
                    entry("location", file.to_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ],
                ..Default::default()
            });
        }
        Ok(ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            producer_name: "omnilabel".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.proto),
            ..Default::default()
        })
    }
}

/// Attributes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvAttributes {
    pub(crate) kernel: i64,
    pub(crate) stride: i64,
    pub(crate) padding: i64,
    pub(crate) groups: i64,
    pub(crate) relu: bool,
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Ints as i32, ints: ints.to_vec(), ..Default::default() }
}

pub(crate) fn string(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::String as i32, s: s.as_bytes().to_vec(), ..Default::default() }
}

fn value_info(name: &str, dims: &[Dim<'_>]) -> ValueInfoProto {
    let dim = |dim: &Dim<'_>| Dimension {
        value: Some(match dim {
            Dim::Size(size) => dimension::Value::DimValue(*size as i64),
            Dim::Symbol(name) => dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Default::default()
    };
    let tensor =
        type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}
