//! A COCO keypoint folder small enough to train on within a test.

use omnilabel_coco::{Annotation, Dataset, ImageRecord};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::skeleton::Skeleton;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Three keypoints, two of them a pair.
pub(crate) fn skeleton() -> Skeleton {
    Skeleton::new(&["head", "left_foot", "right_foot"], &[(0, 1), (0, 2)], None, Some(&[0.1; 3])).unwrap()
}

/// `n` pictures of 64 × 64 px with a bright person each, ids from `first`.
pub(crate) fn folder(dir: &Path, first: u64, n: u64) -> Dataset {
    std::fs::create_dir_all(dir.join("images")).unwrap();
    let mut dataset = Dataset { root: dir.to_owned(), skeleton: skeleton(), images: Vec::new(), annotations: Vec::new() };
    for id in first..first + n {
        let mut rng = ChaCha8Rng::seed_from_u64(id);
        let (x, y) = (rng.random_range(4..30_u32), rng.random_range(4..20_u32));
        let (w, h) = (20, 36);
        let rgb = (0..64 * 64)
            .flat_map(|i| {
                let (px, py) = (i % 64, i / 64);
                let inside = (x..x + w).contains(&px) && (y..y + h).contains(&py);
                [if inside { 230 } else { 40 }, (px * 3) as u8, rng.random_range(0..30)]
            })
            .collect();
        let frame = Frame { size: Size { width: 64, height: 64 }, rgb };
        let file_name = format!("{id}.jpg");
        std::fs::write(dir.join("images").join(&file_name), frame.to_jpeg(90)).unwrap();
        dataset.images.push(ImageRecord { id, file_name, width: 64, height: 64 });
        let [x, y, w, h] = [x, y, w, h].map(f64::from);
        dataset.annotations.push(Annotation {
            id,
            image_id: id,
            category_id: 1,
            bbox: [x, y, w, h],
            keypoints: vec![x + w / 2.0, y + 3.0, 2.0, x + w - 2.0, y + h - 2.0, 2.0, x + 2.0, y + h - 2.0, 1.0],
            num_keypoints: 3,
            area: w * h,
            iscrowd: 0,
        });
    }
    dataset.write(dir).unwrap();
    Dataset::load(dir).unwrap()
}
