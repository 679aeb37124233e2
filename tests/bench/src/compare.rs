//! The driver: prepares the sides of a case, compares what they give, then asks them in turn how long they take.

use crate::agree::{people, same_labels, same_people, same_scores, same_step};
use crate::cases::{Case, ours};
use crate::load::Load;
use crate::side::{Device, Kind, Memory, Request, Side, Task};
use crate::stats::Spread;
use anyhow::{Context, Result};
use omnilabel_rcnn::device::Arithmetic;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
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
    /// How long a case may wait for others to leave the processor alone.
    pub patience: Duration,
    /// A run repeats work that is quicker than this until it takes about as long.
    pub run: Duration,
    /// Where fixtures are kept.
    pub work: PathBuf,
}

/// A round in which others took more than this share of the processor is left out where there are enough quiet ones.
pub(crate) const QUIET: f64 = 0.1;
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
    /// The share of the processor that others took, the median over the rounds that count.
    pub others: f64,
    /// Rounds that count.
    pub rounds: usize,
    /// Rounds that were left out because others took too much.
    pub disturbed: usize,
    /// Operations of one repetition, as PyTorch counts its own: a product and its sum are two. On a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
    /// What the products are computed in.
    #[serde(default)]
    pub precision: Arithmetic,
    /// Pictures of one repetition.
    #[serde(default)]
    pub pictures: usize,
    /// Ours first; empty when it is invalid.
    pub sides: Vec<SideReport>,
}

/// What a GPU gives at most, measured through PyTorch in the same run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// The GPU's name.
    pub device: String,
    /// Operations per second of a large matrix product in f32 and in bf16.
    pub flops: BTreeMap<String, f64>,
    /// Bytes per second of a large copy, read and written.
    pub bytes: f64,
}

impl Ceiling {
    /// Measures it.
    ///
    /// # Errors
    /// There is no PyTorch, or no GPU.
    pub fn measure(threads: usize) -> Result<Self> {
        let answer = Side::start(&crate::cases::Peer::Torch.program()?, threads)?.ask(&serde_json::json!({"do": "ceiling"}))?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Operations per second in an arithmetic.
    pub fn of(&self, precision: Arithmetic) -> Option<f64> {
        self.flops.get(if precision == Arithmetic::Bf16 { "bf16" } else { "f32" }).copied()
    }
}

/// Runs a case. A side that fails, or gives something else than the reference, makes it invalid.
pub fn run(case: &Case, effort: &Effort) -> CaseReport {
    measure(case, effort).unwrap_or_else(|error| CaseReport {
        case: case.name.clone(),
        what: case.what.clone(),
        invalid: Some(omnilabel_console::line(&error)),
        others: 0.0,
        rounds: 0,
        disturbed: 0,
        flops: None,
        precision: case.task.precision,
        pictures: case.source.pictures(),
        sides: Vec::new(),
    })
}

struct Running {
    side: Side,
    agreement: Option<String>,
    repeat: u32,
    seconds: Vec<f64>,
}

fn measure(case: &Case, effort: &Effort) -> Result<CaseReport> {
    let mut running = ready(case, effort)?;
    for round in 0..WARM_UP {
        for one in &mut running {
            let seconds = one.side.seconds(one.repeat)?;
            if round + 1 == WARM_UP {
                one.repeat = (effort.run.as_secs_f64() / seconds).ceil().clamp(1.0, MAX_REPEAT) as u32;
            }
        }
    }
    // Brokers and collectors are processes of their own, whose share cannot be told from that of others while they work.
    let alone = case.task.kind != Kind::Ingest;
    let (start, mut shares, mut patience) = (Instant::now(), Vec::new(), effort.patience);
    for round in 0..effort.most {
        let quiet = shares.iter().filter(|share| **share <= QUIET).count();
        let spent = start.elapsed().saturating_sub(effort.patience - patience);
        let over = spent > effort.budget && quiet >= effort.least;
        if over || (spent > 2 * effort.budget && round >= effort.least) {
            break;
        }
        let before = settle(&mut patience);
        let load = Load::start(running.iter().map(|one| one.side.id()).collect());
        // Each round begins with another side, so that none always follows the same one.
        for turn in 0..running.len() {
            let index = (round + turn) % running.len();
            let one = &mut running[index];
            let seconds = one.side.seconds(one.repeat)?;
            one.seconds.push(seconds);
        }
        shares.push(if alone { load.share() } else { before });
    }
    let quiet: Vec<usize> = (0..shares.len()).filter(|&round| shares[round] <= QUIET).collect();
    let counted = if quiet.len() >= effort.least { quiet } else { (0..shares.len()).collect() };
    let of = |values: &[f64]| counted.iter().map(|&round| values[round]).collect::<Vec<f64>>();
    let own = of(&running[0].seconds);
    let mut sides = Vec::new();
    for (index, one) in running.iter_mut().enumerate() {
        let seconds = of(&one.seconds);
        let ratios: Vec<f64> = if index == 0 { Vec::new() } else { seconds.iter().zip(&own).map(|(theirs, ours)| theirs / ours).collect() };
        sides.push(SideReport {
            side: one.side.name.to_owned(),
            spread: Spread::of(&seconds).context("no rounds")?,
            repeat: one.repeat,
            memory: one.side.memory()?,
            ratio: Spread::of(&ratios),
            ratios,
            agreement: one.agreement.take(),
            seconds,
        });
    }
    let flops = match case.task.device {
        Device::Cpu => None,
        // The reference counts its own, after its memory was asked for.
        Device::Cuda => running[1].side.ask(&serde_json::json!({"do": "flops"}))?.get("flops").and_then(Value::as_f64),
    };
    Ok(CaseReport {
        case: case.name.clone(),
        what: case.what.clone(),
        invalid: None,
        others: Spread::of(&of(&shares)).map_or(0.0, |share| share.median),
        rounds: counted.len(),
        disturbed: shares.len() - counted.len(),
        flops,
        precision: case.task.precision,
        pictures: case.source.pictures(),
        sides,
    })
}

/// Waits until others leave the processor alone, as long as there is patience. The share that they took at last.
fn settle(patience: &mut Duration) -> f64 {
    const LOOK: Duration = Duration::from_millis(300);
    loop {
        let load = Load::start(Vec::new());
        std::thread::sleep(LOOK);
        let share = load.share();
        *patience = patience.saturating_sub(LOOK);
        if share <= QUIET || patience.is_zero() {
            return share;
        }
    }
}

/// The sides of a case, prepared and agreed.
fn ready(case: &Case, effort: &Effort) -> Result<Vec<Running>> {
    let torch = crate::cases::Peer::Torch.program().ok();
    let folder = case.source.make(&effort.work, torch.as_ref())?;
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
            one.agreement = Some(agree(&task, &answer, &reference).with_context(|| format!("{} and the reference differ", one.side.name))?);
        }
    }
    Ok(running)
}

fn agree(task: &Task, found: &Value, expected: &Value) -> Result<String> {
    match task.kind {
        Kind::Train => same_step(found, expected, task.precision),
        Kind::Detect => same_people(&people(found)?, &people(expected)?),
        Kind::Score => same_scores(found, expected),
        Kind::Encode | Kind::Decode | Kind::Ingest => same_labels(found, expected),
    }
}
