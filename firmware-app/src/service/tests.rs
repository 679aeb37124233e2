//! The appliance against mosquitto and a centre of a few lines: everything arrives once, releases come in or are refused.

#[path = "../../../models/runtime/tests/onnx/mod.rs"]
mod onnx;

use super::*;
use crate::config::{CameraConfig, FramePolicy, OutboxConfig, PolicyConfig, PublishConfig, TeacherConfig, UpdateConfig, WebConfig};
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

    /// Works until a device's run ends.
    async fn beside<T>(&mut self, mut run: tokio::task::JoinHandle<T>) -> T {
        let work = async {
            loop {
                tokio::select! {
                    done = &mut run => return done.unwrap(),
                    Some(message) = self.incoming.recv() => if let Incoming::Message { topic, payload, .. } = message {
                        self.take(&topic, &payload).await;
                    },
                }
            }
        };
        tokio::time::timeout(DEADLINE, work).await.expect("the device ends")
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
            camera: Some(CameraConfig::Folder { path: frames, fps, repeat: false, stop_at_end }),
            cameras: BTreeMap::new(),
            policy: PolicyConfig::default(),
            web: None,
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

/// A folder of `images` frames that all differ.
fn frames(folder: &Path, images: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for index in 0..images {
        let rgb = (0..48 * 32).flat_map(|pixel| [if pixel / 16 == index { 255 } else { 0 }; 3]).collect();
        let frame = Frame { size: Size { width: 48, height: 32 }, rgb };
        std::fs::write(folder.join(format!("{:04}.jpg", index + 1)), frame.to_jpeg(90)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_cameras_are_labelled_and_one_that_is_not_there_stops_no_other() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 1.0, true);
    let at = |name: &str| device.folder.path().join(name);
    let camera = |name: &str| CameraConfig::Folder { path: at(name), fps: 500.0, repeat: false, stop_at_end: true };
    frames(&at("gate"), 30);
    frames(&at("yard"), 7);
    std::fs::write(at("yard/0003.jpg"), b"\xff\xd8 torn").unwrap();
    let cameras = ["gate", "late", "yard"].map(|name| (name.to_owned(), camera(name)));
    (device.config.camera, device.config.cameras) = (None, cameras.into());
    let mut centre = Centre::open(&broker).await;
    let (_stop, run) = device.start();
    let of =
        |c: &Centre, camera: &str| c.labels.values().filter(|label| label.camera == camera).map(|label| label.frame).collect::<Vec<_>>();
    centre.until("the labels of two cameras", |c| of(c, "gate").len() == 30 && of(c, "yard").len() == 6).await;
    assert!(!run.is_finished(), "the third camera's frames may still come");
    frames(&at("late"), 3);
    centre.until("the labels of the third", |c| of(c, "late").len() == 3).await;
    let summary = centre.beside(run).await.unwrap();
    assert_eq!((summary.frames, summary.bad_frames, summary.committed, summary.pending), (39, 1, 39, 0));
    assert_eq!(of(&centre, "yard"), [1, 2, 4, 5, 6, 7]);
    assert!(centre.labels.values().all(|label| label.views == 2 && label.changes == 0));
    // Each camera goes on where it was: there is nothing left to do.
    let again = centre.beside(device.start().1).await.unwrap();
    assert_eq!((again.frames, again.committed), (0, 39));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_passes_over_frames_and_a_restart_knows_the_quotas() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 500.0, true);
    let folder = device.folder.path().join("frames");
    frames(&folder, 20);
    // The second half repeats the frame before it.
    for index in (2..=20).step_by(2) {
        std::fs::copy(folder.join(format!("{:04}.jpg", index - 1)), folder.join(format!("{index:04}.jpg"))).unwrap();
    }
    device.config.policy = PolicyConfig { novelty: 0.1, labels_per_day: 6, ..PolicyConfig::default() };
    device.config.publish = PublishConfig { frames: FramePolicy::All, frames_per_day: 2, only_people: true, ..PublishConfig::default() };
    let mut centre = Centre::open(&broker).await;
    let summary = centre.beside(device.start().1).await.unwrap();
    assert_eq!((summary.frames, summary.committed), (6, 6));
    assert_eq!(centre.labels.values().map(|label| label.frame).collect::<Vec<_>>(), [1, 3, 5, 7, 9, 11]);
    let changed = centre.labels.values().map(|label| (label.jpeg, label.changes)).collect::<Vec<_>>();
    let only_people = omnilabel_keypoints::wire::ONLY_PEOPLE;
    assert_eq!(changed, [(true, only_people), (true, only_people), (false, 0), (false, 0), (false, 0), (false, 0)]);
    // Another folder, on the same day.
    frames(&device.folder.path().join("more"), 4);
    device.config.camera =
        Some(CameraConfig::Folder { path: device.folder.path().join("more"), fps: 500.0, repeat: false, stop_at_end: true });
    let more = centre.beside(device.start().1).await.unwrap();
    assert_eq!(more.frames, 0, "the day's labels are made");
    device.config.policy.labels_per_day = 7;
    std::fs::remove_file(device.config.state_dir.join("camera.progress")).unwrap();
    let more = centre.beside(device.start().1).await.unwrap();
    assert_eq!((more.frames, more.committed), (1, 7));
}

/// Status and body of what the page's server answers.
async fn get(port: u16, path: &str, headers: &str) -> (u16, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    socket.write_all(format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
}

/// What a page holds after some seconds in a real browser.
fn browsed(url: &str) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom", url]);
    let out = command.arg(format!("--user-data-dir={}", profile.path().display())).output().ok()?;
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    // The program's own words are no proof that it said them.
    let (before, rest) = dom.split_once("<script>")?;
    Some(before.to_owned() + rest.split_once("</script>")?.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_device_does_to_who_may_know() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 50.0, false);
    frames(&device.folder.path().join("frames"), 40);
    device.config.camera =
        Some(CameraConfig::Folder { path: device.folder.path().join("frames"), fps: 50.0, repeat: true, stop_at_end: false });
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    device.config.web = Some(WebConfig { listen, ..WebConfig::default() });
    let (stop, run) = device.start();
    let start = Instant::now();
    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let state = loop {
        assert!(start.elapsed() < DEADLINE, "no label is shown");
        // The page may not be there yet.
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            let (status, body) = get(port, "/api/state", "").await;
            if status == 200 && value(&body)["outbox"]["committed"].as_u64() > Some(5) {
                break value(&body);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (&state["device"], &state["cameras"][0]["name"], &state["cameras"][0]["state"]),
        (&"cam-1".into(), &"camera".into(), &"live".into())
    );
    assert_eq!((state["cameras"][0]["width"].as_u64(), state["model"]["phase"].as_str()), (Some(48), Some("idle")));
    assert_eq!(state["skeleton"]["names"].as_array().unwrap().len(), state["thresholds"]["keypoint"].as_array().unwrap().len());
    let label = loop {
        assert!(start.elapsed() < DEADLINE, "no frame is shown");
        match get(port, "/api/cameras/camera/label", "").await {
            (200, body) => break value(&body),
            (status, _) => assert_eq!(status, 404),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((label["width"].as_u64(), label["height"].as_u64()), (Some(48), Some(32)));
    let (status, jpeg) = get(port, "/api/cameras/camera/frame", "").await;
    assert_eq!((status, Frame::decode("shown", &jpeg).unwrap().size), (200, Size { width: 48, height: 32 }));
    assert_eq!(get(port, "/api/cameras/camera/frame?id=99999", "").await.0, 404);
    assert_eq!(get(port, "/api/cameras/other/label", "").await.0, 404);
    assert_eq!(get(port, "/api/cameras/camera/frame?id=x", "").await.0, 400);
    assert_eq!(get(port, "/healthz", "").await, (200, b"ok\n".to_vec()));
    assert_eq!(get(port, "/", "Host: evil.example\r\n").await.0, 403, "a name that leads here is not this machine's");
    assert!(String::from_utf8(get(port, "/", "").await.1).unwrap().contains("<script>"));
    let url = format!("http://127.0.0.1:{port}/");
    match tokio::task::spawn_blocking(move || browsed(&url)).await.unwrap() {
        None => eprintln!("skipped: chromium is not installed"),
        Some(page) => {
            let expected = ["cam-1", "Labelling", "connected to broker"];
            assert!(expected.iter().all(|text| page.contains(text)), "the page shows {page}");
        }
    }
    let metrics = String::from_utf8(get(port, "/metrics", "").await.1).unwrap();
    for line in
        ["omnilabel_frames_skipped_total{reason=\"quota\"} 0", "omnilabel_camera_up{camera=\"camera\"} 1", "omnilabel_broker_connected 1"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let seconds = metrics.lines().find_map(|line| line.strip_prefix("omnilabel_frame_seconds_count ")).unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 5);
    stop.send_replace(true);
    run.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the page ends with the device");

    let token = device.folder.path().join("token");
    std::fs::write(&token, "too short\n").unwrap();
    let guarded = WebConfig { listen, token_file: Some(token.clone()), pictures: false };
    device.config.web = Some(guarded);
    let said = format!("{:#}", device.start().1.await.unwrap().unwrap_err());
    assert!(said.contains("web.token_file") && said.contains("16"), "{said}");
    std::fs::write(&token, "0123456789abcdef0123\n").unwrap();
    // A folder that is not there: the page says that the camera is away.
    let cameras = ["a", "b"].map(|name| {
        let path = device.folder.path().join(if name == "a" { "frames" } else { "nowhere" });
        (name.to_owned(), CameraConfig::Folder { path, fps: 50.0, repeat: true, stop_at_end: false })
    });
    (device.config.camera, device.config.cameras) = (None, cameras.into());
    let (stop, run) = device.start();
    let known = "Authorization: Bearer 0123456789abcdef0123\r\n";
    let start = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() || get(port, "/api/state", known).await.0 != 200 {
        assert!(start.elapsed() < DEADLINE, "no state is shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for path in ["/api/state", "/metrics", "/api/cameras/a/label", "/api/cameras/a/frame"] {
        assert_eq!(get(port, path, "").await.0, 401, "{path}");
        assert_eq!(get(port, path, "Authorization: Bearer 0123456789abcdef0124\r\n").await.0, 401, "{path}");
    }
    assert_eq!(get(port, "/", "Host: cam-1.example\r\n").await.0, 200, "the page asks for the token itself");
    assert_eq!(get(port, "/api/cameras/a/frame", known).await.0, 404, "no pictures are shown");
    let ill = loop {
        assert!(start.elapsed() < DEADLINE, "nobody misses camera b");
        match get(port, "/healthz", "").await {
            (503, body) => break String::from_utf8(body).unwrap(),
            (status, _) => assert_eq!(status, 200),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!ill.contains("nowhere"), "who has no token learns no path: {ill}");
    let state = value(&get(port, "/api/state", known).await.1);
    let b = &state["cameras"][1];
    assert!(b["state"] == "away" && b["reason"].as_str().unwrap().contains("nowhere"), "{b}");
    stop.send_replace(true);
    run.await.unwrap().unwrap();
}
