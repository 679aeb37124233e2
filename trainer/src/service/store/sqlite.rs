//! The store as one file: a write-ahead log, every commit fsynced, one writer at a time.

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{AnyPool, ConnectOptions, Connection};
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The database in a state folder.
pub(crate) const DATABASE: &str = "centre.sqlite";
/// SQLITE_BUSY.
const BUSY: &str = "5";
/// How often a database that somebody closes is tried again …
const OPEN_TRIES: u32 = 100;
/// … and after which pause.
const OPEN_RETRY: Duration = Duration::from_millis(50);
/// What every connection waits for another's commit, and that a commit is on the disk when it returns.
const SETTINGS: &str = "PRAGMA busy_timeout = 30000; PRAGMA synchronous = FULL";

/// A pool of at most `most` connections to a database, which is made when it is not there.
pub(super) async fn open(path: &Path, most: u32) -> Result<AnyPool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(30));
    // Says what is wrong with the file, where the pool would only try again and again.
    let first = patient(|| options.connect()).await?;
    let pool = patient(|| pool(path, "rw", most)).await;
    first.close().await?;
    pool
}

/// A pool that only reads.
pub(super) async fn open_reader(path: &Path, most: u32) -> Result<AnyPool, sqlx::Error> {
    patient(|| pool(path, "ro", most)).await
}

async fn pool(path: &Path, mode: &str, most: u32) -> Result<AnyPool, sqlx::Error> {
    let settings = AnyPoolOptions::new().max_connections(most).max_lifetime(None).idle_timeout(None);
    let settings = settings.after_connect(|db, _| {
        Box::pin(async move {
            sqlx::raw_sql(SETTINGS).execute(db).await?;
            Ok(())
        })
    });
    settings.connect_with(AnyConnectOptions::from_str(&url(path, mode))?).await
}

/// Tries to open it until nobody is about to close it: who does that as the last one holds it for an instant, and for that SQLite does
/// not wait.
async fn patient<T, F: Future<Output = Result<T, sqlx::Error>>>(open: impl Fn() -> F) -> Result<T, sqlx::Error> {
    let mut tries = 0;
    loop {
        match open().await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(BUSY) && tries < OPEN_TRIES => {
                tries += 1;
                tokio::time::sleep(OPEN_RETRY).await;
            }
            other => return other,
        }
    }
}

/// A path as SQLite's driver takes it, whatever characters are in it; slashes, too, are written by their codes, or `..` would be resolved
/// without regard to links.
fn url(path: &Path, mode: &str) -> String {
    let mut url = "sqlite:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => url.push(char::from(*byte)),
            // Writing to a string does not fail.
            _ => _ = write!(url, "%{byte:02X}"),
        }
    }
    url + "?mode=" + mode
}

/// Writes a copy of the database to `path`, as it is at one moment; how many labels it holds.
pub(super) async fn copy(pool: &AnyPool, path: &str) -> Result<i64, sqlx::Error> {
    sqlx::query("VACUUM INTO $1").bind(path).execute(pool).await?;
    let mut copy: SqliteConnection = SqliteConnectOptions::new().filename(path).read_only(true).connect().await?;
    let labels = sqlx::query_scalar("SELECT count(*) FROM labels").fetch_one(&mut copy).await?;
    copy.close().await?;
    Ok(labels)
}
