//! What the page looks up: read-only queries, each bounded by a LIMIT.

use super::sql::Flag;
use super::{Store, StoreError};
use crate::service::waves::Waves;

/// Rows that one look gives at most.
pub const MAX_ROWS: u32 = 500;

/// A label as it lies in the store, without its picture.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct LabelNote {
    /// Its number in the order of arrival.
    pub id: i64,
    /// Who made it.
    pub device: String,
    /// When it came, Unix ms.
    pub received_ms: i64,
    model: i64,
    /// Why it is kept but not trained on.
    pub refused: Option<String>,
    /// Whether its picture is here.
    #[sqlx(try_from = "Flag")]
    pub pictured: bool,
    /// The message as it came.
    pub payload: Vec<u8>,
}

impl LabelNote {
    /// Counter of the teacher's release.
    pub const fn model(&self) -> u64 {
        self.model.cast_unsigned()
    }
}

/// A release without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ReleaseNote {
    /// Its counter.
    pub counter: i64,
    /// Name for people.
    pub name: String,
    /// When it was signed, Unix ms.
    pub created_ms: i64,
    /// The round it came of; none when it was released by hand.
    pub round: Option<i64>,
    waves: Option<String>,
}

impl ReleaseNote {
    /// How it goes out. What cannot be read is shown as gone out to all; the sender says what is wrong with it.
    pub fn waves(&self) -> Waves {
        let read = self.waves.as_deref().and_then(|text| serde_json::from_str(text).ok());
        read.unwrap_or_else(|| Waves::at_once(self.created_ms.cast_unsigned()))
    }
}

impl Store {
    /// Whether the database answers.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT value FROM meta LIMIT 1").fetch_optional(&self.pool).await.map_err(self.sql("read meta")).map(drop)
    }

    /// Labels with a number below `before`, newest first, of one device or of all; at most `limit` and at most [`MAX_ROWS`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn labels_before(&self, device: Option<&str>, before: i64, limit: u32) -> Result<Vec<LabelNote>, StoreError> {
        let limit = limit.min(MAX_ROWS);
        let rows = match device {
            // The inner query reads the index alone, which every row's number is part of.
            Some(device) => sqlx::query_as(
                "SELECT l.id, l.device, l.received_ms, l.model, l.refused, l.payload, CAST(EXISTS (SELECT 1 FROM frames f \
                 WHERE f.device = l.device AND f.epoch = l.epoch AND f.sequence = l.sequence AND f.jpeg IS NOT NULL) AS INTEGER) AS pictured \
                 FROM labels l WHERE l.id IN (SELECT id FROM labels WHERE device = $1 AND id < $2 ORDER BY id DESC LIMIT $3) \
                 ORDER BY l.id DESC",
            )
            .bind(device),
            None => sqlx::query_as(
                "SELECT l.id, l.device, l.received_ms, l.model, l.refused, l.payload, CAST(EXISTS (SELECT 1 FROM frames f \
                 WHERE f.device = l.device AND f.epoch = l.epoch AND f.sequence = l.sequence AND f.jpeg IS NOT NULL) AS INTEGER) AS pictured \
                 FROM labels l WHERE l.id < $1 ORDER BY l.id DESC LIMIT $2",
            ),
        };
        rows.bind(before).bind(i64::from(limit)).fetch_all(&self.pool).await.map_err(self.sql("read labels"))
    }

    /// The newest releases, newest first; at most `limit` and at most [`MAX_ROWS`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn releases(&self, limit: u32) -> Result<Vec<ReleaseNote>, StoreError> {
        sqlx::query_as("SELECT counter, name, created_ms, round, waves FROM releases ORDER BY counter DESC LIMIT $1")
            .bind(i64::from(limit.min(MAX_ROWS)))
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read releases"))
    }

    /// Whether a release with this counter was made here.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn has_release(&self, counter: u64) -> Result<bool, StoreError> {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM releases WHERE counter = $1")
            .bind(counter.cast_signed())
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read releases"))?;
        Ok(found > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::{Home, on_both};

    on_both! {
        labels_come_newest_first_page_by_page,
        releases_come_newest_first,
    }

    async fn labels_come_newest_first_page_by_page(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=5, 0.0, 0), 10).await.unwrap();
        store.commit(&world.labels("cam-2", 1..=3, 0.0, 4), 20).await.unwrap();
        // A label whose picture has not come.
        store.commit(&world.labels("cam-1", 6..=6, 0.0, 0)[..1], 30).await.unwrap();
        let look = async |device, before, limit| {
            let rows = store.labels_before(device, before, limit).await.unwrap();
            rows.into_iter().map(|row| (row.id, row.device.clone(), row.received_ms, row.model(), row.pictured)).collect::<Vec<_>>()
        };
        let row = |id, device: &str, received_ms, model, pictured| (id, device.to_owned(), received_ms, model, pictured);
        assert_eq!(look(None, i64::MAX, 2).await, [row(9, "cam-1", 30, 0, false), row(8, "cam-2", 20, 4, true)]);
        assert_eq!(look(None, 3, 100).await, [row(2, "cam-1", 10, 0, true), row(1, "cam-1", 10, 0, true)]);
        assert_eq!(look(Some("cam-2"), 8, 100).await, [row(7, "cam-2", 20, 4, true), row(6, "cam-2", 20, 4, true)]);
        assert_eq!(look(Some("cam-1"), i64::MAX, 1).await, [row(9, "cam-1", 30, 0, false)]);
        assert_eq!(look(Some("cam-1' OR '1'='1"), i64::MAX, 9).await, []);
        assert_eq!(look(None, i64::MAX, 0).await, []);
        assert!(store.picture(1).await.unwrap().unwrap().starts_with(&[0xff, 0xd8]));
        assert_eq!((store.picture(9).await.unwrap(), store.picture(77).await.unwrap()), (None, None));
        let seen: Vec<_> = store.counts().await.unwrap().into_iter().map(|counts| (counts.device, counts.seen_ms)).collect();
        assert_eq!(seen, [("cam-1".to_owned(), 30), ("cam-2".to_owned(), 20)]);
        store.ping().await.unwrap();
    }

    async fn releases_come_newest_first(home: Home) {
        let store = Store::open(home.place(), false).await.unwrap();
        for counter in 1..=3 {
            store
                .add_release(counter, &format!("round-{counter}"), home.dir(), (b"m", b"s"), None, &Waves::at_once(10 * counter))
                .await
                .unwrap();
        }
        let newest = store.releases(2).await.unwrap();
        assert_eq!(newest.iter().map(|r| (r.counter, r.created_ms, r.round)).collect::<Vec<_>>(), [(3, 30, None), (2, 20, None)]);
        assert_eq!(newest[0].name, "round-3");
        assert!(store.has_release(1).await.unwrap() && !store.has_release(4).await.unwrap());
    }
}
