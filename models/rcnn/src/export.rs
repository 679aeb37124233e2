//! Export to a bundle: frozen batch-norm folded, three ONNX graphs, weights as external data in one safetensors file.
//!
//! The transposed convolution is written as a convolution and a pixel shuffle, and P6 as a slice: the GPU runtime has kernels for
//! these. A `resnet` stem's max-pool stays what it is.

pub(crate) mod deconv;
mod graph;

use crate::RcnnError;
use crate::network::{Network, Residual, STEM_POOL};
use crate::params::{Precision, write_tensors_as};
use candle_core::Tensor;
use graph::{ConvAttributes, Dim, Graph, int, ints, string};
use omnilabel_bundle::{Bundle, FORMAT, GRAPHS, Manifest, SkeletonSpec, seal};
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::skeleton::Skeleton;
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;

/// The weights' file inside a bundle.
pub const WEIGHTS: &str = "weights.safetensors";

/// How far the graphs' outputs may be from candle's on any runtime, relative to the largest absolute value of the output: f32 sums
/// of a few thousand products in another order, through about twenty layers.
pub const GRAPH_TOLERANCE: f32 = 1e-4;

/// What the manifest says beside the network.
#[derive(Clone, Debug)]
pub struct ExportMeta {
    /// Name for people.
    pub name: String,
    /// The skeleton.
    pub skeleton: Skeleton,
    /// τ, τ_k, floor.
    pub thresholds: Thresholds,
    /// The model it comes after.
    pub parent: Option<String>,
    /// SHA-256 of the training data.
    pub dataset_sha256: Option<String>,
    /// AP on held-out manual labels.
    pub ap: Option<f64>,
}

/// Writes the graphs, weights and manifest to `dir`, without golden frames: whoever has a runtime adds them and seals again.
/// The folder is made when missing; what else lies in it becomes part of the bundle.
///
/// # Errors
/// See [`RcnnError`].
pub fn write_bundle(network: &Network, meta: &ExportMeta, dir: &Path) -> Result<Bundle, RcnnError> {
    write_bundle_as(network, meta, dir, Precision::F32)
}

/// As [`write_bundle`], with weights of this precision in the file. The graphs compute in f32 all the same: each weight is widened by
/// a Cast, which a runtime does once, when it loads the graph.
///
/// # Errors
/// As [`write_bundle`].
pub fn write_bundle_as(network: &Network, meta: &ExportMeta, dir: &Path, precision: Precision) -> Result<Bundle, RcnnError> {
    let copy;
    let network = if network.params().device().is_cpu() {
        network
    } else {
        copy = network.on_host()?;
        &copy
    };
    let config = network.config();
    if meta.skeleton.len() != config.keypoints {
        let (skeleton, network) = (meta.skeleton.len(), config.keypoints);
        return Err(RcnnError::Config(format!("the skeleton has {skeleton} keypoints, the network {network}")));
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RcnnError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let graphs = [backbone(network)?, box_head(network), keypoint_head(network)?];
    let tensors: Vec<(String, Tensor)> = graphs.iter().flat_map(|graph| graph.weights().to_vec()).collect();
    let weights = dir.join(WEIGHTS);
    write_tensors_as(&weights, &tensors, precision)?;
    let places = places(&weights)?;
    for (graph, file) in graphs.into_iter().zip(GRAPHS) {
        let model = graph.finish(WEIGHTS, precision, |name| places.get(name).copied())?;
        let path = dir.join(file);
        std::fs::write(&path, model.encode_to_vec()).map_err(io(&path))?;
    }
    let manifest = Manifest {
        format: FORMAT,
        name: meta.name.clone(),
        architecture: config.name.clone(),
        skeleton: SkeletonSpec::from(&meta.skeleton),
        input: config.input.clone(),
        network: config.network.clone().into(),
        thresholds: meta.thresholds,
        parent: meta.parent.clone(),
        dataset_sha256: meta.dataset_sha256.clone(),
        ap: meta.ap,
        files: BTreeMap::new(),
        golden: Vec::new(),
    };
    Ok(seal(dir, manifest)?)
}

/// Offset and length in bytes of every tensor inside a safetensors file: 8 bytes of header length, the header, the data.
fn places(path: &Path) -> Result<BTreeMap<String, (u64, u64)>, RcnnError> {
    let bytes = std::fs::read(path).map_err(|source| RcnnError::Io { path: path.to_owned(), source })?;
    let damaged = |error: safetensors::SafeTensorError| RcnnError::Weights {
        path: path.to_owned(),
        tensor: String::new(),
        message: error.to_string(),
    };
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let start = 8 + header as u64;
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        (name, (start + from as u64, (to - from) as u64))
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
}

fn backbone(network: &Network) -> Result<Graph, RcnnError> {
    let config = network.config();
    let mut graph = Graph::new("backbone");
    let image = graph.input("image", &[Dim::Symbol("n"), Dim::Size(3), Dim::Symbol("h"), Dim::Symbol("w")]);
    let stem = &network.body.stem;
    let mut x = graph.conv(&stem.conv, &image, "stem")?;
    if stem.pool {
        let (kernel, stride, padding) = (STEM_POOL.0 as i64, STEM_POOL.1 as i64, STEM_POOL.2 as i64);
        let attributes = vec![ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[padding; 4])];
        x = graph.node("MaxPool", "stem.pool", &[&x], attributes);
    }
    let mut stages = Vec::new();
    for (stage, blocks) in network.body.stages.iter().enumerate() {
        for (index, block) in blocks.iter().enumerate() {
            x = residual(&mut graph, block, &x, &format!("layer{}.{index}", stage + 1))?;
        }
        stages.push(x.clone());
    }
    let mut above: Option<String> = None;
    for (level, stage) in stages.iter().enumerate().rev() {
        let mut merged = graph.conv(&network.fpn.inner[level], stage, &format!("fpn.inner{level}"))?;
        if let Some(above) = above {
            let doubled = graph.double(&above, &format!("fpn.double{level}"));
            merged = graph.node("Add", &format!("fpn.merged{level}"), &[&merged, &doubled], Vec::new());
        }
        graph.conv(&network.fpn.layer[level], &merged, &format!("features_{level}"))?;
        above = Some(merged);
    }
    let levels = config.network.levels.len();
    graph.subsample(&format!("features_{}", levels - 2), &format!("features_{}", levels - 1));
    let rpn = &network.rpn;
    for level in 0..levels {
        let hidden = graph.conv(&rpn.conv, &format!("features_{level}"), &format!("rpn.hidden{level}"))?;
        graph.conv(&rpn.objectness, &hidden, &format!("objectness_{level}"))?;
        graph.conv(&rpn.deltas, &hidden, &format!("deltas_{level}"))?;
    }
    let anchors = config.network.aspect_ratios.len();
    for (name, channels) in [("features", config.fpn_channels), ("objectness", anchors), ("deltas", 4 * anchors)] {
        for level in 0..levels {
            let (h, w) = (format!("h{level}"), format!("w{level}"));
            let dims = [Dim::Symbol("n"), Dim::Size(channels), Dim::Symbol(&h), Dim::Symbol(&w)];
            graph.output(&format!("{name}_{level}"), &dims);
        }
    }
    Ok(graph)
}

