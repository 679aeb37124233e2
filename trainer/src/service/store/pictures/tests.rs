//! One suite for the places where pictures can lie.

mod faults;

use super::*;
use crate::service::backup::{backup, restore};
use crate::service::dataset::Exporter;
use crate::service::store::audit::{StoredLabel, Which};
use crate::service::store::gallery::Look;
use crate::service::store::intake::{Committed, Record};
use crate::service::store::ledger::{Selected, Selection};
use crate::service::store::{Place, Store};
use crate::service::testing::s3::S3;
use crate::service::testing::{Home, World, on_all_places, tally};
use crate::service::verify::of_store;
use omnilabel_coco::Dataset;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_keypoints::wire::{LabelMsg, Message};

const ALL: Selection = Selection { teacher: 0, after: 0, up_to: i64::MAX, verdicts: 0 };
const LATER: u64 = u64::MAX >> 1;

/// The pictures of a batch in its order.
fn sent(records: &[(String, Record)]) -> Vec<Vec<u8>> {
    let jpeg = |(_, record): &(String, Record)| match record {
        Record::Frame { jpeg, .. } => Some(jpeg.clone()),
        _ => None,
    };
    records.iter().filter_map(jpeg).collect()
}

fn name(jpeg: &[u8]) -> Name {
    Sha256::digest(jpeg).into()
}

/// Every label's picture, or why it is not there, by all ways that lead to it.
async fn read(store: &Store) -> Vec<Result<Vec<u8>, String>> {
    let mut rows = Vec::new();
    let look = |label: StoredLabel| {
        rows.push((label.id, label.jpeg.ok_or(label.lost.unwrap_or_default())));
        Ok::<_, StoreError>(())
    };
    store.each(&Which::default(), look).await.unwrap();
    let selected = store.select(ALL).await.unwrap();
    let mut jpegs = store.jpegs(&selected.iter().map(Selected::at).collect::<Vec<_>>()).await.unwrap();
    for (id, jpeg) in &rows {
        assert_eq!(store.picture(*id).await.ok().flatten().as_ref(), jpeg.as_ref().ok(), "label {id}");
    }
    let mut found: Vec<_> = rows.into_iter().map(|(_, jpeg)| jpeg).collect();
    let all = found.clone();
    found.sort();
    jpegs.sort();
    assert_eq!(found, jpegs);
    all
}

/// The watermark of the one outbox that a commit touched.
async fn acknowledged(store: &Store, done: &Committed) -> u64 {
    store.acks(&done.touched[0]).await.unwrap()[0].watermark
}

on_all_places! {
    what_comes_is_read_in_every_way,
    the_same_picture_is_one_object,
    pictures_from_before_are_read_beside_those_that_come,
    a_picture_that_was_evicted_may_come_after_all,
    what_is_lost_or_another_one_is_named,
    what_nothing_refers_to_is_found_and_deleted,
}

async fn what_comes_is_read_in_every_way(home: Home) {
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let batch = world.labels("cam-1", 101..=140, 0.0, 0);
    let done = store.commit(&batch, 1).await.unwrap();
    assert_eq!((done.stored, acknowledged(&store, &done).await), (40, 0), "sequences begin at 101");
    assert_eq!(read(&store).await, sent(&batch).into_iter().map(Ok).collect::<Vec<_>>());
    assert!(store.labels(&Look::default(), None, 99).await.unwrap().iter().all(|label| label.pictured));
    let outside: u64 = if home.pictures.pictures.is_some() { 40 } else { 0 };
    assert_eq!(store.outside().await.unwrap(), outside);
    let heldout = Dataset::load(&world.config.data.heldout).unwrap();
    let whole = of_store(&store, &heldout).await.unwrap();
    assert_eq!((whole.pictures, whole.wrong, whole.orphans, &whole.problems[..]), (40, 0, 0, &[][..]));

    // The data set of a round is the same, byte for byte, wherever the pictures lie.
    let export = async |store: &Store, folder: &str| {
        let thresholds = Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 };
        let manual = Dataset::load(&world.config.data.manual).unwrap();
        let mut exporter = Exporter::new(&home.dir().join(folder), &manual, thresholds, 0.4).unwrap();
        let selected = store.select(ALL).await.unwrap();
        for (label, jpeg) in selected.iter().zip(store.jpegs(&selected.iter().map(Selected::at).collect::<Vec<_>>()).await.unwrap()) {
            let message = LabelMsg::decode(&label.payload).unwrap();
            assert!(exporter.add(&label.key.sequence.to_string(), &message.label(), false, &jpeg.unwrap()).unwrap());
        }
        exporter.finish().unwrap().sha256
    };
    let inside = World::new();
    let other = Store::open(&inside.config, false).await.unwrap();
    other.commit(&batch, 1).await.unwrap();
    assert_eq!(export(&store, "here").await, export(&other, "there").await);
}

