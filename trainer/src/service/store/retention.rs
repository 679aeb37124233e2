//! What may be dropped, oldest first, and dropping it: a few rows a transaction, so that the collector waits for none.
//!
//! A label that was dropped stays in `runs`, which holds what was settled: a device that sends it again is told that it is here, and it is
//! not stored again. Accounts keep counting it, see `epochs.dropped`.

use super::sql::Flag;
use super::{Store, StoreError, postgres};
use crate::service::rounds::RoundState;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Transaction};
use std::collections::{BTreeMap, BTreeSet};

/// Why the picture of a label is not here.
const DROPPED: &str = "dropped by retention";
/// Rows of one look.
const PAGE: i64 = 512;
/// Rows of one transaction: at the largest pictures 128 MiB of pages to be freed, at usual ones some milliseconds.
pub const ROWS: usize = 64;

/// Whether a person has judged a label, as a condition on `labels l`. Retention takes no such label and none of its pictures.
/// What was said and taken back counts, too.
const JUDGED: &str = "EXISTS (SELECT 1 FROM verdicts v WHERE v.label = l.id)";

/// The labels of a round that may still be read for it: those of its teacher that came after this number. `$1` and `$2` of the statements
/// below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    teacher: i64,
    after: i64,
}

impl InUse {
    /// No label: a number that none has.
    const NOTHING: Self = Self { teacher: 0, after: i64::MAX };

    /// What the round under way may still read. A round whose data set is written reads the folder, but makes it anew where it fails and
    /// the folder is gone; and a failing one takes in what has come since.
    fn of(rounds: &[RoundState]) -> Self {
        let open = rounds.iter().rfind(|round| !round.ended);
        open.map_or(Self::NOTHING, |round| Self { teacher: round.teacher.cast_signed(), after: round.after })
    }
}

/// A picture that could be dropped.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OldPicture {
    /// When it came, Unix ms.
    pub received_ms: i64,
    /// Who sent it.
    pub device: String,
    /// Its outbox epoch, as the database has it.
    pub epoch: i64,
    /// Its label's number in it.
    pub sequence: i64,
    /// Of the JPEG.
    pub bytes: i64,
    /// Its label's number in the order of arrival; 0 where no label has come.
    pub id: i64,
    /// When its label came, Unix ms.
    pub label_ms: Option<i64>,
    /// Counter of the release whose model labelled it.
    pub model: i64,
    /// Whether the round under way may need it.
    #[sqlx(try_from = "Flag")]
    pub in_use: bool,
    /// Whether a person has judged its label.
    #[sqlx(try_from = "Flag")]
    pub judged: bool,
}

/// A label that could be dropped.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct OldLabel {
    /// Its number in the order of arrival.
    pub id: i64,
    /// When it came, Unix ms.
    pub received_ms: i64,
    /// Counter of the release whose model made it.
    pub model: i64,
    /// Whether nothing more of it is awaited.
    #[sqlx(try_from = "Flag")]
    pub settled: bool,
    /// Whether the round under way may need it.
    #[sqlx(try_from = "Flag")]
    pub in_use: bool,
    /// Whether a person has judged it.
    #[sqlx(try_from = "Flag")]
    pub judged: bool,
    /// Of its picture; 0 where none is here.
    pub bytes: i64,
}

/// What went in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Labels.
    pub labels: u64,
    /// Pictures.
    pub pictures: u64,
    /// Of these pictures.
    pub bytes: u64,
    /// Names of those in the object store, for [`Store::delete_pictures`]; until then they are orphans there.
    pub outside: Vec<Vec<u8>>,
}

/// Of one outbox, what is to be added to its account.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    labels: i64,
    refused: i64,
    pictures: i64,
    bytes: i64,
}

/// A label that went: device, epoch, sequence, and why it was refused.
type Dropped = (String, i64, i64, Option<String>);

/// The order in which commits store frames, and in which they are dropped: two that wait for each other's would never end.
fn by_key(device: &str, epoch: i64, sequence: i64) -> (&str, u64, u64) {
    (device, epoch.cast_unsigned(), sequence.cast_unsigned())
}

