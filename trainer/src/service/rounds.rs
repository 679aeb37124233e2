//! One round after the other. A round is a chain of steps; each writes its outcome to the store before the next begins, so a service
//! that was killed anywhere continues with the step that it was at:
//!
//! ```text
//! judge the running model ─▶ choose τ, τ_k ─▶ export the snapshot ─▶ train ─▶ judge the student
//!     ─▶ label the newest pictures with both ─▶ gate ─▶ sign | refuse
//! ```

use crate::arm::ArmError;
use crate::calibrate::ManualStats;
use crate::score::Difference;
use crate::service::arm::{Job, Judgement, Progress, TrainArm};
use crate::service::config::ServiceConfig;
use crate::service::dataset::{sync_dir, sync_tree};
use crate::service::drift::Relabelled;
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::gate::{self, Decision, Evidence};
use crate::service::sign::{self, Naming};
use crate::service::store::Store;
use crate::service::store::ledger::Selection;
use crate::service::waves::Waves;
use anyhow::{Context, bail, ensure};
pub use begun::Begun;
use ed25519_dalek::SigningKey;
use omnilabel_bundle::Bundle;
use omnilabel_coco::Dataset;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::RcnnError;
use serde::{Deserialize, Serialize};
use snapshot::{GENERATED, HAND};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::watch;

/// How long a round that failed waits before it is tried again: doubled with every failure …
const RETRY: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How often the store is asked whether a round is due.
const POLL: Duration = Duration::from_millis(500);
/// Pictures of a data set that are in memory at a time: of the largest, 128 MiB.
const FETCHED: usize = 64;

/// AP and, for the running model, what the calibration needs of its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// AP in `[0, 1]`.
    pub ap: f64,
    /// The score at which the model's precision on the held-out labels is the wanted one; `paper` mode does not need it.
    #[serde(default)]
    pub precise: Option<f32>,
    /// PCK of each keypoint, where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pck: Vec<Option<f64>>,
}

/// What is known of a round: the first thing that is missing is its next step. Kept as JSON in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundState {
    /// Counts from 1.
    pub round: u64,
    /// Counter of the release that made the labels.
    pub teacher: u64,
    /// Bundle of that release.
    pub running: PathBuf,
    /// Labels arrived after this one …
    pub after: i64,
    /// … up to this one.
    pub up_to: i64,
    /// Number of the last word of a person that counts.
    #[serde(default)]
    pub verdicts: i64,
    /// Seed, data sets and settings when it began; none of a round that an earlier version began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// The running model on the held-out labels.
    #[serde(default)]
    pub running_judged: Option<Judged>,
    /// τ, τ_k, floor.
    #[serde(default)]
    pub thresholds: Option<Thresholds>,
    /// SHA-256 of the exported snapshot.
    #[serde(default)]
    pub dataset_sha256: Option<String>,
    /// SHA-256 of the snapshot of labels by hand, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_sha256: Option<String>,
    /// Whether the student's bundle is written.
    #[serde(default)]
    pub trained: bool,
    /// The student on the held-out labels.
    #[serde(default)]
    pub candidate_judged: Option<Judged>,
    /// What both make of the fleet's newest pictures.
    #[serde(default)]
    pub relabelled: Option<Relabelled>,
    /// How much better the student is, with the 95 % interval of that; none without two resamples that can be scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// The settings when the gate decided, where they are not those that it began with: somebody changed them meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_with: Option<serde_json::Value>,
    /// What the gate said.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Counter of the release that came of it.
    #[serde(default)]
    pub released: Option<u64>,
    /// Nothing is left to do.
    #[serde(default)]
    pub ended: bool,
    /// Failures so far.
    #[serde(default)]
    pub failures: u32,
    /// The error of the last step, where it failed: the round waits to be tried again.
    #[serde(default)]
    pub failed: Option<String>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// Nothing was due.
    Idle,
    /// A step was done.
    Done,
    /// The service stops; the step goes on after the next start.
    Stopped,
}

