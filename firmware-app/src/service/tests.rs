//! The appliance against mosquitto and a centre of a few lines: everything arrives once, releases come in or are refused.

#[path = "../../../models/runtime/tests/onnx/mod.rs"]
mod onnx;

use super::*;
use crate::config::{CameraConfig, FramePolicy, OutboxConfig, PublishConfig, TeacherConfig, UpdateConfig};
use crate::testing::{bundle, key, model, release, release_in_blocks, sign};
use omnilabel_bundle::{CropSpec, Refine, Values};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::release::ReleaseManifest;
use omnilabel_keypoints::trial::{Phase, Slot, State};
use omnilabel_keypoints::wire::topic;
use omnilabel_keypoints::wire::{AckMsg, BlockRequest, FrameHeader, LabelMsg, Message, ModelMsg};
use omnilabel_link::LinkConfig;
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, wrap};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Generous: the machine may be busy. Nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

struct Broker {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::write(folder.path().join("conf"), format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
        let child = Self::spawn(folder.path(), port)?;
        Some(Self { child, port, folder })
    }

    fn spawn(folder: &Path, port: u16) -> Option<Child> {
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|name| Command::new(name).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok());
        let Some(program) = program else {
            eprintln!("skipped: mosquitto is not installed");
            return None;
        };
        let mut command = Command::new(program);
        let child = command.arg("-c").arg(folder.join("conf")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < DEADLINE, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(child)
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.folder.path(), self.port).unwrap();
    }

    fn link(&self) -> LinkConfig {
        LinkConfig {
            host: "127.0.0.1".into(),
            port: self.port,
            tls: None,
            allow_plain: false,
            prefix: "omnilabel/v1".into(),
            site: "yard".into(),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Loads hand-made models: the bundle's name says what is wrong with it.
struct Hand;

impl Loader for Hand {
    fn load(&self, bundle: &Bundle, counter: u64) -> anyhow::Result<Model> {
        let name = bundle.manifest().name.as_str();
        anyhow::ensure!(name != "unloadable", "no such operator");
        Ok(model(bundle, counter, name == "panics"))
    }
    fn golden(&self, bundle: &Bundle, _: &Model) -> anyhow::Result<()> {
        anyhow::ensure!(bundle.manifest().name != "drifts", "a keypoint is 9 px away");
        Ok(())
    }
}

/// What the centre has.
struct Centre {
    link: Link,
    incoming: mpsc::Receiver<Incoming>,
    topics: Topics,
    labels: BTreeMap<(u64, u64), LabelMsg>,
    frames: BTreeSet<(u64, u64)>,
    status: Option<StatusMsg>,
    model: Option<ModelMsg>,
    blocks: HashMap<String, Vec<u8>>,
    /// Acknowledges what it has.
    answers: bool,
}

impl Centre {
    async fn open(broker: &Broker) -> Self {
        let topics = Topics::new(&broker.link(), "cam-1");
        let filters = [Kind::Labels, Kind::Frames, Kind::Status, Kind::Model, Kind::BlocksGet].map(|kind| topics.of(kind)).to_vec();
        let (link, incoming) = Link::open(&broker.link(), "centre", None, filters).unwrap();
        Self {
            link,
            incoming,
            topics,
            labels: BTreeMap::new(),
            frames: BTreeSet::new(),
            status: None,
            model: None,
            blocks: HashMap::new(),
            answers: true,
        }
    }

    /// Works until `done` is true of it.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let left = DEADLINE.checked_sub(start.elapsed());
            let next = tokio::time::timeout(left.unwrap_or_default(), self.incoming.recv()).await;
            let Ok(Some(message)) = next else {
                panic!(
                    "{what} did not happen: {} labels, {} frames, {:?}, {:?}",
                    self.labels.len(),
                    self.frames.len(),
                    self.status,
                    self.model
                )
            };
            if let Incoming::Message { topic, payload, .. } = message {
                self.take(&topic, &payload).await;
            }
        }
    }

    async fn take(&mut self, topic: &str, payload: &[u8]) {
        match topic::parse_device("omnilabel/v1", "yard", topic).unwrap().1 {
            Kind::Labels => {
                let label = LabelMsg::decode(payload).unwrap();
                let key = (label.epoch, label.sequence);
                if let Some(before) = self.labels.insert(key, label.clone()) {
                    assert_eq!(before, label, "a key came with another label");
                }
            }
            Kind::Frames => {
                let length = usize::from(u16::from_be_bytes([payload[0], payload[1]]));
                let header = FrameHeader::decode(&payload[2..2 + length]).unwrap();
                Frame::decode("frame", &payload[2 + length..]).unwrap();
                self.frames.insert((header.epoch, header.sequence));
            }
            Kind::Status => self.status = Some(StatusMsg::decode(payload).unwrap()),
            Kind::Model => self.model = Some(ModelMsg::decode(payload).unwrap()),
            Kind::BlocksGet => {
                for hash in &BlockRequest::decode(payload).unwrap().blocks {
                    let block = self.blocks[hash.as_str()].clone();
                    let topic = topic::block("omnilabel/v1", "yard", hash);
                    self.link.publish(&topic, block, false).await.unwrap();
                }
            }
            Kind::Histogram | Kind::Ack => panic!("{topic}"),
        }
        if self.answers {
            self.acknowledge().await;
        }
    }

    async fn acknowledge(&mut self) {
        let settled = |key: &(u64, u64)| self.labels.get(key).is_some_and(|label| !label.jpeg || self.frames.contains(key));
        let Some(&(epoch, _)) = self.labels.keys().next_back() else { return };
        let watermark = (1..).take_while(|&sequence| settled(&(epoch, sequence))).count() as u64;
        let mut stored: heapless::Vec<(u64, u64), 16> = heapless::Vec::new();
        for &(_, sequence) in self.labels.keys().filter(|key| key.1 > watermark && settled(key)) {
            if let Some(last) = stored.last_mut()
                && last.1 + 1 == sequence
            {
                last.1 = sequence;
            } else if stored.push((sequence, sequence)).is_err() {
                break;
            }
        }
        let ack = AckMsg { version: VERSION, collector: 9, epoch, watermark, stored };
        let payload = crate::publish::encode(&ack, Encoding::Cbor).unwrap();
        self.link.publish(&self.topics.of(Kind::Ack), payload, true).await.unwrap();
    }

    async fn offer(&mut self, manifest: &ReleaseManifest, blocks: &[Vec<u8>], key: &ed25519_dalek::SigningKey) {
        for block in blocks {
            let hash = omnilabel_bundle::hex(&<sha2::Sha256 as sha2::Digest>::digest(block));
            self.blocks.insert(hash, block.clone());
        }
        let payload = crate::publish::encode(&sign(manifest, key), Encoding::Cbor).unwrap();
        self.link.publish(&self.topics.release("stable"), payload, true).await.unwrap();
    }
}

