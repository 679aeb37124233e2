//! The three graphs behind one trait, so that the same pipeline and the same test cases run on tract, candle and a GPU.

use crate::enlarge::Enlargement;
use crate::fused::Kept;
use crate::tail::Tail;
use crate::tract::{Cut, Engine, Plan, Plans, before_enlargement, cut, graph_error, optimized, parse, values_of};
use omnilabel_bundle::{Bundle, GRAPHS, NetworkSpec, RoiSpec};
use std::ops::Range;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{dims, format_err};
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::{DimLike, ToDim};

const BACKBONE: &str = GRAPHS[0];
const BOX_HEAD: &str = GRAPHS[1];
const KEYPOINT_HEAD: &str = GRAPHS[2];

/// Why inference failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The bundle was refused.
    #[error(transparent)]
    Bundle(#[from] omnilabel_bundle::BundleError),
    /// A graph did not load or run, or gave an output of another shape than the manifest says.
    #[error("{graph}: {message}")]
    Graph {
        /// File of the graph.
        graph: String,
        /// What is wrong.
        message: String,
    },
    /// A golden frame could not be read.
    #[error(transparent)]
    Frame(#[from] omnilabel_detect::frame::FrameError),
    /// A GPU is missing, or failed.
    #[error(transparent)]
    Gpu(#[from] omnilabel_gpu::GpuError),
    /// A request that this model cannot serve.
    #[error("{0}")]
    Request(String),
    /// A top-down model without anything that finds people.
    #[error(
        "`{model}` is a top-down pose model: it labels people in boxes and finds none itself; give it a detector (wrap it with --detector \
         BUNDLE, or say --detector or `[teacher] detector` where it runs) or boxes (--boxes)"
    )]
    NeedsBoxes {
        /// The model's name.
        model: String,
    },
}

/// Values, channels, rows and columns of one level.
pub type FeatureLevel = (Vec<f32>, usize, usize, usize);

/// Which rows and columns are needed of an image's level, given the indices of both and the level's rows and columns.
pub type Needed<'a> = &'a (dyn Fn(usize, usize, usize, usize) -> (Range<usize>, Range<usize>) + Sync);

/// The backbone's outputs, one tensor per level.
#[derive(Clone, Debug, Default)]
pub struct BackboneOutput {
    /// Per level that RoIs are pooled from; further levels are not looked at.
    pub features: Vec<FeatureLevel>,
    /// `(values [a, rows, columns], rows, columns)` per level.
    pub objectness: Vec<(Vec<f32>, usize, usize)>,
    /// `[4a, rows, columns]` per level.
    pub deltas: Vec<Vec<f32>>,
}

/// The three graphs of a bundle.
pub trait Graphs: Send + Sync {
    /// Body, FPN and RPN head on one image `[3, rows, columns]`.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError>;
    /// The features of [`Graphs::backbone`] for views whose boxes are known, `[n, 3, rows, columns]`, of each. Of each level, only what
    /// `needed` names is looked at.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn features(&self, images: &[f32], rows: usize, columns: usize, needed: Needed<'_>) -> Result<Vec<Vec<FeatureLevel>>, RuntimeError> {
        let _ = needed;
        let one = (3 * rows * columns).max(1);
        images.chunks_exact(one).map(|image| Ok(self.backbone(image, rows, columns)?.features)).collect()
    }
    /// Class logits `[r, 2]` and box deltas `[r, 8]` of `r` pooled RoIs.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError>;
    /// Heatmaps `[r, k, m, m]` of `r` pooled RoIs.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError>;
    /// How the maps of [`Graphs::keypoint_maps`] become heatmaps, where they are not heatmaps already.
    fn enlargement(&self) -> Option<&Enlargement> {
        None
    }
    /// The maps `[r, k, from, from]` of `r` pooled RoIs of which [`Graphs::enlargement`] makes their heatmaps.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    fn keypoint_maps(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        self.keypoint_head(rois, r)
    }
}

/// The graphs on tract. The backbone is optimised for each input shape it meets, and the plans of the latest shapes are kept. The
/// heads take any number of RoIs at once.
pub struct TractGraphs {
    backbone: Backbone,
    box_head: Head,
    keypoint_head: Head,
    enlargement: Option<Enlargement>,
    engine: Engine,
}

struct Backbone {
    plans: Plans,
    /// Of the features alone, without the convolutions that end them.
    features: Plans<Cut>,
    levels: usize,
    roi_levels: usize,
    anchors: usize,
}

struct Head {
    file: &'static str,
    plan: Plan,
    /// Of one RoI.
    input: [usize; 3],
    /// Of one RoI, per output.
    outputs: Vec<Vec<usize>>,
}

