//! The loops around the pure parts. Four tasks, joined by bounded queues:
//!
//! - *collector*: reads the links, commits what waits. It never waits for the way out (the link could then not be read, and a full link
//!   could not be written), so what is to be acknowledged goes to the sender by a queue that drops when full: an acknowledgement that
//!   is dropped is made again when the device repeats its message.
//! - *sender*: publishes acknowledgements, the release, blocks.
//! - *rounds*: trains on a blocking thread.
//! - *watch*: counts what was stored, for drifts.
//!
//! And, where `[retention]` asks for it, one that drops what is due.

mod telling;

use crate::service::acks::AckQueue;
use crate::service::answers::Answers;
use crate::service::arm::TrainArm;
use crate::service::collector::{Intake, Taken};
use crate::service::config::{CollectorConfig, ServiceConfig};
use crate::service::drift::watch::Watch;
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::retention::Retention;
use crate::service::rollout::Rollout;
use crate::service::rounds::Rounds;
use crate::service::sign::{self, SignedKeys};
use crate::service::steer::Steering;
use crate::service::store::intake::{Record, RefusedFrame};
use crate::service::store::ledger::ReleaseRow;
use crate::service::store::postgres::ServiceLock;
use crate::service::store::quarantine::Quarantined;
use crate::service::store::{Store, StoreError};
use crate::service::waves::{self, Decision, Waves};
use crate::service::web;
use anyhow::Context;
use ed25519_dalek::SigningKey;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{BlockRequest, LabelKey, ModelMsg};
use omnilabel_link::{Incoming, Link};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use telling::{Brought, Telling};
use tokio::sync::{Notify, mpsc, watch};

/// Block requests that wait for the sender; more are dropped.
const OUT_QUEUE: usize = 1024;
/// Messages that the broker sends ahead of their commit, so that one commit has many; 256 MiB of the largest packets.
pub(super) const AHEAD: usize = 128;
/// How often it is looked whether `labels` events are due, releases are looked for, and rounds considered.
const TICK: Duration = Duration::from_millis(500);
/// Messages that go into quarantine between two ticks; more are counted and not kept, or one broken device would keep the disk busy.
const KEPT_PER_TICK: usize = 64;
/// Every so many ticks the wave of the release under way is judged.
const WAVES_EVERY: u64 = 4;
/// How long a failed commit waits before it is tried again; meanwhile nothing is read.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// Options of [`serve`] that are not configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Draw a new collector epoch: the state folder was restored from a backup.
    pub new_collector_epoch: bool,
}

