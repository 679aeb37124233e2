//! What the tests of several modules share: a bundle that needs no network, releases of it, and a model on hand-made graphs.

use crate::annotate::Model;
use crate::config::TeacherConfig;
use crate::update::Trust;
use ed25519_dalek::{Signer, SigningKey};
use omnilabel_bundle::*;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::release::{DOMAIN, KEYS_DOMAIN, KeySet, Newest, ReleaseFile, ReleaseManifest};
use omnilabel_keypoints::wire::{ReleaseMsg, VERSION};
use omnilabel_runtime::{BackboneOutput, Graphs, RuntimeError, Teacher};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;

pub(crate) const BLOCK: u32 = 1000;
const GRAPHS: [&str; 3] = ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"];

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// A sealed bundle whose weights are `weights` bytes of `fill`; its graphs and its golden frame are empty files. One that is named
/// `untried` has no golden frame.
pub(crate) fn bundle(root: &Path, name: &str, fill: u8, weights: usize) -> Bundle {
    std::fs::create_dir_all(root).unwrap();
    let mut golden = vec![GoldenFrame { image: "yard.png".into(), detections: "yard.json".into() }];
    golden.retain(|_| name != "untried");
    for file in golden.iter().flat_map(|frame| [frame.image.as_str(), &frame.detections]).chain(GRAPHS) {
        std::fs::write(root.join(file), b"").unwrap();
    }
    let noise: Vec<u8> = (0..weights).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ fill).collect();
    std::fs::write(root.join("weights.safetensors"), noise).unwrap();
    std::fs::create_dir_all(root.join("notes")).unwrap();
    std::fs::write(root.join("notes/unchanged.txt"), vec![b'u'; 2500]).unwrap();
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    let manifest = Manifest {
        format: FORMAT,
        name: name.into(),
        architecture: "none".into(),
        skeleton: SkeletonSpec {
            keypoints: vec!["left_hand".into(), "right_hand".into()],
            edges: vec![],
            flip: vec![1, 0],
            sigmas: vec![0.05; 2],
        },
        input: InputSpec { short_side: 32, max_long_side: 64, size_divisor: 16, mean: [0.5; 3], std: [0.25; 3], channels: Channels::Rgb },
        network: NetworkSpec {
            levels: vec![LevelSpec { stride: 4, anchor_size: 16.0 }],
            roi_levels: 1,
            canonical_size: 224.0,
            canonical_level: 0,
            aspect_ratios: vec![1.0],
            anchor_rule: AnchorRule::Rounded,
            stride_in_1x1: false,
            rpn: RpnSpec { pre_nms_top_n: 10, post_nms_top_n: 5, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.5 },
            box_roi: roi(7),
            keypoint_roi: roi(14),
            box_coder: [10.0, 10.0, 5.0, 5.0],
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_detections: 5,
            heatmap_side: 14,
        }
        .into(),
        thresholds: Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 },
        parent: None,
        dataset_sha256: None,
        ap: None,
        files: Default::default(),
        golden,
    };
    seal(root, manifest).unwrap()
}

fn digest(bytes: &[u8]) -> heapless::String<64> {
    heapless::String::try_from(hex(&Sha256::digest(bytes)).as_str()).unwrap()
}

/// The manifest of a release of `bundle`, and its blocks.
pub(crate) fn release(bundle: &Bundle, counter: u64) -> (ReleaseManifest, Vec<Vec<u8>>) {
    release_in_blocks(bundle, counter, BLOCK)
}

/// The same in blocks of another size.
pub(crate) fn release_in_blocks(bundle: &Bundle, counter: u64, block_bytes: u32) -> (ReleaseManifest, Vec<Vec<u8>>) {
    let text = |text: &str| heapless::String::try_from(text).unwrap();
    let mut manifest = ReleaseManifest {
        format: 1,
        site: text("yard"),
        channel: text("stable"),
        counter,
        name: text("round"),
        block_bytes,
        ..ReleaseManifest::default()
    };
    let mut blocks = Vec::new();
    for name in bundle.manifest().files.keys().map(String::as_str).chain(["manifest.json"]) {
        let bytes = std::fs::read(bundle.path(name)).unwrap();
        let path = heapless::String::try_from(name).unwrap();
        manifest.files.push(ReleaseFile { path, bytes: bytes.len() as u64, sha256: digest(&bytes) }).unwrap();
        for block in bytes.chunks(block_bytes as usize) {
            manifest.blocks.push(digest(block)).unwrap();
            blocks.push(block.to_vec());
        }
    }
    (manifest, blocks)
}

