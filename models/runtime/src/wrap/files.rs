//! The files of a wrapped model.

use super::WrapError;
use omnilabel_bundle::{Bundle, BundleError, DETECTOR, MANIFEST, MAX_FILE_BYTES, POSE_GRAPH, check_path, onnx};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Copies the graph and its weights, where those lie beside it, into `root`. Returns the bytes of all.
pub(super) fn copy_model(source: &Path, root: &Path) -> Result<u64, WrapError> {
    let io = |source_path: &Path| {
        let path = source_path.to_owned();
        move |source| WrapError::Io { path, source }
    };
    let unsuitable = |message: String| WrapError::Unsuitable { onnx: source.to_owned(), message };
    let file = File::open(source).map_err(io(source))?;
    let found = onnx::external_data(BufReader::new(file)).map_err(unsuitable)?;
    let locations: BTreeSet<&str> = found.iter().map(|data| data.location.as_str()).collect();
    let mut bytes = copy(source, &root.join(POSE_GRAPH))?;
    for location in locations {
        check_path(location).map_err(|message| unsuitable(format!("external data in {location:?}: {message}")))?;
        let first = location.split('/').next().unwrap_or(location);
        if [POSE_GRAPH, DETECTOR, "golden"].contains(&first) || location.ends_with(".onnx") {
            return Err(unsuitable(format!("external data in {location:?}: the name is taken by another part of the bundle")));
        }
        let from = source.parent().unwrap_or(Path::new("")).join(location);
        bytes += copy(&from, &root.join(location))?;
    }
    Ok(bytes)
}

/// Copies a bundle that finds people into `root`.
pub(super) fn copy_detector(detector: &Bundle, root: &Path) -> Result<(), WrapError> {
    let manifest = detector.manifest();
    if manifest.network.takes_boxes() {
        let message = format!("the detector `{}` is a top-down pose model, which needs boxes itself", manifest.name);
        return Err(BundleError::Content { path: detector.root().to_owned(), message }.into());
    }
    for name in manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
        copy(&detector.path(name), &root.join(DETECTOR).join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<u64, WrapError> {
    let io = |source| WrapError::Io { path: from.to_owned(), source };
    let bytes = std::fs::metadata(from).map_err(io)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(io(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("{bytes} bytes, at most {MAX_FILE_BYTES}"))));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|source| WrapError::Io { path: folder.to_owned(), source })?;
    }
    std::fs::copy(from, to).map_err(io)
}
