//! The store against a model of it: whatever arrives, however often and in whatever order. One suite for both databases.

use super::intake::{LabelRow, Record};
use super::*;
use crate::service::testing::{Home, on_both, tally};
use crate::service::waves::Waves;
use omnilabel_keypoints::wire::{AckMsg, LabelKey, MAX_GAPS, StatusMsg};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Of [`label`] and [`frame`].
pub(super) const EPOCH: u64 = u64::MAX - 5;

pub(super) fn label(sequence: u64, wants_frame: bool) -> (String, Record) {
    let row = LabelRow {
        key: LabelKey { epoch: EPOCH, sequence },
        frame: sequence,
        captured_ms: 0,
        model: 0,
        model_hash: 0,
        instances: 1,
        kept: 1,
        wants_frame,
        refused: None,
        payload: sequence.to_le_bytes().to_vec(),
    };
    ("cam".to_owned(), Record::Label(Box::new(row)))
}

pub(super) fn frame(sequence: u64) -> (String, Record) {
    let key = LabelKey { epoch: EPOCH, sequence };
    ("cam".to_owned(), Record::Frame { key, frame: sequence, refused: None, jpeg: vec![1, 2, 3] })
}

/// What may be told after a commit, by device.
async fn told(store: &Store, done: &super::intake::Committed) -> Vec<(String, AckMsg)> {
    let mut told = Vec::new();
    for touched in &done.touched {
        told.extend(store.acks(touched).await.unwrap().into_iter().map(|ack| (touched.device.clone(), ack)));
    }
    told
}

fn covered(acks: &[(String, AckMsg)]) -> BTreeSet<u64> {
    acks.iter().flat_map(|(_, ack)| (1..=ack.watermark).chain(ack.stored.iter().flat_map(|&(first, last)| first..=last))).collect()
}

#[derive(Clone, Debug)]
enum Op {
    /// Sequences and whether it is the label (true) or the frame that arrives.
    Batch(Vec<(u64, bool)>),
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let batch = proptest::collection::vec((1_u64..60, any::<bool>()), 1..25).prop_map(Op::Batch);
    proptest::collection::vec(prop_oneof![8 => batch, 1 => Just(Op::Reopen)], 1..12)
}

/// Every third label has no frame.
const fn wants(sequence: u64) -> bool {
    !sequence.is_multiple_of(3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_two_sets(ops in ops()) {
        run(agrees_with_two_sets(&Home::sqlite().place(), ops));
    }
}

#[test]
fn the_store_on_postgres_agrees_with_two_sets() {
    let Some(home) = Home::postgres() else { return };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 8, ..ProptestConfig::default() });
    let cases = std::cell::Cell::new(0);
    let ended = runner.run(&ops(), |ops| {
        let name = format!("case_{}", cases.replace(cases.get() + 1));
        home.postgres.as_ref().unwrap().create(&name);
        run(agrees_with_two_sets(&home.collector(&name, &name), ops));
        Ok(())
    });
    ended.unwrap();
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

async fn agrees_with_two_sets(place: &Place, ops: Vec<Op>) {
    let mut store = Store::open(place, false).await.unwrap();
    let (mut labels, mut frames, mut repeated) = (BTreeSet::new(), BTreeSet::new(), 0);
    for op in ops {
        let Op::Batch(batch) = op else {
            let collector = store.collector();
            store.close().await;
            store = Store::open(place, false).await.unwrap();
            assert_eq!(store.collector(), collector, "a restart is no restore");
            continue;
        };
        let records: Vec<_> = batch.iter().map(|&(q, l)| if l { label(q, wants(q)) } else { frame(q) }).collect();
        for &(q, l) in &batch {
            if l {
                repeated += u64::from(!labels.insert(q))
            } else {
                frames.insert(q);
            }
        }
        let done = store.commit(&records, 1).await.unwrap();
        assert_eq!(done.conflicts, []);
        let settled: BTreeSet<u64> = labels.iter().copied().filter(|q| !wants(*q) || frames.contains(q)).collect();
        let watermark = (1..).take_while(|q| settled.contains(q)).last().unwrap_or(0);
        let acks = told(&store, &done).await;
        for (_, ack) in &acks {
            assert_eq!((ack.watermark, ack.epoch, ack.collector), (watermark, u64::MAX - 5, store.collector()));
            assert!(ack.stored.iter().all(|&(first, last)| first > watermark + 1 && first <= last));
        }
        let acked = covered(&acks);
        assert!(acked.is_subset(&settled), "acknowledged but not stored: {:?}", acked.difference(&settled));
        for (q, _) in &batch {
            assert_eq!(acked.contains(q), settled.contains(q), "sequence {q}");
        }
        let counts = store.counts().await.unwrap();
        assert_eq!(counts.len(), 1);
        assert_eq!(
            (counts[0].stored, counts[0].settled, counts[0].duplicates, counts[0].frames),
            (labels.len() as u64, settled.len() as u64, repeated, frames.len() as u64)
        );
    }
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    store.close().await;
}

