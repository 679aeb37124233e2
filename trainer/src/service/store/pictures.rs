//! Pictures in an object store instead of the database: a bucket of S3's protocol, or a folder.
//!
//! | file | what it holds |
//! |---|---|
//! | `pictures.rs` | putting, fetching, deleting, listing by SHA-256, each bounded and with patience |
//! | `s3` | how a bucket is reached |
//! | `outside` | what the database says of them: put before a commit, fetched for rows, compared, deleted |
//!
//! A picture's name is its SHA-256: `PREFIX/pictures/ab/abcdef….jpg`. So the same picture is one object, putting it twice changes nothing,
//! and what comes back is checked against its name.

mod outside;
mod s3;
#[cfg(test)]
mod tests;

pub use outside::Compared;

use super::StoreError;
use crate::service::config::{PictureUrl, StoreConfig};
use futures_core::Stream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use omnilabel_bundle::{hex, unhex};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// SHA-256 of a picture.
pub(super) type Name = [u8; 32];

/// The largest picture that is fetched; none that comes is larger.
const MAX_BYTES: u64 = omnilabel_link::MAX_PACKET as u64;
/// The folder of the pictures below the prefix.
const FOLDER: &str = "pictures";
/// How often a request is made that fails at once; the collector tries its commit again after that.
const TRIES: u32 = 4;
/// The pause after the first failure; it doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// The object store of `store.pictures`. It is reached when it is first needed.
#[derive(Debug)]
pub struct Pictures {
    config: StoreConfig,
    url: PictureUrl,
    client: OnceLock<Arc<dyn ObjectStore>>,
    put: Mutex<Put>,
}

/// What was put for a commit that has not come through: its next try does not put it again.
#[derive(Debug, Default)]
struct Put {
    /// How often pictures had been deleted before.
    deletions: i64,
    names: BTreeSet<Name>,
}

/// An object as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) bytes: u64,
    /// When it was put, by the store's clock, Unix ms.
    pub(super) put_ms: i64,
}

impl Pictures {
    /// `None` where pictures go into the database.
    pub(super) fn new(config: &StoreConfig) -> Option<Self> {
        let url = config.picture_url()?;
        Some(Self { config: config.clone(), url, client: OnceLock::new(), put: Mutex::default() })
    }

    /// With another object store than the configuration's.
    #[cfg(test)]
    pub(super) fn with(config: &StoreConfig, client: Arc<dyn ObjectStore>) -> Option<Self> {
        let made = Self::new(config)?;
        made.client.set(client).ok()?;
        Some(made)
    }

    /// Reads the keys and certificates of a bucket, or says what is wrong with them. Nobody is asked, and nothing is made.
    ///
    /// # Errors
    /// See [`StoreError::Pictures`].
    pub fn check(config: &StoreConfig) -> Result<(), StoreError> {
        match Self::new(config) {
            Some(pictures) if matches!(pictures.url, PictureUrl::S3 { .. }) => pictures.client().map(drop),
            _ => Ok(()),
        }
    }

    /// The client, with its connections.
    pub(super) fn client(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let made: Arc<dyn ObjectStore> = match &self.url {
            PictureUrl::S3 { bucket, .. } => Arc::new(s3::open(&self.config, bucket).map_err(|message| self.failed("open", message))?),
            PictureUrl::Folder(path) => {
                let io = |source| StoreError::Io { path: path.clone(), source };
                std::fs::create_dir_all(path).map_err(io)?;
                let folder = LocalFileSystem::new_with_prefix(path).map_err(|error| self.failed("open", said(&error)))?;
                // A commit follows, and with it the acknowledgement.
                Arc::new(folder.with_fsync(true))
            }
        };
        Ok(self.client.get_or_init(|| made))
    }

    fn failed(&self, operation: &'static str, message: String) -> StoreError {
        StoreError::Pictures { store: self.url.to_string(), operation, message }
    }