pub(crate) fn sign(manifest: &ReleaseManifest, key: &SigningKey) -> ReleaseMsg {
    let json = serde_json::to_vec(manifest).unwrap();
    let signature = key.sign(&[DOMAIN, &json].concat()).to_bytes();
    ReleaseMsg {
        version: VERSION,
        manifest: heapless::Vec::from_slice(&json).unwrap(),
        signature: heapless::Vec::from_slice(&signature).unwrap(),
        ..ReleaseMsg::default()
    }
}

/// The message with a set of release keys under `root`'s signature.
pub(crate) fn with_keys(message: ReleaseMsg, root: &SigningKey, set: &KeySet) -> ReleaseMsg {
    let bytes = serde_json::to_vec(set).unwrap();
    let signature = root.sign(&[KEYS_DOMAIN, &bytes].concat()).to_bytes();
    let (keys, keys_signature) = (heapless::Vec::from_slice(&bytes).unwrap(), heapless::Vec::from_slice(&signature).unwrap());
    ReleaseMsg { keys, keys_signature, ..message }
}

/// A set of release keys.
pub(crate) fn key_set(site: &str, serial: u64, keys: &[&SigningKey], newest: Option<u64>) -> KeySet {
    let hex = |key: &&SigningKey| omnilabel_bundle::hex(key.verifying_key().as_bytes()).as_str().try_into().unwrap();
    let newest = newest.map(|counter| Newest { channel: "stable".try_into().unwrap(), counter }).into_iter().collect();
    KeySet { format: 1, site: site.try_into().unwrap(), serial, keys: keys.iter().map(hex).collect(), newest }
}

/// The root key alone, in a folder without a set of release keys.
pub(crate) fn trust(folder: &Path) -> Trust {
    Trust::open(folder, key().verifying_key(), "yard", "stable")
}

/// Sees nobody, or somebody at a cell; on request panics.
struct Blind {
    broken: bool,
    /// Row and column, as shares of eight.
    sees: Option<(usize, usize)>,
    /// Per view.
    takes: Duration,
}

impl Graphs for Blind {
    fn backbone(&self, _: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        assert!(!self.broken, "a broken model");
        std::thread::sleep(self.takes);
        let (r, c) = (rows / 4, columns / 4);
        let mut objectness = vec![-10.0; r * c];
        if let Some((row, column)) = self.sees {
            objectness[row * r / 8 * c + column * c / 8] = 10.0;
        }
        Ok(BackboneOutput {
            features: vec![(vec![0.0; r * c], 1, r, c)],
            objectness: vec![(objectness, r, c)],
            deltas: vec![vec![0.0; 4 * r * c]],
        })
    }
    fn box_head(&self, _: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        // Background, person.
        Ok(([0.0, 6.0].repeat(r), vec![0.0; 8 * r]))
    }
    fn keypoint_head(&self, _: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        Ok(vec![0.0; r * 2 * 14 * 14])
    }
}

/// A model that sees nobody, but for those whose name begins with `sees`; `slow` takes seconds, a broken one panics on its first frame.
pub(crate) fn model(bundle: &Bundle, counter: u64, broken: bool) -> Model {
    let sees = match bundle.manifest().name.as_str() {
        "sees-elsewhere" => Some((5, 6)),
        name => name.starts_with("sees").then_some((3, 2)),
    };
    let takes = Duration::from_millis(if bundle.manifest().name == "slow" { 2500 } else { 0 });
    let graphs = Blind { broken, sees, takes };
    let teacher = Teacher::with_graphs(Box::new(graphs), bundle.manifest().clone(), bundle.skeleton().clone()).unwrap();
    Model::with_teacher(teacher, bundle, counter, &TeacherConfig::default())
}
