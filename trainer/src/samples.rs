//! Training samples: a COCO folder's manual labels, or images with labels that a teacher made.
//!
//! Pictures stay encoded in memory and are decoded when a step needs them.

use crate::calibrate::Kept;
use omnilabel_coco::{Annotation, Dataset, ImageRecord, to_continuous};
use omnilabel_detect::frame::{Frame, FrameError};
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::Keypoint;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::augment::{Person, Sample};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a folder gives no samples.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Nothing to train on.
    #[error("{root}: no usable image with a labelled person ({listed} images listed, {bad} unreadable{first})")]
    Empty {
        /// The folder.
        root: PathBuf,
        /// Images in the file.
        listed: usize,
        /// Pictures that could not be decoded.
        bad: usize,
        /// The first of them.
        first: String,
    },
    /// A picture that could be decoded when it was loaded cannot be now.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One image with its labels, in frame pixels (continuous coordinates).
#[derive(Clone, Debug)]
pub struct Item {
    /// The image's id.
    pub id: u64,
    /// File name, for messages.
    pub name: String,
    /// The picture as JPEG or PNG.
    pub picture: Arc<[u8]>,
    /// Who is to be learnt.
    pub people: Vec<Person>,
    /// Neither positive nor background.
    pub ignore: Vec<Rect>,
}

impl Item {
    /// An image with a teacher's labels: kept instances become people, with the keypoints at or above τ_k on which the views agree by
    /// `min_agreement` at least; those just under τ become ignore regions. `None` when nobody with a keypoint is kept.
    pub fn generated(
        id: u64,
        name: &str,
        picture: Arc<[u8]>,
        kept: &Kept<'_>,
        keypoint_threshold: f32,
        min_agreement: Option<f32>,
    ) -> Option<Self> {
        let people: Vec<Person> = kept
            .people
            .iter()
            .map(|d| {
                let agreed = |k: &Keypoint| min_agreement.is_none_or(|least| k.agreement >= least);
                let hard = |k: &Keypoint| (k.passes(keypoint_threshold) && agreed(k)).then_some(k.point);
                Person { rect: d.rect, keypoints: d.keypoints.iter().map(hard).collect(), soft: None }
            })
            .filter(|p| p.rect.is_valid() && p.rect.area() > 0.0)
            .collect();
        if !people.iter().any(|p| p.keypoints.iter().any(Option::is_some)) {
            return None;
        }
        Some(Self { id, name: name.to_owned(), picture, people, ignore: kept.ignored.iter().map(|d| d.rect).collect() })
    }

    /// The picture decoded, with its labels; `generated` says whose they are.
    ///
    /// # Errors
    /// [`FrameError::Decode`].
    pub fn sample(&self, generated: bool) -> Result<Sample, FrameError> {
        let frame = Frame::decode(&self.name, &self.picture)?;
        Ok(Sample { frame, people: self.people.clone(), ignore: self.ignore.clone(), generated })
    }
}

/// A picture that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its file.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A decoder's reason begins with the file already.
        if self.reason.starts_with(&self.name) { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.name, self.reason) }
    }
}

/// Samples of one skeleton.
#[derive(Clone, Debug)]
pub struct SampleSet {
    /// What the keypoints are.
    pub skeleton: Skeleton,
    /// Every image with at least one labelled keypoint.
    pub items: Vec<Item>,
    /// How many of the last of these are pictures of the site's cameras: they are learnt from, and go to no device.
    pub private: usize,
    /// Pictures that could not be decoded.
    pub left_out: Vec<LeftOut>,
}

