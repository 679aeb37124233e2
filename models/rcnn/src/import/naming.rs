//! The names of tensors in each kind of checkpoint.

use crate::RcnnError;
use crate::network::Network;
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Our own export: batch-norm folded, transposed convolution as convolution.
    Bundle,
    /// torchvision's `keypointrcnn_*_fpn`, also from before 0.12; ours are the present ones.
    Torchvision,
    /// torchvision's `resnet*` and `resnext*` for classification.
    TorchvisionBody,
    /// Detectron2's keypoint R-CNN.
    Detectron2,
    /// A body in Detectron2's names.
    Detectron2Body,
    /// A body in Caffe2's names, as Detectron's model zoo has them.
    Caffe2Body,
}

impl Naming {
    /// What the names of a checkpoint tell.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let any = |part: &str| names.iter().any(|name| name.contains(part));
        let rules: [(bool, Self); 6] = [
            (any(".folded.") || any(".shuffled."), Self::Bundle),
            (any("proposal_generator.") || any("roi_heads.keypoint_head.score_lowres"), Self::Detectron2),
            (any("backbone.body.") || any("roi_heads.keypoint_predictor."), Self::Torchvision),
            (any("res2.0.conv1.") || any("stem.conv1."), Self::Detectron2Body),
            (names.contains("conv1_w"), Self::Caffe2Body),
            (names.contains("conv1.weight") && any("layer1.0."), Self::TorchvisionBody),
        ];
        rules.into_iter().find(|(found, _)| *found).map(|(_, naming)| naming)
    }

    /// Whether there are no heads.
    pub const fn body_only(self) -> bool {
        matches!(self, Self::TorchvisionBody | Self::Detectron2Body | Self::Caffe2Body)
    }

    /// For people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Bundle => "a bundle's weights",
            Self::Torchvision => "torchvision's keypoint R-CNN",
            Self::TorchvisionBody => "a body of torchvision's",
            Self::Detectron2 => "Detectron2's keypoint R-CNN",
            Self::Detectron2Body => "a body of Detectron2's",
            Self::Caffe2Body => "a body of Caffe2's",
        }
    }

    /// Tensors that such checkpoints hold beside the network's.
    fn is_extra(self, name: &str) -> bool {
        let body = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        match self {
            // Floating-point copies of the counters of batch-norms that were not frozen.
            _ if name.ends_with(".num_batches_tracked") => true,
            Self::TorchvisionBody => body(&["fc."]),
            Self::Detectron2 => name.contains("anchor_generator.cell_anchors") || matches!(name, "pixel_mean" | "pixel_std"),
            Self::Detectron2Body => body(&["linear.", "fc1000.", "stem.fc."]),
            Self::Caffe2Body => body(&["pred_", "fc1000_"]) || name.ends_with("_momentum") || matches!(name, "lr" | "conv1_b"),
            Self::Bundle | Self::Torchvision => false,
        }
    }
}

/// How a tensor of the network comes from one of the file.
enum Source {
    /// As it is.
    Same(String),
    /// Detectron2 counts the background last: rows in reverse.
    Reversed(String),
    /// Detectron2 has no deltas of the background: four rows, ours are the last four of eight.
    Person(String),
    /// Not in the file: a batch-norm that was folded into scale and shift has mean 0 and variance 1.
    Constant(f64),
}

/// Where the tensor `name` (torchvision's present name) lies in a checkpoint; `None` when such checkpoints do not hold it.
fn source(name: &str, naming: Naming) -> Option<Source> {
    match naming {
        Naming::Bundle | Naming::Torchvision => Some(Source::Same(name.to_owned())),
        Naming::TorchvisionBody => name.strip_prefix("backbone.body.").map(|rest| Source::Same(rest.to_owned())),
        Naming::Detectron2 => detectron2(name),
        Naming::Detectron2Body => name.strip_prefix("backbone.body.").and_then(|rest| Some(Source::Same(detectron2_body(rest)?))),
        Naming::Caffe2Body => name.strip_prefix("backbone.body.").and_then(caffe2_body),
    }
}

/// Stage, from 1, and block of a residual block's tensor.
type Place<'a> = (usize, &'a str);

/// `conv1.weight`, `bn1.bias`, `layer2.3.conv1.weight`, `layer2.0.downsample.1.bias` by place, layer and field.
fn parts(rest: &str) -> Option<(Option<Place<'_>>, Layer, &str)> {
    let (place, rest) = match rest.strip_prefix("layer") {
        Some(rest) => {
            let (stage, rest) = rest.split_once('.')?;
            let (block, rest) = rest.split_once('.')?;
            (Some((stage.parse().ok()?, block)), rest)
        }
        None => (None, rest),
    };
    let (layer, field) = rest.rsplit_once('.')?;
    let layer = match layer {
        "downsample.0" => Layer::Shortcut { norm: false },
        "downsample.1" => Layer::Shortcut { norm: true },
        _ => match (layer.strip_prefix("conv"), layer.strip_prefix("bn")) {
            (Some(index), _) => Layer::Branch { index: index.parse().ok()?, norm: false },
            (_, Some(index)) => Layer::Branch { index: index.parse().ok()?, norm: true },
            _ => return None,
        },
    };
    Some((place, layer, field))
}

