//! Footage from elsewhere: pictures, and what annotations tell of the labels on them.

use super::ExperimentError;
use super::lab::same_keypoints;
use crate::arm::ArmError;
use crate::digest::{digest, file_sha256};
use crate::samples::{LeftOut, plain_folder};
use omnilabel_coco::Dataset;
use omnilabel_keypoints::skeleton::Skeleton;
use std::path::Path;

/// Footage from elsewhere.
pub(super) struct Footage {
    pub(super) dataset: Dataset,
    pub(super) left_out: Vec<LeftOut>,
    /// Whether its annotations tell of some of the same keypoints; of others they say nothing.
    pub(super) known: bool,
    pub(super) sha256: String,
}

impl Footage {
    pub(super) fn open(path: &Path, train: &Dataset) -> Result<Self, ExperimentError> {
        let annotations = path.join("annotations.json");
        if annotations.exists() {
            let mut dataset = Dataset::load(path)?;
            let known = same_keypoints(train, &dataset).is_ok();
            let known = known || of_shared_keypoints(&mut dataset, &train.skeleton);
            dataset.skeleton = train.skeleton.clone();
            let sha256 = file_sha256(&annotations).map_err(ArmError::io(&annotations))?;
            return Ok(Self { dataset, left_out: Vec::new(), known, sha256 });
        }
        let (dataset, left_out) = plain_folder(path, &train.skeleton).map_err(ArmError::io(path))?;
        let mut files = Vec::with_capacity(dataset.images.len());
        for image in &dataset.images {
            let file = dataset.image_path(image);
            let size = std::fs::metadata(&file).map_err(ArmError::io(&file))?.len();
            files.push((file.file_name().map(|name| name.to_string_lossy().into_owned()), size));
        }
        Ok(Self { dataset, left_out, known: false, sha256: digest(&files) })
    }
}

/// Turns annotations into ones of another skeleton, by the names that both have; without any in common, there are none left.
fn of_shared_keypoints(dataset: &mut Dataset, skeleton: &Skeleton) -> bool {
    let from: Vec<Option<usize>> = skeleton.names().map(|name| dataset.skeleton.names().position(|theirs| theirs == name)).collect();
    if from.iter().all(Option::is_none) {
        dataset.annotations.clear();
        return false;
    }
    for annotation in &mut dataset.annotations {
        let of = |at: &Option<usize>| at.and_then(|at| annotation.keypoints.get(3 * at..3 * at + 3)).unwrap_or(&[0.0; 3]);
        let keypoints: Vec<f64> = from.iter().flat_map(of).copied().collect();
        annotation.num_keypoints = keypoints.iter().skip(2).step_by(3).filter(|v| **v > 0.0).count() as u32;
        annotation.keypoints = keypoints;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_coco::{Annotation, ImageRecord};
    use std::path::PathBuf;

    #[test]
    fn annotations_of_another_skeleton_tell_of_the_keypoints_of_the_same_names() {
        let skeleton = |names: &[&str]| Skeleton::new(names, &[], None, None).unwrap();
        let annotation = Annotation {
            id: 1,
            image_id: 1,
            category_id: 5,
            bbox: [0.0, 0.0, 9.0, 9.0],
            keypoints: vec![1.0, 2.0, 2.0, 3.0, 4.0, 1.0, 5.0, 6.0, 0.0],
            num_keypoints: 2,
            area: 81.0,
            iscrowd: 0,
        };
        let images = vec![ImageRecord { id: 1, file_name: "1.jpg".to_owned(), width: 9, height: 9 }];
        let theirs = Dataset { root: PathBuf::new(), skeleton: skeleton(&["nose", "hip", "knee"]), images, annotations: vec![annotation] };
        let mut known = theirs.clone();
        assert!(of_shared_keypoints(&mut known, &skeleton(&["knee", "neck", "hip"])));
        let found = &known.annotations[0];
        assert_eq!((&found.keypoints[..], found.num_keypoints), (&[5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 1.0][..], 1));
        let mut strange = theirs;
        assert!(!of_shared_keypoints(&mut strange, &skeleton(&["neck"])));
        assert!(strange.annotations.is_empty());
    }
}
