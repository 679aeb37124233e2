//! What a tool's files say, before it is ours: keypoints matched by name, half pixels, boxes, ids, pictures.

use super::pictures::{self, Pictures};
use super::{Coordinates, FormatError};
use omnilabel_coco::{Annotation, Dataset, ImageRecord};
use omnilabel_keypoints::skeleton::Skeleton;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One person as a format has it.
#[derive(Clone, Debug, Default)]
pub(super) struct DraftPerson {
    /// In the file; ids are drawn anew where one is missing.
    pub(super) id: Option<u64>,
    /// Line, element or id, for errors.
    pub(super) at: String,
    /// `[x, y, width, height]`, px.
    pub(super) bbox: Option<[f64; 4]>,
    /// `[x, y, v]` of each keypoint of the file's skeleton, px in the format's coordinates.
    pub(super) keypoints: Vec<[f64; 3]>,
    /// px²
    pub(super) area: Option<f64>,
    /// A region with many people.
    pub(super) crowd: bool,
}

/// One picture as a format has it.
#[derive(Clone, Debug, Default)]
pub(super) struct DraftImage {
    /// In the file.
    pub(super) id: Option<u64>,
    /// Line, element or id, for errors.
    pub(super) at: String,
    /// Its name, and what else it may be called on disk.
    pub(super) name: String,
    pub(super) other_name: Option<String>,
    /// Where it lies, if the format says so.
    pub(super) source: Option<PathBuf>,
    /// Width and height, px, if the format says so.
    pub(super) size: Option<(u32, u32)>,
    pub(super) people: Vec<DraftPerson>,
}

/// A set of labels as a format has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// The file of annotations.
    pub(super) path: PathBuf,
    /// Of the keypoints, in the order of [`DraftPerson::keypoints`]; empty where the format has numbers only.
    pub(super) names: Vec<String>,
    /// Keypoints of a person.
    pub(super) count: usize,
    /// 0-based.
    pub(super) edges: Vec<(u8, u8)>,
    pub(super) flip: Option<Vec<u8>>,
    pub(super) sigmas: Option<Vec<f32>>,
    pub(super) images: Vec<DraftImage>,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

/// Names are compared without regard to case and to what separates words.
fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

impl Draft {
    /// The data set, its pictures copied to `out/images`, and what a person should know.
    pub(super) fn finish(
        mut self,
        wanted: Option<&Skeleton>,
        coordinates: Coordinates,
        root: &Path,
        out: &Path,
    ) -> Result<(Dataset, Vec<String>), FormatError> {
        let (skeleton, from) = self.skeleton(wanted)?;
        if self.images.is_empty() {
            return Err(FormatError::whole(&self.path, "no picture with labels is in it"));
        }
        let sources = if self.images.iter().all(|image| image.source.is_some()) { None } else { Some(Pictures::of(root)?) };
        let keep_ids = self.ids_are_whole();
        if !keep_ids && self.images.iter().any(|image| image.id.is_some()) {
            self.notes.push("ids are missing, zero or not unique: pictures and people are numbered anew".to_owned());
        }
        let mut dataset = Dataset { root: out.to_owned(), skeleton, images: Vec::new(), annotations: Vec::new() };
        let (mut names, mut boxless, mut empty) = (BTreeSet::new(), 0_u64, 0_u64);
        for image in std::mem::take(&mut self.images) {
            let id = image.id.filter(|_| keep_ids).unwrap_or(dataset.images.len() as u64 + 1);
            let (file_name, width, height) = self.place(&image, sources.as_ref(), out, &mut names)?;
            for person in image.people {
                let keypoints = self.keypoints(&person, &from, coordinates)?;
                let extent = extent(&keypoints, width, height);
                boxless += u64::from(person.bbox.is_none() && extent.is_some());
                let Some(bbox) = person.bbox.or(extent) else {
                    empty += 1;
                    continue;
                };
                if !bbox.iter().all(|value| value.is_finite()) || bbox[2] < 0.0 || bbox[3] < 0.0 {
                    return Err(FormatError::content(
                        &self.path,
                        person.at,
                        format!("the box is {bbox:?}, expected x, y, width and height"),
                    ));
                }
                dataset.annotations.push(Annotation {
                    id: person.id.filter(|_| keep_ids).unwrap_or(dataset.annotations.len() as u64 + 1),
                    image_id: id,
                    category_id: 1,
                    bbox,
                    num_keypoints: keypoints.iter().filter(|keypoint| keypoint[2] > 0.0).count() as u32,
                    keypoints: keypoints.concat(),
                    area: person.area.filter(|area| area.is_finite() && *area >= 0.0).unwrap_or(bbox[2] * bbox[3]),
                    iscrowd: u8::from(person.crowd),
                });
            }
            dataset.images.push(ImageRecord { id, file_name, width, height });
        }
        if boxless > 0 {
            self.notes.push(format!("{boxless} people have no box: theirs is the extent of their keypoints"));
        }
        if empty > 0 {
            self.notes.push(format!("{empty} people without box and keypoints are left out"));
        }
        Ok((dataset, self.notes))
    }