    /// Where the objects lie whose names begin with one byte.
    fn folder(&self, first: u8) -> Key {
        let below = format!("{FOLDER}/{}", hex(&[first]));
        match &self.url {
            PictureUrl::S3 { prefix, .. } if !prefix.is_empty() => Key::from(format!("{prefix}/{below}")),
            _ => Key::from(below),
        }
    }

    fn key(&self, name: &Name) -> Key {
        Key::from(format!("{}/{}.jpg", self.folder(name[0]), hex(name)))
    }

    /// Puts pictures, some at once; after it returned, all are there. So many are in memory a second time.
    /// `deletions` says how often pictures have been deleted: what was put before the last time may be gone.
    pub(super) async fn put(&self, pictures: &BTreeMap<Name, &[u8]>, deletions: i64) -> Result<(), StoreError> {
        {
            let mut put = self.put.lock().unwrap_or_else(PoisonError::into_inner);
            if put.deletions != deletions {
                *put = Put { deletions, names: BTreeSet::new() };
            }
        }
        let is_there = |name: &Name| self.put.lock().unwrap_or_else(PoisonError::into_inner).names.contains(name);
        let mut waiting = pictures.iter().filter(|(name, _)| !is_there(name));
        let mut running = JoinSet::new();
        loop {
            while running.len() < self.config.picture_requests
                && let Some((name, jpeg)) = waiting.next()
            {
                let (client, key, name) = (Arc::clone(self.client()?), self.key(name), *name);
                let (payload, limit) = (PutPayload::from(jpeg.to_vec()), self.limit());
                running.spawn(async move {
                    let put = patient(limit, || client.put(&key, payload.clone())).await;
                    put.map(|_| name)
                });
            }
            match running.join_next().await {
                None => return Ok(()),
                Some(Ok(Ok(name))) => _ = self.put.lock().unwrap_or_else(PoisonError::into_inner).names.insert(name),
                // Dropping the set ends the others: what they have put is an orphan, or is put again.
                Some(Ok(Err(error))) => return Err(self.failed("put a picture", error.to_string())),
                Some(Err(panic)) => return Err(self.failed("put a picture", panic.to_string())),
            }
        }
    }

    /// The commit is through: nothing of it is tried again.
    pub(super) fn committed(&self) {
        self.put.lock().unwrap_or_else(PoisonError::into_inner).names.clear();
    }

    /// Fetches pictures in the order of their names, some at once; of one that is not there or is another one, what is wrong.
    pub(super) async fn get(&self, names: &[Name]) -> Result<Vec<Result<Vec<u8>, String>>, StoreError> {
        let mut waiting = names.iter().enumerate();
        let mut running = JoinSet::new();
        let mut found: Vec<Result<Vec<u8>, String>> = vec![Ok(Vec::new()); names.len()];
        loop {
            while running.len() < self.config.picture_requests
                && let Some((at, name)) = waiting.next()
            {
                let (client, key, name, limit) = (Arc::clone(self.client()?), self.key(name), *name, self.limit());
                running.spawn(async move { (at, patient(limit, || fetch(&client, &key, &name)).await) });
            }
            match running.join_next().await {
                None => return Ok(found),
                Some(Ok((at, Ok(picture)))) => found[at] = picture.map_err(|lost| format!("{}: {lost}", self.url)),
                Some(Ok((_, Err(error)))) => return Err(self.failed("fetch a picture", error.to_string())),
                Some(Err(panic)) => return Err(self.failed("fetch a picture", panic.to_string())),
            }
        }
    }

