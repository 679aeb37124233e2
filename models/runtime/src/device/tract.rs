//! The graphs of a bundle on tract for a device: what GPU runtimes have no kernel for is taken out of them before they are prepared.
//!
//! - A strided slice (`P6`) becomes a reshape and a slice.
//! - A graph with a max-pool (a ResNet's stem) is cut there: tract runs what comes before and what comes after, and our kernel pools
//!   between the two.

use super::{BackboneOn, DeviceGraphs};
use crate::RuntimeError;
use crate::tract::{graph_error, parse, values_of};
use omnilabel_bundle::{Bundle, GRAPHS};
use omnilabel_gpu::ops::{self, Features, MapOn};
use omnilabel_gpu::{Array, Device};
use std::sync::{Arc, Mutex, PoisonError};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Pad, PadMode, Slice};
use tract_onnx::tract_core::ops::cnn::MaxPool;
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::source::TypedSource;

/// RoIs that the keypoint head takes at once: shapes are fixed, for a runtime sizes its kernels by them.
const KEYPOINT_BATCHES: [usize; 3] = [1, 4, 16];

/// A plan per input shape, with and without the RPN, holds its own copy of the backbone's weights in the device's memory: as many are kept as
/// fit, within limits.
const PLAN_BYTES: u64 = 2 << 30;
const MIN_PLANS: u64 = 4;
const MAX_PLANS: u64 = 64;

/// A graph's outputs and their shapes.
pub type Outputs<D> = Vec<(Array<D, f32>, TVec<usize>)>;

/// What runs tract's models on a device.
pub trait Runner<D: Device>: Send + Sync {
    /// A model made ready.
    type Plan: Send + Sync;

    /// Makes a model with fixed shapes ready.
    ///
    /// # Errors
    /// What tract says.
    fn prepare(&self, model: TypedModel) -> TractResult<Self::Plan>;

    /// Memory for an input.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn input(&self, device: &D, values: usize) -> Result<Array<D, f32>, RuntimeError> {
        Ok(Array::zeros(device, values)?)
    }

    /// Runs a model on one input of `shape`, in memory from [`Runner::input`].
    ///
    /// # Errors
    /// What tract says.
    fn run(&self, device: &D, plan: &Self::Plan, input: &Array<D, f32>, shape: &[usize]) -> TractResult<Outputs<D>>;
}

/// tract on the CPU, whatever the device: everything goes down and up again. What remains is the way graphs are cut.
pub struct OnCpu;

impl<D: Device> Runner<D> for OnCpu {
    type Plan = Arc<TypedRunnableModel>;

    fn prepare(&self, model: TypedModel) -> TractResult<Self::Plan> {
        model.into_optimized()?.into_runnable()
    }

    fn run(&self, device: &D, plan: &Self::Plan, input: &Array<D, f32>, shape: &[usize]) -> TractResult<Outputs<D>> {
        let input = Tensor::from_shape(shape, &input.to_vec(device)?)?;
        let outputs = plan.run(tvec!(input.into()))?;
        let up = |value: &TValue| {
            let (values, shape) = values_of(value)?;
            Ok((Array::from_slice(device, &values)?, shape.into()))
        };
        outputs.iter().map(up).collect()
    }
}

/// The three graphs of a bundle.
pub struct DeviceTract<D: Device, R: Runner<D>> {
    runner: R,
    whole: InferenceModel,
    /// Without the RPN.
    body: InferenceModel,
    plans: Mutex<Plans<R::Plan>>,
    max_plans: usize,
    levels: usize,
    roi_levels: usize,
    box_head: Head<R::Plan>,
    /// Of each of [`KEYPOINT_BATCHES`].
    keypoint_heads: Vec<Head<R::Plan>>,
}

/// Whether with the RPN, and rows and columns of the input; the latest used last.
type Plans<P> = Vec<((bool, usize, usize), Arc<Parts<P>>)>;

/// A graph of one input and one or two parts.
struct Parts<P> {
    first: P,
    rest: Option<(Pool, P)>,
}

/// A max-pool of maps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pool {
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Channels, rows, columns.
    input: [usize; 3],
    output: [usize; 3],
}

struct Head<P> {
    file: &'static str,
    plan: P,
    input: [usize; 4],
    /// Values per RoI.
    outputs: Vec<usize>,
}

