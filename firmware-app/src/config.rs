//! `edge.toml`, read once into one typed value and passed in. Unknown keys are errors; `docs/EDGE.md` is the reference.

use figment::Figment;
use figment::providers::{Format, Toml};
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::wire::{Encoding, topic};
use omnilabel_link::LinkConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
        key: &'static str,
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
    /// Where frames come from.
    pub camera: CameraConfig,
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
}

fn stable() -> String {
    "stable".to_owned()
}

/// `[camera]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CameraConfig {
    /// The JPEG and PNG files of a folder, in the order of their names.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Frames per second.
        #[serde(default = "ten")]
        fps: f64,
        /// Starts over after the last one.
        #[serde(default, rename = "loop")]
        repeat: bool,
        /// After the last frame: waits until everything is acknowledged, then ends. Without it the device stays for updates.
        #[serde(default)]
        stop_at_end: bool,
    },
    /// MJPEG over HTTP (`multipart/x-mixed-replace`).
    Mjpeg {
        /// `http://[user:password@]host[:port]/path`.
        url: String,
        /// Frames per second at most; others are skipped.
        #[serde(default = "ten")]
        fps: f64,
        /// Without a frame for this long the stream is opened anew.
        #[serde(default = "ten")]
        stall_secs: f64,
        /// A larger frame is skipped and counted as bad.
        #[serde(default = "frame_bytes")]
        max_frame_bytes: usize,
    },
}

const fn ten() -> f64 {
    10.0
}

const fn frame_bytes() -> usize {
    8 * 1024 * 1024
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
            detector: None,
        }
    }
}

/// `[outbox]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboxConfig {
    /// Beyond this the oldest labels are evicted, which is counted and reported.
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
    /// Quality of frames that are not JPEG already, or too large.
    pub jpeg_quality: u8,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self { encoding: Encoding::Cbor, frames: FramePolicy::Kept, jpeg_quality: 90 }
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
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self { probation_frames: omnilabel_keypoints::trial::PROBATION_FRAMES, max_slowdown: 5.0 }
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
        self.root_key.iter_mut().chain(&mut self.teacher.detector).for_each(absolute);
        if let Some(tls) = &mut self.broker.tls {
            [&mut tls.ca, &mut tls.certificate, &mut tls.key].into_iter().for_each(absolute);
        }
        if let CameraConfig::Folder { path, .. } = &mut self.camera {
            absolute(path);
        }
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let ensure = |good: bool, key: &'static str, message: &dyn Fn() -> String| {
            if good { Ok(()) } else { Err(ConfigError::Value { path: path.to_owned(), key, message: message() }) }
        };
        for (key, name) in [("device", &self.device), ("channel", &self.channel), ("broker.site", &self.broker.site)] {
            ensure(topic::id(name).is_ok(), key, &|| format!("is {name:?}, expected 1 to 64 of A-Z a-z 0-9 . _ -"))?;
        }
        // Levels of topics that stand beside the devices'.
        ensure(!["blocks", "release"].contains(&self.device.as_str()), "device", &|| "is the name of a topic; choose another".to_owned())?;
        ensure(self.teacher.threads <= 256, "teacher.threads", &|| format!("is {}, expected 0 to 256", self.teacher.threads))?;
        self.broker.check().map_err(|error| ConfigError::File { path: path.to_owned(), message: format!("[broker] {error}") })?;
        let (fps, stall) = match &self.camera {
            CameraConfig::Folder { fps, .. } => (*fps, 1.0),
            CameraConfig::Mjpeg { fps, stall_secs, url, max_frame_bytes } => {
                crate::camera::http::Target::parse(url).map_err(|message| ConfigError::Value {
                    path: path.to_owned(),
                    key: "camera.url",
                    message,
                })?;
                let range = 1024..=64 * 1024 * 1024;
                ensure(range.contains(max_frame_bytes), "camera.max_frame_bytes", &|| {
                    format!("is {max_frame_bytes}, expected 1024 to 67108864")
                })?;
                (*fps, *stall_secs)
            }
        };
        ensure((0.001..=1000.0).contains(&fps), "camera.fps", &|| format!("is {fps}, expected 0.001 to 1000"))?;
        ensure((0.1..=3600.0).contains(&stall), "camera.stall_secs", &|| format!("is {stall}, expected 0.1 to 3600"))?;
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
        ensure(slowdown.is_finite() && slowdown > 1.0, "update.max_slowdown", &|| format!("is {slowdown}, expected more than 1"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        device = "cam-1"
        state_dir = "state"
        [broker]
        host = "localhost"
        site = "yard"
        [camera]
        type = "folder"
        path = "frames"
        loop = true
        [teacher]
        scales = [96, 128]
    "#;

    fn load(text: &str) -> Result<EdgeConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        let result = EdgeConfig::load(&path).map_err(|error| error.to_string());
        result.map(|mut config| {
            // So that results of two calls compare.
            config.state_dir = config.state_dir.strip_prefix(folder.path()).unwrap().to_owned();
            config
        })
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let config = load(GOOD).unwrap();
        assert_eq!((config.channel.as_str(), config.broker.port, config.publish.frames), ("stable", 1883, FramePolicy::Kept));
        assert_eq!(config.state_dir, Path::new("state"));
        assert!(matches!(config.camera, CameraConfig::Folder { repeat: true, stop_at_end: false, .. }));
    }

    #[test]
    fn a_detector_lies_beside_the_file() {
        let config = load(&GOOD.replace("[teacher]", "[teacher]\ndetector = \"finder\"")).unwrap();
        let detector = config.teacher.detector.clone().unwrap();
        assert!(detector.is_absolute() && detector.ends_with("finder"), "{}", detector.display());
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("detector = "), "{text}");
        assert!(!toml::to_string(&load(GOOD).unwrap()).unwrap().contains("detector"));
    }

    #[test]
    fn every_refusal_names_the_key_and_what_was_expected() {
        let with = |from: &str, to: &str| load(&GOOD.replace(from, to)).unwrap_err();
        for (error, names) in [
            (load("device = \"a\"").unwrap_err(), ["state_dir", "missing"]),
            (with("[teacher]", "[teacher]\nscalse = [1]"), ["`teacher.scalse`", "scales"]),
            (with("loop = true", "lop = true"), ["lop", "loop"]),
            (with("site = \"yard\"", "site = \"yard\"\nusername = \"x\""), ["`broker.username`", "host"]),
            (with("device = \"cam-1\"", "device = \"cam-1\"\nname = \"x\""), ["`name`", "device"]),
            (with("\"cam-1\"", "\"cam/1\""), ["`device`", "A-Z"]),
            (with("\"cam-1\"", "\"release\""), ["`device`", "topic"]),
            (with("loop = true", "fps = 1e-300"), ["`camera.fps`", "0.001"]),
            (with("[96, 128]", "[96, 8]"), ["`teacher.scales`", "16 to 4096"]),
            (with("[96, 128]", "\"96\""), ["teacher.scales", "sequence"]),
            (with("[teacher]", "[teacher]\ndevice = \"gpu\""), ["teacher.device", "auto"]),
            (with("loop = true", "fps = 0"), ["`camera.fps`", "0.001 to 1000"]),
            (with("\"localhost\"", "\"10.0.0.7\""), ["[broker]", "allow_plain"]),
            (with("type = \"folder\"", "type = \"rtsp\""), ["rtsp", "mjpeg"]),
            (with("device", "device device"), ["TOML", "device"]),
        ] {
            assert!(error.contains("edge.toml") && names.iter().all(|name| error.contains(name)), "{error} does not say {names:?}");
        }
    }
}