impl TractGraphs {
    /// Loads the three graphs; `threads` workers (at least 1) share the matrix products.
    ///
    /// # Errors
    /// [`RuntimeError::Graph`].
    pub fn load(bundle: &Bundle, threads: usize) -> Result<Self, RuntimeError> {
        let network = rcnn(bundle)?;
        let (levels, roi_levels) = (network.levels.len(), network.roi_levels as usize);
        let each = |name: &'static str, n: usize| (0..n).map(move |level| format!("{name}_{level}"));
        let features: Vec<_> = each("features", roi_levels).collect();
        let names: Vec<_> = features.iter().cloned().chain(each("objectness", levels)).chain(each("deltas", levels)).collect();
        let whole = parse(&bundle.path(BACKBONE), &names).map_err(graph_error(BACKBONE))?;
        // Shares the weights.
        let mut body = whole.clone();
        body.select_outputs_by_name(&features).map_err(graph_error(BACKBONE))?;
        let kept = Arc::<Kept>::default();
        let backbone = Backbone {
            // All that weighs is in convolutions.
            plans: Plans::new(whole, optimized, &kept, 0),
            features: Plans::new(body, cut, &kept, 0),
            levels,
            roi_levels,
            anchors: network.aspect_ratios.len(),
        };
        let (k, side) = (bundle.skeleton().len(), network.heatmap_side as usize);
        let box_outputs = [("class_logits", vec![2]), ("box_deltas", vec![8])];
        let whole = |model, kept: &Kept| Ok((optimized(model, kept)?, None));
        let (box_head, _) = Head::load(bundle, BOX_HEAD, network.box_roi, &box_outputs, whole)?;
        let outputs = [("heatmaps", vec![k, side, side])];
        let (mut keypoint_head, enlargement) = Head::load(bundle, KEYPOINT_HEAD, network.keypoint_roi, &outputs, before_enlargement)?;
        if let Some(enlargement) = &enlargement {
            if enlargement.side() != side {
                let message = format!("heatmaps of {0} x {0} cells, the manifest says {side} x {side}", enlargement.side());
                return Err(RuntimeError::Graph { graph: KEYPOINT_HEAD.to_owned(), message });
            }
            keypoint_head.outputs = vec![vec![k, enlargement.from(), enlargement.from()]];
        }
        Ok(Self { backbone, box_head, keypoint_head, enlargement, engine: Engine::new(threads)? })
    }

    /// The workers.
    pub fn pool(&self) -> &Arc<rayon::ThreadPool> {
        self.engine.pool()
    }
}

impl Graphs for TractGraphs {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        let input = Tensor::from_shape(&[1, 3, rows, columns], image).map_err(graph_error(BACKBONE))?;
        let plan = self.backbone.plans.plan(1, rows, columns).map_err(graph_error(BACKBONE))?;
        let outputs = self.engine.run(BACKBONE, &plan, input)?;
        let mut outputs = outputs.iter();
        let mut out = BackboneOutput::default();
        for level in 0..self.backbone.roi_levels {
            let (values, [channels, rows, columns]) = map_of(outputs.next(), &format!("features_{level}"))?;
            out.features.push((values, channels, rows, columns));
        }
        let mut shapes = Vec::new();
        for level in 0..self.backbone.levels {
            let (values, shape) = map_of(outputs.next(), &format!("objectness_{level}"))?;
            if shape[0] != self.backbone.anchors {
                return Err(shape_error(&format!("objectness_{level}"), &shape, "one channel per aspect ratio"));
            }
            shapes.push(shape);
            out.objectness.push((values, shape[1], shape[2]));
        }
        for (level, shape) in shapes.into_iter().enumerate() {
            let (values, found) = map_of(outputs.next(), &format!("deltas_{level}"))?;
            if found != [4 * shape[0], shape[1], shape[2]] {
                return Err(shape_error(&format!("deltas_{level}"), &found, "four channels per anchor on the grid of objectness"));
            }
            out.deltas.push(values);
        }
        Ok(out)
    }

    fn features(&self, images: &[f32], rows: usize, columns: usize, needed: Needed<'_>) -> Result<Vec<Vec<FeatureLevel>>, RuntimeError> {
        let n = images.len() / (3 * rows * columns).max(1);
        let input = Tensor::from_shape(&[n, 3, rows, columns], images).map_err(graph_error(BACKBONE))?;
        let cut = self.backbone.features.plan(n, rows, columns).map_err(graph_error(BACKBONE))?;
        let outputs = self.engine.run(BACKBONE, &cut.plan, input)?;
        let mut found = vec![Vec::new(); n];
        let mut outputs = &outputs[..];
        for (level, tail) in cut.tails.iter().enumerate() {
            let name = format!("features_{level}");
            let (maps, rest) =
                outputs.split_at_checked(tail.as_ref().map_or(1, Tail::inputs)).ok_or_else(|| shape_error(&name, &[], "an output"))?;
            outputs = rest;
            for (image, found) in found.iter_mut().enumerate() {
                let map = |value: &'_ TValue| match *value.shape() {
                    [images, c, h, w] if images == n => Ok([c, h, w]),
                    _ => Err(shape_error(&name, value.shape(), &format!("[{n}, c, h, w]"))),
                };
                let shapes = maps.iter().map(map).collect::<Result<Vec<_>, _>>()?;
                let part = || -> TractResult<Vec<f32>> {
                    let views = maps.iter().map(|value| value.try_as_plain_ram()).collect::<TractResult<Vec<_>>>()?;
                    let mut maps = Vec::new();
                    for (view, shape) in views.iter().zip(&shapes) {
                        let one = shape.iter().product::<usize>();
                        maps.push((&view.as_slice::<f32>()?[image * one..][..one], *shape));
                    }
                    let Some(tail) = tail else { return Ok(maps[0].0.to_vec()) };
                    let [_, h, w] = shapes[0];
                    let (down, across) = needed(image, level, h, w);
                    tail.part(&maps, down, across)
                };
                let part = self.engine.work(part).map_err(graph_error(BACKBONE))?;
                let [_, h, w] = shapes[0];
                let channels = part.len() / (h * w).max(1);
                found.push((part, channels, h, w));
            }
        }
        Ok(found)
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        if r == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut outputs = self.head(&self.box_head, &rois, r)?.into_iter();
        Ok((outputs.next().unwrap_or_default(), outputs.next().unwrap_or_default()))
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        let maps = self.keypoint_maps(rois, r)?;
        let Some(enlargement) = &self.enlargement else { return Ok(maps) };
        Ok(maps.chunks_exact(enlargement.from().pow(2)).flat_map(|map| enlargement.enlarge(map)).collect())
    }

    fn enlargement(&self) -> Option<&Enlargement> {
        self.enlargement.as_ref()
    }

    fn keypoint_maps(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        let one: usize = self.keypoint_head.input.iter().product();
        if rois.len() != r * one {
            let message = format!("{} values are not {r} RoIs of {one}", rois.len());
            return Err(RuntimeError::Graph { graph: KEYPOINT_HEAD.to_owned(), message });
        }
        if r == 0 {
            return Ok(Vec::new());
        }
        Ok(self.head(&self.keypoint_head, &rois, r)?.into_iter().next().unwrap_or_default())
    }
}

