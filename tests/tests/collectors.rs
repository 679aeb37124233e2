//! Several collectors of one PostgreSQL database, as processes: devices send to a group, one of the group is killed, and every label is
//! stored once.

use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{AckMsg, Encoding, FrameHeader, LabelMsg, Message, StatusMsg, VERSION};
use omnilabel_link::{Incoming, Link, LinkConfig};
use omnilabel_tests::fleet::{SITE, Site, Student};
use omnilabel_tests::peers::{Process, run, until};
use omnilabel_tests::postgres::Postgres;
use omnilabel_trainer::service::store::Store;
use omnilabel_trainer::service::{Event, EventReader, ServiceConfig, read_counts};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const DEVICES: [&str; 6] = ["cam-1", "cam-2", "cam-3", "cam-4", "cam-5", "cam-6"];
/// Of one device; each with its picture.
const LABELS: u64 = 200;
const EPOCH: u64 = 7;
/// Labels that a device has on their way at once, and how soon it sends them again: real ones wait longer.
const WINDOW: usize = 16;
const AGAIN: Duration = Duration::from_secs(1);

const PREFIX: &str = "omnilabel/v1";

fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut buffer = vec![0; M::MAX_BYTES];
    let length = message.encode(Encoding::Cbor, &mut buffer).expect("a message");
    buffer.truncate(length);
    buffer
}

fn label(sequence: u64) -> Vec<u8> {
    let (frame, jpeg) = (sequence, true);
    encode(&LabelMsg { version: VERSION, epoch: EPOCH, sequence, frame, width: 32, height: 24, jpeg, ..LabelMsg::default() })
}

fn picture(sequence: u64) -> Vec<u8> {
    let header = encode(&FrameHeader { version: VERSION, epoch: EPOCH, sequence, frame: sequence });
    let jpeg = Frame { size: Size { width: 32, height: 24 }, rgb: vec![sequence as u8; 3 * 32 * 24] }.to_jpeg(50);
    [&(header.len() as u16).to_be_bytes()[..], &header, &jpeg].concat()
}

/// Sends everything until it is acknowledged, then says how much that was.
async fn device(broker: LinkConfig, name: &'static str) {
    let of = |kind| topic::device(PREFIX, SITE, name, kind).as_str().to_owned();
    let (link, mut incoming) = Link::open(&broker, name, None, vec![of(Kind::Ack)]).expect("a link");
    let mut open: BTreeSet<u64> = (1..=LABELS).collect();
    let (mut connected, mut again) = (false, tokio::time::interval(AGAIN));
    let mut sent = 0;
    while let Some(&first) = open.first() {
        tokio::select! {
            message = incoming.recv() => match message.expect("an open link") {
                Incoming::Connected => connected = true,
                Incoming::Disconnected { .. } => connected = false,
                Incoming::Refused { reason } => panic!("{reason}"),
                Incoming::Message { payload, .. } => {
                    let ack = AckMsg::decode(&payload).expect("an acknowledgement");
                    open.retain(|q| *q > ack.watermark && !ack.stored.iter().any(|&(from, to)| (from..=to).contains(q)));
                }
            },
            // What was sent and is not acknowledged is sent again.
            _ = again.tick() => sent = first - 1,
        }
        let window: Vec<u64> = open.iter().copied().take(WINDOW).filter(|q| *q > sent).collect();
        for sequence in if connected { window } else { Vec::new() } {
            link.publish(&of(Kind::Labels), label(sequence), false).await.expect("a label");
            link.publish(&of(Kind::Frames), picture(sequence), false).await.expect("a picture");
            sent = sequence;
        }
    }
    let status = StatusMsg { version: VERSION, online: true, epoch: EPOCH, committed: LABELS, ..StatusMsg::default() };
    link.publish(&of(Kind::Status), encode(&status), true).await.expect("a status");
    link.close().await;
}

fn collector(site: &Site, name: &str, store: &str) -> Process {
    let (port, config) = (site.broker.port, site.path(&format!("{name}.toml")));
    let text = format!(
        "client_id = {name:?}\nstate_dir = {name:?}\n{store}[broker]\nhost = \"127.0.0.1\"\nport = {port}\nsite = {SITE:?}\n\
         [collector]\nshare = \"centre\"\n"
    );
    std::fs::write(&config, text).expect("a configuration");
    Process::start("omnilabel-trainer", ["collect".as_ref(), "--config".as_ref(), config.as_os_str()], &site.log(name))
}

/// Waits until it has begun.
fn started(folder: &Path) {
    until(&format!("{} begins", folder.display()), || {
        let events = EventReader::new(folder).poll().ok()?;
        events.iter().any(|stamped| matches!(stamped.event, Event::Broker { connected: true, .. })).then_some(())
    });
}

#[test]
fn a_collector_is_killed_and_every_label_is_stored_once() {
    let Some(site) = Site::new() else { return };
    let Some(postgres) = Postgres::start() else { return };
    let store = format!("[store]\nurl = {:?}\n", postgres.url("postgres"));
    site.configure_centre(1_000_000, 0, Student::Careful);
    let path = site.path("trainer.toml");
    let text = std::fs::read_to_string(&path).expect("trainer.toml") + &store + "[collector]\nshare = \"centre\"\n";
    std::fs::write(&path, text).expect("trainer.toml");
    let config = ServiceConfig::load(&path).expect("trainer.toml");

    // A collector waits for the first `run`; that there is a second one in another folder, the database says.
    let (second, third) = (collector(&site, "second", &store), collector(&site, "third", &store));
    let centre = site.centre();
    for folder in ["centre", "second", "third"] {
        started(&site.path(folder));
    }
    let other = site.path("other.toml");
    let text = std::fs::read_to_string(&path).expect("trainer.toml").replace("state_dir = \"centre\"", "state_dir = \"other\"");
    std::fs::write(&other, text).expect("a configuration");
    let refused = run("omnilabel-trainer", ["run".as_ref(), "--config".as_ref(), other.as_os_str()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("another centre runs on postgres://"), "{said}");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let devices: Vec<_> = DEVICES.into_iter().map(|name| runtime.spawn(device(config.broker.clone(), name))).collect();
    let stored = || runtime.block_on(read_counts(&config)).expect("counts").iter().map(|device| device.stored).sum::<u64>();
    let all = DEVICES.len() as u64 * LABELS;
    until("a third of the labels", || (stored() >= all / 3).then_some(()));
    second.kill();
    for device in devices {
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(120), device).await })
            .expect("all is acknowledged")
            .expect("a device");
    }
    let counts = until("what the devices say at the end", || {
        let counts = runtime.block_on(read_counts(&config)).expect("counts");
        (counts.len() == DEVICES.len() && counts.iter().all(|device| device.committed == LABELS)).then_some(counts)
    });
    for device in &counts {
        let found = (device.stored, device.settled, device.frames, device.missing(), device.conflicts);
        assert_eq!(found, (LABELS, LABELS, LABELS, 0, 0), "{device:?}");
    }
    let wrong = runtime.block_on(async { Store::attach(&config).await.expect("the store").recount().await.expect("a recount") });
    assert_eq!(wrong, Vec::<String>::new());
    // Each did some, and the two that were left most.
    let commits = postgres.psql("postgres", "SELECT value FROM meta WHERE key LIKE 'commits of %' ORDER BY value");
    let commits: Vec<u64> = commits.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(commits.len() == 3 && commits[0] >= 5, "{commits:?}");
    for process in [centre, third] {
        process.signal("TERM");
        let said = process.said();
        assert!(process.wait().0.success(), "{said}");
    }
}
