//! Both models label the same sample of the fleet's newest pictures: what the gate learns about footage that nobody labelled by hand.

use super::{FETCHED, RoundState, Rounds};
use crate::evaluate::Detected;
use crate::service::config::DriftMode;
use crate::service::dataset::{picture_name, sync_dir};
use crate::service::drift::{Counts, Relabelled, Scale, compare};
use crate::service::events::Event;
use crate::service::store::statistics::Pictured;
use anyhow::Context;
use omnilabel_bundle::Bundle;
use omnilabel_coco::{Dataset, ImageRecord};
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::{Label, Thresholds};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The newest labels with pictures that the sample is drawn from.
const POOL: u32 = 20_000;

/// Draws `frames` of the pool, as many from one device as from another as far as they have them. The seed alone decides which.
fn draw(pool: Vec<Pictured>, frames: usize, seed: u64) -> Vec<Pictured> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut devices: BTreeMap<String, Vec<Pictured>> = BTreeMap::new();
    for one in pool {
        devices.entry(one.device.clone()).or_default().push(one);
    }
    let mut devices: Vec<Vec<Pictured>> = devices.into_values().collect();
    devices.iter_mut().for_each(|of| of.shuffle(&mut rng));
    // Where there are more devices than pictures, those that come to it are drawn, too.
    devices.shuffle(&mut rng);
    let mut drawn = Vec::new();
    while drawn.len() < frames && devices.iter().any(|of| !of.is_empty()) {
        let round = devices.iter_mut().filter_map(Vec::pop).take(frames - drawn.len());
        drawn.extend(round);
    }
    drawn
}

impl Rounds {
    /// Whether the gate asks what both models make of the newest pictures.
    pub(super) fn wants_relabelling(&self) -> bool {
        self.config.gate.drift != DriftMode::Off
    }

    /// Has both models label a sample of the newest pictures, each as a device with its bundle would; `None` when the service stops.
    pub(super) async fn relabel(&self, state: &RoundState) -> anyhow::Result<Option<Relabelled>> {
        let pool = self.store.newest_pictured(POOL).await?;
        let newest = pool.first().map_or(0, |one| one.id);
        let drawn = draw(pool, self.config.gate.drift_frames, state.round);
        let pictures = self.pictures(&self.folder(state.round).join("drift"), &drawn).await?;
        let Some(before) = self.labels("running", state.running.clone(), &pictures).await? else { return Ok(None) };
        let Some(after) = self.labels("candidate", self.student(state.round), &pictures).await? else { return Ok(None) };

        let mut relabelled = Relabelled { newest, seed: state.round, ..Relabelled::default() };
        let mut counts = [Counts::default(), Counts::default()];
        for (id, of_running) in &before.labels {
            let Some(of_student) = after.labels.get(id) else { continue };
            relabelled.frames += 1;
            let is_unseen = drawn.get(*id as usize - 1).is_some_and(|one| one.id > state.up_to);
            relabelled.unseen += u64::from(is_unseen);
            if [of_running, of_student].iter().all(|label| label.instances.iter().all(|instance| !instance.kept)) {
                relabelled.empty += 1;
                continue;
            }
            counts[0].add(of_running, before.scale);
            counts[1].add(of_student, after.scale);
        }
        relabelled.compared = compare(&counts[0], &counts[1], self.config.gate.drift_limit);
        self.events.emit(Event::Relabelled {
            round: state.round,
            frames: relabelled.frames,
            unseen: relabelled.unseen,
            statistics: relabelled.compared.clone(),
        });
        Ok(Some(relabelled))
    }

