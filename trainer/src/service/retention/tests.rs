//! Retention against the store: accounts, acknowledgements, repetitions, rounds.

use super::*;
use crate::service::store::intake::{Committed, Record};
use crate::service::store::ledger::Selection;
use crate::service::testing::{Home, World, on_both};
use crate::service::verify::of_store;
use omnilabel_coco::Dataset;

const DAY: u64 = DAY_MS;
const LABELS: RetentionConfig = RetentionConfig { picture_days: None, label_days: Some(10), picture_bytes: None };

on_both! {
    a_dropped_label_is_acknowledged_and_never_stored_again,
    pictures_go_before_their_labels_and_do_not_come_back,
    a_limit_of_bytes_takes_the_oldest_pictures,
    what_a_round_reads_or_a_picture_waits_for_stays,
    a_round_that_begins_while_its_labels_are_looked_at_keeps_them,
    the_collector_goes_on_while_much_is_dropped,
}

async fn store_of(world: &World) -> Store {
    Store::open(&world.config, false).await.unwrap()
}

async fn drop_at(store: &Store, limits: &RetentionConfig, now: u64) -> Pruned {
    let counted = prune(store, limits, now, true, || false).await.unwrap();
    let dropped = prune(store, limits, now, false, || false).await.unwrap();
    assert_eq!(counted, dropped, "what would be dropped is what is dropped");
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    dropped
}

async fn everything(store: &Store) -> Vec<(u64, bool)> {
    let mut found = Vec::new();
    let look = |label: crate::service::store::audit::StoredLabel| {
        found.push((label.key().sequence, label.jpeg.is_some()));
        Ok::<_, StoreError>(())
    };
    store.each(&Default::default(), look).await.unwrap();
    found
}

/// Everything of one commit again, which must change nothing that is stored.
async fn repeat(store: &Store, records: &[(String, Record)], now: u64) -> Committed {
    let before = everything(store).await;
    let done = store.commit(records, now).await.unwrap();
    assert_eq!((done.stored, done.repeated, &done.conflicts[..]), (0, records.len() as u64, &[][..]));
    assert_eq!(everything(store).await, before);
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    done
}

fn round(state: serde_json::Value) -> RoundState {
    serde_json::from_value(state).unwrap()
}

async fn a_dropped_label_is_acknowledged_and_never_stored_again(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    let old = world.labels("cam-1", 101..=106, 0.0, 0);
    store.commit(&old, DAY).await.unwrap();
    store.commit(&world.labels("cam-1", 107..=109, 0.0, 0), 9 * DAY).await.unwrap();
    assert!(!drop_at(&store, &LABELS, 11 * DAY).await.is_something(), "a label of exactly ten days stays");
    let dropped = drop_at(&store, &LABELS, 11 * DAY + 1).await;
    assert_eq!((dropped.labels, dropped.pictures_of_labels, dropped.pictures_by_age), (6, 6, 0));
    assert!(dropped.bytes > 0);
    assert_eq!(everything(&store).await, [(107, true), (108, true), (109, true)]);

    let told = repeat(&store, &old, 12 * DAY).await;
    let acks = store.acks(&told.touched[0]).await.unwrap();
    assert_eq!(acks[0].stored.as_slice(), [(101, 109)], "the device is told that they are here");
    // Of a label that is gone nobody can tell whether other bytes under its key are a conflict.
    repeat(&store, &world.labels("cam-1", 101..=106, 0.3, 0), 12 * DAY).await;
    let counts = &store.counts().await.unwrap()[0];
    assert_eq!((counts.stored, counts.settled, counts.frames, counts.conflicts), (9, 9, 9, 0), "what was stored stays counted");

    // A label in between, and one above, are new all the same.
    let fresh = store.commit(&world.labels("cam-1", 99..=100, 0.0, 0), 12 * DAY).await.unwrap();
    assert_eq!((fresh.stored, fresh.repeated), (2, 0));
    let fresh = store.commit(&world.labels("cam-1", 110..=111, 0.0, 0), 12 * DAY).await.unwrap();
    assert_eq!((fresh.stored, fresh.repeated), (2, 0));
    let heldout = Dataset::load(&world.config.data.heldout).unwrap();
    let found = of_store(&store, &heldout).await.unwrap();
    assert_eq!((found.labels, found.wrong, &found.problems[..]), (7, 0, &[][..]));
}

