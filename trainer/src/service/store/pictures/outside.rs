//! What the database says of pictures that lie in the object store. `frames.outside` has the number of a picture's bytes, `frames.jpeg`
//! is empty, and `frames.sha256` is its name.

use super::{Listed, Name, Pictures};
use crate::service::store::audit::StoredLabel;
use crate::service::store::intake::Record;
use crate::service::store::{Store, StoreError, meta, postgres, set_meta};
use omnilabel_bundle::hex;
use omnilabel_keypoints::wire::LabelKey;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::AnyConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Changes when pictures are deleted, and is odd as long as some may be: what was put meanwhile is put again by the commit that needs it. Who
/// deletes and does not come to the end leaves it odd, until somebody else does.
const DELETIONS: &str = "picture_deletions";
/// Pictures of one transaction that deletes; commits wait for it.
const DELETED_AT_ONCE: usize = 64;
/// How long it may take: SQLite's commits wait for 30 s, and PostgreSQL ends a transaction in which nothing is said for 60 s.
const DELETE: Duration = Duration::from_secs(20);
/// Names that are listed of a kind; all are counted.
const LISTED: usize = 100;

/// What the database and the object store have that the other one has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Pictures that the database refers to.
    pub referred: u64,
    /// Of these, how many are not in the object store.
    pub missing: u64,
    /// The first of these, by their SHA-256.
    pub missing_names: Vec<String>,
    /// Objects that nothing refers to: of commits that failed, and of pictures that were dropped.
    pub orphans: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// The first of these, by their SHA-256.
    pub orphan_names: Vec<String>,
    /// Of the orphans, how many were deleted.
    pub deleted: u64,
}

/// The pictures of a batch that are kept, by their names.
fn named(records: &[(String, Record)]) -> BTreeMap<Name, &[u8]> {
    let kept = records.iter().filter_map(|(_, record)| match record {
        Record::Frame { refused: None, jpeg, .. } if !jpeg.is_empty() => Some(jpeg.as_slice()),
        _ => None,
    });
    kept.map(|jpeg| (Sha256::digest(jpeg).into(), jpeg)).collect()
}

impl Store {
    /// Puts the pictures of a batch into the object store, and says how often pictures had been deleted before; `None` where there is
    /// nothing to be put.
    pub(in crate::service::store) async fn put_pictures(&self, records: &[(String, Record)]) -> Result<Option<i64>, StoreError> {
        let Some(pictures) = &self.pictures else { return Ok(None) };
        let named = named(records);
        if named.is_empty() {
            return Ok(None);
        }
        let deletions = self.meta(DELETIONS).await?.unwrap_or(0);
        pictures.put(&named, deletions).await?;
        Ok(Some(deletions))
    }

    /// Sees to it, within a commit, that what was put for it is certainly there: nobody deletes until it ends.
    pub(in crate::service::store) async fn still_there(
        &self,
        db: &mut AnyConnection,
        records: &[(String, Record)],
        put: Option<i64>,
    ) -> Result<(), StoreError> {
        let (Some(before), Some(pictures)) = (put, &self.pictures) else { return Ok(()) };
        let deletions = meta(db, DELETIONS).await.map_err(self.sql("read meta"))?.unwrap_or(0);
        if deletions == before && deletions % 2 == 0 {
            return Ok(());
        }
        // Not by trying the commit again: where much is deleted, it would never come between two deletions.
        pictures.committed();
        let slow = |_| pictures.failed("put pictures again", format!("not through after {} s", DELETE.as_secs()));
        tokio::time::timeout(DELETE, pictures.put(&named(records), deletions)).await.map_err(slow)?
    }

    /// The commit that pictures were put for is through.
    pub(in crate::service::store) fn pictures_committed(&self) {
        if let Some(pictures) = &self.pictures {
            pictures.committed();
        }
    }

    fn need_pictures(&self) -> Result<&Pictures, StoreError> {
        let none = "pictures of this database lie in an object store, and `store.pictures` names none";
        self.pictures.as_deref().ok_or_else(|| self.content(none.to_owned()))
    }

    /// Says before anything is collected what is wrong with the object store's configuration; none is an error where pictures lie in one.
    pub(in crate::service::store) async fn check_pictures(&self) -> Result<(), StoreError> {
        if let Some(pictures) = &self.pictures {
            return pictures.client().map(drop);
        }
        if self.outside().await? == 0 { Ok(()) } else { self.need_pictures().map(drop) }
    }

    /// Where pictures go that are not in the database, for people.
    pub fn pictures_place(&self) -> Option<String> {
        self.pictures.as_ref().map(|pictures| pictures.url.to_string())
    }

