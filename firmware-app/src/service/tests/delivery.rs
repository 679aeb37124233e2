//! Every label arrives once, whatever happens to broker and device.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_label_arrives_with_its_frame_and_the_end_is_reported() {
    let Some(broker) = Broker::start() else { return };
    let device = Device::provisioned(&broker, 150, 1000.0, true);
    let frames = device.folder.path().join("frames");
    std::fs::write(frames.join("0077.jpg"), b"\xff\xd8 torn").unwrap();
    let mut centre = Centre::open(&broker).await;
    let (_stop, run) = device.start();
    centre
        .until("149 labels and the last status", |c| c.labels.len() == 149 && c.status.as_ref().is_some_and(|s| !s.online && s.epoch != 0))
        .await;
    let summary = run.await.unwrap().unwrap();
    assert_eq!((summary.frames, summary.bad_frames, summary.committed, summary.pending), (149, 1, 149, 0));
    assert_eq!(centre.frames.len(), 149);
    let ids: BTreeSet<u64> = centre.labels.values().map(|label| label.frame).collect();
    assert_eq!(ids, (1..=150).filter(|&id| id != 77).collect());
    let status = centre.status.unwrap();
    assert_eq!((status.committed, status.pending, status.bad_frames), (149, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_and_restarted_and_a_device_restarted_lose_nothing() {
    let Some(mut broker) = Broker::start() else { return };
    let device = Device::provisioned(&broker, 200, 100.0, false);
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    centre.until("the first labels", |c| c.labels.len() > 20).await;
    broker.restart();
    centre.until("labels after the restart of the broker", |c| c.labels.len() > 70).await;
    centre.answers = false;
    stop.send_replace(true);
    let first = run.await.unwrap().unwrap();
    assert!(first.committed >= 70 && first.frames == first.committed, "{first:?}");
    // Nobody listens while the device starts again and labels.
    drop(centre);
    let (stop, run) = device.start();
    let mut late = Centre::open(&broker).await;
    late.until("everything that was ever committed", |c| {
        c.status.as_ref().is_some_and(|s| s.online && s.pending == 0 && s.frames > 0 && s.frames + first.frames >= 200)
    })
    .await;
    stop.send_replace(true);
    let second = run.await.unwrap().unwrap();
    assert_eq!(second.pending, 0);
    assert_eq!(second.committed, first.committed + second.frames);
    assert_eq!(second.committed, 200, "no frame was labelled twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_byte_budget_frames_go_before_labels_and_the_centre_is_told() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 150, 1000.0, false);
    device.config.outbox.max_bytes = 60 * 1024;
    let mut centre = Centre::open(&broker).await;
    centre.answers = false;
    let (stop, run) = device.start();
    centre
        .until("150 labels on the disk, not all with their frames", |c| {
            c.status.as_ref().is_some_and(|s| s.committed == 150 && s.frames_evicted > 0)
        })
        .await;
    centre.answers = true;
    centre.until("an empty outbox", |c| c.status.as_ref().is_some_and(|s| s.pending == 0)).await;
    stop.send_replace(true);
    let summary = run.await.unwrap().unwrap();
    let status = centre.status.unwrap();
    assert_eq!((summary.evicted, status.evicted, centre.labels.len()), (0, 0, 150), "no label was evicted");
    let told = |key: &(u64, u64)| centre.frames.contains(key) || centre.frames_evicted.contains(key);
    assert!(centre.labels.iter().all(|(key, label)| label.jpeg && told(key)), "every announced frame is there, or told to be gone");
    let never = centre.frames_evicted.difference(&centre.frames).count() as u64;
    assert!(never > 0 && never <= status.frames_evicted, "{never} of {}", status.frames_evicted);
}

/// Bytes of the outbox's segments.
fn written(device: &Device) -> u64 {
    let segments = |list: std::fs::ReadDir| list.map(Result::unwrap).filter(|e| e.path().extension().is_some_and(|end| end == "seg"));
    let list = std::fs::read_dir(device.config.state_dir.join("outbox"));
    list.map_or(0, |list| segments(list).map(|e| e.metadata().map_or(0, |m| m.len())).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_broker_labels_and_ends_when_it_is_told() {
    let Some(broker) = Broker::start() else { return };
    let device = Device::provisioned(&broker, 30, 1000.0, true);
    drop(broker);
    let (stop, run) = device.start();
    let start = Instant::now();
    let bytes = || written(&device);
    while bytes() < 30 * 400 {
        assert!(start.elapsed() < DEADLINE, "the outbox has only {} bytes", bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A second process would write into the same outbox.
    let second = device.start().1.await.unwrap().unwrap_err();
    assert!(format!("{second:#}").contains("another omnilabel-edge"), "{second:#}");
    stop.send_replace(true);
    let summary = run.await.unwrap().unwrap();
    assert_eq!(summary.pending, summary.committed);
    assert!(summary.committed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_ends_and_its_folder_and_its_page_are_free() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 300, 100.0, false);
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    device.config.web = Some(WebConfig { listen, ..WebConfig::default() });
    let mut centre = Centre::open(&broker).await;
    centre.answers = false;
    let (_stop, run) = device.start();
    centre.until("a label", |c| !c.labels.is_empty()).await;
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    let start = Instant::now();
    while let Err(error) = crate::slots::lock(&device.config.state_dir) {
        assert!(start.elapsed() < DEADLINE, "the core works on: {error:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A hundred frames a second, of which there are some left.
    let before = written(&device);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(written(&device), before, "the core works on");
    while let Err(error) = std::net::TcpListener::bind(listen) {
        assert!(start.elapsed() < DEADLINE, "the page is still there: {error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_busy_core_is_told_of_its_end_too() {
    let (events, mut inbox) = mpsc::channel(1);
    events.try_send(Event::Tick).unwrap();
    drop(Ending(events));
    assert!(matches!(inbox.blocking_recv(), Some(Event::Tick)));
    assert!(matches!(inbox.blocking_recv(), Some(Event::Shutdown)));
}