/// Runs until `stop` becomes true: the collector from the first message on, rounds as labels arrive.
///
/// # Errors
/// What keeps the service from starting: configuration, data, key, bundle, database. A broker that is down does not.
pub async fn serve(
    config: ServiceConfig,
    arm: Arc<dyn TrainArm>,
    options: ServeOptions,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let _lock = lock(&config.state_dir)?;
    let store = Store::open(&config, options.new_collector_epoch).await?;
    let mut only = ServiceLock::take(&store).await?;
    let events = Arc::new(EventLog::open(&config.state_dir).with_context(|| config.state_dir.display().to_string())?);
    let page = web::open(&config).await?;
    let stopping = Arc::new(AtomicBool::new(false));
    let rounds = Rounds::new(config.clone(), store.clone(), Arc::clone(&events), arm, Arc::clone(&stopping)).await?;

    store.set_keypoints(rounds.keypoints()).await?;
    let intake =
        Intake::new(&config.broker.prefix, &config.broker.site, rounds.keypoints(), config.collector.clone(), store.devices().await?);
    let (link, incoming) = Link::open_ahead(&config.broker, &config.client_id, None, intake.subscriptions(), AHEAD)?;
    let running = store.running_release().await?.map_or(0, |r| r.counter());
    events.emit(Event::Started { collector: store.collector(), running });
    if let Some(release) = store.latest_release().await? {
        // A centre that was killed may have decided about it without telling.
        let waves = release.waves()?;
        if waves.shares.len() > 1 {
            events.emit(Event::wave(release.counter(), &waves, "where it stands at the start".to_owned()));
        }
    }

    let (out, queued) = mpsc::channel(OUT_QUEUE);
    let announce = Arc::new(Notify::new());
    let acks = AckQueue::default();
    let collector = Collector::new(&config.collector, &store, &events, intake, out, acks.clone(), Arc::clone(&announce));
    let health = collector.health();
    let keys = release_keys(&config, rounds.key())?.map(|keys| (rounds.key().clone(), keys));
    let steering = Steering { config: config.clone(), store: store.clone(), events: Arc::clone(&events) };
    let answers = Answers::new(&config.broker, &store, &link, &acks, Arc::clone(&health));
    let watch = Watch { store: store.clone(), events: Arc::clone(&events), config: config.drift.clone() };
    let shown = web::Centre {
        store: store.reader().await?,
        writer: store.clone(),
        skeleton: rounds.skeleton().clone(),
        keypoint_threshold: rounds.keypoint_threshold(),
        health: Arc::clone(&health),
        control: Arc::new(steering),
    };
    let limits = config.retention.clone();
    let retention = limits.is_on().then(|| Retention { limits, store: store.clone(), events: Arc::clone(&events) });
    let (link_out, events_out) = (link.clone(), Arc::clone(&events));
    let sender = Sender { config, keys, store: store.clone(), events: events_out, link: link_out, answers, health, rollout: None };
    let (halt, halted) = watch::channel(false);
    let mut collector = tokio::spawn(collector.run(incoming, halted.clone()));
    let sender = tokio::spawn(sender.run(queued, announce, halted.clone()));
    let page = page.map(|page| tokio::spawn(page.serve(shown, halted.clone())));
    let watch = tokio::spawn(watch.run(halted.clone()));
    let retention = retention.map(|retention| tokio::spawn(retention.run(halted.clone())));
    let rounds = tokio::spawn(rounds.run(halted));

    let (ended, lost) = tokio::select! {
        ended = &mut collector => (Some(ended), None),
        lost = only.lost() => (None, Some(lost)),
        () = stopped(&mut stop) => (None, None),
    };
    stopping.store(true, Ordering::Relaxed);
    halt.send_replace(true);
    let result = match ended {
        Some(ended) => ended.context("the collector failed"),
        None => collector.await.context("the collector failed"),
    };
    link.close().await;
    sender.abort();
    if let Some(page) = page {
        page.await.context("the page failed")?;
    }
    if let Some(retention) = retention {
        retention.await.context("the retention failed")?;
    }
    // Between two steps of the training the flag is seen, and a checkpoint written.
    rounds.await.context("the rounds failed")?;
    watch.await.context("the label statistics failed")?;
    events.emit(Event::Stopped);
    drop(only);
    store.close().await;
    lost.map_or(result, |lost| Err(lost.into()))
}

/// One service to a state folder; released when the file is closed.
pub(super) fn lock(state_dir: &std::path::Path) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(state_dir).with_context(|| state_dir.display().to_string())?;
    let path = state_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    file.try_lock().with_context(|| format!("another centre runs in {}", state_dir.display()))?;
    Ok(file)
}

