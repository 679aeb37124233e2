//! What a person says about the release that goes out: halt, let it go on, send it to more, take it back. The running service sees it at
//! its next look; without one, the next start does.

use crate::service::config::ServiceConfig;
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::rounds::{Publish, copy_bundle, release_bundle};
use crate::service::server::release_keys;
use crate::service::sign::read_key;
use crate::service::store::Store;
use crate::service::store::ledger::ReleaseRow;
use crate::service::waves::{self, Waves};
use crate::service::web::{Control, Done};
use anyhow::{Context, bail, ensure};
use omnilabel_bundle::{Bundle, hex};
use std::path::PathBuf;
use std::sync::Arc;

/// What is to become of the newest release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No further device begins with it; those that did go on.
    Halt,
    /// A halted release goes on in the wave where it stopped.
    Resume,
    /// The next wave begins without proof of this one.
    Promote,
}

/// Carries out an order; what it came to, for people.
///
/// # Errors
/// An order that makes no sense for the release as it stands, and [`crate::service::store::StoreError`].
pub async fn steer(store: &Store, events: &EventLog, order: Order, by: &str) -> anyhow::Result<String> {
    let release = newest(store).await?;
    let (counter, before) = (release.counter(), release.waves()?);
    let at = |share: u16| format!("release {counter} ({}) at {} % of the fleet", release.name, f64::from(share) / 10.0);
    let (after, said) = match order {
        Order::Halt => {
            if let Some(reason) = &before.halted {
                bail!("release {counter} is halted already: {reason}");
            }
            let after = Waves { halted: Some(format!("by {by}")), complete: false, ..before.clone() };
            (after, format!("halted: {}; devices that began with it go on", at(before.share())))
        }
        Order::Resume => {
            ensure!(before.halted.is_some(), "release {counter} is not halted");
            let (complete, now) = (before.shares.len() < 2, now_ms());
            // Who lets it go on knows of those that refused it.
            let tally = waves::tally(&store.standings(now).await?, counter, release.model_hash(), before.share());
            let after = Waves { halted: None, complete, since_ms: now, pardoned: tally.refused, ..before.clone() };
            (after, format!("goes on: {}", at(before.share())))
        }
        Order::Promote => {
            ensure!(!before.complete, "release {counter} has gone out to all");
            let last = before.wave + 1 >= before.shares.len();
            let wave = if last { before.wave } else { before.wave + 1 };
            let now = now_ms();
            let tally = waves::tally(&store.standings(now).await?, counter, release.model_hash(), before.share());
            let after = Waves { wave, complete: last, since_ms: now, halted: None, pardoned: tally.refused, ..before };
            let said = format!("{}: {}", if last { "complete" } else { "promoted" }, at(after.share()));
            (after, said)
        }
    };
    ensure!(store.save_waves(&release, &after).await?, "somebody else decided about release {counter} at the same moment: look again");
    events.emit(Event::wave(counter, &after, format!("by {by}: {said}")));
    Ok(said)
}

/// Signs the model that ran before the newest release under a new counter, for all at once; counter and name of the recall.
///
/// # Errors
/// Without a release, with a bundle or key that devices would refuse. When it fails after the newest release was halted, the error says so.
pub async fn recall(config: &ServiceConfig, store: &Store, events: &EventLog, by: &str) -> anyhow::Result<(u64, String)> {
    // What could fail comes before anything is changed.
    let key = read_key(&config.release.key)?;
    release_keys(config, &key)?;
    let mut newest = newest(store).await?;
    let before = store.running_before(newest.counter()).await?;
    let bundle = before.as_ref().map_or_else(|| config.model.running.clone(), |row| PathBuf::from(&row.bundle));
    // What is signed is kept, and may not change any more.
    let releases = config.state_dir.join("releases");
    let kept = tokio::task::spawn_blocking(move || {
        let bundle = Bundle::open(&bundle)?;
        ensure!(!bundle.manifest().golden.is_empty(), "{}: every device would refuse it: it has no golden frames", bundle.root().display());
        copy_bundle(&bundle, &releases.join(hex(&bundle.sha256())))
    });
    let bundle = kept.await.context("keeping the bundle panicked")??;
    let what = before.map_or_else(|| "the provisioned model".to_owned(), |row| row.name);
    let mut name = format!("recall of {}: {what}", newest.counter());
    while name.len() > 64 {
        name.pop();
    }
    // Nobody else begins with it while the recall is signed; it may be halted, or through, already.
    loop {
        let halted = Waves { halted: Some(format!("recalled by {by}")), complete: false, ..newest.waves()? };
        if store.save_waves(&newest, &halted).await? {
            events.emit(Event::wave(newest.counter(), &halted, format!("recalled by {by}")));
            break;
        }
        let counter = newest.counter();
        newest = self::newest(store).await?;
        ensure!(newest.counter() == counter, "release {} was made at the same moment: look again", newest.counter());
    }
    let what = Publish { bundle: &bundle, name: &name, round: None, waves: Waves::at_once(now_ms()) };
    let halted = || format!("release {} is halted, and what was to take its place is not signed: {}", newest.counter(), bundle.display());
    let counter = release_bundle(config, store, &key, what).await.with_context(halted)?;
    events.emit(Event::Released { round: None, counter, name: name.clone(), reason: format!("recall by {by}") });
    Ok((counter, name))
}

