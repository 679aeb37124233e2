//! What is compared with what.

use crate::fixture::{Fixture, root};
use crate::side::{Kind, Program, Task};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Whom a case compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// PyTorch and torchvision.
    Torch,
    /// ONNX Runtime on the exported graphs.
    Onnx,
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
    let own = std::env::current_exe().context("the path of this program")?;
    Ok(Program { name: "omnilabel", command: vec![own, "side".into()] })
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Case {
    /// As `--only` takes it.
    pub name: String,
    /// For people.
    pub what: String,
    /// What all sides read.
    pub fixture: Fixture,
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
    Task { kind, folder: PathBuf::new(), threads: 0, base: 0, scales: Vec::new(), flip: false, boxes: None }
}

fn train(preset: &'static str, side: u32, batch: usize, aspect: (u32, u32)) -> Case {
    Case {
        name: format!("train-{preset}"),
        what: format!("training step, {preset}, {side} px, batch {batch}"),
        fixture: Fixture { preset, side, pictures: batch, aspect },
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
        fixture: Fixture { preset, side, pictures: 1, aspect },
        task: Task { base: side, scales, flip: many, ..task(Kind::Detect) },
        peers: vec![Peer::Torch],
        quick: preset == "nano",
    }
}

/// All comparisons; `side` is the short side of `resnet50` at inference.
pub fn all(side: u32) -> Vec<Case> {
    let (nano, photo) = ((5, 4), (4, 3));
    vec![
        train("nano", 144, 16, nano),
        train("resnet50", 256, 2, photo),
        detect("nano", 128, nano, false),
        detect("resnet50", side, photo, false),
        detect("nano", 128, nano, true),
        detect("resnet50", side, photo, true),
    ]
}
