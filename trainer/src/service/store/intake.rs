//! One commit: everything that waits in the queue, in one transaction with one fsync.

use super::account::Account;
use super::labels::{Pending, Waiting};
use super::quarantine::{self, Quarantined};
use super::runs::is_settled;
use super::{Store, StoreError, postgres, runs, sql};
use omnilabel_keypoints::wire::{AckMsg, HistogramMsg, LabelKey, ModelMsg, StatusMsg};
use sha2::{Digest, Sha256};
use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What the store keeps of a label beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRow {
    /// Stored once under this key.
    pub key: LabelKey,
    /// The frame's id.
    pub frame: u64,
    /// Capture time by the device's clock, Unix ms.
    pub captured_ms: u64,
    /// Counter of the teacher's release.
    pub model: u64,
    /// First 8 bytes of the SHA-256 of its bundle's manifest.
    pub model_hash: u64,
    /// Instances in it.
    pub instances: u32,
    /// Of these above the device's τ.
    pub kept: u32,
    /// Whether its frame follows; the label is settled only when that is stored too.
    pub wants_frame: bool,
    /// Why it is kept but not trained on.
    pub refused: Option<String>,
    /// The message as it came.
    pub payload: Vec<u8>,
}

/// How far a device's clock may be ahead of the centre's, ms: a day, so that local time that was taken for UTC (14 h at most) is let pass.
const AHEAD_MS: i64 = 86_400_000;
/// A centre's clock that is earlier is not set, and nobody is judged by it: 2026-01-01, before which no centre had this rule. Unix ms.
const SET_MS: i64 = 1_767_225_600_000;

impl LabelRow {
    /// Why it is kept but not trained on when it is stored at `now_ms`: what is wrong with it whatever the time, or a capture in the future.
    /// One in the past is none: a device without a clock says 0, one whose clock is not set yet counts from 1970 or from where it was
    /// switched off, and an outbox may have waited for long.
    pub(super) fn refusal(&self, now_ms: i64) -> Option<Cow<'_, str>> {
        self.refused.as_deref().map(Cow::Borrowed).or_else(|| of_the_future(self.captured_ms, now_ms).map(Cow::Owned))
    }
}

fn of_the_future(captured_ms: u64, now_ms: i64) -> Option<String> {
    let ahead_ms = i64::try_from(captured_ms).unwrap_or(i64::MAX).saturating_sub(now_ms);
    (now_ms >= SET_MS && ahead_ms > AHEAD_MS).then(|| {
        let hours = ahead_ms / 3_600_000;
        format!("its frame was captured in the future: {captured_ms} ms since 1970, {hours} h ahead of the centre's clock")
    })
}

/// One incoming message that is worth storing.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// From `…/labels`.
    Label(Box<LabelRow>),
    /// From `…/frames`.
    Frame {
        /// Key of its label.
        key: LabelKey,
        /// The frame's id.
        frame: u64,
        /// Why the picture is not kept; its label is then settled and not trained on.
        refused: Option<String>,
        /// The JPEG as it came.
        jpeg: Vec<u8>,
    },
    /// From `…/status`.
    Status(StatusMsg),
    /// From `…/model`.
    Model(Box<ModelMsg>),
    /// From `…/histogram`.
    Histogram(Box<HistogramMsg>),
    /// From anywhere: what could not be used.
    Quarantined(Box<Quarantined>),
}

/// What a commit did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// What may be acknowledged now, see [`Store::acks`].
    pub touched: Vec<Touched>,
    /// Labels stored now.
    pub stored: u64,
    /// Labels and frames that were there already.
    pub repeated: u64,
    /// Labels that came again with other bytes, by device and key; the first stays.
    pub conflicts: Vec<(String, LabelKey)>,
    /// Frames that were settled now without being kept, and those that are kept no more because their label names another frame.
    pub refused: Vec<RefusedFrame>,
    /// Names of pictures in the object store whose rows are gone now.
    pub(super) orphans: Vec<Vec<u8>>,
}

