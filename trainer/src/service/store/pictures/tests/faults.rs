//! What an object store can do to a commit.

use super::*;
use crate::service::config::RetentionConfig;
use crate::service::retention::prune;
use crate::service::testing::World;
use async_trait::async_trait;
use futures_core::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions, PutResult,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// An object store in memory that fails, is slow, or calls back.
#[derive(Debug, Default)]
struct Faulty {
    inside: InMemory,
    /// Puts that begin are counted here.
    puts: AtomicUsize,
    /// So many of the next requests fail.
    failures: AtomicUsize,
    /// Requests are never answered.
    silent: AtomicBool,
    /// Puts wait this long, ms.
    slow_ms: AtomicUsize,
    /// Puts under way, and the most that there were.
    running: AtomicUsize,
    most: AtomicUsize,
    /// Who deletes a picture as soon as it was put, once.
    thief: Mutex<Option<(Store, Vec<u8>)>>,
}

impl Faulty {
    async fn fault(&self) -> object_store::Result<()> {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let left = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() { Err(object_store::Error::Generic { store: "faulty", source: "503 Slow Down".into() }) } else { Ok(()) }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Key, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(self.running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed) as u64)).await;
        let fault = self.fault().await;
        self.running.fetch_sub(1, Ordering::Relaxed);
        fault?;
        let done = self.inside.put_opts(location, payload, options).await;
        let thief = self.thief.lock().unwrap().take();
        if let Some((store, name)) = thief {
            assert_eq!(store.delete_pictures(&[name]).await.unwrap(), 1);
        }
        done
    }

    async fn put_multipart_opts(&self, location: &Key, options: PutMultipartOptions) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inside.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.fault().await?;
        self.inside.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, object_store::Result<Key>>) -> BoxStream<'static, object_store::Result<Key>> {
        self.inside.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inside.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inside.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.inside.copy_opts(from, to, options).await
    }
}

/// A store on SQLite whose pictures are in a faulty object store; 4 requests at once, 1 s each.
async fn faulty(home: &Home) -> (World, Store, Arc<Faulty>) {
    let mut world = home.world();
    world.config.store.pictures = Some("s3://labels".to_owned());
    world.config.store.picture_requests = 4;
    world.config.store.picture_timeout_secs = 1;
    let (store, faulty) = with_faulty(&world).await;
    (world, store, faulty)
}

