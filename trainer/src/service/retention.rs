//! How long labels and pictures are kept (`[retention]`): what is older goes, a few rows a transaction, so that the collector waits for
//! none.
//!
//! Never dropped are labels that the round under way may read, labels that a person has judged, and labels whose picture is still awaited.

use crate::service::config::RetentionConfig;
use crate::service::events::{Event, EventLog, now_ms};
use crate::service::rounds::RoundState;
use crate::service::store::retention::{InUse, OldLabel, OldPicture, ROWS};
use crate::service::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the service looks for what is due: with nothing due, that is three short queries.
const EVERY: Duration = Duration::from_secs(60);
/// Between two transactions, in which others write.
const PAUSE: Duration = Duration::from_millis(5);
const DAY_MS: u64 = 86_400_000;

/// What was dropped, by reason, and what was due and is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Labels older than `label_days`.
    pub labels: u64,
    /// Pictures that went with them.
    pub pictures_of_labels: u64,
    /// Pictures older than `picture_days`.
    pub pictures_by_age: u64,
    /// The oldest pictures beyond `picture_bytes`.
    pub pictures_by_size: u64,
    /// Of all these pictures.
    pub bytes: u64,
    /// Labels and pictures that were due and that the round under way may read.
    pub kept_in_use: u64,
    /// … that a person has judged.
    pub kept_judged: u64,
    /// Labels that were due and whose picture is awaited.
    pub kept_unsettled: u64,
    /// Ended rounds that were made of something that went: their data sets cannot be made anew from what is stored.
    pub rounds: Vec<u64>,
    /// Why it ended before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<String>,
}

impl Pruned {
    /// Whether anything went.
    pub const fn is_something(&self) -> bool {
        self.labels + self.pictures_of_labels + self.pictures_by_age + self.pictures_by_size > 0
    }
}

/// Drops what is due at `now_ms`, or with `dry` only counts it. Ends early when `stop` says so; what was dropped until then stays dropped.
///
/// # Errors
/// See [`StoreError`], when nothing could be looked at; what fails later is told with what was dropped until then.
pub async fn prune(
    store: &Store,
    limits: &RetentionConfig,
    now_ms: u64,
    dry: bool,
    stop: impl Fn() -> bool + Sync,
) -> Result<Pruned, StoreError> {
    let due = |days: Option<u32>| days.map_or(i64::MIN, |days| now_ms.saturating_sub(u64::from(days) * DAY_MS).cast_signed());
    let mut work = Work {
        store,
        in_use: store.in_use().await?,
        rounds: store.rounds().await?.into_iter().filter(|round| round.ended).collect(),
        label_due: due(limits.label_days),
        picture_due: due(limits.picture_days),
        dry,
        stop,
        spoilt: BTreeSet::new(),
        orphans: false,
        done: Pruned::default(),
    };
    if let Err(error) = work.all(limits).await {
        let hint =
            if work.orphans { "; `dataset orphans --delete` deletes the pictures that were dropped and are still there" } else { "" };
        work.done.unfinished = Some(format!("{error}{hint}"));
    }
    work.done.rounds = work.spoilt.into_iter().collect();
    Ok(work.done)
}

struct Work<'s, S> {
    store: &'s Store,
    in_use: InUse,
    /// Those that have ended.
    rounds: Vec<RoundState>,
    /// What came before is due.
    label_due: i64,
    picture_due: i64,
    dry: bool,
    stop: S,
    spoilt: BTreeSet<u64>,
    /// Pictures were dropped and are still in the object store.
    orphans: bool,
    done: Pruned,
}

