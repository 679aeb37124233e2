//! The centre's database: SQLite with a write-ahead log, every commit fsynced. What is acknowledged to a device is read from here,
//! after the commit that stored it.
//!
//! | file | what it holds |
//! |---|---|
//! | `store.rs` | opening, the collector epoch |
//! | [`intake`] | one commit of incoming records, with the acknowledgements it allows |
//! | `labels` | its labels in few statements |
//! | `account` | its numbers |
//! | [`audit`] | all of it in pages, recounted |
//! | [`quarantine`] | what could not be used |
//! | [`runs`] | settled sequences as runs, watermark |
//! | [`ledger`] | rounds, releases |
//! | [`counts`] | what was committed, stored, lost, repeated |
//! | [`look`] | what the page looks up |

mod account;
pub mod audit;
pub mod counts;
pub mod intake;
mod labels;
pub mod ledger;
pub mod look;
mod marker;
pub mod quarantine;
pub mod runs;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the store could not serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("{path}: {operation}: {source}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("{path}: {source}")]
    Migrate {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        source: sqlx::migrate::MigrateError,
    },
    /// A file beside the database could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing was ever stored there.
    #[error("{state_dir}: no centre has run here yet: `omnilabel-trainer run` makes this folder; or `state_dir` is another one")]
    Absent {
        /// The folder.
        state_dir: PathBuf,
    },
    /// A row that this code did not write.
    #[error("{path}: {message}")]
    Content {
        /// The database.
        path: PathBuf,
        /// Which row, and what is wrong with it.
        message: String,
    },
}

/// The database in a state folder.
pub(crate) const DATABASE: &str = "centre.sqlite";
/// Connections to the database at most: the collector, the sender, the rounds, and one to spare.
const CONNECTIONS: u32 = 4;
/// Connections of the page.
const READERS: u32 = 2;
/// SQLITE_BUSY.
const BUSY: &str = "5";
/// How often a database that somebody closes is tried again …
const OPEN_TRIES: u32 = 100;
/// … and after which pause.
const OPEN_RETRY: Duration = Duration::from_millis(50);

/// The open store. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    path: PathBuf,
    collector: u64,
}

impl Store {
    /// Opens the store of a centre, beside its service that may be running, to read it or to add a release: neither schema nor collector epoch
    /// (0 when none was drawn yet) are touched.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Absent`] where no centre has run.
    pub async fn attach(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(DATABASE);
        if !path.exists() {
            return Err(StoreError::Absent { state_dir: state_dir.to_owned() });
        }
        let store = Self::connect(path, 0).await?;
        let newest = sqlx::migrate!().iter().map(|migration| migration.version).max();
        match store.version().await? {
            None => Err(StoreError::Absent { state_dir: state_dir.to_owned() }),
            Some(version) if Some(version) == newest => store.with_collector().await,
            Some(version) => {
                let age = if Some(version) < newest { "an earlier" } else { "a later" };
                let message = format!("{age} version of the centre made it: start `omnilabel-trainer run` of the version in use once");
                Err(store.content(message))
            }
        }
    }

