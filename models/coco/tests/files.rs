//! Data sets and results, in and out unchanged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_coco::{Annotation, CocoError, Dataset, ResultRecord, read_results, write_results};
use std::path::{Path, PathBuf};

fn shared(set: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(set);
    if !dir.exists() {
        eprintln!("skipped: {} is absent", dir.display());
        return None;
    }
    Some(dir)
}

#[test]
fn the_shared_sets_load_and_survive_a_round_trip() {
    for (set, images, people, keypoints) in
        [("lspe/train", 8491, 8491, 14), ("lspe/val", 750, 750, 14), ("coco/train", 119, 313, 17), ("coco/val", 91, 253, 17)]
    {
        let Some(dir) = shared(set) else { return };
        let data = Dataset::load(&dir).unwrap();
        assert_eq!((data.images.len(), data.annotations.len(), data.skeleton.len()), (images, people, keypoints), "{set}");
        assert!(data.image_path(&data.images[0]).exists());
        let of_images: usize = data.images.iter().map(|i| data.annotations_of(i.id).len()).sum();
        assert_eq!(of_images, people);
        // The permutation is derived from the names.
        for (index, &mirror) in data.skeleton.flip().iter().enumerate() {
            let swapped = data.skeleton.name(index).replace("left", "#").replace("right", "left").replace('#', "right");
            assert_eq!(data.skeleton.name(usize::from(mirror)), swapped, "{set}");
        }
        let out = tempfile::tempdir().unwrap();
        data.write(out.path()).unwrap();
        let again = Dataset::load(out.path()).unwrap();
        assert_eq!(again.skeleton, data.skeleton);
        assert_eq!(again.images, data.images);
        assert_eq!(again.annotations, data.annotations);
        assert_exact(&dir, &data);
    }
}

/// Every number equals the one in the file, read by `str::parse`, which is correctly rounded.
fn assert_exact(dir: &Path, data: &Dataset) {
    let text = std::fs::read_to_string(dir.join("annotations.json")).unwrap();
    let numbers: std::collections::HashSet<u64> = text
        .split(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | 'e' | 'E'))
        .filter_map(|n| n.parse::<f64>().ok())
        .map(f64::to_bits)
        .collect();
    for annotation in &data.annotations {
        for value in annotation.bbox.iter().chain(&annotation.keypoints).chain([&annotation.area]) {
            assert!(numbers.contains(&value.to_bits()), "{value} is not in the file");
        }
    }
}

const SMALL: &str = r#"{"info": {"x": [1, {"y": null}]}, "licenses": [],
"images": [{"id": 7, "file_name": "b.jpg", "width": 64, "height": 48, "coco_url": "é \u00e9"}, {"id": 3, "file_name": "a/a.jpg", "width": 10, "height": 10}],
"annotations": [
 {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1.1, 2.2, 10.030000305175781, 4], "keypoints": [1.5, 2, 2, 3, 4, 1, 0, 0, 0], "num_keypoints": 2, "area": 10.25, "segmentation": [[1, 2]], "iscrowd": 0},
 {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 5, 5], "keypoints": [], "num_keypoints": 0, "area": 3, "iscrowd": 1}],
"categories": [{"id": 9, "name": "car"}, {"id": 5, "name": "person", "keypoints": ["head", "left_hand", "right_hand"], "skeleton": [[1, 2], [1, 3]]}]}"#;

fn load(text: &str) -> Result<Dataset, CocoError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("annotations.json"), text).unwrap();
    Dataset::load(dir.path())
}

