//! Settled sequences of one outbox epoch as inclusive runs, kept in the database in the same transaction as the labels themselves, so
//! that a watermark costs one look-up however many labels there are.

use omnilabel_keypoints::wire::{AckMsg, MAX_GAPS, VERSION};
use sqlx::SqliteConnection;
use std::collections::BTreeSet;

/// Adds `sequences` and joins what they touch. Adding one twice changes nothing.
pub(super) async fn insert(db: &mut SqliteConnection, device: &str, epoch: i64, sequences: &BTreeSet<i64>) -> Result<(), sqlx::Error> {
    for (first, last) in consecutive(sequences) {
        insert_run(&mut *db, device, epoch, first, last).await?;
    }
    Ok(())
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

async fn insert_run(db: &mut SqliteConnection, device: &str, epoch: i64, first: i64, last: i64) -> Result<(), sqlx::Error> {
    // Nearly always: the highest run goes on.
    let extended = sqlx::query(
        "UPDATE runs SET last = ?4 WHERE device = ?1 AND epoch = ?2 AND last = ?3 - 1 \
         AND first = (SELECT max(first) FROM runs WHERE device = ?1 AND epoch = ?2)",
    )
    .bind(device)
    .bind(epoch)
    .bind(first)
    .bind(last)
    .execute(&mut *db)
    .await?;
    if extended.rows_affected() > 0 {
        return Ok(());
    }
    // The run that begins at or below it, and those that begin in it or right above.
    let below: Option<(i64, i64)> =
        sqlx::query_as("SELECT first, last FROM runs WHERE device = ? AND epoch = ? AND first <= ? ORDER BY first DESC LIMIT 1")
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
        sqlx::query_scalar("DELETE FROM runs WHERE device = ? AND epoch = ? AND first > ? AND first <= ? RETURNING last")
            .bind(device)
            .bind(epoch)
            .bind(first)
            .bind(last.saturating_add(1))
            .fetch_all(&mut *db)
            .await?;
    sqlx::query("INSERT INTO runs (device, epoch, first, last) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last")
        .bind(device)
        .bind(epoch)
        .bind(first)
        .bind(joined.into_iter().fold(last, i64::max))
        .execute(db)
        .await
        .map(drop)
}

/// The end of the run that starts at 1, or 0.
pub(super) async fn watermark(db: &mut SqliteConnection, device: &str, epoch: i64) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce((SELECT last FROM runs WHERE device = ? AND epoch = ? AND first = 1), 0)")
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
    db: &mut SqliteConnection,
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
            "SELECT first, last FROM runs WHERE device = ?1 AND epoch = ?2 AND first <= ?3 AND last >= ?3 ORDER BY first DESC LIMIT 1",
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
        sqlx::query_as("SELECT first, last FROM runs WHERE device = ? AND epoch = ? AND first > ? ORDER BY first LIMIT ?")
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