    /// Opens the store of a folder that no service runs in: makes it where there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn renew(state_dir: &Path) -> Result<Self, StoreError> {
        Self::make(state_dir, 0).await
    }

    /// The same database by connections of its own that only read: who looks at it does not keep the collector waiting.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn reader(&self) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new().filename(&self.path).read_only(true).busy_timeout(Duration::from_secs(30));
        let pool = open(options, READERS, READERS).await.map_err(self.sql("open for reading"))?;
        Ok(Self { pool, path: self.path.clone(), collector: self.collector })
    }

    /// With `kept` connections that are there from the beginning on.
    async fn connect(path: PathBuf, kept: u32) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30));
        match open(options, CONNECTIONS, kept).await {
            Ok(pool) => Ok(Self { pool, path, collector: 0 }),
            Err(source) => Err(StoreError::Sql { path, operation: "open", source }),
        }
    }

    async fn make(state_dir: &Path, kept: u32) -> Result<Self, StoreError> {
        std::fs::create_dir_all(state_dir).map_err(|source| StoreError::Io { path: state_dir.to_owned(), source })?;
        let store = Self::connect(state_dir.join(DATABASE), kept).await?;
        sqlx::migrate!().run(&store.pool).await.map_err(|source| StoreError::Migrate { path: store.path.clone(), source })?;
        store.with_collector().await
    }

    async fn with_collector(mut self) -> Result<Self, StoreError> {
        self.collector = self.meta("collector").await?.map_or(0, i64::cast_unsigned);
        Ok(self)
    }

    /// The newest change of the schema that was made; `None` for a database without any.
    async fn version(&self) -> Result<Option<i64>, StoreError> {
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations')")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read the schema"))?;
        if !known {
            return Ok(None);
        }
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read the schema"))
    }

    /// Opens or creates `state_dir/centre.sqlite` for the service.
    ///
    /// A new collector epoch is drawn when the store is new, when `new_epoch` asks for it, and when the marker beside the database
    /// shows that the database is older than what was acknowledged (restored from a backup): devices then send again what they
    /// still hold.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(state_dir: &Path, new_epoch: bool) -> Result<Self, StoreError> {
        let mut store = Self::make(state_dir, CONNECTIONS).await?;
        let known = store.meta("collector").await?;
        let commits = store.meta("commits").await?.unwrap_or(0);
        let restored = match (known, marker::read(state_dir)?) {
            (Some(epoch), Some(marker)) => marker.collector != epoch.cast_unsigned() || marker.commits > commits.cast_unsigned(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        store.collector = match known {
            Some(epoch) if !new_epoch && !restored => epoch.cast_unsigned(),
            _ => {
                let epoch = draw(state_dir)?;
                store.set_meta("collector", epoch.cast_signed()).await?;
                if restored {
                    tracing::warn!("the store is older than its marker: a new collector epoch {epoch:016x} asks devices to send again");
                }
                epoch
            }
        };
        marker::write(state_dir, marker::Marker { collector: store.collector, commits: commits.cast_unsigned() })?;
        Ok(store)
    }

    /// The collector's epoch.
    pub const fn collector(&self) -> u64 {
        self.collector
    }

    /// The folder that holds the database.
    pub fn state_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Writes a copy of the database as it is at one moment, while others write; how many labels it holds.
    ///
    /// # Errors
    /// See [`StoreError`]; a file that is there is one.
    pub async fn copy_to(&self, path: &Path) -> Result<u64, StoreError> {
        let text = path.to_str().ok_or_else(|| self.content(format!("the path {} is not UTF-8", path.display())))?;
        sqlx::query("VACUUM INTO ?").bind(text).execute(&self.pool).await.map_err(self.sql("copy"))?;
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(SqliteConnectOptions::new().filename(path).read_only(true))
            .await
            .map_err(self.sql("open the copy"))?;
        let labels: i64 = sqlx::query_scalar("SELECT count(*) FROM labels").fetch_one(&pool).await.map_err(self.sql("read the copy"))?;
        pool.close().await;
        Ok(labels.cast_unsigned())
    }

    /// Closes all connections and folds the write-ahead log into the database.
    pub async fn close(self) {
        self.pool.close().await;
    }

    #[cfg(test)]
    pub(crate) const fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    async fn meta(&self, key: &str) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT value FROM meta WHERE key = ?").bind(key).fetch_optional(&self.pool).await.map_err(self.sql("read meta"))
    }

    async fn set_meta(&self, key: &str, value: i64) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(value)
            .execute(&self.pool)
            .await
            .map_err(self.sql("write meta"))
            .map(drop)
    }

    fn sql(&self, operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sql { path, operation, source }
    }

    fn content(&self, message: String) -> StoreError {
        StoreError::Content { path: self.path.clone(), message }
    }
}

/// Opens a pool of at most `most` connections, `kept` of them at once. None is closed for its age: a service has as many descriptors after a
/// year as after a minute. They are not left to be opened in the background, where they could outlive the pool.
async fn open(options: SqliteConnectOptions, most: u32, kept: u32) -> Result<SqlitePool, sqlx::Error> {
    let settings = SqlitePoolOptions::new().max_connections(most).max_lifetime(None).idle_timeout(None);
    let mut tries = 0;
    let pool = loop {
        match settings.clone().connect_with(options.clone()).await {
            // Who closes the database as the last one holds it for an instant, and for that SQLite does not wait.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(BUSY) && tries < OPEN_TRIES => {
                tries += 1;
                tokio::time::sleep(OPEN_RETRY).await;
            }
            other => break other?,
        }
    };
    let mut open = Vec::new();
    for _ in 0..kept {
        open.push(pool.acquire().await?);
    }
    Ok(pool)
}

/// A new epoch; never 0.
fn draw(state_dir: &Path) -> Result<u64, StoreError> {
    let random = getrandom::u64()
        .map_err(|error| StoreError::Io { path: state_dir.to_owned(), source: std::io::Error::other(error.to_string()) })?;
    Ok(random | 1)
}

#[cfg(test)]
mod tests;
