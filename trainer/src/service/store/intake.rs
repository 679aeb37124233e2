//! One commit: everything that waits in the queue, in one transaction with one fsync.

use super::{Store, StoreError, marker, runs};
use omnilabel_keypoints::wire::{AckMsg, HistogramMsg, LabelKey, ModelMsg, StatusMsg};
use sha2::{Digest, Sha256};
use sqlx::SqliteConnection;
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
}

/// What a commit did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// Acknowledgements by device, in the order they should be sent.
    pub acks: Vec<(String, AckMsg)>,
    /// Labels stored now.
    pub stored: u64,
    /// Labels and frames that were there already.
    pub repeated: u64,
    /// Labels that came again with other bytes, by device and key; the first stays.
    pub conflicts: Vec<(String, LabelKey)>,
    /// Frames that were settled now without being kept.
    pub refused: Vec<RefusedFrame>,
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
        for (device, epoch) in stated_epochs(records) {
            seen(&mut tx, device, epoch, now).await.map_err(self.sql("store a device"))?;
        }
        let mut outboxes: BTreeMap<(&str, i64), Outbox> = BTreeMap::new();
        for (device, record) in records {
            match record {
                Record::Label(row) => {
                    let (epoch, sequence) = (row.key.epoch.cast_signed(), row.key.sequence.cast_signed());
                    let outbox = outboxes.entry((device, epoch)).or_default();
                    outbox.touched.insert(sequence);
                    if label(&mut tx, device, row, now, &mut done).await.map_err(self.sql("store a label"))? {
                        outbox.settled.insert(sequence);
                    }
                }
                Record::Frame { key, frame, refused, jpeg } => {
                    let (epoch, sequence) = (key.epoch.cast_signed(), key.sequence.cast_signed());
                    let outbox = outboxes.entry((device, epoch)).or_default();
                    outbox.touched.insert(sequence);
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
                            sqlx::query(
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
                        }
                    } else {
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
            }
        }
        for ((device, epoch), Outbox { touched, settled }) in &outboxes {
            runs::insert(&mut tx, device, *epoch, settled).await.map_err(self.sql("store what is settled"))?;
            let acks = runs::acks(&mut tx, self.collector, device, *epoch, touched).await.map_err(self.sql("read the watermark"))?;
            done.acks.extend(acks.into_iter().map(|ack| ((*device).to_owned(), ack)));
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

    /// The current acknowledgement of every device's latest outbox epoch, for a (re)connect.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn current_acks(&self) -> Result<Vec<(String, AckMsg)>, StoreError> {
        let mut db = self.pool.acquire().await.map_err(self.sql("acquire"))?;
        let latest: Vec<(String, i64)> = sqlx::query_as("SELECT device, epoch FROM devices WHERE epoch IS NOT NULL")
            .fetch_all(&mut *db)
            .await
            .map_err(self.sql("read devices"))?;
        let mut acks = Vec::new();
        for (device, epoch) in latest {
            let found =
                runs::acks(&mut db, self.collector, &device, epoch, &BTreeSet::new()).await.map_err(self.sql("read the watermark"))?;
            acks.extend(found.into_iter().map(|ack| (device.clone(), ack)));
        }
        Ok(acks)
    }
}

/// What a batch says of one outbox epoch.
#[derive(Default)]
struct Outbox {
    /// Sequences of its labels and frames.
    touched: BTreeSet<i64>,
    /// Of these, what is settled from now on.
    settled: BTreeSet<i64>,
}

/// The devices of a batch, with the latest outbox epoch that each speaks of.
fn stated_epochs(records: &[(String, Record)]) -> BTreeMap<&str, Option<i64>> {
    let mut devices: BTreeMap<&str, Option<i64>> = BTreeMap::new();
    for (device, record) in records {
        let epoch = devices.entry(device).or_default();
        match record {
            Record::Label(row) => *epoch = Some(row.key.epoch.cast_signed()),
            Record::Status(status) if !is_last_will(status) => *epoch = Some(status.epoch.cast_signed()),
            _ => {}
        }
    }
    devices
}

/// The last will knows nothing but that the device is gone.
const fn is_last_will(status: &StatusMsg) -> bool {
    !status.online && status.epoch == 0
}

async fn seen(db: &mut SqliteConnection, device: &str, epoch: Option<i64>, now: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO devices (device, seen_ms, epoch) VALUES (?, ?, ?) ON CONFLICT (device) DO UPDATE \
         SET seen_ms = excluded.seen_ms, epoch = coalesce(excluded.epoch, epoch)",
    )
    .bind(device)
    .bind(now)
    .bind(epoch)
    .execute(db)
    .await
    .map(drop)
}

/// Stores one label; whether it is new and settled.
async fn label(db: &mut SqliteConnection, device: &str, row: &LabelRow, now: i64, done: &mut Committed) -> Result<bool, sqlx::Error> {
    let (epoch, sequence) = (row.key.epoch.cast_signed(), row.key.sequence.cast_signed());
    let settled: Option<bool> = sqlx::query_scalar(
        "INSERT OR IGNORE INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, \
         settled, refused, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, \
         NOT ?10 OR EXISTS (SELECT 1 FROM frames WHERE device = ?1 AND epoch = ?2 AND sequence = ?3), ?11, ?12) RETURNING settled",
    )
    .bind(device)
    .bind(epoch)
    .bind(sequence)
    .bind(row.frame.cast_signed())
    .bind(now)
    .bind(row.captured_ms.cast_signed())
    .bind(row.model.cast_signed())
    .bind(row.instances)
    .bind(row.kept)
    .bind(row.wants_frame)
    .bind(&row.refused)
    .bind(&row.payload)
    .fetch_optional(&mut *db)
    .await?;
    if let Some(settled) = settled {
        done.stored += 1;
        return Ok(settled);
    }
    let same: bool = sqlx::query_scalar("SELECT payload = ? FROM labels WHERE device = ? AND epoch = ? AND sequence = ?")
        .bind(&row.payload)
        .bind(device)
        .bind(epoch)
        .bind(sequence)
        .fetch_one(&mut *db)
        .await?;
    done.repeated += 1;
    if !same {
        done.conflicts.push((device.to_owned(), row.key));
    }
    sqlx::query(
        "INSERT INTO epochs (device, epoch, duplicates, conflicts) VALUES (?, ?, 1, ?) ON CONFLICT DO UPDATE \
         SET duplicates = duplicates + 1, conflicts = conflicts + excluded.conflicts",
    )
    .bind(device)
    .bind(epoch)
    .bind(!same)
    .execute(db)
    .await?;
    Ok(false)
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