impl<D: Device, R: Runner<D>> DeviceTract<D, R> {
    /// Loads the three graphs.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`], and [`RuntimeError::Request`] for a wrapped pose model.
    pub fn load(bundle: &Bundle, runner: R) -> Result<Self, RuntimeError> {
        let manifest = bundle.manifest();
        let wrapped = || RuntimeError::Request(format!("`{}` wraps a pose model, which runs on the CPU only", manifest.name));
        let network = manifest.network.rcnn().ok_or_else(wrapped)?;
        let (levels, roi_levels) = (network.levels.len(), network.roi_levels as usize);
        let each = |name: &'static str, n: usize| (0..n).map(move |level| format!("{name}_{level}"));
        let names: Vec<_> = each("features", roi_levels).chain(each("objectness", levels)).chain(each("deltas", levels)).collect();
        let weights = manifest.files.get(GRAPHS[0]).map_or(0, |file| file.bytes);
        let (k, side) = (bundle.skeleton().len(), network.heatmap_side as usize);
        let head = |file: &'static str, n: usize, roi: u32, outputs: &[(&str, usize)]| {
            let (names, sizes): (Vec<String>, Vec<usize>) = outputs.iter().map(|&(name, size)| (name.to_owned(), size)).unzip();
            let load = || -> TractResult<Head<R::Plan>> {
                let mut model = parse(&bundle.path(file), &names)?;
                let channels = model.input_fact(0)?.shape.dim(1);
                let channels = tract_onnx::tract_hir::infer::Factoid::concretize(&channels.context("the input has a shape of one axis")?);
                let channels = channels.context("the input states no number of channels")?.to_usize()?;
                let input = [n, channels, roi as usize, roi as usize];
                model.set_input_fact(0, f32::fact(input).into())?;
                let plan = runner.prepare(without_downsamples(model.into_typed()?.into_decluttered()?)?)?;
                Ok(Head { file, plan, input, outputs: sizes })
            };
            load().map_err(graph_error(file))
        };
        let proposals = (network.rpn.post_nms_top_n as usize).max(1);
        let box_head = head(GRAPHS[1], proposals, network.box_roi.resolution, &[("class_logits", 2), ("box_deltas", 8)])?;
        let keypoint_head = |n: usize| head(GRAPHS[2], n, network.keypoint_roi.resolution, &[("heatmaps", k * side * side)]);
        let keypoint_heads = KEYPOINT_BATCHES.into_iter().map(keypoint_head).collect::<Result<_, _>>()?;
        let whole = parse(&bundle.path(GRAPHS[0]), &names).map_err(graph_error(GRAPHS[0]))?;
        // Shares the weights.
        let mut body = whole.clone();
        body.select_outputs_by_name(&names[..roi_levels]).map_err(graph_error(GRAPHS[0]))?;
        Ok(Self {
            whole,
            body,
            plans: Mutex::new(Vec::new()),
            max_plans: (PLAN_BYTES / weights.max(1)).clamp(MIN_PLANS, MAX_PLANS) as usize,
            levels,
            roi_levels,
            box_head,
            keypoint_heads,
            runner,
        })
    }

    fn plan(&self, rpn: bool, rows: usize, columns: usize) -> TractResult<Arc<Parts<R::Plan>>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = plans.iter().position(|(key, _)| *key == (rpn, rows, columns)) {
            plans[at..].rotate_left(1);
            return Ok(plans[plans.len() - 1].1.clone());
        }
        let mut model = if rpn { &self.whole } else { &self.body }.clone();
        model.set_input_fact(0, f32::fact([1, 3, rows, columns]).into())?;
        let model = without_downsamples(model.into_typed()?.into_decluttered()?)?;
        let plan = match cut_at_pool(&model)? {
            Some((first, pool, rest)) => Parts { first: self.runner.prepare(first)?, rest: Some((pool, self.runner.prepare(rest)?)) },
            None => Parts { first: self.runner.prepare(model)?, rest: None },
        };
        if plans.len() >= self.max_plans {
            plans.remove(0);
        }
        let plan = Arc::new(plan);
        plans.push(((rpn, rows, columns), plan.clone()));
        Ok(plan)
    }

    fn run_backbone(&self, rpn: bool, device: &D, image: &Array<D, f32>, [rows, columns]: [usize; 2]) -> TractResult<Outputs<D>> {
        let plan = self.plan(rpn, rows, columns)?;
        let outputs = self.runner.run(device, &plan.first, image, &[1, 3, rows, columns])?;
        let Some((pool, rest)) = &plan.rest else { return Ok(outputs) };
        let (map, shape) = outputs.first().context("nothing to pool")?;
        ensure!(shape[1..] == pool.input, "{shape:?} is to be pooled, expected {:?}", pool.input);
        let [channels, rows, columns] = pool.output;
        let pooled = self.runner.input(device, channels * rows * columns)?;
        ops::max_pool(device, map, pool.input, (pool.kernel, pool.stride, pool.padding), &pooled, (rows, columns))?;
        self.runner.run(device, rest, &pooled, &[1, channels, rows, columns])
    }

    fn features_of(&self, outputs: &mut impl Iterator<Item = OutputOn<D>>) -> Result<Features<D>, RuntimeError> {
        let mut features = Features { maps: Vec::new(), channels: 0 };
        for level in 0..self.roi_levels {
            let (data, [channels, rows, columns]) = map_of(outputs.next(), "features", level)?;
            if level > 0 && channels != features.channels {
                let message = format!("features_{level} has {channels} channels, features_0 has {}", features.channels);
                return Err(RuntimeError::Graph { graph: GRAPHS[0].to_owned(), message });
            }
            features.channels = channels;
            features.maps.push(MapOn { data, rows, columns });
        }
        Ok(features)
    }

    fn run_head(&self, device: &D, head: &Head<R::Plan>, rois: &Array<D, f32>, r: usize) -> Result<Vec<Array<D, f32>>, RuntimeError> {
        let refuse = |message: String| RuntimeError::Graph { graph: head.file.to_owned(), message };
        if r != head.input[0] || rois.len() != head.input.iter().product::<usize>() {
            return Err(refuse(format!("{r} RoIs of {} values in all, expected {:?}", rois.len(), head.input)));
        }
        let outputs = self.runner.run(device, &head.plan, rois, &head.input).map_err(graph_error(head.file))?;
        let check = |((values, shape), one): ((Array<D, f32>, TVec<usize>), &usize)| {
            if shape.first() == Some(&r) && values.len() == r * one {
                return Ok(values);
            }
            Err(refuse(format!("an output is {shape:?}, expected {one} values for each of {r} RoIs")))
        };
        outputs.into_iter().zip(&head.outputs).map(check).collect()
    }
}

