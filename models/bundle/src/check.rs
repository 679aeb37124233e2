//! What a manifest may say: every number is checked before anything is computed or allocated from it.

use crate::{FORMAT, Manifest, Network, NetworkSpec, RoiSpec};
use std::ops::RangeInclusive;

/// The graphs of a keypoint R-CNN.
pub const GRAPHS: [&str; 3] = ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"];
/// The graph of a wrapped pose model.
pub const POSE_GRAPH: &str = "pose.onnx";
/// The folder of the bundle that finds people for a top-down model.
pub const DETECTOR: &str = "detector";
/// The manifest's own name, which it never lists.
pub const MANIFEST: &str = "manifest.json";
/// The largest manifest, bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// The largest file of a bundle, bytes.
pub const MAX_FILE_BYTES: u64 = 2 << 30;
/// The largest graph file of a keypoint R-CNN, bytes: its weights belong in `weights.safetensors`. A wrapped pose model is kept as it
/// came, often with its weights inside, and may be as large as any file.
pub const MAX_GRAPH_BYTES: u64 = 64 << 20;
/// The most files of a bundle.
pub const MAX_FILES: usize = 1024;

/// The largest size of the file at `path`, bytes.
pub(crate) fn max_bytes(path: &str) -> u64 {
    let file = path.rsplit('/').next().unwrap_or(path);
    if file.ends_with(".onnx") && file != POSE_GRAPH { MAX_GRAPH_BYTES } else { MAX_FILE_BYTES }
}

impl Manifest {
    /// The graphs that the bundle has to have.
    pub const fn graphs(&self) -> &'static [&'static str] {
        match self.network {
            Network::Rcnn(_) => &GRAPHS,
            Network::Pose(_) => &[POSE_GRAPH],
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// A message that names the field, what was expected and what came.
    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format is {}, expected {FORMAT}", self.format));
        }
        for (field, text) in [("name", &self.name), ("architecture", &self.architecture)] {
            if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
                return Err(format!("{field}: expected 1 to 128 bytes without control characters"));
            }
        }
        self.skeleton.skeleton().map_err(|e| format!("skeleton: {e}"))?;
        self.check_input()?;
        match &self.network {
            Network::Rcnn(network) => check_network(network)?,
            Network::Pose(pose) => pose.check(&self.input)?,
        }
        let t = &self.thresholds;
        for (field, value) in [("instance", t.instance), ("keypoint", t.keypoint), ("floor", t.floor)] {
            float(&format!("thresholds.{field}"), value, 0.0..=1.0)?;
        }
        if let Some(ap) = self.ap.filter(|ap| !(0.0..=1.0).contains(ap)) {
            return Err(format!("ap is {ap}, expected 0 to 1"));
        }
        if let Some(hash) = &self.dataset_sha256 {
            sha256_hex("dataset_sha256", hash)?;
        }
        self.check_files()
    }

    fn check_input(&self) -> Result<(), String> {
        let input = &self.input;
        int("input.short_side", input.short_side, 1..=4096)?;
        int("input.max_long_side", input.max_long_side, input.short_side..=4096)?;
        int("input.size_divisor", input.size_divisor, 1..=1024)?;
        for (i, (&mean, &std)) in input.mean.iter().zip(&input.std).enumerate() {
            float(&format!("input.mean[{i}]"), mean, -1e3..=1e3)?;
            float(&format!("input.std[{i}]"), std, 1e-6..=1e3)?;
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), String> {
        count("files", self.files.len(), self.graphs().len()..=MAX_FILES)?;
        for (path, entry) in &self.files {
            check_path(path).map_err(|e| format!("files: {path:?}: {e}"))?;
            let limit = max_bytes(path);
            if entry.bytes > limit {
                return Err(format!("files: {path:?}: {} bytes, at most {limit}", entry.bytes));
            }
            sha256_hex(&format!("files: {path:?}: sha256"), &entry.sha256)?;
        }
        for graph in self.graphs() {
            if !self.files.contains_key(*graph) {
                return Err(format!("files: {graph:?} is missing"));
            }
        }
        count("golden", self.golden.len(), 0..=256)?;
        for (i, golden) in self.golden.iter().enumerate() {
            for path in [&golden.image, &golden.detections] {
                if !self.files.contains_key(path) {
                    return Err(format!("golden[{i}]: {path:?} is not among the files"));
                }
            }
        }
        Ok(())
    }
}

