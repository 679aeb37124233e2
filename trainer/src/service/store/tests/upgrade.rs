//! Databases of earlier versions of the centre: brought up to date with everything that is in them, and used on.

use super::*;
use crate::service::store::intake::{Committed, Touched};
use crate::service::store::marker::{self, Marker};
use crate::service::testing::on_both;
use sqlx::AssertSqlSafe;

/// The collector epoch of the old centre.
const COLLECTOR: u64 = 5;
/// Its commits.
const COMMITS: u64 = 2;

/// What an old centre has written, and from which version of the schema on it can have. A camera with three outboxes: one with a label that
/// is settled and a refused one whose picture has not come, one with a label and its picture, one with a picture that nobody kept.
const WRITTEN: &[(i64, &str)] = &[
    (1, "INSERT INTO meta (key, value) VALUES ('collector', 5), ('commits', 2)"),
    (
        1,
        "INSERT INTO devices (device, seen_ms, epoch, online, model, frames, bad_frames, confirmed, trial, refused, reason) VALUES \
         ('cam', 1, 8, 1, 1, 9, 1, 1, 2, NULL, ''), ('new', 1, NULL, 0, 0, 0, 0, 0, NULL, 2, 'why')",
    ),
    (1, "INSERT INTO epochs (device, epoch, committed, pending, evicted, duplicates, conflicts) VALUES ('cam', 7, 3, 1, 0, 4, 1)"),
    (
        1,
        "INSERT INTO labels (device, epoch, sequence, frame, received_ms, captured_ms, model, instances, kept, wants_frame, settled, \
         refused, payload) VALUES ('cam', 7, 1, 1, 1, 1, 0, 1, 1, 0, 1, NULL, x'01'), ('cam', 7, 2, 1, 1, 1, 0, 1, 1, 1, 0, 'why', x'02'), \
         ('cam', 8, 1, 1, 1, 1, 0, 1, 1, 1, 1, NULL, x'03')",
    ),
    (
        1,
        "INSERT INTO frames (device, epoch, sequence, frame, received_ms, sha256, refused, jpeg) VALUES \
         ('cam', 8, 1, 1, 1, x'07', NULL, x'010203'), ('cam', 9, 1, 1, 1, x'07', 'no', NULL)",
    ),
    (1, "INSERT INTO runs (device, epoch, first, last) VALUES ('cam', 7, 1, 1), ('cam', 8, 1, 1)"),
    (1, "INSERT INTO histograms (device, model, frames, received_ms, scores) VALUES ('cam', 0, 9, 1, '[1,2]')"),
    (
        1,
        "INSERT INTO rounds (round, last_label, ended, state) VALUES \
         (1, 3, 1, '{\"round\":1,\"teacher\":0,\"running\":\"running\",\"after\":0,\"up_to\":3,\"ended\":true}')",
    ),
    (
        1,
        "INSERT INTO releases (counter, name, bundle, manifest, signature, created_ms, round) VALUES \
         (1, 'one', 'releases/one', x'6d', x'73', 1, 1)",
    ),
    (2, "INSERT INTO epochs (device, epoch) VALUES ('cam', 8), ('cam', 9)"),
    (2, "UPDATE epochs SET stored = 2, settled = 1, refused = 1 WHERE epoch = 7"),
    (2, "UPDATE epochs SET stored = 1, settled = 1, frames = 1 WHERE epoch = 8"),
    (2, "UPDATE devices SET ahead_ms = 0 WHERE device = 'cam'"),
    (2, "INSERT INTO quarantine (received_ms, topic, reason, bytes, payload) VALUES (1, 'a/b', 'why', 1, x'01')"),
    (3, "UPDATE devices SET label_model = 0, label_hash = -1 WHERE device = 'cam'"),
    (4, "INSERT INTO verdicts (label, version, verdict, people, role, peer, at_ms) VALUES (3, 1, 'rejected', NULL, 'operator', 'me', 1)"),
    (4, "INSERT INTO doubts (label, place) VALUES (3, 1)"),
    // Of the second outbox retention has dropped a label.
    (5, "UPDATE epochs SET stored = 2, settled = 2, dropped = 1, picture_bytes = 3 WHERE epoch = 8"),
    (5, "UPDATE runs SET last = 2 WHERE epoch = 8"),
    (6, "INSERT INTO label_statistics (device, model, period, counts) VALUES ('cam', 0, 0, '{}')"),
    (6, "INSERT INTO drifts (device, state) VALUES ('cam', '{}')"),
];
/// From this version on labels can have been dropped.
const DROPS: i64 = 5;

on_both! { a_database_of_every_earlier_version_is_brought_up_to_date_with_its_accounts }

