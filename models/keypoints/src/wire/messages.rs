//! The messages, field by field (`docs/WIRE.md`).

use super::{HISTOGRAM_BINS, MAX_GAPS, Message, VERSION, bytes};
use crate::geometry::{Point, Rect, Size};
use crate::label::{Detection, Instance, Keypoint, Label};
use crate::{MAX_INSTANCES, MAX_KEYPOINTS};
use core::fmt;
use heapless::{String, Vec};
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The key under which a label is stored once: (device, outbox epoch, sequence). The device is in the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LabelKey {
    /// Drawn anew when an outbox is created.
    pub epoch: u64,
    /// Counts from 1 within the epoch.
    pub sequence: u64,
}

/// One keypoint on the wire: integers in 1/16 px and 1/255 (probability, agreement), the logit in 1/16.
///
/// An array of 3 to 5 numbers; missing ones are 0, further ones (of later versions) are skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WireKeypoint(
    /// x in 1/16 px.
    pub i32,
    /// y in 1/16 px.
    pub i32,
    /// Probability in 1/255.
    pub u8,
    /// Agreement in 1/255.
    pub u8,
    /// Peak logit in 1/16.
    pub i16,
);

impl<'de> Deserialize<'de> for WireKeypoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = WireKeypoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array [x, y, probability, agreement, logit]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<WireKeypoint, A::Error> {
                let missing = |n| A::Error::invalid_length(n, &self);
                let x = seq.next_element()?.ok_or_else(|| missing(0))?;
                let y = seq.next_element()?.ok_or_else(|| missing(1))?;
                let probability = seq.next_element()?.ok_or_else(|| missing(2))?;
                let agreement = seq.next_element()?.unwrap_or(0);
                let logit = seq.next_element()?.unwrap_or(0);
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(WireKeypoint(x, y, probability, agreement, logit))
            }
        }
        deserializer.deserialize_seq(Numbers)
    }
}

/// `value · steps`, rounded; saturating, and 0 for NaN.
fn quantised(value: f32, steps: f32) -> f64 {
    libm::round(f64::from(value) * f64::from(steps))
}

impl WireKeypoint {
    fn quantise(keypoint: &Keypoint) -> Self {
        Self(
            quantised(keypoint.point.x, 16.0) as i32,
            quantised(keypoint.point.y, 16.0) as i32,
            quantised(keypoint.probability, 255.0) as u8,
            quantised(keypoint.agreement, 255.0) as u8,
            quantised(keypoint.peak_logit, 16.0) as i16,
        )
    }

    fn keypoint(&self) -> Keypoint {
        Keypoint {
            point: Point { x: self.0 as f32 / 16.0, y: self.1 as f32 / 16.0 },
            probability: f32::from(self.2) / 255.0,
            agreement: f32::from(self.3) / 255.0,
            peak_logit: f32::from(self.4) / 16.0,
        }
    }
}

/// One instance on the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WireInstance {
    /// Box corners x1, y1, x2, y2 in 1/16 px.
    #[serde(rename = "b")]
    pub rect: [i32; 4],
    /// Score in 1/65535.
    #[serde(rename = "s")]
    pub score: u16,
    /// Whether it passed τ of the device's release.
    #[serde(rename = "k", default)]
    pub kept: bool,
    /// Keypoints in the skeleton's order.
    #[serde(rename = "p")]
    pub keypoints: Vec<WireKeypoint, MAX_KEYPOINTS>,
}

impl WireInstance {
    fn quantise(instance: &Instance) -> Self {
        let Detection { rect, score, keypoints } = &instance.detection;
        Self {
            rect: [rect.x1, rect.y1, rect.x2, rect.y2].map(|v| quantised(v, 16.0) as i32),
            score: quantised(*score, 65535.0) as u16,
            kept: instance.kept,
            keypoints: keypoints.iter().map(WireKeypoint::quantise).collect(),
        }
    }

    fn instance(&self) -> Instance {
        let [x1, y1, x2, y2] = self.rect.map(|v| v as f32 / 16.0);
        Instance {
            detection: Detection {
                rect: Rect::new(x1, y1, x2, y2),
                score: f32::from(self.score) / 65535.0,
                keypoints: self.keypoints.iter().map(WireKeypoint::keypoint).collect(),
            },
            kept: self.kept,
        }
    }
}