/// Sequences of one outbox whose labels or frames have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The device.
    pub device: String,
    /// Its outbox epoch.
    pub epoch: u64,
    /// At least one.
    pub sequences: BTreeSet<u64>,
}

/// Why a frame of which only the header came is not kept.
pub(crate) const EVICTED: &str = "the device evicted it to keep to its byte budget";

/// A frame that is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFrame {
    /// Who sent it.
    pub device: String,
    /// Of its label.
    pub key: LabelKey,
    /// Of the JPEG.
    pub bytes: usize,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Stores `records` (device, message) in one transaction; after it returned, they are on disk.
    ///
    /// # Errors
    /// See [`StoreError`]; then nothing may be acknowledged. Nothing of the batch is stored, or (when the connection broke as it was
    /// committed) all of it: what is then tried again is there already, and is acknowledged as such.
    pub async fn commit(&self, records: &[(String, Record)], now_ms: u64) -> Result<Committed, StoreError> {
        // Before the commit that refers to them.
        let put = self.put_pictures(records).await?;
        let (done, commits) = if self.is_shared() {
            let slow = |_| StoreError::Slow { store: self.name.to_string(), seconds: postgres::COMMIT.as_secs() };
            tokio::time::timeout(postgres::COMMIT, self.transact(records, now_ms, put)).await.map_err(slow)??
        } else {
            self.transact(records, now_ms, put).await?
        };
        self.pictures_committed();
        self.counted(commits)?;
        if !done.orphans.is_empty() {
            // Nobody is acknowledged later for it; what fails is found by `dataset orphans`.
            let (store, orphans) = (self.clone(), done.orphans.clone());
            tokio::spawn(async move {
                if let Err(error) = store.delete_pictures(&orphans).await {
                    tracing::warn!("pictures of other frames than their labels: {error}");
                }
            });
        }
        Ok(done)
    }

    async fn transact(&self, records: &[(String, Record)], now_ms: u64, put: Option<i64>) -> Result<(Committed, u64), StoreError> {
        let now = now_ms.cast_signed();
        let mut tx = self.write().await?;
        let mut rows: Vec<(&str, &LabelRow)> = Vec::new();
        let mut frames: Vec<Frame<'_>> = Vec::new();
        for (device, record) in records {
            match record {
                Record::Label(row) => rows.push((device.as_str(), &**row)),
                Record::Frame { key, frame, refused, jpeg } => {
                    frames.push(Frame { device, key: *key, frame: *frame, refused: refused.as_deref(), jpeg, outside: put.is_some() });
                }
                _ => {}
            }
        }
        if self.is_shared() {
            postgres::enter(&mut tx).await.map_err(self.sql("begin"))?;
            // Two commits that have the same message wait for each other, both in the same order.
            rows.sort_by_key(|(device, row)| (*device, row.key));
            frames.sort_by_key(|frame| (frame.device, frame.key));
        }
        let mut done = Committed::default();
        let (mut outboxes, mut pending) = (Outboxes::new(), Pending::default());
        let stored = self.store_labels(&mut tx, &rows, now, &mut outboxes, &mut pending, &mut done).await;
        stored.map_err(self.sql("store labels"))?;
        for frame in frames {
            frame.store(&mut tx, now, &mut outboxes, &mut pending.waiting, &mut done).await.map_err(self.sql("store a frame"))?;
        }
        if self.is_shared() {
            let devices = records.iter().map(|(device, _)| device.as_str()).collect();
            postgres::lock_devices(&mut tx, &devices).await.map_err(self.sql("lock devices"))?;
        }
        // A label and its frame may have come by different collectors: whoever has the device's lock later sees both.
        self.settle(&mut tx, &pending, &mut outboxes, &mut done).await.map_err(self.sql("settle labels"))?;
        self.seen(&mut tx, &stated_epochs(records), now).await.map_err(self.sql("store a device"))?;
        for (device, record) in records {
            match record {
                Record::Label(_) | Record::Frame { .. } => {}
                Record::Status(status) => status_row(&mut tx, device, status).await.map_err(self.sql("store a status"))?,
                Record::Model(model) => model_row(&mut tx, device, model).await.map_err(self.sql("store a model report"))?,
                Record::Histogram(histogram) => {
                    let scores = serde_json::to_string(histogram.scores.as_slice()).map_err(|e| self.content(e.to_string()))?;
                    sqlx::query(
                        "INSERT INTO histograms (device, model, frames, received_ms, scores) VALUES ($1, $2, $3, $4, $5) \
                         ON CONFLICT (device, model) DO UPDATE \
                         SET frames = excluded.frames, received_ms = excluded.received_ms, scores = excluded.scores \
                         WHERE excluded.frames >= histograms.frames",
                    )
                    .bind(device.as_str())
                    .bind(histogram.model.cast_signed())
                    .bind(histogram.frames.cast_signed())
                    .bind(now)
                    .bind(scores)
                    .execute(&mut *tx)
                    .await
                    .map_err(self.sql("store a histogram"))?;
                }
                // All of these are of the device without a name, whose lock is held.
                Record::Quarantined(what) => quarantine::insert(&mut tx, what, now).await.map_err(self.sql("quarantine a message"))?,
            }
        }
        let (mut settled, mut accounts) = (Vec::new(), Vec::new());
        for ((device, epoch), outbox) in outboxes {
            accounts.push((device, epoch, Account { settled: outbox.settled.len() as i64, ..outbox.account }));
            settled.push((device, epoch, outbox.settled));
            done.touched.push(Touched { device: device.to_owned(), epoch: epoch.cast_unsigned(), sequences: outbox.touched });
        }
        self.add_runs(&mut tx, &settled).await.map_err(self.sql("store what is settled"))?;
        self.add_accounts(&mut tx, &accounts).await.map_err(self.sql("count"))?;
        let commits = self.count_commit(&mut tx).await?;
        self.still_there(&mut tx, records, put).await?;
        tx.commit().await.map_err(self.sql("commit"))?;
        Ok((done, commits))
    }

    /// What an outbox is told: everything that is committed of it, naming at least the runs that hold the touched sequences.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn acks(&self, of: &Touched) -> Result<Vec<AckMsg>, StoreError> {
        let mut db = self.acquire().await?;
        let touched = of.sequences.iter().map(|sequence| sequence.cast_signed()).collect();
        let collector = self.epoch(&mut db).await.map_err(self.sql("read the collector epoch"))?;
        runs::acks(&mut db, collector, &of.device, of.epoch.cast_signed(), &touched).await.map_err(self.sql("read the watermark"))
    }

    /// Every device's latest outbox epoch, with nothing touched: what is to be acknowledged on a (re)connect.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn outboxes(&self) -> Result<Vec<Touched>, StoreError> {
        let latest: Vec<(String, i64)> = sqlx::query_as("SELECT device, epoch FROM devices WHERE epoch IS NOT NULL ORDER BY device")
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read devices"))?;
        let touched = |(device, epoch): (String, i64)| Touched { device, epoch: epoch.cast_unsigned(), sequences: BTreeSet::new() };
        Ok(latest.into_iter().map(touched).collect())
    }
}

