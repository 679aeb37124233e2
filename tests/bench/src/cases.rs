//! What is compared with what.

use crate::fixture::{Fixture, Source, root};
use crate::side::{Device, Kind, Program, Task};
use anyhow::{Context, Result, bail};
use omnilabel_rcnn::device::Arithmetic;
use std::path::PathBuf;

/// Whom a case compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// PyTorch and torchvision.
    Torch,
    /// ONNX Runtime on the exported graphs.
    Onnx,
    /// pycocotools.
    Pycocotools,
    /// cbor2.
    Cbor2,
    /// `serde_json` on the same types.
    SerdeJson,
    /// A collector of paho-mqtt, cbor2 and sqlite3, or psycopg.
    Paho,
}

impl Peer {
    /// How it is started; an error says what makes it.
    ///
    /// # Errors
    /// It is not there.
    pub fn program(self) -> Result<Program> {
        let (name, variable, venv, script, setup) = match self {
            Self::Torch => ("PyTorch", "OMNILABEL_TORCH_PYTHON", ".venv-torch", "side_torch.py", "tests/setup --torch"),
            Self::Onnx => ("ONNX Runtime", "OMNILABEL_PYTHON", ".venv-test", "side_onnx.py", "tests/setup"),
            Self::Pycocotools => ("pycocotools", "OMNILABEL_PYTHON", ".venv-test", "side_tools.py", "tests/setup"),
            Self::Cbor2 => ("cbor2", "OMNILABEL_PYTHON", ".venv-test", "side_tools.py", "tests/setup"),
            Self::SerdeJson => return own("serde_json", &["side", "--role", "serde-json"]),
            Self::Paho => return own("paho, Python", &["side", "--role", "paho"]),
        };
        let python = std::env::var_os(variable).map_or_else(|| root().join(venv).join("bin/python"), PathBuf::from);
        if !python.exists() {
            bail!("no Python at {} ({setup} makes it, or set {variable})", python.display());
        }
        Ok(Program { name, command: vec![python, root().join("tests/bench/python").join(script)] })
    }
}

/// This product, as a side.
///
/// # Errors
/// The system does not say where this program is.
pub fn ours() -> Result<Program> {
    own("omnilabel", &["side"])
}

