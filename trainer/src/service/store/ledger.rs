//! Rounds and releases: the state that a restarted service continues from.

use super::{Store, StoreError};
use crate::service::rounds::RoundState;
use omnilabel_keypoints::wire::LabelKey;

/// Which labels a round is made from: those of one teacher, after `after` and up to `up_to` in the order of their arrival, with their
/// pictures, not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Counter of the teacher's release.
    pub teacher: u64,
    /// Exclusive.
    pub after: i64,
    /// Inclusive.
    pub up_to: i64,
}

/// One label of a selection, without its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// Who made it.
    pub device: String,
    /// Its key.
    pub key: LabelKey,
    /// The message as it came.
    pub payload: Vec<u8>,
}

/// One signed release.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ReleaseRow {
    counter: i64,
    /// Name for people.
    pub name: String,
    /// Folder of the bundle.
    pub bundle: String,
    /// The signed bytes.
    pub manifest: Vec<u8>,
    /// The signature over them.
    pub signature: Vec<u8>,
}

impl ReleaseRow {
    /// Its counter.
    pub const fn counter(&self) -> u64 {
        self.counter.cast_unsigned()
    }
}

/// A counter that a device reports is believed only this far above our own: no device can push the counter out of range.
const MAX_COUNTER_LEAD: i64 = 1_000_000;

const SELECT: &str = "FROM labels l JOIN frames f USING (device, epoch, sequence) \
                      WHERE l.model = ? AND l.id > ? AND l.id <= ? AND l.refused IS NULL AND f.jpeg IS NOT NULL";

macro_rules! selection {
    ($columns:literal, $tail:literal) => {
        sqlx::AssertSqlSafe(format!("SELECT {} {SELECT} {}", $columns, $tail))
    };
}

