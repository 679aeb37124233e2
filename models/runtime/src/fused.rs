//! Convolutions of a tract graph on `omnilabel_conv`: with their bias, the sum and the ReLU that follow in one pass, their weights shared
//! by all plans, and 3×3 kernels by Winograd's filtering, which tract has not.

use omnilabel_conv::{Finish, Geometry, Threads, forward};
use std::cell::Cell;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;

thread_local! {
    static SHARED: Cell<Threads> = const { Cell::new(Threads::One) };
}

/// Runs a graph whose convolutions are shared among `threads` of the current pool.
pub(crate) fn sharing<T>(threads: Threads, graph: impl FnOnce() -> T) -> T {
    // A worker that waits may be handed another graph: what was said of the first comes back.
    let before = SHARED.replace(threads);
    let result = graph();
    SHARED.set(before);
    result
}

/// A convolution with what follows it: inputs `x` `[n, c, h, w]` and, with `add`, a map of the output's shape.
#[derive(Clone, Debug)]
struct FusedConv {
    /// `[o, c/groups, kh, kw]`.
    weight: Arc<Tensor>,
    /// `[o]`.
    bias: Option<Arc<Tensor>>,
    stride: usize,
    padding: usize,
    groups: usize,
    add: bool,
    relu: bool,
}

impl PartialEq for FusedConv {
    fn eq(&self, other: &Self) -> bool {
        let own = |op: &Self| (op.stride, op.padding, op.groups, op.add, op.relu);
        own(self) == own(other) && self.weight == other.weight && self.bias == other.bias
    }
}

impl Eq for FusedConv {}

impl Op for FusedConv {
    fn name(&self) -> StaticName {
        "FusedConv".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConv {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape: [usize; 4] = inputs[0].shape().try_into()?;
        let kernel: [usize; 4] = self.weight.shape().try_into()?;
        let g = Geometry::new(shape, kernel, self.stride, self.padding, self.groups)
            .with_context(|| format!("a kernel of {kernel:?} does not fit {shape:?}"))?;
        let x = inputs[0].try_as_plain_ram()?;
        let w = self.weight.try_as_plain_ram()?;
        let bias = self.bias.as_ref().map(|bias| bias.try_as_plain_ram()).transpose()?;
        let add = inputs.get(1).map(|add| add.try_as_plain_ram()).transpose()?;
        let finish = Finish {
            bias: bias.as_ref().map(|bias| bias.as_slice::<f32>()).transpose()?,
            add: add.as_ref().map(|add| add.as_slice::<f32>()).transpose()?,
            relu: self.relu,
        };
        let (x, w) = (x.as_slice::<f32>()?, w.as_slice::<f32>()?);
        let y = forward(&g, x, w, finish, SHARED.get());
        Ok(tvec!(tract_ndarray::Array4::from_shape_vec((g.n, g.o, g.oh, g.ow), y)?.into_tensor().into_tvalue()))
    }
}

impl TypedOp for FusedConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let kernel = self.weight.shape();
        let shape = &inputs[0].shape;
        ensure!(inputs.len() == 1 + usize::from(self.add) && shape.rank() == 4, "a convolution of {inputs:?}");
        let out = |axis: usize| ((shape[axis].clone() + 2 * self.padding - kernel[axis]) / self.stride) + 1;
        Ok(tvec!(f32::fact(&[shape[0].clone(), kernel[0].to_dim(), out(2), out(3)])))
    }

    as_op!();
}

