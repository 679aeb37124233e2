//! Labels of a batch in few statements.

use super::intake::{Committed, LabelRow, Outboxes, ROWS, RefusedFrame};
use super::runs::is_settled;
use super::{Store, sql};
use omnilabel_keypoints::wire::LabelKey;
use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeSet, HashMap};

/// Labels that are settled as soon as their frame is here, and frames that may settle one: device, epoch, sequence.
pub(super) type Waiting<'a> = BTreeSet<(&'a str, i64, i64)>;

/// Of a batch, what has to be looked at once all of it is stored.
#[derive(Default)]
pub(super) struct Pending<'a> {
    /// What its frame may settle.
    pub(super) waiting: Waiting<'a>,
    /// Labels that announce no picture: one may be here that is of another frame all the same.
    pub(super) bare: Waiting<'a>,
}

impl Store {
    /// Stores each label under its key, the first of several; what was there already is counted, and compared.
    pub(super) async fn store_labels<'a>(
        &self,
        db: &mut AnyConnection,
        rows: &[(&'a str, &LabelRow)],
        now: i64,
        outboxes: &mut Outboxes<'a>,
        pending: &mut Pending<'a>,
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
                    outbox.account.refused += i64::from(row.refusal(now).is_some());
                    if row.wants_frame {
                        pending.waiting.insert((device, key.0, key.1));
                    } else {
                        pending.bare.insert((device, key.0, key.1));
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
                .bind(row.refusal(now).map(|reason| sql::text(&reason).into_owned()))
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

    /// Settles those labels that waited for their frame and whose frame is here, with or without a picture that is kept.
    pub(super) async fn settle<'a>(
        &self,
        db: &mut AnyConnection,
        pending: &Pending<'a>,
        outboxes: &mut Outboxes<'a>,
        done: &mut Committed,
    ) -> Result<(), sqlx::Error> {
        let all: Vec<_> = pending.waiting.union(&pending.bare).copied().collect();
        for chunk in all.chunks(ROWS) {
            self.refuse_others(&mut *db, chunk, outboxes, done).await?;
        }
        let waiting: Vec<_> = pending.waiting.iter().copied().collect();
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

    /// Keeps no picture whose header names another frame than its label does, whichever of the two came first: people seen on one frame are
    /// none on another one.
    ///
    /// With PostgreSQL the devices are locked. Only retention can have such a picture's row meanwhile, one that waited for its label until
    /// it was too old; then the server ends one of the two transactions, and it is tried again.
    async fn refuse_others<'a>(
        &self,
        db: &mut AnyConnection,
        chunk: &[(&'a str, i64, i64)],
        outboxes: &mut Outboxes<'a>,
        done: &mut Committed,
    ) -> Result<(), sqlx::Error> {
        // SQLite takes the tables of a cross join in this order.
        let sql = format!(
            "SELECT f.device, f.epoch, f.sequence, f.frame, l.frame AS announced, \
             CAST(coalesce(f.outside, length(f.jpeg)) AS BIGINT) AS bytes, \
             CASE WHEN f.outside IS NULL THEN NULL ELSE f.sha256 END AS outside FROM (VALUES {}) v CROSS JOIN frames f CROSS JOIN labels l \
             WHERE f.device = v.column1 AND f.epoch = v.column2 AND f.sequence = v.column3 AND l.device = f.device AND l.epoch = f.epoch \
             AND l.sequence = f.sequence AND l.frame <> f.frame AND f.jpeg IS NOT NULL",
            self.values(chunk.len(), 3)
        );
        let mut query = sqlx::query_as(AssertSqlSafe(sql));
        for (device, epoch, sequence) in chunk {
            query = query.bind(*device).bind(*epoch).bind(*sequence);
        }
        let others: Vec<OtherFrame> = query.persistent(false).fetch_all(&mut *db).await?;
        for (device, epoch, sequence, frame, announced, bytes, outside) in others {
            // The names of the batch live longer than those of the answer.
            let Some(&(device, ..)) = chunk.iter().find(|one| one.0 == device) else { continue };
            let (frame, announced) = (frame.cast_unsigned(), announced.cast_unsigned());
            let reason = format!("it is of frame {frame}, its label of frame {announced}");
            let sql = "UPDATE frames SET jpeg = NULL, outside = NULL, refused = $1 \
                       WHERE device = $2 AND epoch = $3 AND sequence = $4 AND jpeg IS NOT NULL";
            let query = sqlx::query(sql).bind(reason.as_str()).bind(device).bind(epoch).bind(sequence);
            let pictures = query.execute(&mut *db).await?.rows_affected().cast_signed();
            done.orphans.extend(outside);
            let account = &mut outboxes.entry((device, epoch)).or_default().account;
            account.frames -= pictures;
            account.picture_bytes -= pictures * bytes;
            let key = LabelKey { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() };
            done.refused.push(RefusedFrame { device: device.to_owned(), key, bytes: bytes.cast_unsigned() as usize, reason });
        }
        Ok(())
    }
}

/// A picture of another frame: its key, the frame that it is of and the label's, its bytes, and its name where it lies in the object store.
type OtherFrame = (String, i64, i64, i64, i64, i64, Option<Vec<u8>>);

/// By device: epoch and sequence of what is new.
type Fresh = HashMap<String, BTreeSet<(i64, i64)>>;

/// Whether a label that came again has the bytes that are stored; of one that retention has dropped nobody can tell.
async fn is_same(db: &mut AnyConnection, device: &str, row: &LabelRow) -> Result<bool, sqlx::Error> {
    let sql = "SELECT payload FROM labels WHERE device = $1 AND epoch = $2 AND sequence = $3";
    let query = sqlx::query_scalar(sql).bind(device).bind(row.key.epoch.cast_signed()).bind(row.key.sequence.cast_signed());
    let stored: Option<Vec<u8>> = query.fetch_optional(db).await?;
    Ok(stored.is_none_or(|stored| stored == row.payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::intake::{EVICTED, Record};
    use crate::service::store::tests;
    use crate::service::testing::{Home, on_both};

    on_both! {
        a_label_of_the_future_is_kept_and_acknowledged_and_not_trained_on,
        a_picture_of_another_frame_than_its_label_is_refused_whichever_comes_first,
    }

    /// Its frame has the label's own number.
    fn label(sequence: u64, wants_frame: bool, captured_ms: u64) -> (String, Record) {
        let (device, mut record) = tests::label(sequence, wants_frame);
        if let Record::Label(row) = &mut record {
            row.captured_ms = captured_ms;
        }
        (device, record)
    }

    fn picture(sequence: u64, of: u64) -> (String, Record) {
        let (device, mut record) = tests::frame(sequence);
        if let Record::Frame { frame, .. } = &mut record {
            *frame = of;
        }
        (device, record)
    }

    /// Up to where everything is acknowledged.
    async fn watermark(store: &Store, done: &Committed) -> u64 {
        store.acks(&done.touched[0]).await.unwrap()[0].watermark
    }

    async fn a_label_of_the_future_is_kept_and_acknowledged_and_not_trained_on(home: Home) {
        const NOW: u64 = 1_800_000_000_000;
        const DAY: u64 = 86_400_000;
        let store = Store::open(home.place(), false).await.unwrap();
        // Without a clock; 90 s after a start without the time; from an outbox that waited; with a clock that is a little ahead.
        let good = [0, 90_000, NOW - 400 * DAY, NOW, NOW + DAY];
        let wrong = [NOW + DAY + 1, NOW + 366 * DAY, u64::MAX >> 1];
        let of = |(at, captured_ms): (usize, &u64)| label(at as u64 + 1, false, *captured_ms);
        let records: Vec<_> = good.iter().chain(&wrong).enumerate().map(of).collect();
        let done = store.commit(&records, NOW).await.unwrap();
        assert_eq!((done.stored, watermark(&store, &done).await), (8, 8), "no device sends them for ever");
        let sql = "SELECT refused FROM labels ORDER BY sequence";
        let refused: Vec<Option<String>> = sqlx::query_scalar(sql).fetch_all(store.pool()).await.unwrap();
        assert!(refused[..good.len()].iter().all(Option::is_none), "{refused:?}");
        for why in &refused[good.len()..] {
            assert!(why.as_ref().is_some_and(|why| why.contains("captured in the future")), "{refused:?}");
        }
        assert!(refused[6].as_ref().unwrap().contains("8784 h ahead of the centre's clock"), "{refused:?}");

        // They come again, when some of them are of the future no more.
        let again = store.commit(&records, NOW + 30 * DAY).await.unwrap();
        assert_eq!((again.stored, again.repeated, again.conflicts.len()), (0, 8, 0));
        // A centre whose own clock is not set judges nobody.
        store.commit(&[label(9, false, NOW)], 60_000).await.unwrap();
        let counts = store.counts().await.unwrap().remove(0);
        assert_eq!((counts.stored, counts.settled, counts.refused), (9, 9, 3));
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    }

    async fn a_picture_of_another_frame_than_its_label_is_refused_whichever_comes_first(home: Home) {
        let store = Store::open(home.place(), false).await.unwrap();
        let commit = async |records: &[(String, Record)]| {
            let done = store.commit(records, 1).await.unwrap();
            let refused: Vec<(u64, usize, String)> =
                done.refused.iter().map(|one| (one.key.sequence, one.bytes, one.reason.clone())).collect();
            (watermark(&store, &done).await, refused)
        };
        let why = |sequence: u64, frame: u64| (sequence, 3, format!("it is of frame {frame}, its label of frame {sequence}"));
        // In one commit, beside a good one.
        let both = [picture(1, 101), label(1, true, 0), label(2, true, 0), picture(2, 2)];
        assert_eq!(commit(&both).await, (2, vec![why(1, 101)]));
        // The label first.
        assert_eq!(commit(&[label(3, true, 0)]).await, (2, vec![]));
        assert_eq!(commit(&[picture(3, 103)]).await, (3, vec![why(3, 103)]), "the label is settled");
        // The picture first. The largest id is kept bit for bit.
        assert_eq!(commit(&[picture(4, u64::MAX)]).await, (3, vec![]), "nobody knows yet");
        assert_eq!(store.counts().await.unwrap()[0].frames, 2);
        assert_eq!(commit(&[label(4, true, 0)]).await, (4, vec![why(4, u64::MAX)]));
        // One that no label announced, and one that was told to be evicted and comes after all.
        assert_eq!(commit(&[label(5, false, 0)]).await, (5, vec![]));
        assert_eq!(commit(&[picture(5, 105)]).await, (5, vec![why(5, 105)]));
        let (device, Record::Frame { key, frame, .. }) = picture(6, 6) else { panic!() };
        let evicted = (device, Record::Frame { key, frame, refused: Some(EVICTED.to_owned()), jpeg: Vec::new() });
        assert_eq!(commit(&[label(6, true, 0), evicted]).await, (6, vec![]));
        assert_eq!(commit(&[picture(6, 106)]).await, (6, vec![why(6, 106)]));

        // Before a label that announces none.
        assert_eq!(commit(&[picture(7, 107)]).await, (6, vec![]));
        assert_eq!(commit(&[label(7, false, 0)]).await, (7, vec![why(7, 107)]));

        // What comes again changes nothing.
        assert_eq!(commit(&both).await, (7, vec![]));
        assert_eq!(commit(&[picture(4, u64::MAX), picture(6, 106)]).await, (7, vec![]));
        let sql = "SELECT sequence FROM frames WHERE jpeg IS NOT NULL";
        let kept: Vec<i64> = sqlx::query_scalar(sql).fetch_all(store.pool()).await.unwrap();
        assert_eq!(kept, [2]);
        let counts = store.counts().await.unwrap().remove(0);
        assert_eq!((counts.stored, counts.settled, counts.refused, counts.frames), (7, 7, 0, 1));
        assert_eq!(store.picture_bytes().await.unwrap(), 3);
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
        // One that was stored before they were compared is found by who looks.
        sqlx::query("UPDATE frames SET frame = 9 WHERE sequence = 2").execute(store.pool()).await.unwrap();
        let found = store.recount().await.unwrap();
        assert_eq!(found, [format!("cam, outbox {:016x}: 1 pictures are of another frame than their label", tests::EPOCH)]);
    }
}