/// Publishes the newest release and serves its blocks until `stop`: for a release by hand without a running centre.
///
/// # Errors
/// A configuration that the link cannot use.
pub async fn serve_release(config: ServiceConfig, store: Store, events: EventLog, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let mut intake = Intake::new(&config.broker.prefix, &config.broker.site, 0, config.collector.clone(), []);
    let filter = topic::device(&config.broker.prefix, &config.broker.site, "+", Kind::BlocksGet);
    let client = format!("{}-release", config.client_id);
    let (link, mut incoming) = Link::open(&config.broker, &client, None, vec![filter.as_str().to_owned()])?;
    let (out, queued) = mpsc::channel(OUT_QUEUE);
    let announce = Arc::new(Notify::new());
    let key = sign::read_key(&config.release.key).context("`release.key`")?;
    let keys = release_keys(&config, &key)?.map(|keys| (key, keys));
    let health = Arc::default();
    let answers = Answers::new(&config.broker, &store, &link, &AckQueue::default(), Arc::clone(&health));
    let sender = Sender { config, keys, store, events: Arc::new(events), link: link.clone(), answers, health, rollout: None };
    let sender = tokio::spawn(sender.run(queued, Arc::clone(&announce), stop.clone()));
    loop {
        let message = tokio::select! {
            message = incoming.recv() => message,
            () = stopped(&mut stop) => break,
        };
        match message {
            Some(Incoming::Connected) => announce.notify_one(),
            Some(Incoming::Disconnected { reason, .. } | Incoming::Refused { reason }) => tracing::warn!("broker: {reason}"),
            Some(Incoming::Message { topic, payload, .. }) => {
                if let Ok((_, Taken::Blocks(request))) = intake.take(&topic, payload) {
                    // A full queue drops the request: the device asks again.
                    drop(out.try_send(request));
                }
            }
            None => break,
        }
    }
    link.close().await;
    sender.abort();
    Ok(())
}

/// Waits until the service shall stop; a sender that is gone means the same.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The guard that `wait_for` returns must not live across an await.
    let _ = stop.wait_for(|&stop| stop).await.map(|_| ());
}

pub(super) struct Collector {
    limits: CollectorConfig,
    store: Store,
    events: Arc<EventLog>,
    intake: Intake,
    out: mpsc::Sender<Box<BlockRequest>>,
    acks: AckQueue,
    health: Arc<web::Health>,
    announce: Arc<Notify>,
    models: BTreeMap<String, ModelMsg>,
    telling: Telling,
    brought: Brought,
    rejected: (u64, String),
    /// Of these, put into quarantine since the last tick.
    kept: usize,
    /// Releases that devices say they run, and that are to be looked up.
    claimed: Vec<(String, u64)>,
}

impl Collector {
    pub(super) fn new(
        limits: &CollectorConfig,
        store: &Store,
        events: &Arc<EventLog>,
        intake: Intake,
        out: mpsc::Sender<Box<BlockRequest>>,
        acks: AckQueue,
        announce: Arc<Notify>,
    ) -> Self {
        Self {
            limits: limits.clone(),
            store: store.clone(),
            events: Arc::clone(events),
            intake,
            out,
            acks,
            health: Arc::default(),
            announce,
            models: BTreeMap::new(),
            telling: Telling::default(),
            brought: Brought { since: Instant::now(), new: 0 },
            rejected: (0, String::new()),
            kept: 0,
            claimed: Vec::new(),
        }
    }

    pub(super) fn health(&self) -> Arc<web::Health> {
        Arc::clone(&self.health)
    }

    pub(super) async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>, mut stop: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reported = 0;
        loop {
            let first = tokio::select! {
                message = incoming.recv() => message,
                _ = tick.tick() => {
                    self.report(&mut reported, false).await;
                    continue;
                }
                () = stopped(&mut stop) => break,
            };
            let Some(first) = first else { break };
            let (mut batch, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
            let mut next = Some(first);
            while let Some(message) = next {
                // What yields nothing counts, too: what was taken before it is not to wait for it.
                looked_at += 1;
                if let Some((device, record, size)) = self.take(message) {
                    batch.push((device, record));
                    bytes += size;
                }
                let full = looked_at >= self.limits.batch || bytes >= self.limits.batch_bytes;
                next = if full { None } else { incoming.try_recv().ok() };
            }
            if !batch.is_empty() && !self.commit(&batch, &mut stop).await {
                break;
            }
        }
        self.report(&mut reported, true).await;
    }