/// What a batch says of each outbox, by device and epoch.
pub(super) type Outboxes<'a> = BTreeMap<(&'a str, i64), Outbox>;

/// What a batch says of one outbox epoch.
#[derive(Default)]
pub(super) struct Outbox {
    /// Sequences of its labels and frames.
    pub(super) touched: BTreeSet<u64>,
    /// Of these, what is settled from now on.
    pub(super) settled: BTreeSet<i64>,
    /// What is to be added to its account.
    pub(super) account: Account,
}

/// What a batch says of a device.
#[derive(Clone, Copy, Debug, Default)]
struct Stated {
    /// The latest outbox epoch.
    epoch: Option<i64>,
    /// When the last label was captured by the device's clock, where it has one.
    captured_ms: Option<i64>,
    /// Counter and hash of the model that made the last label.
    labelled: Option<(i64, i64)>,
}

fn stated_epochs(records: &[(String, Record)]) -> BTreeMap<&str, Stated> {
    let mut devices: BTreeMap<&str, Stated> = BTreeMap::new();
    for (device, record) in records {
        // What could not be used makes nobody a device.
        if matches!(record, Record::Quarantined(_)) {
            continue;
        }
        let stated = devices.entry(device).or_default();
        match record {
            Record::Label(row) => {
                stated.epoch = Some(row.key.epoch.cast_signed());
                stated.labelled = Some((row.model.cast_signed(), row.model_hash.cast_signed()));
                stated.captured_ms = (row.captured_ms > 0).then_some(row.captured_ms.cast_signed()).or(stated.captured_ms);
            }
            Record::Status(status) if !is_last_will(status) => stated.epoch = Some(status.epoch.cast_signed()),
            _ => {}
        }
    }
    devices
}