/// The page's way to it, in the centre's own process.
pub(crate) struct Steering {
    pub(crate) config: ServiceConfig,
    pub(crate) store: Store,
    pub(crate) events: Arc<EventLog>,
}

impl Steering {
    /// The newest release is the one that goes out: an order for another comes from a page that is out of date.
    async fn is_newest(&self, counter: u64) -> anyhow::Result<()> {
        let newest = newest(&self.store).await?.counter();
        ensure!(newest == counter, "release {newest} is the newest, {counter} goes out no more");
        Ok(())
    }

    fn order(&self, counter: u64, order: Order) -> Done<'_> {
        said(async move {
            self.is_newest(counter).await?;
            let done = steer(&self.store, &self.events, order, BY_PAGE).await?;
            tracing::info!("{done}");
            Ok(())
        })
    }
}

/// Who steers by the page; the audit log beside says from where.
const BY_PAGE: &str = "an operator";

fn said<'a>(work: impl Future<Output = anyhow::Result<()>> + Send + 'a) -> Done<'a> {
    Box::pin(async { work.await.map_err(|error| omnilabel_console::line(&error)) })
}

impl Control for Steering {
    fn halt(&self, counter: u64) -> Done<'_> {
        self.order(counter, Order::Halt)
    }

    fn resume(&self, counter: u64) -> Done<'_> {
        self.order(counter, Order::Resume)
    }

    fn promote(&self, counter: u64) -> Done<'_> {
        self.order(counter, Order::Promote)
    }

    fn recall(&self, counter: u64) -> Done<'_> {
        said(async move {
            self.is_newest(counter).await?;
            recall(&self.config, &self.store, &self.events, BY_PAGE).await?;
            Ok(())
        })
    }

    fn start_round(&self) -> Done<'_> {
        said(async { Ok(self.store.want_round().await?) })
    }
}

