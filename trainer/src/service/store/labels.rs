//! Labels of a batch in few statements.

use super::intake::{Committed, LabelRow, Outboxes, ROWS};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use std::collections::HashMap;

/// Stores each label under its key, the first of several; what was there already is counted, and compared.
pub(super) async fn store<'a>(
    db: &mut SqliteConnection,
    rows: &[(&'a str, &LabelRow)],
    now: i64,
    outboxes: &mut Outboxes<'a>,
    done: &mut Committed,
) -> Result<(), sqlx::Error> {
    for chunk in rows.chunks(ROWS) {
        let mut fresh = insert(&mut *db, chunk, now).await?;
        for &(device, row) in chunk {
            let key = (row.key.epoch.cast_signed(), row.key.sequence.cast_signed());
            let outbox = outboxes.entry((device, key.0)).or_default();
            outbox.touched.insert(row.key.sequence);
            // The first one under a key is the one that was stored; a second one in the same batch finds it taken.
            if let Some(settled) = fresh.get_mut(device).and_then(|of| of.remove(&key)) {
                done.stored += 1;
                outbox.account.stored += 1;
                outbox.account.refused += i64::from(row.refused.is_some());
                if settled {
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

/// By device: epoch and sequence of what is new, and whether it is settled.
type Fresh = HashMap<String, HashMap<(i64, i64), bool>>;

async fn insert(db: &mut SqliteConnection, rows: &[(&str, &LabelRow)], now: i64) -> Result<Fresh, sqlx::Error> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT OR IGNORE INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, \
         refused, payload, settled) SELECT v.*, NOT v.column10 OR EXISTS (SELECT 1 FROM frames f WHERE f.device = v.column1 \
         AND f.epoch = v.column2 AND f.sequence = v.column3) FROM (",
    );
    query.push_values(rows, |mut values, (device, row)| {
        values
            .push_bind(*device)
            .push_bind(row.key.epoch.cast_signed())
            .push_bind(row.key.sequence.cast_signed())
            .push_bind(row.frame.cast_signed())
            .push_bind(now)
            .push_bind(row.captured_ms.cast_signed())
            .push_bind(row.model.cast_signed())
            .push_bind(row.instances)
            .push_bind(row.kept)
            .push_bind(row.wants_frame)
            .push_bind(row.refused.as_deref())
            .push_bind(row.payload.as_slice());
    });
    // `WHERE true` tells SQLite that what follows is not a join.
    query.push(") v WHERE true RETURNING device, epoch, sequence, settled");
    let found: Vec<(String, i64, i64, bool)> = query.build_query_as().persistent(false).fetch_all(db).await?;
    let mut fresh = Fresh::new();
    for (device, epoch, sequence, settled) in found {
        fresh.entry(device).or_default().insert((epoch, sequence), settled);
    }
    Ok(fresh)
}

async fn is_same(db: &mut SqliteConnection, device: &str, row: &LabelRow) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT payload = ? FROM labels WHERE device = ? AND epoch = ? AND sequence = ?")
        .bind(&row.payload)
        .bind(device)
        .bind(row.key.epoch.cast_signed())
        .bind(row.key.sequence.cast_signed())
        .fetch_one(db)
        .await
}
