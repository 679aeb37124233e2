//! One simulated device: a task with a connection of its own, an outbox, a release. It acts on a coarse clock, so that a thousand of them
//! leave the processor to broker and centre. What it sends, and how, is in [`send`].

mod send;

use super::faults::{DeviceFault, DeviceFaults};
use super::latency::Latencies;
use super::outbox::{Entry, Outbox};
use super::shared::{self, Phase, Shared};
use super::update::{Block, Offer, Persona, Update};
use crate::fixture::generated::Random;
use anyhow::{Result, bail};
use omnilabel_keypoints::wire::topic::Kind;
use omnilabel_keypoints::wire::{AckMsg, Message};
use omnilabel_link::{Incoming, Link, Will};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often a device acts.
const TICK: Duration = Duration::from_millis(500);
/// Counts are reported so often where they changed, ms.
const STATUS_EVERY: u64 = 5_000;
/// A slow device takes a message so often, and sends one label a tick.
const SLOW_READ: Duration = Duration::from_millis(200);

/// What a device was and did.
#[derive(Debug)]
pub(crate) struct DeviceReport {
    pub(crate) name: String,
    pub(crate) persona: Persona,
    /// Every outbox epoch with the labels that were committed in it.
    pub(crate) epochs: Vec<(u64, u64)>,
    /// Labels that are not acknowledged.
    pub(crate) pending: u64,
    /// From commit to acknowledgement, of labels that were committed before the first fault.
    pub(crate) calm: Latencies,
    /// Of labels that were committed under faults.
    pub(crate) faulty: Latencies,
    /// How often what happened to it, as [`DeviceFault::ALL`] has them.
    pub(crate) faults: [u64; DeviceFault::ALL.len()],
    /// Labels that were sent once more.
    pub(crate) again: u64,
    /// When it began with the release, Unix ms.
    pub(crate) began_ms: Option<u64>,
    /// Blocks that were taken.
    pub(crate) blocks: u64,
    /// Blocks whose hash was not their name, releases that were not good.
    pub(crate) wrong: u64,
    /// Why it ended, or what the broker refused.
    pub(crate) failure: Option<String>,
}

/// What happens to it at the moment.
#[derive(Debug, Default)]
struct Hits {
    /// So many labels are sent twice.
    twice: u32,
    /// So many acknowledgements are ignored.
    deaf: u32,
    /// Nothing is sent before; then in another order.
    reorder_ms: Option<u64>,
    /// It is slow until then.
    slow_ms: u64,
    /// It makes no labels, and gets a new outbox as soon as the old one is empty.
    reflash: bool,
}

struct Topics {
    ack: String,
    blocks: String,
    blocks_get: String,
    frames: String,
    labels: String,
    model: String,
    release: String,
    status: String,
}

/// Why a connection ends.
enum End {
    /// It is made again after so many milliseconds, in which labels are made or not.
    Again { pause: u64, works: bool },
    /// Everything is said.
    Done,
}

/// One device.
pub(crate) struct Device {
    shared: Arc<Shared>,
    index: usize,
    topics: Topics,
    outbox: Outbox,
    update: Update,
    offer: Option<Arc<Offer>>,
    random: Random,
    faults: Option<DeviceFaults>,
    hits: Hits,
    report: DeviceReport,
    /// When the next label is due, ms.
    label_ms: f64,
    status: (u64, u64, u64),
    status_ms: Option<u64>,
    model_is_new: bool,
    online: bool,
    subscribed: bool,
}

impl Device {
    /// The device with this number.
    pub(crate) fn new(shared: Arc<Shared>, index: usize, persona: Persona) -> Self {
        let name = shared::name(index);
        let of = |kind| shared.topic(&name, kind);
        let topics = Topics {
            ack: of(Kind::Ack),
            blocks: shared.blocks_topic(),
            blocks_get: of(Kind::BlocksGet),
            frames: of(Kind::Frames),
            labels: of(Kind::Labels),
            model: of(Kind::Model),
            release: shared.release_topic(),
            status: of(Kind::Status),
        };
        let mut random = Random(shared.seed.wrapping_mul(0xD1B5_4A32_D192_ED03) ^ index as u64);
        let epoch = random.next() | 1;
        let report = DeviceReport {
            name,
            persona,
            epochs: Vec::new(),
            pending: 0,
            calm: Latencies::default(),
            faulty: Latencies::default(),
            faults: [0; DeviceFault::ALL.len()],
            again: 0,
            began_ms: None,
            blocks: 0,
            wrong: 0,
            failure: None,
        };
        Self {
            update: Update::new(persona, shared.probation_ms),
            shared,
            index,
            topics,
            outbox: Outbox::new(epoch),
            offer: None,
            random,
            faults: None,
            hits: Hits::default(),
            report,
            label_ms: 0.0,
            status: (0, 0, 0),
            status_ms: None,
            model_is_new: true,
            online: false,
            subscribed: false,
        }
    }

