//! COCO keypoint folders (`images/` + `annotations.json`) and result files, in and out unchanged.
//!
//! Coordinates here are COCO's own (pixel indices); [`to_continuous`] and [`from_continuous`] convert to the continuous
//! coordinates of the rest of the workspace (+0.5 and −0.5, spec §1).

mod file;

use omnilabel_keypoints::skeleton::Skeleton;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Why a folder or file was refused; names the file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum CocoError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not JSON of the expected shape.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// JSON of the right shape that says something impossible.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which id.
        message: String,
    },
}

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Unique id.
    pub id: u64,
    /// File under `images/`.
    pub file_name: String,
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// One entry of `annotations`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Annotation {
    /// Unique id.
    pub id: u64,
    /// The image it belongs to.
    pub image_id: u64,
    /// The category, whose keypoints it has; the one with keypoints where the file does not say.
    pub category_id: u64,
    /// `[x, y, width, height]`.
    pub bbox: [f64; 4],
    /// `x, y, v` for each keypoint, flat.
    pub keypoints: Vec<f64>,
    /// Keypoints with v > 0 as the file says; counted where it does not.
    pub num_keypoints: u32,
    /// Area in px².
    pub area: f64,
    /// 1 for a crowd region.
    pub iscrowd: u8,
}

/// A COCO keypoint data set.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The folder it was read from.
    pub root: PathBuf,
    /// The skeleton of the first category with keypoints, with its own sigmas where the file has them.
    pub skeleton: Skeleton,
    /// By ascending id.
    pub images: Vec<ImageRecord>,
    /// By ascending image id, then in file order.
    pub annotations: Vec<Annotation>,
}

/// One entry of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// The image.
    pub image_id: u64,
    /// The data set's category with keypoints.
    pub category_id: u64,
    /// `x, y, score` for each keypoint, flat.
    pub keypoints: Vec<f64>,
    /// The instance score.
    pub score: f64,
    /// `[x, y, width, height]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bbox: Option<[f64; 4]>,
}

impl Dataset {
    /// Reads `dir/annotations.json`. Images are not opened.
    ///
    /// # Errors
    /// See [`CocoError`]: duplicate ids, an annotation of an image that is not there, a keypoint list of the wrong length,
    /// a `file_name` that leaves the folder, a number that is not finite.
    pub fn load(dir: &Path) -> Result<Self, CocoError> {
        file::load(dir)
    }

    /// The same from the bytes of an `annotations.json` that stands for a file in `dir`.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn from_bytes(dir: &Path, bytes: &[u8]) -> Result<Self, CocoError> {
        file::parse(dir, bytes)
    }

    /// Writes `dir/annotations.json`.
    ///
    /// # Errors
    /// [`CocoError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), CocoError> {
        file::write(self, dir)
    }

    /// The file of an image.
    pub fn image_path(&self, image: &ImageRecord) -> PathBuf {
        self.root.join("images").join(&image.file_name)
    }

    /// The category of its annotations, which results for it have to name; 1 (COCO's person) without any.
    pub fn category_id(&self) -> u64 {
        self.annotations.first().map_or(1, |a| a.category_id)
    }

    /// The annotations of an image.
    pub fn annotations_of(&self, image_id: u64) -> &[Annotation] {
        let start = self.annotations.partition_point(|a| a.image_id < image_id);
        let end = self.annotations.partition_point(|a| a.image_id <= image_id);
        &self.annotations[start..end]
    }

    /// The same data set with only the images for which `keep(index, image)`.
    pub fn subset(&self, mut keep: impl FnMut(usize, &ImageRecord) -> bool) -> Self {
        let kept = self.images.iter().enumerate().filter(|&(index, image)| keep(index, image));
        let images: Vec<_> = kept.map(|(_, image)| image.clone()).collect();
        let has = |id: u64| images.binary_search_by_key(&id, |image| image.id).is_ok();
        let annotations = self.annotations.iter().filter(|a| has(a.image_id)).cloned().collect();
        Self { root: self.root.clone(), skeleton: self.skeleton.clone(), images, annotations }
    }
}

/// Reads the skeleton of the first category with keypoints from a JSON file with COCO's `categories`; it need have nothing else.
///
/// # Errors
/// See [`CocoError`].
pub fn read_skeleton(path: &Path) -> Result<Skeleton, CocoError> {
    file::read_skeleton(path)
}

/// The skeleton that a command line names: `coco17`, or a JSON file with COCO's `categories`.
///
/// # Errors
/// See [`read_skeleton`].
pub fn named_skeleton(text: &str) -> Result<Skeleton, CocoError> {
    if text == "coco17" { Ok(Skeleton::coco17()) } else { read_skeleton(Path::new(text)) }
}

/// Reads a results file.
///
/// # Errors
/// See [`CocoError`]: a keypoint list that is not in threes, a number that is not finite.
pub fn read_results(path: &Path) -> Result<Vec<ResultRecord>, CocoError> {
    file::read_results(path)
}

/// Whether results may be written to `path`, for whoever wants to know before the work: a file that is there holds a list as results do,
/// or nothing. Anything else, such as annotations or a picture, was named by mistake.
///
/// # Errors
/// [`CocoError::Io`].
pub fn may_become_results(path: &Path) -> Result<(), CocoError> {
    file::may_become_results(path)
}

/// Writes a results file that pycocotools' `loadRes` reads.
///
/// # Errors
/// [`CocoError::Io`], also where [`may_become_results`] refuses.
pub fn write_results(path: &Path, results: &[ResultRecord]) -> Result<(), CocoError> {
    file::may_become_results(path)?;
    file::write_json(path, results)
}

/// A COCO pixel index as a continuous coordinate.
pub fn to_continuous(index: f64) -> f32 {
    (index + 0.5) as f32
}

/// A continuous coordinate as a COCO pixel index.
pub fn from_continuous(coordinate: f32) -> f64 {
    f64::from(coordinate) - 0.5
}
