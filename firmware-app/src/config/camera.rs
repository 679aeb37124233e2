//! `[camera]` and `[cameras.NAME]`: where frames come from.

use super::ConfigError;
use crate::camera::gstreamer::Source;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[camera]`, or `[cameras.NAME]`.
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
    /// A network camera, through GStreamer.
    Rtsp {
        /// `rtsp://[user:password@]host[:port]/path`.
        url: String,
        /// Frames per second at most; others are skipped.
        #[serde(default = "ten")]
        fps: f64,
        /// Without a frame for this long the stream is opened anew.
        #[serde(default = "ten")]
        stall_secs: f64,
        /// How pictures travel.
        #[serde(default)]
        transport: Transport,
        /// What the receiver waits for late packets.
        #[serde(default = "latency")]
        latency_ms: u32,
    },
    /// A camera of the kernel (USB), through GStreamer.
    V4l2 {
        /// `/dev/video0`.
        device: PathBuf,
        /// Frames per second at most; others are skipped.
        #[serde(default = "ten")]
        fps: f64,
        /// Without a frame for this long the camera is opened anew.
        #[serde(default = "ten")]
        stall_secs: f64,
    },
    /// A GStreamer pipeline that ends in raw video: CSI cameras, hardware decoders.
    Gstreamer {
        /// As `gst-launch-1.0` takes it.
        pipeline: String,
        /// Frames per second at most; others are skipped.
        #[serde(default = "ten")]
        fps: f64,
        /// Without a frame for this long the pipeline is started anew.
        #[serde(default = "ten")]
        stall_secs: f64,
    },
    /// A video file, through GStreamer.
    Video {
        /// The file.
        path: PathBuf,
        /// Frames of each second of the video.
        #[serde(default = "ten")]
        fps: f64,
        /// As with a folder.
        #[serde(default)]
        stop_at_end: bool,
    },
}

/// How an RTSP camera's pictures travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Within the RTSP connection.
    #[default]
    Tcp,
    /// As datagrams.
    Udp,
}

impl CameraConfig {
    /// Whether a frame that nobody has time for may be dropped.
    pub const fn is_live(&self) -> bool {
        !matches!(self, Self::Folder { .. } | Self::Video { .. })
    }

    /// Whether the process ends when this camera has.
    pub const fn stops_at_end(&self) -> bool {
        matches!(self, Self::Folder { stop_at_end: true, .. } | Self::Video { stop_at_end: true, .. })
    }

    /// Frames per second.
    pub const fn fps(&self) -> f64 {
        match self {
            Self::Folder { fps, .. }
            | Self::Mjpeg { fps, .. }
            | Self::Rtsp { fps, .. }
            | Self::V4l2 { fps, .. }
            | Self::Gstreamer { fps, .. }
            | Self::Video { fps, .. } => *fps,
        }
    }

    /// How long a live camera may be silent.
    pub const fn stall_secs(&self) -> Option<f64> {
        match self {
            Self::Mjpeg { stall_secs, .. }
            | Self::Rtsp { stall_secs, .. }
            | Self::V4l2 { stall_secs, .. }
            | Self::Gstreamer { stall_secs, .. } => Some(*stall_secs),
            Self::Folder { .. } | Self::Video { .. } => None,
        }
    }

    /// What GStreamer is asked for, where it is, and the key that says it.
    pub fn source(&self) -> Option<(&'static str, Result<Source, String>)> {
        match self {
            Self::Folder { .. } | Self::Mjpeg { .. } => None,
            Self::Rtsp { url, transport, latency_ms, .. } => Some(("url", Source::rtsp(url, *transport, *latency_ms))),
            Self::V4l2 { device, .. } => Some(("device", Source::v4l2(device))),
            Self::Gstreamer { pipeline, .. } => Some(("pipeline", Source::pipeline(pipeline))),
            Self::Video { path, .. } => Some(("path", Source::video(path))),
        }
    }

    /// What stands under `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "folder",
            Self::Mjpeg { .. } => "mjpeg",
            Self::Rtsp { .. } => "rtsp",
            Self::V4l2 { .. } => "v4l2",
            Self::Gstreamer { .. } => "gstreamer",
            Self::Video { .. } => "video",
        }
    }
}

const fn latency() -> u32 {
    200
}

const fn ten() -> f64 {
    10.0
}

const fn frame_bytes() -> usize {
    8 * 1024 * 1024
}

impl CameraConfig {
    /// `ensure` is told whether a value is good, its key, and what is wrong with it.
    pub(super) fn check(&self, ensure: impl Fn(bool, &str, &dyn Fn() -> String) -> Result<(), ConfigError>) -> Result<(), ConfigError> {
        if let Some((key, Err(message))) = self.source() {
            ensure(false, key, &|| message.clone())?;
        }
        match self {
            Self::Mjpeg { url, max_frame_bytes, .. } => {
                if let Err(message) = crate::camera::http::Target::parse(url) {
                    ensure(false, "url", &|| message.clone())?;
                }
                let range = 1024..=64 * 1024 * 1024;
                ensure(range.contains(max_frame_bytes), "max_frame_bytes", &|| format!("is {max_frame_bytes}, expected 1024 to 67108864"))?;
            }
            Self::Rtsp { latency_ms, .. } => {
                ensure(*latency_ms <= 60_000, "latency_ms", &|| format!("is {latency_ms}, expected 0 to 60000"))?;
            }
            Self::Video { fps, .. } => {
                ensure(fps.fract() == 0.0 || *fps < 1.0, "fps", &|| format!("is {fps}, expected a whole number, or less than 1"))?;
            }
            Self::Folder { .. } | Self::V4l2 { .. } | Self::Gstreamer { .. } => {}
        }
        let (fps, stall) = (self.fps(), self.stall_secs().unwrap_or(1.0));
        ensure((0.001..=1000.0).contains(&fps), "fps", &|| format!("is {fps}, expected 0.001 to 1000"))?;
        ensure((0.1..=3600.0).contains(&stall), "stall_secs", &|| format!("is {stall}, expected 0.1 to 3600"))
    }
}
