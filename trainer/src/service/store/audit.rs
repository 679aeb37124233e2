//! Reads everything that is stored, in pages, for checks and exports.

use super::{Store, StoreError};
use omnilabel_keypoints::wire::LabelKey;
use std::collections::BTreeMap;

/// One label with what is stored beside it.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct StoredLabel {
    /// In the order of arrival.
    pub id: i64,
    /// Who sent it.
    pub device: String,
    epoch: i64,
    sequence: i64,
    model: i64,
    /// Instances, by the column.
    pub instances: i64,
    /// When it came, Unix ms.
    pub received_ms: i64,
    /// The message as it came.
    pub payload: Vec<u8>,
    /// Why it is not trained on.
    pub refused: Option<String>,
    /// SHA-256 of the picture as it came; `None` where none has come.
    pub sha256: Option<Vec<u8>>,
    /// The picture; `None` where it is not kept.
    pub jpeg: Option<Vec<u8>>,
    /// What a person said of it, unless it was taken back.
    pub verdict: Option<String>,
    /// Whom the picture shows, by that person, as JSON.
    pub people: Option<String>,
    /// The version of that word.
    pub version: Option<i64>,
    /// When it was said, Unix ms.
    pub at_ms: Option<i64>,
    /// Bytes of a picture that lies in the object store, and not in `jpeg` until it is fetched.
    pub(super) outside: Option<i64>,
    /// Why a picture that is kept could not be fetched.
    #[sqlx(skip)]
    pub lost: Option<String>,
}

impl StoredLabel {
    /// Its key.
    pub const fn key(&self) -> LabelKey {
        LabelKey { epoch: self.epoch.cast_unsigned(), sequence: self.sequence.cast_unsigned() }
    }

    /// Counter of the release whose model made it.
    pub const fn model(&self) -> u64 {
        self.model.cast_unsigned()
    }
}

/// Which labels are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// Of this device only.
    pub device: Option<String>,
    /// By this model only.
    pub model: Option<u64>,
}

/// Labels of one page: with the largest pictures, 128 MiB.
const PAGE: u32 = 64;

/// Of one outbox: stored, settled, refused labels, kept pictures and their bytes.
type Numbers = [i64; 5];

impl Store {
    /// Looks at every label in the order of arrival, with its picture; a few are in memory at a time.
    ///
    /// # Errors
    /// See [`StoreError`], and what `look` says, which ends it.
    pub async fn each<E: From<StoreError>>(&self, which: &Which, look: impl FnMut(StoredLabel) -> Result<(), E>) -> Result<(), E> {
        self.pages(which, true, look).await
    }

    /// The same without fetching pictures from the object store: `jpeg` only tells whether one is kept.
    ///
    /// # Errors
    /// See [`StoreError`], and what `look` says, which ends it.
    pub async fn each_row<E: From<StoreError>>(&self, which: &Which, look: impl FnMut(StoredLabel) -> Result<(), E>) -> Result<(), E> {
        self.pages(which, false, look).await
    }

    async fn pages<E: From<StoreError>>(
        &self,
        which: &Which,
        fetch: bool,
        mut look: impl FnMut(StoredLabel) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = 0;
        loop {
            let mut page = self.page(which, after).await?;
            if fetch {
                self.fetch_rows(&mut page).await?;
            }
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            page.into_iter().try_for_each(&mut look)?;
        }
    }

    async fn page(&self, which: &Which, after: i64) -> Result<Vec<StoredLabel>, StoreError> {
        sqlx::query_as(
            "SELECT l.id, l.device, l.epoch, l.sequence, l.model, l.instances, l.received_ms, l.payload, l.refused, f.sha256, f.jpeg, \
             f.outside, v.verdict, v.people, v.version, v.at_ms FROM labels l LEFT JOIN frames f USING (device, epoch, sequence) \
             LEFT JOIN verdicts v ON v.label = l.id AND v.version = (SELECT max(w.version) FROM verdicts w WHERE w.label = l.id) \
             WHERE l.id > $1 AND ($2 IS NULL OR l.device = $2) AND ($3 IS NULL OR l.model = $3) ORDER BY l.id LIMIT $4",
        )
        .bind(after)
        .bind(which.device.as_deref())
        .bind(which.model.map(u64::cast_signed))
        .bind(i64::from(PAGE))
        .fetch_all(&self.pool)
        .await
        .map_err(self.sql("read labels"))
    }

