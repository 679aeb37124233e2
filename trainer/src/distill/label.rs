//! The labelling stage: ensembled detections on disk, picture by picture, and the hard labels made of them.

use super::{DistillError, Event, LabelCount};
use crate::arm::ArmError;
use crate::calibrate::split;
use crate::digest::digest;
use crate::evaluate::{Detected, Detections, EvaluateError, Views, detect_readable, load_detected, same_skeleton};
use crate::samples::{Item, LeftOut, SampleError, SampleSet};
use omnilabel_bundle::Bundle;
use omnilabel_coco::{Annotation, Dataset, ImageRecord, from_continuous};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_rcnn::targets::SoftLabel;
use omnilabel_runtime::{Teacher, ViewPlan};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pictures that are labelled between two writes.
const CHUNK: usize = 256;

/// What is labelled, how, and where that is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labelling<'l> {
    /// The pictures; their annotations are not looked at.
    pub(crate) unlabelled: &'l Dataset,
    /// Pictures that could not be read when they were listed.
    pub(crate) left_out: &'l [LeftOut],
    /// The category of the labels.
    pub(crate) category_id: u64,
    /// The teacher's views.
    pub(crate) views: &'l Views,
    /// The folder of `detections.jsonl` and the labels.
    pub(crate) folder: &'l Path,
}

/// Which detections become which labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// τ and τ_k.
    pub(crate) thresholds: Thresholds,
    /// The share of τ from which instances are ignore regions.
    pub(crate) ignore_from: Option<f32>,
    /// Keypoints on which the views agree less are left unlabelled.
    pub(crate) min_agreement: Option<f32>,
}

/// What decides the detections: the bundle's weights, which unlike the manifest do not change when thresholds are amended. Of a wrapped
/// pose model all files but the golden frames, and the detector that is not its own.
pub(crate) fn identity(detector: Option<&Path>, bundle: &Bundle) -> Result<String, DistillError> {
    let files = &bundle.manifest().files;
    if let (Some(_), Some(weights)) = (bundle.manifest().network.rcnn(), files.get("weights.safetensors")) {
        return Ok(weights.sha256.clone());
    }
    let mut hash = Sha256::new();
    for (name, entry) in files.iter().filter(|(name, _)| !name.starts_with("golden/")) {
        hash.update(format!("{name} {}\n", entry.sha256));
    }
    if let Some(detector) = finder(detector, bundle)? {
        hash.update(detector.sha256());
    }
    Ok(omnilabel_bundle::hex(&hash.finalize()))
}

/// What finds people for `bundle`, where the configuration says so and it needs that.
fn finder(detector: Option<&Path>, bundle: &Bundle) -> Result<Option<Bundle>, DistillError> {
    match detector {
        Some(path) if bundle.manifest().network.takes_boxes() => Ok(Some(Bundle::open(path)?)),
        _ => Ok(None),
    }
}

/// The model of a bundle, ready to detect.
pub(crate) fn runner(detector: Option<&Path>, bundle: &Bundle) -> Result<Teacher, DistillError> {
    Ok(load_detected(bundle, finder(detector, bundle)?.as_ref())?)
}

/// First line of `detections.jsonl`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    weights_sha256: String,
    views: Views,
    /// Of the list of pictures: in a plain folder, an id is a place in it.
    #[serde(default)]
    listed: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Detected(Detected),
    Unreadable(String),
    /// The ids up to here are done, whether detected or unreadable.
    Through(u64),
}

