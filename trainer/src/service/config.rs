//! The configuration of `omnilabel-trainer run` (`docs/CENTRE.md`): one typed value, read once, unknown keys refused.

use crate::calibrate::{FLEET_PRECISION, Mode};
use crate::service::waves::thousandths;
use figment::Figment;
use figment::providers::{Format, Toml};
use omnilabel_keypoints::wire::topic;
use omnilabel_link::{LinkConfig, LinkError};
use omnilabel_rcnn::config::SHORT_SIDES;
use omnilabel_rcnn::device::{Arithmetic, TrainDevice};
use omnilabel_rcnn::params::Precision;
use omnilabel_rcnn::train::TrainOptions;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod collect;
mod drift;
mod pictures;
mod retention;
mod store;
mod web;
pub use collect::CollectConfig;
pub use drift::{DriftConfig, DriftMode};
pub use pictures::{PictureUrl, S3Config};
pub use retention::RetentionConfig;
pub use store::StoreConfig;
pub use web::WebConfig;

/// Why a configuration was refused; names the file and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML of the expected shape.
    #[error("{path}: {message}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Key, what was expected, what came.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: `{key}` is {found}, expected {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: String,
        /// What the file says.
        found: String,
        /// What is possible.
        expected: &'static str,
    },
    /// A broker that no connection is made to.
    #[error("{path}: {source}")]
    Broker {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LinkError,
    },
}

/// `trainer.toml`. Relative paths are relative to the file's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// MQTT client id.
    #[serde(default = "default_client")]
    pub client_id: String,
    /// Database, rounds, events.
    pub state_dir: PathBuf,
    /// Which database; SQLite in `state_dir` without it.
    #[serde(default)]
    pub store: StoreConfig,
    /// The broker.
    pub broker: LinkConfig,
    /// Limits of what is taken in.
    #[serde(default)]
    pub collector: CollectorConfig,
    /// Manual labels.
    pub data: DataConfig,
    /// Where training starts.
    pub model: ModelConfig,
    /// When and how a student is trained.
    #[serde(default)]
    pub round: RoundConfig,
    /// τ and τ_k.
    #[serde(default)]
    pub calibration: CalibrationConfig,
    /// What a student must reach.
    #[serde(default)]
    pub gate: GateConfig,
    /// How it goes out.
    pub release: ReleaseConfig,
    /// Waves.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// When a device's labels have changed.
    #[serde(default)]
    pub drift: DriftConfig,
    /// How long labels and pictures are kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// The page; none without `bind`.
    #[serde(default)]
    pub web: WebConfig,
}

fn default_client() -> String {
    "omnilabel-trainer".to_owned()
}

/// `[collector]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectorConfig {
    /// Messages of one commit at most.
    pub batch: usize,
    /// Bytes of one commit at most (the last message may exceed it).
    pub batch_bytes: usize,
    /// A larger JPEG is refused, bytes.
    pub max_frame_bytes: usize,
    /// Messages of devices beyond this number are refused.
    pub max_devices: usize,
    /// Messages of other devices are refused; empty: of none.
    pub devices: Vec<String>,
    /// The group that shares labels, frames and histograms with this process: each goes to one of the group. All to this one without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self {
            batch: 1024,
            batch_bytes: 16 << 20,
            max_frame_bytes: omnilabel_link::MAX_PACKET,
            max_devices: 1000,
            devices: Vec::new(),
            share: None,
        }
    }
}