    /// Connects until the run is over.
    pub(crate) async fn run(mut self) -> DeviceReport {
        // A fleet does not come in one moment.
        let first = TICK.mul_f64(self.random.range(0.0, 1.0)) + Duration::from_millis(3 * self.index as u64);
        tokio::time::sleep(first).await;
        loop {
            match self.connection().await {
                Ok(End::Again { pause, works }) => self.rest(pause, works).await,
                Ok(End::Done) => break,
                Err(error) => {
                    self.report.failure = Some(omnilabel_console::line(&error));
                    break;
                }
            }
        }
        self.went_offline();
        self.retire_outbox();
        self.report.pending = self.outbox.pending();
        self.report
    }

    /// Without a connection.
    async fn rest(&mut self, pause: u64, works: bool) {
        let until = self.shared.now() + pause;
        loop {
            let now = self.shared.now();
            if now >= until || self.shared.phase() >= Phase::Draining {
                break;
            }
            if works {
                self.make(now);
            }
            tokio::time::sleep(TICK.min(Duration::from_millis(until - now))).await;
        }
        if !works {
            // Who is not there misses what there was to see.
            self.label_ms = self.label_ms.max(self.shared.now() as f64);
        }
    }

    /// From connecting to the end of the connection.
    async fn connection(&mut self) -> Result<End> {
        let will = Will { topic: self.topics.status.clone(), payload: self.shared.offline.clone() };
        let client = format!("{}-{}", self.shared.link.site, self.report.name);
        let subscriptions = vec![self.topics.ack.clone(), self.topics.release.clone()];
        let (link, mut incoming) = Link::open(&self.shared.link, &client, Some(will), subscriptions)?;
        self.subscribed = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            tokio::select! {
                message = incoming.recv() => {
                    let Some(message) = message else { bail!("the link ended") };
                    self.take(message);
                    if self.shared.now() < self.hits.slow_ms {
                        tokio::time::sleep(SLOW_READ).await;
                    }
                }
                _ = tick.tick() => {
                    if let Some(end) = self.act(&link).await? {
                        break end;
                    }
                }
            }
        };
        if matches!(end, End::Done) {
            link.close().await;
        }
        self.went_offline();
        // Dropped without a word, the broker sends the last will.
        Ok(end)
    }

    fn take(&mut self, message: Incoming) {
        match message {
            Incoming::Connected => {
                if !std::mem::replace(&mut self.online, true) {
                    self.shared.totals.connected.fetch_add(1, Ordering::Relaxed);
                }
                self.outbox.restart();
                self.update.restart();
                self.model_is_new = true;
                self.status_ms = None;
            }
            Incoming::Disconnected { .. } => self.went_offline(),
            Incoming::Refused { reason } => self.report.failure = Some(reason),
            Incoming::Message { topic, payload, .. } => {
                if topic == self.topics.ack {
                    self.acknowledged(&payload);
                } else if topic == self.topics.release {
                    self.offered(&payload);
                } else if let Some((_, name)) = topic.rsplit_once('/') {
                    match self.update.block(name, &payload) {
                        Block::Taken => self.report.blocks += 1,
                        Block::Wrong => self.report.wrong += 1,
                        Block::Unwanted => {}
                    }
                }
            }
        }
    }

    fn acknowledged(&mut self, payload: &[u8]) {
        if self.hits.deaf > 0 {
            self.hits.deaf -= 1;
            return;
        }
        let Ok(ack) = AckMsg::decode(payload) else {
            self.report.wrong += 1;
            return;
        };
        let (now, shared, report) = (self.shared.now(), &self.shared, &mut self.report);
        self.outbox.acknowledged(&ack, now, |entry| {
            shared.totals.cleared.fetch_add(1, Ordering::Relaxed);
            let (at, took) = (shared.secs(entry.committed_ms), now.saturating_sub(entry.committed_ms));
            if at < shared.timeline.begin {
                report.calm.add(took);
            } else if at < shared.timeline.end {
                report.faulty.add(took);
            }
        });
    }

    fn offered(&mut self, payload: &[u8]) {
        // What is retained comes again with every connection, and with another share of the fleet as another message.
        if self.offer.as_ref().is_some_and(|offer| offer.message == payload) {
            return;
        }
        match self.shared.offer(payload) {
            Ok(offer) => {
                if self.update.offered(&offer, &self.report.name) {
                    self.model_is_new = true;
                    self.report.began_ms = Some(self.shared.unix(self.shared.now()));
                }
                self.offer = Some(offer);
            }
            Err(_) => self.report.wrong += 1,
        }
    }

    fn went_offline(&mut self) {
        if std::mem::replace(&mut self.online, false) {
            self.shared.totals.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Commits the labels that are due.
    fn make(&mut self, now: u64) {
        if self.shared.phase() != Phase::Working {
            return;
        }
        if self.label_ms == 0.0 {
            let step = 1e3 / self.shared.rate;
            self.label_ms = self.shared.begin_ms() as f64 + step * self.random.range(0.0, 1.0);
        }
        while self.label_ms <= now as f64 {
            self.label_ms += 1e3 / self.shared.rate;
            if !self.hits.reflash {
                self.outbox.commit(Entry { committed_ms: now, model: self.update.model() });
                self.shared.totals.made.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Everything that is due; why the connection ends, where it does.
    async fn act(&mut self, link: &Link) -> Result<Option<End>> {
        let now = self.shared.now();
        match self.shared.phase() {
            Phase::Connecting => {}
            Phase::Working => {
                self.make(now);
                if let Some(end) = self.suffer(now) {
                    return Ok(Some(end));
                }
            }
            Phase::Draining => self.hits = Hits::default(),
            Phase::Closing => {
                if self.online {
                    self.send_model(link).await?;
                    self.send_status(link, now, false).await?;
                }
                return Ok(Some(End::Done));
            }
        }
        if self.update.tick(now) {
            self.model_is_new = true;
            let totals = &self.shared.totals;
            let count = if self.report.persona == Persona::Good { &totals.confirmed } else { &totals.refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        if !self.online {
            return Ok(None);
        }
        if self.model_is_new {
            self.model_is_new = !self.send_model(link).await?;
        }
        self.send_labels(link, now).await?;
        if self.hits.reflash && self.outbox.pending() == 0 {
            self.reflash(link, now).await?;
        }
        self.fetch(link, now).await?;
        if self.status_ms.is_none_or(|at| now.saturating_sub(at) >= STATUS_EVERY && self.status != self.counts()) {
            self.send_status(link, now, true).await?;
        }
        Ok(None)
    }

    /// Begins the fault that is due.
    fn suffer(&mut self, now: u64) -> Option<End> {
        let (seed, index, timeline) = (self.shared.seed, self.index, &self.shared.timeline);
        let faults = self.faults.get_or_insert_with(|| DeviceFaults::new(seed, index, timeline));
        let fault = faults.due(self.shared.secs(now))?;
        let place = DeviceFault::ALL.iter().position(|kind| *kind == fault)?;
        self.report.faults[place] += 1;
        match fault {
            DeviceFault::Dropped => return Some(End::Again { pause: 100 + self.random.below(3_000), works: true }),
            DeviceFault::Restarted => return Some(End::Again { pause: 500 + self.random.below(5_000), works: false }),
            DeviceFault::Repeated => self.hits.twice = 4 + self.random.below(12) as u32,
            DeviceFault::Reordered => self.hits.reorder_ms = Some(now + 1_000 + self.random.below(2_000)),
            DeviceFault::Deaf => self.hits.deaf = 1 + self.random.below(5) as u32,
            DeviceFault::Reflashed => self.hits.reflash = true,
            DeviceFault::Slow => self.hits.slow_ms = now + 3_000 + self.random.below(12_000),
        }
        None
    }
}