/// The rounds of one centre.
pub struct Rounds {
    config: ServiceConfig,
    store: Store,
    events: Arc<EventLog>,
    arm: Arc<dyn TrainArm>,
    key: SigningKey,
    manual: Dataset,
    heldout: ManualStats,
    keypoint_threshold: f32,
    stopping: Arc<AtomicBool>,
}

impl Rounds {
    /// Checks that everything that a round will need is there: data sets, the running bundle, the key, one skeleton everywhere.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub async fn new(
        config: ServiceConfig,
        store: Store,
        events: Arc<EventLog>,
        arm: Arc<dyn TrainArm>,
        stopping: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let manual = Dataset::load(&config.data.manual).context("`data.manual`")?;
        let heldout = Dataset::load(&config.data.heldout).context("`data.heldout`")?;
        let running = Bundle::open(&config.model.running).context("`model.running`")?;
        for (what, skeleton) in [("data.heldout", &heldout.skeleton), ("model.running", running.skeleton())] {
            ensure!(
                skeleton.names().eq(manual.skeleton.names()),
                "`{what}` has the keypoints {:?}, `data.manual` has {:?}",
                skeleton.names().collect::<Vec<_>>(),
                manual.skeleton.names().collect::<Vec<_>>()
            );
        }
        ensure!(!manual.images.is_empty(), "`data.manual`: {} has no images", config.data.manual.display());
        crate::evaluate::labelled(&heldout).context("`data.heldout`")?;
        let key = sign::read_key(&config.release.key).context("`release.key`")?;
        let heldout = ManualStats::of(&heldout);
        let keypoint_threshold = running.manifest().thresholds.keypoint;
        Ok(Self { config, store, events, arm, key, manual, heldout, keypoint_threshold, stopping })
    }

    /// Keypoints of the manual set's skeleton.
    pub fn keypoints(&self) -> usize {
        self.manual.skeleton.len()
    }

    /// τ_k of the provisioned model.
    pub const fn keypoint_threshold(&self) -> f32 {
        self.keypoint_threshold
    }

    /// The manual set's skeleton.
    pub fn skeleton(&self) -> &Skeleton {
        &self.manual.skeleton
    }

    /// The release key.
    pub(super) const fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Does what is due until `stop`. The pauses grow with the failures since the last round ended.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut failures = 0;
        while !*stop.borrow() {
            let pause = match self.step().await {
                Ok(Stepped::Done) => continue,
                Ok(Stepped::Idle) => {
                    failures = 0;
                    POLL
                }
                Ok(Stepped::Stopped) => return,
                Err(error) => {
                    let pause = retry_pause(failures);
                    failures += 1;
                    let message = format!("{}; tried again in {} s", omnilabel_console::line(&error), pause.as_secs());
                    self.events.emit(Event::Error { what: "round".to_owned(), message });
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = crate::service::server::stopped(&mut stop) => return,
            }
        }
    }

    /// Does the next step of the round under way, or begins one when enough labels are there.
    ///
    /// # Errors
    /// What went wrong; the next call tries again. A round fails as often as it has to and keeps its labels: only the gate, or a loss
    /// that is not finite, which every repetition would find again, refuses a student.
    pub async fn step(&self) -> anyhow::Result<Stepped> {
        let rounds = self.store.rounds().await?;
        let Some(mut state) = rounds.last().filter(|r| !r.ended).cloned() else { return self.begin(&rounds).await };
        if (state.failed.is_some() || state.dataset_sha256.is_some()) && !self.is_exported(&state) && !state.trained {
            // Nothing is left of the snapshot (it is in no backup), or nothing was made of it yet: it takes in what has come since.
            (state.up_to, state.verdicts) = (self.store.closed_label().await?, self.store.last_word().await?);
            (state.thresholds, state.dataset_sha256, state.hand_sha256) = (None, None, None);
        }
        match self.advance(&mut state).await {
            Ok(true) => {
                state.failed = None;
                if state.released.is_none() {
                    self.store.save_round(&state).await?;
                }
                Ok(Stepped::Done)
            }
            Ok(false) => Ok(Stepped::Stopped),
            Err(error) => {
                // What the step half did is not kept, only that it failed.
                let mut failed = rounds.last().cloned().context("the round is gone")?;
                if error.chain().any(|e| matches!(e.downcast_ref(), Some(ArmError::Rcnn(RcnnError::NotFinite { .. })))) {
                    let reason = omnilabel_console::line(&error);
                    failed.decision = Some(Decision::Refuse(reason.clone()));
                    failed.ended = true;
                    self.store.save_round(&failed).await?;
                    self.events.emit(Event::Refused { round: failed.round, reason });
                    return Ok(Stepped::Done);
                }
                failed.failures += 1;
                failed.failed = Some(omnilabel_console::line(&error));
                let error = error.context(format!("round {}", failed.round));
                match self.store.save_round(&failed).await {
                    Ok(()) => Err(error),
                    Err(store) => Err(error.context(format!("the failure could not be recorded ({store})"))),
                }
            }
        }
    }

    async fn begin(&self, rounds: &[RoundState]) -> anyhow::Result<Stepped> {
        let wanted = self.store.round_is_wanted().await?;
        if rounds.len() as u64 >= self.config.round.max_rounds && !wanted {
            return Ok(Stepped::Idle);
        }
        // While a release goes out, labels come of two models; whose are to be used is known when it is through, or halted.
        if let Some(newest) = self.store.latest_release().await?
            && !newest.waves()?.is_over()
        {
            return Ok(Stepped::Idle);
        }
        let release = self.store.running_release().await?;
        let (teacher, running) = release.map_or_else(|| (0, self.config.model.running.clone()), |r| (r.counter(), PathBuf::from(r.bundle)));
        let (up_to, verdicts) = (self.store.last_label().await?, self.store.last_word().await?);
        // A round begins with enough labels that no round has seen. What a refused round was made from did not help: it is set aside.
        let seen = rounds.iter().map(|r| r.up_to).max().unwrap_or(0);
        let fresh = self.store.selected(Selection { teacher, after: seen, up_to, verdicts }).await?;
        let old = match self.config.round.max_age_hours {
            Some(hours) => {
                let oldest = self.store.oldest(Selection { teacher, after: seen, up_to, verdicts }).await?;
                oldest.is_some_and(|received| now_ms().saturating_sub(received) >= u64::from(hours) * 3_600_000)
            }
            None => false,
        };
        if fresh == 0 || (fresh < self.config.round.min_labels && !wanted && !old) {
            return Ok(Stepped::Idle);
        }
        let begun = self.begun().await?;
        let up_to = self.store.closed_label().await?;
        let after = rounds.iter().filter(|r| r.released.is_none()).map(|r| r.up_to).max().unwrap_or(0);
        let round = rounds.last().map_or(0, |r| r.round) + 1;
        let state = RoundState {
            round,
            teacher,
            running,
            after,
            up_to,
            verdicts,
            begun: Some(begun),
            running_judged: None,
            thresholds: None,
            dataset_sha256: None,
            hand_sha256: None,
            trained: false,
            candidate_judged: None,
            relabelled: None,
            difference: None,
            decided_with: None,
            decision: None,
            released: None,
            ended: false,
            failures: 0,
            failed: None,
        };
        self.store.begin_round(&state).await?;
        let labels = self.store.selected(Selection { teacher, after, up_to, verdicts }).await?;
        self.events.emit(Event::RoundStarted { round, labels, teacher });
        Ok(Stepped::Done)
    }

    /// One step of `state`. False when the service stops.
    async fn advance(&self, state: &mut RoundState) -> anyhow::Result<bool> {
        let folder = self.folder(state.round);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        if state.running_judged.is_none() {
            let Some(judgement) = self.judge(state, "running", state.running.clone()).await? else { return Ok(false) };
            state.running_judged = Some(Judged { ap: judgement.ap, precise: self.precise(&judgement), pck: judgement.pck });
        } else if state.thresholds.is_none() {
            state.thresholds = Some(self.calibrate(state).await?);
        } else if state.dataset_sha256.is_none() {
            // Whatever was trained here was trained on another snapshot: of a database that was put back, or lost.
            crate::arm::forget(&folder)?;
            let (generated, by_hand) = self.export(state).await?;
            (state.dataset_sha256, state.hand_sha256) = (Some(generated.sha256), by_hand.map(|exported| exported.sha256));
        } else if !state.trained {
            if !self.train(state).await? {
                return Ok(false);
            }
            state.trained = true;
        } else if state.candidate_judged.is_none() {
            let bundle = self.student(state.round);
            let Some(judgement) = self.judge(state, "candidate", bundle.clone()).await? else { return Ok(false) };
            // The manifest says what the student reached and its own thresholds; its graphs and weights are those that were judged.
            crate::arm::amend(&bundle, |manifest| {
                manifest.ap = Some(judgement.ap);
                manifest.thresholds = self.own_thresholds(&judgement, manifest.thresholds.floor);
            })?;
            state.candidate_judged = Some(Judged { ap: judgement.ap, precise: None, pck: judgement.pck });
        } else if state.decision.is_none() && ["running", "candidate"].iter().any(|which| !self.results(state.round, which).exists()) {
            // Somebody removed them, or an earlier version judged: the gate looks at nothing else.
            (state.running_judged, state.candidate_judged) = (None, None);
        } else if state.decision.is_none() && state.relabelled.is_none() && self.wants_relabelling() {
            let Some(relabelled) = self.relabel(state).await? else { return Ok(false) };
            state.relabelled = Some(relabelled);
        } else if state.decision.is_none() {
            let (Some(running), Some(candidate)) = (&state.running_judged, &state.candidate_judged) else {
                bail!("the round has no judgements");
            };
            let evidence = tokio::task::block_in_place(|| self.evidence(state.round, running, candidate))?;
            let evidence = Evidence { relabelled: state.relabelled.clone(), ..evidence };
            let settings = self.settings()?;
            state.decided_with = state.begun.as_ref().is_none_or(|begun| begun.settings != settings).then_some(settings);
            state.difference = evidence.difference();
            state.decision = Some(gate::decide(&evidence, &self.config.gate));
        } else {
            match &state.decision {
                Some(Decision::Refuse(reason)) => {
                    self.events.emit(Event::Refused { round: state.round, reason: reason.clone() });
                    state.ended = true;
                }
                Some(Decision::Release(reason)) => {
                    let reason = reason.clone();
                    let name = format!("round-{}", state.round);
                    state.ended = true;
                    let waves = Waves::begin(&self.config.rollout, now_ms());
                    let release = Publish { bundle: &self.student(state.round), name: &name, round: Some(state), waves };
                    let counter = release_bundle(&self.config, &self.store, &self.key, release).await?;
                    state.released = Some(counter);
                    self.events.emit(Event::Released { round: Some(state.round), counter, name, reason });
                }
                None => bail!("the round has no decision"),
            }
        }
        Ok(true)
    }

    /// `state_dir/rounds/N`.
    fn folder(&self, round: u64) -> PathBuf {
        self.config.state_dir.join("rounds").join(round.to_string())
    }

    /// The bundle of a round's student.
    fn student(&self, round: u64) -> PathBuf {
        self.folder(round).join("bundle")
    }

    async fn judge(&self, state: &RoundState, which: &str, bundle: PathBuf) -> anyhow::Result<Option<Judgement>> {
        let (arm, data, stopping) = (Arc::clone(&self.arm), self.config.data.heldout.clone(), Arc::clone(&self.stopping));
        let judgement = tokio::task::spawn_blocking(move || arm.judge(&bundle, &data, &stopping))
            .await
            .context("the evaluation panicked")?
            .with_context(|| format!("evaluating the {which} model"))?;
        let Some(judgement) = judgement else { return Ok(None) };
        let results = self.results(state.round, which);
        omnilabel_coco::write_results(&results, &judgement.results)?;
        self.events.emit(Event::Evaluated {
            round: state.round,
            which: which.to_owned(),
            ap: judgement.ap,
            scores: judgement.scores.clone(),
        });
        Ok(Some(judgement))
    }

    async fn train(&self, state: &RoundState) -> anyhow::Result<bool> {
        let folder = self.folder(state.round);
        let job = Job {
            name: format!("round-{}", state.round),
            manual: self.config.data.manual.clone(),
            hand: state.hand_sha256.as_ref().map(|_| folder.join(HAND)),
            generated: folder.join(GENERATED),
            out: folder.clone(),
            thresholds: state.thresholds.context("the round has no thresholds")?,
            parent: parent(&state.running)?,
        };
        let (arm, events, stopping, round) = (Arc::clone(&self.arm), Arc::clone(&self.events), Arc::clone(&self.stopping), state.round);
        let finished = tokio::task::spawn_blocking(move || {
            let mut progress = |p: Progress| {
                events.emit(Event::Train { round, step: p.step, steps: p.steps, losses: p.losses, images_per_sec: p.images_per_sec });
            };
            arm.train(&job, &mut progress, &stopping)
        })
        .await
        .context("the training panicked")?
        .context("training the student")?;
        let Some(bundle) = finished else { return Ok(false) };
        Bundle::open(&bundle)?;
        sync_tree(&bundle)?;
        Ok(true)
    }
}

