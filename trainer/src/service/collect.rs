//! `omnilabel-trainer collect`: one of several collectors. It stores labels, frames and histograms of its share and says what is stored;
//! what there is once (rounds, releases, the page, what devices say of themselves) is the `run`'s.

use crate::service::acks::AckQueue;
use crate::service::answers::Answers;
use crate::service::collector::Intake;
use crate::service::config::CollectConfig;
use crate::service::events::{Event, EventLog};
use crate::service::server::{AHEAD, Collector, lock, stopped};
use crate::service::store::{Place, Store, StoreError};
use anyhow::Context;
use omnilabel_link::Link;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// How often is looked for a database or a `run` that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Collects until `stop` becomes true.
///
/// # Errors
/// What keeps it from starting: configuration, state folder, a database that refuses it. One that is away is waited for; so is a broker.
pub async fn collect(config: CollectConfig, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let _lock = lock(&config.state_dir)?;
    let events = Arc::new(EventLog::open(&config.state_dir).with_context(|| config.state_dir.display().to_string())?);
    let Some((store, keypoints)) = open(&config, &mut stop).await? else { return Ok(()) };
    let intake = Intake::new(&config.broker.prefix, &config.broker.site, keypoints, config.collector.clone(), store.devices().await?);
    let (link, incoming) = Link::open_ahead(&config.broker, &config.client_id, None, intake.shared_subscriptions(), AHEAD)?;
    let running = store.running_release().await?.map_or(0, |release| release.counter());
    events.emit(Event::Started { collector: store.collector(), running });

    let acks = AckQueue::default();
    // Nobody asks a collector for blocks; who is connected is told what is stored by the `run`.
    let (out, _) = mpsc::channel(1);
    let announce = Arc::new(Notify::new());
    let collector = Collector::new(&config.collector, &store, &events, intake, out, acks.clone(), announce);
    let mut answers = Answers::new(&config.broker, &store, &link, &acks, collector.health());
    let collector = tokio::spawn(collector.run(incoming, stop.clone()));
    let told = Arc::clone(&events);
    // A task of its own: while the broker is away, it waits in a publish.
    let answers = tokio::spawn(async move {
        loop {
            answers.due().await;
            if let Err(error) = answers.next().await {
                told.emit(Event::Error { what: "publish".to_owned(), message: omnilabel_console::line(&error) });
            }
        }
    });
    let result = collector.await.context("the collector failed");
    link.close().await;
    answers.abort();
    events.emit(Event::Stopped);
    store.close().await;
    result
}

/// The store and how many keypoints a label has, once there is a database and a `run` has said so; `None` when it stops before.
async fn open(config: &CollectConfig, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Option<(Store, usize)>> {
    let mut told = false;
    loop {
        let waits = match Store::open(Place::new(&config.state_dir, &config.store), false).await {
            Ok(store) => match store.keypoints().await? {
                Some(keypoints) => return Ok(Some((store, keypoints))),
                None => "no `run` of this database has said yet how many keypoints a label has: start it once".to_owned(),
            },
            Err(error @ StoreError::Sql { source: sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut, .. }) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("{waits}");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = stopped(stop) => return Ok(None),
        }
    }
}
