//! The graphs on ONNX Runtime, and a look at what a backbone gave.

use omnilabel_rcnn::config::Config;
use omnilabel_runtime::{BackboneOutput, Enlargement, Graphs, RuntimeError};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

/// The bundle's graphs on ONNX Runtime, in a process of `tests/python/onnx_server.py`.
pub(crate) struct OnnxRuntime {
    channels: usize,
    levels: usize,
    process: Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl OnnxRuntime {
    pub(crate) fn start(bundle: &Path, config: &Config) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut child = Command::new(root.join(".venv-test/bin/python"))
            .arg(root.join("tests/python/onnx_server.py"))
            .arg(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/setup makes .venv-test");
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { channels: config.fpn_channels, levels: config.network.levels.len(), process: Mutex::new((child, stdin, stdout)) }
    }

    fn run(&self, graph: &str, input: &str, shape: &[usize], data: &[f32], outputs: &[String]) -> Vec<(Vec<usize>, Vec<f32>)> {
        let mut process = self.process.lock().unwrap();
        let (_, stdin, stdout) = &mut *process;
        let request = serde_json::json!({"graph": graph, "input": input, "shape": shape, "outputs": outputs});
        writeln!(stdin, "{request}").unwrap();
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        stdin.write_all(&bytes).unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let shapes: Vec<Vec<usize>> = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{graph} on ONNX Runtime: {e}: {line:?}"));
        let mut read = |shape: Vec<usize>| {
            let mut bytes = vec![0; 4 * shape.iter().product::<usize>()];
            stdout.read_exact(&mut bytes).unwrap();
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (shape, values)
        };
        shapes.into_iter().map(&mut read).collect()
    }

    /// FPN maps of several images `[n, 3, rows, columns]` in one run, each `[n, c, h, w]`.
    pub(crate) fn batch(&self, images: &[f32], n: usize, rows: usize, columns: usize) -> Vec<(Vec<usize>, Vec<f32>)> {
        let outputs: Vec<String> = (0..self.levels).map(|level| format!("features_{level}")).collect();
        self.run("backbone.onnx", "image", &[n, 3, rows, columns], images, &outputs)
    }

    fn head(&self, graph: &str, rois: &[f32], r: usize, outputs: &[&str]) -> Vec<Vec<f32>> {
        let side = ((rois.len() / r / self.channels) as f64).sqrt() as usize;
        let outputs: Vec<String> = outputs.iter().map(|name| (*name).to_owned()).collect();
        self.run(graph, "rois", &[r, self.channels, side, side], rois, &outputs).into_iter().map(|(_, values)| values).collect()
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        let _ = self.process.get_mut().map(|(child, ..)| child.kill().and_then(|()| child.wait()));
    }
}

impl Graphs for OnnxRuntime {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        let names = |kind: &str| (0..self.levels).map(move |level| format!("{kind}_{level}")).collect::<Vec<_>>();
        let outputs = [names("features"), names("objectness"), names("deltas")].concat();
        let mut found = self.run("backbone.onnx", "image", &[1, 3, rows, columns], image, &outputs);
        let deltas = found.split_off(2 * self.levels);
        let objectness = found.split_off(self.levels);
        Ok(BackboneOutput {
            features: found.into_iter().map(|(shape, values)| (values, shape[1], shape[2], shape[3])).collect(),
            objectness: objectness.into_iter().map(|(shape, values)| (values, shape[2], shape[3])).collect(),
            deltas: deltas.into_iter().map(|(_, values)| values).collect(),
        })
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        let mut outputs = self.head("box_head.onnx", &rois, r, &["class_logits", "box_deltas"]).into_iter();
        Ok((outputs.next().unwrap(), outputs.next().unwrap()))
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        Ok(self.head("keypoint_head.onnx", &rois, r, &["heatmaps"]).remove(0))
    }
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
