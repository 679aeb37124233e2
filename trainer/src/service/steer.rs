//! What a person says about the release that goes out: halt, let it go on, send it to more, take it back. The running service sees it at
//! its next look; without one, the next start does.

use crate::service::config::ServiceConfig;
use crate::service::events::now_ms;
use crate::service::rounds::{Publish, release_bundle};
use crate::service::store::Store;
use crate::service::store::ledger::ReleaseRow;
use crate::service::waves::Waves;
use anyhow::{Context, bail, ensure};
use ed25519_dalek::SigningKey;
use std::path::PathBuf;

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
pub async fn steer(store: &Store, order: Order, by: &str) -> anyhow::Result<String> {
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
            let complete = before.shares.len() < 2;
            (Waves { halted: None, complete, since_ms: now_ms(), ..before.clone() }, format!("goes on: {}", at(before.share())))
        }
        Order::Promote => {
            ensure!(before.halted.is_none(), "release {counter} is halted: resume it first");
            ensure!(!before.complete, "release {counter} has gone out to all");
            let last = before.wave + 1 >= before.shares.len();
            let wave = if last { before.wave } else { before.wave + 1 };
            let after = Waves { wave, complete: last, since_ms: now_ms(), ..before };
            let said = format!("{}: {}", if last { "complete" } else { "promoted" }, at(after.share()));
            (after, said)
        }
    };
    ensure!(store.save_waves(&release, &after).await?, "somebody else decided about release {counter} at the same moment: look again");
    Ok(said)
}

/// Signs the model that ran before the newest release under a new counter, for all at once; counter and name of the recall.
///
/// # Errors
/// Without a release, with a bundle that is gone or damaged.
pub async fn recall(config: &ServiceConfig, store: &Store, key: &SigningKey, by: &str) -> anyhow::Result<(u64, String)> {
    let newest = newest(store).await?;
    let before = store.running_before(newest.counter()).await?;
    let bundle = before.as_ref().map_or_else(|| config.model.running.clone(), |row| PathBuf::from(&row.bundle));
    let what = before.map_or_else(|| "the provisioned model".to_owned(), |row| row.name);
    let mut name = format!("recall of {}: {what}", newest.counter());
    while name.len() > 64 {
        name.pop();
    }
    // Nobody else begins with it while the recall is signed; it may be halted, or through, already.
    let waves = newest.waves()?;
    let halted = Waves { halted: Some(format!("recalled by {by}")), complete: false, ..waves };
    store.save_waves(&newest, &halted).await?;
    let what = Publish { bundle: &bundle, name: &name, round: None, waves: Waves::at_once(now_ms()) };
    let counter = release_bundle(config, store, key, what).await.with_context(|| bundle.display().to_string())?;
    Ok((counter, name))
}

async fn newest(store: &Store) -> anyhow::Result<ReleaseRow> {
    store.latest_release().await?.context("no release was made yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::config::RolloutConfig;

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
        let refused = async |order| steer(&store, order, "anna").await.unwrap_err().to_string();
        let running = async || store.running_release().await.unwrap().map(|row| row.counter());
        assert_eq!((waiting().await, running().await), (900, Some(1)));
        assert!(refused(Order::Resume).await.contains("not halted"));
        assert!(steer(&store, Order::Halt, "anna").await.unwrap().contains("10 % of the fleet"));
        assert_eq!(waiting().await, 1000, "nobody else begins with it");
        assert!(refused(Order::Halt).await.contains("by anna"));
        assert!(refused(Order::Promote).await.contains("resume"));
        steer(&store, Order::Resume, "anna").await.unwrap();
        assert_eq!(waiting().await, 900);
        steer(&store, Order::Promote, "anna").await.unwrap();
        assert_eq!((waiting().await, running().await), (0, Some(1)), "everybody's turn, and not proved yet");
        steer(&store, Order::Promote, "anna").await.unwrap();
        assert_eq!(running().await, Some(2));
        assert!(refused(Order::Promote).await.contains("gone out to all"));
    }

    #[tokio::test]
    async fn who_was_slower_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let read = store.latest_release().await.unwrap().unwrap();
        steer(&store, Order::Halt, "anna").await.unwrap();
        let stale = Waves { wave: 1, ..read.waves().unwrap() };
        assert!(!store.save_waves(&read, &stale).await.unwrap());
        assert!(store.latest_release().await.unwrap().unwrap().waves().unwrap().halted.is_some());
    }

    #[tokio::test]
    async fn without_a_release_there_is_nothing_to_steer() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), false).await.unwrap();
        assert!(steer(&store, Order::Halt, "anna").await.unwrap_err().to_string().contains("no release"));
    }
}
