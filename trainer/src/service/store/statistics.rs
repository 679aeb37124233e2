//! Labels in counts, by device, model and period, where each device stands, and the fleet's newest pictures.

use super::sql::Flag;
use super::{Store, StoreError};
use crate::service::drift::Counts;
use crate::service::drift::fleet::{FleetDrift, Period};
use omnilabel_keypoints::wire::LabelKey;
use std::collections::BTreeMap;

/// The number of the last label that was counted, in `meta`.
const COUNTED: &str = "counted";

/// A label that is to be counted.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Uncounted {
    /// Its number in the order of arrival.
    pub id: i64,
    /// Who made it.
    pub device: String,
    /// When it came, Unix ms.
    pub received_ms: i64,
    /// Whether it is kept but not trained on.
    #[sqlx(try_from = "Flag")]
    pub refused: bool,
    /// The message as it came.
    pub payload: Vec<u8>,
}

/// A label that has its picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictured {
    /// Its number in the order of arrival.
    pub id: i64,
    /// Who made it.
    pub device: String,
    /// Its key.
    pub key: LabelKey,
}

/// What is known of a device after a look at its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    /// The device.
    pub device: String,
    /// Where it stands.
    pub drift: FleetDrift,
    /// Counts that nothing needs any more: model, period.
    pub forget: Vec<(u64, i64)>,
}

impl Store {
    /// The number of the last label that was counted.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn last_counted(&self) -> Result<i64, StoreError> {
        Ok(self.meta(COUNTED).await?.unwrap_or(0))
    }

    /// The first `limit` labels after one, up to another one, in the order of arrival.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn uncounted(&self, after: i64, up_to: i64, limit: u32) -> Result<Vec<Uncounted>, StoreError> {
        sqlx::query_as(
            "SELECT id, device, received_ms, CASE WHEN refused IS NULL THEN CAST(0 AS BIGINT) ELSE CAST(1 AS BIGINT) END AS refused, \
             payload FROM labels WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3",
        )
        .bind(after)
        .bind(up_to)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(self.sql("read labels"))
    }

    /// The newest labels with pictures that may be trained on, newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn newest_pictured(&self, limit: u32) -> Result<Vec<Pictured>, StoreError> {
        let rows: Vec<(i64, String, i64, i64)> = sqlx::query_as(
            "SELECT l.id, l.device, l.epoch, l.sequence FROM labels l JOIN frames f \
             ON f.device = l.device AND f.epoch = l.epoch AND f.sequence = l.sequence \
             WHERE l.refused IS NULL AND f.jpeg IS NOT NULL ORDER BY l.id DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(self.sql("read labels"))?;
        let pictured = |(id, device, epoch, sequence): (i64, String, i64, i64)| {
            let key = LabelKey { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() };
            Pictured { id, device, key }
        };
        Ok(rows.into_iter().map(pictured).collect())
    }

    /// Adds counts by device, model and period; the labels up to `cursor` are then counted.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is counted then.
    pub async fn count_labels(&self, fresh: &BTreeMap<(String, u64, i64), Counts>, cursor: i64) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for ((device, model, period), counts) in fresh {
            let known: Option<String> =
                sqlx::query_scalar("SELECT counts FROM label_statistics WHERE device = $1 AND model = $2 AND period = $3")
                    .bind(device)
                    .bind(model.cast_signed())
                    .bind(period)
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(self.sql("read label statistics"))?;
            let mut sum = counts.clone();
            if let Some(text) = known {
                sum.merge(&self.counts_of(device, &text)?);
            }
            let json = serde_json::to_string(&sum).map_err(|error| self.content(error.to_string()))?;
            sqlx::query(
                "INSERT INTO label_statistics (device, model, period, counts) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (device, model, period) DO UPDATE SET counts = excluded.counts",
            )
            .bind(device)
            .bind(model.cast_signed())
            .bind(period)
            .bind(json)
            .execute(&mut *tx)
            .await
            .map_err(self.sql("write label statistics"))?;
        }
        sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(COUNTED)
            .bind(cursor)
            .execute(&mut *tx)
            .await
            .map_err(self.sql("write meta"))?;
        tx.commit().await.map_err(self.sql("commit label statistics"))
    }

    /// What is counted of a device, by model and period.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn periods(&self, device: &str) -> Result<Vec<Period>, StoreError> {
        let rows: Vec<(i64, i64, String)> =
            sqlx::query_as("SELECT model, period, counts FROM label_statistics WHERE device = $1 ORDER BY model, period")
                .bind(device)
                .fetch_all(&self.pool)
                .await
                .map_err(self.sql("read label statistics"))?;
        rows.into_iter()
            .map(|(model, period, text)| Ok(Period { model: model.cast_unsigned(), period, counts: self.counts_of(device, &text)? }))
            .collect()
    }

    /// Where each device stands, by name; those of which nothing was counted are not in it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn drifts(&self) -> Result<BTreeMap<String, FleetDrift>, StoreError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT device, state FROM drifts").fetch_all(&self.pool).await.map_err(self.sql("read drifts"))?;
        let read = |(device, text): (String, String)| {
            let drift = serde_json::from_str(&text).map_err(|error| self.content(format!("drift of {device}: {error}")))?;
            Ok((device, drift))
        };
        rows.into_iter().map(read).collect()
    }

    /// Writes where devices stand, and forgets what nothing needs any more.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn save_drifts(&self, looked: &[Looked]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for Looked { device, drift, forget } in looked {
            let json = serde_json::to_string(drift).map_err(|error| self.content(error.to_string()))?;
            sqlx::query("INSERT INTO drifts (device, state) VALUES ($1, $2) ON CONFLICT (device) DO UPDATE SET state = excluded.state")
                .bind(device)
                .bind(json)
                .execute(&mut *tx)
                .await
                .map_err(self.sql("write drifts"))?;
            for (model, period) in forget {
                sqlx::query("DELETE FROM label_statistics WHERE device = $1 AND model = $2 AND period = $3")
                    .bind(device)
                    .bind(model.cast_signed())
                    .bind(period)
                    .execute(&mut *tx)
                    .await
                    .map_err(self.sql("forget label statistics"))?;
            }
        }
        tx.commit().await.map_err(self.sql("commit drifts"))
    }

    fn counts_of(&self, device: &str, text: &str) -> Result<Counts, StoreError> {
        serde_json::from_str(text).map_err(|error| self.content(format!("label statistics of {device}: {error}")))
    }
}