    /// What is to be stored of one message: device, record, bytes.
    fn take(&mut self, incoming: Incoming) -> Option<(String, Record, usize)> {
        match incoming {
            Incoming::Connected => {
                self.health.connected();
                self.events.emit(Event::Broker { connected: true, reason: String::new() });
                self.announce.notify_one();
            }
            Incoming::Disconnected { reason, .. } => {
                self.health.disconnected(&reason);
                self.events.emit(Event::Broker { connected: false, reason });
            }
            Incoming::Refused { reason } => {
                self.health.refused(&reason);
                self.events.emit(Event::Broker { connected: true, reason });
            }
            Incoming::Message { topic, payload, .. } => {
                let size = payload.len();
                match self.intake.take(&topic, payload) {
                    Ok((device, Taken::Store(record))) => {
                        if let Record::Model(model) = &record {
                            self.model(&device, model);
                        }
                        return Some((device, record, size));
                    }
                    // A full queue drops the request: the device asks again.
                    Ok((_, Taken::Blocks(request))) => drop(self.out.try_send(request)),
                    Err((rejected, payload)) => {
                        self.rejected.0 += 1;
                        self.health.rejected(&rejected);
                        self.rejected.1 = format!("{}: {rejected}", topic.chars().take(160).collect::<String>());
                        tracing::warn!("message refused: {}", self.rejected.1);
                        if self.kept < KEPT_PER_TICK {
                            self.kept += 1;
                            let kept = Quarantined::new(&topic, payload, rejected.to_string());
                            let size = kept.kept_bytes();
                            return Some((String::new(), Record::Quarantined(Box::new(kept)), size));
                        }
                    }
                }
            }
        }
        None
    }

    fn model(&mut self, device: &str, model: &ModelMsg) {
        if self.models.get(device) == Some(model) {
            return;
        }
        self.models.insert(device.to_owned(), model.clone());
        self.claimed.push((device.to_owned(), model.confirmed));
        self.events.emit(Event::DeviceModel {
            device: device.to_owned(),
            confirmed: model.confirmed,
            trial: model.trial,
            refused: model.refused,
            reason: model.reason.as_str().to_owned(),
        });
    }

    /// Stores a batch, however long it takes, and hands on what may be acknowledged. False when the service stops first.
    async fn commit(&mut self, batch: &[(String, Record)], stop: &mut watch::Receiver<bool>) -> bool {
        let mut failures = 0_u64;
        loop {
            let begun = Instant::now();
            match self.store.commit(batch, now_ms()).await {
                Ok(done) => {
                    self.health.committed(begun.elapsed(), done.refused.len());
                    self.brought.new += done.stored;
                    let now = Instant::now();
                    done.touched.iter().for_each(|touched| self.telling.changed(&touched.device, now));
                    self.acks.add(done.touched);
                    for (device, LabelKey { epoch, sequence }) in done.conflicts {
                        self.events.emit(Event::Conflict { device, epoch, sequence });
                    }
                    for RefusedFrame { device, key: LabelKey { epoch, sequence }, bytes, reason } in done.refused {
                        let (bytes, limit) = (bytes as u64, self.limits.max_frame_bytes as u64);
                        self.events.emit(Event::FrameRefused { device, epoch, sequence, bytes, limit, reason });
                    }
                    return true;
                }
                Err(error) => {
                    self.health.commit_failed();
                    // Nothing is acknowledged, nothing more is read: the devices keep what they have until the disk has room again.
                    if failures.is_multiple_of(30) {
                        self.events.emit(Event::Error { what: "store".to_owned(), message: error.to_string() });
                    }
                    failures += 1;
                    tokio::select! {
                        () = tokio::time::sleep(COMMIT_RETRY) => {}
                        () = stopped(stop) => return false,
                    }
                }
            }
        }
    }

