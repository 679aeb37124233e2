//! Convolutions and fully connected layers of a tract graph on `omnilabel_conv`: with their bias, the sum and the ReLU that follow in
//! one pass, their weights shared by all plans, and 3×3 kernels by Winograd's filtering, which tract has not.

use crate::enlarge::{Enlargement, Taps};
use crate::recycled;
use omnilabel_conv::{Addend, Finish, Geometry, Kernels, Threads, dense, forward_into};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
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
    recycled::clear();
    result
}

/// Weights made ready; `None` where they are not kept.
type Shared = Option<Arc<Kernels<f32>>>;

/// Stride and groups, by which weights are made ready.
type Use = (usize, usize);

/// The weights made ready that all plans of a graph share.
#[derive(Default)]
pub(crate) struct Kept {
    weights: Mutex<Vec<Entry>>,
}

/// A weight, for as long as a plan has it, and what was made of it for each of its uses.
struct Entry {
    weight: Weak<Tensor>,
    uses: Vec<(Use, Shared)>,
}

/// The most bytes of a graph's weights made ready, beside those of the file.
const KEPT_BYTES: usize = 192 << 20;

impl Kept {
    /// Those of `weight`; `None` where they are not used, or too many. Whether they are kept depends on the weight and on those before it in
    /// the graph, not on the map that it meets first: it decides how a small map is convolved, and so its last bits.
    fn kernels(&self, weight: &Arc<Tensor>, stride: usize, padding: usize, groups: usize) -> TractResult<Shared> {
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        // A weight that a plan alone has, because it computed it, ends with the plan.
        weights.retain(|entry| entry.weight.strong_count() > 0);
        let used = (stride, groups);
        let known = weights.iter().position(|entry| std::ptr::eq(entry.weight.as_ptr(), Arc::as_ptr(weight)));
        if let Some((_, kernels)) = known.and_then(|known| weights[known].uses.iter().find(|(use_of, _)| *use_of == used)) {
            return Ok(kernels.clone());
        }
        let kernel: [usize; 4] = weight.shape().try_into()?;
        let Some(g) = Geometry::new([1, groups * kernel[1], kernel[2], kernel[3]], kernel, stride, padding, groups) else {
            return Ok(None);
        };
        let taken = weights.iter().flat_map(|entry| &entry.uses).filter_map(|(_, kernels)| kernels.as_ref());
        let left = KEPT_BYTES - taken.map(|kernels| kernels.bytes()).sum::<usize>();
        let mut kernels = None;
        if Kernels::<f32>::bytes_of(&g).is_some_and(|bytes| bytes <= left) {
            kernels = Kernels::new(&g, weight.try_as_plain_ram()?.as_slice::<f32>()?).map(Arc::new);
        }
        let made = (used, kernels.clone());
        match known {
            Some(known) => weights[known].uses.push(made),
            None => weights.push(Entry { weight: Arc::downgrade(weight), uses: vec![made] }),
        }
        Ok(kernels)
    }

    /// Weights that a plan has.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|entry| entry.weight.strong_count() > 0).count()
    }

    /// The same weight as another plan has it, if one has: what a file holds in f16, each plan makes f32 of by itself.
    fn shared(&self, weight: Arc<Tensor>) -> Arc<Tensor> {
        let weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Arc<Tensor>| Arc::ptr_eq(known, &weight) || **known == *weight;
        weights.iter().filter_map(|entry| entry.weight.upgrade()).find(same).unwrap_or(weight)
    }
}

/// A convolution with what follows it: inputs `x` `[n, c, h, w]` and, with `add`, a map of the output's shape.
#[derive(Clone, Debug)]
pub(crate) struct FusedConv {
    /// `[o, c/groups, kh, kw]`.
    weight: Arc<Tensor>,
    kernels: Shared,
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

impl FusedConv {
    /// Whether it keeps the map's size and looks one cell around each.
    pub(crate) fn is_local(&self) -> bool {
        self.weight.shape()[2..] == [3, 3] && (self.stride, self.padding, self.groups, self.add) == (1, 1, 1, false)
    }

