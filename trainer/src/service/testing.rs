//! A small world for the service's tests: data sets, a bundle, a key, labels, and an arm that learns in microseconds but truly learns:
//! the mean pose of its samples relative to their boxes, 60 : 40 between manual and generated ones. Judged with the real score.

use super::arm::{Job, Judgement, Progress, TrainArm};
use super::collector::{Intake, Taken};
use super::config::{S3Config, ServiceConfig, StoreConfig};
use super::sign;
use super::store::Place;
use super::store::intake::Record;
use crate::arm::ArmError;
use crate::calibrate::Judged;
use crate::evaluate::Detected;
use crate::score::{GroundTruth, score};
use anyhow::Context;
use omnilabel_bundle::{Bundle, FORMAT, Manifest, SkeletonSpec, seal};
use omnilabel_coco::{Annotation, Dataset, ImageRecord, ResultRecord, from_continuous};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Keypoint, Label, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::{Encoding, FrameHeader, LabelKey, LabelMsg, Message, topic};
use omnilabel_rcnn::RcnnError;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::train::Losses;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[path = "../../../tests/src/postgres.rs"]
#[allow(unreachable_pub, reason = "the system tests have it from another crate")]
pub(crate) mod postgres;

#[path = "../../../tests/src/s3.rs"]
#[allow(unreachable_pub, dead_code, reason = "the system tests have it from another crate")]
pub(crate) mod s3;

use postgres::Postgres;
use s3::S3;

/// Makes two tests of each function with a [`Home`]: on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::service::testing::Home::sqlite()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(home) = $crate::service::testing::Home::postgres() {
                    super::$test(home).await;
                }
            })*
        }
    };
}
pub(crate) use on_both;

/// Makes tests of each function with a [`Home`]: pictures in the database, in a folder, in a bucket, and in a folder beside PostgreSQL.
macro_rules! on_all_places {
    ($($test:ident),* $(,)?) => {
        on_all_places! { @ in_the_database, Some($crate::service::testing::Home::sqlite()), $($test),* }
        on_all_places! { @ in_a_folder, Some($crate::service::testing::Home::sqlite().with_folder()), $($test),* }
        on_all_places! { @ in_a_bucket, $crate::service::testing::Home::sqlite().with_bucket(), $($test),* }
        on_all_places! { @ beside_postgres, $crate::service::testing::Home::postgres().map(|home| home.with_folder()), $($test),* }
    };
    (@ $place:ident, $home:expr, $($test:ident),*) => {
        mod $place {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(home) = $home {
                    super::$test(home).await;
                }
            })*
        }
    };
}
pub(crate) use on_all_places;

/// Where a test's store is.
pub(crate) struct Home {
    dir: tempfile::TempDir,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) s3: Option<S3>,
    /// Where its pictures are.
    pub(crate) pictures: StoreConfig,
}

impl Home {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: None, s3: None, pictures: StoreConfig::default() }
    }

    /// `None`, with a message, where PostgreSQL is not installed.
    pub(crate) fn postgres() -> Option<Self> {
        Some(Self { postgres: Some(Postgres::start()?), ..Self::sqlite() })
    }

    /// The same with its pictures in a folder.
    pub(crate) fn with_folder(mut self) -> Self {
        self.pictures.pictures = Some(format!("file://{}", self.dir().join("pictures").display()));
        self
    }

    /// The same with its pictures in a bucket; `None`, with a message, where no server is installed.
    pub(crate) fn with_bucket(mut self) -> Option<Self> {
        let s3 = S3::start()?;
        let keys = self.dir().join("keys");
        std::fs::write(&keys, "[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = hunter2\n").unwrap();
        std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        self.pictures.pictures = Some(format!("s3://{}/yard/north", S3::BUCKET));
        self.pictures.s3 = S3Config { endpoint: Some(s3.endpoint()), credentials_file: Some(keys), ..S3Config::default() };
        self.s3 = Some(s3);
        Some(self)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn place(&self) -> Place {
        self.collector("state", "postgres")
    }

    /// The store of a process with this folder, in this database.
    pub(crate) fn collector(&self, folder: &str, database: &str) -> Place {
        let url = self.postgres.as_ref().map(|postgres| postgres.url(database));
        Place::new(&self.dir().join(folder), &StoreConfig { url, ..self.pictures.clone() })
    }

    /// A world whose store is here.
    pub(crate) fn world(&self) -> World {
        let mut world = World::new();
        let url = self.postgres.as_ref().map(|postgres| postgres.url("postgres"));
        world.config.store = StoreConfig { url, ..self.pictures.clone() };
        world
    }
}