fn residual(graph: &mut Graph, block: &Residual, x: &str, name: &str) -> Result<String, RcnnError> {
    let mut y = x.to_owned();
    for (index, conv) in block.branch.iter().enumerate() {
        y = graph.conv(conv, &y, &format!("{name}.conv{}", index + 1))?;
    }
    let shortcut = match &block.shortcut {
        Some(conv) => graph.conv(conv, x, &format!("{name}.shortcut"))?,
        None => x.to_owned(),
    };
    let sum = graph.node("Add", &format!("{name}.sum"), &[&y, &shortcut], Vec::new());
    Ok(graph.node("Relu", name, &[&sum], Vec::new()))
}

fn rois(graph: &mut Graph, channels: usize, resolution: u32) -> String {
    let side = Dim::Size(resolution as usize);
    graph.input("rois", &[Dim::Symbol("r"), Dim::Size(channels), side, side])
}

fn box_head(network: &Network) -> Graph {
    let (config, head) = (network.config(), &network.box_head);
    let mut graph = Graph::new("box_head");
    let rois = rois(&mut graph, config.fpn_channels, config.network.box_roi.resolution);
    let flat = graph.node("Flatten", "flat", &[&rois], vec![int("axis", 1)]);
    let hidden = graph.linear(&head.fc6, &flat, "fc6");
    let hidden = graph.linear(&head.fc7, &hidden, "fc7");
    for (name, layer) in [("class_logits", &head.classes), ("box_deltas", &head.deltas)] {
        graph.linear(layer, &hidden, name);
        graph.output(name, &[Dim::Symbol("r"), Dim::Size(layer.bias.elem_count())]);
    }
    graph
}

fn keypoint_head(network: &Network) -> Result<Graph, RcnnError> {
    let (config, head) = (network.config(), &network.keypoint_head);
    let mut graph = Graph::new("keypoint_head");
    let mut x = rois(&mut graph, config.fpn_channels, config.network.keypoint_roi.resolution);
    for (index, conv) in head.convs.iter().enumerate() {
        x = graph.conv(conv, &x, &format!("conv{}", index + 1))?;
    }
    let (weight, bias) = deconv::shuffled(&head.weight, &head.bias)?;
    let (weight_name, bias_name) = head.exported_names();
    let (weight, bias) = (graph.weight(&weight_name, &weight), graph.weight(&bias_name, &bias));
    let attributes = ConvAttributes { kernel: 3, stride: 1, padding: 1, groups: 1, relu: false };
    let y = graph.conv_named(&x, &weight, &bias, attributes, "subpixels");
    let y = graph.node("DepthToSpace", "lowres", &[&y], vec![int("blocksize", 2), string("mode", "CRD")]);
    graph.double_bilinear(&y, 2 * config.network.keypoint_roi.resolution as usize, "heatmaps");
    let side = Dim::Size(config.network.heatmap_side as usize);
    graph.output("heatmaps", &[Dim::Symbol("r"), Dim::Size(config.keypoints), side, side]);
    Ok(graph)
}
