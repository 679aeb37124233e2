//! The whole service against mosquitto, with devices that are nothing but a link and a list of what is not acknowledged yet.

use super::*;
use crate::service::events::EventReader;
use crate::service::sign;
use crate::service::store::counts::{DeviceCounts, read_counts};
use crate::service::testing::{Home, MeanPose, World, encode, messages, on_both};
use omnilabel_keypoints::wire::{AckMsg, Message, ModelMsg, ReleaseMsg, StatusMsg};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const DEADLINE: Duration = Duration::from_secs(60);

/// A broker that is killed when it goes out of scope.
struct Mosquitto {
    child: Child,
    port: u16,
}

impl Mosquitto {
    /// `None`, with a message, where mosquitto is not installed.
    fn start(dir: &Path, port: u16) -> Option<Self> {
        let config = dir.join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 4194304\n")).unwrap();
        for program in ["mosquitto", "/usr/sbin/mosquitto"] {
            let mut command = Command::new(program);
            command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(child) = command.spawn() {
                return Some(Self { child, port });
            }
        }
        println!("skipped: mosquitto is not installed");
        None
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A device: sends everything that is not acknowledged, again and again, until nothing is left.
async fn device(config: ServiceConfig, name: &'static str, labels: u64, bias: f64) {
    let ack = topic::device("omnilabel/v1", "home", name, Kind::Ack);
    let (link, mut incoming) = Link::open(&config.broker, name, None, vec![ack.as_str().to_owned()]).unwrap();
    let mut open: BTreeSet<u64> = (1..=labels).collect();
    let mut connected = false;
    let mut resend = tokio::time::interval(Duration::from_millis(400));
    while !open.is_empty() {
        tokio::select! {
            message = incoming.recv() => match message.unwrap() {
                Incoming::Connected => connected = true,
                Incoming::Disconnected { .. } => connected = false,
                Incoming::Refused { reason } => panic!("{reason}"),
                Incoming::Message { payload, .. } => {
                    let ack = AckMsg::decode(&payload).unwrap();
                    if ack.epoch == 77 {
                        open.retain(|q| *q > ack.watermark && !ack.stored.iter().any(|&(a, b)| (a..=b).contains(q)));
                    }
                }
            },
            _ = resend.tick(), if connected => {
                // Newest first: out of order, with gaps.
                for &sequence in open.iter().rev().take(10) {
                    for (kind, bytes) in messages(sequence, bias, 0) {
                        let topic = topic::device("omnilabel/v1", "home", name, kind);
                        let _ = tokio::time::timeout(Duration::from_secs(1), link.publish(topic.as_str(), bytes, false)).await;
                    }
                }
            }
        }
    }
    let status = StatusMsg { version: 1, online: true, epoch: 77, committed: labels, ..StatusMsg::default() };
    let topic = topic::device("omnilabel/v1", "home", name, Kind::Status);
    link.publish(topic.as_str(), encode(&status), true).await.unwrap();
    link.close().await;
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn service(config: ServiceConfig) -> (tokio::task::JoinHandle<anyhow::Result<()>>, watch::Sender<bool>) {
    let (stop, stopping) = watch::channel(false);
    let arm = Arc::new(MeanPose::default());
    (tokio::spawn(serve(config, arm, ServeOptions::default(), stopping)), stop)
}

async fn counts(config: &ServiceConfig) -> Vec<DeviceCounts> {
    read_counts(config).await.unwrap_or_default()
}

on_both! { labels_survive_a_broker_restart_and_a_release_comes_back }

async fn labels_survive_a_broker_restart_and_a_release_comes_back(home: Home) {
    let mut world = home.world();
    let port = free_port();
    world.config.broker.port = port;
    world.config.round.min_labels = 40;
    let config = world.config.clone();
    let Some(broker) = Mosquitto::start(world.dir.path(), port) else { return };
    let (running, stop) = service(config.clone());
    let devices = [tokio::spawn(device(config.clone(), "cam-1", 25, 0.0)), tokio::spawn(device(config.clone(), "cam-2", 15, 0.0))];

    until("a first label", async || counts(&config).await.iter().any(|c| c.stored > 0).then_some(())).await;
    let port = broker.port;
    drop(broker);
    // A second service in the same folder is refused while the first runs.
    let second = service(config.clone()).0.await.unwrap().unwrap_err();
    assert!(format!("{second:#}").contains("another centre"), "{second:#}");
    let _broker = Mosquitto::start(world.dir.path(), port).unwrap();
    for device in devices {
        tokio::time::timeout(DEADLINE, device).await.expect("a device that is never fully acknowledged").unwrap();
    }
    let both = until("the status of both devices", async || {
        let all = counts(&config).await;
        (all.len() == 2 && all.iter().all(|c| c.committed > 0)).then_some(all)
    })
    .await;
    for (device, labels) in both.iter().zip([25, 15]) {
        assert_eq!((device.stored, device.settled, device.frames), (labels, labels, labels), "{device:?}");
        assert_eq!((device.missing(), device.conflicts), (0, 0));
    }

    // Whoever subscribes later gets the retained release, and its blocks on request.
    let filters = vec!["omnilabel/v1/home/release/stable".to_owned(), "omnilabel/v1/home/blocks/+".to_owned()];
    let (link, mut incoming) = Link::open(&config.broker, "watcher", None, filters).unwrap();
    let key = sign::read_public(&world.dir.path().join(sign::PUBLIC)).unwrap();
    let ask = async |manifest: &omnilabel_keypoints::release::ReleaseManifest| {
        let request = BlockRequest { version: 1, counter: 1, blocks: manifest.blocks.iter().take(3).cloned().collect() };
        link.publish("omnilabel/v1/home/cam-1/blocks/get", encode(&request), false).await.unwrap();
    };
    let mut manifest = None;
    let mut wanted = BTreeSet::new();
    let deadline = Instant::now() + DEADLINE;
    while manifest.is_none() || !wanted.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = tokio::time::timeout(left, incoming.recv()).await.expect("no release, or not its blocks").unwrap();
        let Incoming::Message { topic, payload, .. } = message else { continue };
        if let Some(name) = topic.strip_prefix("omnilabel/v1/home/blocks/") {
            assert_eq!(omnilabel_bundle::hex(&Sha256::digest(&payload)), name);
            wanted.remove(name);
        } else if manifest.is_none() {
            let signed = sign::verify(&key, &ReleaseMsg::decode(&payload).unwrap()).unwrap();
            assert_eq!((signed.counter, signed.name.as_str()), (1, "round-1"));
            wanted = signed.blocks.iter().take(3).map(|b| b.as_str().to_owned()).collect();
            ask(&signed).await;
            manifest = Some(signed);
        }
    }
    let model = ModelMsg { version: 1, confirmed: 1, ..ModelMsg::default() };
    link.publish("omnilabel/v1/home/cam-1/model", encode(&model), true).await.unwrap();
    link.publish("omnilabel/v1/home/cam-1/labels", b"nonsense".to_vec(), false).await.unwrap();
    let mut reader = EventReader::new(&config.state_dir);
    let mut seen = Vec::new();
    until("the events", async || {
        seen.extend(reader.poll().unwrap().into_iter().map(|s| s.event));
        let confirmed = seen.iter().any(|e| matches!(e, Event::DeviceModel { confirmed: 1, .. }));
        let rejected = seen.iter().any(|e| matches!(e, Event::Rejected { messages: 1, last } if last.contains("cam-1/labels")));
        let released = seen.iter().any(|e| matches!(e, Event::Released { round: Some(1), counter: 1, .. }));
        (confirmed && rejected && released).then_some(())
    })
    .await;
    link.close().await;
    stop.send_replace(true);
    tokio::time::timeout(DEADLINE, running).await.expect("the service does not stop").unwrap().unwrap();
    assert!(matches!(reader.poll().unwrap().last().map(|s| s.event.clone()), Some(Event::Stopped)));

    // After a restart the same store goes on, with the same collector epoch.
    let (running, stop) = service(config.clone());
    until("the restart", async || {
        let events: Vec<_> = EventReader::new(&config.state_dir).poll().unwrap();
        let started: Vec<_> = events
            .iter()
            .filter_map(|s| match s.event {
                Event::Started { collector, running } => Some((collector, running)),
                _ => None,
            })
            .collect();
        (started.len() == 2).then(|| assert_eq!((started[0].0, started[1].1), (started[1].0, 1)))
    })
    .await;
    stop.send_replace(true);
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_kept_is_an_event() {
    let mut world = World::new();
    world.config.collector.max_frame_bytes = 1000;
    let config = world.config.clone();
    let (out, _queued) = mpsc::channel(OUT_QUEUE);
    let store = Store::open(&config, false).await.unwrap();
    let events = Arc::new(EventLog::open(&config.state_dir).unwrap());
    let mut collector =
        Collector::new(&config.collector, &store, &events, world.intake(), out, AckQueue::default(), Arc::new(Notify::new()));
    // The label and its frame, both again, and another label under the same key.
    let (first, other) = (messages(1, 0.0, 0), messages(1, 0.1, 0));
    let bytes = (first[1].1.len() - 2 - usize::from(u16::from_be_bytes([first[1].1[0], first[1].1[1]]))) as u64;
    let (_stop, mut stopping) = watch::channel(false);
    for (kind, payload) in first.iter().chain(&first).chain(&other[..1]) {
        let topic = topic::device("omnilabel/v1", "home", "cam-1", *kind).as_str().to_owned();
        let (device, taken) = collector.intake.take(&topic, payload.clone()).unwrap();
        let Taken::Store(record) = taken else { panic!("{taken:?}") };
        assert!(collector.commit(&[(device, record)], &mut stopping).await);
    }
    let events: Vec<_> = EventReader::new(&config.state_dir).poll().unwrap().into_iter().map(|s| s.event).collect();
    let [Event::FrameRefused { device, bytes: said, limit: 1000, reason, .. }, conflict] = &events[..] else { panic!("{events:?}") };
    assert_eq!((device.as_str(), *said), ("cam-1", bytes));
    assert!(reason.contains("at most 1000"), "{reason}");
    assert_eq!(*conflict, Event::Conflict { device: "cam-1".into(), epoch: 77, sequence: 1 });

    // What cannot be used is kept with its reason, and makes nobody a device.
    let bad = Incoming::Message { topic: "omnilabel/v1/home/stranger/labels".to_owned(), payload: b"nonsense".to_vec(), retained: false };
    let (device, record, _) = collector.take(bad).unwrap();
    assert!(collector.commit(&[(device, record)], &mut stopping).await);
    let kept = collector.store.quarantined(10).await.unwrap();
    assert!(kept.len() == 1 && kept[0].topic.contains("stranger") && kept[0].reason.contains("not a valid message"), "{kept:?}");
    assert_eq!(collector.store.quarantined_one(kept[0].id).await.unwrap().unwrap().1, b"nonsense");
    assert_eq!(collector.store.devices().await.unwrap(), ["cam-1"]);

    // Who runs a release that nobody made here has it from somebody else.
    collector.model("cam-1", &ModelMsg { version: 1, confirmed: 0, ..ModelMsg::default() });
    collector.model("cam-2", &ModelMsg { version: 1, confirmed: 7, ..ModelMsg::default() });
    collector.report(&mut 0, false).await;
    let events: Vec<_> = EventReader::new(&config.state_dir).poll().unwrap().into_iter().map(|s| s.event).collect();
    let unknown: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Error { what, message } if what == "unknown release" => Some(message),
            _ => None,
        })
        .collect();
    assert!(unknown.len() == 1 && unknown[0].starts_with("cam-2 confirmed release 7"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_counted_by_device_and_for_the_fleet() {
    let world = World::new();
    let (out, _queued) = mpsc::channel(OUT_QUEUE);
    let store = Store::open(&world.config, false).await.unwrap();
    let events = Arc::new(EventLog::open(&world.config.state_dir).unwrap());
    let mut collector =
        Collector::new(&world.config.collector, &store, &events, world.intake(), out, AckQueue::default(), Arc::new(Notify::new()));
    let (_stop, mut stopping) = watch::channel(false);
    for (device, last) in [("cam-1", 3), ("cam-2", 2), ("cam-1", 4)] {
        assert!(collector.commit(&world.labels(device, 1..=last, 0.0, 0), &mut stopping).await);
        collector.report(&mut 0, false).await;
    }
    let told = |event: &Event| matches!(event, Event::Labels { .. });
    let before = EventReader::new(&world.config.state_dir).poll().unwrap().into_iter().filter(|s| told(&s.event)).count();
    assert_eq!(before, 2, "the third is not due");
    collector.report(&mut 0, true).await;
    let said: Vec<_> = EventReader::new(&world.config.state_dir).poll().unwrap().into_iter().map(|s| s.event).collect();
    let labels: Vec<_> = said
        .iter()
        .filter_map(|event| match event {
            Event::Labels { device, stored, .. } => Some((device.as_str(), *stored)),
            _ => None,
        })
        .collect();
    assert_eq!(labels, [("cam-1", 3), ("cam-2", 2), ("cam-1", 4)], "the last of them at the end");
    let fleet: Vec<_> = said
        .iter()
        .filter_map(|event| match event {
            Event::Fleet { stored, new, .. } => Some((*stored, *new)),
            _ => None,
        })
        .collect();
    assert_eq!((fleet.last().map(|last| last.0), fleet.iter().map(|one| one.1).sum::<u64>()), (Some(6), 6), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_is_said_and_waited_for() {
    let mut world = World::new();
    world.config.broker.port = free_port();
    let (running, stop) = service(world.config.clone());
    let mut reader = EventReader::new(&world.config.state_dir);
    until("the report", async || {
        let events = reader.poll().unwrap();
        events.iter().any(|s| matches!(&s.event, Event::Broker { connected: false, reason } if !reason.is_empty())).then_some(())
    })
    .await;
    stop.send_replace(true);
    tokio::time::timeout(DEADLINE, running).await.expect("the service does not stop").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_goes_away_is_said_and_waited_for() {
    let Some(mut home) = Home::sqlite().with_bucket() else { return };
    let mut world = home.world();
    world.config.broker.port = free_port();
    world.config.round.min_labels = 20;
    let config = world.config.clone();
    let Some(_broker) = Mosquitto::start(world.dir.path(), config.broker.port) else { return };
    home.s3.as_mut().unwrap().stop();
    let (running, stop) = service(config.clone());
    let device = tokio::spawn(device(config.clone(), "cam-1", 20, 0.0));
    let mut reader = EventReader::new(&config.state_dir);
    let mut seen = Vec::new();
    until("the report", async || {
        seen.extend(reader.poll().unwrap().into_iter().map(|s| s.event));
        seen.iter().any(|e| matches!(e, Event::Error { what, message } if what == "store" && message.starts_with("s3://"))).then_some(())
    })
    .await;
    assert_eq!(counts(&config).await.iter().map(|c| c.frames).sum::<u64>(), 0, "no picture is there, so none is acknowledged");
    home.s3.as_mut().unwrap().start_again();
    home.s3.as_ref().unwrap().make_bucket();
    tokio::time::timeout(DEADLINE, device).await.expect("a device that is never fully acknowledged").unwrap();
    // The round has its pictures from there.
    until("a release", async || {
        seen.extend(reader.poll().unwrap().into_iter().map(|s| s.event));
        seen.iter().any(|e| matches!(e, Event::Released { round: Some(1), .. })).then_some(())
    })
    .await;
    assert!(seen.iter().any(|e| matches!(e, Event::Exported { images: 20, skipped: 0, .. })), "{seen:?}");
    stop.send_replace(true);
    tokio::time::timeout(DEADLINE, running).await.expect("the service does not stop").unwrap().unwrap();
    let said = std::fs::read_to_string(config.state_dir.join("events.jsonl")).unwrap();
    assert!(!said.contains("hunter2") && !said.contains("AKIATEST"), "{said}");
}
