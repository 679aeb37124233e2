//! What is written in a format is read again as it was, within the decimals that are written.

mod errors;
mod parquet;
mod tools;

use super::recognise::recognise;
use super::*;
use omnilabel_coco::{Annotation, ImageRecord};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use proptest::prelude::*;

const FORMATS: [Format; 5] = [Format::Coco, Format::Fiftyone, Format::Cvat, Format::LabelStudio, Format::Ultralytics];
/// The largest side of a test picture, px.
const SIDE: u32 = 48;

/// How far a number may be from what was written, px.
const fn tolerance(format: Format) -> f64 {
    match format {
        // Every bit.
        Format::Coco | Format::Fiftyone => 0.0,
        // Four decimals of each of two edges.
        Format::Cvat => 1.01e-4,
        // Every bit of a share in percent.
        Format::LabelStudio => 1e-9,
        // Eight decimals of a share, of a centre and half a width.
        Format::Ultralytics => 1e-8 * SIDE as f64,
    }
}

/// Names with words apart, pairs, and what XML, JSON, YAML and addresses have to escape.
const NAMES: [&str; 6] = ["left_hand", "right_hand", "nose", "tail & <tip>", "a \"b\"", "ключ"];

pub(super) fn write_picture(path: &Path, width: u32, height: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let rgb = vec![90; 3 * width as usize * height as usize];
    std::fs::write(path, Frame { size: Size { width, height }, rgb }.to_png()).unwrap();
}

/// A person: corner and size of the box and places of keypoints as shares, visibilities, crowd.
type Person = ((f64, f64, f64, f64), Vec<(f64, f64, u8)>, bool);
type Picture = (u32, u32, Vec<Person>);

fn pictures() -> impl Strategy<Value = (usize, Vec<Picture>)> {
    (1..=NAMES.len()).prop_flat_map(|count| {
        let share = || 0.0..1.0_f64;
        let keypoints = prop::collection::vec((0.0..=1.0_f64, 0.0..=1.0_f64, 0..3_u8), count);
        let person = ((share(), share(), share(), share()), keypoints, prop::bool::weighted(0.2));
        let picture = (1..=SIDE, 1..=SIDE, prop::collection::vec(person, 0..4));
        (Just(count), prop::collection::vec(picture, 1..4))
    })
}

fn dataset_of(root: &Path, count: usize, pictures: &[Picture]) -> Dataset {
    let edges: Vec<(u8, u8)> = (1..count as u8).map(|to| (to - 1, to)).collect();
    let skeleton = Skeleton::new(&NAMES[..count], &edges, None, None).unwrap();
    let mut dataset = Dataset { root: root.to_owned(), skeleton, images: Vec::new(), annotations: Vec::new() };
    for (number, (width, height, people)) in pictures.iter().enumerate() {
        let id = number as u64 + 1;
        // Folders and characters that addresses do not have.
        let file_name = if number == 1 { "day 2/ü%20&.png".to_owned() } else { format!("{id}.png") };
        write_picture(&root.join("images").join(&file_name), *width, *height);
        dataset.images.push(ImageRecord { id, file_name, width: *width, height: *height });
        let (w, h) = (f64::from(*width), f64::from(*height));
        for ((x, y, bw, bh), keypoints, crowd) in people {
            let (x, y) = (x * w, y * h);
            let bbox = [x, y, bw * (w - x), bh * (h - y)];
            let place = |(x, y, v): &(f64, f64, u8)| if *v == 0 { [0.0; 3] } else { [x * w - 0.5, y * h - 0.5, f64::from(*v)] };
            let keypoints = keypoints.iter().map(place).collect::<Vec<_>>();
            dataset.annotations.push(Annotation {
                id: dataset.annotations.len() as u64 + 1,
                image_id: id,
                category_id: 1,
                bbox,
                num_keypoints: keypoints.iter().filter(|keypoint| keypoint[2] > 0.0).count() as u32,
                keypoints: keypoints.concat(),
                area: bbox[2] * bbox[3],
                iscrowd: u8::from(*crowd),
            });
        }
    }
    dataset.write(root).unwrap();
    dataset
}

