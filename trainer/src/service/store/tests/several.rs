//! Several collectors of one PostgreSQL database.

use super::*;
use crate::service::config::StoreConfig;
use crate::service::store::postgres::{ServiceLock, enter};
use sqlx::Connection;
use std::time::Duration;

/// Labels of one device.
const LABELS: u64 = 60;
const DEVICES: [&str; 4] = ["a", "b", "c", "d"];

fn of(device: &str, (_, record): (String, Record)) -> (String, Record) {
    (device.to_owned(), record)
}

/// A repeatable order that is none.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = seed;
    for at in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(at, (state >> 33) as usize % (at + 1));
    }
}

async fn open(home: &Home, folder: &str) -> Store {
    Store::open(home.collector(folder, "postgres"), false).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_label_is_stored_and_counted_once_whoever_gets_it() {
    let Some(home) = Home::postgres() else { return };
    let mut collectors = Vec::new();
    for (index, folder) in ["one", "two", "three"].into_iter().enumerate() {
        let store = open(&home, folder).await;
        // Every label goes to two of three, and its picture to one of three: mostly another one.
        let sent = |sequence: u64| (0..2).any(|copy| (sequence + copy) % 3 == index as u64);
        let mut records: Vec<_> = DEVICES
            .iter()
            .flat_map(|device| {
                let labels = (1..=LABELS).filter(move |&q| sent(q)).map(|q| of(device, label(q, wants(q))));
                let frames = (1..=LABELS).filter(move |&q| wants(q) && (q / 3) % 3 == index as u64).map(|q| of(device, frame(q)));
                labels.chain(frames).collect::<Vec<_>>()
            })
            .collect();
        shuffle(&mut records, index as u64 + 1);
        collectors.push(tokio::spawn(async move {
            let mut touched = Vec::new();
            for batch in records.chunks(7) {
                touched.extend(store.commit(batch, 1).await.unwrap().touched);
            }
            (store, touched)
        }));
    }
    let mut stores = Vec::new();
    for collector in collectors {
        let (store, touched) = collector.await.unwrap();
        assert!(!touched.is_empty());
        stores.push(store);
    }
    let counts = stores[0].counts().await.unwrap();
    let pictures = (1..=LABELS).filter(|&q| wants(q)).count() as u64;
    for (device, counts) in DEVICES.into_iter().zip(&counts) {
        let found = (counts.stored, counts.settled, counts.duplicates, counts.conflicts, counts.frames);
        assert_eq!((counts.device.as_str(), found), (device, (LABELS, LABELS, LABELS, 0, pictures)));
    }
    assert_eq!(stores[1].recount().await.unwrap(), Vec::<String>::new());
    for store in &stores {
        for outbox in store.outboxes().await.unwrap() {
            let acks = store.acks(&outbox).await.unwrap();
            assert_eq!((acks.len(), acks[0].watermark, acks[0].collector), (1, LABELS, stores[0].collector()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_a_commit_that_failed() {
    let Some(mut home) = Home::postgres() else { return };
    let store = open(&home, "one").await;
    store.commit(&[label(1, false)], 1).await.unwrap();
    home.postgres.as_mut().unwrap().stop();
    let failed = store.commit(&[label(2, false)], 2).await.unwrap_err().to_string();
    assert!(failed.contains("postgres://"), "{failed}");
    home.postgres.as_mut().unwrap().start_again();
    let done = store.commit(&[label(2, false)], 3).await.unwrap();
    let acks = told(&store, &done).await;
    assert_eq!((done.stored, covered(&acks), acks[0].1.collector), (1, BTreeSet::from([1, 2]), store.collector()));
    assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_told_by_whoever_has_stored_since() {
    let Some(home) = Home::postgres() else { return };
    let postgres = home.postgres.as_ref().unwrap();
    let one = open(&home, "one").await;
    one.commit(&[label(1, false)], 1).await.unwrap();
    let first = one.collector();
    one.close().await;
    postgres.psql("template1", "CREATE DATABASE backup TEMPLATE postgres");
    let one = open(&home, "one").await;
    let two = open(&home, "two").await;
    assert_eq!((one.collector(), two.collector()), (first, first), "a further collector is no restore");
    one.commit(&[label(2, false)], 2).await.unwrap();
    one.close().await;
    two.close().await;

    let restored = async |folder: &str| Store::open(home.collector(folder, "backup"), false).await.unwrap();
    let two = restored("two").await;
    assert_eq!(two.collector(), first, "nothing that it stored is missing");
    let one = restored("one").await;
    let second = one.collector();
    assert_ne!(second, first, "what it stored is missing");
    // The one that was there before names the new epoch, too.
    let done = two.commit(&[label(3, false)], 3).await.unwrap();
    let acks = told(&two, &done).await;
    assert_eq!((acks[0].1.collector, acks[0].1.watermark), (second, 1));

    // As if it were put back while they run.
    postgres.psql("backup", "UPDATE meta SET value = value - 1 WHERE key LIKE 'commits of %'");
    let done = two.commit(&[label(4, false)], 4).await.unwrap();
    let third = told(&two, &done).await[0].1.collector;
    assert_ne!(third, second);
    let asked = Store::open(home.collector("three", "backup"), true).await.unwrap();
    assert!(asked.collector() != third && asked.collector() != 0, "asked for by hand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_has_one_run() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (open(&home, "one").await, open(&home, "two").await);
    let mut lock = ServiceLock::take(&one).await.unwrap();
    let refused = ServiceLock::take(&two).await.unwrap_err().to_string();
    assert!(refused.contains("another centre runs") && refused.contains("postgres://"), "{refused}");
    // Its connection breaks, and somebody is faster.
    let postgres = home.postgres.as_ref().unwrap();
    postgres.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'");
    let other = until("the lock is free", async || ServiceLock::take(&two).await.ok()).await;
    let lost = tokio::time::timeout(Duration::from_secs(30), lock.lost()).await.unwrap();
    assert!(matches!(lost, StoreError::Taken { .. }), "{lost}");
    drop(other);
    until("the lock is free again", async || ServiceLock::take(&one).await.ok()).await;
}

/// The network broke, and the server has not noticed: the lock is still held by the session that nobody has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_does_not_meet_itself() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (open(&home, "one").await, open(&home, "two").await);
    let mut lock = ServiceLock::take(&one).await.unwrap();
    let mut session = lock.break_off().await.unwrap();
    assert!(session.ping().await.is_ok(), "the server's side of it goes on");
    let lost = tokio::time::timeout(Duration::from_secs(10), lock.lost()).await;
    assert!(lost.is_err(), "it met its own session: {lost:?}");
    assert!(session.ping().await.is_err(), "that session is ended");
    let refused = ServiceLock::take(&two).await.unwrap_err();
    assert!(matches!(refused, StoreError::Taken { .. }), "nobody else got it: {refused}");
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: it is not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_begins_with_labels_below_which_none_can_come_any_more() {
    let Some(home) = Home::postgres() else { return };
    let (slow, quick) = (open(&home, "one").await, open(&home, "two").await);
    quick.commit(&[label(1, false)], 1).await.unwrap();
    let mut tx = slow.write().await.unwrap();
    enter(&mut tx).await.unwrap();
    let sql = "INSERT INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, settled, \
               payload) VALUES ('slow', 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, '')";
    sqlx::query(sql).execute(&mut *tx).await.unwrap();
    quick.commit(&[label(2, false)], 1).await.unwrap();
    assert_eq!(quick.last_label().await.unwrap(), 3, "the second is not to be seen yet");
    let closed = tokio::spawn({
        let quick = quick.clone();
        async move { quick.closed_label().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!closed.is_finished(), "the second may still come");
    tx.commit().await.unwrap();
    assert_eq!(closed.await.unwrap(), 3);
}

#[tokio::test]
async fn a_password_is_told_to_nobody() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "correct horse\n").unwrap();
    let url = format!("postgres://centre@localhost/x?host={}", dir.path().display());
    let place = Place::new(dir.path(), &StoreConfig { url: Some(url), password_file: Some(file.clone()), ..StoreConfig::default() });
    let told = async || format!("{:?}", Store::attach(&place).await.map(drop).unwrap_err());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(told().await.contains("expected 0600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let told = told().await;
    assert!(told.contains("postgres://centre@localhost") && !told.contains("horse"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_wrong_backup() {
    let Some(home) = Home::postgres() else { return };
    let store = open(&home, "one").await;
    let out = home.dir().join("backup");
    let refused = crate::service::backup::backup(&store, &out, 1).await.unwrap_err().to_string();
    assert!(refused.contains("pg_dump") && !out.exists(), "{refused}");
    assert!(store.copy_to(&out).await.is_err() && !out.exists());
}