impl<D: Device, R: Runner<D>> DeviceGraphs<D> for DeviceTract<D, R> {
    fn input(&self, device: &D, values: usize) -> Result<Array<D, f32>, RuntimeError> {
        self.runner.input(device, values)
    }

    fn backbone(&self, device: &D, image: Array<D, f32>, rows: usize, columns: usize) -> Result<BackboneOn<D>, RuntimeError> {
        let outputs = self.run_backbone(true, device, &image, [rows, columns]).map_err(graph_error(GRAPHS[0]))?;
        let mut outputs = outputs.into_iter();
        let features = self.features_of(&mut outputs)?;
        let mut objectness = Vec::new();
        for level in 0..self.levels {
            let (values, [_, rows, columns]) = map_of(outputs.next(), "objectness", level)?;
            objectness.push((values, rows, columns));
        }
        let deltas = (0..self.levels).map(|level| Ok(map_of(outputs.next(), "deltas", level)?.0)).collect::<Result<_, RuntimeError>>()?;
        Ok(BackboneOn { features, objectness, deltas })
    }

    fn features(&self, device: &D, image: Array<D, f32>, rows: usize, columns: usize) -> Result<Features<D>, RuntimeError> {
        let outputs = self.run_backbone(false, device, &image, [rows, columns]).map_err(graph_error(GRAPHS[0]))?;
        self.features_of(&mut outputs.into_iter())
    }

    fn box_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<[Array<D, f32>; 2], RuntimeError> {
        self.run_head(device, &self.box_head, &rois, r)?.try_into().map_err(|found: Vec<_>| RuntimeError::Graph {
            graph: GRAPHS[1].to_owned(),
            message: format!("{} outputs, expected 2", found.len()),
        })
    }

    fn keypoint_batches(&self) -> &[usize] {
        &KEYPOINT_BATCHES
    }

    fn keypoint_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<Array<D, f32>, RuntimeError> {
        let missing = || RuntimeError::Graph { graph: GRAPHS[2].to_owned(), message: "no output".to_owned() };
        let sizes = || RuntimeError::Request(format!("a keypoint head for {r} RoIs at once, there are those for {KEYPOINT_BATCHES:?}"));
        let head = self.keypoint_heads.iter().find(|head| head.input[0] == r).ok_or_else(sizes)?;
        self.run_head(device, head, &rois, r)?.into_iter().next().ok_or_else(missing)
    }
}

/// An output of the backbone.
type OutputOn<D> = (Array<D, f32>, TVec<usize>);

fn map_of<D: Device>(output: Option<OutputOn<D>>, what: &str, level: usize) -> Result<(Array<D, f32>, [usize; 3]), RuntimeError> {
    let message = match output {
        Some((values, shape)) => match shape[..] {
            [1, c, h, w] => return Ok((values, [c, h, w])),
            _ => format!("{what}_{level} is {shape:?}, expected [1, c, h, w]"),
        },
        None => format!("{what}_{level} is missing"),
    };
    Err(RuntimeError::Graph { graph: GRAPHS[0].to_owned(), message })
}