impl<S: Fn() -> bool + Sync> Work<'_, S> {
    async fn all(&mut self, limits: &RetentionConfig) -> Result<(), StoreError> {
        if limits.label_days.is_some() {
            self.labels().await?;
        }
        if limits.picture_days.is_some() {
            self.pictures_by_age().await?;
        }
        if let Some(limit) = limits.picture_bytes {
            self.pictures_by_size(limit).await?;
        }
        Ok(())
    }

    /// Deletes what no row refers to any more.
    async fn delete(&mut self, outside: &[Vec<u8>]) -> Result<(), StoreError> {
        self.orphans = true;
        self.store.delete_pictures(outside).await?;
        self.orphans = false;
        Ok(())
    }

    async fn labels(&mut self) -> Result<(), StoreError> {
        let mut last = 0;
        loop {
            let page = self.store.labels_after(self.in_use, last).await?;
            let Some(end) = page.last() else { return Ok(()) };
            last = end.id;
            // Numbers are in the order of arrival; where the centre's clock was set back, those behind wait.
            let old = page.iter().take_while(|label| label.received_ms < self.label_due).count();
            let going: Vec<&OldLabel> = page[..old].iter().filter(|label| self.label_may_go(label)).collect();
            for chunk in going.chunks(ROWS) {
                if (self.stop)() {
                    return Ok(());
                }
                chunk.iter().for_each(|label| self.spoil(label.id, label.model));
                if self.dry {
                    self.done.labels += chunk.len() as u64;
                    self.done.pictures_of_labels += chunk.iter().filter(|label| label.bytes > 0).count() as u64;
                    self.done.bytes += chunk.iter().map(|label| label.bytes.cast_unsigned()).sum::<u64>();
                } else {
                    let gone = self.store.drop_labels(&chunk.iter().map(|label| label.id).collect::<Vec<_>>()).await?;
                    self.done.labels += gone.labels;
                    self.done.pictures_of_labels += gone.pictures;
                    self.done.bytes += gone.bytes;
                    self.delete(&gone.outside).await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if old < page.len() {
                return Ok(());
            }
        }
    }

    fn label_may_go(&mut self, label: &OldLabel) -> bool {
        self.done.kept_in_use += u64::from(label.in_use);
        self.done.kept_judged += u64::from(label.judged && !label.in_use);
        self.done.kept_unsettled += u64::from(!label.settled && !label.judged && !label.in_use);
        !label.in_use && !label.judged && label.settled
    }

    async fn pictures_by_age(&mut self) -> Result<(), StoreError> {
        let mut last: Option<OldPicture> = None;
        loop {
            let page = self.store.pictures_after(self.in_use, last.as_ref()).await?;
            let old = page.partition_point(|picture| picture.received_ms < self.picture_due);
            let going: Vec<&OldPicture> = page[..old].iter().filter(|picture| self.picture_may_go(picture)).collect();
            for chunk in going.chunks(ROWS) {
                if (self.stop)() {
                    return Ok(());
                }
                self.drop_pictures(chunk, |done| &mut done.pictures_by_age).await?;
            }
            if old < page.len() || page.is_empty() {
                return Ok(());
            }
            last = page.into_iter().next_back();
        }
    }

    async fn pictures_by_size(&mut self, limit: u64) -> Result<(), StoreError> {
        let counted = if self.dry { self.done.bytes } else { 0 };
        let mut excess = self.store.picture_bytes().await?.saturating_sub(counted).saturating_sub(limit).cast_signed();
        let mut last: Option<OldPicture> = None;
        while excess > 0 {
            let page = self.store.pictures_after(self.in_use, last.as_ref()).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut going: Vec<&OldPicture> = Vec::new();
            for picture in &page {
                // What is counted as too old already is still there where nothing is dropped.
                let counted = self.dry && picture.received_ms < self.picture_due && !picture.in_use && !picture.judged;
                if excess > 0 && !counted && self.picture_may_go(picture) {
                    excess -= picture.bytes;
                    going.push(picture);
                }
            }
            for chunk in going.chunks(ROWS) {
                if (self.stop)() {
                    return Ok(());
                }
                self.drop_pictures(chunk, |done| &mut done.pictures_by_size).await?;
            }
            last = page.into_iter().next_back();
        }
        Ok(())
    }

    fn picture_may_go(&mut self, picture: &OldPicture) -> bool {
        self.done.kept_in_use += u64::from(picture.in_use);
        self.done.kept_judged += u64::from(picture.judged && !picture.in_use);
        // What is counted with its label already is still there where nothing is dropped.
        let counted = self.dry && picture.label_ms.is_some_and(|received_ms| received_ms < self.label_due);
        !picture.in_use && !picture.judged && !counted
    }

    /// Drops pictures and adds them to a count.
    async fn drop_pictures(&mut self, pictures: &[&OldPicture], count: fn(&mut Pruned) -> &mut u64) -> Result<(), StoreError> {
        pictures.iter().for_each(|picture| self.spoil(picture.id, picture.model));
        if self.dry {
            self.done.bytes += pictures.iter().map(|picture| picture.bytes.cast_unsigned()).sum::<u64>();
            *count(&mut self.done) += pictures.len() as u64;
            return Ok(());
        }
        let gone = self.store.drop_pictures(pictures).await?;
        self.done.bytes += gone.bytes;
        *count(&mut self.done) += gone.pictures;
        self.delete(&gone.outside).await?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Remembers which rounds a label was used by.
    fn spoil(&mut self, id: i64, model: i64) {
        let used = |round: &&RoundState| round.teacher == model.cast_unsigned() && round.after < id && id <= round.up_to;
        self.spoilt.extend(self.rounds.iter().filter(used).map(|round| round.round));
    }
}

/// Drops what is due while the service runs.
pub(crate) struct Retention {
    pub(crate) limits: RetentionConfig,
    pub(crate) store: Store,
    pub(crate) events: Arc<EventLog>,
}

impl Retention {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = crate::service::server::stopped(&mut stop) => return,
            }
            let watched = stop.clone();
            match prune(&self.store, &self.limits, now_ms(), false, || *watched.borrow()).await {
                Ok(pruned) => {
                    let failed = pruned.unfinished.clone();
                    if pruned.is_something() {
                        self.events.emit(Event::Pruned(pruned));
                    }
                    if let Some(message) = failed {
                        self.events.emit(Event::Error { what: "retention".to_owned(), message });
                    }
                }
                Err(error) => self.events.emit(Event::Error { what: "retention".to_owned(), message: error.to_string() }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