    /// Deletes pictures, some at once; one that is not there is no error.
    pub(super) async fn delete(&self, names: &[Name]) -> Result<(), StoreError> {
        let mut waiting = names.iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < self.config.picture_requests
                && let Some(name) = waiting.next()
            {
                let (client, key, limit) = (Arc::clone(self.client()?), self.key(name), self.limit());
                running.spawn(async move { patient(limit, || delete(&client, &key)).await });
            }
            match running.join_next().await {
                None => return Ok(()),
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return Err(self.failed("delete a picture", error.to_string())),
                Some(Err(panic)) => return Err(self.failed("delete a picture", panic.to_string())),
            }
        }
    }

    /// The pictures whose names begin with one byte. What has another name is not the centre's.
    pub(super) async fn list(&self, first: u8) -> Result<BTreeMap<Name, Listed>, StoreError> {
        let folder = self.folder(first);
        let client = self.client()?;
        let listed = patient(self.limit(), || async {
            let mut found = BTreeMap::new();
            let mut objects = pin!(client.list(Some(&folder)));
            while let Some(object) = poll_fn(|context| objects.as_mut().poll_next(context)).await {
                let object = object?;
                let name = object.location.filename().and_then(|name| name.strip_suffix(".jpg")).and_then(unhex);
                if let Some(name) = name.and_then(|name| Name::try_from(name).ok()).filter(|name| name[0] == first) {
                    found.insert(name, Listed { bytes: object.size, put_ms: object.last_modified.timestamp_millis() });
                }
            }
            Ok(found)
        });
        listed.await.map_err(|error| self.failed("list pictures", error.to_string()))
    }

    const fn limit(&self) -> Duration {
        Duration::from_secs(self.config.picture_timeout_secs)
    }
}

/// One picture, if it is the one of that name.
async fn fetch(client: &Arc<dyn ObjectStore>, key: &Key, name: &Name) -> object_store::Result<Result<Vec<u8>, String>> {
    let object = match client.get(key).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(Err(format!("{key} is not there"))),
        other => other?,
    };
    if object.meta.size > MAX_BYTES {
        return Ok(Err(format!("{key} has {} bytes, at most {MAX_BYTES} expected", object.meta.size)));
    }
    let bytes = object.bytes().await?;
    if Sha256::digest(&bytes).as_slice() != name {
        return Ok(Err(format!("{key} is not the one that came: SHA-256 differs")));
    }
    Ok(Ok(bytes.to_vec()))
}

async fn delete(client: &Arc<dyn ObjectStore>, key: &Key) -> object_store::Result<()> {
    match client.delete(key).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Why a request has failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// The store said no, or could not be asked.
    #[error("{0}")]
    Said(String),
    /// It said nothing.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
}

/// Makes a request, and again after a pause that doubles when it fails in a way that can pass; the first tries have `limit` together.
async fn patient<T, F: Future<Output = object_store::Result<T>>>(limit: Duration, request: impl Fn() -> F) -> Result<T, Failed> {
    let begin = Instant::now();
    let mut pause = PAUSE;
    let mut tries = 1;
    loop {
        match timeout(limit, request()).await {
            Err(_) => return Err(Failed::Silent(limit)),
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) if tries >= TRIES || !passes(&error) || begin.elapsed() >= limit => return Err(Failed::Said(said(&error))),
            Ok(Err(_)) => {}
        }
        sleep(pause).await;
        tries += 1;
        pause *= 2;
    }
}

/// Whether the same request may be answered later.
const fn passes(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    !matches!(
        error,
        E::NotFound { .. } | E::InvalidPath { .. } | E::NotSupported { .. } | E::PermissionDenied { .. } | E::Unauthenticated { .. }
    )
}

/// Characters of what a store says that are repeated.
const SAID: usize = 300;

/// What a store says, on one line: without what S3 repeats of the request in its XML, where the key's id is.
fn said(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let inside = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        text.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map(|(inside, _)| inside.to_owned())
    };
    let code = inside("Code");
    let head = text.split('<').next().unwrap_or_default();
    let line: String = head.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID).collect();
    let line = line.trim_end_matches([' ', ':']).to_owned();
    code.map_or(line.clone(), |code| format!("{line} ({})", code.chars().take(64).collect::<String>()))
}