/// Keypoints of the test skeleton.
pub(crate) const K: usize = 4;
const SIDE: u32 = 96;
/// What the student's detections on held-out pictures score.
pub(crate) const STUDENT_SCORE: f32 = 0.35;
/// The probability of their keypoints.
pub(crate) const STUDENT_PROBABILITY: f32 = 0.125;
/// Where the keypoints of a true person lie in its box, as shares of width and height.
const POSE: [(f64, f64); K] = [(0.3, 0.1), (0.7, 0.1), (0.2, 0.9), (0.8, 0.9)];

pub(crate) fn skeleton() -> Skeleton {
    Skeleton::new(&["left_hand", "right_hand", "left_foot", "right_foot"], &[(0, 2), (1, 3)], None, Some(&[0.05; K])).unwrap()
}

fn person(index: u64) -> Rect {
    let shift = (index * 7 % 20) as f32;
    Rect::new(10.0 + shift, 8.0, 60.0 + shift, 88.0)
}

fn jpeg(index: u64) -> Vec<u8> {
    let rgb = (0..3 * SIDE * SIDE).map(|i| ((u64::from(i) * 31 + index * 17) % 251) as u8).collect();
    Frame { size: Size { width: SIDE, height: SIDE }, rgb }.to_jpeg(80)
}

/// Writes `count` images with one person each.
fn write_dataset(root: &Path, count: u64) {
    std::fs::create_dir_all(root.join("images")).unwrap();
    let mut dataset = Dataset { root: root.to_owned(), skeleton: skeleton(), images: vec![], annotations: vec![] };
    for id in 1..=count {
        let file_name = format!("{id}.jpg");
        std::fs::write(root.join("images").join(&file_name), jpeg(id)).unwrap();
        dataset.images.push(ImageRecord { id, file_name, width: SIDE, height: SIDE });
        let rect = person(id);
        let bbox = [rect.x1, rect.y1, rect.width(), rect.height()].map(f64::from);
        let keypoints = place(bbox, &POSE).iter().flat_map(|&(x, y)| [x, y, 2.0]).collect();
        dataset.annotations.push(Annotation {
            id,
            image_id: id,
            category_id: 1,
            bbox,
            keypoints,
            num_keypoints: K as u32,
            area: bbox[2] * bbox[3],
            iscrowd: 0,
        });
    }
    dataset.write(root).unwrap();
}

fn place(bbox: [f64; 4], pose: &[(f64, f64)]) -> Vec<(f64, f64)> {
    pose.iter().map(|(u, v)| (bbox[0] + u * bbox[2] - 0.5, bbox[1] + v * bbox[3] - 0.5)).collect()
}

fn write_bundle(root: &Path, name: &str, pose: &[(f64, f64)], thresholds: Thresholds) -> anyhow::Result<()> {
    std::fs::create_dir_all(root)?;
    std::fs::write(root.join("pose.json"), serde_json::to_vec(pose)?)?;
    for graph in ["backbone.onnx", "box_head.onnx", "keypoint_head.onnx"] {
        std::fs::write(root.join(graph), [])?;
    }
    std::fs::write(root.join("weights.safetensors"), vec![7; 10_000])?;
    let network = Config::nano(K);
    let manifest = Manifest {
        format: FORMAT,
        name: name.to_owned(),
        architecture: network.name.clone(),
        skeleton: SkeletonSpec::from(&skeleton()),
        input: network.input,
        network: network.network.into(),
        thresholds,
        parent: None,
        dataset_sha256: None,
        ap: None,
        files: Default::default(),
        golden: Vec::new(),
    };
    seal(root, manifest)?;
    Ok(())
}

/// The quick arm. The first `failures` calls of `train` fail, with a loss that is not finite when `diverges`. Where it `drifts`, the
/// student draws boxes of half the side around people of the fleet.
#[derive(Default)]
pub(crate) struct MeanPose {
    pub(crate) failures: AtomicU32,
    pub(crate) diverges: bool,
    pub(crate) drifts: bool,
}