async fn the_same_picture_is_one_object(home: Home) {
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    // The test world's pictures are of their numbers, whoever sends them.
    for device in ["cam-1", "cam-2"] {
        store.commit(&world.labels(device, 1..=3, 0.0, 0), 1).await.unwrap();
    }
    // All of it once more: nothing changes.
    let again = store.commit(&world.labels("cam-2", 1..=3, 0.0, 0), 2).await.unwrap();
    assert_eq!((again.stored, again.repeated), (0, 6));
    let once = sent(&world.labels("cam-1", 1..=3, 0.0, 0));
    assert_eq!(read(&store).await, [once.clone(), once].concat().into_iter().map(Ok).collect::<Vec<_>>());
    let objects = if home.pictures.pictures.is_some() { 3 } else { 0 };
    let compared = store.compare_pictures(LATER, false).await.unwrap();
    assert_eq!(compared, Compared { referred: objects, ..Compared::default() });
}

async fn pictures_from_before_are_read_beside_those_that_come(home: Home) {
    let world = home.world();
    let (before, after) = (world.labels("cam-1", 1..=3, 0.0, 0), world.labels("cam-1", 4..=6, 0.0, 0));
    let mut inside = world.config.clone();
    inside.store.pictures = None;
    inside.store.s3 = Default::default();
    let store = Store::open(&inside, false).await.unwrap();
    store.commit(&before, 1).await.unwrap();
    store.close().await;
    let store = Store::open(&world.config, false).await.unwrap();
    let done = store.commit(&after, 2).await.unwrap();
    assert_eq!(acknowledged(&store, &done).await, 6);
    assert_eq!(read(&store).await, [sent(&before), sent(&after)].concat().into_iter().map(Ok).collect::<Vec<_>>());
    assert_eq!(store.recount().await.unwrap(), [""; 0]);
    store.close().await;
    // Without the key, those that lie there are not taken for none.
    let opened = Store::open(&inside, false).await;
    if home.pictures.pictures.is_none() {
        return opened.unwrap().close().await;
    }
    let told = opened.unwrap_err().to_string();
    assert!(told.contains("`store.pictures` names none"), "{told}");
    let store = Store::attach(&inside).await.unwrap();
    assert_eq!(store.picture(1).await.unwrap(), Some(sent(&before)[0].clone()));
    let told = store.picture(4).await.unwrap_err().to_string();
    assert!(told.contains("`store.pictures` names none"), "{told}");
}

async fn a_picture_that_was_evicted_may_come_after_all(home: Home) {
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let whole = world.labels("cam-1", 1..=1, 0.0, 0);
    let mut evicted = whole.clone();
    if let Record::Frame { refused, jpeg, .. } = &mut evicted[1].1 {
        (*refused, *jpeg) = (Some(crate::service::store::intake::EVICTED.to_owned()), Vec::new());
    }
    store.commit(&evicted, 1).await.unwrap();
    assert_eq!((store.picture(1).await.unwrap(), store.outside().await.unwrap()), (None, 0));
    store.commit(&whole, 2).await.unwrap();
    assert_eq!(store.picture(1).await.unwrap().as_ref(), sent(&whole).first());
    assert_eq!(store.recount().await.unwrap(), [""; 0]);
}

async fn what_is_lost_or_another_one_is_named(home: Home) {
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let batch = world.labels("cam-1", 101..=104, 0.0, 0);
    store.commit(&batch, 1).await.unwrap();
    let Some(pictures) = &store.pictures else { return };
    let jpegs = sent(&batch);
    let key = |at: usize| pictures.key(&name(&jpegs[at]));
    let client = pictures.client().unwrap();
    client.put(&key(1), jpegs[0].clone().into()).await.unwrap();
    client.delete(&key(2)).await.unwrap();
    client.put(&key(3), vec![0; MAX_BYTES as usize + 1].into()).await.unwrap();
    let found = read(&store).await;
    assert_eq!(found[0].as_ref().unwrap(), &jpegs[0]);
    for (at, expect) in
        [(1, "is not the one that came: SHA-256 differs"), (2, "is not there"), (3, "2097153 bytes, at most 2097152 expected")]
    {
        let told = found[at].as_ref().unwrap_err();
        assert!(told.contains(expect) && told.contains(&hex(&name(&jpegs[at]))), "{told}");
        let told = store.picture(at as i64 + 1).await.unwrap_err().to_string();
        assert!(told.contains(expect) && told.contains(&format!("label {}", at + 1)), "{told}");
    }
    let heldout = Dataset::load(&world.config.data.heldout).unwrap();
    let verified = of_store(&store, &heldout).await.unwrap();
    assert_eq!((verified.labels, verified.pictures, verified.wrong), (4, 1, 3), "{:?}", verified.problems);
    assert!(verified.problems[1].contains("label 103: its picture: ") && verified.problems[1].contains("is not there"), "{verified:?}");
    let compared = store.compare_pictures(LATER, false).await.unwrap();
    assert_eq!((compared.referred, compared.missing, compared.missing_names), (4, 1, vec![hex(&name(&jpegs[2]))]));
}