fn check_network(network: &NetworkSpec) -> Result<(), String> {
    count("network.levels", network.levels.len(), 1..=8)?;
    let levels = network.levels.len() as u32;
    for (i, level) in network.levels.iter().enumerate() {
        int(&format!("network.levels[{i}].stride"), level.stride, 1..=1024)?;
        float(&format!("network.levels[{i}].anchor_size"), level.anchor_size, 1.0..=16384.0)?;
    }
    int("network.roi_levels", network.roi_levels, 1..=levels)?;
    float("network.canonical_size", network.canonical_size, 1.0..=16384.0)?;
    int("network.canonical_level", network.canonical_level, 0..=levels - 1)?;
    count("network.aspect_ratios", network.aspect_ratios.len(), 1..=16)?;
    for (i, &ratio) in network.aspect_ratios.iter().enumerate() {
        float(&format!("network.aspect_ratios[{i}]"), ratio, 0.01..=100.0)?;
    }
    int("network.rpn.pre_nms_top_n", network.rpn.pre_nms_top_n, 1..=10_000)?;
    int("network.rpn.post_nms_top_n", network.rpn.post_nms_top_n, 1..=4000)?;
    float("network.rpn.nms_iou", network.rpn.nms_iou, 0.0..=1.0)?;
    float("network.rpn.min_size", network.rpn.min_size, 0.0..=4096.0)?;
    float("network.rpn.score_threshold", network.rpn.score_threshold, 0.0..=1.0)?;
    roi("network.box_roi", &network.box_roi)?;
    roi("network.keypoint_roi", &network.keypoint_roi)?;
    for (i, &weight) in network.box_coder.iter().enumerate() {
        float(&format!("network.box_coder[{i}]"), weight, 1e-3..=1e3)?;
    }
    float("network.score_threshold", network.score_threshold, 0.0..=1.0)?;
    float("network.nms_iou", network.nms_iou, 0.0..=1.0)?;
    int("network.max_detections", network.max_detections, 1..=1000)?;
    int("network.heatmap_side", network.heatmap_side, 1..=256)
}

/// Whether `path` is a plain `/`-separated relative path that stays below the bundle's root.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > 255 {
        return Err("expected a path of 1 to 255 bytes");
    }
    if path == MANIFEST {
        return Err("the manifest does not list itself");
    }
    if path.chars().any(|c| c.is_control() || c == '\\' || c == ':') {
        return Err("a path has no control character, backslash or colon");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("the path leaves the bundle or is not in its plain form");
    }
    if path.split('/').count() > 8 {
        return Err("the path has more than 8 parts");
    }
    Ok(())
}

fn sha256_hex(field: &str, text: &str) -> Result<(), String> {
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(())
    } else {
        Err(format!("{field}: expected 64 lowercase hex digits"))
    }
}

pub(crate) fn int(field: &str, value: u32, range: RangeInclusive<u32>) -> Result<(), String> {
    if range.contains(&value) { Ok(()) } else { Err(format!("{field} is {value}, expected {} to {}", range.start(), range.end())) }
}

pub(crate) fn count(field: &str, value: usize, range: RangeInclusive<usize>) -> Result<(), String> {
    if range.contains(&value) { Ok(()) } else { Err(format!("{field} has {value} entries, expected {} to {}", range.start(), range.end())) }
}

/// NaN is in no range.
pub(crate) fn float(field: &str, value: f32, range: RangeInclusive<f32>) -> Result<(), String> {
    if range.contains(&value) { Ok(()) } else { Err(format!("{field} is {value}, expected {} to {}", range.start(), range.end())) }
}

fn roi(field: &str, spec: &RoiSpec) -> Result<(), String> {
    int(&format!("{field}.resolution"), spec.resolution, 1..=64)?;
    int(&format!("{field}.sampling_ratio"), spec.sampling_ratio, 0..=8)
}