impl TractGraphs {
    fn head(&self, head: &Head, rois: &[f32], r: usize) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let [c, rows, columns] = head.input;
        let input = Tensor::from_shape(&[r, c, rows, columns], rois).map_err(graph_error(head.file))?;
        let outputs = self.engine.run(head.file, &head.plan, input)?;
        let check = |(value, expected): (&TValue, &Vec<usize>)| {
            let (values, shape) = values_of(value).map_err(graph_error(head.file))?;
            if shape[..1] != [r] || shape[1..] != expected[..] {
                return Err(RuntimeError::Graph {
                    graph: head.file.to_owned(),
                    message: format!("an output is {shape:?}, expected {r} times {expected:?}"),
                });
            }
            Ok(values)
        };
        outputs.iter().zip(&head.outputs).map(check).collect()
    }
}

impl Head {
    fn load(
        bundle: &Bundle,
        file: &'static str,
        roi: RoiSpec,
        outputs: &[(&str, Vec<usize>)],
        build: impl Fn(InferenceModel, &Kept) -> TractResult<(Plan, Option<Enlargement>)>,
    ) -> Result<(Self, Option<Enlargement>), RuntimeError> {
        let names: Vec<String> = outputs.iter().map(|(name, _)| (*name).to_owned()).collect();
        let load = || -> TractResult<(Plan, Option<Enlargement>, [usize; 3])> {
            let mut model = parse(&bundle.path(file), &names)?;
            let channels = model.input_fact(0)?.shape.dim(1).and_then(|dim| dim.concretize()).and_then(|dim| dim.to_usize().ok());
            let channels = channels.ok_or_else(|| format_err!("the input states no number of channels"))?;
            let side = roi.resolution as usize;
            let n = model.symbols.sym("rois").to_dim();
            model.set_input_fact(0, f32::fact(dims!(n, channels, side, side)).into())?;
            let (plan, enlargement) = build(model, &Kept::default())?;
            Ok((plan, enlargement, [channels, side, side]))
        };
        let (plan, enlargement, input) = load().map_err(graph_error(file))?;
        Ok((Self { file, plan, input, outputs: outputs.iter().map(|(_, shape)| shape.clone()).collect() }, enlargement))
    }
}

/// What lies between the graphs of a keypoint R-CNN.
fn rcnn(bundle: &Bundle) -> Result<&NetworkSpec, RuntimeError> {
    let name = &bundle.manifest().name;
    let wrapped = || RuntimeError::Request(format!("`{name}` wraps a pose model, expected a keypoint R-CNN of three graphs"));
    bundle.manifest().network.rcnn().ok_or_else(wrapped)
}

/// The values of a `[1, c, h, w]` output of the backbone.
fn map_of(value: Option<&TValue>, name: &str) -> Result<(Vec<f32>, [usize; 3]), RuntimeError> {
    let value = value.ok_or_else(|| shape_error(name, &[], "an output"))?;
    let (values, shape) = values_of(value).map_err(graph_error(BACKBONE))?;
    match shape[..] {
        [1, c, h, w] => Ok((values, [c, h, w])),
        _ => Err(shape_error(name, &shape, "[1, c, h, w]")),
    }
}

fn shape_error(name: &str, shape: &[usize], expected: &str) -> RuntimeError {
    RuntimeError::Graph { graph: BACKBONE.to_owned(), message: format!("{name} is {shape:?}, expected {expected}") }
}
