//! Cameras: where frames come from. A camera never fails for good: what goes wrong is an [`CameraEvent`], and it goes on.

mod folder;
pub mod gstreamer;
pub mod http;
pub mod mjpeg;
pub mod multipart;
pub mod ppm;
mod progress;
mod retry;

pub use folder::{Folder, images_of};
pub use mjpeg::Mjpeg;
pub use progress::{Progress, Recording};
pub use retry::Retry;

use crate::clock::now_ms;
use crate::config::{CameraConfig, EdgeConfig};
use gstreamer::Pipeline;
use omnilabel_detect::frame::Frame;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// What the camera calls the frame: names it everywhere, but two frames may have the same.
    pub id: u64,
    /// Unix milliseconds.
    pub captured_ms: u64,
    /// File or stream, for people.
    pub name: String,
    /// The bytes as they came, when they are a JPEG.
    pub jpeg: Option<Vec<u8>>,
    /// The picture.
    pub frame: Frame,
    /// Frames of a recording up to and with this one.
    pub position: Option<usize>,
}

/// What a camera says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameraEvent {
    /// A frame.
    Shot(Box<Shot>),
    /// A frame that could not be read; the camera goes on.
    Bad {
        /// Which, and why.
        reason: String,
        /// Frames of a recording up to and with this one.
        position: Option<usize>,
    },
    /// A recording that could not be opened at first was opened.
    Opened {
        /// What tells it from another: see [`Progress::open`].
        recording: Recording,
    },
    /// The stream is away; the camera tries again.
    Lost {
        /// Why.
        reason: String,
        /// When.
        retry_in: Duration,
    },
    /// The last frame was given.
    End,
}

/// A source of frames. [`Camera::next`] blocks until there is something to say.
pub trait Camera: Send {
    /// The next event. After [`CameraEvent::End`] it is not called again.
    fn next(&mut self) -> CameraEvent;

    /// Whether a frame that nobody has time for may be dropped (live), or has to wait (recorded).
    fn is_live(&self) -> bool;

    /// Where to note which frames are done with, so that a restart goes on behind them.
    fn progress(&self) -> Option<Progress> {
        None
    }

    /// At most `count` frames before the next one, as far as they can be had: something to try a model on.
    fn past(&self, _count: usize) -> Vec<Box<Shot>> {
        Vec::new()
    }
}

/// Opens the camera of a configuration. `progress` is where a folder or a video remembers how far it is, so that a restart goes on.
///
/// # Errors
/// When a folder or a file cannot be read, or has no images.
pub fn open(config: &CameraConfig, progress: &Path) -> anyhow::Result<Box<dyn Camera>> {
    let source = || match config.source() {
        Some((key, Err(message))) => anyhow::bail!("camera: `{key}` {message}"),
        Some((_, Ok(source))) => Ok(source),
        None => anyhow::bail!("camera: {} needs no GStreamer", config.kind()),
    };
    Ok(match config {
        CameraConfig::Folder { path, fps, repeat, .. } => Box::new(Folder::open(path, *fps, *repeat, Some(progress))?),
        CameraConfig::Mjpeg { url, fps, stall_secs, max_frame_bytes } => {
            Box::new(Mjpeg::new(url, *fps, Duration::from_secs_f64(*stall_secs), *max_frame_bytes)?)
        }
        CameraConfig::Rtsp { fps, stall_secs, .. }
        | CameraConfig::V4l2 { fps, stall_secs, .. }
        | CameraConfig::Gstreamer { fps, stall_secs, .. } => {
            Box::new(Pipeline::live(source()?, *fps, Duration::from_secs_f64(*stall_secs)))
        }
        CameraConfig::Video { path, fps, .. } => Box::new(Pipeline::video(path, source()?, *fps, Some(progress))?),
    })
}

/// Where a camera notes how far it is; `name` is empty for a camera alone.
pub fn progress_file(config: &EdgeConfig, name: &str) -> PathBuf {
    config.state_dir.join(if name.is_empty() { "camera.progress".to_owned() } else { format!("camera.{name}.progress") })
}

/// Opens every camera of a configuration. A camera alone has to be there; one of several is tried again while the others work.
///
/// # Errors
/// See [`open`], of a camera alone.
pub fn open_all(config: &EdgeConfig) -> anyhow::Result<Vec<Box<dyn Camera>>> {
    let cameras = config.cameras();
    let alone = cameras.len() == 1;
    let open = |(name, camera): (&str, &CameraConfig)| -> anyhow::Result<Box<dyn Camera>> {
        let progress = progress_file(config, name);
        if alone {
            return open(camera, &progress);
        }
        let (live, camera) = (camera.is_live(), camera.clone());
        Ok(Box::new(Retry::new(live, Box::new(move || open(&camera, &progress)))))
    };
    cameras.into_iter().map(open).collect()
}

/// Decodes what came as a JPEG or PNG.
fn shot(id: u64, name: String, bytes: Vec<u8>, position: Option<usize>) -> CameraEvent {
    match Frame::decode(&name, &bytes) {
        Ok(frame) => {
            let jpeg = bytes.starts_with(&[0xff, 0xd8]).then_some(bytes);
            CameraEvent::Shot(Box::new(Shot { id, captured_ms: now_ms(), name, jpeg, frame, position }))
        }
        Err(error) => CameraEvent::Bad { reason: error.to_string(), position },
    }
}
