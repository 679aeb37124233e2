//! The appliance: threads and tasks around one loop (`core::Core`) that handles closed events.
//!
//! ```text
//! camera threads ─▶ engine thread ─▶ events ─▶ core thread ─▶ outgoing ─▶ publisher task ─▶ link
//!                        ▲                      ▲   │    │                                   │
//!                        └──────── commands ────┼───┘    └─▶ board ─▶ page, metrics, watchdog │
//!                                               └────────────────────── link reader task ◀───┘
//! ```
//! The core never waits for the network: it sends only while `outgoing` has room, and what it cannot send stays in the outbox.

pub(crate) mod board;
mod condition;
mod core;
mod engine;
mod keep;
mod load;
mod mailbox;
mod quotas;
mod shadow;
mod supervisor;
mod trial;

#[cfg(test)]
mod tests;

use crate::annotate::Model;
use crate::camera::CameraEvent;
use crate::config::EdgeConfig;
use crate::outbox::{Disk, Limits, Outbox};
use crate::policy::Policy;
use crate::publish::Topics;
use crate::service::board::Board;
use crate::service::mailbox::Mailboxes;
use crate::slots::Slots;
use crate::update::Trust;
use anyhow::Context;
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::wire::topic::Kind;
use omnilabel_keypoints::wire::{Encoding, StatusMsg, VERSION};
use omnilabel_link::{Incoming, Link, Will};
use omnilabel_runtime::check_golden;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Events that wait for the core; senders wait when it is full.
const EVENTS: usize = 64;
/// Messages between core and publisher; the core sends only while there is room.
const OUTGOING: usize = 64;
/// The core's clock.
const TICK: Duration = Duration::from_millis(50);
/// How long the end waits for the broker.
const CLOSE: Duration = Duration::from_secs(5);

/// Everything that can happen to the core.
pub(crate) enum Event {
    /// From the link.
    Link(Incoming),
    /// From the engine: a frame went through the model.
    Labelled(Box<engine::Labelled>),
    /// From the engine: the model in the shadow labelled a frame, too.
    Shadowed(Box<engine::Shadowed>),
    /// From the engine: a frame that the policy passes over.
    Skipped(engine::Skipped),
    /// From a camera: anything but a frame.
    Camera(usize, CameraEvent),
    /// The bundle on trial was assembled, loaded and tried on its golden frames.
    Tested(Box<trial::Tested>),
    /// Time passes.
    Tick,
    /// The process is to end.
    Shutdown,
}

/// From the core to the publisher.
pub(crate) enum Outgoing {
    /// A message. Without a connection it is dropped unless it is retained: the outbox has it.
    Publish { topic: String, payload: Vec<u8>, retain: bool },
    /// A subscription more.
    Subscribe(String),
    /// A subscription less.
    Unsubscribe(String),
}

/// What a run did, for its last line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Frames labelled.
    pub frames: u64,
    /// Frames that could not be read or labelled.
    pub bad_frames: u64,
    /// Live frames that nobody had time for.
    pub skipped_frames: u64,
    /// Labels that could not be committed.
    pub dropped: u64,
    /// Labels committed over the life of the outbox.
    pub committed: u64,
    /// Labels that are not acknowledged.
    pub pending: u64,
    /// Labels evicted by the byte budget.
    pub evicted: u64,
    /// Counter of the confirmed release.
    pub model: u64,
}

/// Loads the model of a release, and tries it: what the trial does with a bundle. A trait object so that tests need no network.
pub trait Loader: Send + Sync {
    /// Loads the bundle of release `counter`.
    ///
    /// # Errors
    /// Why it does not load.
    fn load(&self, bundle: &Bundle, counter: u64) -> anyhow::Result<Model>;
    /// Tries the golden frames.
    ///
    /// # Errors
    /// The first difference, or why they cannot be run.
    fn golden(&self, bundle: &Bundle, model: &Model) -> anyhow::Result<()>;
}

struct Tract(crate::config::TeacherConfig);

impl Loader for Tract {
    fn load(&self, bundle: &Bundle, counter: u64) -> anyhow::Result<Model> {
        Ok(Model::load(bundle, counter, &self.0)?)
    }