async fn with_faulty(world: &World) -> (Store, Arc<Faulty>) {
    let mut inside = world.config.clone();
    inside.store.pictures = None;
    let mut store = Store::open(&inside, false).await.unwrap();
    let faulty = Arc::new(Faulty::default());
    let client: Arc<dyn ObjectStore> = faulty.clone();
    store.pictures = Pictures::with(&world.config.store, client).map(Arc::new);
    (store, faulty)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_fails_is_tried_again_and_then_stores_nothing() {
    let home = Home::sqlite();
    for failures in 0..2 * TRIES as usize {
        let (world, store, faulty) = faulty(&home).await;
        let device = format!("cam-{failures}");
        let batch = world.labels(&device, 1..=1, 0.0, 0);
        faulty.failures.store(failures, Ordering::Relaxed);
        let first = store.commit(&batch, 1).await;
        assert_eq!(first.is_ok(), failures < TRIES as usize, "{failures} failures");
        if let Err(error) = first {
            assert!(error.to_string().contains("s3://labels: put a picture: ") && error.to_string().contains("503 Slow Down"), "{error}");
            assert_eq!(tally(&store, &device).await.0, 0);
            let done = store.commit(&batch, 2).await.unwrap();
            assert_eq!((done.stored, acknowledged(&store, &done).await), (1, 1));
        }
        assert_eq!(faulty.puts.load(Ordering::Relaxed), failures + 1);
        assert_eq!(store.picture(1).await.unwrap().as_ref(), sent(&batch).first());
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_store_is_given_up_in_time_and_what_was_put_is_not_put_again() {
    let home = Home::sqlite();
    let (world, store, faulty) = faulty(&home).await;
    let batch = world.labels("cam-1", 1..=6, 0.0, 0);
    // The first four are never answered.
    faulty.silent.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    let told = store.commit(&batch, 1).await.unwrap_err().to_string();
    assert!(told.contains("no answer within 1 s") && begin.elapsed() < Duration::from_secs(20), "{told}");
    faulty.silent.store(false, Ordering::Relaxed);
    assert_eq!((tally(&store, "cam-1").await.0, faulty.puts.swap(0, Ordering::Relaxed)), (0, 4));

    // The database is full: pictures are put once, however often the commit is tried.
    let full = "CREATE TRIGGER full BEFORE INSERT ON frames BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    sqlx::query(full).execute(store.pool()).await.unwrap();
    for _ in 0..3 {
        let told = store.commit(&batch, 2).await.unwrap_err().to_string();
        assert!(told.contains("disk full"), "{told}");
    }
    assert_eq!(faulty.puts.load(Ordering::Relaxed), 6);
    assert_eq!(store.compare_pictures(LATER, false).await.unwrap().orphans, 6);
    sqlx::query("DROP TRIGGER full").execute(store.pool()).await.unwrap();
    let done = store.commit(&batch, 3).await.unwrap();
    assert_eq!((done.stored, acknowledged(&store, &done).await, faulty.puts.load(Ordering::Relaxed)), (6, 6, 6));
    assert_eq!(store.compare_pictures(LATER, false).await.unwrap(), Compared { referred: 6, ..Compared::default() });
    // A later commit asks nothing of an earlier one.
    store.commit(&world.labels("cam-2", 1..=1, 0.0, 0), 4).await.unwrap();
    assert_eq!(faulty.puts.load(Ordering::Relaxed), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_of_a_batch_run_together_within_their_bound() {
    let home = Home::sqlite();
    let (world, store, faulty) = faulty(&home).await;
    faulty.slow_ms.store(20, Ordering::Relaxed);
    store.commit(&world.labels("cam-1", 1..=30, 0.0, 0), 1).await.unwrap();
    assert_eq!((faulty.puts.load(Ordering::Relaxed), faulty.most.load(Ordering::Relaxed)), (30, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_between_put_and_commit_is_put_again() {
    let home = Home::sqlite();
    let (world, store, faulty) = faulty(&home).await;
    let batch = world.labels("cam-1", 1..=1, 0.0, 0);
    // Retention dropped an equal picture, and deletes it just after this one was put.
    *faulty.thief.lock().unwrap() = Some((store.clone(), name(&sent(&batch)[0]).to_vec()));
    let done = store.commit(&batch, 1).await.unwrap();
    assert_eq!((done.stored, acknowledged(&store, &done).await, faulty.puts.load(Ordering::Relaxed)), (1, 1, 2));
    assert_eq!(store.picture(1).await.unwrap().as_ref(), sent(&batch).first());

    // Who deletes was killed before the end: nobody knows what is gone, so a commit puts what it needs while nobody deletes.
    sqlx::query("UPDATE meta SET value = value + 1 WHERE key = 'picture_deletions'").execute(store.pool()).await.unwrap();
    let before = faulty.puts.load(Ordering::Relaxed);
    store.commit(&world.labels("cam-1", 2..=2, 0.0, 0), 2).await.unwrap();
    assert_eq!(faulty.puts.load(Ordering::Relaxed) - before, 2);
    // The next deletion that comes to its end says so.
    assert_eq!(store.delete_pictures(&[vec![7; 32]]).await.unwrap(), 1);
    store.commit(&world.labels("cam-1", 3..=3, 0.0, 0), 3).await.unwrap();
    assert_eq!(faulty.puts.load(Ordering::Relaxed) - before, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dropped_is_told_although_its_pictures_cannot_be_deleted() {
    const DAY: u64 = 86_400_000;
    let home = Home::sqlite();
    let (world, store, _faulty) = faulty(&home).await;
    store.commit(&world.labels("cam-1", 1..=3, 0.0, 0), DAY).await.unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON meta WHEN NEW.key = 'picture_deletions' BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    sqlx::query(full).execute(store.pool()).await.unwrap();
    let limits = RetentionConfig { picture_days: None, label_days: Some(10), picture_bytes: None };
    let pruned = prune(&store, &limits, 20 * DAY, false, || false).await.unwrap();
    let why = pruned.unfinished.as_deref().unwrap();
    assert!(why.contains("disk full") && why.contains("`dataset orphans --delete`"), "{why}");
    assert_eq!((pruned.labels, pruned.pictures_of_labels), (3, 3));
    assert_eq!(tally(&store, "cam-1").await.0, 3, "the account knows of them");
    sqlx::query("DROP TRIGGER full").execute(store.pool()).await.unwrap();
    assert_eq!(store.compare_pictures(LATER, true).await.unwrap().deleted, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_dropped_whose_picture_nobody_could_delete() {
    const DAY: u64 = 86_400_000;
    let home = Home::sqlite();
    let (world, store, _faulty) = faulty(&home).await;
    store.commit(&world.labels("cam-1", 1..=3, 0.0, 0), DAY).await.unwrap();
    // `store.pictures` was taken out of the configuration.
    let blind = Store { pictures: None, ..store.clone() };
    for limits in [
        RetentionConfig { picture_days: None, label_days: Some(10), picture_bytes: None },
        RetentionConfig { picture_days: Some(10), label_days: None, picture_bytes: None },
    ] {
        let pruned = prune(&blind, &limits, 20 * DAY, false, || false).await.unwrap();
        let why = pruned.unfinished.as_deref().unwrap();
        assert!(why.contains("3 pictures") && why.contains("`store.pictures`") && !why.contains("orphans"), "{why}");
        assert_eq!((pruned.labels, pruned.pictures_by_age), (0, 0));
        assert!(store.picture(1).await.unwrap().is_some(), "still there");
    }
    assert_eq!(store.compare_pictures(LATER, false).await.unwrap().orphans, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_of_another_frame_leaves_the_object_store() {
    let home = Home::sqlite();
    let (world, store, _faulty) = faulty(&home).await;
    let mut batch = world.labels("cam-1", 1..=2, 0.0, 0);
    if let Some((_, Record::Frame { frame, .. })) = batch.iter_mut().find(|(_, record)| matches!(record, Record::Frame { .. })) {
        *frame += 7;
    }
    let done = store.commit(&batch, 1).await.unwrap();
    assert_eq!(done.refused.len(), 1);
    for _ in 0..400 {
        let found = store.compare_pictures(LATER, false).await.unwrap();
        if found.orphans == 0 {
            assert_eq!((found.referred, found.missing), (1, 0));
            return;
        }
        sleep(Duration::from_millis(25)).await;
    }
    panic!("it is still there");
}

#[test]
fn what_a_store_says_is_one_line_without_the_request() {
    let text = "Server returned 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code>\
                <AWSAccessKeyId>AKIATEST</AWSAccessKeyId></Error>";
    let told = said(&object_store::Error::Generic { store: "S3", source: text.into() });
    assert!(told.ends_with("403 Forbidden (InvalidAccessKeyId)") && !told.contains("AKIATEST"), "{told}");
    let told = said(&object_store::Error::Generic { store: "S3", source: format!("a\nb {}", "c".repeat(9000)).into() });
    assert!(told.len() <= SAID && told.contains("a b c"), "{told}");
}