async fn newest(store: &Store) -> anyhow::Result<ReleaseRow> {
    store.latest_release().await?.context("no release was made yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::config::RolloutConfig;
    use crate::service::testing::World;

    async fn store(dir: &std::path::Path) -> Store {
        let store = Store::open(dir, false).await.unwrap();
        let config = RolloutConfig { waves: vec![10.0, 100.0], ..RolloutConfig::default() };
        store.add_release(1, "one", dir, (b"m", b"s"), None, &Waves::at_once(1)).await.unwrap();
        store.add_release(2, "two", dir, (b"m", b"s"), None, &Waves::begin(&config, 2)).await.unwrap();
        store
    }

    #[tokio::test]
    async fn people_halt_resume_and_promote() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let waiting = async || store.latest_release().await.unwrap().unwrap().waves().unwrap().waiting();
        let events = EventLog::open(dir.path()).unwrap();
        let refused = async |order| steer(&store, &events, order, "anna").await.unwrap_err().to_string();
        let running = async || store.running_release().await.unwrap().map(|row| row.counter());
        assert_eq!((waiting().await, running().await), (900, Some(1)));
        assert!(refused(Order::Resume).await.contains("not halted"));
        assert!(steer(&store, &events, Order::Halt, "anna").await.unwrap().contains("10 % of the fleet"));
        assert_eq!(waiting().await, 1000, "nobody else begins with it");
        assert!(refused(Order::Halt).await.contains("by anna"));
        steer(&store, &events, Order::Resume, "anna").await.unwrap();
        assert_eq!(waiting().await, 900);
        steer(&store, &events, Order::Promote, "anna").await.unwrap();
        assert_eq!((waiting().await, running().await), (0, Some(1)), "everybody's turn, and not proved yet");
        steer(&store, &events, Order::Promote, "anna").await.unwrap();
        assert_eq!(running().await, Some(2));
        assert!(refused(Order::Promote).await.contains("gone out to all"));
        // A halted one can be sent to more by who knows better.
        steer(&store, &events, Order::Halt, "anna").await.unwrap();
        assert_eq!(running().await, Some(1));
        steer(&store, &events, Order::Promote, "anna").await.unwrap();
        assert_eq!(running().await, Some(2));
        let told = crate::service::events::EventReader::new(dir.path()).poll().unwrap();
        assert_eq!(told.iter().filter(|line| matches!(&line.event, Event::Wave { reason, .. } if reason.contains("by anna"))).count(), 6);
    }

    #[tokio::test]
    async fn a_recall_that_devices_would_refuse_changes_nothing_and_a_good_one_is_signed_for_all() {
        let world = World::new();
        let store = store(&world.config.state_dir).await;
        let events = EventLog::open(&world.config.state_dir).unwrap();
        // Release 1 has a folder without a bundle.
        let refused = recall(&world.config, &store, &events, "anna").await.unwrap_err();
        assert!(refused.to_string().contains("manifest.json") || format!("{refused:?}").contains("manifest.json"), "{refused:?}");
        assert!(store.latest_release().await.unwrap().unwrap().waves().unwrap().halted.is_none());
        let bundle = world.config.model.running.to_str().unwrap();
        sqlx::query("UPDATE releases SET bundle = $1 WHERE counter = 1").bind(bundle).execute(store.pool()).await.unwrap();
        let refused = recall(&world.config, &store, &events, "anna").await.unwrap_err().to_string();
        assert!(refused.contains("golden frames"), "{refused}");
        assert!(store.latest_release().await.unwrap().unwrap().waves().unwrap().halted.is_none());

        let mut manifest = Bundle::open(&world.config.model.running).unwrap().manifest().clone();
        let golden = |end: &str| format!("golden/one.{end}");
        std::fs::create_dir(world.config.model.running.join("golden")).unwrap();
        for end in ["png", "json"] {
            std::fs::write(world.config.model.running.join(golden(end)), []).unwrap();
        }
        manifest.golden.push(omnilabel_bundle::GoldenFrame { image: golden("png"), detections: golden("json") });
        omnilabel_bundle::seal(&world.config.model.running, manifest).unwrap();
        let (counter, name) = recall(&world.config, &store, &events, "anna").await.unwrap();
        assert_eq!((counter, name.as_str()), (3, "recall of 2: one"));
        let release = store.latest_release().await.unwrap().unwrap();
        assert_eq!((release.counter(), release.waves().unwrap().waiting()), (3, 0));
        assert!(std::path::Path::new(&release.bundle).starts_with(std::path::absolute(&world.config.state_dir).unwrap()), "kept here");
        let told = crate::service::events::EventReader::new(&world.config.state_dir).poll().unwrap();
        assert!(told.iter().any(|line| matches!(&line.event, Event::Wave { counter: 2, halted: true, .. })));
        assert!(told.iter().any(|line| matches!(&line.event, Event::Released { counter: 3, .. })));
    }

    #[tokio::test]
    async fn who_was_slower_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let events = EventLog::open(dir.path()).unwrap();
        let read = store.latest_release().await.unwrap().unwrap();
        steer(&store, &events, Order::Halt, "anna").await.unwrap();
        let stale = Waves { wave: 1, ..read.waves().unwrap() };
        assert!(!store.save_waves(&read, &stale).await.unwrap());
        assert!(store.latest_release().await.unwrap().unwrap().waves().unwrap().halted.is_some());
    }

    #[tokio::test]
    async fn without_a_release_there_is_nothing_to_steer() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), false).await.unwrap();
        let events = EventLog::open(dir.path()).unwrap();
        assert!(steer(&store, &events, Order::Halt, "anna").await.unwrap_err().to_string().contains("no release"));
    }
}
