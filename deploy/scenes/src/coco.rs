//! A folder of scenes in COCO's format: `images/` and `annotations.json`.

use crate::{Look, Scene, scene};
use image::codecs::jpeg::JpegEncoder;
use omnilabel_coco::{Annotation, Dataset, ImageRecord, from_continuous};
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::Visibility;
use omnilabel_keypoints::skeleton::Skeleton;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Why a folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ScenesError {
    /// No look to draw from.
    #[error("no look was given to render scenes from")]
    NoLook,
    /// A picture could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A picture could not be encoded.
    #[error("{path}: {source}")]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// The annotations could not be written.
    #[error(transparent)]
    Coco(#[from] omnilabel_coco::CocoError),
}

impl Scene {
    /// The picture as JPEG at the camera's quality.
    ///
    /// # Errors
    /// What the encoder reports.
    pub fn to_jpeg(&self) -> Result<Vec<u8>, image::ImageError> {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, self.jpeg_quality).encode_image(&self.image)?;
        Ok(bytes)
    }
}

/// Renders `count` scenes of `seed` into `dir`, on all cores: scene `i` has look `i % looks.len()` and image id `i + 1`.
///
/// # Errors
/// See [`ScenesError`].
pub fn write_coco(dir: &Path, looks: &[Look], seed: u64, count: u64, size: Size) -> Result<Dataset, ScenesError> {
    if looks.is_empty() {
        return Err(ScenesError::NoLook);
    }
    let images = dir.join("images");
    std::fs::create_dir_all(&images).map_err(|source| ScenesError::Io { path: images.clone(), source })?;
    let scenes = (0..count).into_par_iter().map(|index| {
        let look = &looks[(index % looks.len() as u64) as usize];
        let scene = scene(look, seed, index, size);
        let record = ImageRecord { id: index + 1, file_name: format!("{:06}.jpg", index + 1), width: size.width, height: size.height };
        let path = images.join(&record.file_name);
        let jpeg = scene.to_jpeg().map_err(|source| ScenesError::Encode { path: path.clone(), source })?;
        std::fs::write(&path, jpeg).map_err(|source| ScenesError::Io { path, source })?;
        Ok((record, annotations(&scene, index + 1)))
    });
    let scenes: Vec<(ImageRecord, Vec<Annotation>)> = scenes.collect::<Result<_, ScenesError>>()?;
    let (records, annotations): (Vec<_>, Vec<_>) = scenes.into_iter().unzip();
    let mut annotations: Vec<Annotation> = annotations.into_iter().flatten().collect();
    for (index, annotation) in annotations.iter_mut().enumerate() {
        annotation.id = index as u64 + 1;
    }
    let dataset = Dataset { root: dir.to_owned(), skeleton: Skeleton::coco17(), images: records, annotations };
    dataset.write(dir)?;
    Ok(dataset)
}

/// The people of a scene as annotations of image `image_id`; ids are left 0.
pub fn annotations(scene: &Scene, image_id: u64) -> Vec<Annotation> {
    let people = scene.people.iter().map(|person| {
        let rect = person.rect;
        let keypoints = person.keypoints.iter().flat_map(|keypoint| match keypoint.visibility {
            Visibility::Unlabelled => [0.0, 0.0, 0.0],
            Visibility::Hidden => [from_continuous(keypoint.point.x), from_continuous(keypoint.point.y), 1.0],
            Visibility::Visible => [from_continuous(keypoint.point.x), from_continuous(keypoint.point.y), 2.0],
        });
        Annotation {
            id: 0,
            image_id,
            category_id: 1,
            bbox: [rect.x1, rect.y1, rect.width(), rect.height()].map(f64::from),
            keypoints: keypoints.collect(),
            num_keypoints: person.keypoints.iter().filter(|k| k.visibility != Visibility::Unlabelled).count() as u32,
            area: f64::from(person.area),
            iscrowd: 0,
        }
    });
    people.collect()
}