async fn a_database_of_every_earlier_version_is_brought_up_to_date_with_its_accounts(home: Home) {
    let fresh = Store::renew(home.place()).await.unwrap();
    let versions: Vec<i64> = fresh.migrations().iter().map(|migration| migration.version).collect();
    let (newest, earlier) = versions.split_last().unwrap();
    assert!(earlier.len() >= 4 && earlier.is_sorted() && earlier.last() < Some(newest), "{versions:?}");
    for &version in earlier {
        let name = format!("v{version}");
        if let Some(postgres) = &home.postgres {
            postgres.create(&name);
        }
        let place = home.collector(&name, &name);
        let before = old(&place, version).await;
        let refused = Store::attach(&place).await.unwrap_err().to_string();
        assert!(refused.contains("an earlier version of the centre made it"), "{refused}");

        let store = Store::open(&place, false).await.unwrap();
        let after = rows(&store, &before.columns).await;
        assert!(before.rows.is_subset(&after), "{name}: lost {:?}", before.rows.difference(&after));
        assert_eq!(store.collector(), COLLECTOR, "{name}: a newer version is no restore");
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new(), "{name}");
        let dropped = u64::from(version >= DROPS);
        let counts = store.counts().await.unwrap();
        let (cam, new) = (&counts[0], &counts[1]);
        let found = (cam.committed, cam.stored, cam.settled, cam.refused, cam.frames, cam.duplicates, cam.conflicts);
        assert_eq!(found, (3, 3 + dropped, 2 + dropped, 1, 1, 4, 1), "{name}");
        assert_eq!((new.device.as_str(), new.stored, new.refused_release), ("new", 0, Some(2)), "{name}");
        let (rounds, release) = (store.rounds().await.unwrap(), store.latest_release().await.unwrap().unwrap());
        assert_eq!((rounds.len(), rounds[0].up_to, release.counter()), (1, 3, 1), "{name}");
        assert_eq!(release.waves().unwrap(), Waves::at_once(1), "{name}: it went to all");

        // And it goes on: a label that comes twice, and the picture that an old one waits for.
        let key = LabelKey { epoch: 7, sequence: 2 };
        let late = ("cam".to_owned(), Record::Frame { key, frame: 1, refused: None, jpeg: vec![1] });
        let done = store.commit(&[label(1, false), label(1, false), late], 2).await.unwrap();
        assert_eq!((done.stored, done.repeated), (1, 1), "{name}");
        assert_eq!(store.acks(touched(&done, 7)).await.unwrap()[0].watermark, 2, "{name}");
        assert_eq!(store.acks(touched(&done, u64::MAX - 5)).await.unwrap()[0].watermark, 1, "{name}");
        assert_eq!(tally(&store, "cam").await, (4 + dropped, 5), "{name}");
        assert_eq!(store.last_label().await.unwrap(), 4, "{name}");
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new(), "{name}");
        store.close().await;
        Store::attach(&place).await.unwrap().close().await;
    }
}

fn touched(done: &Committed, epoch: u64) -> &Touched {
    done.touched.iter().find(|touched| touched.epoch == epoch).unwrap()
}

/// What is in a database.
struct Contents {
    /// Tables and their columns.
    columns: Vec<(String, String)>,
    rows: BTreeSet<String>,
}

/// Makes a database as a centre of that version left it.
async fn old(place: &Place, version: i64) -> Contents {
    std::fs::create_dir_all(place.state_dir()).unwrap();
    let store = Store::connect(place.clone(), 0).await.unwrap();
    let mut steps = store.migrations();
    steps.migrations.to_mut().retain(|step| step.version <= version);
    steps.run(&store.pool).await.unwrap();
    for (_, sql) in WRITTEN.iter().filter(|(since, _)| *since <= version) {
        // Bytes are the one thing that the two write differently here.
        let sql = if store.is_shared() { sql.replace("x'", "'\\x") } else { (*sql).to_owned() };
        sqlx::query(AssertSqlSafe(sql)).execute(&store.pool).await.unwrap();
    }
    if !store.is_shared() {
        marker::write(place.state_dir(), marker::FILE, Marker { collector: COLLECTOR, commits: COMMITS }).unwrap();
    }
    let columns = columns(&store).await;
    let rows = rows(&store, &columns).await;
    store.close().await;
    Contents { columns, rows }
}

/// Tables and their columns, by name.
async fn columns(store: &Store) -> Vec<(String, String)> {
    let sql = if store.is_shared() {
        "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT) FROM information_schema.columns \
         WHERE table_schema = current_schema() AND table_name <> '_sqlx_migrations'"
    } else {
        "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c \
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name <> '_sqlx_migrations'"
    };
    let mut columns: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&store.pool).await.unwrap();
    columns.sort();
    columns
}

/// What is in these columns, a line for each row.
async fn rows(store: &Store, columns: &[(String, String)]) -> BTreeSet<String> {
    let tables: BTreeSet<&str> = columns.iter().map(|(table, _)| table.as_str()).collect();
    let mut rows = BTreeSet::new();
    for table in tables {
        let of_it = columns.iter().filter(|column| column.0 == table);
        let values: Vec<String> = of_it.map(|(_, column)| format!("coalesce(CAST({column} AS TEXT), '-')")).collect();
        let sql = format!("SELECT '{table} ' || {} FROM {table}", values.join(" || ' ' || "));
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&store.pool).await.unwrap();
        rows.extend(found);
    }
    rows
}
