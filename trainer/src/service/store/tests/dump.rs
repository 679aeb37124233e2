//! The backup of a PostgreSQL database by the commands of docs/CENTRE.md, and its way back.

use super::*;
use crate::service::store::audit::{StoredLabel, Which};
use crate::service::testing::postgres::Postgres;
use std::process::Command;

/// The database of the manual.
const DOCUMENTED: &str = "'postgres://omnilabel@db/omnilabel'";
const LABELS: u64 = 40;

/// Runs the manual's line of a program for another database, in a folder.
fn documented(postgres: &Postgres, program: &str, url: &str, folder: &Path) {
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CENTRE.md")).unwrap();
    let line = manual.lines().find(|line| line.starts_with(&format!("{program} --"))).unwrap();
    assert!(line.contains(DOCUMENTED), "{line}");
    let system = std::env::var_os("PATH").unwrap_or_default();
    // The server's own come first.
    let paths = std::iter::once(postgres.programs().to_owned()).chain(std::env::split_paths(&system));
    let mut shell = Command::new("bash");
    shell.args(["-euc", &line.replace(DOCUMENTED, &format!("'{url}'"))]).current_dir(folder);
    let out = shell.env("PATH", std::env::join_paths(paths).unwrap()).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Every label with its picture.
async fn labels(store: &Store) -> Vec<StoredLabel> {
    let mut rows = Vec::new();
    let look = |row| {
        rows.push(row);
        Ok::<(), StoreError>(())
    };
    store.each(&Which::default(), look).await.unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pg_dump_copied_comes_back_with_every_label_and_its_account() {
    let Some(home) = Home::postgres() else { return };
    let postgres = home.postgres.as_ref().unwrap();
    let store = Store::open(home.place(), false).await.unwrap();
    let mut records: Vec<_> = (1..=LABELS).map(|q| label(q, wants(q))).chain((1..=LABELS).filter(|&q| wants(q)).map(frame)).collect();
    // One whose picture has not come, one that came again, and what could not be used.
    records.extend([label(LABELS + 1, true), label(1, wants(1))]);
    let bad = crate::service::store::quarantine::Quarantined::new("a/b", vec![7], "why".to_owned());
    records.push((String::new(), Record::Quarantined(Box::new(bad))));
    store.commit(&records, 1).await.unwrap();
    store.add_release(1, "one", home.dir(), (b"m", b"s"), None, &Waves::at_once(1)).await.unwrap();
    let (copied, counts, collector) = (labels(&store).await, store.counts().await.unwrap(), store.collector());
    assert_eq!((copied.len() as u64, counts[0].settled, counts[0].duplicates), (LABELS + 1, LABELS, 1));
    // It goes on while it is copied and afterwards.
    documented(postgres, "pg_dump", &postgres.url("postgres"), home.dir());
    store.commit(&[frame(LABELS + 1), label(LABELS + 2, false)], 2).await.unwrap();
    store.close().await;

    // Over the database that it was made of, and into an empty one on another machine, whose state folder knows nothing.
    postgres.create("elsewhere");
    for (folder, database, asked) in [("state", "postgres", false), ("elsewhere", "elsewhere", true)] {
        documented(postgres, "pg_restore", &postgres.url(database), home.dir());
        let store = Store::open(home.collector(folder, database), asked).await.unwrap();
        assert_ne!(store.collector(), collector, "{folder}: devices are asked for what came after the copy");
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new(), "{folder}");
        assert_eq!(labels(&store).await, copied, "{folder}");
        assert_eq!(store.counts().await.unwrap(), counts, "{folder}");
        assert_eq!(store.latest_release().await.unwrap().map(|release| release.counter()), Some(1), "{folder}");
        assert_eq!(store.quarantine_reasons(1).await.unwrap(), [("why".to_owned(), 1)], "{folder}");
        // What the copy has not comes again and is stored; what it has comes again and is not.
        let again = [label(LABELS, wants(LABELS)), frame(LABELS + 1), label(LABELS + 2, false)];
        let done = store.commit(&again, 3).await.unwrap();
        assert_eq!((done.stored, done.repeated, done.conflicts.len()), (1, 1, 0), "{folder}");
        let acks = told(&store, &done).await;
        assert_eq!((acks[0].1.collector, acks[0].1.watermark), (store.collector(), LABELS + 2), "{folder}");
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new(), "{folder}");
        store.close().await;
    }
}