/// The pause after the first, second, … failure (from 0).
fn retry_pause(failures: u32) -> Duration {
    RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(RETRY_MAX)
}

/// Name and manifest hash of a bundle, as its child's manifest names it.
fn parent(bundle: &Path) -> anyhow::Result<String> {
    let bundle = Bundle::open(bundle)?;
    Ok(format!("{} {}", bundle.manifest().name, omnilabel_bundle::hex(&bundle.sha256())))
}

/// What [`release_bundle`] signs.
pub struct Publish<'a> {
    /// The bundle; stays where it is and must not change any more.
    pub bundle: &'a Path,
    /// Name for people.
    pub name: &'a str,
    /// The round that ends with this release.
    pub round: Option<&'a RoundState>,
    /// How it goes out.
    pub waves: Waves,
}

/// Signs a bundle under the next counter and records it; the running service finds and publishes it.
///
/// # Errors
/// A bundle that was damaged or is too large, a counter that somebody else took meanwhile.
pub async fn release_bundle(config: &ServiceConfig, store: &Store, key: &SigningKey, what: Publish<'_>) -> anyhow::Result<u64> {
    let bundle = Bundle::open(what.bundle)?;
    let counter = store.next_counter().await?;
    let naming = Naming {
        site: &config.broker.site,
        channel: &config.release.channel,
        counter,
        name: what.name,
        block_bytes: config.release.block_bytes,
        expires_ms: match config.release.valid_days {
            0 => 0,
            days => now_ms() + u64::from(days) * 86_400_000,
        },
    };
    let message = sign::sign(key, &sign::build_manifest(&bundle, naming)?)?;
    let ended = what.round.map(|state| RoundState { released: Some(counter), ended: true, ..state.clone() });
    let path = std::path::absolute(what.bundle).with_context(|| what.bundle.display().to_string())?;
    store.add_release(counter, what.name, &path, (&message.manifest, &message.signature), ended.as_ref(), &what.waves).await?;
    Ok(counter)
}

/// Copies a bundle, so that what was signed cannot change under its release; a copy that is there already is checked and kept.
///
/// # Errors
/// What the system says.
pub fn copy_bundle(bundle: &Bundle, to: &Path) -> anyhow::Result<PathBuf> {
    if to.exists() {
        Bundle::open(to)?;
        return Ok(to.to_owned());
    }
    let part = to.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).with_context(|| part.display().to_string())?;
    }
    for name in std::iter::once("manifest.json").chain(bundle.manifest().files.keys().map(String::as_str)) {
        let target = part.join(name);
        let folder = target.parent().unwrap_or(&part);
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        std::fs::copy(bundle.path(name), &target).with_context(|| target.display().to_string())?;
    }
    Bundle::open(&part)?;
    sync_tree(&part)?;
    std::fs::rename(&part, to).with_context(|| to.display().to_string())?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))?;
    Ok(to.to_owned())
}

mod begun;
mod drift;
mod evidence;
mod snapshot;
mod tau;

#[cfg(test)]
mod tests;