/// Puts a [`FusedConv`] in the place of every convolution of `model` that it can compute, with the bias, the sum and the ReLU that belong
/// to it; the others stay. To be called before tract rewrites the graph itself.
pub(crate) fn fuse_convolutions(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        let Some((mut op, input)) = convolution(model, id)? else { continue };
        let mut inputs = tvec!(input);
        let mut last = id;
        if let Some((next, other)) = only_successor(model, last, "Add") {
            let (a, b) = (&model.node(last).outputs[0].fact, model.outlet_fact(other)?);
            if a.shape == b.shape && b.datum_type == f32::datum_type() && b.konst.is_none() {
                op.add = true;
                inputs.push(other);
                last = next;
            }
        }
        if let Some((next, other)) = only_successor(model, last, "Max") {
            let zero = constant(model, other).is_some_and(|value| value.cast_to_scalar::<f32>().is_ok_and(|v| v == 0.0));
            if zero && model.node(next).outputs[0].fact.shape == model.node(last).outputs[0].fact.shape {
                op.relu = true;
                last = next;
            }
        }
        let mut patch = TypedModelPatch::new("fused convolution");
        let taps = patch.taps(model, &inputs)?;
        let name = model.node(last).name.clone();
        let wire = patch.wire_node(name, op, &taps)?[0];
        patch.shunt_outside(model, last.into(), wire)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// The node as a [`FusedConv`] and its input, when it is a convolution of f32 maps with constant weights, equal padding and stride.
fn convolution(model: &TypedModel, id: usize) -> TractResult<Option<(FusedConv, OutletId)>> {
    let node = model.node(id);
    let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
    let pool = &conv.pool_spec;
    let (Some(weight), Some(bias)) = (constant(model, node.inputs[1]), constant(model, node.inputs[2])) else { return Ok(None) };
    let padding = match &pool.padding {
        PaddingSpec::Explicit(before, after) | PaddingSpec::ExplicitOnnxPool(before, after, _) if before == after => before.clone(),
        PaddingSpec::Valid => tvec!(0, 0),
        _ => return Ok(None),
    };
    let (strides, dilations) = (pool.strides(), pool.dilations());
    let equal = |values: &[usize]| values.len() == 2 && values[0] == values[1];
    let plain = pool.data_format == DataFormat::NCHW && conv.kernel_fmt == KernelFormat::OIHW && conv.q_params.is_none();
    let square = equal(&padding) && equal(&strides) && dilations.iter().all(|d| *d == 1);
    let f32s = [&weight, &bias].iter().all(|t| t.datum_type() == f32::datum_type())
        && model.outlet_fact(node.inputs[0])?.datum_type == f32::datum_type();
    let channels = pool.output_channels;
    if !(plain && square && f32s && weight.rank() == 4 && (bias.len() == channels || bias.len() == 1)) {
        return Ok(None);
    }
    let bias = if bias.len() == channels {
        (*bias).clone().into_shape(&[channels])?
    } else {
        tensor1(&vec![bias.cast_to_scalar::<f32>()?; channels])
    };
    let zero = bias.try_as_plain_ram()?.as_slice::<f32>()?.iter().all(|v| *v == 0.0);
    let bias = (!zero).then(|| bias.into_arc_tensor());
    let (stride, padding, groups) = (strides[0], padding[0], conv.group);
    Ok(Some((FusedConv { weight, bias, stride, padding, groups, add: false, relu: false }, node.inputs[0])))
}

/// The value of an outlet that is constant, if only through a cast to its own type.
fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    let fact = model.outlet_fact(outlet).ok()?;
    if let Some(value) = &fact.konst {
        return Some(value.clone());
    }
    let node = model.node(outlet.node);
    let same = node.op.name() == "Cast" && model.outlet_fact(*node.inputs.first()?).ok()?.datum_type == fact.datum_type;
    if same { constant(model, node.inputs[0]) } else { None }
}

/// The node that alone reads `id`, when it is the binary operation `name`, and its other operand.
fn only_successor(model: &TypedModel, id: usize, name: &str) -> Option<(usize, OutletId)> {
    let node = model.node(id);
    let [next] = node.outputs[0].successors[..] else { return None };
    if model.outputs.contains(&id.into()) {
        return None;
    }
    let next = model.node(next.node);
    let op = next.op_as::<TypedBinOp>()?;
    let other = next.inputs.iter().find(|input| input.node != id)?;
    (op.0.name() == name && next.inputs.len() == 2).then_some((next.id, *other))
}
