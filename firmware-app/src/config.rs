//! `edge.toml`, read once into one typed value and passed in. Unknown keys are errors; `docs/EDGE.md` is the reference.

mod camera;
mod policy;
#[cfg(test)]
mod tests;

pub use camera::{CameraConfig, Transport};
pub use policy::{Hours, PolicyConfig};

use figment::Figment;
use figment::providers::{Format, Toml};
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::wire::{Encoding, topic};
use omnilabel_link::LinkConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The most cameras of one device.
pub const MAX_CAMERAS: usize = 64;

/// Why a configuration was refused: names the file, the key and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read, or is not TOML of the expected shape.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Which key, and what was expected.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: `{key}` {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// What is wrong, and what was expected.
        message: String,
    },
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// The device's name, 1 to 64 of `[A-Za-z0-9._-]`.
    pub device: String,
    /// Where the device keeps its models, its outbox and its state.
    pub state_dir: PathBuf,
    /// Which releases it takes.
    #[serde(default = "stable")]
    pub channel: String,
    /// The key that releases are signed with; `STATE/root.pub` from provisioning when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<PathBuf>,
    /// How to reach the broker.
    pub broker: LinkConfig,
    /// Where frames come from, when it is one camera.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub camera: Option<CameraConfig>,
    /// Several cameras by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cameras: BTreeMap<String, CameraConfig>,
    /// Which frames are labelled.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// How frames are labelled.
    #[serde(default)]
    pub teacher: TeacherConfig,
    /// What is kept until the collector has it.
    #[serde(default)]
    pub outbox: OutboxConfig,
    /// What is sent.
    #[serde(default)]
    pub publish: PublishConfig,
    /// How a new model is tried.
    #[serde(default)]
    pub update: UpdateConfig,
    /// The device's own page, metrics and health; none without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<WebConfig>,
}

/// `[web]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// A file with the token that is asked for, at least 16 characters. Needed where others than this machine can reach the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Whether pictures are shown.
    pub pictures: bool,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8088)), token_file: None, pictures: true }
    }
}

fn stable() -> String {
    "stable".to_owned()
}

/// Where the teacher runs. Only keypoint R-CNN runs on a GPU; wrapped pose models run on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherDevice {
    /// The CPU.
    #[default]
    Cpu,
    /// The NVIDIA GPU; a model that cannot run there is an error.
    Cuda,
    /// The NVIDIA GPU if the model runs there, else the CPU; the log says which and why.
    Auto,
}

/// `[teacher]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Short sides of the views in px; the model's own when empty.
    pub scales: Vec<u32>,
    /// Adds the mirror image of each view.
    pub flip: bool,
    /// What is averaged over the views.
    pub average: Average,
    /// Pools the boxes of all views.
    pub box_voting: bool,
    /// Worker threads; 0: one for each core.
    pub threads: usize,
    /// Where a keypoint R-CNN runs.
    pub device: TeacherDevice,
    /// Frames that take longer, on average, are labelled by fewer views until they do not; 0: never.
    pub max_frame_ms: u32,
    /// Above this temperature of any of the device's sensors, frames are labelled by fewer views; 0: not looked at.
    pub max_celsius: f32,
    /// A bundle that finds people for a top-down pose model, instead of the detector in the model's own bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<PathBuf>,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self {
            scales: Vec::new(),
            flip: true,
            average: Average::Logits,
            box_voting: false,
            threads: 0,
            device: TeacherDevice::Cpu,
            max_frame_ms: 0,
            max_celsius: 0.0,
            detector: None,
        }
    }
}

/// `[outbox]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboxConfig {
    /// Beyond this the oldest frames are evicted, then the oldest labels, which is counted and reported.
    pub max_bytes: u64,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024 }
    }
}

/// Which frames travel with their label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FramePolicy {
    /// None.
    None,
    /// Those with an instance that passed τ.
    #[default]
    Kept,
    /// Those with an instance about which the views disagree.
    Uncertain,
    /// All.
    All,
}

