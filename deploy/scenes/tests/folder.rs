//! The written folder is a COCO keypoint folder that says what the scenes say.
#![allow(clippy::unwrap_used)]

use omnilabel_coco::{Dataset, to_continuous};
use omnilabel_scenes::{DEFAULT_SIZE, Look, ScenesError, scene, write_coco};

#[test]
fn a_written_folder_loads_with_the_same_labels() {
    let dir = tempfile::tempdir().unwrap();
    let looks = [Look::studio(), Look::street()];
    write_coco(dir.path(), &looks, 9, 12, DEFAULT_SIZE).unwrap();
    let dataset = Dataset::load(dir.path()).unwrap();
    assert_eq!(dataset.images.len(), 12);
    assert_eq!(dataset.skeleton.len(), 17);
    for (index, record) in dataset.images.iter().enumerate() {
        let expected = scene(&looks[index % 2], 9, index as u64, DEFAULT_SIZE);
        let picture = image::open(dataset.image_path(record)).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (DEFAULT_SIZE.width, DEFAULT_SIZE.height));
        // JPEG at quality 60 and above keeps the mean of a picture.
        let mean = |p: &image::RgbImage| p.as_raw().iter().map(|v| f64::from(*v)).sum::<f64>() / p.as_raw().len() as f64;
        assert!((mean(&picture) - mean(&expected.image)).abs() < 2.0);
        let annotations = dataset.annotations_of(record.id);
        assert_eq!(annotations.len(), expected.people.len());
        for (annotation, person) in annotations.iter().zip(&expected.people) {
            assert!((annotation.area - f64::from(person.area)).abs() < 1e-3);
            for (flat, keypoint) in annotation.keypoints.chunks(3).zip(&person.keypoints) {
                assert_eq!(flat[2] as u8, keypoint.visibility as u8);
                if flat[2] > 0.0 {
                    assert!((to_continuous(flat[0]) - keypoint.point.x).abs() < 1e-3);
                    assert!((to_continuous(flat[1]) - keypoint.point.y).abs() < 1e-3);
                }
            }
        }
    }
}

#[test]
fn no_look_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(write_coco(dir.path(), &[], 1, 1, DEFAULT_SIZE), Err(ScenesError::NoLook)));
}
