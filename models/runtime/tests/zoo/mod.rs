//! The shipped model and a picture that it knows.

use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use std::path::Path;

pub(crate) fn bundle() -> Bundle {
    Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../zoo/nano-scenes")).expect("the zoo's bundle")
}

/// The first of its golden frames.
pub(crate) fn frame(bundle: &Bundle) -> Frame {
    let golden = std::fs::read_dir(bundle.path("golden")).expect("golden frames");
    let mut pictures: Vec<_> =
        golden.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "png")).collect();
    pictures.sort();
    Frame::open(pictures.first().expect("a golden frame")).expect("a picture")
}
