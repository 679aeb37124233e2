//! Settled sequences of one outbox epoch as inclusive runs, kept in the database in the same transaction as the labels themselves, so
//! that a watermark costs one look-up however many labels there are.

use omnilabel_keypoints::wire::{AckMsg, MAX_GAPS, VERSION};
use sqlx::SqliteConnection;
use std::collections::BTreeSet;

/// Adds one sequence and joins it with its neighbours. Adding it twice changes nothing.
pub(super) async fn insert(db: &mut SqliteConnection, device: &str, epoch: i64, sequence: i64) -> Result<(), sqlx::Error> {
    // The run at or below the sequence, and the one that starts right above it.
    let below: Option<(i64, i64)> =
        sqlx::query_as("SELECT first, last FROM runs WHERE device = ? AND epoch = ? AND first <= ? ORDER BY first DESC LIMIT 1")
            .bind(device)
            .bind(epoch)
            .bind(sequence)
            .fetch_optional(&mut *db)
            .await?;
    if below.is_some_and(|(_, last)| last >= sequence) {
        return Ok(());
    }
    let above: Option<(i64, i64)> = match sequence.checked_add(1) {
        None => None,
        Some(next) => {
            sqlx::query_as("SELECT first, last FROM runs WHERE device = ? AND epoch = ? AND first = ?")
                .bind(device)
                .bind(epoch)
                .bind(next)
                .fetch_optional(&mut *db)
                .await?
        }
    };
    let first = below.filter(|(_, last)| *last == sequence - 1).map_or(sequence, |(first, _)| first);
    let last = above.map_or(sequence, |(_, last)| last);
    if let Some((start, _)) = above {
        sqlx::query("DELETE FROM runs WHERE device = ? AND epoch = ? AND first = ?")
            .bind(device)
            .bind(epoch)
            .bind(start)
            .execute(&mut *db)
            .await?;
    }
    sqlx::query("INSERT INTO runs (device, epoch, first, last) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last")
        .bind(device)
        .bind(epoch)
        .bind(first)
        .bind(last)
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
