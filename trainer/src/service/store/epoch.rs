//! The collector epoch: devices send again what they still hold when it changes. It changes when the database is older than what was
//! acknowledged. With SQLite one service has one marker for all its commits; with PostgreSQL every collector counts its own commits in
//! a row of its own and beside it in its state folder, so that a restored database is told by whoever has stored something since.

use super::marker::{self, Marker};
use super::{Store, StoreError, meta, postgres, set_meta};
use sqlx::AnyConnection;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The row with the epoch.
pub(super) const COLLECTOR: &str = "collector";
/// The row with the number of commits of all, with SQLite.
const COMMITS: &str = "commits";

/// One of several collectors.
#[derive(Debug)]
pub(super) struct Own {
    /// Drawn once for a state folder.
    pub(super) id: u64,
    /// Its commits that are known to be through.
    pub(super) commits: AtomicU64,
}

impl Own {
    fn key(&self) -> String {
        format!("{COMMITS} of {:016x}", self.id)
    }
}

impl Store {
    /// The epoch of a store that this process alone collects into.
    pub(super) async fn begin(&mut self, new_epoch: bool) -> Result<(), StoreError> {
        let known = self.meta(COLLECTOR).await?;
        let commits = self.meta(COMMITS).await?.unwrap_or(0);
        let restored = match (known, marker::read(self.state_dir(), marker::FILE)?) {
            (Some(epoch), Some(marker)) => marker.collector != epoch.cast_unsigned() || marker.commits > commits.cast_unsigned(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.collector = match known {
            Some(epoch) if !new_epoch && !restored => epoch.cast_unsigned(),
            _ => {
                let epoch = draw(self.state_dir())?;
                self.set_meta(COLLECTOR, epoch.cast_signed()).await?;
                if restored {
                    tracing::warn!("the store is older than its marker: a new collector epoch {epoch:016x} asks devices to send again");
                }
                epoch
            }
        };
        marker::write(self.state_dir(), marker::FILE, Marker { collector: self.collector, commits: commits.cast_unsigned() })
    }

    /// The epoch of a store that others may collect into at the same time.
    pub(super) async fn join(&mut self, new_epoch: bool) -> Result<(), StoreError> {
        let known = marker::read(self.state_dir(), marker::SHARED)?;
        let id = known.map_or_else(|| draw(self.state_dir()), |marker| Ok(marker.collector))?;
        let own = Own { id, commits: AtomicU64::new(0) };
        let mut tx = self.write().await?;
        postgres::lock_epoch(&mut tx).await.map_err(self.sql("lock the epoch"))?;
        let epoch = meta(&mut tx, COLLECTOR).await.map_err(self.sql("read meta"))?;
        let commits = meta(&mut tx, &own.key()).await.map_err(self.sql("read meta"))?.unwrap_or(0).cast_unsigned();
        let restored = known.is_some_and(|marker| marker.commits > commits);
        self.collector = match epoch {
            Some(epoch) if !new_epoch && !restored => epoch.cast_unsigned(),
            _ => self.redraw(&mut tx, restored).await?,
        };
        tx.commit().await.map_err(self.sql("commit the epoch"))?;
        own.commits.store(commits, Ordering::SeqCst);
        self.own = own.into();
        marker::write(self.state_dir(), marker::SHARED, Marker { collector: id, commits })
    }

    async fn redraw(&self, db: &mut AnyConnection, restored: bool) -> Result<u64, StoreError> {
        let epoch = draw(self.state_dir())?;
        set_meta(db, COLLECTOR, epoch.cast_signed()).await.map_err(self.sql("write meta"))?;
        if restored {
            let store = &self.name;
            tracing::warn!("{store} is older than what was stored in it: a new collector epoch {epoch:016x} asks devices to send again");
        }
        Ok(epoch)
    }

    /// Counts a commit in its own transaction; the number goes to [`Store::counted`] when it is through.
    pub(super) async fn count_commit(&self, db: &mut AnyConnection) -> Result<u64, StoreError> {
        let key = if self.is_shared() { self.own.key() } else { COMMITS.to_owned() };
        let sql = "INSERT INTO meta (key, value) VALUES ($1, 1) ON CONFLICT (key) DO UPDATE SET value = meta.value + 1 RETURNING value";
        let number: i64 = sqlx::query_scalar(sql).bind(key).fetch_one(&mut *db).await.map_err(self.sql("count the commit"))?;
        // The database was restored while this process ran.
        if self.is_shared() && number.cast_unsigned() <= self.own.commits.load(Ordering::SeqCst) {
            postgres::lock_epoch(db).await.map_err(self.sql("lock the epoch"))?;
            self.redraw(db, true).await?;
        }
        Ok(number.cast_unsigned())
    }

    /// Writes down that a commit is through.
    pub(super) fn counted(&self, commits: u64) -> Result<(), StoreError> {
        self.own.commits.store(commits, Ordering::SeqCst);
        let (file, collector) = if self.is_shared() { (marker::SHARED, self.own.id) } else { (marker::FILE, self.collector) };
        marker::write(self.state_dir(), file, Marker { collector, commits })
    }

    /// The epoch that acknowledgements name. It is read before what they acknowledge: where it changes in between, they name the earlier
    /// one, and no device takes what a restored database has lost for stored under the new one.
    pub(super) async fn epoch(&self, db: &mut AnyConnection) -> Result<u64, sqlx::Error> {
        if !self.is_shared() {
            return Ok(self.collector);
        }
        Ok(meta(db, COLLECTOR).await?.map_or(0, i64::cast_unsigned))
    }
}

/// A number that nobody has; never 0.
fn draw(state_dir: &Path) -> Result<u64, StoreError> {
    let random = getrandom::u64()
        .map_err(|error| StoreError::Io { path: state_dir.to_owned(), source: std::io::Error::other(error.to_string()) })?;
    Ok(random | 1)
}