/// The last will knows nothing but that the device is gone.
const fn is_last_will(status: &StatusMsg) -> bool {
    !status.online && status.epoch == 0
}

/// Rows of one statement: SQLite takes at most 32,766 parameters, PostgreSQL 65,535.
pub(super) const ROWS: usize = 128;

/// A frame of a batch.
struct Frame<'a> {
    device: &'a str,
    key: LabelKey,
    frame: u64,
    refused: Option<&'a str>,
    jpeg: &'a [u8],
    /// Whether it was put into the object store.
    outside: bool,
}

impl<'a> Frame<'a> {
    /// Stores the first one under a key; another one, only where that was evicted.
    async fn store(
        self,
        db: &mut AnyConnection,
        now: i64,
        outboxes: &mut Outboxes<'a>,
        waiting: &mut Waiting<'a>,
        done: &mut Committed,
    ) -> Result<(), sqlx::Error> {
        let Self { device, key, frame, refused, jpeg, outside } = self;
        let (epoch, sequence) = (key.epoch.cast_signed(), key.sequence.cast_signed());
        let outbox = outboxes.entry((device, epoch)).or_default();
        outbox.touched.insert(key.sequence);
        let hash = Sha256::digest(jpeg);
        let outside = (outside && refused.is_none() && !jpeg.is_empty()).then_some(jpeg.len() as i64);
        let kept = refused.is_none().then_some(if outside.is_some() { &jpeg[..0] } else { jpeg });
        // The frame of a settled label is here, or was dropped by retention and is not stored again; except one that no label announced.
        let sql = format!(
            "INSERT INTO frames (device, epoch, sequence, frame, received_ms, sha256, refused, jpeg, outside) \
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 \
             WHERE NOT {} OR EXISTS (SELECT 1 FROM labels WHERE device = $1 AND epoch = $2 AND sequence = $3 AND wants_frame = 0) \
             ON CONFLICT (device, epoch, sequence) DO NOTHING",
            is_settled("$1", "$2", "$3")
        );
        let fresh = sqlx::query(AssertSqlSafe(sql))
            .bind(device)
            .bind(epoch)
            .bind(sequence)
            .bind(frame.cast_signed())
            .bind(now)
            .bind(hash.as_slice())
            .bind(refused.map(sql::text).as_deref())
            .bind(kept)
            .bind(outside)
            .execute(&mut *db)
            .await?;
        if fresh.rows_affected() > 0 {
            outbox.account.frames += i64::from(kept.is_some());
            outbox.account.picture_bytes += kept.map_or(0, |_| jpeg.len() as i64);
            waiting.insert((device, epoch, sequence));
            // An eviction is no fault of the frame: the device counts it.
            let refused = refused.filter(|reason| *reason != EVICTED).map(str::to_owned);
            done.refused.extend(refused.map(|reason| RefusedFrame { device: device.to_owned(), key, bytes: jpeg.len(), reason }));
            return Ok(());
        }
        done.repeated += 1;
        // It came after all, from before it was evicted.
        if kept.is_some() {
            let updated = sqlx::query(
                "UPDATE frames SET sha256 = $1, refused = NULL, jpeg = $2, outside = $7, frame = $8 \
                 WHERE device = $3 AND epoch = $4 AND sequence = $5 AND refused = $6",
            )
            .bind(hash.as_slice())
            .bind(kept)
            .bind(device)
            .bind(epoch)
            .bind(sequence)
            .bind(EVICTED)
            .bind(outside)
            .bind(frame.cast_signed())
            .execute(db)
            .await?;
            if updated.rows_affected() > 0 {
                // Its label is settled, but was compared with no picture.
                waiting.insert((device, epoch, sequence));
            }
            outbox.account.frames += updated.rows_affected().cast_signed();
            outbox.account.picture_bytes += updated.rows_affected().cast_signed() * jpeg.len() as i64;
        }
        Ok(())
    }
}