    fn golden(&self, bundle: &Bundle, model: &Model) -> anyhow::Result<()> {
        Ok(check_golden(bundle, model.teacher())??)
    }
}

/// Runs the appliance until its camera ended and everything is acknowledged (`stop_at_end`), or until `stop` is set.
///
/// # Errors
/// When the device cannot start: no model, no key, no camera folder, no state folder.
pub async fn run(config: EdgeConfig, stop: watch::Receiver<bool>) -> anyhow::Result<Summary> {
    let loader = Arc::new(Tract(config.teacher.clone()));
    run_with(config, loader, stop).await
}

/// [`run`] with another way to load models.
///
/// # Errors
/// See [`run`].
pub async fn run_with(config: EdgeConfig, loader: Arc<dyn Loader>, mut stop: watch::Receiver<bool>) -> anyhow::Result<Summary> {
    // Loading a model on a GPU for the first time compiles kernels. Ends when it is dropped.
    let mut patience = tokio::task::JoinSet::new();
    patience.spawn(supervisor::starting());
    let state_dir = config.state_dir.clone();
    let lock = crate::slots::lock(&state_dir)?;
    let mut trust = Trust::open(&state_dir, crate::update::read_public_key(&config.root_key())?, &config.broker.site, &config.channel);
    let (slots, bundle) = Slots::open(&state_dir, &trust)?;
    trust.not_before(slots.state().set);
    let model = Arc::new(loader.load(&bundle, slots.state().confirmed_counter).context("the confirmed model does not load")?);
    let disk = Disk::open(&state_dir.join("outbox")).with_context(|| state_dir.join("outbox").display().to_string())?;
    // Eight segments of the budget, so that an eviction loses little at once.
    let segment_bytes = (config.outbox.max_bytes / 8).min(8 * 1024 * 1024);
    let (outbox, recovery) = Outbox::open(disk, Limits { max_bytes: config.outbox.max_bytes, segment_bytes })?;
    tracing::info!(?recovery, pending = outbox.pending(), epoch = outbox.next_key().epoch, "the outbox is open");
    if recovery.lost > 0 || !recovery.set_aside.is_empty() {
        tracing::error!(lost = recovery.lost, set_aside = ?recovery.set_aside, "the outbox was damaged; what was readable is kept");
    }
    let cameras = crate::camera::open_all(&config)?;
    let web = match &config.web {
        Some(web) => Some(crate::web::bind(web).await?),
        None => None,
    };

    let topics = Topics::new(&config.broker, &config.device);
    let offline = StatusMsg { version: VERSION, online: false, ..StatusMsg::default() };
    let will = Will { topic: topics.of(Kind::Status), payload: crate::publish::encode(&offline, Encoding::Cbor)? };
    let subscriptions = vec![topics.of(Kind::Ack), topics.release(&config.channel)];
    let client = format!("{}-{}", config.broker.site, config.device);
    let (link, incoming) = Link::open(&config.broker, &client, Some(will), subscriptions)?;

    let (events, inbox) = mpsc::channel(EVENTS);
    let (outgoing, outbound) = mpsc::channel(OUTGOING);
    let (commands, told) = std::sync::mpsc::sync_channel(8);
    let (connected, online) = watch::channel(false);
    let board = Arc::new(Board::new(cameras.len()));
    // What goes on beside the core for as long as there is a run.
    let mut beside = tokio::task::JoinSet::new();
    if let Some((listener, token)) = web {
        beside.spawn(crate::web::serve(listener, token, Arc::clone(&board), config.clone()));
    }

    let (events_in, confirmed) = (events.clone(), Arc::clone(&model));
    let progress = cameras.iter().map(|camera| camera.progress()).collect();
    let policy = Policy::new(config.policy.clone(), cameras.len(), quotas::read_quota(&config.state_dir.join(quotas::LABELS_QUOTA)));
    let load = load::Load::new(&config.teacher);
    let shown = Arc::clone(&board);
    let core = core::Core::new(config, topics, outbox, slots, trust, loader, confirmed, outgoing, commands, events_in, progress, shown);
    let boxes = Arc::new(Mailboxes::new(cameras.len()));
    let panicked = Arc::new(AtomicBool::new(false));
    let engine = engine::Engine {
        model,
        beside: None,
        waiting: Arc::default(),
        last: cameras.iter().flat_map(|camera| camera.past(engine::KEPT_FRAMES)).take(engine::KEPT_FRAMES).collect(),
        boxes: Arc::clone(&boxes),
        live: cameras.iter().map(|camera| camera.is_live()).collect(),
        policy,
        load,
        commands: told,
        replay: core.replay(),
        events: events.clone(),
        hold: core.hold(),
        panicked: Arc::clone(&panicked),
        pulse: Arc::clone(&board.pulse),
        since: board.since,
    };
    std::thread::Builder::new().name("engine".into()).spawn(move || engine.run())?;
    for (index, camera) in cameras.into_iter().enumerate() {
        let (boxes, board) = (Arc::clone(&boxes), Arc::clone(&board));
        std::thread::Builder::new().name(format!("camera-{index}")).spawn(move || engine::watch(index, camera, &boxes, &board))?;
    }
    drop(patience);
    let _ending = Ending(events.clone());
    beside.spawn(supervisor::tell(Arc::clone(&board)));
    beside.spawn(read(incoming, events.clone(), connected));
    let publisher = tokio::spawn(publish(link.clone(), outbound, online));
    beside.spawn(async move {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = interval.tick() => {
                    // A busy core looks at its clock after every event anyway.
                    if let Err(mpsc::error::TrySendError::Closed(_)) = events.try_send(Event::Tick) {
                        return;
                    }
                }
                () = asked(&mut stop) => {
                    // A core that is gone needs no telling.
                    let _ = events.send(Event::Shutdown).await;
                    return;
                }
            }
        }
    });
    // The core outlives a run that is dropped for as long as it has something to write.
    let work = move || (core.run(inbox), lock);
    let (summary, _lock) = tokio::task::spawn_blocking(work).await.context("the core stopped unexpectedly")?;
    // The core is gone and with it the sender: the publisher sends what it has and ends.
    let _ = tokio::time::timeout(CLOSE, publisher).await;
    link.close().await;
    // The page's address is free again when the device has ended.
    beside.shutdown().await;
    let summary = summary?;
    if panicked.load(Ordering::Relaxed) {
        anyhow::bail!("the engine panicked; everything that was labelled is in the outbox");
    }
    Ok(Summary { skipped_frames: board.busy(), ..summary })
}