/// `[data]`: COCO keypoint folders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The manually labelled set.
    pub manual: PathBuf,
    /// Manual labels that no round trains on: precision of τ, and the gate.
    pub heldout: PathBuf,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Bundle that the devices were provisioned with (counter 0).
    pub running: PathBuf,
    /// Preset of the student.
    #[serde(default = "default_preset")]
    pub preset: String,
    /// Short side of the student's input, px; the running model's without it.
    #[serde(default)]
    pub short_side: Option<u32>,
    /// What every student starts from: a bundle or a checkpoint, a body trained on ImageNet among them; random without it.
    #[serde(default)]
    pub init: Option<PathBuf>,
    /// Precision of the weights in a student's bundle: `f32`, or `f16` at half the bytes.
    #[serde(default)]
    pub weights: Precision,
    /// What students are trained on: `cpu`, `cuda` (an NVIDIA GPU, or an error), `auto` (the GPU if it can be used).
    #[serde(default)]
    pub device: TrainDevice,
    /// What a GPU computes products in: `f32`, or `bf16`.
    #[serde(default)]
    pub precision: Arithmetic,
    /// GPUs that train one student, each on its share of every batch: the first ones that the process sees.
    #[serde(default = "one")]
    pub gpus: usize,
    /// Seed of what `init` does not give.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

const fn one() -> usize {
    1
}

fn default_preset() -> String {
    "nano".to_owned()
}

const fn default_seed() -> u64 {
    1
}

/// `[round]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoundConfig {
    /// New labels with frames that start a round.
    pub min_labels: u64,
    /// Rounds over the life of the store; 0 only collects. What is started by hand is not limited.
    pub max_rounds: u64,
    /// When set, a label that has waited so long for a round starts one, however few there are.
    pub max_age_hours: Option<u32>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Options of the training.
    pub train: TrainOptions,
}

impl Default for RoundConfig {
    fn default() -> Self {
        Self { min_labels: 500, max_rounds: 1, max_age_hours: None, checkpoint_every: 100, train: TrainOptions::default() }
    }
}

/// `[calibration]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationConfig {
    /// How τ is chosen: `fleet` or `paper`.
    pub mode: Mode,
    /// Precision that `fleet` asks for.
    pub precision: f64,
    /// Instances with a score in `[(1 − ignore_margin)·τ, τ)` are neither positive nor background; 0 is the paper.
    pub ignore_margin: f64,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { mode: Mode::Fleet, precision: FLEET_PRECISION, ignore_margin: 0.5 }
    }
}

/// `[gate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// The student's AP may be below the running model's by this much, AP in `[0, 1]`.
    pub margin: f64,
    /// When set, it must be above by this much instead.
    pub min_improvement: Option<f64>,
    /// When set, the share of resampled held-out sets on which that has to hold, too.
    pub sure: Option<f64>,
    /// When set, no keypoint's PCK and no third of the people by size may fall by more than this.
    pub max_regression: Option<f64>,
    /// What becomes of a student whose labels of the fleet's newest pictures differ from the running model's.
    pub drift: DriftMode,
    /// By how much they may: the distance of Kolmogorov and Smirnov, 0 to 1.
    pub drift_limit: f64,
    /// Of how many pictures.
    pub drift_frames: usize,
}

impl Default for GateConfig {
    fn default() -> Self {
        let (drift, drift_limit, drift_frames) = (DriftMode::Warn, 0.25, 200);
        Self { margin: 0.005, min_improvement: None, sure: None, max_regression: None, drift, drift_limit, drift_frames }
    }
}

/// `[release]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseConfig {
    /// Channel of the releases.
    #[serde(default = "default_channel")]
    pub channel: String,
    /// Signing key (`omnilabel-trainer keygen`).
    pub key: PathBuf,
    /// The set of release keys that the root key signed (`omnilabel-trainer keys`); without it `key` is the root key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<PathBuf>,
    /// Days after which devices with a clock take a release no more; 0: they always do.
    #[serde(default)]
    pub valid_days: u32,
    /// Bytes of a block.
    #[serde(default = "default_block")]
    pub block_bytes: u32,
    /// Bytes of blocks published per second at most.
    #[serde(default = "default_rate")]
    pub bytes_per_second: u64,
}

fn default_channel() -> String {
    "stable".to_owned()
}

const fn default_block() -> u32 {
    262_144
}

const fn default_rate() -> u64 {
    32 << 20
}