impl Store {
    async fn seen(&self, db: &mut AnyConnection, devices: &BTreeMap<&str, Stated>, now: i64) -> Result<(), sqlx::Error> {
        let devices: Vec<_> = devices.iter().collect();
        for chunk in devices.chunks(ROWS) {
            let sql = format!(
                "INSERT INTO devices (device, seen_ms, epoch, ahead_ms, label_model, label_hash) VALUES {} ON CONFLICT (device) DO UPDATE \
                 SET seen_ms = excluded.seen_ms, epoch = coalesce(excluded.epoch, devices.epoch), \
                 ahead_ms = coalesce(excluded.ahead_ms, devices.ahead_ms), \
                 label_model = coalesce(excluded.label_model, devices.label_model), \
                 label_hash = coalesce(excluded.label_hash, devices.label_hash)",
                self.values(chunk.len(), 6)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (device, stated) in chunk {
                let ahead = stated.captured_ms.map(|captured| captured.saturating_sub(now).max(0));
                query = query.bind(**device).bind(now).bind(stated.epoch).bind(ahead);
                query = query.bind(stated.labelled.map(|labelled| labelled.0)).bind(stated.labelled.map(|labelled| labelled.1));
            }
            query.persistent(false).execute(&mut *db).await?;
        }
        Ok(())
    }
}

async fn status_row(db: &mut AnyConnection, device: &str, status: &StatusMsg) -> Result<(), sqlx::Error> {
    if is_last_will(status) {
        sqlx::query("UPDATE devices SET online = 0 WHERE device = $1").bind(device).execute(db).await?;
        return Ok(());
    }
    sqlx::query("UPDATE devices SET online = $1, model = $2, frames = $3, bad_frames = $4 WHERE device = $5")
        .bind(i64::from(status.online))
        .bind(status.model.cast_signed())
        .bind(status.frames.cast_signed())
        .bind(status.bad_frames.cast_signed())
        .bind(device)
        .execute(&mut *db)
        .await?;
    // `committed` never falls within an epoch: an old status that arrives late changes nothing.
    sqlx::query(
        "INSERT INTO epochs (device, epoch, committed, pending, evicted) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (device, epoch) DO UPDATE SET committed = excluded.committed, pending = excluded.pending, evicted = excluded.evicted \
         WHERE excluded.committed >= epochs.committed",
    )
    .bind(device)
    .bind(status.epoch.cast_signed())
    .bind(status.committed.cast_signed())
    .bind(status.pending.cast_signed())
    .bind(status.evicted.cast_signed())
    .execute(db)
    .await
    .map(drop)
}

async fn model_row(db: &mut AnyConnection, device: &str, model: &ModelMsg) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE devices SET confirmed = $1, trial = $2, refused = $3, reason = $4 WHERE device = $5")
        .bind(model.confirmed.cast_signed())
        .bind(model.trial.map(u64::cast_signed))
        .bind(model.refused.map(u64::cast_signed))
        .bind(sql::text(model.reason.as_str()).as_ref())
        .bind(device)
        .execute(db)
        .await
        .map(drop)
}