    /// Whether it makes each cell of a map of the same size from that cell alone, and of another map's there.
    pub(crate) fn is_merge(&self) -> bool {
        self.weight.shape()[2..] == [1, 1] && (self.stride, self.padding, self.groups, self.add) == (1, 0, 1, true)
    }

    /// Channels of its output.
    pub(crate) fn channels(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Its output on the map `x` `[c, h, w]` without padding.
    pub(crate) fn inside(&self, [c, h, w]: [usize; 3], x: &[f32], add: Option<&[f32]>) -> TractResult<Vec<f32>> {
        let (shape, kernel): (_, [usize; 4]) = ([1, c, h, w], self.weight.shape().try_into()?);
        let g = Geometry::new(shape, kernel, 1, 0, 1).with_context(|| format!("a kernel of {kernel:?} on {shape:?}"))?;
        let mut y = vec![0.0; g.output_len()];
        self.compute(&g, x, add.map_or(Addend::None, Addend::Map), &mut y)?;
        Ok(y)
    }

    fn compute(&self, g: &Geometry, x: &[f32], add: Addend<'_, f32>, y: &mut [f32]) -> TractResult<()> {
        let w = self.weight.try_as_plain_ram()?;
        let bias = self.bias.as_ref().map(|bias| bias.try_as_plain_ram()).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.as_slice::<f32>()).transpose()?;
        let finish = Finish { bias, add, relu: self.relu };
        forward_into(g, x, w.as_slice::<f32>()?, self.kernels.as_deref(), finish, y, SHARED.get());
        Ok(())
    }
}

impl Op for FusedConv {
    fn name(&self) -> StaticName {
        "FusedConv".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConv {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape: [usize; 4] = inputs[0].shape().try_into()?;
        let kernel: [usize; 4] = self.weight.shape().try_into()?;
        let g = Geometry::new(shape, kernel, self.stride, self.padding, self.groups)
            .with_context(|| format!("a kernel of {kernel:?} does not fit {shape:?}"))?;
        let output = [g.n, g.o, g.oh, g.ow];
        // A map that only this sum reads becomes the sum.
        let add = if inputs.len() > 1 { inputs.pop() } else { None };
        let onto = add.as_ref().is_some_and(|add| add.is_exclusive() && *add.shape() == output);
        let (mut y, add) = match add {
            Some(add) if onto => (add.into_tensor(), None),
            add => (recycled::map(&output)?, add),
        };
        let addend = add.as_ref().map(|add| add.try_as_plain_ram()).transpose()?;
        let addend = addend.as_ref().map(|add| add.as_slice::<f32>()).transpose()?;
        let x = inputs[0].try_as_plain_ram()?;
        let addend = if onto { Addend::Output } else { addend.map_or(Addend::None, Addend::Map) };
        self.compute(&g, x.as_slice::<f32>()?, addend, y.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)?;
        inputs.into_iter().chain(add).for_each(recycled::done_with);
        Ok(tvec!(y.into_tvalue()))
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

/// A fully connected layer with its bias and ReLU: `[r, i]` → `[r, o]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FusedDense {
    /// `[o, i]`.
    weight: Arc<Tensor>,
    /// `[o]`.
    bias: Option<Arc<Tensor>>,
    relu: bool,
}

impl Op for FusedDense {
    fn name(&self) -> StaticName {
        "FusedDense".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FusedDense {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (o, i) = (self.weight.shape()[0], self.weight.shape()[1]);
        let [r, inner] = *inputs[0].shape() else { bail!("a fully connected layer of {:?}", inputs[0].shape()) };
        ensure!(inner == i, "{inner} inputs of a fully connected layer of {i}");
        let (x, w) = (inputs[0].try_as_plain_ram()?, self.weight.try_as_plain_ram()?);
        let bias = self.bias.as_ref().map(|bias| bias.try_as_plain_ram()).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.as_slice::<f32>()).transpose()?;
        let finish = Finish { bias, relu: self.relu, ..Finish::default() };
        let y = dense((r, i, o), x.as_slice::<f32>()?, w.as_slice::<f32>()?, finish, SHARED.get());
        Ok(tvec!(tract_ndarray::Array2::from_shape_vec((r, o), y)?.into_tensor().into_tvalue()))
    }
}

impl TypedOp for FusedDense {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs[0].rank() == 2, "a fully connected layer of {inputs:?}");
        Ok(tvec!(f32::fact(&[inputs[0].shape[0].clone(), self.weight.shape()[0].to_dim()])))
    }