on_both! {
    many_gaps_are_all_acknowledged_in_several_messages,
    a_frame_that_was_told_to_be_evicted_and_comes_after_all_is_kept,
    the_first_of_two_labels_under_one_key_stays,
    the_quarantine_keeps_the_newest_messages,
    the_account_adds_up_over_epochs,
    many_devices_are_counted_at_once,
    counters_only_grow_and_no_device_can_push_them_far,
    a_release_that_the_fleet_refused_does_not_run,
    text_that_one_of_the_databases_does_not_take_is_kept_all_the_same,
}

async fn text_that_one_of_the_databases_does_not_take_is_kept_all_the_same(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    let mut model = omnilabel_keypoints::wire::ModelMsg { version: 1, ..Default::default() };
    model.reason.push_str("a\0b").unwrap();
    let bad = super::quarantine::Quarantined::new("x\0", vec![0], "\0".to_owned());
    let records = [("cam".to_owned(), Record::Model(Box::new(model))), (String::new(), Record::Quarantined(Box::new(bad)))];
    store.commit(&records, 1).await.unwrap();
    assert_eq!(store.counts().await.unwrap()[0].reason, "a\u{fffd}b");
    assert_eq!(store.quarantine_reasons(1).await.unwrap(), [("\u{fffd}".to_owned(), 1)]);
}

async fn many_gaps_are_all_acknowledged_in_several_messages(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    let records: Vec<_> = (1..=40).map(|i| label(2 * i, false)).collect();
    let done = store.commit(&records, 1).await.unwrap();
    let acks = told(&store, &done).await;
    assert_eq!(acks.len(), 40_usize.div_ceil(MAX_GAPS));
    assert_eq!(covered(&acks), (1..=40).map(|i| 2 * i).collect());
    // One that comes again is acknowledged again, though 16 lower runs lie before it.
    let done = store.commit(&[label(80, false)], 2).await.unwrap();
    assert!(covered(&told(&store, &done).await).contains(&80));
    assert_eq!(done.repeated, 1);
    // With the gaps filled, one watermark says it all.
    let rest: Vec<_> = (1..=40).map(|i| label(2 * i - 1, false)).collect();
    let done = store.commit(&rest, 3).await.unwrap();
    let acks = told(&store, &done).await;
    assert_eq!((acks.len(), acks[0].1.watermark, acks[0].1.stored.len()), (1, 80, 0));
    let outboxes = store.outboxes().await.unwrap();
    assert_eq!(outboxes.len(), 1);
    assert_eq!(store.acks(&outboxes[0]).await.unwrap(), [acks[0].1.clone()]);
}

async fn a_frame_that_was_told_to_be_evicted_and_comes_after_all_is_kept(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    let evicted = |sequence| {
        let (device, Record::Frame { key, frame, .. }) = frame(sequence) else { unreachable!() };
        let refused = Some(super::intake::EVICTED.to_owned());
        (device, Record::Frame { key, frame, refused, jpeg: Vec::new() })
    };
    let done = store.commit(&[label(1, true), evicted(1), label(2, true), frame(2)], 1).await.unwrap();
    let settled = covered(&told(&store, &done).await);
    assert_eq!((settled, done.refused.len()), (BTreeSet::from([1, 2]), 0), "settled, and no fault of the frame");
    store.commit(&[frame(1), evicted(2)], 2).await.unwrap();
    let kept: Vec<Option<Vec<u8>>> = sqlx::query_scalar("SELECT jpeg FROM frames ORDER BY sequence").fetch_all(&store.pool).await.unwrap();
    assert_eq!(kept, [Some(vec![1, 2, 3]), Some(vec![1, 2, 3])]);
}