/// `[rollout]`: how a release goes out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Percent of the fleet in each wave, rising, the last 100.
    pub waves: Vec<f64>,
    /// Of the devices that are there and did not refuse it, the share that has to confirm before the next wave.
    pub confirmed: f64,
    /// Of the devices that are there, the share that may refuse it; more halt the release, a single one only where one or two are there, or where this
    /// is 0.
    pub max_refused: f64,
    /// Seconds that a wave takes at least.
    pub settle_seconds: u32,
    /// Minutes after which it is decided without those that have said nothing: it goes on with more than half, and halts otherwise.
    pub deadline_minutes: u32,
    /// Minutes for which devices run a release beside their model and compare the two before they try it; 0: not at all.
    pub shadow_minutes: u16,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { waves: vec![100.0], confirmed: 0.9, max_refused: 0.1, settle_seconds: 60, deadline_minutes: 60, shadow_minutes: 0 }
    }
}

impl ServiceConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| ConfigError::Shape { path: path.to_owned(), message: error.to_string() })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for errors and relative paths.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = extract(path, text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in
            [&mut config.state_dir, &mut config.data.manual, &mut config.data.heldout, &mut config.model.running, &mut config.release.key]
        {
            *file = folder.join(&*file);
        }
        let tokens = config.web.viewer_token_file.iter_mut().chain(&mut config.web.operator_token_file);
        for file in config.model.init.iter_mut().chain(&mut config.release.keys).chain(tokens) {
            *file = folder.join(&*file);
        }
        config.store.locate(folder);
        locate_tls(&mut config.broker, folder);
        config.validate(path)?;
        check_broker(path, &config.broker)?;
        Ok(config)
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let id = |name: &str| topic::id(name).is_ok();
        let unit = |value: f64| (0.0..=1.0).contains(&value);
        let quote = |text: &str| format!("{text:?}");
        let checks: [(bool, &'static str, String, &'static str); 13] = [
            (
                self.model.short_side.is_none_or(|side| SHORT_SIDES.contains(&side)),
                "model.short_side",
                format!("{:?}", self.model.short_side),
                "16 to 4096 px",
            ),
            (
                self.data.heldout != self.data.manual,
                "data.heldout",
                quote(&self.data.heldout.display().to_string()),
                "another folder than `data.manual`: no round trains on it",
            ),
            (self.round.min_labels > 0, "round.min_labels", self.round.min_labels.to_string(), "1 or more"),
            (self.round.checkpoint_every > 0, "round.checkpoint_every", self.round.checkpoint_every.to_string(), "1 or more"),
            (self.round.train.batch > 1, "round.train.batch", self.round.train.batch.to_string(), "2 or more"),
            ((1..=64).contains(&self.model.gpus), "model.gpus", self.model.gpus.to_string(), "1 to 64"),
            (
                self.round.train.batch >= self.model.gpus,
                "round.train.batch",
                self.round.train.batch.to_string(),
                "`model.gpus` or more: an image for each",
            ),
            (unit(self.calibration.precision), "calibration.precision", self.calibration.precision.to_string(), "0 to 1"),
            (unit(self.calibration.ignore_margin), "calibration.ignore_margin", self.calibration.ignore_margin.to_string(), "0 to 1"),
            (unit(self.gate.margin), "gate.margin", self.gate.margin.to_string(), "0 to 1"),
            (self.gate.sure.is_none_or(unit), "gate.sure", format!("{:?}", self.gate.sure), "0 to 1"),
            (self.gate.max_regression.is_none_or(unit), "gate.max_regression", format!("{:?}", self.gate.max_regression), "0 to 1"),
            (self.gate.min_improvement.is_none_or(unit), "gate.min_improvement", format!("{:?}", self.gate.min_improvement), "0 to 1"),
        ];
        let release = [
            (id(&self.release.channel), "release.channel", quote(&self.release.channel), "1 to 64 of [A-Za-z0-9._-]"),
            (
                (4096..=1 << 20).contains(&self.release.block_bytes),
                "release.block_bytes",
                self.release.block_bytes.to_string(),
                "4096 to 1048576",
            ),
            (self.release.bytes_per_second > 0, "release.bytes_per_second", self.release.bytes_per_second.to_string(), "1 or more"),
        ];
        let rollout = &self.rollout;
        let rising = thousandths(&rollout.waves).windows(2).all(|pair| pair[0] < pair[1]);
        let whole = rollout.waves.last() == Some(&100.0) && rollout.waves.iter().all(|percent| (0.1..=100.0).contains(percent));
        let rollout = [
            (rising && whole, "rollout.waves", format!("{:?}", rollout.waves), "percent of the fleet, from 0.1 on, rising, the last 100"),
            (rollout.confirmed > 0.5 && unit(rollout.confirmed), "rollout.confirmed", rollout.confirmed.to_string(), "above 0.5, to 1"),
            (unit(rollout.max_refused), "rollout.max_refused", rollout.max_refused.to_string(), "0 to 1"),
            (rollout.deadline_minutes > 0, "rollout.deadline_minutes", rollout.deadline_minutes.to_string(), "1 or more"),
            (rollout.shadow_minutes <= 10_080, "rollout.shadow_minutes", rollout.shadow_minutes.to_string(), "0 to 10080, a week"),
        ];
        let intake = intake_checks(&self.client_id, &self.broker, &self.collector);
        let shared = self.collector.shared_check(&self.store);
        let all = intake.into_iter().chain(checks).chain(release).chain(rollout).chain(drift::checks(self));
        let all = all.chain(self.retention.checks()).chain(self.web.checks()).chain(self.store.checks());
        first_wrong(path, all.chain([shared]))?;
        if let Some((key, found, expected)) = self.round.train.wrong() {
            return Err(ConfigError::Value { path: path.to_owned(), key: format!("round.train.{key}"), found, expected });
        }
        Ok(())
    }
}