/// Ends the core when its run is dropped, which nobody else would tell it.
struct Ending(mpsc::Sender<Event>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.0.try_send(Event::Shutdown) {
            let events = self.0.clone();
            // The core is busy, and a drop may not wait.
            std::thread::spawn(move || events.blocking_send(event));
        }
    }
}

/// Waits until the process is to end; for ever when nobody is left to say so.
async fn asked(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn read(mut incoming: mpsc::Receiver<Incoming>, events: mpsc::Sender<Event>, connected: watch::Sender<bool>) {
    while let Some(message) = incoming.recv().await {
        match &message {
            Incoming::Connected => {
                connected.send_replace(true);
            }
            Incoming::Disconnected { .. } => {
                connected.send_replace(false);
            }
            Incoming::Refused { .. } | Incoming::Message { .. } => {}
        }
        if events.send(Event::Link(message)).await.is_err() {
            return;
        }
    }
}

async fn publish(link: Link, mut outbound: mpsc::Receiver<Outgoing>, online: watch::Receiver<bool>) {
    while let Some(item) = outbound.recv().await {
        let result = match item {
            Outgoing::Publish { retain: false, .. } if !*online.borrow() => Ok(()),
            Outgoing::Publish { topic, payload, retain } => link.publish(&topic, payload, retain).await,
            Outgoing::Subscribe(filter) => link.subscribe(&filter).await,
            Outgoing::Unsubscribe(filter) => link.unsubscribe(&filter).await,
        };
        if let Err(error) = result {
            tracing::error!(%error, "cannot publish");
        }
    }
}