    as_op!();
}

/// The product of one axis of a map with a constant matrix of at most two numbers per row, such as interpolation exported as a product.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Banded {
    axis: usize,
    /// Of each output, its two sources and the bits of their weights; a source that is not there has weight 0.
    taps: Vec<[(usize, u32); 2]>,
}

impl Op for Banded {
    fn name(&self) -> StaticName {
        "Banded".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Banded {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut shape: TVec<usize> = inputs[0].shape().into();
        let from = shape[self.axis];
        let run: usize = shape[self.axis + 1..].iter().product();
        shape[self.axis] = self.taps.len();
        let x = inputs[0].try_as_plain_ram()?;
        let x = x.as_slice::<f32>()?;
        ensure!(self.taps.iter().flatten().all(|(source, _)| *source < from), "an axis of {from}");
        let taps: Vec<_> = self.taps.iter().map(|taps| taps.map(|(source, bits)| (source, f32::from_bits(bits)))).collect();
        let mut tensor = Tensor::zero::<f32>(&shape)?;
        let mut y = tensor.try_as_plain_ram_mut()?;
        let y = y.as_slice_mut::<f32>()?;
        for (x, y) in x.chunks_exact((from * run).max(1)).zip(y.chunks_exact_mut((taps.len() * run).max(1))) {
            if run == 1 {
                y.iter_mut().zip(&taps).for_each(|(y, [(a, wa), (b, wb)])| *y = wa * x[*a] + wb * x[*b]);
                continue;
            }
            for (y, [(a, wa), (b, wb)]) in y.chunks_exact_mut(run).zip(&taps) {
                y.iter_mut().zip(&x[a * run..]).zip(&x[b * run..]).for_each(|((y, a), b)| *y = wa * a + wb * b);
            }
        }
        Ok(tvec!(tensor.into_tvalue()))
    }
}

impl TypedOp for Banded {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs[0].rank() > self.axis, "axis {} of {inputs:?}", self.axis);
        let mut shape = inputs[0].shape.clone();
        shape.set(self.axis, self.taps.len().to_dim());
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}

/// The node as a [`Banded`] and its input.
fn banded(model: &TypedModel, constants: &Constants, id: usize) -> TractResult<Option<(Banded, OutletId)>> {
    let node = model.node(id);
    let Some(product) = node.op_as::<EinSum>().filter(|op| op.q_params.is_none() && node.inputs.len() == 2) else { return Ok(None) };
    let sides: Vec<usize> = (0..2).filter(|i| constants.get(node.inputs[*i]).is_some()).collect();
    let [at] = sides[..] else { return Ok(None) };
    let (input, Some(matrix)) = (node.inputs[1 - at], constants.get(node.inputs[at])) else { return Ok(None) };
    let axes = product.axes.to_string();
    let Some((sides, output)) = axes.split_once("->") else { return Ok(None) };
    let sides: Vec<Vec<char>> = sides.split(',').map(|side| side.chars().collect()).collect();
    let (Some(map), Some(letters), output) = (sides.get(1 - at), sides.get(at), output.chars().collect::<Vec<_>>()) else {
        return Ok(None);
    };
    let fact = model.outlet_fact(input)?;
    let f32s = fact.datum_type == f32::datum_type() && matrix.datum_type() == f32::datum_type();
    if !f32s || map.len() != output.len() || letters.len() != matrix.rank() {
        return Ok(None);
    }
    // One axis is another in the output, and of the matrix only these two are longer than 1.
    let changed: Vec<usize> = (0..map.len()).filter(|i| map[*i] != output[*i]).collect();
    let [axis] = changed[..] else { return Ok(None) };
    let place = |letter: char| letters.iter().position(|l| *l == letter);
    let (Some(row), Some(column)) = (place(output[axis]), place(map[axis])) else { return Ok(None) };
    let (outputs, sources) = (matrix.shape()[row], matrix.shape()[column]);
    if matrix.len() != outputs * sources || outputs * sources == 0 {
        return Ok(None);
    }
    let values = matrix.try_as_plain_ram()?;
    let values = values.as_slice::<f32>()?;
    let value = |o: usize, i: usize| if row < column { values[o * sources + i] } else { values[i * outputs + o] };
    let mut taps = Vec::with_capacity(outputs);
    for o in 0..outputs {
        let found: Vec<usize> = (0..sources).filter(|i| value(o, *i) != 0.0).collect();
        let tap = |n: usize| found.get(n).map_or((0, 0), |i| (*i, value(o, *i).to_bits()));
        if found.len() > 2 {
            return Ok(None);
        }
        taps.push([tap(0), tap(1)]);
    }
    Ok(Some((Banded { axis, taps }, input)))
}