    /// What the keypoints are, and which of the file's each of them is.
    fn skeleton(&mut self, wanted: Option<&Skeleton>) -> Result<(Skeleton, Vec<Option<usize>>), FormatError> {
        let at = "keypoints";
        if self.names.is_empty() {
            let Some(wanted) = wanted else {
                let message =
                    format!("{} keypoints without names, expected --skeleton: `coco17`, or a file with COCO's `categories`", self.count);
                return Err(FormatError::content(&self.path, at, message));
            };
            if wanted.len() != self.count {
                let message = format!("{} of a person, expected {} as --skeleton has", self.count, wanted.len());
                return Err(FormatError::content(&self.path, at, message));
            }
            // By number, a mirror is the only thing that tells one order from another.
            if let Some(flip) = self.flip.as_deref().filter(|flip| *flip != wanted.flip()) {
                let message =
                    format!("mirrored they become {flip:?}, expected {:?} as of --skeleton: another order of keypoints?", wanted.flip());
                return Err(FormatError::content(&self.path, at, message));
            }
            return Ok((wanted.clone(), (0..self.count).map(Some).collect()));
        }
        let mut by_name = BTreeMap::new();
        for (index, name) in self.names.iter().enumerate() {
            if by_name.insert(plain(name), index).is_some() {
                return Err(FormatError::content(&self.path, at, format!("{name:?} occurs twice, expected names of their own")));
            }
        }
        let Some(wanted) = wanted else {
            let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
            let skeleton = Skeleton::new(&names, &self.edges, self.flip.as_deref(), self.sigmas.as_deref())
                .map_err(|error| FormatError::content(&self.path, at, error.to_string()))?;
            return Ok((skeleton, (0..self.count).map(Some).collect()));
        };
        let from: Vec<Option<usize>> = wanted.names().map(|name| by_name.remove(&plain(name))).collect();
        if !by_name.is_empty() {
            let (unknown, expected): (Vec<_>, Vec<_>) = (by_name.keys().collect(), wanted.names().collect());
            let message = format!("{unknown:?} are not in --skeleton, expected names of {expected:?}");
            return Err(FormatError::content(&self.path, at, message));
        }
        let missing: Vec<&str> = wanted.names().zip(&from).filter(|(_, from)| from.is_none()).map(|(name, _)| name).collect();
        if !missing.is_empty() {
            self.notes.push(format!("{missing:?} are not in the files: they stay unlabelled"));
        }
        Ok((wanted.clone(), from))
    }

    /// Ids can be kept where all are there, none twice, and none 0: pycocotools takes a match with annotation 0 for none.
    fn ids_are_whole(&self) -> bool {
        let whole = |ids: Vec<Option<u64>>| {
            let distinct: BTreeSet<u64> = ids.iter().flatten().copied().filter(|id| *id > 0).collect();
            distinct.len() == ids.len()
        };
        whole(self.images.iter().map(|image| image.id).collect())
            && whole(self.images.iter().flat_map(|image| &image.people).map(|person| person.id).collect())
    }