impl Store {
    /// The number of labels in a selection.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn selected(&self, which: Selection) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(selection!("count(*)", ""))
            .bind(which.teacher.cast_signed())
            .bind(which.after)
            .bind(which.up_to)
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("count labels"))?;
        Ok(count.cast_unsigned())
    }

    /// The labels of a selection in the order of their keys, so that the same labels make the same data set.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn select(&self, which: Selection) -> Result<Vec<Selected>, StoreError> {
        let rows: Vec<(String, i64, i64, Vec<u8>)> =
            sqlx::query_as(selection!("l.device, l.epoch, l.sequence, l.payload", "ORDER BY l.device, l.epoch, l.sequence"))
                .bind(which.teacher.cast_signed())
                .bind(which.after)
                .bind(which.up_to)
                .fetch_all(&self.pool)
                .await
                .map_err(self.sql("read labels"))?;
        Ok(rows
            .into_iter()
            .map(|(device, epoch, sequence, payload)| Selected {
                device,
                key: LabelKey { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() },
                payload,
            })
            .collect())
    }

    /// The messages of all labels that a selection could be made from, with or without a picture, in the order of their arrival: what
    /// the thresholds are matched to, so that a policy of sending only some pictures does not bend them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn payloads(&self, which: Selection) -> Result<Vec<Vec<u8>>, StoreError> {
        sqlx::query_scalar("SELECT payload FROM labels WHERE model = ? AND id > ? AND id <= ? AND refused IS NULL ORDER BY id")
            .bind(which.teacher.cast_signed())
            .bind(which.after)
            .bind(which.up_to)
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read labels"))
    }

    /// The picture of a label.
    ///
    /// # Errors
    /// See [`StoreError`]; a picture that is not there is an error.
    pub async fn jpeg(&self, device: &str, key: LabelKey) -> Result<Vec<u8>, StoreError> {
        sqlx::query_scalar("SELECT jpeg FROM frames WHERE device = ? AND epoch = ? AND sequence = ? AND jpeg IS NOT NULL")
            .bind(device)
            .bind(key.epoch.cast_signed())
            .bind(key.sequence.cast_signed())
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read a frame"))
    }

    /// The last label's number in the order of arrival, 0 without any.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn last_label(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM labels").fetch_one(&self.pool).await.map_err(self.sql("read labels"))
    }

    /// Sum of the devices' score histograms under one model: frames seen, and instances per bin; empty without any.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn histogram(&self, model: u64) -> Result<(u64, Vec<u64>), StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT frames, scores FROM histograms WHERE model = ?")
            .bind(model.cast_signed())
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read histograms"))?;
        let (mut frames, mut sum) = (0_u64, Vec::new());
        for (seen, scores) in rows {
            let scores: Vec<u32> = serde_json::from_str(&scores).map_err(|e| self.content(format!("histograms: {e}")))?;
            frames = frames.saturating_add(seen.cast_unsigned());
            sum.resize(sum.len().max(scores.len()), 0_u64);
            sum.iter_mut().zip(scores).for_each(|(total, n)| *total += u64::from(n));
        }
        Ok((frames, sum))
    }

    /// All rounds, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn rounds(&self) -> Result<Vec<RoundState>, StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT round, state FROM rounds ORDER BY round")
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read rounds"))?;
        rows.into_iter()
            .map(|(round, state)| serde_json::from_str(&state).map_err(|e| self.content(format!("round {round}: {e}"))))
            .collect()
    }

    /// Writes the state of a round, new or not.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn save_round(&self, state: &RoundState) -> Result<(), StoreError> {
        let json = serde_json::to_string(state).map_err(|e| self.content(e.to_string()))?;
        sqlx::query(SAVE_ROUND)
            .bind(state.round.cast_signed())
            .bind(state.up_to)
            .bind(state.ended)
            .bind(json)
            .execute(&self.pool)
            .await
            .map_err(self.sql("write a round"))
            .map(drop)
    }

    /// The counter that the next release gets: above every one that was signed here and every one that a device knows.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn next_counter(&self) -> Result<u64, StoreError> {
        let (own, theirs): (i64, i64) = sqlx::query_as(
            "SELECT coalesce((SELECT max(counter) FROM releases), 0), \
             coalesce((SELECT max(max(confirmed, coalesce(trial, 0), coalesce(refused, 0))) FROM devices \
             WHERE max(confirmed, coalesce(trial, 0), coalesce(refused, 0)) <= coalesce((SELECT max(counter) FROM releases), 0) + ?), 0)",
        )
        .bind(MAX_COUNTER_LEAD)
        .fetch_one(&self.pool)
        .await
        .map_err(self.sql("read releases"))?;
        Ok(own.max(theirs).cast_unsigned() + 1)
    }

    /// Records a signed release, together with the end of the round it comes from.
    ///
    /// # Errors
    /// See [`StoreError`]; a counter that is taken is an error.
    pub async fn add_release(
        &self,
        counter: u64,
        name: &str,
        bundle: &std::path::Path,
        signed: (&[u8], &[u8]),
        round: Option<&RoundState>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let bundle = bundle.to_str().ok_or_else(|| self.content(format!("the path {} is not UTF-8", bundle.display())))?;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.sql("begin"))?;
        sqlx::query("INSERT INTO releases (counter, name, bundle, manifest, signature, created_ms, round) VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(counter.cast_signed())
            .bind(name)
            .bind(bundle)
            .bind(signed.0)
            .bind(signed.1)
            .bind(now_ms.cast_signed())
            .bind(round.map(|r| r.round.cast_signed()))
            .execute(&mut *tx)
            .await
            .map_err(self.sql("write a release"))?;
        if let Some(state) = round {
            let json = serde_json::to_string(state).map_err(|e| self.content(e.to_string()))?;
            sqlx::query(SAVE_ROUND)
                .bind(state.round.cast_signed())
                .bind(state.up_to)
                .bind(state.ended)
                .bind(json)
                .execute(&mut *tx)
                .await
                .map_err(self.sql("write a round"))?;
        }
        tx.commit().await.map_err(self.sql("commit a release"))
    }

    /// The newest release.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn latest_release(&self) -> Result<Option<ReleaseRow>, StoreError> {
        sqlx::query_as("SELECT counter, name, bundle, manifest, signature FROM releases ORDER BY counter DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(self.sql("read releases"))
    }

    /// The release that the fleet runs: the newest that no device refused, or that some device confirmed in spite of it. `None` is the
    /// provisioned model.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn running_release(&self) -> Result<Option<ReleaseRow>, StoreError> {
        sqlx::query_as(
            "SELECT counter, name, bundle, manifest, signature FROM releases r \
             WHERE NOT EXISTS (SELECT 1 FROM devices d WHERE d.refused = r.counter) \
             OR EXISTS (SELECT 1 FROM devices d WHERE d.confirmed = r.counter) ORDER BY counter DESC LIMIT 1",
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(self.sql("read releases"))
    }
}

const SAVE_ROUND: &str = "INSERT INTO rounds (round, last_label, ended, state) VALUES (?, ?, ?, ?) ON CONFLICT (round) DO UPDATE \
                          SET last_label = excluded.last_label, ended = excluded.ended, state = excluded.state";
