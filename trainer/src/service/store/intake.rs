//! One commit: everything that waits in the queue, in one transaction with one fsync.

use super::account::Account;
use super::quarantine::{self, Quarantined};
use super::{Store, StoreError, labels, marker, runs};
use omnilabel_keypoints::wire::{AckMsg, HistogramMsg, LabelKey, ModelMsg, StatusMsg};
use sha2::{Digest, Sha256};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
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
    /// Frames that were settled now without being kept.
    pub refused: Vec<RefusedFrame>,
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
    /// See [`StoreError`]; then nothing of the batch is stored and nothing may be acknowledged.
    pub async fn commit(&self, records: &[(String, Record)], now_ms: u64) -> Result<Committed, StoreError> {
        let now = now_ms.cast_signed();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.sql("begin"))?;
        let mut done = Committed::default();
        seen(&mut tx, &stated_epochs(records), now).await.map_err(self.sql("store a device"))?;
        let rows: Vec<(&str, &LabelRow)> = records
            .iter()
            .filter_map(|(device, record)| match record {
                Record::Label(row) => Some((device.as_str(), &**row)),
                _ => None,
            })
            .collect();
        // Labels first: a frame that comes in the same batch finds its label here, whichever was sent first.
        let mut outboxes = Outboxes::new();
        labels::store(&mut tx, &rows, now, &mut outboxes, &mut done).await.map_err(self.sql("store labels"))?;
        for (device, record) in records {
            match record {
                Record::Label(_) => {}
                Record::Frame { key, frame, refused, jpeg } => {
                    let (epoch, sequence) = (key.epoch.cast_signed(), key.sequence.cast_signed());
                    let outbox = outboxes.entry((device, epoch)).or_default();
                    outbox.touched.insert(key.sequence);
                    let hash = Sha256::digest(jpeg);
                    let kept = refused.is_none().then_some(jpeg.as_slice());
                    let fresh = sqlx::query(
                        "INSERT OR IGNORE INTO frames (device, epoch, sequence, frame, received_ms, sha256, refused, jpeg) \
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(device)
                    .bind(epoch)
                    .bind(sequence)
                    .bind(frame.cast_signed())
                    .bind(now)
                    .bind(hash.as_slice())
                    .bind(refused)
                    .bind(kept)
                    .execute(&mut *tx)
                    .await
                    .map_err(self.sql("store a frame"))?;
                    if fresh.rows_affected() == 0 {
                        done.repeated += 1;
                        // It came after all, from before it was evicted.
                        if kept.is_some() {
                            let updated = sqlx::query(
                                "UPDATE frames SET sha256 = ?, refused = NULL, jpeg = ? \
                                 WHERE device = ? AND epoch = ? AND sequence = ? AND refused = ?",
                            )
                            .bind(hash.as_slice())
                            .bind(kept)
                            .bind(device)
                            .bind(epoch)
                            .bind(sequence)
                            .bind(EVICTED)
                            .execute(&mut *tx)
                            .await
                            .map_err(self.sql("store a frame"))?;
                            outbox.account.frames += updated.rows_affected().cast_signed();
                        }
                    } else {
                        outbox.account.frames += i64::from(kept.is_some());
                        if settle(&mut tx, device, epoch, sequence).await.map_err(self.sql("settle a label"))? {
                            outbox.settled.insert(sequence);
                        }
                        let (device, bytes) = (device.clone(), jpeg.len());
                        // An eviction is no fault of the frame: the device counts it.
                        let refused = refused.clone().filter(|reason| reason != EVICTED);
                        done.refused.extend(refused.map(|reason| RefusedFrame { device, key: *key, bytes, reason }));
                    }
                }
                Record::Status(status) => status_row(&mut tx, device, status).await.map_err(self.sql("store a status"))?,
                Record::Model(model) => model_row(&mut tx, device, model).await.map_err(self.sql("store a model report"))?,
                Record::Histogram(histogram) => {
                    let scores = serde_json::to_string(histogram.scores.as_slice()).map_err(|e| self.content(e.to_string()))?;
                    sqlx::query(
                        "INSERT INTO histograms (device, model, frames, received_ms, scores) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE \
                         SET frames = excluded.frames, received_ms = excluded.received_ms, scores = excluded.scores \
                         WHERE excluded.frames >= frames",
                    )
                    .bind(device)
                    .bind(histogram.model.cast_signed())
                    .bind(histogram.frames.cast_signed())
                    .bind(now)
                    .bind(scores)
                    .execute(&mut *tx)
                    .await
                    .map_err(self.sql("store a histogram"))?;
                }
                Record::Quarantined(what) => quarantine::insert(&mut tx, what, now).await.map_err(self.sql("quarantine a message"))?,
            }
        }
        for ((device, epoch), outbox) in outboxes {
            runs::insert(&mut tx, device, epoch, &outbox.settled).await.map_err(self.sql("store what is settled"))?;
            let account = Account { settled: outbox.settled.len() as i64, ..outbox.account };
            account.add(&mut tx, device, epoch).await.map_err(self.sql("count"))?;
            done.touched.push(Touched { device: device.to_owned(), epoch: epoch.cast_unsigned(), sequences: outbox.touched });
        }
        let commits: i64 = sqlx::query_scalar(
            "INSERT INTO meta (key, value) VALUES ('commits', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(self.sql("count the commit"))?;
        tx.commit().await.map_err(self.sql("commit"))?;
        marker::write(self.state_dir(), marker::Marker { collector: self.collector, commits: commits.cast_unsigned() })?;
        Ok(done)
    }

    /// What an outbox is told: everything that is committed of it, naming at least the runs that hold the touched sequences.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn acks(&self, of: &Touched) -> Result<Vec<AckMsg>, StoreError> {
        let mut db = self.pool.acquire().await.map_err(self.sql("acquire"))?;
        let touched = of.sequences.iter().map(|sequence| sequence.cast_signed()).collect();
        runs::acks(&mut db, self.collector, &of.device, of.epoch.cast_signed(), &touched).await.map_err(self.sql("read the watermark"))
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

/// Rows of one statement: SQLite takes at most 32,766 parameters.
pub(super) const ROWS: usize = 128;

async fn seen(db: &mut SqliteConnection, devices: &BTreeMap<&str, Stated>, now: i64) -> Result<(), sqlx::Error> {
    let devices: Vec<_> = devices.iter().collect();
    for chunk in devices.chunks(ROWS) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO devices (device, seen_ms, epoch, ahead_ms, label_model, label_hash) ");
        query.push_values(chunk, |mut row, (device, stated)| {
            let ahead = stated.captured_ms.map(|captured| captured.saturating_sub(now).max(0));
            row.push_bind(**device).push_bind(now).push_bind(stated.epoch).push_bind(ahead);
            row.push_bind(stated.labelled.map(|labelled| labelled.0)).push_bind(stated.labelled.map(|labelled| labelled.1));
        });
        query.push(
            " ON CONFLICT (device) DO UPDATE SET seen_ms = excluded.seen_ms, epoch = coalesce(excluded.epoch, epoch), \
             ahead_ms = coalesce(excluded.ahead_ms, ahead_ms), label_model = coalesce(excluded.label_model, label_model), \
             label_hash = coalesce(excluded.label_hash, label_hash)",
        );
        query.build().persistent(false).execute(&mut *db).await?;
    }
    Ok(())
}