/// The ensembled detections of all unlabelled pictures: those on disk, then the others. What could not be read is tried again, but not for a
/// student that has begun.
pub(crate) fn detect_all(
    labelling: &Labelling<'_>,
    (teacher, identity): (&Teacher, &str),
    event: &(dyn Fn(Event<'_>) + Sync),
    is_begun: bool,
    cancel: &AtomicBool,
) -> Result<Detections, DistillError> {
    let Labelling { unlabelled, folder, .. } = *labelling;
    std::fs::create_dir_all(folder).map_err(ArmError::io(folder))?;
    let path = folder.join("detections.jsonl");
    let mut header = Header { weights_sha256: identity.to_owned(), views: labelling.views.clone(), listed: Some(listed(unlabelled)) };
    let (mut found, through) = read(&path, &mut header, is_begun)?;
    let json = |source| ArmError::Json { path: path.clone(), source };
    let of = unlabelled.images.len();
    let wanted: BTreeSet<u64> = unlabelled.images.iter().map(|i| i.id).collect();
    found.images.retain(|i| wanted.contains(&i.image_id));
    found.images.sort_by_key(|i| i.image_id);
    if !is_begun {
        found.unreadable.clear();
    }

    let mut text = serde_json::to_vec(&header).map_err(json)?;
    text.push(b'\n');
    for line in lines(&found, through) {
        serde_json::to_writer(&mut text, &line).map_err(json)?;
        text.push(b'\n');
    }
    crate::arm::write_atomically(&path, &text)?;
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).map_err(ArmError::io(&path))?;

    same_skeleton(teacher, unlabelled)?;
    let plan = labelling.views.plan(teacher);
    let is_done = |id: u64| {
        let is_found = found.images.binary_search_by_key(&id, |i| i.image_id).is_ok();
        is_found || is_begun && through.is_some_and(|through| id <= through)
    };
    let rest = unlabelled.subset(|_, image| !is_done(image.id));
    let known = of - rest.images.len();
    for (chunk, first) in (0..rest.images.len()).step_by(CHUNK).enumerate() {
        let part = rest.subset(|index, _| (first..first + CHUNK).contains(&index));
        let done = |n| event(Event::Pictures { done: known + chunk * CHUNK + n, of });
        let more = detect_readable(teacher, &part, &plan, &done, cancel)?;
        let mut text = Vec::new();
        for line in lines(&more, part.images.last().map(|i| i.id)) {
            serde_json::to_writer(&mut text, &line).map_err(json)?;
            text.push(b'\n');
        }
        file.write_all(&text).map_err(ArmError::io(&path))?;
        found.images.extend(more.images);
        found.unreadable.extend(more.unreadable);
    }
    found.images.sort_by_key(|i| i.image_id);
    Ok(found)
}

/// Of the pictures of a data set by their names and sizes, wherever they lie.
fn listed(dataset: &Dataset) -> String {
    let listed = dataset.images.iter().map(|image| {
        let path = dataset.image_path(image);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        (image.id, name, std::fs::metadata(&path).map_or(0, |about| about.len()))
    });
    digest(&listed.collect::<Vec<_>>())
}

/// The list of the pictures that a student begins with.
const PICTURES: &str = "pictures.json";

/// Notes the pictures of a student that begins.
pub(crate) fn note_pictures(folder: &Path, detections: &Detections) -> Result<(), DistillError> {
    let path = folder.join(PICTURES);
    let ids: BTreeSet<u64> = detections.images.iter().map(|i| i.image_id).collect();
    std::fs::create_dir_all(folder).map_err(ArmError::io(folder))?;
    let text = serde_json::to_vec(&ids).map_err(|source| ArmError::Json { path: path.clone(), source })?;
    Ok(crate::arm::write_atomically(&path, &text)?)
}

/// Keeps those that were noted: other students may have found more since.
pub(crate) fn keep_noted(folder: &Path, detections: &mut Detections) -> Result<(), DistillError> {
    let path = folder.join(PICTURES);
    if !path.exists() {
        return Ok(());
    }
    let text = std::fs::read(&path).map_err(ArmError::io(&path))?;
    let ids: BTreeSet<u64> = serde_json::from_slice(&text).map_err(|source| ArmError::Json { path: path.clone(), source })?;
    let (kept, back): (Vec<_>, Vec<_>) = std::mem::take(&mut detections.images).into_iter().partition(|i| ids.contains(&i.image_id));
    detections.images = kept;
    let reason = |image: &Detected| format!("picture {}: could not be read when the student began", image.image_id);
    detections.unreadable.extend(back.iter().map(reason));
    Ok(())
}

fn lines(detections: &Detections, through: Option<u64>) -> impl Iterator<Item = Line> + '_ {
    let detected = detections.images.iter().cloned().map(Line::Detected);
    let unreadable = detections.unreadable.iter().cloned().map(Line::Unreadable);
    detected.chain(unreadable).chain(through.map(Line::Through))
}

/// What is on disk of this teacher, these views and these pictures, up to the last complete chunk. Whoever labels for a student that has
/// begun takes what that one has: its training refuses other pictures by itself.
fn read(path: &Path, header: &mut Header, is_begun: bool) -> Result<(Detections, Option<u64>), DistillError> {
    let mut done = Detections::default();
    let mut through = None;
    if !path.exists() {
        return Ok((done, through));
    }
    let file = std::fs::File::open(path).map_err(ArmError::io(path))?;
    let mut lines = std::io::BufReader::new(file).lines();
    let first = lines.next().transpose().map_err(ArmError::io(path))?.unwrap_or_default();
    let known = serde_json::from_str::<Header>(&first).ok();
    let fits = |known: &Header| {
        let by_it = known.weights_sha256 == header.weights_sha256 && known.views == header.views;
        by_it && (is_begun || known.listed == header.listed)
    };
    let Some(known) = known.filter(fits) else {
        tracing::warn!(file = %path.display(), "made by another teacher, with other views or of other pictures, done again");
        return Ok((done, through));
    };
    // What was found in other pictures goes on to say so.
    header.listed = known.listed;
    let mut chunk = Detections::default();
    for line in lines {
        match serde_json::from_str(&line.map_err(ArmError::io(path))?) {
            Ok(Line::Detected(detected)) => chunk.images.push(detected),
            Ok(Line::Unreadable(reason)) => chunk.unreadable.push(reason),
            Ok(Line::Through(id)) => {
                done.images.append(&mut chunk.images);
                done.unreadable.append(&mut chunk.unreadable);
                // Those that are tried again come after all others.
                through = through.max(Some(id));
            }
            // Torn by a power cut: the chunk is done again.
            Err(_) => break,
        }
    }
    Ok((done, through))
}

