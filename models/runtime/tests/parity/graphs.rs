//! A look at what a backbone gave.

use crate::onnx_runtime::OnnxRuntime;
use omnilabel_runtime::{BackboneOutput, Enlargement, Graphs, RuntimeError};
use std::sync::{Arc, Mutex};

/// FPN maps of several images `[n, 3, rows, columns]` in one run, each `[n, c, h, w]`.
pub(crate) fn batch(runtime: &OnnxRuntime, images: &[f32], n: usize, rows: usize, columns: usize) -> Vec<(Vec<usize>, Vec<f32>)> {
    let outputs: Vec<String> = (0..runtime.levels()).map(|level| format!("features_{level}")).collect();
    runtime.run("backbone.onnx", "image", &[n, 3, rows, columns], images, &outputs)
}

/// The latest output of a backbone.
pub(crate) type Seen = Arc<Mutex<Option<BackboneOutput>>>;

/// Other graphs, remembering what their backbone gave.
pub(crate) struct RecordingBackbone {
    inner: Box<dyn Graphs>,
    seen: Seen,
}

impl RecordingBackbone {
    pub(crate) fn new(inner: Box<dyn Graphs>) -> Self {
        Self { inner, seen: Seen::default() }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.clone()
    }
}

impl Graphs for RecordingBackbone {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        let output = self.inner.backbone(image, rows, columns)?;
        *self.seen.lock().unwrap() = Some(output.clone());
        Ok(output)
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        self.inner.box_head(rois, r)
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        self.inner.keypoint_head(rois, r)
    }

    fn enlargement(&self) -> Option<&Enlargement> {
        self.inner.enlargement()
    }

    fn keypoint_maps(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        self.inner.keypoint_maps(rois, r)
    }
}
