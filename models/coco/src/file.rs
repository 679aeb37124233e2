//! The files themselves: exact numbers, every claim checked.

use crate::{Annotation, CocoError, Dataset, ImageRecord, ResultRecord};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::json;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Component, Path};

#[derive(Deserialize)]
struct DatasetFile {
    images: Vec<ImageRecord>,
    #[serde(default)]
    annotations: Vec<AnnotationRecord>,
    categories: Vec<Category>,
}

#[derive(Serialize)]
struct WrittenFile<'d> {
    images: &'d [ImageRecord],
    annotations: &'d [Annotation],
    categories: [Category; 1],
}

/// An annotation as files have it: what others count or imply may be missing.
#[derive(Deserialize)]
struct AnnotationRecord {
    id: u64,
    image_id: u64,
    category_id: Option<u64>,
    #[serde(default)]
    bbox: [f64; 4],
    #[serde(default)]
    keypoints: Vec<f64>,
    num_keypoints: Option<u32>,
    #[serde(default)]
    area: f64,
    #[serde(default)]
    iscrowd: u8,
}

impl AnnotationRecord {
    /// `category` is the one with keypoints.
    fn complete(self, category: u64) -> Annotation {
        let Self { id, image_id, category_id, bbox, keypoints, num_keypoints, area, iscrowd } = self;
        let labelled = || keypoints.iter().skip(2).step_by(3).filter(|v| **v > 0.0).count() as u32;
        let (category_id, num_keypoints) = (category_id.unwrap_or(category), num_keypoints.unwrap_or_else(labelled));
        Annotation { id, image_id, category_id, bbox, keypoints, num_keypoints, area, iscrowd }
    }
}

#[derive(Serialize, Deserialize)]
struct Category {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    keypoints: Vec<String>,
    /// 1-based pairs.
    #[serde(default)]
    skeleton: Vec<(u64, u64)>,
    /// OKS sigmas, an extension of COCO's format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sigmas: Option<Vec<f32>>,
    /// 0-based flip permutation, an extension: for names that do not tell left from right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flip: Option<Vec<u8>>,
}

/// Errors about one file.
struct Checker<'p>(&'p Path);

impl Checker<'_> {
    fn content(&self, message: String) -> CocoError {
        CocoError::Content { path: self.0.to_owned(), message }
    }

    fn io(&self) -> impl Fn(std::io::Error) -> CocoError {
        |source| CocoError::Io { path: self.0.to_owned(), source }
    }

    fn finite(&self, what: &str, id: u64, values: &[f64]) -> Result<(), CocoError> {
        match values.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(self.content(format!("{what} {id}: {v} is not a finite number"))),
            None => Ok(()),
        }
    }
}

/// The exact reader first: serde_json without `float_roundtrip` may miss the last bit of a number. Where it refuses (also escapes
/// longer than its buffer), serde_json decides, and words the error.
fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, CocoError> {
    match json::from_slice(bytes) {
        Ok(value) => Ok(value),
        Err(_) => serde_json::from_slice(bytes).map_err(|source| CocoError::Json { path: path.to_owned(), source }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CocoError> {
    std::fs::read(path).map_err(|source| CocoError::Io { path: path.to_owned(), source })
}

/// See [`crate::may_become_results`].
pub(crate) fn may_become_results(path: &Path) -> Result<(), CocoError> {
    let mut start = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => drop(file.take(64).read_to_end(&mut start).map_err(|source| CocoError::Io { path: path.to_owned(), source })?),
        Err(_) => return Ok(()),
    }
    match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None | Some(b'[') => Ok(()),
        Some(_) => {
            let message = "the file is there and holds no COCO results: it is not overwritten";
            Err(CocoError::Io { path: path.to_owned(), source: std::io::Error::new(std::io::ErrorKind::AlreadyExists, message) })
        }
    }
}

/// Writes beside the file first, so that a torn write never passes for a data set.
pub(crate) fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), CocoError> {
    let check = Checker(path);
    let error = check.io();
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let json = |source| CocoError::Json { path: path.to_owned(), source };
    let mut text = serde_json::to_vec(value).map_err(json)?;
    text.push(b'\n');
    let mut file = std::fs::File::create(&part).map_err(&error)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(&error)?;
    std::fs::rename(&part, path).map_err(&error)
}

pub(crate) fn load(dir: &Path) -> Result<Dataset, CocoError> {
    parse(dir, &read(&dir.join("annotations.json"))?)
}

pub(crate) fn parse(dir: &Path, bytes: &[u8]) -> Result<Dataset, CocoError> {
    let path = dir.join("annotations.json");
    let check = Checker(&path);
    let DatasetFile { mut images, annotations, categories } = parse_json(&path, bytes)?;
    let category = with_keypoints(&check, &categories)?;
    let skeleton = skeleton(&check, category)?;
    let mut annotations: Vec<Annotation> = annotations.into_iter().map(|a| a.complete(category.id)).collect();

    images.sort_by_key(|image| image.id);
    check_images(&check, &images)?;
    let known: BTreeSet<u64> = images.iter().map(|image| image.id).collect();
    let mut ids = BTreeSet::new();
    for annotation in &annotations {
        check_annotation(&check, annotation, category, skeleton.len())?;
        if !known.contains(&annotation.image_id) {
            let (id, image) = (annotation.id, annotation.image_id);
            return Err(check.content(format!("annotation {id} belongs to image {image}, which is not in the file")));
        }
        if !ids.insert(annotation.id) {
            return Err(check.content(format!("annotation id {} occurs twice", annotation.id)));
        }
    }
    annotations.sort_by_key(|annotation| annotation.image_id);
    Ok(Dataset { root: dir.to_owned(), skeleton, images, annotations })
}

