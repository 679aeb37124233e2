//! Where a training starts: the first weights, and the conventions of the network that they were made for.

use anyhow::{Context, bail};
use omnilabel_bundle::{Bundle, InputSpec, MANIFEST, NetworkSpec};
use omnilabel_rcnn::config::{Config, PRESETS};
use omnilabel_rcnn::export::WEIGHTS;
use omnilabel_rcnn::import::{self, Naming, read_checkpoint};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::DType;
use omnilabel_rcnn::train::Init;
use std::path::Path;

/// A preset by name.
///
/// # Errors
/// The name is no preset's; says which there are.
pub fn preset(name: &str, keypoints: usize) -> anyhow::Result<Config> {
    Config::preset(name, keypoints).with_context(|| format!("there is no preset `{name}`; there are {}", PRESETS.join(", ")))
}

/// A network and its first weights.
#[derive(Clone, Debug)]
pub struct Start {
    /// The network, with the conventions of its first weights.
    pub network: Config,
    /// The first weights.
    pub init: Init,
    /// What of a file was taken, for people.
    pub taken: Option<String>,
}

/// A network with random weights trains all of itself: what a preset freezes was trained elsewhere.
pub fn from_seed(network: Config, seed: u64) -> Start {
    Start { network: Config { frozen_stages: 0, train_affine: true, ..network }, init: Init::Seed(seed), taken: None }
}

/// A network that starts from a file: a bundle, or a checkpoint by any of the names that [`omnilabel_rcnn::import`] knows. Normalisation,
/// anchors, RoIAlign and the place of the stride are those that the weights were trained with. Heads that do not fit are drawn from `seed`.
///
/// # Errors
/// The path leads nowhere, or to nothing whose body is the network's; names the file and the tensor.
pub fn from_file(mut network: Config, path: &Path, seed: u64) -> anyhow::Result<Start> {
    if !path.exists() {
        bail!("{}: no such file or bundle (random weights are `seed:N`)", path.display());
    }
    let beside = || path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let folder = if path.is_dir() { Some(path) } else { beside().filter(|_| path.file_name().is_some_and(|name| name == WEIGHTS)) };
    let (weights, tensors) = match folder.filter(|folder| folder.join(MANIFEST).is_file()) {
        Some(folder) => {
            let bundle = Bundle::open(folder)?;
            let Some(spec) = bundle.manifest().network.rcnn() else {
                bail!("{}: a wrapped pose model has no weights to train on; expected a keypoint R-CNN", folder.display())
            };
            adopt(&mut network, &bundle.manifest().input, spec);
            let weights = folder.join(WEIGHTS);
            let tensors = read_checkpoint(&weights)?;
            (weights, tensors)
        }
        None if path.is_dir() => bail!("{}: a folder without {MANIFEST}; expected a bundle or a checkpoint file", path.display()),
        None => {
            let tensors = read_checkpoint(path)?;
            if let Some(naming) = Naming::of(tensors.keys().map(String::as_str)) {
                network = import::conventions(network, naming);
            }
            (path.to_owned(), tensors)
        }
    };
    // Tried at once: a training that cannot begin leaves nothing behind.
    let tried = Network::zeros(network.clone(), DType::F32)?;
    let anew = tried.init_with(tensors, &weights)?;
    let all = tried.params().all().count();
    let mut taken = format!("{} of {all} tensors start as in {}", all - anew.len(), path.display());
    if !anew.is_empty() {
        let named: Vec<&str> = anew.iter().take(4).map(String::as_str).collect();
        let more = if anew.len() > named.len() { ", …" } else { "" };
        taken.push_str(&format!("; drawn anew: {}{more}", named.join(", ")));
    }
    Ok(Start { network, init: Init::File(weights, seed), taken: Some(taken) })
}

/// What weights are used to; sizes and thresholds stay the network's own.
fn adopt(network: &mut Config, input: &InputSpec, spec: &NetworkSpec) {
    (network.input.channels, network.input.mean, network.input.std) = (input.channels, input.mean, input.std);
    (network.network.anchor_rule, network.network.stride_in_1x1) = (spec.anchor_rule, spec.stride_in_1x1);
    let rois = [(&mut network.network.box_roi, spec.box_roi), (&mut network.network.keypoint_roi, spec.keypoint_roi)];
    for (roi, theirs) in rois {
        (roi.aligned, roi.sampling_ratio) = (theirs.aligned, theirs.sampling_ratio);
    }
}

/// Sets the short side; the longest long side keeps its proportion.
pub fn resize(network: &mut Config, side: u32) {
    let long = u64::from(network.input.max_long_side) * u64::from(side) / u64::from(network.input.short_side.max(1));
    network.input.max_long_side = u32::try_from(long).unwrap_or(u32::MAX).max(side);
    network.input.short_side = side;
}