impl SampleSet {
    /// Reads a data set: every picture is decoded once to prove it, and those that fail are left out by name. Images without a
    /// labelled keypoint are dropped (spec §2); crowds become ignore regions.
    ///
    /// # Errors
    /// [`SampleError::Empty`].
    pub fn load(dataset: &Dataset) -> Result<Self, SampleError> {
        enum Read {
            Item(Item),
            Dropped,
            Bad(LeftOut),
        }
        let read: Vec<Read> = dataset
            .images
            .par_iter()
            .map(|image| {
                let (people, ignore) = split(dataset.annotations_of(image.id));
                if !people.iter().any(|p| p.keypoints.iter().any(Option::is_some)) {
                    return Read::Dropped;
                }
                let path = dataset.image_path(image);
                let bad = |reason: String| Read::Bad(LeftOut { name: path.display().to_string(), reason });
                let picture = match std::fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) => return bad(error.to_string()),
                };
                match Frame::decode(&image.file_name, &picture) {
                    Ok(frame) if (frame.size.width, frame.size.height) != (image.width, image.height) => bad(format!(
                        "the picture is {}×{}, annotations.json says {}×{}",
                        frame.size.width, frame.size.height, image.width, image.height
                    )),
                    Ok(_) => Read::Item(Item { id: image.id, name: image.file_name.clone(), picture: picture.into(), people, ignore }),
                    Err(error) => bad(error.to_string()),
                }
            })
            .collect();
        let mut set = Self { skeleton: dataset.skeleton.clone(), items: Vec::new(), private: 0, left_out: Vec::new() };
        for one in read {
            match one {
                Read::Item(item) => set.items.push(item),
                Read::Bad(left_out) => set.left_out.push(left_out),
                Read::Dropped => {}
            }
        }
        for left_out in &set.left_out {
            tracing::warn!(file = %left_out.name, reason = %left_out.reason, "picture left out");
        }
        if set.items.is_empty() {
            return Err(SampleError::Empty {
                root: dataset.root.clone(),
                listed: dataset.images.len(),
                bad: set.left_out.len(),
                first: set.left_out.first().map(|l| format!(", first {}: {}", l.name, l.reason)).unwrap_or_default(),
            });
        }
        Ok(set)
    }

    /// A set to which items are added.
    pub fn empty(skeleton: Skeleton) -> Self {
        Self { skeleton, items: Vec::new(), private: 0, left_out: Vec::new() }
    }

    /// Adds pictures of the site's cameras, with ids above those that are there.
    pub fn join(&mut self, cameras: Self) {
        let last = self.items.iter().map(|item| item.id).max().unwrap_or(0);
        self.private += cameras.items.len();
        self.items.extend(cameras.items.into_iter().map(|item| Item { id: last.saturating_add(item.id), ..item }));
        self.left_out.extend(cameras.left_out);
    }
}

/// A folder of pictures without labels, as a data set of `skeleton` without annotations: `dir/images/*` or `dir/*`, JPEG and PNG by
/// ascending name. Ids count from 1. Pictures whose header cannot be read are left out by name.
///
/// # Errors
/// When the folder cannot be listed or has no picture that can be read.
pub fn plain_folder(dir: &Path, skeleton: &Skeleton) -> std::io::Result<(Dataset, Vec<LeftOut>)> {
    let inner = dir.join("images");
    let listed = std::fs::canonicalize(if inner.is_dir() { &inner } else { dir })?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&listed)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e.eq_ignore_ascii_case(known))));
    paths.sort();
    let (mut images, mut left_out) = (Vec::new(), Vec::new());
    for path in paths {
        match image::image_dimensions(&path) {
            Ok((width, height)) => {
                let file_name = path.to_string_lossy().into_owned();
                images.push(ImageRecord { id: images.len() as u64 + 1, file_name, width, height });
            }
            Err(error) => left_out.push(LeftOut { name: path.display().to_string(), reason: error.to_string() }),
        }
    }
    if images.is_empty() {
        let first = left_out.first().map(|first| format!("; the first of {}: {first}", left_out.len())).unwrap_or_default();
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, format!("no readable JPEG or PNG{first}")));
    }
    Ok((Dataset { root: dir.to_owned(), skeleton: skeleton.clone(), images, annotations: Vec::new() }, left_out))
}

/// Whether an annotation counts as a labelled person: no crowd, at least one keypoint with v > 0.
pub fn is_labelled_person(annotation: &Annotation) -> bool {
    annotation.iscrowd == 0 && annotation.keypoints.chunks(3).any(|k| k.get(2).is_some_and(|v| *v > 0.0))
}

/// People and ignore regions of one image. People without a keypoint are people too: the box heads learn them.
fn split(annotations: &[Annotation]) -> (Vec<Person>, Vec<Rect>) {
    let (mut people, mut ignore) = (Vec::new(), Vec::new());
    for annotation in annotations {
        let [x, y, w, h] = annotation.bbox.map(|v| v as f32);
        if !(w > 0.0 && h > 0.0) {
            continue;
        }
        let rect = Rect::from_xywh(x, y, w, h);
        if annotation.iscrowd != 0 {
            ignore.push(rect);
            continue;
        }
        let keypoints = annotation
            .keypoints
            .chunks_exact(3)
            .map(|k| (k[2] > 0.0).then(|| Point { x: to_continuous(k[0]), y: to_continuous(k[1]) }))
            .collect();
        people.push(Person { rect, keypoints, soft: None });
    }
    (people, ignore)
}
