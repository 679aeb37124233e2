//! The store as a PostgreSQL database that several collectors write to at the same time.
//!
//! | lock (advisory) | held by | until |
//! |---|---|---|
//! | intake, shared | a commit, before it draws numbers of labels | its end |
//! | intake, alone | who asks which labels can come no more below a number | the answer |
//! | intake, alone | who deletes pictures in the object store | they are deleted |
//! | a device's, in the order of their numbers | a commit, before it reads or changes what is counted of the device | its end |
//! | the rounds' | who writes a round's state, judges labels, sorts doubts, drops labels or pictures, before anything else | its end |
//! | the epoch's | who draws a collector epoch | its end |
//! | the service's | the one `run` of the database | its connection ends |
//!
//! A commit inserts labels and frames in the order of their keys before it takes the devices' locks, and everything else after it. So every
//! wait is for somebody further on: there are no deadlocks. Retention keeps to that order: it drops labels, which are settled and which no
//! commit changes any more, then frames in the order of their keys, and takes the devices' locks before it counts. One exception: a commit
//! that has a device's lock refuses a picture that came before its label and is of another frame; where retention drops that picture at this
//! moment, the server ends one of the two, and it is tried again.

use super::{Store, StoreError};
use crate::service::config::StoreConfig;
use sha2::{Digest, Sha256};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

/// The first half of a lock's number.
const DEVICES: i32 = 1;
const SINGLE: i32 = 2;
/// The second half, of those that are one.
const INTAKE: i32 = 1;
const EPOCH: i32 = 2;
const SERVICE: i32 = 3;
const ROUNDS: i32 = 4;
/// The locks of devices share so many numbers: PostgreSQL has room for 6,400 locks at once by default. Two devices with one number wait for
/// each other, which is all that happens.
const DEVICE_LOCKS: u32 = 512;

/// How long a connection is waited for.
const CONNECT: Duration = Duration::from_secs(10);
/// A commit that takes longer has lost its connection without knowing it.
pub(super) const COMMIT: Duration = Duration::from_secs(90);
/// How often the service's lock is looked after.
const LOCK_TICK: Duration = Duration::from_secs(2);

/// What every connection asks of the server. A commit is on its disk when it returns; a collector whose machine vanished keeps no lock for
/// longer than a minute; and who waits for a lock for long says so.
const SESSION: [(&str, &str); 6] = [
    ("options[synchronous_commit]", "on"),
    ("options[idle_in_transaction_session_timeout]", "60000"),
    ("options[lock_timeout]", "30000"),
    ("options[tcp_keepalives_idle]", "15"),
    ("options[tcp_keepalives_interval]", "5"),
    ("options[tcp_keepalives_count]", "6"),
];

/// The database's name for people: its URL, which has no password in it.
pub(super) fn name(config: &StoreConfig) -> String {
    config.url.clone().unwrap_or_default()
}

/// How to connect, with the password.
fn options(config: &StoreConfig) -> Result<AnyConnectOptions, StoreError> {
    let sql = |source| StoreError::Sql { store: name(config), operation: "read `store.url`", source };
    let mut options = AnyConnectOptions::from_str(&name(config)).map_err(sql)?;
    {
        let mut pairs = options.database_url.query_pairs_mut();
        for (key, value) in SESSION {
            pairs.append_pair(key, value);
        }
        pairs.append_pair("application_name", "omnilabel-trainer");
        if let Some(path) = &config.password_file {
            let io = |source| StoreError::Io { path: path.clone(), source };
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(path).map_err(io)?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(io(std::io::Error::other(format!("mode {:04o}, expected 0600: others can read it", mode & 0o7777))));
                }
            }
            let text = std::fs::read_to_string(path).map_err(io)?;
            pairs.append_pair("password", text.trim_end_matches(['\r', '\n']));
        }
    }
    Ok(options)
}