    /// What is counted otherwise than it is stored, one sentence each; nothing when all is well. Reads every row.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn recount(&self) -> Result<Vec<String>, StoreError> {
        type Rows = Vec<(String, i64, i64, i64, i64, i64, i64)>;
        // One moment for all: the centre may be running.
        let mut tx = self.read().await?;
        let read = |sql: &'static str| sqlx::query_as(sql);
        let counted: Rows =
            read("SELECT device, epoch, stored, settled, refused, frames, picture_bytes FROM epochs ORDER BY device, epoch")
                .fetch_all(&mut *tx)
                .await
                .map_err(self.sql("read accounts"))?;
        // What retention has dropped was stored, and settled, and is counted so still.
        let dropped: Rows =
            read("SELECT device, epoch, dropped, dropped, dropped_refused, dropped_pictures, 0 FROM epochs ORDER BY device, epoch")
                .fetch_all(&mut *tx)
                .await
                .map_err(self.sql("read accounts"))?;
        let labels: Rows = read(
            "SELECT device, epoch, count(*), CAST(sum(settled) AS BIGINT), count(refused), 0, 0 FROM labels \
             GROUP BY device, epoch ORDER BY device, epoch",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(self.sql("count labels"))?;
        let frames: Rows = read(
            "SELECT device, epoch, 0, 0, 0, count(jpeg), CAST(coalesce(sum(CASE WHEN jpeg IS NULL THEN 0 ELSE coalesce(outside, length(jpeg)) END), 0) AS BIGINT) FROM frames \
             GROUP BY device, epoch ORDER BY device, epoch",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(self.sql("count frames"))?;
        let settled: Rows = read(
            "SELECT device, epoch, 0, CAST(sum(last - first + 1) AS BIGINT), 0, 0, 0 FROM runs \
             GROUP BY device, epoch ORDER BY device, epoch",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(self.sql("count runs"))?;
        // Of a database from before they were compared.
        let others: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT f.device, f.epoch, count(*) FROM frames f JOIN labels l USING (device, epoch, sequence) \
             WHERE f.jpeg IS NOT NULL AND f.frame <> l.frame GROUP BY f.device, f.epoch ORDER BY f.device, f.epoch",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(self.sql("compare frames"))?;
        drop(tx);
        let numbers = |rows: Rows| {
            let mut sums: BTreeMap<(String, i64), Numbers> = BTreeMap::new();
            for (device, epoch, stored, settled, refused, frames, bytes) in rows {
                let sum = sums.entry((device, epoch)).or_default();
                *sum = [sum[0] + stored, sum[1] + settled, sum[2] + refused, sum[3] + frames, sum[4] + bytes];
            }
            sums
        };
        let (counted, acknowledged) = (numbers(counted), numbers(settled));
        let found = numbers(labels.into_iter().chain(frames).chain(dropped).collect());
        let other = |(device, epoch, pictures): (String, i64, i64)| {
            format!("{device}, outbox {epoch:016x}: {pictures} pictures are of another frame than their label")
        };
        let mut wrong: Vec<String> = others.into_iter().map(other).collect();
        for key in counted.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>() {
            let of = |sums: &BTreeMap<(String, i64), Numbers>| sums.get(key).copied().unwrap_or_default();
            let (counted, found, acknowledged) = (of(&counted), of(&found), of(&acknowledged));
            let outbox = format!("{}, outbox {:016x}", key.0, key.1);
            for (at, what) in ["labels stored", "labels settled", "labels refused", "pictures", "bytes of pictures"].into_iter().enumerate()
            {
                if counted[at] != found[at] {
                    wrong.push(format!("{outbox}: {} {what} are counted, {} are there", counted[at], found[at]));
                }
            }
            if acknowledged[1] != found[1] {
                wrong.push(format!("{outbox}: {} labels are acknowledged, {} are there", acknowledged[1], found[1]));
            }
        }
        Ok(wrong)
    }
}
