//! A run of `tests/python/parity.py` and what it wrote.

use crate::candle_graphs::drawn;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_rcnn::config::Config;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Short sides at which pictures are labelled, px.
const DETECT_SIDES: [u32; 2] = [128, 224];
/// Short sides at which gradients are taken, px.
const TRAIN_SIDES: [u32; 2] = [64, 96];

pub(crate) struct Reference<'a> {
    pub(crate) preset: &'a str,
    pub(crate) f64: bool,
    pub(crate) detectron2: bool,
    pub(crate) config: &'a Config,
}

/// One batch at one size.
pub(crate) struct Case {
    kind: &'static str,
    pub(crate) side: u32,
    pub(crate) frames: Vec<Frame>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.kind, self.side, self.frames.len())
    }
}

pub(crate) struct Outcome {
    dir: tempfile::TempDir,
    pub(crate) parameters: usize,
    pub(crate) detect: Vec<Case>,
    pub(crate) train: Vec<Case>,
}

impl Reference<'_> {
    /// `None`, with a message, where there is no PyTorch.
    pub(crate) fn run(&self) -> Option<Outcome> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let python = std::env::var_os("OMNILABEL_TORCH_PYTHON").map_or_else(|| root.join(".venv-torch/bin/python"), PathBuf::from);
        if !python.exists() {
            // Who asks for all of it is not content with none of it.
            assert!(std::env::var_os("OMNILABEL_LONG").is_none(), "no Python at {}: run tests/setup --torch", python.display());
            println!("skipped: no Python at {} (tests/setup --torch makes it, or set OMNILABEL_TORCH_PYTHON)", python.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let pictures = pictures();
        for (index, frame) in pictures.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{index}.png")), frame.to_png()).unwrap();
        }
        // Pictures of one batch have one size when they are labelled: the product labels one at a time, so that it pads each by itself.
        let cases = |kind: &'static str, sides: [u32; 2], batches: [&[usize]; 2]| -> Vec<(Case, serde_json::Value)> {
            let case = |side, batch: &[usize]| {
                let names: Vec<String> = batch.iter().map(|index| format!("{index}.png")).collect();
                let frames = batch.iter().map(|&index| pictures[index].clone()).collect();
                (Case { kind, side, frames }, serde_json::json!({"side": side, "pictures": names}))
            };
            sides.into_iter().flat_map(|side| batches.map(|batch| case(side, batch))).collect()
        };
        let (detect, detect_json): (Vec<_>, Vec<_>) = cases("detect", DETECT_SIDES, [&[0], &[1, 2]]).into_iter().unzip();
        let (train, train_json): (Vec<_>, Vec<_>) = cases("train", TRAIN_SIDES, [&[0], &[0, 1]]).into_iter().unzip();
        let request = serde_json::json!({"config": self.config, "detect": detect_json, "train": train_json});
        std::fs::write(dir.path().join("request.json"), request.to_string()).unwrap();
        let mut command = Command::new(&python);
        command.arg(root.join("tests/python/parity.py")).arg(self.preset).arg(dir.path());
        command.args(self.f64.then_some("--f64")).args(self.detectron2.then_some("--detectron2"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout);
        let parameters = printed.lines().find_map(|line| line.strip_prefix("parameters ")?.parse().ok()).unwrap();
        Some(Outcome { dir, parameters, detect, train })
    }
}

impl Outcome {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn values(&self, case: &Case) -> Values {
        Values::read(&self.path(&format!("{case}.safetensors")))
    }
}

/// Real pictures where they are, else drawn ones: the first of another shape than the two others.
fn pictures() -> Vec<Frame> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/coco/val/images");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("no pictures in ../shared/data/coco: drawn ones");
        return [(300, 220), (240, 320), (240, 320)].into_iter().zip(1..).map(|((w, h), seed)| drawn(w, h, seed)).collect();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut by_size: BTreeMap<(u32, u32), Vec<Frame>> = BTreeMap::new();
    for path in paths.iter().take(40) {
        let frame = Frame::open(path).unwrap();
        by_size.entry((frame.size.width, frame.size.height)).or_default().push(frame);
    }
    let mut sizes: Vec<Vec<Frame>> = by_size.into_values().collect();
    sizes.sort_by_key(Vec::len);
    let pair = sizes.pop().unwrap();
    vec![sizes.pop().unwrap().remove(0), pair[0].clone(), pair[1].clone()]
}

/// Tensors by name.
pub(crate) struct Values {
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    doubles: BTreeMap<String, Vec<f64>>,
    ints: BTreeMap<String, Vec<i32>>,
}

impl Values {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut floats, mut doubles, mut ints) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            match view.dtype() {
                Dtype::F32 => {
                    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    floats.insert(name, (view.shape().to_vec(), values));
                }
                Dtype::F64 => {
                    let values: Vec<f64> = view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
                    floats.insert(name.clone(), (view.shape().to_vec(), values.iter().map(|&v| v as f32).collect()));
                    doubles.insert(name, values);
                }
                Dtype::I32 => {
                    ints.insert(name, view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect());
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        Self { floats, doubles, ints }
    }

    pub(crate) fn get(&self, name: &str) -> (&[usize], &[f32]) {
        let (shape, values) = self.floats.get(name).unwrap_or_else(|| panic!("torchvision's `{name}` is missing"));
        (shape, values)
    }

    pub(crate) fn f64s(&self, name: &str) -> Vec<f64> {
        self.doubles.get(name).cloned().unwrap_or_else(|| self.get(name).1.iter().map(|&v| f64::from(v)).collect())
    }

    pub(crate) fn indices(&self, name: &str) -> &[i32] {
        self.ints.get(name).unwrap_or_else(|| panic!("torchvision's `{name}` is missing"))
    }

    pub(crate) fn rects(&self, name: &str) -> Vec<Rect> {
        self.get(name).1.chunks_exact(4).map(|c| Rect::new(c[0], c[1], c[2], c[3])).collect()
    }
}