/// What a connection would refuse before it is made: values of the URL's parameters that cannot be, and a password file that others can
/// read. One that is not there may be where the service runs.
///
/// # Errors
/// [`StoreError::Sql`] and [`StoreError::Io`] with what was expected.
pub fn check(config: &StoreConfig) -> Result<(), StoreError> {
    if config.url.is_none() {
        return Ok(());
    }
    let store = name(config);
    let mut config = config.clone();
    if let Some(path) = config.password_file.take() {
        let there = path.try_exists().map_err(|source| StoreError::Io { path: path.clone(), source })?;
        config.password_file = Some(path).filter(|_| there);
    }
    PgConnectOptions::from_url(&options(&config)?.database_url).map(drop).map_err(|source| StoreError::Sql {
        store,
        operation: "read `store.url`",
        source,
    })
}

/// A pool of at most `most` connections; of such that only read where `read_only`.
pub(super) async fn open(config: &StoreConfig, most: u32, read_only: bool) -> Result<AnyPool, StoreError> {
    let mut options = options(config)?;
    if read_only {
        options.database_url.query_pairs_mut().append_pair("options[default_transaction_read_only]", "on");
    }
    let settings = AnyPoolOptions::new().max_connections(most).max_lifetime(None).idle_timeout(None).acquire_timeout(CONNECT);
    let pool = settings.connect_with(options).await;
    pool.map_err(|source| StoreError::Sql { store: name(config), operation: "connect", source })
}

/// Says so where the server acknowledges what is not on its disk.
pub(super) async fn warn_of_fsync(pool: &AnyPool) -> Result<(), sqlx::Error> {
    let fsync: String = sqlx::query_scalar("SELECT current_setting('fsync')").fetch_one(pool).await?;
    if fsync != "on" {
        tracing::warn!("PostgreSQL runs with `fsync = {fsync}`: what is acknowledged can be lost with the power");
    }
    Ok(())
}

/// A commit begins: numbers of labels that it draws are waited for by who asks for closed ones.
pub(super) async fn enter(db: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::query("SELECT CAST(pg_advisory_xact_lock_shared($1, $2) AS TEXT)").bind(SINGLE).bind(INTAKE);
    lock.execute(db).await.map(drop)
}

/// Nobody is in a commit from here on until the end of this transaction.
pub(super) async fn enter_alone(db: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::query("SELECT CAST(pg_advisory_xact_lock($1, $2) AS TEXT)").bind(SINGLE).bind(INTAKE);
    lock.execute(db).await.map(drop)
}

/// From here on nobody else changes what is counted of these devices.
pub(super) async fn lock_devices(db: &mut AnyConnection, devices: &BTreeSet<&str>) -> Result<(), sqlx::Error> {
    let numbers: BTreeSet<u32> = devices.iter().map(|device| number(device)).collect();
    let list: Vec<String> = numbers.iter().map(u32::to_string).collect();
    // One statement, which takes them in the order of the list.
    let sql = "SELECT count(pg_advisory_xact_lock($1, number)) FROM unnest(CAST($2 AS INT[])) AS number";
    sqlx::query(sql).bind(DEVICES).bind(format!("{{{}}}", list.join(","))).execute(db).await.map(drop)
}

fn number(device: &str) -> u32 {
    let hash = Sha256::digest(device);
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % DEVICE_LOCKS
}

/// The last label's number below which none can come any more: commits that have drawn theirs are through, and later ones draw higher ones.
pub(super) async fn closed_label(pool: &AnyPool) -> Result<i64, sqlx::Error> {
    let mut tx = pool.begin().await?;
    enter_alone(&mut tx).await?;
    let last = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM labels").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(last)
}

/// Nobody else draws a collector epoch in this transaction.
pub(super) async fn lock_epoch(db: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::query("SELECT CAST(pg_advisory_xact_lock($1, $2) AS TEXT)").bind(SINGLE).bind(EPOCH);
    lock.execute(db).await.map(drop)
}