/// Strided slices as what every runtime has, and max-pools of single cells, which are strided slices too (torchvision's P6).
fn without_downsamples(mut model: TypedModel) -> TractResult<TypedModel> {
    let slice = |_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &Downsample| {
        rule_if!(op.stride > 0);
        every(model, node, name, &[(op.axis, op.stride.unsigned_abs(), op.modulo)])
    };
    let pool = |_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &MaxPool| {
        let spec = &op.pool_spec;
        rule_if!(op.with_index_outputs.is_none() && spec.kernel_shape.iter().all(|&side| side == 1));
        let shape = spec.data_format.shape(&model.outlet_fact(node.inputs[0])?.shape)?;
        let sides = shape.hw_dims().iter().map(|side| Ok(side.to_usize()?)).collect::<TractResult<TVec<usize>>>()?;
        rule_if!(spec.computed_padding(&sides).iter().all(|padding| padding.pad_before == 0));
        let steps = shape.hw_axes().zip(&*spec.strides()).map(|(axis, &stride)| (axis, stride, 0)).collect::<Vec<_>>();
        every(model, node, name, &steps)
    };
    Rewriter::default().with_rule_for("split-downsample", slice).with_rule_for("split-pool", pool).rewrite(&(), &mut model)?;
    Ok(model)
}

/// `node` as every `stride`-th cell from `start` along each axis of its input: pad to a multiple of the stride, split the axis, take
/// the first of each, drop the new axis.
fn every(model: &TypedModel, node: &TypedNode, name: &str, steps: &[(usize, usize, usize)]) -> TractResult<Option<TypedModelPatch>> {
    let fact = model.outlet_fact(node.inputs[0])?;
    let Some(sides) = fact.shape.as_concrete() else { return Ok(None) };
    rule_if!(steps.iter().all(|&(axis, _, start)| start < sides[axis]));
    let mut patch = TypedModelPatch::default();
    let mut wire = tvec!(patch.tap_model(model, node.inputs[0])?);
    for &(axis, stride, start) in steps {
        let count = (sides[axis] - start).div_ceil(stride);
        let whole = count * stride;
        if start > 0 {
            wire = patch.wire_node(format!("{name}.from{axis}"), Slice::new(axis, start, sides[axis]), &wire)?;
        }
        if whole > sides[axis] - start {
            let mut pads = vec![(0, 0); sides.len()];
            pads[axis].1 = whole - (sides[axis] - start);
            let zero = Tensor::zero_scalar_dt(fact.datum_type)?.into_arc_tensor();
            wire = patch.wire_node(format!("{name}.pad{axis}"), Pad::new(pads, PadMode::Constant(zero)), &wire)?;
        }
        let apart = AxisOp::Reshape(axis, tvec!(whole.to_dim()), tvec!(count.to_dim(), stride.to_dim()));
        wire = patch.wire_node(format!("{name}.split{axis}"), apart, &wire)?;
        wire = patch.wire_node(format!("{name}.first{axis}"), Slice::new(axis + 1, 0, 1), &wire)?;
        wire = patch.wire_node(format!("{name}.drop{axis}"), AxisOp::Rm(axis + 1), &wire)?;
    }
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(Some(patch))
}