#[test]
fn a_small_file_is_read_in_order() {
    let data = load(SMALL).unwrap();
    assert_eq!(data.images.iter().map(|i| i.id).collect::<Vec<_>>(), [3, 7]);
    assert_eq!(data.skeleton.flip(), [0, 2, 1]);
    assert_eq!(data.skeleton.edges(), [(0, 1), (0, 2)]);
    assert_eq!(data.skeleton.sigmas(), [0.08; 3]);
    let annotation = &data.annotations_of(7)[0];
    assert_eq!(annotation.bbox, [1.1, 2.2, 10.030000305175781, 4.0]);
    assert_eq!(annotation.keypoints, [1.5, 2.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(data.annotations_of(4), []);
    let half = data.subset(|index, _| index == 1);
    assert_eq!((half.images.len(), half.annotations.len()), (1, 1));
    assert_eq!(half.annotations[0].image_id, 7);
}

#[test]
fn what_is_impossible_is_refused_by_name() {
    for (from, to, expected) in [
        ("\"id\": 3", "\"id\": 7", "image id 7 occurs twice"),
        ("\"id\": 2, \"image_id\": 3", "\"id\": 1, \"image_id\": 3", "annotation id 1 occurs twice"),
        ("\"image_id\": 3", "\"image_id\": 4", "annotation 2 belongs to image 4, which is not in the file"),
        ("3, 4, 1, 0, 0, 0]", "3, 4, 1]", "annotation 1: 6 keypoint numbers, expected 9"),
        ("a/a.jpg", "../a.jpg", "image 3: file_name \"../a.jpg\" leaves the folder"),
        ("a/a.jpg", "/etc/passwd", "image 3: file_name \"/etc/passwd\" leaves the folder"),
        ("1.5, 2, 2, 3", "1.5, 2, 4, 3", "annotation 1: visibility 4"),
        ("[1.1,", "[1e999,", "out of range"),
        ("[1.1,", "[NaN,", "expected value"),
        ("\"category_id\": 5, \"bbox\": [0", "\"category_id\": 9, \"bbox\": [0", "annotation 2: category 9, expected 5"),
        ("[1, 3]]", "[0, 3]]", "skeleton edge [0, 3] is out of range"),
        ("\"width\": 10", "\"width\": 0", "image 3 is 0 × 10 px"),
        ("\"head\", ", "", "category 5: edge 1 is out of range"),
        ("[\"head\", \"left_hand\", \"right_hand\"]", "[]", "no category has keypoints"),
        ("]}]}", "]}]", "EOF"),
    ] {
        let text = SMALL.replace(from, to);
        assert_ne!(text, SMALL, "{from}");
        let error = load(&text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("annotations.json"), "{from} -> {to}: {error}");
    }
    let error = Dataset::load(Path::new("does-not-exist")).unwrap_err().to_string();
    assert!(error.contains("does-not-exist"), "{error}");
}

#[test]
fn results_survive_a_round_trip_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.json");
    let results: Vec<_> = (0..50u32)
        .map(|i| ResultRecord {
            image_id: u64::from(i),
            category_id: 1,
            keypoints: (0..51).map(|j| f64::from((i * 51 + j) as f32 * 0.1) - 0.5).collect(),
            score: f64::from(1.0 / (i as f32 + 1.5)),
            bbox: (i % 2 == 0).then(|| [0.1, 1.0 / 3.0, 1e-7, f64::from(i)]),
        })
        .collect();
    write_results(&path, &results).unwrap();
    assert_eq!(read_results(&path).unwrap(), results);
    std::fs::write(&path, r#"[{"image_id": 1, "category_id": 1, "keypoints": [1, 2], "score": 1}]"#).unwrap();
    assert!(read_results(&path).unwrap_err().to_string().contains("result 0 has 2 keypoint numbers"));
}

#[test]
fn what_an_annotation_does_not_say_is_counted_and_implied() {
    let text = SMALL.replace(r#""category_id": 5, "#, "").replace(r#""num_keypoints": 2, "#, "").replace(r#""num_keypoints": 0, "#, "");
    assert_eq!(load(&text).unwrap().annotations, load(SMALL).unwrap().annotations);
    assert_eq!(load(&text).unwrap().annotations_of(7)[0].num_keypoints, 2);
}

#[test]
fn a_data_set_keeps_its_category() {
    let data = load(SMALL).unwrap();
    assert_eq!(data.category_id(), 5);
    let dir = tempfile::tempdir().unwrap();
    data.write(dir.path()).unwrap();
    assert_eq!(Dataset::load(dir.path()).unwrap().category_id(), 5);
}

#[test]
fn an_annotation_without_optional_fields_is_defaulted() {
    let text = SMALL.replace(r#", "area": 3, "iscrowd": 1"#, "").replace(r#""num_keypoints": 0"#, r#""area": 2"#);
    let annotation = load(&text).unwrap().annotations[0].clone();
    let expected = Annotation {
        id: 2,
        image_id: 3,
        category_id: 5,
        bbox: [0.0, 0.0, 5.0, 5.0],
        keypoints: vec![],
        num_keypoints: 0,
        area: 2.0,
        iscrowd: 0,
    };
    assert_eq!(annotation, expected);
}

#[test]
fn a_skeleton_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skeleton.json");
    let text =
        r#"{"categories": [{"id": 1, "name": "car"}, {"id": 2, "keypoints": ["head", "left_hand", "right_hand"], "skeleton": [[1, 2]]}]}"#;
    std::fs::write(&path, text).unwrap();
    let skeleton = omnilabel_coco::read_skeleton(&path).unwrap();
    assert_eq!(
        (skeleton.names().collect::<Vec<_>>(), skeleton.flip(), skeleton.edges()),
        (vec!["head", "left_hand", "right_hand"], &[0, 2, 1][..], &[(0, 1)][..])
    );
    for (bad, says) in [("{}", "categories"), (r#"{"categories": [{"id": 1}]}"#, "no category has keypoints"), ("[]", "skeleton.json")] {
        std::fs::write(&path, bad).unwrap();
        let message = omnilabel_coco::read_skeleton(&path).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains("skeleton.json"), "{message}");
    }
}