async fn what_nothing_refers_to_is_found_and_deleted(home: Home) {
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let batch = world.labels("cam-1", 1..=4, 0.0, 0);
    store.commit(&batch, 1).await.unwrap();
    let names: Vec<Vec<u8>> = sent(&batch).iter().map(|jpeg| name(jpeg).to_vec()).collect();
    // As retention drops them: first from the row, then from the object store. The second one is another label's, too.
    store.commit(&world.labels("cam-2", 2..=2, 0.0, 0), 2).await.unwrap();
    sqlx::query("UPDATE frames SET jpeg = NULL WHERE device = 'cam-1' AND sequence <= 2").execute(store.pool()).await.unwrap();
    if home.pictures.pictures.is_none() {
        assert_eq!(store.delete_pictures(&names).await.unwrap(), 0);
        return;
    }
    // What was put just now may be of a commit that is under way.
    assert_eq!(store.compare_pictures(0, true).await.unwrap(), Compared { referred: 3, ..Compared::default() });
    let found = store.compare_pictures(LATER, false).await.unwrap();
    assert_eq!((found.referred, found.missing, found.orphans, found.deleted), (3, 0, 1, 0));
    assert_eq!((found.orphan_names, found.orphan_bytes), (vec![hex(&names[0])], sent(&batch)[0].len() as u64));
    assert_eq!(store.delete_pictures(&names[1..]).await.unwrap(), 0, "all of these are referred to");
    assert_eq!(store.compare_pictures(LATER, true).await.unwrap().deleted, 1);
    assert_eq!(store.compare_pictures(LATER, false).await.unwrap(), Compared { referred: 3, ..Compared::default() });
    assert_eq!(store.compare_pictures(LATER, true).await.unwrap().deleted, 0);
    // It comes again.
    store.commit(&world.labels("cam-3", 1..=1, 0.0, 0), 3).await.unwrap();
    assert_eq!(store.compare_pictures(LATER, false).await.unwrap(), Compared { referred: 4, ..Compared::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_says_which_pictures_are_not_in_it_and_a_restore_looks_for_them() {
    let home = Home::sqlite().with_folder();
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let batch = world.labels("cam-1", 1..=3, 0.0, 0);
    store.commit(&batch, 1).await.unwrap();
    let out = home.dir().join("backup");
    let about = backup(&store, &out, 5).await.unwrap();
    let outside = about.outside.clone().unwrap();
    assert_eq!((outside.pictures, &outside.place), (3, home.pictures.pictures.as_ref().unwrap()));
    let pictures = store.pictures.clone().unwrap();
    store.close().await;
    let elsewhere = home.dir().join("elsewhere");
    let told = restore(&out, &Place::from(&elsewhere)).await.unwrap_err().to_string();
    assert!(told.contains("3 pictures") && told.contains("`store.pictures`") && !elsewhere.exists(), "{told}");
    pictures.delete(&[name(&sent(&batch)[1])]).await.unwrap();
    let place = Place::new(&elsewhere, &home.pictures);
    assert_eq!(restore(&out, &place).await.unwrap(), (about, 1));
    let store = Store::open(&place, false).await.unwrap();
    assert_eq!(read(&store).await.iter().filter(|picture| picture.is_ok()).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_stores_nothing_and_is_waited_for() {
    let Some(mut home) = Home::sqlite().with_bucket() else { return };
    let world = home.world();
    let store = Store::open(&world.config, false).await.unwrap();
    let (first, second) = (world.labels("cam-1", 1..=2, 0.0, 0), world.labels("cam-1", 3..=4, 0.0, 0));
    let done = store.commit(&first, 1).await.unwrap();
    assert_eq!(acknowledged(&store, &done).await, 2);
    let listed = home.s3.as_ref().unwrap().request("GET", &format!("/{}?list-type=2&prefix=yard/north/pictures/", S3::BUCKET), "");
    for jpeg in sent(&first) {
        let name = hex(&name(&jpeg));
        assert!(listed.contains(&format!("yard/north/pictures/{}/{name}.jpg", &name[..2])), "{listed}");
    }
    let pictures = store.pictures.clone().unwrap();
    let object = pictures.client().unwrap().get(&pictures.key(&name(&sent(&first)[0]))).await.unwrap();
    assert_eq!(object.attributes.get(&object_store::Attribute::ContentType).map(|kind| kind.as_ref()), Some("image/jpeg"));

    home.s3.as_mut().unwrap().stop();
    let told = store.commit(&second, 2).await.unwrap_err();
    assert!(told.to_string().contains("s3://labels/yard/north: put a picture: "), "{told}");
    assert!(!format!("{told} {told:?}").contains("hunter2"), "{told:?}");
    assert_eq!(tally(&store, "cam-1").await.0, 2, "nothing of the batch is stored");
    let told = store.picture(1).await.unwrap_err().to_string();
    assert!(told.contains("fetch a picture"), "{told}");
    // It is there again, empty: without its bucket, too.
    home.s3.as_mut().unwrap().start_again();
    let told = store.commit(&second, 3).await.unwrap_err();
    assert!(told.to_string().contains("NoSuchBucket") && !format!("{told} {told:?}").contains("AKIATEST"), "{told:?}");
    home.s3.as_ref().unwrap().make_bucket();
    let done = store.commit(&second, 4).await.unwrap();
    assert_eq!((done.stored, acknowledged(&store, &done).await), (2, 4));
    let found = read(&store).await;
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, true, true]);
}
