//! The appliance against mosquitto and a centre of a few lines: everything arrives once, releases come in or are refused.

mod cameras;
mod delivery;
mod page;
mod power;
mod releases;
mod shadow;

use super::*;
use crate::config::{CameraConfig, FramePolicy, OutboxConfig, PolicyConfig, PublishConfig, TeacherConfig, UpdateConfig, WebConfig};
use crate::testing::{bundle, key, key_set, model, release, release_in_blocks, sign, trust, with_keys};
use omnilabel_bundle::{CropSpec, Refine, Values};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::release::ReleaseManifest;
use omnilabel_keypoints::trial::{Phase, Slot, State};
use omnilabel_keypoints::wire::topic;
use omnilabel_keypoints::wire::{AckMsg, BlockRequest, FrameHeader, LabelMsg, Message, ModelMsg, ReleaseMsg};
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
    /// Headers alone.
    frames_evicted: BTreeSet<(u64, u64)>,
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
            frames_evicted: BTreeSet::new(),
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
                if payload.len() == 2 + length {
                    self.frames_evicted.insert((header.epoch, header.sequence));
                } else {
                    Frame::decode("frame", &payload[2 + length..]).unwrap();
                    self.frames.insert((header.epoch, header.sequence));
                }
            }
            Kind::Status => self.status = Some(StatusMsg::decode(payload).unwrap()),
            Kind::Model => self.model = Some(ModelMsg::decode(payload).unwrap()),
            Kind::BlocksGet => {
                for hash in &BlockRequest::decode(payload).unwrap().blocks {
                    let Some(block) = self.blocks.get(hash.as_str()).cloned() else { continue };
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
        let there = |key: &(u64, u64)| self.frames.contains(key) || self.frames_evicted.contains(key);
        let settled = |key: &(u64, u64)| self.labels.get(key).is_some_and(|label| !label.jpeg || there(key));
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
        self.keep(blocks);
        self.publish_release(&sign(manifest, key)).await;
    }

    /// Has blocks to be asked for.
    fn keep(&mut self, blocks: &[Vec<u8>]) {
        for block in blocks {
            let hash = omnilabel_bundle::hex(&<sha2::Sha256 as sha2::Digest>::digest(block));
            self.blocks.insert(hash, block.clone());
        }
    }

    async fn publish_release(&mut self, message: &ReleaseMsg) {
        let payload = crate::publish::encode(message, Encoding::Cbor).unwrap();
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

/// A folder of `images` frames that all differ.
fn frames(folder: &Path, images: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for index in 0..images {
        let rgb = (0..48 * 32).flat_map(|pixel| [if pixel / 16 == index { 255 } else { 0 }; 3]).collect();
        let frame = Frame { size: Size { width: 48, height: 32 }, rgb };
        std::fs::write(folder.join(format!("{:04}.jpg", index + 1)), frame.to_jpeg(90)).unwrap();
    }
}