async fn the_first_of_two_labels_under_one_key_stays(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    let (device, Record::Label(mut other)) = label(1, false) else { panic!() };
    other.payload = vec![9; 9];
    let done = store.commit(&[label(1, false), (device, Record::Label(other))], 1).await.unwrap();
    let key = LabelKey { epoch: u64::MAX - 5, sequence: 1 };
    assert_eq!((done.stored, done.repeated, done.conflicts), (1, 1, vec![("cam".to_owned(), key)]));
    let all = super::ledger::Selection { teacher: 0, after: 0, up_to: i64::MAX, verdicts: 0 };
    assert_eq!(store.payloads(all).await.unwrap(), vec![1_u64.to_le_bytes().to_vec()]);
}

async fn the_quarantine_keeps_the_newest_messages(home: Home) {
    use super::quarantine::{MAX_MESSAGES, MAX_PAYLOAD, Quarantined};
    let store = Store::open(home.place(), false).await.unwrap();
    let bad =
        |reason: &str| (String::new(), Record::Quarantined(Box::new(Quarantined::new("a/b", vec![7; MAX_PAYLOAD + 5], reason.to_owned()))));
    store.commit(&[bad("first"), bad("second"), bad("second")], 5).await.unwrap();
    let kept = store.quarantined(2).await.unwrap();
    assert_eq!(kept.iter().map(|row| (row.id, row.received_ms, row.bytes)).collect::<Vec<_>>(), [(3, 5, 32773), (2, 5, 32773)]);
    assert_eq!(store.quarantined_one(3).await.unwrap().unwrap().1.len(), MAX_PAYLOAD);
    assert_eq!(store.quarantine_reasons(5).await.unwrap(), [("second".to_owned(), 2), ("first".to_owned(), 1)]);
    sqlx::query("UPDATE quarantine SET id = id + $1 WHERE id = 3").bind(MAX_MESSAGES - 2).execute(&store.pool).await.unwrap();
    if let Some(postgres) = &home.postgres {
        // SQLite goes on after the highest number, PostgreSQL after the last one that it drew.
        postgres.psql("postgres", &format!("SELECT setval(pg_get_serial_sequence('quarantine', 'id'), {})", MAX_MESSAGES + 1));
    }
    store.commit(&[bad("third")], 6).await.unwrap();
    assert_eq!(store.quarantine_reasons(5).await.unwrap(), [("second".to_owned(), 1), ("third".to_owned(), 1)]);
    assert_eq!(store.devices().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restored_store_gets_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (state, backup) = (dir.path().join("state"), dir.path().join("backup"));
    let store = Store::open(&state, false).await.unwrap();
    store.commit(&[label(1, false)], 1).await.unwrap();
    let first = store.collector();
    store.close().await;
    std::fs::copy(state.join("centre.sqlite"), &backup).unwrap();

    let store = Store::open(&state, false).await.unwrap();
    store.commit(&[label(2, false)], 2).await.unwrap();
    assert_eq!(store.collector(), first);
    store.close().await;

    std::fs::copy(&backup, state.join("centre.sqlite")).unwrap();
    let store = Store::open(&state, false).await.unwrap();
    let second = store.collector();
    assert_ne!(second, first, "the database is older than what was acknowledged");
    let done = store.commit(&[label(1, false)], 3).await.unwrap();
    let ack = told(&store, &done).await.remove(0).1;
    assert_eq!((ack.collector, ack.watermark), (second, 1));
    store.close().await;

    let store = Store::open(&state, true).await.unwrap();
    let third = store.collector();
    assert_ne!(third, second, "asked for by hand");
    store.close().await;
    std::fs::write(state.join("collector.marker"), "torn").unwrap();
    assert_ne!(Store::open(&state, false).await.unwrap().collector(), third, "a marker that cannot be read proves nothing");
}

async fn the_account_adds_up_over_epochs(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    let status = |epoch, committed, pending, evicted| {
        let status = StatusMsg { version: 1, online: true, epoch, committed, pending, evicted, ..StatusMsg::default() };
        ("cam".to_owned(), Record::Status(status))
    };
    let stored: Vec<_> = (3..=10).map(|q| label(q, false)).collect();
    store.commit(&stored, 1).await.unwrap();
    store.commit(&[status(u64::MAX - 5, 12, 1, 2), status(4, 5, 0, 5)], 1).await.unwrap();
    // An old status that arrives late changes nothing; the last will only says that the device is gone.
    store.commit(&[status(u64::MAX - 5, 3, 3, 0)], 1).await.unwrap();
    store.commit(&[("cam".to_owned(), Record::Status(StatusMsg { version: 1, ..StatusMsg::default() }))], 2).await.unwrap();
    let counts = store.counts().await.unwrap().remove(0);
    assert_eq!((counts.committed, counts.stored, counts.evicted, counts.pending, counts.online), (17, 8, 7, 1, false));
    assert_eq!((counts.missing(), counts.lost()), (2, 1));
    assert_eq!(super::counts::read_counts(home.place()).await.unwrap(), [counts]);
    // A status that was made before labels that are here: they do not wait any more.
    store.commit(&[status(u64::MAX - 5, 12, 9, 2)], 3).await.unwrap();
    let counts = store.counts().await.unwrap().remove(0);
    assert_eq!((counts.pending, counts.missing(), counts.lost()), (2, 2, 0));
}

async fn many_devices_are_counted_at_once(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    assert_eq!((store.tallies(&[]).await.unwrap(), store.stored().await.unwrap()), (Vec::new(), 0));
    // More devices than one statement asks for, the first with two epochs and a repetition.
    let name = |n: usize| format!("cam-{n:04}");
    let mut records: Vec<_> = (0..1100).map(|n| (name(n), label(1, false).1)).collect();
    let Record::Label(mut later) = label(1, false).1 else { panic!() };
    later.key.epoch = 3;
    records.extend([(name(0), Record::Label(later)), (name(0), label(1, false).1)]);
    store.commit(&records, 1).await.unwrap();
    let asked: Vec<_> = (0..1050).map(name).chain(["nobody".to_owned()]).collect();
    let tallies = store.tallies(&asked).await.unwrap();
    let expected: Vec<_> = (0..1050).map(|n| if n == 0 { (name(n), 2, 1) } else { (name(n), 1, 0) }).collect();
    assert_eq!(tallies, expected);
    for (device, stored, again) in &tallies[..3] {
        assert_eq!(tally(&store, device).await, (*stored, *again));
    }
    assert_eq!(store.stored().await.unwrap(), 1101);
}

async fn counters_only_grow_and_no_device_can_push_them_far(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    assert_eq!(store.next_counter().await.unwrap(), 1);
    store.add_release(1, "one", home.dir(), (b"m", b"s"), None, &Waves::at_once(1)).await.unwrap();
    assert_eq!(store.next_counter().await.unwrap(), 2);
    assert!(store.add_release(1, "again", home.dir(), (b"m", b"s"), None, &Waves::at_once(1)).await.is_err());
    let model = |device: &str, confirmed, refused| {
        let model = omnilabel_keypoints::wire::ModelMsg { version: 1, confirmed, refused, ..Default::default() };
        (device.to_owned(), Record::Model(Box::new(model)))
    };
    // A device knows a release that this store, restored from a backup, does not.
    store.commit(&[model("cam", 4, Some(6))], 1).await.unwrap();
    assert_eq!(store.next_counter().await.unwrap(), 7);
    store.commit(&[model("liar", 1 << 47, None)], 1).await.unwrap();
    assert_eq!(store.next_counter().await.unwrap(), 7);
}

async fn a_release_that_the_fleet_refused_does_not_run(home: Home) {
    let store = Store::open(home.place(), false).await.unwrap();
    store.add_release(1, "one", home.dir(), (b"m", b"s"), None, &Waves::at_once(1)).await.unwrap();
    store.add_release(2, "two", home.dir(), (b"m", b"s"), None, &Waves::at_once(1)).await.unwrap();
    let running = async || store.running_release().await.unwrap().map_or(0, |r| r.counter());
    assert_eq!(running().await, 2);
    let model = |confirmed, refused| {
        let model = omnilabel_keypoints::wire::ModelMsg { version: 1, confirmed, refused, ..Default::default() };
        ("cam".to_owned(), Record::Model(Box::new(model)))
    };
    store.commit(&[model(1, Some(2))], 1).await.unwrap();
    assert_eq!(running().await, 1);
    store.commit(&[model(2, None)], 1).await.unwrap();
    assert_eq!(running().await, 2);
}

mod dump;
mod several;
mod upgrade;
