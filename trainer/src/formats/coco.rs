//! COCO keypoints as tools write them. What they leave out is counted or implied here: CVAT writes
//! `annotations/person_keypoints_default.json` beside `images/`
//! (<https://docs.cvat.ai/docs/dataset_management/formats/format-coco-keypoints/>); FiftyOne's `COCODetectionDataset` writes
//! `labels.json` beside `data/`, categories from id 0 on and without names of keypoints, `num_keypoints` of all and no `iscrowd`
//! (`fiftyone/utils/coco.py`, `COCOObject.to_anno_dict`).

use super::draft::{Draft, DraftImage, DraftPerson};
use super::{FormatError, ImportOptions, Lost, read_file};
use omnilabel_coco::Dataset;
use omnilabel_keypoints::wire::json;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Option<Vec<Record>>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    width: Option<u32>,
    height: Option<u32>,
}

#[derive(Deserialize)]
struct Record {
    id: Option<u64>,
    image_id: u64,
    category_id: Option<u64>,
    bbox: Option<Vec<f64>>,
    keypoints: Option<Vec<f64>>,
    area: Option<f64>,
    iscrowd: Option<u8>,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    #[serde(default)]
    name: String,
    keypoints: Option<Vec<String>>,
    skeleton: Option<Vec<(u64, u64)>>,
    sigmas: Option<Vec<f32>>,
    flip: Option<Vec<u8>>,
}

fn parse(path: &Path) -> Result<File, FormatError> {
    let bytes = read_file(path)?;
    // The exact reader first, as in `omnilabel-coco`: numbers keep their last bit.
    json::from_slice(&bytes).or_else(|_| {
        serde_json::from_slice(&bytes).map_err(|error| {
            FormatError::content(
                path,
                format!("line {}", error.line()),
                format!("{error}; expected COCO's images, annotations and categories"),
            )
        })
    })
}

pub(super) fn read(path: &Path, options: &ImportOptions) -> Result<Draft, FormatError> {
    let File { images, annotations, categories } = parse(path)?;
    let annotations = annotations.unwrap_or_default();
    let category = category(path, &categories, &annotations, options)?;
    let names = category.keypoints.clone().unwrap_or_default();
    let numbered = annotations.iter().filter(|a| a.category_id.is_none_or(|id| id == category.id));
    let longest = numbered.filter_map(|a| a.keypoints.as_ref()).map(|k| k.len() / 3).max().unwrap_or(0);
    let count = if names.is_empty() { longest } else { names.len() };
    let mut draft =
        Draft { path: path.to_owned(), count, flip: category.flip.clone(), sigmas: category.sigmas.clone(), ..Draft::default() };
    // Names of other lengths and edges of numbers are the skeleton's to judge.
    for &(a, b) in category.skeleton.iter().flatten() {
        let index = |i: u64| i.checked_sub(1).filter(|i| (*i as usize) < count).and_then(|i| u8::try_from(i).ok());
        let edge = index(a).zip(index(b)).ok_or_else(|| {
            FormatError::content(
                path,
                format!("category {}", category.id),
                format!("skeleton edge [{a}, {b}], expected numbers from 1 to {count}"),
            )
        })?;
        draft.edges.push(edge);
    }
    draft.names = names;

    let mut index = HashMap::new();
    for image in images {
        let at = format!("image {}", image.id);
        if index.insert(image.id, draft.images.len()).is_some() {
            return Err(FormatError::content(path, at, "the id occurs twice, expected ids of their own"));
        }
        let size = image.width.zip(image.height).filter(|(width, height)| *width > 0 && *height > 0);
        draft.images.push(DraftImage { id: Some(image.id), at, name: image.file_name, size, ..DraftImage::default() });
    }
    let mut others = 0_u64;
    for (number, record) in annotations.into_iter().enumerate() {
        let at = record.id.map_or_else(|| format!("annotations[{number}]"), |id| format!("annotation {id}"));
        if record.category_id.is_some_and(|id| id != category.id) {
            others += 1;
            continue;
        }
        let wrong = |message: String| FormatError::content(path, at.clone(), message);
        let Some(image) = index.get(&record.image_id).and_then(|image| draft.images.get_mut(*image)) else {
            return Err(wrong(format!("it belongs to image {}, which is not in the file", record.image_id)));
        };
        let bbox = match record.bbox.as_deref() {
            None | Some([]) => None,
            Some([x, y, w, h]) => Some([*x, *y, *w, *h]),
            Some(other) => return Err(wrong(format!("bbox has {} numbers, expected x, y, width and height", other.len()))),
        };
        let keypoints = record.keypoints.unwrap_or_default();
        if !keypoints.len().is_multiple_of(3) {
            return Err(wrong(format!("{} keypoint numbers, expected x, y and v of each", keypoints.len())));
        }
        let keypoints = keypoints.chunks_exact(3).map(|k| [k[0], k[1], k[2]]).collect();
        let crowd = record.iscrowd.unwrap_or(0);
        if crowd > 1 {
            return Err(wrong(format!("iscrowd is {crowd}, expected 0 or 1")));
        }
        image.people.push(DraftPerson { id: record.id, bbox, keypoints, area: record.area, crowd: crowd == 1, at });
    }
    if others > 0 {
        draft.notes.push(format!("{others} annotations of other categories than {:?} are left out", category.name));
    }
    Ok(draft)
}

/// The category of people: the one with keypoints, or the one that somebody named.
fn category<'c>(
    path: &Path,
    categories: &'c [Category],
    annotations: &[Record],
    options: &ImportOptions,
) -> Result<&'c Category, FormatError> {
    let names = || categories.iter().map(|category| category.name.as_str()).collect::<Vec<_>>();
    if let Some(wanted) = &options.category {
        let found = categories.iter().find(|category| category.name == *wanted);
        return found.ok_or_else(|| {
            FormatError::content(path, "categories", format!("there are {:?}, expected {wanted:?} as --category says", names()))
        });
    }
    let drawn = |category: &Category| {
        let has = |a: &Record| a.category_id.is_none_or(|id| id == category.id) && a.keypoints.as_ref().is_some_and(|k| !k.is_empty());
        annotations.iter().any(has)
    };
    let mut found: Vec<&Category> = categories.iter().filter(|c| c.keypoints.as_ref().is_some_and(|k| !k.is_empty()) || drawn(c)).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(FormatError::content(path, "categories", format!("none of {:?} has keypoints, expected one", names()))),
        _ => {
            let several: Vec<&str> = found.iter().map(|category| category.name.as_str()).collect();
            Err(FormatError::content(path, "categories", format!("{several:?} have keypoints, expected --category to name one")))
        }
    }
}

/// Writes our own format, with keypoints shifted by `shift` px.
pub(super) fn write(dataset: &Dataset, shift: f64, path: &Path) -> Result<Lost, FormatError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut moved = dataset.clone();
    if shift != 0.0 {
        for keypoint in moved.annotations.iter_mut().flat_map(|a| a.keypoints.chunks_exact_mut(3)).filter(|keypoint| keypoint[2] > 0.0) {
            keypoint[0] += shift;
            keypoint[1] += shift;
        }
    }
    moved.write(folder)?;
    let written = folder.join("annotations.json");
    if written != path {
        std::fs::rename(&written, path).map_err(FormatError::io(path))?;
    }
    Ok(Lost::default())
}