/// The category with keypoints.
fn with_keypoints<'c>(check: &Checker<'_>, categories: &'c [Category]) -> Result<&'c Category, CocoError> {
    let found = categories.iter().find(|c| !c.keypoints.is_empty());
    found.ok_or_else(|| check.content("no category has keypoints; expected `categories[].keypoints`".to_owned()))
}

pub(crate) fn read_skeleton(path: &Path) -> Result<Skeleton, CocoError> {
    #[derive(Deserialize)]
    struct Categories {
        categories: Vec<Category>,
    }
    let check = Checker(path);
    let Categories { categories } = parse_json(path, &read(path)?)?;
    skeleton(&check, with_keypoints(&check, &categories)?)
}

fn skeleton(check: &Checker<'_>, category: &Category) -> Result<Skeleton, CocoError> {
    let wrong = |message: String| check.content(format!("category {}: {message}", category.id));
    let names: Vec<&str> = category.keypoints.iter().map(String::as_str).collect();
    let mut edges = Vec::new();
    for &(a, b) in &category.skeleton {
        let index = |i: u64| i.checked_sub(1).and_then(|i| u8::try_from(i).ok());
        let edge = index(a).zip(index(b));
        edges.push(edge.ok_or_else(|| wrong(format!("skeleton edge [{a}, {b}] is out of range; expected 1-based indices")))?);
    }
    Skeleton::new(&names, &edges, category.flip.as_deref(), category.sigmas.as_deref()).map_err(|e| wrong(e.to_string()))
}

fn check_images(check: &Checker<'_>, images: &[ImageRecord]) -> Result<(), CocoError> {
    if let Some(pair) = images.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(check.content(format!("image id {} occurs twice", pair[0].id)));
    }
    for image in images {
        let (id, name) = (image.id, &image.file_name);
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_));
        if name.is_empty() || name.contains(['\\', '\0']) || !Path::new(name).components().all(inside) {
            return Err(check.content(format!("image {id}: file_name {name:?} leaves the folder `images`")));
        }
        if image.width == 0 || image.height == 0 {
            return Err(check.content(format!("image {id} is {} × {} px", image.width, image.height)));
        }
    }
    Ok(())
}

fn check_annotation(check: &Checker<'_>, annotation: &Annotation, category: &Category, count: usize) -> Result<(), CocoError> {
    let id = annotation.id;
    let wrong = |message: String| Err(check.content(format!("annotation {id}: {message}")));
    if annotation.category_id != category.id {
        return wrong(format!("category {}, expected {}, the one with keypoints", annotation.category_id, category.id));
    }
    check.finite("annotation", id, &annotation.bbox)?;
    check.finite("annotation", id, &annotation.keypoints)?;
    check.finite("annotation", id, &[annotation.area])?;
    if annotation.bbox[2] < 0.0 || annotation.bbox[3] < 0.0 || annotation.area < 0.0 {
        return wrong("bbox or area is negative".to_owned());
    }
    let (found, expected) = (annotation.keypoints.len(), 3 * count);
    // People (mostly crowds) whose keypoints nobody labelled may have an empty list.
    if found != expected && !(found == 0 && annotation.num_keypoints == 0) {
        return wrong(format!("{found} keypoint numbers, expected {expected} (x, y, v for each of {count})"));
    }
    if let Some(v) = annotation.keypoints.iter().skip(2).step_by(3).find(|v| ![0.0, 1.0, 2.0].contains(*v)) {
        return wrong(format!("visibility {v}, expected 0, 1 or 2"));
    }
    if annotation.iscrowd > 1 {
        return wrong(format!("iscrowd is {}, expected 0 or 1", annotation.iscrowd));
    }
    Ok(())
}

pub(crate) fn write(dataset: &Dataset, dir: &Path) -> Result<(), CocoError> {
    let skeleton = &dataset.skeleton;
    let category = Category {
        id: dataset.category_id(),
        name: "person".to_owned(),
        keypoints: skeleton.names().map(str::to_owned).collect(),
        skeleton: skeleton.edges().iter().map(|&(a, b)| (u64::from(a) + 1, u64::from(b) + 1)).collect(),
        sigmas: Some(skeleton.sigmas().to_vec()),
        flip: Some(skeleton.flip().to_vec()),
    };
    let file = WrittenFile { images: &dataset.images, annotations: &dataset.annotations, categories: [category] };
    write_json(&dir.join("annotations.json"), &file)
}

pub(crate) fn read_results(path: &Path) -> Result<Vec<ResultRecord>, CocoError> {
    let check = Checker(path);
    let results: Vec<ResultRecord> = parse_json(path, &read(path)?)?;
    let mut lengths = BTreeMap::new();
    for (index, result) in results.iter().enumerate() {
        check.finite("result", index as u64, &result.keypoints)?;
        check.finite("result", index as u64, &[result.score])?;
        check.finite("result", index as u64, result.bbox.as_ref().map_or(&[], |b| &b[..]))?;
        let length = result.keypoints.len();
        let expected = *lengths.entry(result.category_id).or_insert(length);
        if length % 3 != 0 {
            return Err(check.content(format!("result {index} has {length} keypoint numbers, expected x, y and v of each keypoint")));
        }
        if length != expected {
            return Err(check.content(format!("result {index} has {length} keypoint numbers, expected {expected} as those before it")));
        }
    }
    Ok(results)
}
