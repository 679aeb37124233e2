//! The driver: prepares the sides of a case, compares what they give, then asks them in turn how long they take.

use crate::agree::{people, same_people, same_step};
use crate::cases::{Case, ours};
use crate::side::{Kind, Memory, Request, Side, Task};
use crate::stats::Spread;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Threads of every side.
    pub threads: usize,
    /// Rounds at least.
    pub least: usize,
    /// Rounds at most.
    pub most: usize,
    /// After so long no round is begun, once there are enough.
    pub budget: Duration,
    /// A run repeats work that is quicker than this until it takes about as long.
    pub run: Duration,
    /// Where fixtures are kept.
    pub work: PathBuf,
}

/// Rounds that are not counted.
const WARM_UP: usize = 2;
/// The most repetitions of a run.
const MAX_REPEAT: f64 = 100_000.0;

/// What a side did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SideReport {
    /// Its name.
    pub side: String,
    /// Seconds of one repetition, one per round.
    pub seconds: Vec<f64>,
    /// The middle half of them.
    pub spread: Spread,
    /// Repetitions in a run.
    pub repeat: u32,
    /// Bytes resident.
    pub memory: Memory,
    /// Of a peer: its seconds over ours, round by round. Above 1 we are faster.
    pub ratios: Vec<f64>,
    /// The middle half of them.
    pub ratio: Option<Spread>,
    /// Of a peer: how far what it gave is from the reference's.
    pub agreement: Option<String>,
}

/// What came of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseReport {
    /// Its name.
    pub case: String,
    /// For people.
    pub what: String,
    /// Why its times say nothing.
    pub invalid: Option<String>,
    /// Ours first; empty when it is invalid.
    pub sides: Vec<SideReport>,
}

/// Runs a case. A side that fails, or gives something else than the reference, makes it invalid.
pub fn run(case: &Case, effort: &Effort) -> CaseReport {
    let report = |invalid, sides| CaseReport { case: case.name.clone(), what: case.what.clone(), invalid, sides };
    match sides(case, effort) {
        Ok(sides) => report(None, sides),
        Err(error) => report(Some(omnilabel_console::line(&error)), Vec::new()),
    }
}

struct Running {
    side: Side,
    agreement: Option<String>,
    repeat: u32,
    seconds: Vec<f64>,
}

fn sides(case: &Case, effort: &Effort) -> Result<Vec<SideReport>> {
    let torch = crate::cases::Peer::Torch.program().ok();
    let folder = case.fixture.make(&effort.work, torch.as_ref())?;
    let task = Task { folder, threads: effort.threads, ..case.task.clone() };
    let mut running = Vec::new();
    let programs = std::iter::once(ours()).chain(case.peers.iter().map(|peer| peer.program()));
    for program in programs {
        let mut side = Side::start(&program?, effort.threads)?;
        side.ask(&Request::Prepare(Box::new(task.clone())))?;
        running.push(Running { side, agreement: None, repeat: 1, seconds: Vec::new() });
    }
    // The reference first: we compare with what it sampled.
    let reference = running.get_mut(1).context("a case without a peer")?.side.ask(&Request::Check)?;
    for (index, one) in running.iter_mut().enumerate() {
        if index != 1 {
            let answer = one.side.ask(&Request::Check)?;
            one.agreement =
                Some(agree(task.kind, &answer, &reference).with_context(|| format!("{} and the reference differ", one.side.name))?);
        }
    }
    for round in 0..WARM_UP {
        for one in &mut running {
            let seconds = one.side.seconds(one.repeat)?;
            if round + 1 == WARM_UP {
                one.repeat = (effort.run.as_secs_f64() / seconds).ceil().clamp(1.0, MAX_REPEAT) as u32;
            }
        }
    }
    let start = Instant::now();
    for round in 0..effort.most {
        if round >= effort.least && start.elapsed() > effort.budget {
            break;
        }
        // Each round begins with another side, so that none always follows the same one.
        for turn in 0..running.len() {
            let index = (round + turn) % running.len();
            let one = &mut running[index];
            let seconds = one.side.seconds(one.repeat)?;
            one.seconds.push(seconds);
        }
    }
    let own = running[0].seconds.clone();
    running
        .into_iter()
        .enumerate()
        .map(|(index, mut one)| {
            let ratios: Vec<f64> =
                if index == 0 { Vec::new() } else { one.seconds.iter().zip(&own).map(|(theirs, ours)| theirs / ours).collect() };
            Ok(SideReport {
                side: one.side.name.to_owned(),
                spread: Spread::of(&one.seconds).context("no rounds")?,
                repeat: one.repeat,
                memory: one.side.memory()?,
                ratio: Spread::of(&ratios),
                ratios,
                agreement: one.agreement,
                seconds: one.seconds,
            })
        })
        .collect()
}

fn agree(kind: Kind, found: &Value, expected: &Value) -> Result<String> {
    match kind {
        Kind::Train => same_step(found, expected),
        Kind::Detect => same_people(&people(found)?, &people(expected)?),
    }
}