async fn pictures_go_before_their_labels_and_do_not_come_back(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    let old = world.labels("cam-1", 101..=104, 0.0, 0);
    store.commit(&old, DAY).await.unwrap();
    store.commit(&world.labels("cam-2", 105..=106, 0.0, 0), 5 * DAY).await.unwrap();
    let limits = RetentionConfig { picture_days: Some(3), label_days: Some(10), picture_bytes: None };
    let dropped = drop_at(&store, &limits, 5 * DAY).await;
    assert_eq!((dropped.labels, dropped.pictures_of_labels, dropped.pictures_by_age), (0, 0, 4));
    assert_eq!(everything(&store).await, [(101, false), (102, false), (103, false), (104, false), (105, true), (106, true)]);
    repeat(&store, &old, 6 * DAY).await;
    let all = Selection { teacher: 0, after: 0, up_to: i64::MAX, verdicts: 0 };
    assert_eq!((store.selected(all).await.unwrap(), store.payloads(all).await.unwrap().len()), (2, 6), "labels alone still calibrate");
    let heldout = Dataset::load(&world.config.data.heldout).unwrap();
    assert_eq!(of_store(&store, &heldout).await.unwrap().wrong, 0);
    // Their time comes, too; the picture that went before is not counted again.
    let dropped = drop_at(&store, &limits, 12 * DAY).await;
    assert_eq!((dropped.labels, dropped.pictures_of_labels, dropped.pictures_by_age), (4, 0, 2));
    assert_eq!(drop_at(&store, &limits, 12 * DAY).await, Pruned::default());
}

async fn a_limit_of_bytes_takes_the_oldest_pictures(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    for sequence in 101..=106 {
        store.commit(&world.labels("cam-1", sequence..=sequence, 0.0, 0), sequence).await.unwrap();
    }
    let whole = store.picture_bytes().await.unwrap();
    let limit = |bytes: u64| RetentionConfig { picture_bytes: Some(bytes), ..RetentionConfig::default() };
    assert_eq!(drop_at(&store, &limit(whole), DAY).await, Pruned::default());
    let dropped = drop_at(&store, &limit(whole - 1), DAY).await;
    assert_eq!((dropped.pictures_by_size, dropped.labels), (1, 0));
    assert_eq!(store.picture_bytes().await.unwrap(), whole - dropped.bytes);
    assert_eq!(everything(&store).await.iter().map(|(_, pictured)| *pictured).collect::<Vec<_>>(), [false, true, true, true, true, true]);
    assert_eq!(drop_at(&store, &limit(1), DAY).await.pictures_by_size, 5);
    assert_eq!((store.picture_bytes().await.unwrap(), everything(&store).await.len()), (0, 6));
    // Age and size together: what is too old is not counted against the size as well.
    let (now, later) = (20 * DAY, world.labels("cam-1", 107..=110, 0.0, 0));
    store.commit(&later[..4], 10 * DAY).await.unwrap();
    store.commit(&later[4..], now).await.unwrap();
    let both = RetentionConfig { picture_days: Some(5), label_days: None, picture_bytes: Some(1) };
    let dropped = drop_at(&store, &both, now).await;
    assert_eq!((dropped.pictures_by_age, dropped.pictures_by_size), (2, 2));
}

