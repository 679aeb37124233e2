//! Settled sequences of one outbox epoch as inclusive runs, kept in the database in the same transaction as the labels themselves, so
//! that a watermark costs one look-up however many labels there are.

use super::Store;
use super::intake::ROWS;
use omnilabel_keypoints::wire::{AckMsg, MAX_GAPS, VERSION};
use sqlx::AnyConnection;
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;

/// What a batch has settled of one outbox: device, epoch, sequences.
pub(super) type Settled<'a> = (&'a str, i64, BTreeSet<i64>);

impl Store {
    /// Adds what a batch has settled (each outbox once) and joins what it touches. Adding a sequence twice changes nothing.
    pub(super) async fn add_runs(&self, db: &mut AnyConnection, settled: &[Settled<'_>]) -> Result<(), sqlx::Error> {
        let runs: Vec<_> = settled.iter().map(|(device, epoch, sequences)| (*device, *epoch, consecutive(sequences))).collect();
        // Nearly always: one run, with which the outbox's highest goes on. All of these take one statement.
        let single: Vec<_> =
            runs.iter().filter(|(_, _, runs)| runs.len() == 1).map(|(device, epoch, runs)| (*device, *epoch, runs[0])).collect();
        let mut extended = Vec::new();
        for chunk in single.chunks(ROWS) {
            extended.extend(self.extend_runs(&mut *db, chunk).await?);
        }
        for (device, epoch, runs) in runs {
            if extended.iter().any(|(of, at)| of == device && *at == epoch) {
                continue;
            }
            for (first, last) in runs {
                insert_run(&mut *db, device, epoch, first, last).await?;
            }
        }
        Ok(())
    }

    /// Extends the highest run of each outbox where the new one begins right above it; of which outboxes.
    async fn extend_runs(&self, db: &mut AnyConnection, runs: &[(&str, i64, (i64, i64))]) -> Result<Vec<(String, i64)>, sqlx::Error> {
        let sql = format!(
            "UPDATE runs SET last = v.column4 FROM (VALUES {}) v WHERE runs.device = v.column1 AND runs.epoch = v.column2 \
             AND runs.last = v.column3 - 1 \
             AND runs.first = (SELECT max(r.first) FROM runs r WHERE r.device = v.column1 AND r.epoch = v.column2) RETURNING device, epoch",
            self.values(runs.len(), 4)
        );
        let mut query = sqlx::query_as(AssertSqlSafe(sql));
        for (device, epoch, (first, last)) in runs {
            query = query.bind(*device).bind(*epoch).bind(*first).bind(*last);
        }
        query.persistent(false).fetch_all(db).await
    }
}

/// As inclusive runs.
fn consecutive(sequences: &BTreeSet<i64>) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for &sequence in sequences {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(sequence) => *last = sequence,
            _ => runs.push((sequence, sequence)),
        }
    }
    runs
}

async fn insert_run(db: &mut AnyConnection, device: &str, epoch: i64, first: i64, last: i64) -> Result<(), sqlx::Error> {
    // The run that begins at or below it, and those that begin in it or right above.
    let below: Option<(i64, i64)> =
        sqlx::query_as("SELECT first, last FROM runs WHERE device = $1 AND epoch = $2 AND first <= $3 ORDER BY first DESC LIMIT 1")
            .bind(device)
            .bind(epoch)
            .bind(first)
            .fetch_optional(&mut *db)
            .await?;
    let (first, last) = match below {
        Some((start, end)) if end >= first.saturating_sub(1) => (start, last.max(end)),
        _ => (first, last),
    };
    let joined: Vec<i64> =
        sqlx::query_scalar("DELETE FROM runs WHERE device = $1 AND epoch = $2 AND first > $3 AND first <= $4 RETURNING last")
            .bind(device)
            .bind(epoch)
            .bind(first)
            .bind(last.saturating_add(1))
            .fetch_all(&mut *db)
            .await?;
    let sql = "INSERT INTO runs (device, epoch, first, last) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (device, epoch, first) DO UPDATE SET last = excluded.last";
    sqlx::query(sql).bind(device).bind(epoch).bind(first).bind(joined.into_iter().fold(last, i64::max)).execute(db).await.map(drop)
}

/// Whether a sequence is settled, as a condition on these columns or placeholders.
pub(super) fn is_settled(device: &str, epoch: &str, sequence: &str) -> String {
    format!(
        "coalesce((SELECT runs.last >= {sequence} FROM runs WHERE runs.device = {device} AND runs.epoch = {epoch} \
         AND runs.first <= {sequence} ORDER BY runs.first DESC LIMIT 1), 1 = 0)"
    )
}

/// The end of the run that starts at 1, or 0.
pub(super) async fn watermark(db: &mut AnyConnection, device: &str, epoch: i64) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce((SELECT last FROM runs WHERE device = $1 AND epoch = $2 AND first = 1), 0)")
        .bind(device)
        .bind(epoch)
        .fetch_one(db)
        .await
}

/// The acknowledgements of one outbox epoch: the watermark, and the runs above it that hold `touched` sequences, newest first and at most
/// [`MAX_GAPS`] a message; then, while there is room in the last message, the lowest other runs. Without a `touched` sequence
/// above the watermark there is exactly one message.
///
/// Naming the touched runs lets a device clear everything that it sent, however many gaps (evicted labels) lie below.
pub(super) async fn acks(
    db: &mut AnyConnection,
    collector: u64,
    device: &str,
    epoch: i64,
    touched: &BTreeSet<i64>,
) -> Result<Vec<AckMsg>, sqlx::Error> {
    let mark = watermark(&mut *db, device, epoch).await?;
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    let mut open: Option<i64> = None; // below this, the next touched sequence lies in another run
    for &sequence in touched.range(mark.saturating_add(1)..).rev() {
        if open.is_some_and(|first| sequence >= first) {
            continue;
        }
        let run: Option<(i64, i64)> = sqlx::query_as(
            "SELECT first, last FROM runs WHERE device = $1 AND epoch = $2 AND first <= $3 AND last >= $3 ORDER BY first DESC LIMIT 1",
        )
        .bind(device)
        .bind(epoch)
        .bind(sequence)
        .fetch_optional(&mut *db)
        .await?;
        if let Some(run) = run {
            open = Some(run.0);
            ranges.push(run);
        }
    }
    let room = ranges.len().max(1).next_multiple_of(MAX_GAPS) - ranges.len();
    let others: Vec<(i64, i64)> =
        sqlx::query_as("SELECT first, last FROM runs WHERE device = $1 AND epoch = $2 AND first > $3 ORDER BY first LIMIT $4")
            .bind(device)
            .bind(epoch)
            .bind(mark.max(1))
            .bind((room + ranges.len()) as i64)
            .fetch_all(db)
            .await?;
    let known: BTreeSet<i64> = ranges.iter().map(|(first, _)| *first).collect();
    ranges.extend(others.into_iter().filter(|(first, _)| !known.contains(first)).take(room));

    let message = |chunk: &[(i64, i64)]| AckMsg {
        version: VERSION,
        collector,
        epoch: epoch.cast_unsigned(),
        watermark: mark.cast_unsigned(),
        stored: chunk.iter().map(|(first, last)| (first.cast_unsigned(), last.cast_unsigned())).take(MAX_GAPS).collect(),
    };
    Ok(if ranges.is_empty() { vec![message(&[])] } else { ranges.chunks(MAX_GAPS).map(message).collect() })
}
