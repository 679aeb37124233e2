//! What became of the labels, by device: the figures that must add up.

use super::sql::Flag;
use super::{Place, Store, StoreError};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

/// Devices that one statement asks for.
const DEVICES: usize = 500;

/// One device's account, over all its outbox epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounts {
    /// The device.
    pub device: String,
    /// Made and fsynced on the device, by its last status.
    pub committed: u64,
    /// Stored here, each once.
    pub stored: u64,
    /// Of these with everything that was announced (label and frame).
    pub settled: u64,
    /// Of these kept but not trained on.
    pub refused: u64,
    /// Still in the device's outbox, by its last status, without what has come since.
    pub pending: u64,
    /// Dropped by the outbox's byte budget, by its last status.
    pub evicted: u64,
    /// Arrived again and not stored again.
    pub duplicates: u64,
    /// Of these with other bytes under the same key.
    pub conflicts: u64,
    /// Frames stored.
    pub frames: u64,
    /// Whether it is connected, by its last status or its last will.
    pub online: bool,
    /// When it was last heard of, Unix ms.
    #[serde(default)]
    pub seen_ms: u64,
    /// Counter of the confirmed release.
    pub confirmed: u64,
    /// Counter of the release on trial.
    pub trial: Option<u64>,
    /// Counter of the last refused release.
    pub refused_release: Option<u64>,
    /// Why it was refused.
    pub reason: String,
}

/// A device that has said nothing for so long is not there, whatever it said last: it says something every few seconds, and one that ended
/// while the broker was away never got its last will.
const SILENT_MS: u64 = 120_000;

/// Whether a device is there, that said it is `online` and was last heard of at `seen_ms`.
pub(crate) const fn is_there(online: bool, seen_ms: u64, now_ms: u64) -> bool {
    online && now_ms.saturating_sub(seen_ms) < SILENT_MS
}

impl DeviceCounts {
    /// Whether it is connected and was heard of lately.
    pub const fn is_there(&self, now_ms: u64) -> bool {
        is_there(self.online, self.seen_ms, now_ms)
    }

    /// Committed, neither stored nor evicted nor still in the outbox: lost. Only meaningful when the last status is newer than the last
    /// label; while labels are under way it may be too small, never too large, by those that are stored but not yet acknowledged.
    pub const fn lost(&self) -> u64 {
        self.committed.saturating_sub(self.stored).saturating_sub(self.evicted).saturating_sub(self.pending)
    }

    /// Committed, neither stored nor evicted: DESIGN.md's figure, which must be 0 once the outbox is empty.
    pub const fn missing(&self) -> u64 {
        self.committed.saturating_sub(self.stored).saturating_sub(self.evicted)
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    device: String,
    online: Flag,
    seen_ms: i64,
    confirmed: i64,
    trial: Option<i64>,
    refused_release: Option<i64>,
    reason: String,
    committed: i64,
    pending: i64,
    evicted: i64,
    duplicates: i64,
    conflicts: i64,
    stored: i64,
    settled: i64,
    refused: i64,
    frames: i64,
}

impl Store {
    /// Every device's account, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn counts(&self) -> Result<Vec<DeviceCounts>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT d.device, d.online, d.seen_ms, d.confirmed, d.trial, d.refused AS refused_release, d.reason, \
             CAST(coalesce(sum(e.committed), 0) AS BIGINT) AS committed, CAST(coalesce(sum(CASE WHEN e.pending < e.committed - e.stored - e.evicted THEN e.pending \
             WHEN e.committed > e.stored + e.evicted THEN e.committed - e.stored - e.evicted ELSE 0 END), 0) AS BIGINT) AS pending, \
             CAST(coalesce(sum(e.evicted), 0) AS BIGINT) AS evicted, \
             CAST(coalesce(sum(e.duplicates), 0) AS BIGINT) AS duplicates, CAST(coalesce(sum(e.conflicts), 0) AS BIGINT) AS conflicts, \
             CAST(coalesce(sum(e.stored), 0) AS BIGINT) AS stored, CAST(coalesce(sum(e.settled), 0) AS BIGINT) AS settled, \
             CAST(coalesce(sum(e.refused), 0) AS BIGINT) AS refused, \
             CAST(coalesce(sum(e.frames), 0) AS BIGINT) AS frames \
             FROM devices d LEFT JOIN epochs e USING (device) GROUP BY d.device ORDER BY d.device",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(self.sql("count"))?;
        Ok(rows
            .into_iter()
            .map(|r| DeviceCounts {
                device: r.device,
                committed: r.committed.cast_unsigned(),
                stored: r.stored.cast_unsigned(),
                settled: r.settled.cast_unsigned(),
                refused: r.refused.cast_unsigned(),
                pending: r.pending.cast_unsigned(),
                evicted: r.evicted.cast_unsigned(),
                duplicates: r.duplicates.cast_unsigned(),
                conflicts: r.conflicts.cast_unsigned(),
                frames: r.frames.cast_unsigned(),
                online: r.online.into(),
                seen_ms: r.seen_ms.cast_unsigned(),
                confirmed: r.confirmed.cast_unsigned(),
                trial: r.trial.map(i64::cast_unsigned),
                refused_release: r.refused_release.map(i64::cast_unsigned),
                reason: r.reason,
            })
            .collect())
    }

    /// Stored labels and repetitions of each of these devices, by name; none of those of which nothing was stored.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn tallies(&self, devices: &[String]) -> Result<Vec<(String, u64, u64)>, StoreError> {
        let mut tallies = Vec::with_capacity(devices.len());
        for chunk in devices.chunks(DEVICES) {
            let sql = format!(
                "SELECT device, CAST(sum(stored) AS BIGINT), CAST(sum(duplicates) AS BIGINT) FROM epochs WHERE device IN {} \
                 GROUP BY device ORDER BY device",
                self.values(1, chunk.len())
            );
            let mut query = sqlx::query_as(AssertSqlSafe(sql));
            for device in chunk {
                query = query.bind(device.as_str());
            }
            let found: Vec<(String, i64, i64)> = query.persistent(false).fetch_all(&self.pool).await.map_err(self.sql("count"))?;
            tallies.extend(found.into_iter().map(|(device, stored, again)| (device, stored.cast_unsigned(), again.cast_unsigned())));
        }
        Ok(tallies)
    }

    /// Labels stored since the store was created, of all devices.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn stored(&self) -> Result<u64, StoreError> {
        let stored: i64 = sqlx::query_scalar("SELECT CAST(coalesce(sum(stored), 0) AS BIGINT) FROM epochs")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("count"))?;
        Ok(stored.cast_unsigned())
    }

    /// The names of all known devices.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn devices(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT device FROM devices ORDER BY device").fetch_all(&self.pool).await.map_err(self.sql("read devices"))
    }
}

/// The counts of a store, for tools that only look (the demo); works while the service runs.
///
/// # Errors
/// See [`StoreError`]; a place without a store is an error.
pub async fn read_counts(place: impl Into<Place>) -> Result<Vec<DeviceCounts>, StoreError> {
    let store = Store::attach(place).await?;
    let counts = store.counts().await;
    store.close().await;
    counts
}