struct Device {
    folder: tempfile::TempDir,
    config: EdgeConfig,
}

impl Device {
    fn provisioned(broker: &Broker, images: usize, fps: f64, stop_at_end: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (state, frames) = (folder.path().join("state"), folder.path().join("frames"));
        bundle(&folder.path().join("bundle"), "first", 1, 500);
        let public = folder.path().join("public");
        std::fs::write(&public, omnilabel_bundle::hex(key().verifying_key().as_bytes())).unwrap();
        Slots::install(&state, &folder.path().join("bundle"), Some(&public)).unwrap();
        std::fs::create_dir(&frames).unwrap();
        for index in 0..images {
            let frame = Frame { size: Size { width: 48, height: 32 }, rgb: vec![index as u8; 48 * 32 * 3] };
            std::fs::write(frames.join(format!("{:04}.jpg", index + 1)), frame.to_jpeg(80)).unwrap();
        }
        let config = EdgeConfig {
            device: "cam-1".into(),
            state_dir: state,
            channel: "stable".into(),
            root_key: None,
            broker: broker.link(),
            camera: CameraConfig::Folder { path: frames, fps, repeat: false, stop_at_end },
            teacher: TeacherConfig::default(),
            outbox: OutboxConfig::default(),
            publish: PublishConfig { frames: FramePolicy::All, ..PublishConfig::default() },
            update: UpdateConfig { probation_frames: 5, ..UpdateConfig::default() },
        };
        Self { folder, config }
    }