impl Store {
    /// Bytes of all pictures that are here, by the accounts.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn picture_bytes(&self) -> Result<u64, StoreError> {
        let bytes: i64 = sqlx::query_scalar("SELECT CAST(coalesce(sum(picture_bytes), 0) AS BIGINT) FROM epochs")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("read accounts"))?;
        Ok(bytes.max(0).cast_unsigned())
    }

    /// What the round under way may read.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn in_use(&self) -> Result<InUse, StoreError> {
        Ok(InUse::of(&self.rounds().await?))
    }

    /// A page of pictures after `last`, the oldest first; empty at the end.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn pictures_after(&self, in_use: InUse, last: Option<&OldPicture>) -> Result<Vec<OldPicture>, StoreError> {
        let sql = format!(
            "SELECT f.received_ms, f.device, f.epoch, f.sequence, CAST(coalesce(f.outside, length(f.jpeg)) AS BIGINT) AS bytes, coalesce(l.id, 0) AS id, \
             l.received_ms AS label_ms, coalesce(l.model, 0) AS model, \
             CAST(coalesce(l.model = $1 AND l.id > $2, 1 = 0) AS INTEGER) AS in_use, CAST(coalesce({JUDGED}, 1 = 0) AS INTEGER) AS judged \
             FROM frames f LEFT JOIN labels l ON l.device = f.device AND l.epoch = f.epoch AND l.sequence = f.sequence \
             WHERE f.jpeg IS NOT NULL AND (f.received_ms, f.device, f.epoch, f.sequence) > ($3, $4, $5, $6) \
             ORDER BY f.received_ms, f.device, f.epoch, f.sequence LIMIT {PAGE}"
        );
        let from = last.map_or((i64::MIN, "", 0, 0), |last| (last.received_ms, last.device.as_str(), last.epoch, last.sequence));
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(in_use.teacher)
            .bind(in_use.after)
            .bind(from.0)
            .bind(from.1)
            .bind(from.2)
            .bind(from.3)
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("look for old pictures"))
    }

    /// A page of labels with a number above `last`, the oldest first; empty at the end.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn labels_after(&self, in_use: InUse, last: i64) -> Result<Vec<OldLabel>, StoreError> {
        let sql = format!(
            "SELECT l.id, l.received_ms, l.model, l.settled, CAST((l.model = $1 AND l.id > $2) AS INTEGER) AS in_use, \
             CAST(({JUDGED}) AS INTEGER) AS judged, \
             coalesce((SELECT CAST(coalesce(f.outside, length(f.jpeg)) AS BIGINT) FROM frames f WHERE f.device = l.device AND f.epoch = l.epoch \
             AND f.sequence = l.sequence AND f.jpeg IS NOT NULL), 0) AS bytes FROM labels l WHERE l.id > $3 ORDER BY l.id LIMIT {PAGE}"
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .bind(in_use.teacher)
            .bind(in_use.after)
            .bind(last)
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("look for old labels"))
    }

    /// Drops pictures in one transaction, except those that have come into use or were judged since they were looked at. The labels stay,
    /// with the picture's SHA-256.
    ///
    /// # Errors
    /// See [`StoreError`]; then none of them is dropped.
    pub async fn drop_pictures(&self, pictures: &[&OldPicture]) -> Result<Gone, StoreError> {
        let (mut tx, in_use) = self.begin_drop().await?;
        let sql = format!(
            "UPDATE frames SET jpeg = NULL, refused = $3 WHERE device = $4 AND epoch = $5 AND sequence = $6 AND jpeg IS NOT NULL \
             AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.device = $4 AND l.epoch = $5 AND l.sequence = $6 \
             AND ((l.model = $1 AND l.id > $2) OR {JUDGED})) RETURNING sha256, outside"
        );
        let mut drops: BTreeMap<(&str, i64), Tally> = BTreeMap::new();
        let mut names = Vec::new();
        let mut pictures = pictures.to_vec();
        pictures.sort_by_key(|picture| by_key(&picture.device, picture.epoch, picture.sequence));
        for picture in pictures {
            let done: Option<(Vec<u8>, Option<i64>)> = sqlx::query_as(AssertSqlSafe(sql.clone()))
                .bind(in_use.teacher)
                .bind(in_use.after)
                .bind(DROPPED)
                .bind(picture.device.as_str())
                .bind(picture.epoch)
                .bind(picture.sequence)
                .fetch_optional(&mut *tx)
                .await
                .map_err(self.sql("drop a picture"))?;
            if let Some((name, outside)) = done {
                names.extend(outside.map(|_| name));
                let drop = drops.entry((picture.device.as_str(), picture.epoch)).or_default();
                drop.pictures += 1;
                drop.bytes += picture.bytes;
            }
        }
        self.deletes(&names)?;
        let gone = self.account(&mut tx, &drops).await?;
        tx.commit().await.map_err(self.sql("commit"))?;
        Ok(Gone { outside: names, ..gone })
    }

    /// Drops labels with their pictures in one transaction, except those that have come into use or were judged since they were looked at.
    ///
    /// # Errors
    /// See [`StoreError`]; then none of them is dropped.
    pub async fn drop_labels(&self, ids: &[i64]) -> Result<Gone, StoreError> {
        let (mut tx, in_use) = self.begin_drop().await?;
        let sql = format!(
            "DELETE FROM labels WHERE id = (SELECT l.id FROM labels l WHERE l.id = $3 AND l.settled <> 0 \
             AND NOT (l.model = $1 AND l.id > $2) AND NOT ({JUDGED})) RETURNING device, epoch, sequence, refused"
        );
        let mut dropped: Vec<Dropped> = Vec::new();
        for id in ids {
            let query = sqlx::query_as(AssertSqlSafe(sql.clone())).bind(in_use.teacher).bind(in_use.after).bind(*id);
            let row: Option<Dropped> = query.fetch_optional(&mut *tx).await.map_err(self.sql("drop a label"))?;
            if row.is_some() {
                let query = sqlx::query("DELETE FROM doubts WHERE label = $1").bind(*id);
                query.execute(&mut *tx).await.map_err(self.sql("drop a label's doubt"))?;
            }
            dropped.extend(row);
        }
        dropped.sort_by(|a, b| by_key(&a.0, a.1, a.2).cmp(&by_key(&b.0, b.1, b.2)));
        let mut drops: BTreeMap<(&str, i64), Tally> = BTreeMap::new();
        let mut names = Vec::new();
        for (device, epoch, sequence, refused) in &dropped {
            let sql = "DELETE FROM frames WHERE device = $1 AND epoch = $2 AND sequence = $3 RETURNING sha256, outside, \
                       CAST(CASE WHEN jpeg IS NULL THEN NULL ELSE coalesce(outside, length(jpeg)) END AS BIGINT)";
            let query = sqlx::query_as(sql).bind(device.as_str()).bind(*epoch).bind(*sequence);
            let frame: Option<(Vec<u8>, Option<i64>, Option<i64>)> =
                query.fetch_optional(&mut *tx).await.map_err(self.sql("drop a frame"))?;
            let mut bytes = None;
            if let Some((name, outside, kept)) = frame {
                bytes = kept;
                names.extend(kept.and(outside).map(|_| name));
            }
            let drop = drops.entry((device.as_str(), *epoch)).or_default();
            drop.labels += 1;
            drop.refused += i64::from(refused.is_some());
            drop.pictures += i64::from(bytes.is_some());
            drop.bytes += bytes.unwrap_or(0);
        }
        self.deletes(&names)?;
        let gone = self.account(&mut tx, &drops).await?;
        tx.commit().await.map_err(self.sql("commit"))?;
        Ok(Gone { outside: names, ..gone })
    }

    /// Whether pictures of these names could be deleted once their rows are gone: else nobody would know any more that they are there.
    fn deletes(&self, outside: &[Vec<u8>]) -> Result<(), StoreError> {
        if outside.is_empty() || self.pictures.is_some() {
            return Ok(());
        }
        let message =
            format!("nothing is dropped: {} pictures lie in an object store, and `store.pictures` does not say in which", outside.len());
        Err(self.content(message))
    }

    /// A transaction that drops, with what it must leave: no round begins before its end.
    async fn begin_drop(&self) -> Result<(Transaction<'static, Any>, InUse), StoreError> {
        let mut tx = self.write().await?;
        if self.is_shared() {
            postgres::lock_rounds(&mut tx).await.map_err(self.sql("lock the rounds"))?;
        }
        let in_use = self.in_use_within(&mut tx).await?;
        Ok((tx, in_use))
    }

    /// What the round under way may read, as the transaction that drops sees it: a round begins in a transaction of its own.
    async fn in_use_within(&self, db: &mut AnyConnection) -> Result<InUse, StoreError> {
        let open: Vec<String> = sqlx::query_scalar("SELECT state FROM rounds WHERE ended = 0 ORDER BY round")
            .fetch_all(db)
            .await
            .map_err(self.sql("read rounds"))?;
        let rounds: Result<Vec<RoundState>, _> = open.iter().map(|state| serde_json::from_str(state)).collect();
        Ok(InUse::of(&rounds.map_err(|error| self.content(format!("rounds: {error}")))?))
    }

    async fn account(&self, db: &mut AnyConnection, drops: &BTreeMap<(&str, i64), Tally>) -> Result<Gone, StoreError> {
        if self.is_shared() {
            let devices: BTreeSet<&str> = drops.keys().map(|(device, _)| *device).collect();
            postgres::lock_devices(db, &devices).await.map_err(self.sql("lock devices"))?;
        }
        let mut gone = Gone::default();
        for ((device, epoch), drop) in drops {
            sqlx::query(
                "UPDATE epochs SET dropped = dropped + $1, dropped_refused = dropped_refused + $2, \
                 dropped_pictures = dropped_pictures + $3, picture_bytes = picture_bytes - $4 WHERE device = $5 AND epoch = $6",
            )
            .bind(drop.labels)
            .bind(drop.refused)
            .bind(drop.pictures)
            .bind(drop.bytes)
            .bind(*device)
            .bind(*epoch)
            .execute(&mut *db)
            .await
            .map_err(self.sql("count"))?;
            gone.labels += drop.labels.cast_unsigned();
            gone.pictures += drop.pictures.cast_unsigned();
            gone.bytes += drop.bytes.cast_unsigned();
        }
        Ok(gone)
    }
}
