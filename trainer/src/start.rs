//! Where a training starts: the first weights, and the conventions of the network that they were made for.

use anyhow::{Context, bail};
use omnilabel_bundle::{Bundle, MANIFEST};
use omnilabel_rcnn::config::{Config, PRESETS};
use omnilabel_rcnn::export::WEIGHTS;
use omnilabel_rcnn::import::{self, Naming, read_checkpoint};
use omnilabel_rcnn::train::Init;
use std::path::Path;

/// A preset by name.
///
/// # Errors
/// The name is no preset's; says which there are.
pub fn preset(name: &str, keypoints: usize) -> anyhow::Result<Config> {
    Config::preset(name, keypoints).with_context(|| format!("there is no preset `{name}`; there are {}", PRESETS.join(", ")))
}

/// A network with random weights trains all of itself: what a preset freezes was trained elsewhere.
pub fn from_seed(network: Config, seed: u64) -> (Config, Init) {
    (Config { frozen_stages: 0, train_affine: true, ..network }, Init::Seed(seed))
}

/// A network that starts from a file: a bundle, or a checkpoint by any of the names that [`omnilabel_rcnn::import`] knows. Normalisation,
/// anchors, RoIAlign and the place of the stride are those that the weights were trained with. Heads that do not fit are drawn from `seed`.
///
/// # Errors
/// The path leads nowhere or to nothing that fits the network; names the file.
pub fn from_file(mut network: Config, path: &Path, seed: u64) -> anyhow::Result<(Config, Init)> {
    if !path.exists() {
        bail!("{}: no such file or bundle (random weights are `seed:N`)", path.display());
    }
    let folder = if path.is_dir() { Some(path) } else { path.parent().filter(|_| path.file_name().is_some_and(|name| name == WEIGHTS)) };
    if let Some(folder) = folder.filter(|folder| folder.join(MANIFEST).is_file()) {
        let bundle = Bundle::open(folder)?;
        let manifest = bundle.manifest();
        let Some(spec) = manifest.network.rcnn() else {
            bail!("{}: a wrapped pose model has no weights to train on; expected a keypoint R-CNN", folder.display())
        };
        if manifest.architecture == network.name {
            network.network = spec.clone();
            network.input = manifest.input.clone();
        }
        return Ok((network, Init::File(folder.join(WEIGHTS), seed)));
    }
    if path.is_dir() {
        bail!("{}: a folder without {MANIFEST}; expected a bundle or a checkpoint file", path.display());
    }
    let tensors = read_checkpoint(path)?;
    if let Some(naming) = Naming::of(tensors.keys().map(String::as_str)) {
        network = import::conventions(network, naming);
    }
    Ok((network, Init::File(path.to_owned(), seed)))
}

/// Sets the short side; the longest long side keeps its proportion.
pub fn resize(network: &mut Config, side: u32) {
    let long = u64::from(network.input.max_long_side) * u64::from(side) / u64::from(network.input.short_side.max(1));
    network.input.max_long_side = u32::try_from(long).unwrap_or(u32::MAX).max(side);
    network.input.short_side = side;
}