/// Nobody else begins a round, judges a label, or drops what either could read, in this transaction.
pub(super) async fn lock_rounds(db: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::query("SELECT CAST(pg_advisory_xact_lock($1, $2) AS TEXT)").bind(SINGLE).bind(ROUNDS);
    lock.execute(db).await.map(drop)
}

/// The right to be the one `run` of a database; it ends with the connection.
#[derive(Debug)]
pub struct ServiceLock {
    store: Store,
    /// `None` with SQLite, where the state folder's lock says it all.
    held: Option<Held>,
}

/// A connection that has the lock.
#[derive(Debug)]
struct Held {
    db: AnyConnection,
    session: Session,
}

/// What the server calls a connection: its process, and since when it is there, as numbers of processes come again.
#[derive(Clone, Debug)]
struct Session {
    process: i64,
    since: String,
}

impl ServiceLock {
    /// Takes it.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Taken`] when another `run` has it.
    pub async fn take(store: &Store) -> Result<Self, StoreError> {
        let held = if store.is_shared() { Some(take(store).await?) } else { None };
        Ok(Self { store: store.clone(), held })
    }

    /// Waits until it is lost: the connection broke, and somebody else was faster.
    pub async fn lost(&mut self) -> StoreError {
        loop {
            tokio::time::sleep(LOCK_TICK).await;
            let Some(held) = &mut self.held else { continue };
            if let Ok(Ok(())) = tokio::time::timeout(CONNECT, held.db.ping()).await {
                continue;
            }
            match again(&self.store, &held.session).await {
                Ok(Some(fresh)) => *held = fresh,
                Ok(None) => {}
                Err(taken @ StoreError::Taken { .. }) => return taken,
                // The database is away: nobody gets it.
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }
}

/// Takes the lock on another connection. `None` while the server still holds it for the broken one, which it may not know to be broken for
/// three quarters of a minute: that session is ended, and who waits for it is not told that somebody else was faster.
async fn again(store: &Store, old: &Session) -> Result<Option<Held>, StoreError> {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = $1 AND CAST(backend_start AS TEXT) = $2";
    let ended = sqlx::query_scalar(sql).bind(old.process).bind(old.since.as_str()).fetch_one(&store.pool).await;
    let ended: i64 = ended.map_err(store.sql("end the broken connection"))?;
    if ended > 0 { Ok(None) } else { take(store).await.map(Some) }
}

async fn take(store: &Store) -> Result<Held, StoreError> {
    let failed = || store.sql("lock the service");
    let mut db = store.pool.acquire().await.map_err(failed())?.detach();
    let sql = "SELECT CAST(pg_try_advisory_lock($1, $2) AS INTEGER)";
    let got: i64 = sqlx::query_scalar(sql).bind(SINGLE).bind(SERVICE).fetch_one(&mut db).await.map_err(failed())?;
    if got == 0 {
        return Err(StoreError::Taken { store: store.name.to_string() });
    }
    let sql = "SELECT CAST(pid AS BIGINT), CAST(backend_start AS TEXT) FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let (process, since) = sqlx::query_as(sql).fetch_one(&mut db).await.map_err(failed())?;
    Ok(Held { db, session: Session { process, since } })
}

#[cfg(test)]
impl ServiceLock {
    /// As if its connection broke without the server's knowing: the session of the connection that comes back goes on.
    pub(super) async fn break_off(&mut self) -> Option<AnyConnection> {
        let dead = self.store.pool.acquire().await.ok()?.detach();
        let held = self.held.as_mut()?;
        let live = std::mem::replace(&mut held.db, dead);
        let process: i64 = sqlx::query_scalar("SELECT CAST(pg_backend_pid() AS BIGINT)").fetch_one(&mut held.db).await.ok()?;
        let end = sqlx::query("SELECT count(pg_terminate_backend(CAST($1 AS INT)))").bind(process);
        end.execute(&self.store.pool).await.ok()?;
        Some(live)
    }
}