    fn start(&self) -> (watch::Sender<bool>, tokio::task::JoinHandle<anyhow::Result<Summary>>) {
        let (stop, stopped) = watch::channel(false);
        (stop, tokio::spawn(run_with(self.config.clone(), Arc::new(Hand), stopped)))
    }
}

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
async fn releases_are_taken_on_trial_confirmed_refused_or_reverted_while_labels_go_on() {
    let Some(broker) = Broker::start() else { return };
    // The footage ends early: probations go on with the last frames.
    let device = Device::provisioned(&broker, 10, 200.0, false);
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    centre.until("the labels", |c| c.labels.len() == 10).await;

    let make = |name: &str, counter: u64| {
        let root = device.folder.path().join(format!("centre-{counter}"));
        release(&bundle(&root, name, counter as u8, 9000), counter)
    };
    let confirmed = |c: &Centre| c.model.as_ref().map_or(0, |m| m.confirmed);
    let refused = |c: &Centre, counter: u64, why: &str| {
        c.model.as_ref().is_some_and(|m| m.refused == Some(counter) && m.trial.is_none() && m.reason.contains(why))
    };

    let (good, blocks) = make("second", 3);
    centre.offer(&good, &blocks, &ed25519_dalek::SigningKey::from_bytes(&[9; 32])).await;
    centre.until("an unsigned release is refused", |c| c.model.as_ref().is_some_and(|m| m.reason.contains("signature"))).await;
    assert_eq!(confirmed(&centre), 0);

    centre.offer(&good, &blocks, &key()).await;
    centre.until("release 3 is confirmed", |c| confirmed(c) == 3).await;

    let bad = [
        ("untried", "golden frames: the release has none"),
        ("drifts", "9 px"),
        ("unloadable", "no such operator"),
        ("panics", "panicked"),
    ];
    for ((name, why), counter) in bad.into_iter().zip(5..) {
        let (bad, blocks) = make(name, counter);
        centre.offer(&bad, &blocks, &key()).await;
        centre.until(&format!("release {counter} ({name}) is refused"), |c| refused(c, counter, why)).await;
        assert_eq!(confirmed(&centre), 3);
        assert!(!device.config.state_dir.join("a").exists(), "what was refused is not kept");
    }
    // Only the newest model's own counter is new enough.
    let (old, blocks) = make("old", 4);
    centre.offer(&old, &blocks, &key()).await;
    centre.until("an older release is refused", |c| refused(c, 4, "not newer")).await;

    let (last, blocks) = make("third", 9);
    centre.offer(&last, &blocks, &key()).await;
    centre.until("release 9 is confirmed", |c| confirmed(c) == 9).await;
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 9);
    // The new model is what the device starts with.
    let (slots, model) = Slots::open(&device.config.state_dir, &key().verifying_key()).unwrap();
    assert_eq!((model.manifest().name.as_str(), slots.state().confirmed_counter), ("third", 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_in_a_probation_costs_the_release_nothing_and_a_crash_reverts_it() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 10, 200.0, false);
    device.config.update.probation_frames = u32::MAX;
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    let (good, blocks) = release(&bundle(&device.folder.path().join("centre"), "second", 2, 9000), 3);
    centre.offer(&good, &blocks, &key()).await;
    let state = device.config.state_dir.join("state.json");
    // The device tells of a phase after it has written it.
    centre.until("the probation", |_| std::fs::read_to_string(&state).unwrap().contains("probation")).await;
    stop.send_replace(true);
    run.await.unwrap().unwrap();

    device.config.update.probation_frames = 5;
    let (stop, run) = device.start();
    centre.until("release 3 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 3)).await;
    stop.send_replace(true);
    run.await.unwrap().unwrap();

    let (mut slots, _) = Slots::open(&device.config.state_dir, &key().verifying_key()).unwrap();
    let phase = Phase::Probation { counter: 4, frames_left: 2 };
    slots.begin_trial(Slot::A).unwrap();
    slots.set(State { phase, ..slots.state() }).unwrap();
    let (stop, run) = device.start();
    centre.until("release 4 is refused", |c| c.model.as_ref().is_some_and(|m| m.refused == Some(4))).await;
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
    assert!(!slots.path(Slot::A).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_broker_labels_and_ends_when_it_is_told() {
    let Some(broker) = Broker::start() else { return };
    let device = Device::provisioned(&broker, 30, 1000.0, true);
    drop(broker);
    let (stop, run) = device.start();
    let start = Instant::now();
    let outbox = device.config.state_dir.join("outbox");
    let bytes = || std::fs::read_dir(&outbox).map_or(0, |list| list.map(|e| e.unwrap().metadata().map_or(0, |m| m.len())).sum::<u64>());
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

/// A wrapped model of `kind` in `root`.
fn wrapped(root: &Path, net: &onnx::Net, kind: WrapKind, detector: Option<&Bundle>) -> Bundle {
    let one_stage = matches!(kind, WrapKind::OneStage { .. });
    std::fs::create_dir_all(root).unwrap();
    let request = WrapRequest {
        onnx: root.join("model.onnx"),
        out: root.join("bundle"),
        name: "wrapped".into(),
        skeleton: onnx::skeleton(),
        input: one_stage.then_some((192, 192)),
        mean: [0.0; 3],
        std: [1.0; 3],
        channels: omnilabel_bundle::Channels::Rgb,
        kind,
        thresholds: omnilabel_keypoints::label::Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
        detector: detector.map(|detector| detector.root().to_owned()),
        frame: onnx::picture(),
        boxes: None,
    };
    net.save(&request.onnx);
    wrap(&request).unwrap().bundle
}

/// The real loader, a real one-stage model first, then a top-down model with that one in its bundle as a release over MQTT: tried on its
/// golden frame, confirmed, and labelling. One that brings no detector, or another answer than its golden frame's, is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_model_comes_as_a_release_with_its_detector() {
    let Some(broker) = Broker::start() else { return };
    let device = Device::provisioned(&broker, 4, 200.0, false);
    let at = |name: &str| device.folder.path().join(name);
    let spec = onnx::one_stage_spec();
    let finder = wrapped(&at("finder"), &onnx::one_stage(true, false), WrapKind::OneStage { spec, stride: 8 }, None);
    std::fs::remove_dir_all(&device.config.state_dir).unwrap();
    Slots::install(&device.config.state_dir, finder.root(), Some(&at("public"))).unwrap();
    std::fs::write(at("frames/0002.jpg"), onnx::picture().to_jpeg(100)).unwrap();

    let mut centre = Centre::open(&broker).await;
    let (stop, stopped) = watch::channel(false);
    let run = tokio::spawn(super::run(device.config.clone(), stopped));
    centre.until("the labels of the one-stage model", |c| c.labels.len() == 4).await;
    let people: usize = centre.labels.values().map(|label| label.instances.len()).sum();
    assert_eq!(people, 2);

    let crop = CropSpec { padding: 1.25, udp: false };
    let heatmap = || WrapKind::Heatmap { output: None, crop, values: Values::Peak, refine: Refine::Quarter, shift_flipped: true };
    let net = onnx::heatmap(4, onnx::Eyes::default(), onnx::D::N(1));
    let confirmed = |c: &Centre| c.model.as_ref().map_or(0, |m| m.confirmed);
    let refused = |c: &Centre, counter: u64, why: &str| {
        c.model.as_ref().is_some_and(|m| m.refused == Some(counter) && m.trial.is_none() && m.reason.contains(why))
    };
    let whole = wrapped(&at("whole"), &net, heatmap(), Some(&finder));
    let offer = |bundle: &Bundle, counter| release_in_blocks(bundle, counter, 1 << 16);
    let (good, blocks) = offer(&whole, 3);
    centre.offer(&good, &blocks, &key()).await;
    centre.until("release 3 is confirmed", |c| confirmed(c) == 3).await;

    let (alone, blocks) = offer(&wrapped(&at("alone"), &net, heatmap(), None), 4);
    centre.offer(&alone, &blocks, &key()).await;
    centre.until("a model without a detector is refused", |c| refused(c, 4, "top-down")).await;

    let text = std::fs::read_to_string(whole.root().join("golden/check.json")).unwrap();
    std::fs::write(whole.root().join("golden/check.json"), text.replacen("\"x1\":2", "\"x1\":1", 1)).unwrap();
    let changed = omnilabel_bundle::seal(whole.root(), whole.manifest().clone()).unwrap();
    let (drifts, blocks) = offer(&changed, 5);
    centre.offer(&drifts, &blocks, &key()).await;
    centre.until("another answer than the golden one is refused", |c| refused(c, 5, "golden/check.png")).await;

    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
    let (slots, model) = Slots::open(&device.config.state_dir, &key().verifying_key()).unwrap();
    assert_eq!(slots.state().confirmed_counter, 3);
    assert_eq!(model.detector().unwrap().unwrap().sha256(), finder.sha256());
}