fn own(name: &'static str, arguments: &[&str]) -> Result<Program> {
    let file = std::env::current_exe().context("the path of this program")?;
    Ok(Program { name, command: std::iter::once(file).chain(arguments.iter().map(PathBuf::from)).collect() })
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Case {
    /// As `--only` takes it.
    pub name: String,
    /// For people.
    pub what: String,
    /// What all sides read.
    pub source: Source,
    /// What they do; `folder` and `threads` are filled in.
    pub task: Task,
    /// Whom it is compared with; the first says what is right.
    pub peers: Vec<Peer>,
    /// Whether it belongs to the quick mode.
    pub quick: bool,
}

/// The nine scales of the paper (spec §3) as shares of the base scale: 400 to 1200 px around 800.
const SCALES: [u32; 9] = [4, 5, 6, 7, 8, 9, 10, 11, 12];

fn task(kind: Kind) -> Task {
    Task {
        kind,
        folder: PathBuf::new(),
        threads: 0,
        device: Device::Cpu,
        precision: Arithmetic::F32,
        base: 0,
        scales: Vec::new(),
        flip: false,
        boxes: None,
        devices: 0,
        labels: 0,
        postgres: false,
    }
}

fn train(preset: &'static str, side: u32, batch: usize, aspect: (u32, u32)) -> Case {
    Case {
        name: format!("train-{preset}"),
        what: format!("training step, {preset}, {side} px, batch {batch}"),
        source: Source::Network(Fixture { preset, side, pictures: batch, aspect, most: None }),
        task: task(Kind::Train),
        peers: vec![Peer::Torch],
        quick: preset == "nano",
    }
}

fn detect(preset: &'static str, side: u32, aspect: (u32, u32), many: bool) -> Case {
    let scales = if many { SCALES.map(|eighths| side * eighths / 8).to_vec() } else { vec![side] };
    let views = scales.len() * if many { 2 } else { 1 };
    Case {
        name: format!("{}-{preset}", if many { "label" } else { "detect" }),
        what: format!("{}, {preset}, {side} px", if many { format!("labelling by {views} views") } else { "one view".to_owned() }),
        source: Source::Network(Fixture { preset, side, pictures: 1, aspect, most: None }),
        task: Task { base: side, scales, flip: many, ..task(Kind::Detect) },
        peers: vec![Peer::Torch, Peer::Onnx],
        quick: preset == "nano",
    }
}

fn other(name: &str, what: &str, source: Source, task: Task, peers: &[Peer]) -> Case {
    Case { name: name.to_owned(), what: what.to_owned(), source, task, peers: peers.to_vec(), quick: true }
}

/// All comparisons; `side` is the short side of `resnet50` at inference, `quick` leaves out what is large.
pub fn all(side: u32, quick: bool) -> Vec<Case> {
    let (nano, photo) = ((5, 4), (4, 3));
    let images = if quick { 200 } else { 5000 };
    let score = format!("score, {} images, {} people", images, images * 36 / 5);
    let ingest = Task { devices: 8, labels: if quick { 200 } else { 2000 }, ..task(Kind::Ingest) };
    let cases = vec![
        train("nano", 144, 16, nano),
        train("resnet50", 256, 2, photo),
        detect("nano", 128, nano, false),
        detect("resnet50", side, photo, false),
        detect("nano", 128, nano, true),
        detect("resnet50", side, photo, true),
        other("score", &score, Source::Results(images), task(Kind::Score), &[Peer::Pycocotools]),
        other("wire-encode", "256 labels to bytes", Source::Labels, task(Kind::Encode), &[Peer::Cbor2, Peer::SerdeJson]),
        other("wire-decode", "256 labels from bytes", Source::Labels, task(Kind::Decode), &[Peer::Cbor2, Peer::SerdeJson]),
        other("ingest", &format!("ingest of {} labels of 8 devices", ingest.labels), Source::Labels, ingest.clone(), &[Peer::Paho]),
        other(
            "ingest-postgres",
            &format!("the same into PostgreSQL, {} labels", ingest.labels),
            Source::Labels,
            Task { postgres: true, ..ingest },
            &[Peer::Paho],
        ),
    ];
    cases.into_iter().filter(|case| !quick || case.quick).collect()
}

/// The comparisons on a GPU that this build can make: of labelling with the feature `cuda`, of training with `trainer-cuda`. The larger
/// pictures and batches are what a GPU is bought for; `side` is the short side of `resnet50` at inference.
///
/// # Errors
/// It was built with neither feature.
pub fn on_gpu(side: u32, quick: bool) -> Result<Vec<Case>> {
    let (nano, photo) = ((5, 4), (4, 3));
    let on_gpu = |case: Case, precision| {
        let (suffix, said) = if precision == Arithmetic::Bf16 { ("-bf16", ", bf16") } else { ("", "") };
        let task = Task { device: Device::Cuda, precision, ..case.task };
        Case {
            name: format!("{}-gpu{suffix}", case.name),
            what: format!("GPU: {}{said}", case.what),
            task,
            peers: vec![Peer::Torch],
            ..case
        }
    };
    let mut cases = Vec::new();
    if cfg!(any(feature = "cuda", feature = "cuda-12060")) {
        for many in [false, true] {
            cases
                .extend([detect("nano", 128, nano, many), detect("resnet50", side, photo, many)].map(|case| on_gpu(case, Arithmetic::F32)));
        }
    }
    if cfg!(feature = "trainer-cuda") {
        for precision in [Arithmetic::F32, Arithmetic::Bf16] {
            cases.extend([train("nano", 144, 16, nano), train("resnet50", 512, 4, photo)].map(|case| on_gpu(case, precision)));
        }
    }
    if cases.is_empty() {
        bail!(
            "this program was built for the processor alone: cargo's feature `cuda` compares labelling on a GPU, `trainer-cuda` training"
        );
    }
    cases.retain(|case| !quick || case.quick);
    Ok(cases)
}

/// Views from the base scale outwards, each scale with its mirror image.
pub fn by_views(counts: &[usize]) -> Vec<(usize, Case)> {
    const SIDE: u32 = 128;
    let case = |&views: &usize| {
        let mut case = detect("nano", SIDE, (5, 4), true);
        // 8, 9, 7, 10, 6, … eighths of the base scale.
        let outwards = |step: u32| if step % 2 == 1 { 8 + step.div_ceil(2) } else { 8 - step / 2 };
        case.task.flip = views > 1;
        case.task.scales = (0..views.div_ceil(2) as u32).map(|step| SIDE * outwards(step) / 8).collect();
        named(views, case, &format!("{views} views, nano, {SIDE} px"))
    };
    counts.iter().map(case).collect()
}

/// Boxes that are given, spread over the frame.
pub fn by_people(counts: &[usize]) -> Vec<(usize, Case)> {
    let case = |&people: &usize| {
        let mut case = detect("nano", 128, (5, 4), false);
        let at = |index: usize, step: f32, room: f32| 1.0 + (index as f32 * step) % room;
        let person = |index: usize| {
            let (x, y) = (at(index, 37.7, 110.0), at(index, 17.3, 40.0));
            [x, y, x + 36.3 + (index % 5) as f32, y + 76.6 + (index % 7) as f32, 0.9]
        };
        case.task.boxes = Some((0..people).map(person).collect());
        named(people, case, &format!("{people} given boxes, nano, 128 px"))
    };
    counts.iter().map(case).collect()
}

/// Frames of growing size, each seen at its own size, with as many people in each.
pub fn by_size(sides: &[u32]) -> Vec<(usize, Case)> {
    let case = |&side: &u32| {
        let mut case = detect("nano", side, (5, 4), false);
        case.source = Source::Network(Fixture { preset: "nano", side, pictures: 1, aspect: (5, 4), most: Some(1) });
        named(side as usize, case, &format!("one view, one person, nano, {side} px"))
    };
    sides.iter().map(case).collect()
}

/// Training steps of growing batches.
pub fn by_batch(batches: &[usize]) -> Vec<(usize, Case)> {
    let case = |&batch: &usize| named(batch, train("nano", 144, batch, (5, 4)), &format!("training step, nano, 144 px, batch {batch}"));
    batches.iter().map(case).collect()
}

/// Labels of more and more devices, at least one of each device.
pub fn by_devices(counts: &[usize]) -> Vec<(usize, Case)> {
    let case = |&devices: &usize| {
        let labels = devices.max(2000);
        let task = Task { devices, labels, ..task(Kind::Ingest) };
        (devices, other("devices", &format!("ingest of {labels} labels of {devices} devices"), Source::Labels, task, &[Peer::Paho]))
    };
    counts.iter().map(case).collect()
}

fn named(x: usize, case: Case, what: &str) -> (usize, Case) {
    (x, Case { what: what.to_owned(), peers: vec![Peer::Torch], ..case })
}