    /// How many different pictures the database refers to that lie in the object store.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn outside(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(DISTINCT sha256) FROM frames WHERE outside IS NOT NULL AND jpeg IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("count pictures"))?;
        Ok(count.cast_unsigned())
    }

    /// Fetches pictures by the names that the database has for them.
    async fn fetch(&self, names: &[&[u8]]) -> Result<Vec<Result<Vec<u8>, String>>, StoreError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let named = |name: &&[u8]| Name::try_from(*name).map_err(|_| self.content(format!("a picture's SHA-256 has {} bytes", name.len())));
        let names = names.iter().map(named).collect::<Result<Vec<Name>, _>>()?;
        self.need_pictures()?.get(&names).await
    }

    /// Puts the pictures that lie outside into their rows, or says why one of them is not there.
    pub(in crate::service::store) async fn fetch_rows(&self, rows: &mut [StoredLabel]) -> Result<(), StoreError> {
        let mut outside: Vec<&mut StoredLabel> = rows.iter_mut().filter(|row| row.outside.is_some() && row.jpeg.is_some()).collect();
        let names: Vec<&[u8]> = outside.iter().map(|row| row.sha256.as_deref().unwrap_or_default()).collect();
        let found = self.fetch(&names).await?;
        for (row, picture) in outside.iter_mut().zip(found) {
            match picture {
                Ok(jpeg) => row.jpeg = Some(jpeg),
                Err(lost) => {
                    // Retention may have dropped it since its row was read.
                    let mut db = self.acquire().await?;
                    let is_lost = self.is_referred(&mut db, row.sha256.as_deref().unwrap_or_default()).await?;
                    (row.jpeg, row.lost) = (None, is_lost.then_some(lost));
                }
            }
        }
        Ok(())
    }

    /// The pictures of some labels in their order, or of one why it is not there. Those of the object store are fetched some at once.
    ///
    /// # Errors
    /// See [`StoreError`]; a label without a picture is an error.
    pub async fn jpegs(&self, of: &[(&str, LabelKey)]) -> Result<Vec<Result<Vec<u8>, String>>, StoreError> {
        let mut rows = Vec::with_capacity(of.len());
        for (device, key) in of {
            let sql = "SELECT sha256, jpeg, outside FROM frames WHERE device = $1 AND epoch = $2 AND sequence = $3 AND jpeg IS NOT NULL";
            let row: (Vec<u8>, Vec<u8>, Option<i64>) = sqlx::query_as(sql)
                .bind(*device)
                .bind(key.epoch.cast_signed())
                .bind(key.sequence.cast_signed())
                .fetch_one(&self.pool)
                .await
                .map_err(self.sql("read a frame"))?;
            rows.push(row);
        }
        let names: Vec<&[u8]> = rows.iter().filter(|(.., outside)| outside.is_some()).map(|(name, ..)| name.as_slice()).collect();
        let mut fetched = self.fetch(&names).await?.into_iter();
        let whole = |(_, jpeg, outside): (_, Vec<u8>, Option<i64>)| if outside.is_some() { fetched.next() } else { Some(Ok(jpeg)) };
        Ok(rows.into_iter().filter_map(whole).collect())
    }

    /// The picture of the label with a number, where it is here.
    ///
    /// # Errors
    /// See [`StoreError`]; so is a picture that should be in the object store and is not.
    pub async fn picture(&self, id: i64) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT f.sha256, f.jpeg, f.outside FROM labels l JOIN frames f USING (device, epoch, sequence) \
                   WHERE l.id = $1 AND f.jpeg IS NOT NULL";
        let found: Option<(Vec<u8>, Vec<u8>, Option<i64>)> =
            sqlx::query_as(sql).bind(id).fetch_optional(&self.pool).await.map_err(self.sql("read a frame"))?;
        match found {
            Some((name, _, Some(_))) => match self.fetch(&[name.as_slice()]).await?.pop() {
                Some(Err(lost)) => Err(self.content(format!("the picture of label {id}: {lost}"))),
                other => Ok(other.and_then(Result::ok)),
            },
            other => Ok(other.map(|(_, jpeg, _)| jpeg)),
        }
    }

    /// Compares what the database refers to with what the object store has, without fetching any picture. An object that was put after
    /// `before_ms` (Unix ms, by the store's clock) is no orphan yet: its commit may be under way. With `delete` orphans are deleted. All
    /// zeros where no object store is used.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn compare_pictures(&self, before_ms: u64, delete: bool) -> Result<Compared, StoreError> {
        let mut compared = Compared::default();
        let Some(pictures) = &self.pictures else { return Ok(compared) };
        // A 256th of both is in memory at a time.
        for first in 0..=u8::MAX {
            // In this order: what a commit refers to was put before it.
            let referred = self.referred(first).await?;
            let listed = pictures.list(first).await?;
            compared.referred += referred.len() as u64;
            for name in referred.iter().filter(|name| !listed.contains_key(*name)) {
                // Retention may have dropped it meanwhile.
                if self.is_referred(&mut *self.acquire().await?, name).await? {
                    compared.missing += 1;
                    if compared.missing_names.len() < LISTED {
                        compared.missing_names.push(hex(name));
                    }
                }
            }
            let is_orphan = |(name, object): &(&Name, &Listed)| !referred.contains(*name) && object.put_ms < before_ms.cast_signed();
            let orphans: Vec<(&Name, &Listed)> = listed.iter().filter(is_orphan).collect();
            for (name, object) in &orphans {
                compared.orphans += 1;
                compared.orphan_bytes += object.bytes;
                if compared.orphan_names.len() < LISTED {
                    compared.orphan_names.push(hex(*name));
                }
            }
            if delete {
                let names: Vec<Vec<u8>> = orphans.iter().map(|(name, _)| name.to_vec()).collect();
                compared.deleted += self.delete_pictures(&names).await?;
            }
        }
        Ok(compared)
    }

    /// What the database refers to of the pictures whose names begin with one byte.
    async fn referred(&self, first: u8) -> Result<BTreeSet<Name>, StoreError> {
        let (least, most) = ([&[first][..], &[0; 31]].concat(), [&[first][..], &[u8::MAX; 31]].concat());
        let sql = "SELECT DISTINCT sha256 FROM frames WHERE sha256 >= $1 AND sha256 <= $2 AND outside IS NOT NULL AND jpeg IS NOT NULL";
        let found: Vec<Vec<u8>> =
            sqlx::query_scalar(sql).bind(least).bind(most).fetch_all(&self.pool).await.map_err(self.sql("read frames"))?;
        Ok(found.into_iter().filter_map(|name| Name::try_from(name).ok()).collect())
    }

    async fn is_referred(&self, db: &mut AnyConnection, name: &[u8]) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) FROM frames WHERE sha256 = $1 AND outside IS NOT NULL AND jpeg IS NOT NULL";
        let count: i64 = sqlx::query_scalar(sql).bind(name).fetch_one(db).await.map_err(self.sql("read frames"))?;
        Ok(count > 0)
    }

    /// Deletes those of some pictures, by their SHA-256, from the object store that no row refers to; how many. Who drops pictures takes
    /// them from their rows first, and calls this after that commit: if it does not come to that, they are orphans, which
    /// [`Store::compare_pictures`] finds. Without an object store, nothing is done.
    ///
    /// Nobody commits while some are deleted, and a commit that had put its pictures before puts them again: so no picture of a label that
    /// is acknowledged is deleted, even when an equal one is dropped at the same time.
    ///
    /// # Errors
    /// See [`StoreError`]; then some may be deleted, and the rest may be tried again.
    pub async fn delete_pictures(&self, names: &[Vec<u8>]) -> Result<u64, StoreError> {
        let Some(pictures) = &self.pictures else { return Ok(0) };
        let mut deleted = 0;
        for some in names.chunks(DELETED_AT_ONCE) {
            // Twice: that pictures are about to be deleted is committed before any is.
            while let Some(done) = self.delete_some(pictures, some).await? {
                deleted += done;
                if done > 0 {
                    break;
                }
            }
        }
        Ok(deleted)
    }

    /// Says that some pictures are about to be deleted (0), or, once that is said, deletes them; `None` where there is nothing to delete.
    async fn delete_some(&self, pictures: &Pictures, some: &[Vec<u8>]) -> Result<Option<u64>, StoreError> {
        let mut tx = self.write().await?;
        if self.is_shared() {
            postgres::enter_alone(&mut tx).await.map_err(self.sql("lock commits out"))?;
        }
        let mut orphans = BTreeSet::new();
        for name in some {
            if let Ok(known) = Name::try_from(name.as_slice())
                && !self.is_referred(&mut tx, name).await?
            {
                orphans.insert(known);
            }
        }
        let orphans: Vec<Name> = orphans.into_iter().collect();
        let deletions = meta(&mut tx, DELETIONS).await.map_err(self.sql("read meta"))?.unwrap_or(0);
        let said = deletions % 2 != 0;
        if orphans.is_empty() && !said {
            return Ok(None);
        }
        if said && !orphans.is_empty() {
            let slow = |_| pictures.failed("delete pictures", format!("not through after {} s", DELETE.as_secs()));
            tokio::time::timeout(DELETE, pictures.delete(&orphans)).await.map_err(slow)??;
        }
        set_meta(&mut tx, DELETIONS, deletions + 1).await.map_err(self.sql("write meta"))?;
        tx.commit().await.map_err(self.sql("commit"))?;
        if orphans.is_empty() {
            return Ok(None);
        }
        Ok(Some(if said { orphans.len() as u64 } else { 0 }))
    }
}
