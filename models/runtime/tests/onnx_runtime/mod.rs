//! The graphs on ONNX Runtime.

use omnilabel_bundle::{Bundle, NetworkSpec};
use omnilabel_runtime::{BackboneOutput, Graphs, RuntimeError};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// The bundle's graphs on ONNX Runtime, in a process of `tests/python/onnx_server.py`.
pub(crate) struct OnnxRuntime {
    network: NetworkSpec,
    process: Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl OnnxRuntime {
    /// `None`, with a message, where `tests/setup` was not run.
    pub(crate) fn start(bundle: &Bundle) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root.join(".venv-test/bin/python"), PathBuf::from);
        if !python.exists() {
            println!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run the README's test command)", python.display());
            return None;
        }
        let mut child = Command::new(python)
            .arg(root.join("tests/python/onnx_server.py"))
            .arg(bundle.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let network = bundle.manifest().network.rcnn().unwrap().clone();
        Some(Self { network, process: Mutex::new((child, stdin, stdout)) })
    }

    pub(crate) fn run(&self, graph: &str, input: &str, shape: &[usize], data: &[f32], outputs: &[String]) -> Vec<(Vec<usize>, Vec<f32>)> {
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

    pub(crate) fn levels(&self) -> usize {
        self.network.levels.len()
    }

    fn head(&self, graph: &str, rois: &[f32], r: usize, resolution: u32, outputs: &[&str]) -> Vec<Vec<f32>> {
        let side = resolution as usize;
        let outputs: Vec<String> = outputs.iter().map(|name| (*name).to_owned()).collect();
        let shape = [r, rois.len() / r / side / side, side, side];
        self.run(graph, "rois", &shape, rois, &outputs).into_iter().map(|(_, values)| values).collect()
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        let _ = self.process.get_mut().map(|(child, ..)| child.kill().and_then(|()| child.wait()));
    }
}

impl Graphs for OnnxRuntime {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        let names = |kind: &str| (0..self.levels()).map(move |level| format!("{kind}_{level}")).collect::<Vec<_>>();
        let outputs = [names("features"), names("objectness"), names("deltas")].concat();
        let mut found = self.run("backbone.onnx", "image", &[1, 3, rows, columns], image, &outputs);
        let deltas = found.split_off(2 * self.levels());
        let objectness = found.split_off(self.levels());
        Ok(BackboneOutput {
            features: found.into_iter().map(|(shape, values)| (values, shape[1], shape[2], shape[3])).collect(),
            objectness: objectness.into_iter().map(|(shape, values)| (values, shape[2], shape[3])).collect(),
            deltas: deltas.into_iter().map(|(_, values)| values).collect(),
        })
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        let mut outputs =
            self.head("box_head.onnx", &rois, r, self.network.box_roi.resolution, &["class_logits", "box_deltas"]).into_iter();
        Ok((outputs.next().unwrap(), outputs.next().unwrap()))
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        Ok(self.head("keypoint_head.onnx", &rois, r, self.network.keypoint_roi.resolution, &["heatmaps"]).remove(0))
    }
}