async fn what_a_round_reads_or_a_picture_waits_for_stays(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    store.commit(&world.labels("cam-1", 101..=103, 0.0, 0), DAY).await.unwrap();
    store.commit(&world.labels("cam-1", 104..=106, 0.0, 4), DAY).await.unwrap();
    // A label whose picture has not come.
    store.commit(&world.labels("cam-2", 107..=107, 0.0, 0)[..1], DAY).await.unwrap();
    let first = serde_json::json!({ "round": 1, "teacher": 4, "running": "m", "after": 0, "up_to": 6, "ended": true });
    store.save_round(&round(first)).await.unwrap();
    let open = |ended: bool| round(serde_json::json!({ "round": 2, "teacher": 0, "running": "m", "after": 1, "up_to": 3, "ended": ended }));
    store.begin_round(&open(false)).await.unwrap();
    let dropped = drop_at(&store, &LABELS, 20 * DAY).await;
    assert_eq!((dropped.labels, dropped.kept_in_use, dropped.kept_unsettled), (4, 3, 0));
    assert_eq!(dropped.rounds, [1], "the ended round's data set cannot be made anew");
    assert_eq!(everything(&store).await, [(102, true), (103, true), (107, false)]);
    // Nor does a limit of bytes take what the round reads.
    let bytes = RetentionConfig { picture_bytes: Some(1), ..RetentionConfig::default() };
    assert_eq!((drop_at(&store, &bytes, 20 * DAY).await.pictures_by_size, everything(&store).await[0]), (0, (102, true)));

    let all = RetentionConfig { picture_days: Some(5), label_days: Some(10), picture_bytes: Some(1) };
    let dropped = drop_at(&store, &all, 20 * DAY).await;
    assert_eq!((dropped.is_something(), dropped.kept_in_use), (false, 3 + 2 + 2), "the labels, and their pictures by age and by size");

    store.save_round(&open(true)).await.unwrap();
    let dropped = drop_at(&store, &LABELS, 20 * DAY).await;
    assert_eq!((dropped.labels, dropped.kept_in_use, dropped.kept_unsettled), (2, 0, 1));
    assert_eq!(dropped.rounds, [2]);
    // Its picture comes: it is settled, and goes with the next one.
    store.commit(&world.labels("cam-2", 107..=107, 0.0, 0)[1..], 20 * DAY).await.unwrap();
    assert_eq!(drop_at(&store, &LABELS, 20 * DAY).await.labels, 1);
    assert_eq!(everything(&store).await, []);
}

async fn a_round_that_begins_while_its_labels_are_looked_at_keeps_them(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    store.commit(&world.labels("cam-1", 101..=104, 0.0, 0), DAY).await.unwrap();
    let (labels, pictures) = {
        let nothing = store.in_use().await.unwrap();
        (store.labels_after(nothing, 0).await.unwrap(), store.pictures_after(nothing, None).await.unwrap())
    };
    assert!(labels.iter().all(|label| !label.in_use) && pictures.iter().all(|picture| !picture.in_use));
    let open = serde_json::json!({ "round": 1, "teacher": 0, "running": "m", "after": 2, "up_to": 4 });
    store.begin_round(&round(open)).await.unwrap();
    let gone = store.drop_pictures(&pictures.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(gone.pictures, 2);
    let gone = store.drop_labels(&labels.iter().map(|label| label.id).collect::<Vec<_>>()).await.unwrap();
    assert_eq!((gone.labels, gone.pictures), (2, 0));
    assert_eq!(everything(&store).await, [(103, true), (104, true)]);
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
}

async fn the_collector_goes_on_while_much_is_dropped(home: Home) {
    let world = home.world();
    let store = store_of(&world).await;
    for first in (1..=601).step_by(100) {
        store.commit(&world.labels("cam-1", first..=first + 99, 0.0, 0), DAY).await.unwrap();
    }
    let (other, dropping) = (store.clone(), LABELS);
    let dropping = tokio::spawn(async move { prune(&other, &dropping, 20 * DAY, false, || false).await });
    for sequence in 1001..=1040 {
        let done = store.commit(&world.labels("cam-2", sequence..=sequence, 0.0, 0), 20 * DAY).await.unwrap();
        assert_eq!(done.stored, 1);
        // What is being dropped comes again.
        let done = store.commit(&world.labels("cam-1", sequence - 1000..=sequence - 990, 0.0, 0), 20 * DAY).await.unwrap();
        assert_eq!((done.stored, done.repeated, &done.conflicts[..]), (0, 22, &[][..]));
    }
    assert_eq!(dropping.await.unwrap().unwrap().labels, 700);
    assert_eq!(everything(&store).await.len(), 40);
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    let counts = store.counts().await.unwrap();
    assert_eq!((counts[0].stored, counts[0].settled, counts[0].frames, counts[0].duplicates), (700, 700, 700, 440));
    let pictures: Vec<i64> =
        sqlx::query_scalar("SELECT CAST(length(jpeg) AS BIGINT) FROM frames WHERE jpeg IS NOT NULL").fetch_all(store.pool()).await.unwrap();
    assert_eq!((pictures.len(), pictures.iter().sum::<i64>().cast_unsigned()), (40, store.picture_bytes().await.unwrap()));
    // Asked to stop, it stops between two transactions.
    let stopped = prune(&store, &LABELS, 40 * DAY, false, || true).await.unwrap();
    assert_eq!((stopped.labels, everything(&store).await.len()), (0, 40));
}