    /// Writes what was drawn as a folder without annotations; ids are places in `drawn`, from 1. One that is no picture is left out.
    async fn pictures(&self, root: &Path, drawn: &[Pictured]) -> anyhow::Result<Dataset> {
        if root.exists() {
            std::fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
        }
        let folder = root.join("images");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let skeleton = self.manual.skeleton.clone();
        let mut pictures = Dataset { root: root.to_owned(), skeleton, images: Vec::new(), annotations: Vec::new() };
        let mut places = (1..).zip(drawn);
        for some in drawn.chunks(FETCHED) {
            let keys: Vec<_> = some.iter().map(|one| (one.device.as_str(), one.key)).collect();
            for (jpeg, (id, one)) in self.store.jpegs(&keys).await?.into_iter().zip(places.by_ref()) {
                let file_name = format!("{}.jpg", picture_name(&one.device, one.key));
                let jpeg = match jpeg {
                    Ok(jpeg) => jpeg,
                    Err(lost) => {
                        tracing::warn!("{file_name}: {lost}; left out");
                        continue;
                    }
                };
                let reader = image::ImageReader::with_format(Cursor::new(&jpeg), image::ImageFormat::Jpeg);
                let (width, height) = match reader.into_dimensions() {
                    Ok(size) => size,
                    Err(error) => {
                        tracing::warn!("{file_name}: {error}; left out");
                        continue;
                    }
                };
                let path = folder.join(&file_name);
                std::fs::write(&path, jpeg).with_context(|| path.display().to_string())?;
                pictures.images.push(ImageRecord { id, file_name, width, height });
            }
        }
        pictures.write(root)?;
        sync_dir(root)?;
        Ok(pictures)
    }

    /// What a bundle makes of the pictures.
    async fn labels(&self, which: &str, bundle: PathBuf, pictures: &Dataset) -> anyhow::Result<Option<Labelled>> {
        let thresholds = Bundle::open(&bundle)?.manifest().thresholds;
        let (arm, stopping, on) = (Arc::clone(&self.arm), Arc::clone(&self.stopping), pictures.clone());
        let found = tokio::task::spawn_blocking(move || arm.detect(&bundle, &on, &stopping))
            .await
            .context("the labelling panicked")?
            .with_context(|| format!("the {which} model on the fleet's newest pictures"))?;
        Ok(found.map(|found| Labelled::new(found, pictures, thresholds)))
    }
}

/// One model's labels of the pictures.
struct Labelled {
    labels: BTreeMap<u64, Label>,
    scale: Scale,
}

impl Labelled {
    fn new(found: Vec<Detected>, pictures: &Dataset, thresholds: Thresholds) -> Self {
        let sizes: BTreeMap<u64, Size> =
            pictures.images.iter().map(|image| (image.id, Size { width: image.width, height: image.height })).collect();
        let label = |one: Detected| {
            let size = *sizes.get(&one.image_id)?;
            Some((one.image_id, Label::from_detections(size, &one.detections, thresholds)))
        };
        let scale = Scale { instance: thresholds.instance, keypoint: thresholds.keypoint };
        Self { labels: found.into_iter().filter_map(label).collect(), scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_keypoints::wire::LabelKey;

    fn pool(device: &str, count: u64) -> impl Iterator<Item = Pictured> {
        let key = |sequence| LabelKey { epoch: 7, sequence };
        (1..=count).map(move |sequence| Pictured { id: sequence.cast_signed(), device: device.to_owned(), key: key(sequence) })
    }

    #[test]
    fn a_sample_is_fair_to_devices_and_follows_from_its_seed() {
        let all = || pool("busy", 1000).chain(pool("quiet", 5)).chain(pool("yard", 60)).collect::<Vec<_>>();
        let drawn = draw(all(), 65, 3);
        let of = |device: &str| drawn.iter().filter(|one| one.device == device).count();
        assert_eq!((drawn.len(), of("busy"), of("quiet"), of("yard")), (65, 30, 5, 30));
        assert_eq!(draw(all(), 65, 3), drawn);
        assert_ne!(draw(all(), 65, 4), drawn);
        assert!(drawn.iter().filter(|one| one.device == "busy").any(|one| one.id > 500), "not the first ones alone");
        assert_eq!(draw(pool("yard", 9).collect(), 65, 3).len(), 9, "there are no more");
        let many: Vec<Pictured> = (0..50).flat_map(|at| pool(&format!("cam-{at}"), 2).collect::<Vec<_>>()).collect();
        let names: std::collections::BTreeSet<String> = draw(many, 10, 1).into_iter().map(|one| one.device).collect();
        assert!(names.len() == 10 && names.iter().any(|name| name.as_str() > "cam-3"), "{names:?}");
        assert_eq!(draw(Vec::new(), 10, 1), []);
    }
}
