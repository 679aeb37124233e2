//! From trained weights to a bundle that devices can check.

use super::{ArmConfig, ArmError};
use crate::samples::{Item, SampleSet};
use omnilabel_bundle::{Bundle, Manifest, hex, seal};
use omnilabel_detect::frame::Frame;
use omnilabel_rcnn::export::{ExportMeta, write_bundle_as};
use omnilabel_rcnn::network::Network;
use omnilabel_runtime::write_golden;
use sha2::{Digest, Sha256};
use std::path::Path;

/// SHA-256 over every sample's id, picture and labels, soft ones with them, manual ones first.
pub fn dataset_digest(manual: &SampleSet, generated: Option<&SampleSet>) -> String {
    let mut hash = Sha256::new();
    for (tag, set) in std::iter::once((b"m", manual)).chain(generated.map(|g| (b"g", g))) {
        for item in &set.items {
            hash.update(tag);
            hash.update(item.id.to_le_bytes());
            hash.update((item.picture.len() as u64).to_le_bytes());
            hash.update(&item.picture);
            let mut number = |v: f32| hash.update(v.to_bits().to_le_bytes());
            for person in &item.people {
                [person.rect.x1, person.rect.y1, person.rect.x2, person.rect.y2].into_iter().for_each(&mut number);
                person.keypoints.iter().flat_map(|k| k.map_or([f32::NAN; 2], |p| [p.x, p.y])).for_each(&mut number);
                person.soft.iter().flat_map(|soft| soft.maps()).copied().for_each(&mut number);
            }
            item.ignore.iter().flat_map(|r| [r.x1, r.y1, r.x2, r.y2]).for_each(&mut number);
        }
    }
    hex(&hash.finalize())
}

/// Exports beside `root`, adds golden frames made by the exported graphs themselves, seals, and moves it into place.
pub(super) fn write(arm: &ArmConfig, network: &Network, manual: &SampleSet, digest: &str, root: &Path) -> Result<Bundle, ArmError> {
    let part = root.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).map_err(ArmError::io(&part))?;
    }
    let meta = ExportMeta {
        name: arm.name.clone(),
        skeleton: manual.skeleton.clone(),
        thresholds: arm.thresholds,
        parent: arm.parent.clone(),
        dataset_sha256: Some(digest.to_owned()),
        ap: None,
    };
    let bundle = write_bundle_as(network, &meta, &part, arm.weights)?;
    // Every device gets them: none is a picture of a camera.
    let shown = &manual.items[..manual.items.len().saturating_sub(manual.private)];
    let every = (shown.len() / arm.golden.max(1)).max(1);
    let items: Vec<&Item> = shown.iter().step_by(every).take(arm.golden).collect();
    let names: Vec<String> = items.iter().map(|item| format!("frame-{}", item.id)).collect();
    let mut frames = Vec::with_capacity(items.len());
    for (item, name) in items.iter().zip(&names) {
        frames.push((name.as_str(), Frame::decode(&item.name, &item.picture)?));
    }
    write_golden(bundle.root(), &frames)?;
    std::fs::rename(&part, root).map_err(ArmError::io(root))?;
    Ok(Bundle::open(root)?)
}

/// Changes what a sealed bundle's manifest says (thresholds, AP, name) and seals it again.
///
/// # Errors
/// [`ArmError::Bundle`].
pub fn amend(root: &Path, change: impl FnOnce(&mut Manifest)) -> Result<Bundle, ArmError> {
    let mut manifest = Bundle::open(root)?.manifest().clone();
    change(&mut manifest);
    Ok(seal(root, manifest)?)
}
