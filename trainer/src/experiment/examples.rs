//! Before and after in pictures: what the lower bound and the best other arm make of the same test images.

use super::ExperimentError;
use crate::evaluate::{detect_readable, load};
use crate::gallery::marks;
use omnilabel_bundle::Bundle;
use omnilabel_coco::Dataset;
use omnilabel_detect::frame::Frame;
use omnilabel_draw::{Album, Card, Emphasis, Person, Tone, beside, picture};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_runtime::ViewPlan;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Pictures of a page.
const PICTURES: usize = 24;

/// Draws evenly spaced images of `test`, nothing chosen, under the names of `models`.
pub(super) fn draw(
    folder: &Path,
    title: &str,
    test: &Dataset,
    models: &[(&str, Bundle)],
    cancel: &AtomicBool,
) -> Result<(), ExperimentError> {
    let every = test.images.len().div_ceil(PICTURES).max(1);
    let some = test.subset(|index, _| index % every == 0);
    let inputs: Vec<_> = some.images.iter().map(|image| some.image_path(image)).collect();
    let mut album = Album::open(folder, title, inputs.iter().map(std::path::PathBuf::as_path))?;
    let mut found = Vec::with_capacity(models.len());
    for (_, bundle) in models {
        let teacher = load(bundle)?;
        found.push(detect_readable(&teacher, &some, &ViewPlan::single(teacher.manifest()), &|_| {}, cancel)?);
    }
    let mut notes = Vec::new();
    for image in &some.images {
        let frame = match Frame::open(&some.image_path(image)) {
            Ok(frame) => frame,
            Err(error) => {
                notes.push(error.to_string());
                continue;
            }
        };
        let mut pictures = Vec::new();
        for ((name, bundle), detections) in models.iter().zip(&found) {
            let thresholds = bundle.manifest().thresholds;
            let detected = detections.images.iter().find(|detected| detected.image_id == image.id);
            let shown = detected.into_iter().flat_map(|detected| &detected.detections).filter(|d| d.score >= thresholds.instance);
            let people: Vec<Person> =
                shown.enumerate().map(|(i, d)| Person::detected(d, i, thresholds.keypoint, format!("{:.2}", d.score))).collect();
            pictures.push((*name, picture(&frame, &some.skeleton, &people)));
        }
        let people = some.annotations_of(image.id).iter().map(|annotation| {
            let [x, y, width, height] = annotation.bbox.map(|v| v as f32);
            let rect = Some(Rect::from_xywh(x, y, width, height));
            Person { rect, marks: marks(annotation), caption: String::new(), tone: Tone::Truth }
        });
        pictures.push(("labelled", picture(&frame, &some.skeleton, &people.collect::<Vec<_>>())));
        let all = beside(&pictures.iter().map(|(name, picture)| (*name, picture)).collect::<Vec<_>>());
        let name = album.name(Path::new(&image.file_name));
        album.save(&name, &all)?;
        let lines = vec![(Emphasis::Faint, format!("image {}", image.id))];
        album.push(Card { title: name.clone(), file: name, size: all.size, lines });
    }
    let summary = "Test images at even distances, none chosen. Drawn: people with a score of at least the model's τ; keypoints below its τ_k are hollow.";
    album.finish(&[summary.to_owned()], &notes)?;
    Ok(())
}
