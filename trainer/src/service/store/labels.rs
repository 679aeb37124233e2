//! Labels of a batch in few statements.

use super::intake::{Committed, LabelRow, Outboxes, ROWS};
use super::runs::is_settled;
use super::{Store, sql};
use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeSet, HashMap};

/// Labels that are settled as soon as their frame is here, and frames that may settle one: device, epoch, sequence.
pub(super) type Waiting<'a> = BTreeSet<(&'a str, i64, i64)>;

impl Store {
    /// Stores each label under its key, the first of several; what was there already is counted, and compared.
    pub(super) async fn store_labels<'a>(
        &self,
        db: &mut AnyConnection,
        rows: &[(&'a str, &LabelRow)],
        now: i64,
        outboxes: &mut Outboxes<'a>,
        waiting: &mut Waiting<'a>,
        done: &mut Committed,
    ) -> Result<(), sqlx::Error> {
        for chunk in rows.chunks(ROWS) {
            let mut fresh = self.insert_labels(&mut *db, chunk, now).await?;
            for &(device, row) in chunk {
                let key = (row.key.epoch.cast_signed(), row.key.sequence.cast_signed());
                let outbox = outboxes.entry((device, key.0)).or_default();
                outbox.touched.insert(row.key.sequence);
                // The first one under a key is the one that was stored; a second one in the same batch finds it taken.
                if fresh.get_mut(device).is_some_and(|of| of.remove(&key)) {
                    done.stored += 1;
                    outbox.account.stored += 1;
                    outbox.account.refused += i64::from(row.refused.is_some());
                    if row.wants_frame {
                        waiting.insert((device, key.0, key.1));
                    } else {
                        outbox.settled.insert(key.1);
                    }
                    continue;
                }
                let same = is_same(&mut *db, device, row).await?;
                done.repeated += 1;
                outbox.account.duplicates += 1;
                if !same {
                    outbox.account.conflicts += 1;
                    done.conflicts.push((device.to_owned(), row.key));
                }
            }
        }
        Ok(())
    }

    async fn insert_labels(&self, db: &mut AnyConnection, rows: &[(&str, &LabelRow)], now: i64) -> Result<Fresh, sqlx::Error> {
        // What was settled and is not here any more was dropped by retention, and is not stored again. The last column keeps the order,
        // whatever way the database goes through them.
        let sql = format!(
            "INSERT INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, settled, \
             refused, payload) SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7, v.column8, v.column9, \
             v.column10, v.column11, v.column12, v.column13 FROM (VALUES {}) v WHERE NOT {} ORDER BY v.column14 \
             ON CONFLICT (device, epoch, sequence) DO NOTHING RETURNING device, epoch, sequence",
            self.values(rows.len(), 14),
            is_settled("v.column1", "v.column2", "v.column3")
        );
        let mut query = sqlx::query_as(AssertSqlSafe(sql));
        for (at, (device, row)) in rows.iter().enumerate() {
            query = query
                .bind(*device)
                .bind(row.key.epoch.cast_signed())
                .bind(row.key.sequence.cast_signed())
                .bind(row.frame.cast_signed())
                .bind(now)
                .bind(row.captured_ms.cast_signed())
                .bind(row.model.cast_signed())
                .bind(i64::from(row.instances))
                .bind(i64::from(row.kept))
                .bind(i64::from(row.wants_frame))
                .bind(i64::from(!row.wants_frame))
                .bind(row.refused.as_deref().map(sql::text).map(std::borrow::Cow::into_owned))
                .bind(row.payload.as_slice())
                .bind(at as i64);
        }
        let found: Vec<(String, i64, i64)> = query.persistent(false).fetch_all(db).await?;
        let mut fresh = Fresh::new();
        for (device, epoch, sequence) in found {
            fresh.entry(device).or_default().insert((epoch, sequence));
        }
        Ok(fresh)
    }

    /// Settles those labels that waited for their frame and whose frame is here.
    pub(super) async fn settle<'a>(
        &self,
        db: &mut AnyConnection,
        waiting: &Waiting<'a>,
        outboxes: &mut Outboxes<'a>,
    ) -> Result<(), sqlx::Error> {
        let waiting: Vec<_> = waiting.iter().copied().collect();
        for chunk in waiting.chunks(ROWS) {
            let sql = format!(
                "UPDATE labels SET settled = 1 FROM (VALUES {}) v WHERE labels.device = v.column1 AND labels.epoch = v.column2 \
                 AND labels.sequence = v.column3 AND labels.settled = 0 AND EXISTS (SELECT 1 FROM frames f WHERE f.device = labels.device \
                 AND f.epoch = labels.epoch AND f.sequence = labels.sequence) RETURNING device, epoch, sequence",
                self.values(chunk.len(), 3)
            );
            let mut query = sqlx::query_as(AssertSqlSafe(sql));
            for (device, epoch, sequence) in chunk {
                query = query.bind(*device).bind(*epoch).bind(*sequence);
            }
            let settled: Vec<(String, i64, i64)> = query.persistent(false).fetch_all(&mut *db).await?;
            for (device, epoch, sequence) in settled {
                // The names of the batch live longer than those of the answer.
                if let Some(&(device, ..)) = chunk.iter().find(|one| one.0 == device) {
                    outboxes.entry((device, epoch)).or_default().settled.insert(sequence);
                }
            }
        }
        Ok(())
    }
}

/// By device: epoch and sequence of what is new.
type Fresh = HashMap<String, BTreeSet<(i64, i64)>>;

/// Whether a label that came again has the bytes that are stored; of one that retention has dropped nobody can tell.
async fn is_same(db: &mut AnyConnection, device: &str, row: &LabelRow) -> Result<bool, sqlx::Error> {
    let sql = "SELECT payload FROM labels WHERE device = $1 AND epoch = $2 AND sequence = $3";
    let query = sqlx::query_scalar(sql).bind(device).bind(row.key.epoch.cast_signed()).bind(row.key.sequence.cast_signed());
    let stored: Option<Vec<u8>> = query.fetch_optional(db).await?;
    Ok(stored.is_none_or(|stored| stored == row.payload))
}
