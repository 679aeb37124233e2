//! What every graph on tract shares: loading, plans for input shapes, workers.

use crate::RuntimeError;
use crate::enlarge::Enlargement;
use crate::fused::{Kept, enlargement, fuse, sharing};
use crate::tail::Tail;
use omnilabel_conv::Threads;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::ensure;

/// A plan holds its own packed copy of the weights that are not of convolutions: as many are kept as fit, within limits.
const PLAN_BYTES: u64 = 512 << 20;
const MIN_PLANS: u64 = 4;
const MAX_PLANS: u64 = 64;

pub(crate) type Plan = Arc<TypedRunnableModel>;

/// Workers that run graphs.
pub(crate) struct Engine {
    pool: Arc<rayon::ThreadPool>,
}

impl Engine {
    /// `threads` workers (at least 1) share the matrix products.
    pub(crate) fn new(threads: usize) -> Result<Self, RuntimeError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|i| format!("tract-{i}")).build();
        let pool = pool.map_err(|e| RuntimeError::Request(format!("a pool of {threads} threads: {e}")))?;
        Ok(Self { pool: Arc::new(pool) })
    }

    pub(crate) fn pool(&self) -> &Arc<rayon::ThreadPool> {
        &self.pool
    }

    /// Does work on graphs: alone on a worker that is at work on its own picture already, else on a worker whose convolutions all share.
    pub(crate) fn work<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        // Were tract's own products shared out, too, a worker that waits for others inside a graph could be handed another graph, and
        // tract's scratch memory, borrowed by the first, would abort the process.
        let run = |threads| multithread_tract_scope(Executor::SingleThread, || sharing(threads, work));
        match self.pool.current_num_threads() {
            many if many > 1 && rayon::current_thread_index().is_none() => self.pool.install(|| run(Threads::All)),
            _ => run(Threads::One),
        }
    }

    pub(crate) fn run(&self, file: &str, plan: &Plan, input: Tensor) -> Result<TVec<TValue>, RuntimeError> {
        self.work(|| plan.run(tvec!(input.into()))).map_err(graph_error(file))
    }
}

/// Makes what runs of a model, and shares what is kept of its weights.
type Build<P> = fn(InferenceModel, &Kept) -> TractResult<P>;

/// Images, rows and columns of an input.
type Shape = (usize, usize, usize);

/// A graph on images, built for each input shape that it meets; what was built for the latest shapes is kept.
pub(crate) struct Plans<P = Plan> {
    model: InferenceModel,
    build: Build<P>,
    kept: Arc<Kept>,
    plans: Mutex<Vec<(Shape, P)>>,
    max: usize,
}

impl<P: Clone> Plans<P> {
    /// `bytes` bounds the size of the weights that each plan copies; graphs of the same weights share what is `kept` of them.
    pub(crate) fn new(model: InferenceModel, build: Build<P>, kept: &Arc<Kept>, bytes: u64) -> Self {
        let max = (PLAN_BYTES / bytes.max(1)).clamp(MIN_PLANS, MAX_PLANS) as usize;
        Self { model, build, kept: kept.clone(), plans: Mutex::new(Vec::new()), max }
    }

    /// The plan for `[n, 3, rows, columns]`.
    pub(crate) fn plan(&self, n: usize, rows: usize, columns: usize) -> TractResult<P> {
        let lock = || self.plans.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut plans = lock();
        if let Some(at) = plans.iter().position(|(shape, _)| *shape == (n, rows, columns)) {
            // The latest used lies last.
            plans[at..].rotate_left(1);
            return Ok(plans[plans.len() - 1].1.clone());
        }
        // Built without the lock, so that other shapes go on; two threads may build the same plan once.
        drop(plans);
        let mut model = self.model.clone();
        model.set_input_fact(0, f32::fact([n, 3, rows, columns]).into())?;
        let plan = (self.build)(model, &self.kept)?;
        let mut plans = lock();
        plans.retain(|(shape, _)| *shape != (n, rows, columns));
        if plans.len() >= self.max {
            plans.remove(0);
        }
        plans.push(((n, rows, columns), plan.clone()));
        Ok(plan)
    }
}

