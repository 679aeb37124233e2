//! What the page looks up: read-only queries, each bounded by a LIMIT.

use super::{Store, StoreError};
use crate::service::waves::Waves;

/// Rows that one look gives at most.
pub const MAX_ROWS: u32 = 500;

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

    /// The folder of the bundle of the release with this counter, as it was named when it was signed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn bundle_of(&self, counter: u64) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT bundle FROM releases WHERE counter = $1")
            .bind(counter.cast_signed())
            .fetch_optional(&self.pool)
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

    on_both! { releases_come_newest_first }

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
