//! The centre's database: a file of SQLite with a write-ahead log, or PostgreSQL that several collectors share; every commit is fsynced.
//! What is acknowledged to a device is read from here, after the commit that stored it. One text of SQL is for both: what differs is in two
//! files.
//!
//! | file | what it holds |
//! |---|---|
//! | `store.rs` | opening, closing, small numbers |
//! | [`place`] | where it is |
//! | `sqlite`, [`postgres`] | what one has of its own: connections, and locks or a copy |
//! | `epoch`, `marker` | the collector epoch, and how a restored database is told |
//! | `sql` | what the two write differently |
//! | [`intake`] | one commit of incoming records, with the acknowledgements it allows |
//! | `labels` | its labels in few statements |
//! | `account` | its numbers |
//! | [`audit`] | all of it in pages, recounted |
//! | [`quarantine`] | what could not be used |
//! | [`retention`] | what may be dropped, and dropping it |
//! | [`runs`] | settled sequences as runs, watermark |
//! | [`ledger`] | rounds, releases |
//! | [`counts`] | what was committed, stored, lost, repeated |
//! | [`verdicts`] | what people said of labels |
//! | [`gallery`] | labels for who looks at them |
//! | [`look`] | what else the page looks up |
//! | [`pictures`] | pictures that lie in an object store |
//! | [`statistics`] | labels in counts, drifts |

mod account;
pub mod audit;
pub mod counts;
mod epoch;
pub mod gallery;
pub mod intake;
mod labels;
pub mod ledger;
pub mod look;
mod marker;
pub mod pictures;
pub mod place;
pub mod postgres;
pub mod quarantine;
pub mod retention;
pub mod runs;
mod sql;
mod sqlite;
pub mod statistics;
pub mod verdicts;

pub use place::Place;
pub(crate) use sqlite::DATABASE;

use sqlx::any::install_default_drivers;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Transaction};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Why the store could not serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("{store}: {operation}: {source}")]
    Sql {
        /// Its file or URL.
        store: String,
        /// What was being done.
        operation: &'static str,
        /// What the database says.
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("{store}: {source}")]
    Migrate {
        /// The database.
        store: String,
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
    #[error("{store}: no centre has run here yet: `omnilabel-trainer run` makes this store; or `state_dir` or `store.url` is another one")]
    Absent {
        /// The folder, or the database.
        store: String,
    },
    /// Somebody else is the `run` of the database.
    #[error("another centre runs on {store}: a database has one `run`, and as many `collect` beside it as there is need for")]
    Taken {
        /// The database.
        store: String,
    },
    /// A commit that did not end.
    #[error("{store}: a commit was not through after {seconds} s: it is tried again on another connection")]
    Slow {
        /// The database.
        store: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The object store with the pictures failed.
    #[error("{store}: {operation}: {message}")]
    Pictures {
        /// Its URL.
        store: String,
        /// What was being done.
        operation: &'static str,
        /// What it says.
        message: String,
    },
    /// A row that this code did not write.
    #[error("{store}: {message}")]
    Content {
        /// The database.
        store: String,
        /// Which row, and what is wrong with it.
        message: String,
    },
}

/// Connections to the database at most: the collector, the sender, the rounds, and one to spare.
const CONNECTIONS: u32 = 4;
/// Connections of the page.
const READERS: u32 = 2;

/// The open store. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    place: Arc<Place>,
    /// For people.
    name: Arc<str>,
    /// With SQLite the collector epoch; the PostgreSQL store's lies in the database, where others may draw another one.
    collector: u64,
    /// With PostgreSQL: who this process is among the collectors, and the number of its commits that it knows of.
    own: Arc<epoch::Own>,
    /// Where pictures go that do not go into the database.
    pictures: Option<Arc<pictures::Pictures>>,
}