/// The interpolation of maps `[n, k, from, from]` that ends in `outlet`, and the maps' outlet.
pub(crate) fn enlargement(model: &TypedModel, outlet: OutletId) -> Option<(Enlargement, OutletId)> {
    let banded = |outlet: OutletId, axis: usize| model.node(outlet.node).op_as::<Banded>().filter(|banded| banded.axis == axis);
    let rows = banded(outlet, 2)?;
    let wide = model.node(outlet.node).inputs[0];
    let columns = banded(wide, 3).filter(|_| model.node(wide.node).outputs[0].successors.len() == 1)?;
    let maps = model.node(wide.node).inputs[0];
    let [_, _, h, w] = &model.outlet_fact(maps).ok()?.shape[..] else { return None };
    let from = h.to_usize().ok().filter(|_| h == w)?;
    let taps =
        |banded: &Banded| -> Vec<Taps> { banded.taps.iter().map(|taps| taps.map(|(at, bits)| (at, f32::from_bits(bits)))).collect() };
    Some((Enlargement::new(from, taps(columns), taps(rows))?, maps))
}

/// Puts operations of `omnilabel_conv` in the place of every convolution and fully connected layer of `model` that they can compute, with
/// the bias, the sum and the ReLU that belong to it; the others stay. To be called before tract rewrites the graph itself.
pub(crate) fn fuse(model: &mut TypedModel, kept: &Kept) -> TractResult<()> {
    let order = model.eval_order()?;
    let constants = Constants::of(model, &order)?;
    for id in order {
        if let Some((op, input)) = layer(model, &constants, id)? {
            fuse_layer(model, &constants, id, op, input)?;
            continue;
        }
        if let Some((op, input)) = banded(model, &constants, id)? {
            replace(model, id, op, &[input])?;
            continue;
        }
        let Some((mut op, input)) = convolution(model, &constants, id)? else { continue };
        op.weight = kept.shared(op.weight);
        op.kernels = kept.kernels(&op.weight, op.stride, op.padding, op.groups)?;
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
        if let Some(next) = relu(model, &constants, last) {
            op.relu = true;
            last = next;
        }
        replace(model, last, op, &inputs)?;
    }
    Ok(())
}

