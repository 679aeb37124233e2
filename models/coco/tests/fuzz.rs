//! A deterministic mutation fuzzer of the annotations reader; `OMNILABEL_FUZZ_RUNS` sets the executions, 1,000,000 in the long suite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_coco::Dataset;
use std::path::{Component, Path};

const SEED: &str = r#"{"images": [{"id": 7, "file_name": "b.jpg", "width": 64, "height": 48}, {"id": 3, "file_name": "a/a.jpg", "width": 10, "height": 10}],
"annotations": [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [1.1, 2.2, 10.5, 4], "keypoints": [1.5, 2, 2, 3, 4, 1, 0, 0, 0], "num_keypoints": 2, "area": 10.25, "segmentation": [[1, 2]], "iscrowd": 0}],
"categories": [{"id": 5, "name": "person", "keypoints": ["head", "left_hand", "right_hand"], "skeleton": [[1, 2], [1, 3]], "sigmas": [0.1, 0.2, 0.2], "flip": [0, 2, 1]}]}"#;

#[test]
fn any_file_is_refused_or_loaded() {
    const TELLING: &[u8] = b"{}[]\",:\\-0129e.tfnu/\x00\xff";
    let runs: usize = std::env::var("OMNILABEL_FUZZ_RUNS").map_or(20_000, |n| n.parse().expect("OMNILABEL_FUZZ_RUNS is a number"));
    let mut state = 1u64;
    let mut below = |n: usize| {
        // Knuth's MMIX generator, upper bits.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n.max(1)
    };
    let mut loaded = 0;
    for _ in 0..runs {
        let mut bytes = SEED.as_bytes().to_vec();
        for _ in 0..=below(3) {
            let at = below(bytes.len() + 1);
            let end = (at + below(12)).min(bytes.len());
            match below(6) {
                0 if at < bytes.len() => bytes[at] = TELLING[below(TELLING.len())],
                1 => bytes.insert(at, TELLING[below(TELLING.len())]),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let copy = bytes[at..end].to_vec();
                    let to = below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                4 if at < bytes.len() => bytes[at] ^= 1 << below(8),
                _ => bytes.insert(at, b'0' + below(10) as u8),
            }
        }
        let Ok(data) = Dataset::from_bytes(Path::new("root"), &bytes) else { continue };
        loaded += 1;
        let listed: usize = data.images.iter().map(|image| data.annotations_of(image.id).len()).sum();
        assert_eq!(listed, data.annotations.len());
        for image in &data.images {
            let path = data.image_path(image);
            assert!(path.starts_with("root/images") && path.components().all(|c| c != Component::ParentDir), "{}", path.display());
        }
        for annotation in &data.annotations {
            assert!(annotation.keypoints.is_empty() || annotation.keypoints.len() == 3 * data.skeleton.len());
            assert!(annotation.keypoints.iter().chain(&annotation.bbox).all(|v| v.is_finite()));
        }
    }
    println!("{runs} executions, {loaded} loaded");
    assert!(loaded * 50 > runs, "the mutations are too wild to test anything: {loaded} of {runs} loaded");
}