#[derive(Clone, Copy)]
enum Layer {
    Branch { index: usize, norm: bool },
    Shortcut { norm: bool },
}

fn detectron2_body(rest: &str) -> Option<String> {
    let (place, layer, field) = parts(rest)?;
    let root = match place {
        None => "stem".to_owned(),
        Some((stage, block)) => format!("res{}.{block}", stage + 1),
    };
    let (layer, norm) = match layer {
        Layer::Branch { index, norm } => (format!("conv{index}"), norm),
        Layer::Shortcut { norm } => ("shortcut".to_owned(), norm),
    };
    Some(format!("{root}.{layer}{}.{field}", if norm { ".norm" } else { "" }))
}

/// `conv1_w`, `res_conv1_bn_s`, `res2_0_branch2a_w`, `res2_0_branch1_bn_b`.
fn caffe2_body(rest: &str) -> Option<Source> {
    let (place, layer, field) = parts(rest)?;
    let (layer, norm) = match layer {
        Layer::Branch { index, norm } => (index, norm),
        Layer::Shortcut { norm } => (0, norm),
    };
    let root = match place {
        None if norm => "res_conv1".to_owned(),
        None => "conv1".to_owned(),
        Some((stage, block)) => {
            let branch = ["1", "2a", "2b", "2c"].get(layer)?;
            format!("res{}_{block}_branch{branch}", stage + 1)
        }
    };
    Some(match (norm, field) {
        (false, _) => Source::Same(format!("{root}_w")),
        (true, "weight") => Source::Same(format!("{root}_bn_s")),
        (true, "bias") => Source::Same(format!("{root}_bn_b")),
        (true, "running_mean") => Source::Constant(0.0),
        // Less the ε that is added before the root.
        (true, _) => Source::Constant(1.0 - crate::network::NORM_EPS),
    })
}

fn detectron2(name: &str) -> Option<Source> {
    let (module, field) = name.rsplit_once('.')?;
    if let Some(rest) = name.strip_prefix("backbone.body.") {
        return Some(Source::Same(format!("backbone.bottom_up.{}", detectron2_body(rest)?)));
    }
    // `inner_blocks.0.0` is of C2.
    let level = |rest: &str| Some(rest.split_once('.')?.0.parse::<usize>().ok()? + 2);
    if let Some(rest) = module.strip_prefix("backbone.fpn.inner_blocks.") {
        return Some(Source::Same(format!("backbone.fpn_lateral{}.{field}", level(rest)?)));
    }
    if let Some(rest) = module.strip_prefix("backbone.fpn.layer_blocks.") {
        return Some(Source::Same(format!("backbone.fpn_output{}.{field}", level(rest)?)));
    }
    if let Some(index) = module.strip_prefix("roi_heads.keypoint_head.") {
        return Some(Source::Same(format!("roi_heads.keypoint_head.conv_fcn{}.{field}", index.parse::<usize>().ok()? / 2 + 1)));
    }
    Some(match module {
        "rpn.head.conv.0.0" => Source::Same(format!("proposal_generator.rpn_head.conv.{field}")),
        "rpn.head.cls_logits" => Source::Same(format!("proposal_generator.rpn_head.objectness_logits.{field}")),
        "rpn.head.bbox_pred" => Source::Same(format!("proposal_generator.rpn_head.anchor_deltas.{field}")),
        "roi_heads.box_head.fc6" => Source::Same(format!("roi_heads.box_head.fc1.{field}")),
        "roi_heads.box_head.fc7" => Source::Same(format!("roi_heads.box_head.fc2.{field}")),
        "roi_heads.box_predictor.cls_score" => Source::Reversed(name.to_owned()),
        "roi_heads.box_predictor.bbox_pred" => Source::Person(name.to_owned()),
        "roi_heads.keypoint_predictor.kps_score_lowres" => Source::Same(format!("roi_heads.keypoint_head.score_lowres.{field}")),
        _ => return None,
    })
}