/// Whether a value can be: good, key, found, expected.
type Check = (bool, &'static str, String, &'static str);

/// What a connection would refuse.
fn check_broker(path: &Path, broker: &LinkConfig) -> Result<(), ConfigError> {
    broker.check().map_err(|source| ConfigError::Broker { path: path.to_owned(), source })
}

/// The error of the first one that cannot.
fn first_wrong(path: &Path, checks: impl IntoIterator<Item = Check>) -> Result<(), ConfigError> {
    match checks.into_iter().find(|(good, ..)| !good) {
        Some((_, key, found, expected)) => Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), found, expected }),
        None => Ok(()),
    }
}

/// A file of which every key is known.
fn extract<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    Figment::from(Toml::string(text)).extract().map_err(|error| {
        let message = error
            .into_iter()
            .map(|e| if e.path.is_empty() { e.kind.to_string() } else { format!("`{}`: {}", e.path.join("."), e.kind) })
            .collect::<Vec<_>>()
            .join("; ");
        ConfigError::Shape { path: path.to_owned(), message }
    })
}

/// Files of the connection are relative to the configuration's folder.
fn locate_tls(broker: &mut LinkConfig, folder: &Path) {
    if let Some(tls) = &mut broker.tls {
        for file in [&mut tls.ca, &mut tls.certificate, &mut tls.key] {
            *file = folder.join(&*file);
        }
    }
}

/// What everybody who collects needs.
fn intake_checks(client_id: &str, broker: &LinkConfig, collector: &CollectorConfig) -> [Check; 8] {
    let id = |name: &str| topic::id(name).is_ok();
    let quote = |text: &str| format!("{text:?}");
    [
        (!client_id.is_empty(), "client_id", quote(client_id), "a name"),
        (id(&broker.site), "broker.site", quote(&broker.site), "1 to 64 of [A-Za-z0-9._-]"),
        ((1..=100_000).contains(&collector.batch), "collector.batch", collector.batch.to_string(), "1 to 100000"),
        (collector.batch_bytes > 0, "collector.batch_bytes", collector.batch_bytes.to_string(), "1 or more"),
        (
            (1..=omnilabel_link::MAX_PACKET).contains(&collector.max_frame_bytes),
            "collector.max_frame_bytes",
            collector.max_frame_bytes.to_string(),
            "1 to 2097152, the largest packet",
        ),
        (collector.max_devices > 0, "collector.max_devices", collector.max_devices.to_string(), "1 or more"),
        (
            collector.devices.iter().all(|device| id(device)),
            "collector.devices",
            format!("{:?}", collector.devices),
            "names of 1 to 64 of [A-Za-z0-9._-]",
        ),
        (
            collector.share.as_deref().is_none_or(id),
            "collector.share",
            format!("{:?}", collector.share),
            "the name of a group, 1 to 64 of [A-Za-z0-9._-]",
        ),
    ]
}