/// The graph with its convolutions and fully connected layers on `omnilabel_conv` and all else as tract does it best.
pub(crate) fn optimized(model: InferenceModel, kept: &Kept) -> TractResult<Plan> {
    let mut model = model.into_typed()?;
    fuse(&mut model, kept)?;
    model.into_decluttered()?.into_optimized()?.into_runnable()
}

/// The same of a graph with one output, without the interpolation that ends it.
pub(crate) fn before_enlargement(model: InferenceModel, kept: &Kept) -> TractResult<(Plan, Option<Enlargement>)> {
    let mut model = model.into_typed()?;
    fuse(&mut model, kept)?;
    let found = enlargement(&model, model.outputs[0]);
    if let Some((_, maps)) = &found {
        model.select_output_outlets(&[*maps])?;
    }
    Ok((model.into_decluttered()?.into_optimized()?.into_runnable()?, found.map(|found| found.0)))
}

/// A graph without the convolutions that end it.
#[derive(Clone)]
pub(crate) struct Cut {
    /// Of each output, what its tail starts from, or itself.
    pub(crate) plan: Plan,
    /// Of each output, what was cut off, if that could be.
    pub(crate) tails: Vec<Option<Tail>>,
}

/// The graph with each output taken before its [`Tail`], where it has one, so that it can be computed in part.
pub(crate) fn cut(model: InferenceModel, kept: &Kept) -> TractResult<Cut> {
    let mut model = model.into_typed()?;
    fuse(&mut model, kept)?;
    let (mut outputs, mut tails) = (Vec::new(), Vec::new());
    for outlet in model.outputs.clone() {
        let (tail, inputs) = Tail::of(&model, outlet).map_or((None, tvec!(outlet)), |(tail, inputs)| (Some(tail), inputs));
        outputs.extend(inputs);
        tails.push(tail);
    }
    model.select_output_outlets(&outputs)?;
    let plan = model.into_decluttered()?.into_optimized()?.into_runnable()?;
    Ok(Cut { plan, tails })
}

/// A graph with one input, and of its outputs those that are named, in their order.
pub(crate) fn parse(path: &Path, outputs: &[String]) -> TractResult<InferenceModel> {
    let onnx = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut model = onnx.model_for_path(path)?;
    ensure!(model.inputs.len() == 1, "{} inputs, expected one", model.inputs.len());
    model.select_outputs_by_name(outputs)?;
    Ok(model)
}

pub(crate) fn values_of(value: &TValue) -> TractResult<(Vec<f32>, Vec<usize>)> {
    Ok((value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(), value.shape().to_vec()))
}

pub(crate) fn graph_error(graph: &str) -> impl Fn(TractError) -> RuntimeError {
    move |e| RuntimeError::Graph { graph: graph.to_owned(), message: told(&e) }
}

/// What tract says, with its causes.
pub(crate) fn told(e: &TractError) -> String {
    format!("{e:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_bundle::GRAPHS;
    use omnilabel_keypoints::label::Thresholds;
    use omnilabel_keypoints::skeleton::Skeleton;
    use omnilabel_rcnn::config::Config;
    use omnilabel_rcnn::export::{ExportMeta, write_bundle_as};
    use omnilabel_rcnn::network::Network;
    use omnilabel_rcnn::params::Precision;

    /// Those of a file in f16, too: each plan would else hold a copy in f32 of its own.
    #[test]
    fn plans_of_other_shapes_share_every_weight() {
        let network = Network::new(Config::nano(17), 5).unwrap();
        let thresholds = Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 };
        let meta = ExportMeta { name: "n".into(), skeleton: Skeleton::coco17(), thresholds, parent: None, dataset_sha256: None, ap: None };
        for precision in [Precision::F32, Precision::F16] {
            let folder = tempfile::tempdir().unwrap();
            write_bundle_as(&network, &meta, folder.path(), precision).unwrap();
            let model = parse(&folder.path().join(GRAPHS[0]), &["features_0".to_owned()]).unwrap();
            let kept = Arc::<Kept>::default();
            let plans = Plans::new(model, optimized, &kept, 0);
            let small = plans.plan(1, 64, 64).unwrap();
            let weights = kept.len();
            let large = plans.plan(1, 64, 96).unwrap();
            assert!(weights > 10 && kept.len() == weights, "{precision:?}: {weights}, then {}", kept.len());
            drop((small, large));
        }
    }
}