fn near(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

fn assert_same(format: Format, expected: &Dataset, found: &Dataset) {
    let names = |dataset: &Dataset| dataset.skeleton.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found));
    assert_eq!(expected.skeleton.flip(), found.skeleton.flip());
    if matches!(format, Format::Coco | Format::Fiftyone | Format::Cvat) {
        assert_eq!(expected.skeleton.edges(), found.skeleton.edges());
    }
    let images = |dataset: &Dataset| {
        let mut images: Vec<_> = dataset.images.iter().map(|i| (i.file_name.clone(), i.width, i.height, i.id)).collect();
        images.sort();
        images
    };
    let (ours, theirs) = (images(expected), images(found));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!((&ours.0, ours.1, ours.2), (&theirs.0, theirs.1, theirs.2));
        let people = expected.annotations_of(ours.3).iter().filter(|a| format != Format::Ultralytics || a.iscrowd == 0).collect::<Vec<_>>();
        let again = found.annotations_of(theirs.3);
        assert_eq!(people.len(), again.len(), "{format:?}, {}", ours.0);
        for (a, b) in people.into_iter().zip(again) {
            assert_eq!((a.num_keypoints, a.iscrowd), (b.num_keypoints, b.iscrowd));
            assert!(near(&a.bbox, &b.bbox, tolerance(format)), "{format:?}: {:?} {:?}", a.bbox, b.bbox);
            assert!(near(&[a.area], &[b.area], tolerance(format) * f64::from(2 * SIDE)), "{format:?}: {} {}", a.area, b.area);
            let visible = |keypoints: &[f64]| keypoints.iter().skip(2).step_by(3).copied().collect::<Vec<_>>();
            assert_eq!(visible(&a.keypoints), visible(&b.keypoints), "{format:?}");
            assert!(near(&a.keypoints, &b.keypoints, tolerance(format)), "{format:?}: {:?} {:?}", a.keypoints, b.keypoints);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_read_again((count, pictures) in pictures(), shifted in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = dataset_of(&dir.path().join("ours"), count, &pictures);
        for format in FORMATS {
            let (there, back) = (dir.path().join(format.name()), dir.path().join(format!("{}-back", format.name())));
            let coordinates = shifted.then_some(Coordinates::Continuous);
            let lost = export(&dataset, format, coordinates, &there).unwrap();
            let crowds = dataset.annotations.iter().filter(|a| a.iscrowd == 1).count() as u64;
            prop_assert_eq!(lost.crowds, if format == Format::Ultralytics { crowds } else { 0 });
            let (found, file) = recognise(&there, None).unwrap();
            prop_assert_eq!(found, format);
            let options = ImportOptions { coordinates, ..ImportOptions::default() };
            let imported = import(found, &file, &options, &back).unwrap();
            let exact = shifted && matches!(format, Format::Coco | Format::Fiftyone);
            // Half a pixel there and back costs the last bits of small numbers.
            if exact { assert_same(Format::LabelStudio, &dataset, &imported.dataset) } else { assert_same(format, &dataset, &imported.dataset) }
            prop_assert!(!imported.notes.iter().any(|note| note.contains("left out") || note.contains("no box")), "{:?}", imported.notes);
        }
    }
}

#[test]
fn what_ultralytics_would_refuse_is_cut_off_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let inside = vec![(0.5, 0.5, 2), (0.25, 0.25, 1)];
    let mut dataset = dataset_of(&dir.path().join("ours"), 2, &[(40, 40, vec![((0.1, 0.1, 0.5, 0.5), inside, false)])]);
    dataset.annotations[0].bbox = [-4.0, 10.0, 20.0, 40.0];
    dataset.annotations[0].keypoints[3] = 41.0;
    let lost = export(&dataset, Format::Ultralytics, None, &dir.path().join("out")).unwrap();
    assert_eq!(lost, Lost { crowds: 0, keypoints: 1, boxes: 1 });
    let label = std::fs::read_to_string(dir.path().join("out/labels/1.txt")).unwrap();
    assert_eq!(label, "0 0.20000000 0.62500000 0.40000000 0.75000000 0.50000000 0.50000000 2 0.00000000 0.00000000 0\n");
    // Two pictures that would share a file of labels.
    dataset.images.push(ImageRecord { id: 2, file_name: "1.jpg".to_owned(), ..dataset.images[0].clone() });
    write_picture(&dataset.root.join("images/1.jpg"), 40, 40);
    let error = export(&dataset, Format::Ultralytics, None, &dir.path().join("twice")).unwrap_err().to_string();
    assert!(error.contains("labels/1.txt") && error.contains("ending"), "{error}");
    assert!(!dir.path().join("twice").exists());
}