impl CollectorConfig {
    /// Several collectors have one database.
    fn shared_check(&self, store: &StoreConfig) -> Check {
        let good = self.share.is_none() || store.url.is_some();
        (
            good,
            "collector.share",
            format!("{:?}", self.share),
            "no group, or a PostgreSQL database (`store.url`): one file has one collector",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "state"
[broker]
host = "127.0.0.1"
site = "home"
[data]
manual = "manual"
heldout = "/data/heldout"
[model]
running = "teacher"
[release]
key = "release.key"
"#;

    fn check(text: &str, expect: &str) {
        let message = ServiceConfig::parse(Path::new("/etc/omnilabel/trainer.toml"), text).expect_err(expect).to_string();
        assert!(message.contains(expect) && message.contains("trainer.toml"), "{message} does not say {expect}");
    }

    #[test]
    fn a_minimal_file_gets_the_defaults_and_absolute_paths() {
        let config = ServiceConfig::parse(Path::new("/etc/omnilabel/trainer.toml"), GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/omnilabel/state"));
        assert_eq!(config.data.heldout, Path::new("/data/heldout"));
        assert_eq!((config.round.max_rounds, config.release.block_bytes), (1, 262_144));
        assert_eq!(config.calibration.mode, Mode::Fleet);
        assert_eq!(config.web, WebConfig::default());
        assert_eq!(config.web.bind, None, "nobody is served who was not asked for");
    }

    #[test]
    fn a_page_that_others_reach_asks_for_a_token() {
        let text = format!("{GOOD}[web]\nbind = \"0.0.0.0:8090\"\noperator_token_file = \"operator.token\"");
        let config = ServiceConfig::parse(Path::new("/etc/omnilabel/trainer.toml"), &text).unwrap();
        assert_eq!(config.web.operator_token_file.as_deref(), Some(Path::new("/etc/omnilabel/operator.token")));
        assert!(ServiceConfig::parse(Path::new("trainer.toml"), &format!("{GOOD}[web]\nbind = \"[::1]:8090\"")).is_ok());
        let told = toml::to_string_pretty(&config).unwrap();
        assert_eq!(ServiceConfig::parse(Path::new("/etc/omnilabel/trainer.toml"), &told).unwrap(), config);
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        check(&format!("typo = 1\n{GOOD}"), "typo");
        check(&format!("{GOOD}\n[round]\nmin_lables = 3"), "min_lables");
        check(&format!("{GOOD}\n[round]\nmin_labels = \"many\""), "round.min_labels");
        check(&format!("{GOOD}\n[round.train]\nsteps = 0"), "round.train.steps");
        check(&format!("{GOOD}\n[gate]\nmargin = -1"), "gate.margin");
        check(&format!("{GOOD}\n[round.train]\nlr = nan"), "round.train.lr");
        check(&format!("{GOOD}\n[round.train]\naverage = 1.0"), "round.train.average");
        check(&format!("{GOOD}\n[round.train.augment]\ncutout = 2.0"), "round.train.augment.cutout");
        check(&format!("{GOOD}\n[round.train]\nshort_sides = [100000000]"), "round.train.short_sides");
        let gpus = |count: usize| GOOD.replace("running = \"teacher\"", &format!("running = \"teacher\"\ngpus = {count}"));
        check(&gpus(65), "model.gpus");
        check(&format!("{}[round.train]\nbatch = 3", gpus(4)), "round.train.batch");
        check(&format!("{GOOD}\n[calibration]\nmode = \"guess\""), "calibration.mode");
        check(&GOOD.replace("site = \"home\"", "site = \"a/b\""), "broker.site");
        check(&GOOD.replace("site = \"home\"", "site = \"home\"\nport = 0"), "broker: `port` is 0");
        check(&GOOD.replace("key = \"release.key\"", ""), "key");
        check(&format!("{GOOD}block_bytes = 12"), "release.block_bytes");
        for waves in ["[]", "[100, 50]", "[10, 50]", "[0, 100]", "[50, 50, 100]", "[0.1, 0.14, 100]", "[10, nan, 100]"] {
            check(&format!("{GOOD}[rollout]\nwaves = {waves}"), "rollout.waves");
        }
        check(&format!("{GOOD}[rollout]\nconfirmed = 0.5"), "rollout.confirmed");
        check(&format!("{GOOD}[rollout]\nshadow_minutes = 10081"), "rollout.shadow_minutes");
        check(&format!("{GOOD}[gate]\ndrift = \"maybe\""), "gate.drift");
        check(&format!("{GOOD}[gate]\ndrift_limit = 0.0"), "gate.drift_limit");
        check(&format!("{GOOD}[gate]\ndrift_frames = 1"), "gate.drift_frames");
        check(&format!("{GOOD}[drift]\nlimit = 1.5"), "drift.limit");
        check(&format!("{GOOD}[drift]\nreference_days = 0"), "drift.reference_days");
        check(&format!("{GOOD}[collector]\ndevices = [\"cam/1\"]"), "collector.devices");
        for (key, value) in [("picture_days", "0"), ("label_days", "40000"), ("picture_bytes", "0"), ("picture_days", "9\nlabel_days = 8")]
        {
            check(&format!("{GOOD}[retention]\n{key} = {value}"), &format!("retention.{key}"));
        }
        check(&format!("{GOOD}[web]\nbind = \"0.0.0.0:8090\""), "web.viewer_token_file");
        check(&format!("{GOOD}[web]\nbind = \"everywhere\""), "web.bind");
        check(&format!("{GOOD}[web]\nconnections = 0"), "web.connections");
        check(&format!("{GOOD}[web]\nheader_timeout_secs = 0"), "web.header_timeout_secs");
        check(&format!("{GOOD}[collector]\nshare = \"centre\""), "store.url");
        check(&format!("{GOOD}[store]\nurl = \"postgres://db/x\"\n[collector]\nshare = \"a/b\""), "collector.share");
    }

    #[test]
    fn a_database_is_a_url_without_its_password() {
        for url in
            ["mysql://db/x", "db.example", "/var/lib/x", "postgres://u:secret@db/x", "postgres://u@db/x?sslmode=require&password=secret"]
        {
            let text = format!("{GOOD}[store]\nurl = {url:?}");
            check(&text, "store.url");
            let told = ServiceConfig::parse(Path::new("trainer.toml"), &text).unwrap_err().to_string();
            assert!(!told.contains("secret"), "{told}");
        }
        let slip = format!("{GOOD}[store]\nurl = \"postgres://u@db/x?sslmod=verify-full\"");
        check(&slip, "store.url");
        let told = ServiceConfig::parse(Path::new("trainer.toml"), &slip).unwrap_err().to_string();
        assert!(told.contains("\"sslmod\"") && told.contains("expected sslmode, sslrootcert"), "{told}");
        check(&format!("{GOOD}[store]\npassword_file = \"x\""), "store.password_file");
        let text = format!("{GOOD}[store]\nurl = \"postgres://u@db/x?sslmode=verify-full\"\npassword_file = \"db.password\"");
        let config = ServiceConfig::parse(Path::new("/etc/omnilabel/trainer.toml"), &text).unwrap();
        assert_eq!(config.store.password_file.as_deref(), Some(Path::new("/etc/omnilabel/db.password")));
    }
}
