//! Any annotations file is refused or loaded without panicking, and what is loaded lists every annotation with its image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnilabel_coco::Dataset;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(dataset) = Dataset::from_bytes(Path::new("fuzz"), data) else { return };
    let listed: usize = dataset.images.iter().map(|image| dataset.annotations_of(image.id).len()).sum();
    assert_eq!(listed, dataset.annotations.len());
    for image in &dataset.images {
        assert!(dataset.image_path(image).starts_with("fuzz/images"));
    }
});