/// torchvision renamed the convolutions of FPN and RPN head when it made them blocks (0.12).
fn modern(name: &str) -> Option<String> {
    for root in ["backbone.fpn.inner_blocks.", "backbone.fpn.layer_blocks."] {
        if let Some((index, field)) = name.strip_prefix(root).and_then(|rest| rest.split_once('.'))
            && !field.contains('.')
        {
            return Some(format!("{root}{index}.0.{field}"));
        }
    }
    name.strip_prefix("rpn.head.conv.").filter(|field| !field.contains('.')).map(|field| format!("rpn.head.conv.0.0.{field}"))
}

/// torchvision's present names for those of any version; counters of batch-norms left out.
pub(super) fn modernised(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let kept = tensors.into_iter().filter(|(name, _)| !Naming::Torchvision.is_extra(name));
    kept.map(|(name, tensor)| (modern(&name).unwrap_or(name), tensor)).collect()
}

/// The network's tensors by its own names, each found in `tensors` with its shape, and nothing in `tensors` but those. For a body, of
/// the body's tensors.
///
/// # Errors
/// [`RcnnError::Weights`] names, as the file does, the first tensor that is missing, surplus or of another shape.
pub(super) fn translate(
    network: &Network,
    tensors: &BTreeMap<String, Tensor>,
    naming: Naming,
    path: &Path,
) -> Result<BTreeMap<String, Tensor>, RcnnError> {
    let refuse = |tensor: &str, message: String| RcnnError::Weights { path: path.to_owned(), tensor: tensor.to_owned(), message };
    if naming == Naming::Bundle {
        return network.unfolded(tensors.clone());
    }
    // The file's own name by the one that is looked for.
    let mut given: BTreeMap<String, &str> = BTreeMap::new();
    for name in tensors.keys() {
        let present = if naming == Naming::Torchvision { modern(name) } else { bottom_up(name, naming) };
        if let Some(other) = given.insert(present.unwrap_or_else(|| name.clone()), name) {
            return Err(refuse(name, format!("the same as `{other}` by another name")));
        }
    }
    let mut found = BTreeMap::new();
    for (name, var) in network.params().all() {
        let Some(source) = source(name, naming) else { continue };
        let (wanted, mut expected) = match &source {
            Source::Same(wanted) | Source::Reversed(wanted) | Source::Person(wanted) => (wanted, var.dims().to_vec()),
            Source::Constant(value) => {
                found.insert(name.to_owned(), (var.ones_like()? * *value)?);
                continue;
            }
        };
        if matches!(source, Source::Person(_)) {
            expected[0] /= 2;
        }
        let own = given.remove(wanted.as_str()).ok_or_else(|| refuse(wanted, "missing".to_owned()))?;
        let tensor = &tensors[own];
        if tensor.dims() != expected {
            return Err(refuse(own, format!("shape {:?}, expected {expected:?}", tensor.dims())));
        }
        found.insert(name.to_owned(), converted(tensor, &source)?);
    }
    match given.values().find(|name| !naming.is_extra(name)) {
        Some(surplus) => Err(refuse(surplus, format!("a `{}` network has no such tensor", network.config().name))),
        None => Ok(found),
    }
}

/// What of a whole detector fits: shapes that differ, such as the heads of another skeleton, are left out.
pub(super) fn fitting(
    network: &Network,
    tensors: &BTreeMap<String, Tensor>,
    naming: Naming,
) -> Result<BTreeMap<String, Tensor>, RcnnError> {
    let mut found = BTreeMap::new();
    for (name, var) in network.params().all() {
        let Some(source @ (Source::Same(_) | Source::Reversed(_) | Source::Person(_))) = source(name, naming) else { continue };
        let (Source::Same(wanted) | Source::Reversed(wanted) | Source::Person(wanted)) = &source else { continue };
        let Some(tensor) = tensors.get(wanted) else { continue };
        let tensor = converted(tensor, &source)?;
        if tensor.dims() == var.dims() {
            found.insert(name.to_owned(), tensor);
        }
    }
    Ok(found)
}

fn converted(tensor: &Tensor, source: &Source) -> Result<Tensor, RcnnError> {
    Ok(match source {
        Source::Same(_) | Source::Constant(_) => tensor.clone(),
        Source::Reversed(_) => {
            let rows = tensor.dim(0)?;
            let rows: Vec<Tensor> = (0..rows).rev().map(|row| tensor.narrow(0, row, 1)).collect::<Result<_, _>>()?;
            Tensor::cat(&rows, 0)?
        }
        Source::Person(_) => Tensor::cat(&[&tensor.zeros_like()?, tensor], 0)?,
    })
}

/// A body in Detectron2's names with the prefix it has inside a detector.
fn bottom_up(name: &str, naming: Naming) -> Option<String> {
    let prefix = ["backbone.bottom_up.", "bottom_up."].into_iter().find(|prefix| name.starts_with(prefix))?;
    (naming == Naming::Detectron2Body).then(|| name[prefix.len()..].to_owned())
}