    /// Copies a picture; its name below `images/`, width and height.
    fn place(
        &self,
        image: &DraftImage,
        sources: Option<&Pictures>,
        out: &Path,
        names: &mut BTreeSet<String>,
    ) -> Result<(String, u32, u32), FormatError> {
        let wrong = |message: String| FormatError::content(&self.path, image.at.clone(), message);
        let name = pictures::clean(&image.name)
            .ok_or_else(|| wrong(format!("the picture is called {:?}, expected a name below the folder of the pictures", image.name)))?;
        let other = image.other_name.as_deref().and_then(pictures::clean);
        let (name, source) = match (&image.source, sources) {
            (Some(source), _) => (name, source.as_path()),
            (None, Some(sources)) => match (sources.find(&name), other) {
                (Ok(source), _) => (name, source),
                (Err(error), None) => return Err(wrong(error)),
                (Err(error), Some(other)) => (other.clone(), sources.find(&other).map_err(|_| wrong(error))?),
            },
            (None, None) => return Err(wrong("no picture".to_owned())),
        };
        if !pictures::is_picture(Path::new(&name)) {
            return Err(wrong(format!("the picture is called {name:?}, expected a JPEG or a PNG")));
        }
        if !names.insert(name.clone()) {
            return Err(wrong(format!("a second picture is called {name:?}")));
        }
        let (width, height) = pictures::dimensions(source)?;
        if let Some((w, h)) = image.size.filter(|size| *size != (width, height)) {
            let turned =
                if (w, h) == (height, width) { "; the tool may have turned it as its EXIF data say, which is not done here" } else { "" };
            return Err(wrong(format!("{w}×{h} px, the picture {} has {width}×{height}{turned}", source.display())));
        }
        pictures::copy(source, &out.join("images").join(&name))?;
        Ok((name, width, height))
    }

    /// A person's keypoints as ours.
    fn keypoints(&self, person: &DraftPerson, from: &[Option<usize>], coordinates: Coordinates) -> Result<Vec<[f64; 3]>, FormatError> {
        let wrong = |message: String| FormatError::content(&self.path, person.at.clone(), message);
        let given = &person.keypoints;
        if !given.is_empty() && given.len() != self.count {
            return Err(wrong(format!("{} keypoints, expected {}", given.len(), self.count)));
        }
        let ours = from.iter().map(|index| {
            let Some([x, y, v]) = index.and_then(|index| given.get(index)).copied() else { return Ok([0.0; 3]) };
            if ![0.0, 1.0, 2.0].contains(&v) {
                return Err(wrong(format!("visibility {v}, expected 0, 1 or 2")));
            }
            if v == 0.0 {
                return Ok([0.0; 3]);
            }
            if !(x.is_finite() && y.is_finite()) {
                return Err(wrong(format!("a keypoint lies at ({x}, {y}), expected numbers")));
            }
            Ok([x + coordinates.to_index(), y + coordinates.to_index(), v])
        });
        ours.collect()
    }
}

/// The box of the pixels that keypoints lie in, inside of the picture: `None` without a labelled one.
fn extent(keypoints: &[[f64; 3]], width: u32, height: u32) -> Option<[f64; 4]> {
    let labelled = || keypoints.iter().filter(|keypoint| keypoint[2] > 0.0);
    labelled().next()?;
    // An index of i lies in the pixel [i, i + 1).
    let span = |axis: usize, side: u32| {
        let (least, most) =
            labelled().fold((f64::MAX, f64::MIN), |(least, most), keypoint| (least.min(keypoint[axis]), most.max(keypoint[axis])));
        let (from, to) = (least.clamp(0.0, f64::from(side)), (most + 1.0).clamp(0.0, f64::from(side)));
        (from, (to - from).max(0.0))
    };
    let ((x, w), (y, h)) = (span(0, width), span(1, height));
    Some([x, y, w, h])
}