/// Applies both thresholds: samples for the student, and `annotations.json` for people.
pub(crate) fn harden_all(labelling: &Labelling<'_>, detections: &Detections, rule: &Rule) -> Result<(SampleSet, LabelCount), DistillError> {
    let Labelling { unlabelled, left_out, folder, .. } = *labelling;
    let thresholds = rule.thresholds;
    let mut set = SampleSet::empty(unlabelled.skeleton.clone());
    let mut dataset =
        Dataset { root: unlabelled.root.clone(), skeleton: unlabelled.skeleton.clone(), images: Vec::new(), annotations: Vec::new() };
    let unreadable = left_out.len() + detections.unreadable.len();
    let images = left_out.len() + unlabelled.images.len();
    let mut count = LabelCount { images, unreadable, ..LabelCount::default() };
    for detected in &detections.images {
        count.detections += detected.detections.len();
        let kept = split(&detected.detections, thresholds.instance, rule.ignore_from);
        let Ok(index) = unlabelled.images.binary_search_by_key(&detected.image_id, |i| i.id) else { continue };
        let image = &unlabelled.images[index];
        let path = unlabelled.image_path(image);
        let picture = std::fs::read(&path).map_err(ArmError::io(&path))?;
        let Some(item) = Item::generated(image.id, &image.file_name, picture.into(), &kept, thresholds.keypoint, rule.min_agreement) else {
            continue;
        };
        count.labelled_images += 1;
        count.people += item.people.len();
        count.ignored += item.ignore.len();
        // A plain folder's pictures have absolute names; a data set names them within its folder.
        let file_name = Path::new(&image.file_name).file_name().map(|n| n.to_string_lossy().into_owned());
        let file_name = file_name.filter(|_| Path::new(&image.file_name).is_absolute()).unwrap_or_else(|| image.file_name.clone());
        dataset.images.push(ImageRecord { file_name, ..image.clone() });
        for person in &item.people {
            let flat: Vec<f64> =
                person.keypoints.iter().flat_map(|k| k.map_or([0.0; 3], |p| [from_continuous(p.x), from_continuous(p.y), 2.0])).collect();
            let labelled = person.keypoints.iter().flatten().count();
            count.keypoints += labelled;
            let r = person.rect;
            dataset.annotations.push(Annotation {
                id: dataset.annotations.len() as u64 + 1,
                image_id: image.id,
                category_id: labelling.category_id,
                bbox: [r.x1, r.y1, r.width(), r.height()].map(f64::from),
                keypoints: flat,
                num_keypoints: labelled as u32,
                area: f64::from(r.area()),
                iscrowd: 0,
            });
        }
        set.items.push(item);
    }
    if set.items.is_empty() {
        let first = left_out.first().map(ToString::to_string).or_else(|| detections.unreadable.first().cloned());
        let unreadable = first.map(|first| format!("; {unreadable} could not be read, the first: {first}")).unwrap_or_default();
        return Err(DistillError::NoLabels { detections: count.detections, images, tau: thresholds.instance, unreadable });
    }
    dataset.write(folder)?;
    Ok((set, count))
}

/// Gives everybody of `items`, which are a teacher's labels, that teacher's averaged heatmaps: soft labels. They are kept in memory, 12.5 kB a
/// keypoint, and nowhere else. `done` is told how many pictures are finished.
pub(crate) fn soften(
    items: &mut [Item],
    teacher: &Teacher,
    plan: &ViewPlan,
    done: &(dyn Fn(usize) + Sync),
    cancel: &AtomicBool,
) -> Result<(), DistillError> {
    let finished = AtomicUsize::new(0);
    let side = teacher.manifest().network.rcnn().map_or(0, |network| network.heatmap_side as usize);
    items.par_iter_mut().try_for_each(|item| {
        if cancel.load(Ordering::Relaxed) {
            return Err(EvaluateError::Cancelled.into());
        }
        let frame = Frame::decode(&item.name, &item.picture).map_err(SampleError::from)?;
        let boxes: Vec<(Rect, f32)> = item.people.iter().map(|person| (person.rect, 1.0)).collect();
        let maps = teacher.soft_in(&frame, &boxes, plan).map_err(EvaluateError::from)?;
        for (person, maps) in item.people.iter_mut().zip(maps) {
            let label = SoftLabel::new(person.rect, person.keypoints.len(), side, maps).map_err(ArmError::from)?;
            person.soft = Some(Arc::new(label));
        }
        done(finished.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(())
    })
}