/// Marks the label of a frame that has just been stored as settled; whether it is here and was not.
async fn settle(db: &mut SqliteConnection, device: &str, epoch: i64, sequence: i64) -> Result<bool, sqlx::Error> {
    let settled = sqlx::query("UPDATE labels SET settled = 1 WHERE device = ? AND epoch = ? AND sequence = ? AND settled = 0")
        .bind(device)
        .bind(epoch)
        .bind(sequence)
        .execute(&mut *db)
        .await?;
    Ok(settled.rows_affected() > 0)
}

async fn status_row(db: &mut SqliteConnection, device: &str, status: &StatusMsg) -> Result<(), sqlx::Error> {
    if is_last_will(status) {
        sqlx::query("UPDATE devices SET online = 0 WHERE device = ?").bind(device).execute(db).await?;
        return Ok(());
    }
    sqlx::query("UPDATE devices SET online = ?, model = ?, frames = ?, bad_frames = ? WHERE device = ?")
        .bind(status.online)
        .bind(status.model.cast_signed())
        .bind(status.frames.cast_signed())
        .bind(status.bad_frames.cast_signed())
        .bind(device)
        .execute(&mut *db)
        .await?;
    // `committed` never falls within an epoch: an old status that arrives late changes nothing.
    sqlx::query(
        "INSERT INTO epochs (device, epoch, committed, pending, evicted) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE \
         SET committed = excluded.committed, pending = excluded.pending, evicted = excluded.evicted WHERE excluded.committed >= committed",
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

async fn model_row(db: &mut SqliteConnection, device: &str, model: &ModelMsg) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE devices SET confirmed = ?, trial = ?, refused = ?, reason = ? WHERE device = ?")
        .bind(model.confirmed.cast_signed())
        .bind(model.trial.map(u64::cast_signed))
        .bind(model.refused.map(u64::cast_signed))
        .bind(model.reason.as_str())
        .bind(device)
        .execute(db)
        .await
        .map(drop)
}