/// Puts `op` in the place of node `last` and of those before it that nobody else reads.
fn replace(model: &mut TypedModel, last: usize, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> TractResult<()> {
    let mut patch = TypedModelPatch::new("omnilabel_conv");
    let taps = patch.taps(model, inputs)?;
    let wire = patch.wire_node(model.node(last).name.clone(), op, &taps)?[0];
    patch.shunt_outside(model, last.into(), wire)?;
    patch.apply(model)
}

/// The ReLU that alone reads `id`.
fn relu(model: &TypedModel, constants: &Constants, id: usize) -> Option<usize> {
    let (next, other) = only_successor(model, id, "Max")?;
    let zero = constants.get(other)?.cast_to_scalar::<f32>().is_ok_and(|v| v == 0.0);
    (zero && model.node(next).outputs[0].fact.shape == model.node(id).outputs[0].fact.shape).then_some(next)
}

/// The node as a [`FusedDense`] and its input, when it is the product of an f32 matrix with a constant one.
fn layer(model: &TypedModel, constants: &Constants, id: usize) -> TractResult<Option<(FusedDense, OutletId)>> {
    let node = model.node(id);
    let Some(product) = node.op_as::<EinSum>().filter(|op| op.q_params.is_none() && node.inputs.len() == 2) else { return Ok(None) };
    let fact = model.outlet_fact(node.inputs[0])?;
    let Some(weight) = constants.get(node.inputs[1]) else { return Ok(None) };
    let f32s = fact.datum_type == f32::datum_type() && weight.datum_type() == f32::datum_type();
    if !f32s || fact.rank() != 2 || weight.rank() != 2 || fact.konst.is_some() {
        return Ok(None);
    }
    let axes = product.axes.to_string();
    let letters: Vec<char> = axes.chars().filter(|c| !",->".contains(*c)).collect();
    // [r, i] by [o, i] or by [i, o].
    let weight = match letters[..] {
        [r, i, o, i2, r2, o2] if (r, i, o) == (r2, i2, o2) => weight,
        [r, i, i2, o, r2, o2] if (r, i, o) == (r2, i2, o2) => (*weight).clone().permute_axes(&[1, 0])?.into_arc_tensor(),
        _ => return Ok(None),
    };
    Ok(Some((FusedDense { weight, bias: None, relu: false }, node.inputs[0])))
}

fn fuse_layer(model: &mut TypedModel, constants: &Constants, id: usize, mut op: FusedDense, input: OutletId) -> TractResult<()> {
    let mut last = id;
    let o = op.weight.shape()[0];
    if let Some((next, other)) = only_successor(model, last, "Add")
        && let Some(bias) = constants.get(other).filter(|bias| bias.len() == o && bias.datum_type() == f32::datum_type())
        && model.node(next).outputs[0].fact.shape == model.node(last).outputs[0].fact.shape
    {
        op.bias = Some((*bias).clone().into_shape(&[o])?.into_arc_tensor());
        last = next;
    }
    if let Some(next) = relu(model, constants, last) {
        op.relu = true;
        last = next;
    }
    replace(model, last, op, &[input])
}

/// The node as a [`FusedConv`] and its input, when it is a convolution of f32 maps with constant weights, equal padding and stride.
fn convolution(model: &TypedModel, constants: &Constants, id: usize) -> TractResult<Option<(FusedConv, OutletId)>> {
    let node = model.node(id);
    let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
    let pool = &conv.pool_spec;
    let (Some(weight), Some(bias)) = (constants.get(node.inputs[1]), constants.get(node.inputs[2])) else { return Ok(None) };
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
    // Of groups of one channel (depthwise), tract's own operation makes more.
    let grouped = conv.group > 1 && channels / conv.group < 4;
    if grouped || !(plain && square && f32s && weight.rank() == 4 && (bias.len() == channels || bias.len() == 1)) {
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
    Ok(Some((FusedConv { weight, kernels: None, bias, stride, padding, groups, add: false, relu: false }, node.inputs[0])))
}

/// The values of a graph's outlets that are constant, if only through operations on constants.
struct Constants(HashMap<OutletId, Arc<Tensor>>);

/// Larger results of operations on constants stay with tract.
const CONSTANT_BYTES: usize = 256 << 20;

impl Constants {
    /// Each operation is looked at once, after those that it reads.
    fn of(model: &TypedModel, order: &[usize]) -> TractResult<Self> {
        let mut known = HashMap::<OutletId, Arc<Tensor>>::new();
        for node in order.iter().map(|id| model.node(*id)) {
            let outlets = (0..node.outputs.len()).map(|slot| OutletId::new(node.id, slot));
            for (outlet, fact) in outlets.clone().zip(&node.outputs) {
                if let Some(value) = &fact.fact.konst {
                    known.insert(outlet, value.clone());
                }
            }
            let bytes =
                |fact: &TypedFact| fact.shape.as_concrete().map(|shape| shape.iter().product::<usize>() * fact.datum_type.size_of());
            let small = node.outputs.iter().all(|output| bytes(&output.fact).is_some_and(|bytes| bytes <= CONSTANT_BYTES));
            if node.inputs.is_empty() || !small || outlets.clone().all(|outlet| known.contains_key(&outlet)) {
                continue;
            }
            let inputs = node.inputs.iter().map(|input| known.get(input).map(|value| value.clone().into_tvalue())).collect();
            let Some(inputs) = inputs else { continue };
            if let Ok(Some(outputs)) = node.op.eval_out_of_plan(inputs) {
                known.extend(outlets.zip(outputs.into_iter().map(|value| value.into_arc_tensor())));
            }
        }
        Ok(Self(known))
    }

    fn get(&self, outlet: OutletId) -> Option<Arc<Tensor>> {
        self.0.get(&outlet).cloned()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::tract_core::ops::math::{add, neg};

    /// A file may be small and its graph deep, or have as many paths as there are atoms.
    #[test]
    fn constants_cost_one_look_at_each_operation() {
        let mut model = TypedModel::default();
        let mut deep = model.add_source("x", f32::fact([1000])).unwrap();
        for i in 0..20_000 {
            deep = model.wire_node(format!("deep {i}"), neg(), &[deep]).unwrap()[0];
        }
        let mut wide = model.add_const("c", Tensor::zero::<f32>(&[1000]).unwrap()).unwrap();
        for i in 0..64 {
            wide = model.wire_node(format!("wide {i}"), add(), &[wide, wide]).unwrap()[0];
        }
        let end = model.wire_node("end", add(), &[deep, wide]).unwrap();
        model.select_output_outlets(&end).unwrap();
        let constants = Constants::of(&model, &model.eval_order().unwrap()).unwrap();
        assert!(constants.get(deep).is_none() && constants.get(end[0]).is_none());
        assert_eq!(constants.get(wide).unwrap().shape(), [1000]);
    }

    #[test]
    fn kept_weights_are_shared_bounded_and_let_go() {
        let kept = Kept::default();
        // Channels that fill panels on every CPU: 24 weights of 8.3 MB fit.
        let weights: Vec<_> = (0..25).map(|_| Tensor::zero::<f32>(&[240, 240, 3, 3]).unwrap().into_arc_tensor()).collect();
        let kernels: Vec<_> = weights.iter().map(|weight| kept.kernels(weight, 1, 1, 1).unwrap()).collect();
        let bytes = kernels.iter().flatten().map(|kernels| kernels.bytes()).sum::<usize>();
        assert!(kernels[23].is_some() && kernels[24].is_none() && bytes <= KEPT_BYTES, "{bytes}");
        assert!(Arc::ptr_eq(kept.kernels(&weights[0], 1, 1, 1).unwrap().as_ref().unwrap(), kernels[0].as_ref().unwrap()));
        drop(weights);
        let another = Tensor::zero::<f32>(&[64, 64, 3, 3]).unwrap().into_arc_tensor();
        assert!(kept.kernels(&another, 1, 1, 1).unwrap().is_some());
        // By another step they are other ones.
        assert!(kept.kernels(&another, 2, 1, 1).unwrap().is_some_and(|kernels| kernels.bytes() < 36 * 64 * 64 * 4));
        assert_eq!(kept.weights.lock().unwrap().len(), 1);
        drop(another);
        let last = Tensor::zero::<f32>(&[64, 64, 3, 3]).unwrap().into_arc_tensor();
        assert!(kept.kernels(&last, 1, 1, 1).unwrap().is_some());
        assert_eq!(kept.weights.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_map_that_only_the_sum_reads_becomes_the_sum() {
        let tensor = |shape: &[usize], scale: f32| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| ((i * 37 % 101) as f32 - 50.0) * scale).collect();
            Tensor::from_shape(shape, &values).unwrap()
        };
        let weight = tensor(&[6, 4, 1, 1], 0.02).into_arc_tensor();
        let op = FusedConv { weight, kernels: None, bias: None, stride: 1, padding: 0, groups: 1, add: true, relu: true };
        let (x, add) = (tensor(&[2, 4, 5, 3], 0.1).into_tvalue(), tensor(&[2, 6, 5, 3], 0.3));
        let read_elsewhere = add.clone().into_tvalue();
        let run = |add: TValue| op.eval_out_of_plan(tvec!(x.clone(), add)).unwrap().unwrap().remove(0);
        let at = |tensor: &Tensor| tensor.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().as_ptr();
        let expected = run(read_elsewhere.clone());
        assert_eq!(*read_elsewhere, add);
        let memory = at(&add);
        let found = run(add.into_tvalue());
        assert_eq!(*found, *expected);
        assert_eq!(at(&found), memory);
        recycled::clear();
    }
}