fn mean_pose(datasets: &[Dataset]) -> Vec<(f64, f64)> {
    let mut sums = [(0.0, 0.0, 0.0); K];
    for a in datasets.iter().flat_map(|dataset| &dataset.annotations).filter(|a| a.iscrowd == 0) {
        for (sum, k) in sums.iter_mut().zip(a.keypoints.chunks(3)).filter(|(_, k)| k[2] > 0.0) {
            sum.0 += (k[0] + 0.5 - a.bbox[0]) / a.bbox[2];
            sum.1 += (k[1] + 0.5 - a.bbox[1]) / a.bbox[3];
            sum.2 += 1.0;
        }
    }
    sums.iter().map(|(u, v, n)| (u / n, v / n)).collect()
}

impl TrainArm for MeanPose {
    fn judge(&self, bundle: &Path, data: &Path, _: &AtomicBool) -> anyhow::Result<Option<Judgement>> {
        let pose: Vec<(f64, f64)> = serde_json::from_slice(&std::fs::read(bundle.join("pose.json"))?)?;
        let dataset = Dataset::load(data)?;
        let results: Vec<ResultRecord> = dataset
            .annotations
            .iter()
            .map(|a| ResultRecord {
                image_id: a.image_id,
                category_id: 1,
                keypoints: place(a.bbox, &pose).iter().flat_map(|&(x, y)| [x, y, 1.0]).collect(),
                score: 0.8,
                bbox: None,
            })
            .collect();
        let scores = score(&GroundTruth::from_dataset(&dataset)?, &results)?;
        // Every person is found, with a score that tells the models apart.
        let score = if bundle.ends_with("running") { 0.5 } else { STUDENT_SCORE };
        let judged = results.iter().map(|_| Judged { score, right: true }).collect();
        let keypoints = || (0..K).map(|_| Keypoint { probability: STUDENT_PROBABILITY, ..Keypoint::default() }).collect();
        let detections = dataset.images.iter().map(|_| vec![Detection { rect: Rect::default(), score, keypoints: keypoints() }]).collect();
        let ap = scores.ap;
        let scores = scores.named().map(|(n, v)| (n.to_owned(), v)).to_vec();
        Ok(Some(Judgement { ap, scores, judged, detections, results, pck: vec![Some(ap); K] }))
    }

    fn detect(&self, bundle: &Path, pictures: &Dataset, _: &AtomicBool) -> anyhow::Result<Option<Vec<Detected>>> {
        let thresholds = Bundle::open(bundle)?.manifest().thresholds;
        let part = if self.drifts && !bundle.ends_with("running") { 0.5 } else { 1.0 };
        let keypoints = || (0..K).map(|_| Keypoint { probability: thresholds.keypoint, ..Keypoint::default() }).collect();
        let detect = |image: &ImageRecord| {
            assert!(pictures.image_path(image).exists());
            let rect = person(image.id);
            let rect = Rect::new(rect.x1, rect.y1, rect.x1 + part * rect.width(), rect.y1 + part * rect.height());
            Detected { image_id: image.id, detections: vec![Detection { rect, score: thresholds.instance, keypoints: keypoints() }] }
        };
        Ok(Some(pictures.images.iter().map(detect).collect()))
    }

    fn train(&self, job: &Job, progress: &mut dyn FnMut(Progress), stop: &AtomicBool) -> anyhow::Result<Option<PathBuf>> {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.fetch_sub(1, Ordering::Relaxed);
            if self.diverges {
                return Err(ArmError::Rcnn(RcnnError::NotFinite { name: "keypoint", step: 3, value: f32::NAN }).into());
            }
            anyhow::bail!("no space left on device");
        }
        let manual = std::iter::once(&job.manual).chain(&job.hand).map(|folder| Dataset::load(folder));
        let manual = mean_pose(&manual.collect::<Result<Vec<_>, _>>().context("manual")?);
        let generated = mean_pose(&[Dataset::load(&job.generated).context("generated")?]);
        let pose: Vec<_> = manual.iter().zip(&generated).map(|(m, g)| (0.6 * m.0 + 0.4 * g.0, 0.6 * m.1 + 0.4 * g.1)).collect();
        std::fs::create_dir_all(&job.out)?;
        progress(Progress { step: 1, steps: 1, losses: Losses::default(), images_per_sec: 1.0 });
        if stop.load(Ordering::Relaxed) {
            std::fs::write(job.out.join("checkpoint"), "1")?;
            return Ok(None);
        }
        let (part, bundle) = (job.out.join("bundle.part"), job.out.join("bundle"));
        if !bundle.exists() {
            if part.exists() {
                std::fs::remove_dir_all(&part)?;
            }
            write_bundle(&part, &job.name, &pose, job.thresholds)?;
            std::fs::rename(&part, &bundle)?;
        }
        Ok(Some(bundle))
    }
}