/// The model before its only max-pool, the pool, and the model after it; none where it has no such pool, or where the pool is not all
/// that the rest hangs on.
fn cut_at_pool(model: &TypedModel) -> TractResult<Option<(TypedModel, Pool, TypedModel)>> {
    let mut pools = model.nodes().iter().filter(|node| node.op_is::<MaxPool>());
    let (Some(node), None) = (pools.next(), pools.next()) else { return Ok(None) };
    let (Some(op), [input]) = (node.op_as::<MaxPool>(), &node.inputs[..]) else { return Ok(None) };
    let (from, to) = (model.outlet_fact(*input)?, &node.outputs[0].fact);
    let (Some(&[1, c, h, w]), Some(&[1, c2, h2, w2])) = (from.shape.as_concrete(), to.shape.as_concrete()) else { return Ok(None) };
    let spec = &op.pool_spec;
    let padding = spec.computed_padding(&[h, w]);
    let square = |values: &[usize]| matches!(values, [a, b] if a == b).then(|| values[0]);
    let (Some(kernel), Some(stride)) = (square(&spec.kernel_shape), square(&spec.strides())) else { return Ok(None) };
    let [rows, columns] = &padding[..] else { return Ok(None) };
    let plain = op.with_index_outputs.is_none()
        && spec.dilations().iter().all(|&d| d == 1)
        && !spec.data_format.c_is_last()
        && spec.data_format.has_n();
    // What is padded after the map is never read: the windows end inside, or the kernel leaves them out.
    if !plain || rows.pad_before != columns.pad_before || from.datum_type != f32::datum_type() {
        return Ok(None);
    }
    let pool = Pool { kernel, stride, padding: rows.pad_before, input: [c, h, w], output: [c2, h2, w2] };
    let mut first = model.clone();
    first.select_output_outlets(&[*input])?;
    first.compact()?;
    let mut rest = model.clone();
    let (id, fact) = (node.id, to.clone());
    rest.nodes[input.node].outputs[input.slot].successors.retain(|inlet| inlet.node != id);
    rest.nodes[id].inputs.clear();
    rest.nodes[id].op = Box::new(TypedSource::new(fact));
    let whole = rest.inputs.clone();
    rest.set_input_outlets(&[OutletId::new(id, 0)])?;
    if rest.eval_order()?.iter().any(|id| whole.iter().any(|input| input.node == *id)) {
        return Ok(None);
    }
    rest.compact()?;
    Ok(Some((first, pool, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};
    use tract_onnx::tract_core::ops::math::add;
    use tract_onnx::tract_core::ops::nn::DataFormat;

    const SIDES: [usize; 2] = [9, 12];

    fn pool(kernel: usize, stride: usize, padding: usize) -> MaxPool {
        let padding = PaddingSpec::Explicit(tvec!(padding; 2), tvec!(padding; 2));
        let (kernel, stride) = (tvec!(kernel; 2), Some(tvec!(stride; 2)));
        MaxPool::new(PoolSpec::new(DataFormat::NCHW, kernel, padding, None, stride, 3, 3), None)
    }

    fn source(model: &mut TypedModel) -> OutletId {
        model.add_source("image", f32::fact([1, 3, SIDES[0], SIDES[1]])).unwrap()
    }

    fn image() -> TVec<TValue> {
        let values: Vec<f32> = (0..3 * SIDES[0] * SIDES[1]).map(|i| (i * 7919 % 101) as f32 - 50.0).collect();
        tvec!(Tensor::from_shape(&[1, 3, SIDES[0], SIDES[1]], &values).unwrap().into())
    }

    fn run(model: &TypedModel, input: TVec<TValue>) -> TVec<TValue> {
        model.clone().into_runnable().unwrap().run(input).unwrap()
    }

    #[test]
    fn strided_slices_give_the_same_from_what_every_runtime_has() {
        let mut model = TypedModel::default();
        let image_of = source(&mut model);
        let odd = model.wire_node("odd", Downsample::new(3, 2, 1), &[image_of]).unwrap();
        let third = model.wire_node("third", Downsample::new(2, 4, 0), &odd).unwrap();
        let cells = model.wire_node("cells", pool(1, 2, 0), &[image_of]).unwrap();
        model.select_output_outlets(&[odd[0], third[0], cells[0]]).unwrap();
        let split = without_downsamples(model.clone()).unwrap();
        assert!(!split.nodes().iter().any(|node| node.op_is::<Downsample>() || node.op_is::<MaxPool>()), "{split}");
        assert_eq!(run(&model, image()), run(&split, image()));
    }

    #[test]
    fn a_graph_is_cut_at_its_pool() {
        let mut model = TypedModel::default();
        let image_of = source(&mut model);
        let doubled = model.wire_node("doubled", add(), &[image_of, image_of]).unwrap();
        let pooled = model.wire_node("pooled", pool(3, 2, 1), &doubled).unwrap();
        let after = model.wire_node("after", add(), &[pooled[0], pooled[0]]).unwrap();
        model.select_output_outlets(&[after[0], pooled[0]]).unwrap();
        let (first, pool, rest) = cut_at_pool(&model).unwrap().unwrap();
        assert_eq!(pool, Pool { kernel: 3, stride: 2, padding: 1, input: [3, 9, 12], output: [3, 5, 6] });
        let before = run(&first, image());
        assert_eq!((before[0].shape(), first.nodes().len()), (&[1, 3, 9, 12][..], 2));
        let whole = run(&model, image());
        assert_eq!(run(&rest, tvec!(whole[1].clone())), whole);
        // What else hangs on the image keeps the graph whole.
        let sum = model.wire_node("sum", Slice::new(2, 0, 5), &[image_of]).unwrap();
        model.select_output_outlets(&[after[0], sum[0]]).unwrap();
        assert!(cut_at_pool(&model).unwrap().is_none());
    }
}