/// `[publish]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishConfig {
    /// CBOR or JSON.
    pub encoding: Encoding,
    /// Which frames travel.
    pub frames: FramePolicy,
    /// Quality of frames that are not JPEG already, too large, or changed.
    pub jpeg_quality: u8,
    /// With `frames = "uncertain"`: the mean agreement of the views about a person's keypoints below which it is.
    pub uncertain_below: f32,
    /// Frames an hour at most; 0: no limit.
    pub frames_per_hour: u64,
    /// Frames a day at most; 0: no limit.
    pub frames_per_day: u64,
    /// Faces, as far as their keypoints show them, become a coarse mosaic before a frame leaves the device.
    pub blur_faces: bool,
    /// What lies outside of people's boxes becomes grey before a frame leaves the device.
    pub only_people: bool,
    /// Announces the device to Home Assistant, which reads JSON.
    pub home_assistant: bool,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            encoding: Encoding::Cbor,
            frames: FramePolicy::Kept,
            jpeg_quality: 90,
            uncertain_below: 0.7,
            frames_per_hour: 0,
            frames_per_day: 0,
            blur_faces: false,
            only_people: false,
            home_assistant: false,
        }
    }
}

/// `[update]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// Frames that a new model must label within the health limits before it is confirmed.
    pub probation_frames: u32,
    /// A frame on probation may take this many times as long as the confirmed model's mean.
    pub max_slowdown: f64,
    /// In the shadow of the confirmed model, a new one has this F1 with it at least, at an OKS of 0.5.
    pub shadow_f1: f64,
    /// There, the one may find this many times as many people as the other.
    pub shadow_people: f64,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        let probation_frames = omnilabel_keypoints::trial::PROBATION_FRAMES;
        Self { probation_frames, max_slowdown: 5.0, shadow_f1: 0.4, shadow_people: 3.0 }
    }
}