/// A bit of [`LabelMsg::changes`]: faces are a coarse mosaic, as far as their keypoints show them.
pub const FACES_BLURRED: u8 = 1;
/// A bit of [`LabelMsg::changes`]: what lies outside of people's boxes is grey.
pub const ONLY_PEOPLE: u8 = 2;

/// `…/labels`: the label of one frame.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Outbox epoch.
    #[serde(rename = "e")]
    pub epoch: u64,
    /// Sequence within the epoch.
    #[serde(rename = "q")]
    pub sequence: u64,
    /// The frame's id: the camera's name for it. Only the label's key is unique.
    #[serde(rename = "f")]
    pub frame: u64,
    /// Capture time, Unix milliseconds; 0 when the device has no clock.
    #[serde(rename = "t", default)]
    pub captured_ms: u64,
    /// Which teacher: the counter of its release, 0 for the provisioned model.
    #[serde(rename = "m", default)]
    pub model: u64,
    /// First 8 bytes of the SHA-256 of the bundle's manifest, as an integer.
    #[serde(rename = "h", default)]
    pub model_hash: u64,
    /// Frame width in pixels.
    #[serde(rename = "W")]
    pub width: u32,
    /// Frame height in pixels.
    #[serde(rename = "H")]
    pub height: u32,
    /// Instances above the floor that did not fit.
    #[serde(rename = "o", default)]
    pub overflow: u32,
    /// Whether the frame follows on `…/frames`: the label counts as stored only when that is stored, too.
    #[serde(rename = "j", default)]
    pub jpeg: bool,
    /// Which camera of the device, when it has several.
    #[serde(rename = "n", default)]
    pub camera: String<{ super::MAX_ID }>,
    /// What was done to the frame before it left the device: [`FACES_BLURRED`] and [`ONLY_PEOPLE`].
    #[serde(rename = "x", default)]
    pub changes: u8,
    /// How many views were averaged; 0: not known.
    #[serde(rename = "u", default)]
    pub views: u16,
    /// Instances by falling score.
    #[serde(rename = "i")]
    pub instances: Vec<WireInstance, MAX_INSTANCES>,
}

impl LabelMsg {
    /// Quantises a label.
    pub fn quantise(label: &Label, key: LabelKey, frame: u64, captured_ms: u64, model: u64, model_hash: u64) -> Self {
        Self {
            version: VERSION,
            epoch: key.epoch,
            sequence: key.sequence,
            frame,
            captured_ms,
            model,
            model_hash,
            width: label.size.width,
            height: label.size.height,
            overflow: label.overflow,
            jpeg: false,
            camera: String::new(),
            changes: 0,
            views: 0,
            instances: label.instances.iter().map(WireInstance::quantise).collect(),
        }
    }

    /// The label in pixels and unit scores again.
    pub fn label(&self) -> Label {
        Label {
            size: Size { width: self.width, height: self.height },
            instances: self.instances.iter().map(WireInstance::instance).collect(),
            overflow: self.overflow,
        }
    }

    /// The key under which it is stored once.
    pub fn key(&self) -> LabelKey {
        LabelKey { epoch: self.epoch, sequence: self.sequence }
    }
}

/// `…/frames`: what stands before the JPEG. The payload is `len(header) as u16 big-endian ‖ header ‖ JPEG`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FrameHeader {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Outbox epoch of the frame's label.
    #[serde(rename = "e")]
    pub epoch: u64,
    /// Sequence of the frame's label.
    #[serde(rename = "q")]
    pub sequence: u64,
    /// Frame id.
    #[serde(rename = "f")]
    pub frame: u64,
}

/// `…/histogram`: how many instances had which score since the process or the release started, cumulative.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistogramMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Counter of the release that made the scores.
    #[serde(rename = "m")]
    pub model: u64,
    /// Frames seen.
    #[serde(rename = "n")]
    pub frames: u64,
    /// Instances per score bin of width 1/[`HISTOGRAM_BINS`].
    #[serde(rename = "s")]
    pub scores: Vec<u32, HISTOGRAM_BINS>,
}

/// `…/ack`, retained: the collector has committed everything of `epoch` up to and including `watermark`, but for `gaps`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AckMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// The collector's own epoch: a new one means its store was restored from a backup.
    #[serde(rename = "c")]
    pub collector: u64,
    /// The device's outbox epoch.
    #[serde(rename = "e")]
    pub epoch: u64,
    /// Everything up to here is stored, contiguously.
    #[serde(rename = "w")]
    pub watermark: u64,
    /// Stored above the watermark: inclusive ranges.
    #[serde(rename = "r", default)]
    pub stored: Vec<(u64, u64), MAX_GAPS>,
}