    /// Tells what is due, or at the end all of it.
    async fn report(&mut self, reported: &mut u64, is_end: bool) {
        self.kept = 0;
        for (device, counter) in std::mem::take(&mut self.claimed) {
            match self.store.latest_release().await {
                Ok(newest) if newest.as_ref().map_or(0, ReleaseRow::counter) < counter => {
                    let message = format!(
                        "{device} confirmed release {counter}, which this centre did not make: unless its state was lost, a release key was stolen \
                         (docs/CENTRE.md, Keys)"
                    );
                    self.events.emit(Event::Error { what: "unknown release".to_owned(), message });
                }
                Ok(_) => {}
                Err(error) => {
                    self.events.emit(Event::Error { what: "look up a release".to_owned(), message: error.to_string() });
                    // The device says it once.
                    self.claimed.push((device, counter));
                }
            }
        }
        self.count(is_end).await;
        if self.rejected.0 > *reported {
            *reported = self.rejected.0;
            self.events.emit(Event::Rejected { messages: self.rejected.0, last: self.rejected.1.clone() });
        }
    }

    async fn count(&mut self, is_end: bool) {
        let now = Instant::now();
        let due = if is_end { self.telling.rest() } else { self.telling.due(now) };
        let failed = |error: StoreError| Event::Error { what: "count labels".to_owned(), message: error.to_string() };
        if !due.is_empty() {
            match self.store.tallies(&due).await {
                Ok(tallies) => {
                    for (device, stored, duplicates) in tallies {
                        self.events.emit(Event::Labels { device, stored, duplicates });
                    }
                }
                Err(error) => {
                    self.events.emit(failed(error));
                    // In the next turn.
                    due.iter().for_each(|device| self.telling.changed(device, now));
                }
            }
        }
        if let Some((new, seconds)) = self.brought.due(now, is_end) {
            match self.store.stored().await {
                Ok(stored) => self.events.emit(Event::Fleet { stored, new, seconds }),
                Err(error) => {
                    self.events.emit(failed(error));
                    // With the next line.
                    self.brought.new += new;
                    self.brought.since = now.checked_sub(Duration::from_secs_f64(seconds)).unwrap_or(now);
                }
            }
        }
    }
}

/// The set of keys that the release key is in, where there is one.
///
/// # Errors
/// When devices would refuse what is signed: see [`SignedKeys::read`].
pub fn release_keys(config: &ServiceConfig, key: &SigningKey) -> anyhow::Result<Option<SignedKeys>> {
    let Some(path) = &config.release.keys else { return Ok(None) };
    let keys = SignedKeys::read(path, &config.broker.site, &key.verifying_key()).context("`release.keys`")?;
    keys.check_channel(&config.release.channel).with_context(|| format!("`release.keys`: {}", path.display()))?;
    Ok(Some(keys))
}

struct Sender {
    config: ServiceConfig,
    /// The release key with the set that it is in.
    keys: Option<(SigningKey, SignedKeys)>,
    store: Store,
    events: Arc<EventLog>,
    link: Link,
    answers: Answers,
    health: Arc<web::Health>,
    rollout: Option<Rollout>,
}