impl EdgeConfig {
    /// Reads and checks a file. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let refuse = |message: String| ConfigError::File { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let mut config: Self = Figment::from(Toml::string(&text)).extract().map_err(|errors| {
            let list: Vec<String> = errors.into_iter().map(|error| explain(&error)).collect();
            refuse(list.join("; "))
        })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.check(path)?;
        Ok(config)
    }

    fn resolve(&mut self, folder: &Path) {
        let absolute = |path: &mut PathBuf| *path = folder.join(&*path);
        absolute(&mut self.state_dir);
        let token = self.web.iter_mut().filter_map(|web| web.token_file.as_mut());
        self.root_key.iter_mut().chain(&mut self.teacher.detector).chain(token).for_each(absolute);
        if let Some(tls) = &mut self.broker.tls {
            [&mut tls.ca, &mut tls.certificate, &mut tls.key].into_iter().for_each(absolute);
        }
        for camera in self.camera.iter_mut().chain(self.cameras.values_mut()) {
            if let CameraConfig::Folder { path, .. } | CameraConfig::Video { path, .. } = camera {
                absolute(path);
            }
        }
    }

    /// Every camera with its name; the name of a camera alone is empty.
    pub fn cameras(&self) -> Vec<(&str, &CameraConfig)> {
        let several = self.cameras.iter().map(|(name, camera)| (name.as_str(), camera));
        self.camera.iter().map(|camera| ("", camera)).chain(several).collect()
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let ensure = |good: bool, key: &str, message: &dyn Fn() -> String| {
            if good { Ok(()) } else { Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), message: message() }) }
        };
        for (key, name) in [("device", &self.device), ("channel", &self.channel), ("broker.site", &self.broker.site)] {
            ensure(topic::id(name).is_ok(), key, &|| format!("is {name:?}, expected 1 to 64 of A-Z a-z 0-9 . _ -"))?;
        }
        // Levels of topics that stand beside the devices'.
        ensure(!["blocks", "release"].contains(&self.device.as_str()), "device", &|| "is the name of a topic; choose another".to_owned())?;
        ensure(self.teacher.threads <= 256, "teacher.threads", &|| format!("is {}, expected 0 to 256", self.teacher.threads))?;
        self.broker.check().map_err(|error| ConfigError::File { path: path.to_owned(), message: format!("[broker] {error}") })?;
        ensure(self.camera.is_some() || !self.cameras.is_empty(), "camera", &|| {
            "is missing, expected [camera] or [cameras.NAME]".to_owned()
        })?;
        ensure(self.camera.is_none() || self.cameras.is_empty(), "camera", &|| "and `cameras` are given, expected one of them".to_owned())?;
        ensure(self.cameras.len() <= MAX_CAMERAS, "cameras", &|| format!("are {}, expected at most {MAX_CAMERAS}", self.cameras.len()))?;
        for (name, camera) in self.cameras() {
            let at = |key: &str| if name.is_empty() { format!("camera.{key}") } else { format!("cameras.{name}.{key}") };
            ensure(name.is_empty() || topic::id(name).is_ok(), &format!("cameras.{name}"), &|| {
                "has no good name, expected 1 to 64 of A-Z a-z 0-9 . _ -".to_owned()
            })?;
            camera.check(|good, key, message| ensure(good, &at(key), message))?;
        }
        let (policy, publish) = (&self.policy, &self.publish);
        for (key, value) in [("policy.novelty", policy.novelty), ("publish.uncertain_below", publish.uncertain_below)] {
            ensure((0.0..=1.0).contains(&value), key, &|| format!("is {value}, expected 0 to 1"))?;
        }
        ensure(!publish.home_assistant || publish.encoding == Encoding::Json, "publish.home_assistant", &|| {
            "needs `encoding = \"json\"`: Home Assistant reads no CBOR".to_owned()
        })?;
        let offset = policy.utc_offset_minutes;
        ensure((-1440..=1440).contains(&offset), "policy.utc_offset_minutes", &|| format!("is {offset}, expected -1440 to 1440"))?;
        let celsius = self.teacher.max_celsius;
        ensure((0.0..=150.0).contains(&celsius), "teacher.max_celsius", &|| format!("is {celsius}, expected 0 to 150"))?;
        if let Some(web) = &self.web {
            ensure(web.listen.ip().is_loopback() || web.token_file.is_some(), "web.token_file", &|| {
                format!("is missing: {} can be reached by others than this machine", web.listen)
            })?;
        }
        let scales = &self.teacher.scales;
        ensure(scales.len() <= 16 && scales.iter().all(|s| (16..=4096).contains(s)), "teacher.scales", &|| {
            format!("is {scales:?}, expected at most 16 short sides of 16 to 4096 px")
        })?;
        let bytes = self.outbox.max_bytes;
        ensure(bytes >= 1 << 20, "outbox.max_bytes", &|| format!("is {bytes}, expected at least 1048576"))?;
        let quality = self.publish.jpeg_quality;
        ensure((1..=100).contains(&quality), "publish.jpeg_quality", &|| format!("is {quality}, expected 1 to 100"))?;
        let frames = self.update.probation_frames;
        ensure((1..=100_000).contains(&frames), "update.probation_frames", &|| format!("is {frames}, expected 1 to 100000"))?;
        let slowdown = self.update.max_slowdown;
        ensure(slowdown.is_finite() && slowdown > 1.0, "update.max_slowdown", &|| format!("is {slowdown}, expected more than 1"))?;
        let (f1, people) = (self.update.shadow_f1, self.update.shadow_people);
        ensure((0.0..=1.0).contains(&f1), "update.shadow_f1", &|| format!("is {f1}, expected 0 to 1"))?;
        ensure(people.is_finite() && people >= 1.0, "update.shadow_people", &|| format!("is {people}, expected 1 or more"))
    }

    /// The file of the root public key.
    pub fn root_key(&self) -> PathBuf {
        self.root_key.clone().unwrap_or_else(|| self.state_dir.join(crate::slots::ROOT_KEY))
    }
}

/// The key first, then what was expected.
fn explain(error: &figment::Error) -> String {
    let key = error.path.join(".");
    match &error.kind {
        figment::error::Kind::UnknownField(name, known) => {
            let known_path = key == *name || key.ends_with(&format!(".{name}"));
            let key = if known_path { key } else { [key.as_str(), name.as_str()].join(".").trim_start_matches('.').to_owned() };
            format!("unknown key `{key}`, expected one of: {}", known.join(", "))
        }
        figment::error::Kind::MissingField(name) if key.is_empty() => format!("the key `{name}` is missing"),
        figment::error::Kind::MissingField(name) => format!("the key `{key}.{name}` is missing"),
        kind if key.is_empty() => kind.to_string(),
        kind => format!("`{key}`: {kind}"),
    }
}