/// `…/status`, retained and the last will.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Whether the device is connected.
    pub online: bool,
    /// Counter of the confirmed release, 0 for the provisioned model.
    #[serde(default)]
    pub model: u64,
    /// Frames labelled since start.
    #[serde(default)]
    pub frames: u64,
    /// Frames that could not be read.
    #[serde(default)]
    pub bad_frames: u64,
    /// Labels committed to the outbox, over the life of the epoch.
    #[serde(default)]
    pub committed: u64,
    /// Labels in the outbox that are not acknowledged.
    #[serde(default)]
    pub pending: u64,
    /// Frames evicted by the outbox's byte budget, whose labels were not at that time.
    #[serde(default)]
    pub frames_evicted: u64,
    /// Labels evicted by the outbox's byte budget.
    #[serde(default)]
    pub evicted: u64,
    /// Outbox epoch.
    #[serde(default)]
    pub epoch: u64,
}

/// `…/model`, retained: what the device runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Counter of the confirmed release, 0 for the provisioned model.
    pub confirmed: u64,
    /// Counter of the release on trial.
    #[serde(default)]
    pub trial: Option<u64>,
    /// Counter of the last refused release.
    #[serde(default)]
    pub refused: Option<u64>,
    /// Why it was refused.
    #[serde(default)]
    pub reason: String<160>,
}

/// `…/release/{channel}`, retained: the signed manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleaseMsg {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// The exact bytes of the release manifest (JSON, see [`crate::release::ReleaseManifest`]).
    #[serde(with = "bytes", rename = "m")]
    pub manifest: Vec<u8, { crate::release::MAX_MANIFEST }>,
    /// Ed25519 over [`crate::release::DOMAIN`] ‖ manifest.
    #[serde(with = "bytes", rename = "s")]
    pub signature: Vec<u8, 64>,
    /// The exact bytes of the set of release keys (JSON, see [`crate::release::KeySet`]); empty where the root key signs itself.
    #[serde(with = "bytes", rename = "k", default)]
    pub keys: Vec<u8, { crate::release::MAX_KEY_SET }>,
    /// Ed25519 of the root key over [`crate::release::KEYS_DOMAIN`] ‖ keys; empty where those are.
    #[serde(with = "bytes", rename = "r", default)]
    pub keys_signature: Vec<u8, 64>,
    /// Thousandths of the fleet whose turn has not come: devices whose [`crate::release::turn`] is 1000 − `waiting` or more. Not signed:
    /// who may write here can hold a release back anyway.
    #[serde(rename = "w", default)]
    pub waiting: u16,
    /// Seconds for which a device compares the release with its model before it may label anything; 0: not at all. Not signed, either.
    #[serde(rename = "d", default)]
    pub shadow_secs: u32,
}

impl ReleaseMsg {
    /// Whether it is a device's turn to take the release with this counter.
    pub const fn is_turn_of(&self, device: &str, counter: u64) -> bool {
        (crate::release::turn(device, counter) as u32) + (self.waiting as u32) < 1000
    }
}

/// `…/blocks/get`: the device asks for the blocks it misses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Message version.
    #[serde(rename = "v")]
    pub version: u8,
    /// Counter of the release.
    #[serde(rename = "m")]
    pub counter: u64,
    /// SHA-256 of each block wanted, at most 64 a request. The block itself travels raw on `…/blocks/{sha256}`.
    #[serde(rename = "b")]
    pub blocks: Vec<String<64>, 64>,
}

impl Message for LabelMsg {
    const MAX_BYTES: usize = 32 * 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for FrameHeader {
    const MAX_BYTES: usize = 128;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for HistogramMsg {
    const MAX_BYTES: usize = 4 * 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for AckMsg {
    const MAX_BYTES: usize = 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for StatusMsg {
    const MAX_BYTES: usize = 512;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for ModelMsg {
    const MAX_BYTES: usize = 2 * 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for ReleaseMsg {
    const MAX_BYTES: usize = 64 * 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
impl Message for BlockRequest {
    const MAX_BYTES: usize = 8 * 1024;
    fn version(&self) -> u8 {
        self.version
    }
}
