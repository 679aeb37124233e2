//! What all sides of a case read: a folder with `config.json`, `options.json`, `weights.safetensors` under torchvision's names, `frames/`,
//! `truth.json` for training, `bundle/` for inference.
//!
//! `nano` has the weights of the shipped model and looks at rendered scenes. The larger presets have no trained weights here: theirs are
//! random but loud enough that people are detected, and what they learn from are boxes that they propose (see `side_torch.py`).

use crate::side::{Program, Side};
use anyhow::{Context, Result};
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::{Thresholds, Visibility};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::augment::Augment;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::export::{ExportMeta, write_bundle};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::train::{Optimizer, TrainOptions};
use omnilabel_scenes::{Look, Scene, scene};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Keypoints of COCO's people.
const KEYPOINTS: usize = 17;
/// People per picture of a network with random weights.
const PEOPLE: usize = 3;
/// So small that the weights, and with them the number of foreground RoIs, stay the same over a measurement.
const LEARNING_RATE: f64 = 1e-7;

/// The repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The people of one picture, in its pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// `x1, y1, x2, y2`.
    pub boxes: Vec<[f32; 4]>,
    /// `x, y, v` of each keypoint.
    pub keypoints: Vec<Vec<[f32; 3]>>,
}

/// A network and pictures of the size that it sees.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// A preset of [`Config::preset`].
    pub preset: &'static str,
    /// Short side of the pictures, px.
    pub side: u32,
    /// How many pictures.
    pub pictures: usize,
    /// Width by height of the pictures.
    pub aspect: (u32, u32),
}

impl Fixture {
    fn size(&self) -> Size {
        Size { width: self.side * self.aspect.0 / self.aspect.1, height: self.side }
    }

    fn config(&self) -> Result<Config> {
        let mut config = Config::preset(self.preset, KEYPOINTS).with_context(|| format!("no preset `{}`", self.preset))?;
        config.input.short_side = self.side;
        if self.preset == "nano" {
            config.input.max_long_side = config.input.max_long_side.max(2 * self.side);
        } else {
            // As many people as the pictures of a trained detector have; a random network would find 100.
            config.network.max_detections = PEOPLE as u32;
            // The limit of the ensemble (spec §3).
            config.input.max_long_side = 2000;
        }
        Ok(config)
    }

    /// Makes the files under `work`, once; `torch` gives random weights.
    ///
    /// # Errors
    /// The disk refuses, or the side fails.
    pub fn make(&self, work: &Path, torch: Option<&Program>) -> Result<PathBuf> {
        let folder = work.join(format!("{}-{}x{}", self.preset, self.side, self.pictures));
        let done = folder.join("done");
        if done.is_file() {
            return Ok(folder);
        }
        let write = |name: &str, bytes: Vec<u8>| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| path.display().to_string())
        };
        std::fs::create_dir_all(folder.join("frames")).with_context(|| folder.display().to_string())?;
        let config = self.config()?;
        write("config.json", serde_json::to_vec(&config)?)?;
        let optimizer = if self.preset == "nano" { Optimizer::AdamW } else { Optimizer::Sgd };
        let options = TrainOptions {
            steps: 1 << 20,
            batch: self.pictures,
            lr: LEARNING_RATE,
            optimizer,
            augment: Augment::none(),
            ..TrainOptions::default()
        };
        write("options.json", serde_json::to_vec(&options)?)?;
        let scenes: Vec<Scene> =
            (0..).map(|index| scene(&Look::studio(), 7, index, self.size())).filter(|s| s.people.len() >= 2).take(self.pictures).collect();
        let mut truths = Vec::new();
        for (index, scene) in scenes.into_iter().enumerate() {
            let people = scene.people.iter();
            truths.push(Truth {
                boxes: people.clone().map(|p| [p.rect.x1, p.rect.y1, p.rect.x2, p.rect.y2]).collect(),
                keypoints: people.map(|p| p.keypoints.iter().map(|k| [k.point.x, k.point.y, shown(k.visibility)]).collect()).collect(),
            });
            let frame = Frame { size: self.size(), rgb: scene.image.into_raw() };
            write(&format!("frames/{index:03}.png"), frame.to_png())?;
        }
        write("truth.json", serde_json::to_vec(&truths)?)?;
        let network = Network::new(config, 1)?;
        let weights = if self.preset == "nano" {
            root().join("models/zoo/nano-scenes/weights.safetensors")
        } else {
            let torch =
                torch.with_context(|| format!("{} has weights of PyTorch's generator: tests/setup --torch makes its venv", self.preset))?;
            let request = serde_json::json!({"do": "weights", "folder": folder, "people": PEOPLE});
            Side::start(torch, 2)?.ask(&request)?;
            folder.join("weights.pth")
        };
        let kept = network.init_from(&weights)?;
        anyhow::ensure!(kept.is_empty(), "{}: expected every tensor of {}, missing {kept:?}", weights.display(), self.preset);
        network.params().save(&folder.join("weights.safetensors"))?;
        let meta = ExportMeta {
            name: self.preset.to_owned(),
            skeleton: Skeleton::coco17(),
            thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
            parent: None,
            dataset_sha256: None,
            ap: None,
        };
        write_bundle(&network, &meta, &folder.join("bundle"))?;
        std::fs::write(&done, "").with_context(|| done.display().to_string())?;
        Ok(folder)
    }
}

fn shown(visibility: Visibility) -> f32 {
    match visibility {
        Visibility::Unlabelled => 0.0,
        Visibility::Hidden => 1.0,
        Visibility::Visible => 2.0,
    }
}

/// Reads a file of JSON.
///
/// # Errors
/// It names the file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

/// The pictures of a fixture, in order.
///
/// # Errors
/// One cannot be read.
pub fn frames(folder: &Path) -> Result<Vec<Frame>> {
    let folder = folder.join("frames");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    paths.iter().map(|path| Ok(Frame::open(path)?)).collect()
}

/// The bundle of a fixture.
///
/// # Errors
/// It is refused.
pub fn bundle(folder: &Path) -> Result<Bundle> {
    Ok(Bundle::open(&folder.join("bundle"))?)
}