impl Sender {
    async fn run(mut self, mut queued: mpsc::Receiver<Box<BlockRequest>>, announce: Arc<Notify>, mut stop: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // When the next block may go out, so that blocks do not crowd out acknowledgements.
        let mut block_due = tokio::time::Instant::now();
        let mut ticks = 0_u64;
        loop {
            let waiting = self.rollout.as_ref().is_some_and(Rollout::has_queued);
            // Not in a fixed order: acknowledgements without end hold up neither blocks nor an order to halt.
            let result = tokio::select! {
                () = stopped(&mut stop) => return,
                () = announce.notified() => self.announce().await,
                () = self.answers.due() => self.answers.next().await,
                Some(request) = queued.recv() => {
                    if let Some(rollout) = &mut self.rollout {
                        let unknown = rollout.request(&request, Instant::now());
                        if unknown > 0 {
                            tracing::debug!("{unknown} blocks were asked for that release {} does not have", rollout.counter());
                        }
                    }
                    Ok(())
                }
                () = tokio::time::sleep_until(block_due), if waiting => match self.block().await {
                    Ok(bytes) => {
                        let pause = Duration::from_secs_f64(bytes as f64 / self.config.release.bytes_per_second as f64);
                        block_due = tokio::time::Instant::now() + pause;
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                _ = tick.tick() => {
                    ticks += 1;
                    match if ticks.is_multiple_of(WAVES_EVERY) { self.waves().await } else { Ok(()) } {
                        Ok(()) => self.release(false).await,
                        Err(error) => Err(error.context("the waves of the release")),
                    }
                }
            };
            if let Err(error) = result {
                self.events.emit(Event::Error { what: "publish".to_owned(), message: omnilabel_console::line(&error) });
            }
        }
    }

    async fn announce(&mut self) -> anyhow::Result<()> {
        self.answers.all().await?;
        self.release(true).await
    }

    /// Publishes the newest release when it is new, or `again`. A release made by hand (another process) is found here, too.
    async fn release(&mut self, again: bool) -> anyhow::Result<()> {
        let Some(row) = self.store.latest_release().await? else { return Ok(()) };
        let fresh = self.rollout.as_ref().is_none_or(|r| r.counter() != row.counter());
        let waiting = row.waves()?.waiting();
        if fresh {
            self.rollout = Some(self.signed(row)?);
        }
        if let Some(rollout) = &mut self.rollout
            && (rollout.hold_back(waiting) | fresh | again)
        {
            let topic = topic::release(&self.config.broker.prefix, &self.config.broker.site, &self.config.release.channel);
            self.link.publish(topic.as_str(), rollout.message()?, true).await?;
        }
        Ok(())
    }

    /// Judges the wave of the newest release.
    async fn waves(&self) -> anyhow::Result<()> {
        let Some(release) = self.store.latest_release().await? else { return Ok(()) };
        let before = release.waves()?;
        if before.is_over() {
            return Ok(());
        }
        let now = now_ms();
        let tally = waves::tally(&self.store.standings(now).await?, release.counter(), release.model_hash(), before.share());
        let (after, reason) = match waves::judge(&before, tally, now, &self.config.rollout) {
            Decision::Wait => return Ok(()),
            Decision::Advance(reason) => (Waves { wave: before.wave + 1, since_ms: now, ..before }, reason),
            Decision::Complete(reason) => (Waves { complete: true, ..before }, reason),
            Decision::Halt(reason) => (Waves { halted: Some(reason.clone()), ..before }, reason),
        };
        // Where a person was faster, what they said holds.
        if self.store.save_waves(&release, &after).await? {
            self.events.emit(Event::wave(release.counter(), &after, reason));
        }
        Ok(())
    }

    /// A release with the set of release keys, where there is one. What an earlier key has signed is signed by the one in use: devices
    /// that know the newer set would refuse it otherwise.
    fn signed(&self, mut row: ReleaseRow) -> anyhow::Result<Rollout> {
        let Some((key, keys)) = &self.keys else { return Ok(Rollout::new(&row, None)?) };
        row.signature = sign::sign_bytes(key, &row.manifest).to_vec();
        Ok(Rollout::new(&row, Some(keys))?)
    }

    async fn block(&mut self) -> anyhow::Result<usize> {
        let Some(next) = self.rollout.as_mut().and_then(|r| r.next(Instant::now())) else { return Ok(0) };
        let (name, bytes) = next?;
        let size = bytes.len();
        let topic = topic::block(&self.config.broker.prefix, &self.config.broker.site, &name);
        self.link.publish(topic.as_str(), bytes, false).await?;
        self.health.block_published();
        Ok(size)
    }
}

#[cfg(test)]
mod tests;
