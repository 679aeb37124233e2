//! Messages that could not be used: kept with the reason, so that somebody can look at them, within a stated number and size.

use super::{Store, StoreError, sql};
use serde::Serialize;
use sqlx::AnyConnection;

/// Of the newest messages, so many are kept.
pub const MAX_MESSAGES: i64 = 10_000;
/// Of a payload, so many bytes are kept: a label's worth. The quarantine thus takes 330 MB at the most.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Of a topic, so many characters: an ordinary one has fewer.
const MAX_TOPIC: usize = 256;

/// One message that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    topic: String,
    reason: String,
    bytes: usize,
    payload: Vec<u8>,
}

impl Quarantined {
    /// Takes what is kept of a message.
    pub fn new(topic: &str, mut payload: Vec<u8>, reason: String) -> Self {
        let bytes = payload.len();
        payload.truncate(MAX_PAYLOAD);
        Self { topic: topic.chars().take(MAX_TOPIC).collect(), reason, bytes, payload }
    }

    /// Of the payload that is kept.
    pub fn kept_bytes(&self) -> usize {
        self.payload.len()
    }
}

/// A message in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct QuarantineRow {
    /// Grows with every message.
    pub id: i64,
    /// When it came, Unix ms.
    pub received_ms: i64,
    /// On which topic.
    pub topic: String,
    /// What was wrong with it.
    pub reason: String,
    /// Of its payload as it came; the database keeps the first [`MAX_PAYLOAD`].
    pub bytes: i64,
}

pub(super) async fn insert(db: &mut AnyConnection, what: &Quarantined, now: i64) -> Result<(), sqlx::Error> {
    let id: i64 =
        sqlx::query_scalar("INSERT INTO quarantine (received_ms, topic, reason, bytes, payload) VALUES ($1, $2, $3, $4, $5) RETURNING id")
            .bind(now)
            .bind(sql::text(&what.topic).as_ref())
            .bind(sql::text(&what.reason).as_ref())
            .bind(what.bytes as i64)
            .bind(what.payload.as_slice())
            .fetch_one(&mut *db)
            .await?;
    sqlx::query("DELETE FROM quarantine WHERE id <= $1").bind(id - MAX_MESSAGES).execute(db).await.map(drop)
}

impl Store {
    /// The newest messages in quarantine, at most `limit`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn quarantined(&self, limit: u32) -> Result<Vec<QuarantineRow>, StoreError> {
        sqlx::query_as("SELECT id, received_ms, topic, reason, bytes FROM quarantine ORDER BY id DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read the quarantine"))
    }

    /// How many messages are in quarantine, by reason, the most frequent first, at most `limit` reasons.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn quarantine_reasons(&self, limit: u32) -> Result<Vec<(String, u64)>, StoreError> {
        let found: Vec<(String, i64)> =
            sqlx::query_as("SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY count(*) DESC, reason LIMIT $1")
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await
                .map_err(self.sql("read the quarantine"))?;
        Ok(found.into_iter().map(|(reason, count)| (reason, count.cast_unsigned())).collect())
    }

    /// A message with what is kept of its payload; `None` where it is not (or no more) there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn quarantined_one(&self, id: i64) -> Result<Option<(QuarantineRow, Vec<u8>)>, StoreError> {
        #[derive(sqlx::FromRow)]
        struct Whole {
            #[sqlx(flatten)]
            row: QuarantineRow,
            payload: Vec<u8>,
        }
        let found: Option<Whole> = sqlx::query_as("SELECT id, received_ms, topic, reason, bytes, payload FROM quarantine WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(self.sql("read the quarantine"))?;
        Ok(found.map(|Whole { row, payload }| (row, payload)))
    }
}