/// A state folder with everything that the configuration names. The running model's pose is slightly off.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: ServiceConfig,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(&dir.path().join("manual"), 6);
        write_dataset(&dir.path().join("heldout"), 8);
        let off: Vec<_> = POSE.iter().map(|(u, v)| (u + 0.06, *v)).collect();
        write_bundle(&dir.path().join("running"), "teacher", &off, Thresholds { instance: 0.6, keypoint: 0.2, floor: 0.05 }).unwrap();
        sign::keygen(dir.path()).unwrap();
        let text = "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"manual\"\nheldout = \"heldout\"\n\
                    [model]\nrunning = \"running\"\n[round]\nmin_labels = 10\n[release]\nkey = \"release.key\"\nblock_bytes = 4096\n";
        std::fs::write(dir.path().join("trainer.toml"), text).unwrap();
        let config = ServiceConfig::parse(&dir.path().join("trainer.toml"), text).unwrap();
        Self { dir, config }
    }

    pub(crate) fn intake(&self) -> Intake {
        Intake::new("omnilabel/v1", "home", K, self.config.collector.clone(), [])
    }

    /// What devices send for labels `range` of one epoch, through the real intake; `bias` moves every keypoint by that share of the
    /// box.
    pub(crate) fn labels(&self, device: &str, range: std::ops::RangeInclusive<u64>, bias: f64, model: u64) -> Vec<(String, Record)> {
        let mut intake = self.intake();
        range
            .flat_map(|sequence| messages(sequence, bias, model))
            .map(|(kind, bytes)| {
                let topic = topic::device("omnilabel/v1", "home", device, kind);
                match intake.take(topic.as_str(), bytes).unwrap() {
                    (device, Taken::Store(record)) => (device, record),
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }
}

/// Label and frame of one sequence, as bytes.
pub(crate) fn messages(sequence: u64, bias: f64, model: u64) -> Vec<(topic::Kind, Vec<u8>)> {
    let rect = person(sequence);
    let bbox = [rect.x1, rect.y1, rect.width(), rect.height()].map(f64::from);
    let pose: Vec<_> = POSE.iter().map(|(u, v)| (u + bias, *v)).collect();
    let keypoints = place(bbox, &pose)
        .iter()
        .map(|&(x, y)| Keypoint {
            point: Point { x: omnilabel_coco::to_continuous(x), y: omnilabel_coco::to_continuous(y) },
            peak_logit: 5.0,
            probability: 0.9,
            agreement: 1.0,
        })
        .collect();
    let detection = Detection { rect, score: 0.9, keypoints };
    let thresholds = Thresholds { instance: 0.6, keypoint: 0.2, floor: 0.05 };
    let label = Label::from_detections(Size { width: SIDE, height: SIDE }, &[detection], thresholds);
    let key = LabelKey { epoch: 77, sequence };
    let mut message = LabelMsg::quantise(&label, key, sequence, 0, model, 0);
    message.jpeg = true;
    let header = encode(&FrameHeader { version: 1, epoch: 77, sequence, frame: sequence });
    let mut frame = (header.len() as u16).to_be_bytes().to_vec();
    frame.extend(header);
    frame.extend(jpeg(sequence));
    vec![(topic::Kind::Labels, encode(&message)), (topic::Kind::Frames, frame)]
}

pub(crate) fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut buffer = vec![0; M::MAX_BYTES];
    let length = message.encode(Encoding::Cbor, &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// The pose's x of the first keypoint, from COCO to continuous, for checks of exports.
pub(crate) fn first_x(sequence: u64) -> f64 {
    let rect = person(sequence);
    from_continuous(rect.x1 + POSE[0].0 as f32 * rect.width())
}

/// Stored labels and repetitions of one device.
pub(crate) async fn tally(store: &crate::service::store::Store, device: &str) -> (u64, u64) {
    store.tallies(&[device.to_owned()]).await.unwrap().first().map_or((0, 0), |(_, stored, again)| (*stored, *again))
}