impl Store {
    /// Opens the store of a centre, beside its service that may be running, to read it or to add a release: neither schema nor collector epoch
    /// (0 when none was drawn yet) are touched.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Absent`] where no centre has run.
    pub async fn attach(place: impl Into<Place>) -> Result<Self, StoreError> {
        let place = place.into();
        let absent = |name: String| StoreError::Absent { store: name };
        if !place.is_shared() && !place.state_dir.join(DATABASE).exists() {
            return Err(absent(place.state_dir.display().to_string()));
        }
        let store = Self::connect(place, 0).await?;
        let newest = store.migrations().iter().map(|migration| migration.version).max();
        match store.version().await? {
            None if store.is_shared() => Err(absent(store.name.to_string())),
            None => Err(absent(store.state_dir().display().to_string())),
            Some(version) if Some(version) == newest => store.with_collector().await,
            Some(version) => {
                let age = if Some(version) < newest { "an earlier" } else { "a later" };
                let message = format!("{age} version of the centre made it: start `omnilabel-trainer run` of the version in use once");
                Err(store.content(message))
            }
        }
    }

    /// Opens a store that no service uses: makes it where there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn renew(place: impl Into<Place>) -> Result<Self, StoreError> {
        Self::make(place.into(), 0).await
    }

    /// The same database by connections of its own that only read: who looks at it does not keep the collector waiting.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn reader(&self) -> Result<Self, StoreError> {
        let pool = if self.is_shared() {
            postgres::open(&self.place.store, READERS, true).await?
        } else {
            sqlite::open_reader(&self.database(), READERS).await.map_err(self.sql("open for reading"))?
        };
        keep(&pool, READERS).await.map_err(self.sql("open for reading"))?;
        Ok(Self { pool, ..self.clone() })
    }

    /// With `kept` connections that are there from the beginning on.
    async fn connect(place: Place, kept: u32) -> Result<Self, StoreError> {
        install_default_drivers();
        let database = place.state_dir.join(DATABASE);
        let name = if place.is_shared() { postgres::name(&place.store) } else { database.display().to_string() };
        let sql = |source| StoreError::Sql { store: name.clone(), operation: "open", source };
        let pool = if place.is_shared() {
            postgres::open(&place.store, CONNECTIONS, false).await?
        } else {
            sqlite::open(&database, CONNECTIONS).await.map_err(sql)?
        };
        keep(&pool, kept).await.map_err(sql)?;
        let own = epoch::Own { id: 0, commits: AtomicU64::new(0) };
        let pictures = pictures::Pictures::new(&place.store).map(Arc::new);
        Ok(Self { pool, place: Arc::new(place), name: name.into(), collector: 0, own: Arc::new(own), pictures })
    }

    async fn make(place: Place, kept: u32) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&place.state_dir).map_err(|source| StoreError::Io { path: place.state_dir.clone(), source })?;
        let store = Self::connect(place, kept).await?;
        store.migrations().run(&store.pool).await.map_err(|source| StoreError::Migrate { store: store.name.to_string(), source })?;
        store.with_collector().await
    }

    async fn with_collector(mut self) -> Result<Self, StoreError> {
        self.collector = self.meta(epoch::COLLECTOR).await?.map_or(0, i64::cast_unsigned);
        Ok(self)
    }

    /// The steps to the schema in use.
    fn migrations(&self) -> sqlx::migrate::Migrator {
        if self.is_shared() { sqlx::migrate!("migrations/postgres") } else { sqlx::migrate!() }
    }

    /// The newest change of the schema that was made; `None` for a database without any.
    async fn version(&self) -> Result<Option<i64>, StoreError> {
        let known = if self.is_shared() {
            "SELECT count(*) FROM information_schema.tables WHERE table_name = '_sqlx_migrations' AND table_schema = current_schema()"
        } else {
            "SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'"
        };
        let known: i64 = sqlx::query_scalar(known).fetch_one(&self.pool).await.map_err(self.sql("read the schema"))?;
        if known == 0 {
            return Ok(None);
        }
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read the schema"))
    }

    /// Opens or creates the store for a service that collects.
    ///
    /// A new collector epoch is drawn when the store is new, when `new_epoch` asks for it, and when the marker in the state folder
    /// shows that the database is older than what was acknowledged (restored from a backup): devices then send again what they
    /// still hold.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(place: impl Into<Place>, new_epoch: bool) -> Result<Self, StoreError> {
        let mut store = Self::make(place.into(), CONNECTIONS).await?;
        store.check_pictures().await?;
        if store.is_shared() {
            postgres::warn_of_fsync(&store.pool).await.map_err(store.sql("read the server's settings"))?;
            store.join(new_epoch).await?;
        } else {
            store.begin(new_epoch).await?;
        }
        Ok(store)
    }

    /// Whether several processes collect into it.
    pub fn is_shared(&self) -> bool {
        self.place.is_shared()
    }

    /// The collector's epoch; with PostgreSQL the one at the time of opening.
    pub const fn collector(&self) -> u64 {
        self.collector
    }

    /// The folder with what is not in the database.
    pub fn state_dir(&self) -> &Path {
        &self.place.state_dir
    }

    fn database(&self) -> PathBuf {
        self.state_dir().join(DATABASE)
    }

    /// Writes a copy of the database as it is at one moment, while others write; how many labels it holds.
    ///
    /// # Errors
    /// See [`StoreError`]; a file that is there is one, and so is PostgreSQL, which has `pg_dump`.
    pub async fn copy_to(&self, path: &Path) -> Result<u64, StoreError> {
        if self.is_shared() {
            return Err(self.content("a PostgreSQL database is copied by `pg_dump --format=custom` (docs/CENTRE.md, Backup)".to_owned()));
        }
        let text = path.to_str().ok_or_else(|| self.content(format!("the path {} is not UTF-8", path.display())))?;
        sqlite::copy(&self.pool, text).await.map(i64::cast_unsigned).map_err(self.sql("copy"))
    }

    /// Closes all connections and, with SQLite, folds the write-ahead log into the database.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// Says how many keypoints a label has, to the collectors that have no data set to look at.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn set_keypoints(&self, keypoints: usize) -> Result<(), StoreError> {
        self.set_meta("keypoints", keypoints as i64).await
    }

    /// How many keypoints a label has; `None` before a `run` has said so.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn keypoints(&self) -> Result<Option<usize>, StoreError> {
        Ok(self.meta("keypoints").await?.and_then(|count| usize::try_from(count).ok()))
    }

    #[cfg(test)]
    pub(crate) const fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// A transaction that writes; with SQLite the only one.
    async fn write(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = if self.is_shared() { "BEGIN ISOLATION LEVEL READ COMMITTED" } else { "BEGIN IMMEDIATE" };
        self.pool.begin_with(begin).await.map_err(self.sql("begin"))
    }

    /// A transaction that sees one moment.
    async fn read(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = if self.is_shared() { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" } else { "BEGIN" };
        self.pool.begin_with(begin).await.map_err(self.sql("begin"))
    }

    async fn acquire(&self) -> Result<PoolConnection<Any>, StoreError> {
        self.pool.acquire().await.map_err(self.sql("acquire"))
    }

    async fn meta(&self, key: &str) -> Result<Option<i64>, StoreError> {
        let mut db = self.acquire().await?;
        meta(&mut db, key).await.map_err(self.sql("read meta"))
    }

    async fn set_meta(&self, key: &str, value: i64) -> Result<(), StoreError> {
        let mut db = self.acquire().await?;
        set_meta(&mut db, key, value).await.map_err(self.sql("write meta"))
    }

    fn sql(&self, operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError + use<> {
        let name = Arc::clone(&self.name);
        move |source| StoreError::Sql { store: name.to_string(), operation, source }
    }

    fn content(&self, message: String) -> StoreError {
        StoreError::Content { store: self.name.to_string(), message }
    }
}

async fn meta(db: &mut AnyConnection, key: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT value FROM meta WHERE key = $1").bind(key).fetch_optional(db).await
}

async fn set_meta(db: &mut AnyConnection, key: &str, value: i64) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    sqlx::query(sql).bind(key).bind(value).execute(db).await.map(drop)
}

/// Opens `kept` connections at once. None is closed for its age: a service has as many descriptors after a year as after a minute. They are
/// not left to be opened in the background, where they could outlive the pool.
async fn keep(pool: &AnyPool, kept: u32) -> Result<(), sqlx::Error> {
    let mut open = Vec::new();
    for _ in 0..kept {
        open.push(pool.acquire().await?);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
