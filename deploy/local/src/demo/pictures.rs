//! The pictures of the report: frames as the devices label them, and validation frames before and after.

use super::outcome::Outcome;
use super::{Demo, data, evaluate, files};
use crate::report::{Drawn, Picture, Pictures};
use anyhow::Context;
use omnilabel_coco::{Annotation, Dataset, ResultRecord, read_results};
use std::path::Path;

const LABELLED: u64 = 8;
const COMPARED: u64 = 5;
/// Detections with a lower score are not drawn in a comparison.
const SHOWN: f64 = 0.3;

pub(super) fn pictures(demo: &Demo<'_>, outcome: &Outcome) -> anyhow::Result<Pictures> {
    let show = |name: &str| demo.root.join("report/data").join(name);
    let (tau, tau_k) = outcome.thresholds.map_or((0.5, 0.0), |t| (f64::from(t.tau), f64::from(t.tau_k)));
    let mut pictures = Pictures::default();
    for (index, device) in files::DEVICES.iter().enumerate() {
        let folder = show(device);
        data::sample(&demo.folders.footage(index), &folder, LABELLED / 2)?;
        let (_, results) = evaluate::evaluate(demo, device, &demo.teacher()?, &folder, true)?;
        let results = read_results(&results)?;
        let dataset = Dataset::load(&folder)?;
        for image in &dataset.images {
            let found = results.iter().filter(|r| r.image_id == image.id && r.score >= 0.5 * tau);
            let people = found.map(|r| drawn(r, tau, tau_k)).collect();
            pictures.labelled.push(picture(&dataset, image.id, format!("camera {device}"), people)?);
        }
    }
    let folder = show("compared");
    data::sample(&demo.folders.val(), &folder, COMPARED)?;
    let dataset = Dataset::load(&folder)?;
    let student = files::student(demo.root);
    if !student.exists() {
        return Ok(pictures);
    }
    let found = |name: &str, bundle: &Path| -> anyhow::Result<Vec<ResultRecord>> {
        let (_, results) = evaluate::evaluate(demo, name, bundle, &folder, false)?;
        Ok(read_results(&results)?)
    };
    let (before, after) = (found("before", &demo.teacher()?)?, found("after", &student)?);
    for image in &dataset.images {
        let of = |results: &[ResultRecord]| -> Vec<Drawn> {
            results.iter().filter(|r| r.image_id == image.id && r.score >= SHOWN).map(|r| drawn(r, 0.0, 0.0)).collect()
        };
        let truth = dataset.annotations_of(image.id).iter().map(label).collect();
        pictures.compared.push([
            picture(&dataset, image.id, "truth".to_owned(), truth)?,
            picture(&dataset, image.id, "before".to_owned(), of(&before))?,
            picture(&dataset, image.id, "after".to_owned(), of(&after))?,
        ]);
    }
    Ok(pictures)
}

fn picture(dataset: &Dataset, id: u64, caption: String, people: Vec<Drawn>) -> anyhow::Result<Picture> {
    let image = dataset.images.iter().find(|image| image.id == id).context("an image of the data set")?;
    let path = dataset.image_path(image);
    let jpeg = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(Picture { caption, jpeg, size: (image.width, image.height), people })
}

fn label(annotation: &Annotation) -> Drawn {
    Drawn { bbox: annotation.bbox, keypoints: annotation.keypoints.clone(), score: None, faint: false }
}

/// A detection; keypoints below `tau_k` are no labels and not drawn.
fn drawn(result: &ResultRecord, tau: f64, tau_k: f64) -> Drawn {
    let mut keypoints = result.keypoints.clone();
    for keypoint in keypoints.chunks_exact_mut(3).filter(|k| k[2] < tau_k) {
        keypoint[2] = 0.0;
    }
    Drawn {
        bbox: result.bbox.unwrap_or_else(|| extent(&result.keypoints)),
        keypoints,
        score: Some(result.score),
        faint: result.score < tau,
    }
}

/// The box around all keypoints.
fn extent(keypoints: &[f64]) -> [f64; 4] {
    let fold = |offset: usize, start: f64, f: fn(f64, f64) -> f64| keypoints.iter().skip(offset).step_by(3).copied().fold(start, f);
    let (x1, y1) = (fold(0, f64::INFINITY, f64::min), fold(1, f64::INFINITY, f64::min));
    let (x2, y2) = (fold(0, f64::NEG_INFINITY, f64::max), fold(1, f64::NEG_INFINITY, f64::max));
    if x1 <= x2 { [x1, y1, x2 - x1, y2 - y1] } else { [0.0; 4] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keypoints_and_people_below_the_thresholds_are_marked() {
        let result = ResultRecord { image_id: 1, category_id: 1, keypoints: vec![1.0, 2.0, 0.9, 5.0, 9.0, 0.1], score: 0.4, bbox: None };
        let person = drawn(&result, 0.5, 0.2);
        assert!(person.faint);
        assert_eq!((person.keypoints[2], person.keypoints[5]), (0.9, 0.0));
        assert_eq!(person.bbox, [1.0, 2.0, 4.0, 7.0]);
        assert_eq!(extent(&[]), [0.0; 4]);
    }
}
