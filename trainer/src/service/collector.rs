//! From messages to records: what is worth storing, what is kept but not trained on, what is only counted. Pure; bytes come from anyone.

use crate::service::config::CollectorConfig;
use crate::service::store::intake::{EVICTED, LabelRow, Record};
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{BlockRequest, FrameHeader, HistogramMsg, LabelKey, LabelMsg, Message, ModelMsg, StatusMsg, WireError};
use std::collections::BTreeSet;

/// The largest count that a device may report: sums over a fleet then stay far from overflow.
pub const MAX_COUNT: u64 = omnilabel_keypoints::release::MAX_COUNTER;
/// The last millisecond of the year 9999, Unix ms: no clock of a device is later. Whether a capture is ahead of the centre's clock, the
/// store says that has the time, see [`LabelRow::refusal`].
const LAST_MS: u64 = 253_402_300_799_999;

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not `{prefix}/{site}/{device}/{kind}` of a kind that devices send, or not a valid device name.
    #[error("not a topic of a device")]
    Topic,
    /// More bytes than a message of this kind has.
    #[error("{found} bytes, at most {limit} expected")]
    Size {
        /// Bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message that says something impossible.
    #[error("{what} is {found}, expected {expected}")]
    Value {
        /// Which value.
        what: &'static str,
        /// In the message.
        found: u64,
        /// What is possible.
        expected: &'static str,
    },
    /// One device too many.
    #[error("more than {0} devices")]
    Devices(usize),
    /// Not in the list of devices.
    #[error("not a device of `collector.devices`")]
    Unknown,
}

impl Rejected {
    /// Every [`Rejected::kind`].
    pub const KINDS: [&str; 6] = ["topic", "size", "wire", "value", "devices", "unknown"];

    /// The kind of the reason in one word: there are few, whatever messages say.
    pub const fn kind(&self) -> &'static str {
        let [topic, size, wire, value, devices, unknown] = Self::KINDS;
        match self {
            Self::Topic => topic,
            Self::Size { .. } => size,
            Self::Wire(_) => wire,
            Self::Value { .. } => value,
            Self::Devices(_) => devices,
            Self::Unknown => unknown,
        }
    }
}

/// What a message becomes.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// To the store.
    Store(Record),
    /// To the rollout.
    Blocks(Box<BlockRequest>),
}

/// Where messages come from and what is expected of them.
#[derive(Clone, Debug)]
pub struct Intake {
    prefix: String,
    site: String,
    keypoints: usize,
    limits: CollectorConfig,
    devices: BTreeSet<String>,
}

impl Intake {
    /// Messages under `prefix/site` of skeletons with `keypoints` keypoints; `devices` are known already.
    pub fn new(prefix: &str, site: &str, keypoints: usize, limits: CollectorConfig, devices: impl IntoIterator<Item = String>) -> Self {
        Self { prefix: prefix.to_owned(), site: site.to_owned(), keypoints, limits, devices: devices.into_iter().collect() }
    }

    /// Topic filters of everything that devices send; what a group shares comes by its name, one message to one of the group. What is
    /// retained (status, model) is never shared: a group gets no retained messages, and would keep a device's last word from who needs it.
    pub fn subscriptions(&self) -> Vec<String> {
        let alone = [Kind::Status, Kind::Model, Kind::BlocksGet].map(|kind| self.filter(kind));
        self.shared_subscriptions().into_iter().chain(alone).collect()
    }

    /// Those that a group shares; everything is this one's without a group.
    pub fn shared_subscriptions(&self) -> Vec<String> {
        let group = self.limits.share.as_ref().map_or_else(String::new, |name| format!("$share/{name}/"));
        [Kind::Labels, Kind::Frames, Kind::Histogram].map(|kind| format!("{group}{}", self.filter(kind))).to_vec()
    }

    fn filter(&self, kind: Kind) -> String {
        topic::device(&self.prefix, &self.site, "+", kind).as_str().to_owned()
    }

    /// Reads one message: the device and what becomes of it.
    ///
    /// # Errors
    /// See [`Rejected`]; with the payload as it came.
    pub fn take(&mut self, topic: &str, payload: Vec<u8>) -> Result<(String, Taken), (Rejected, Vec<u8>)> {
        match self.read(topic, &payload) {
            Ok((device, read)) => Ok((device, read.with(payload))),
            Err(rejected) => Err((rejected, payload)),
        }
    }

    fn read(&mut self, topic: &str, payload: &[u8]) -> Result<(String, Read), Rejected> {
        let (device, kind) = topic::parse_device(&self.prefix, &self.site, topic).ok_or(Rejected::Topic)?;
        topic::id(device).map_err(|_| Rejected::Topic)?;
        if !self.limits.devices.is_empty() && !self.limits.devices.iter().any(|known| known == device) {
            return Err(Rejected::Unknown);
        }
        let read = self.message(kind, payload)?;
        if !self.devices.contains(device) {
            if self.devices.len() >= self.limits.max_devices {
                return Err(Rejected::Devices(self.limits.max_devices));
            }
            self.devices.insert(device.to_owned());
        }
        Ok((device.to_owned(), read))
    }

    fn message(&self, kind: Kind, payload: &[u8]) -> Result<Read, Rejected> {
        Ok(Read::Store(match kind {
            Kind::Labels => return Ok(Read::Label(Box::new(self.label(payload)?))),
            Kind::Frames => return self.frame(payload),
            Kind::Status => {
                let status: StatusMsg = decode(payload)?;
                for (what, value) in [
                    ("frames", status.frames),
                    ("bad_frames", status.bad_frames),
                    ("committed", status.committed),
                    ("pending", status.pending),
                    ("frames_evicted", status.frames_evicted),
                    ("evicted", status.evicted),
                    ("model", status.model),
                ] {
                    below(what, value, MAX_COUNT)?;
                }
                Record::Status(status)
            }
            Kind::Model => {
                let model: ModelMsg = decode(payload)?;
                below("confirmed", model.confirmed, MAX_COUNT)?;
                below("trial", model.trial.unwrap_or(0), MAX_COUNT)?;
                below("refused", model.refused.unwrap_or(0), MAX_COUNT)?;
                Record::Model(Box::new(model))
            }
            Kind::Histogram => {
                let histogram: HistogramMsg = decode(payload)?;
                below("model", histogram.model, MAX_COUNT)?;
                below("frames", histogram.frames, MAX_COUNT)?;
                Record::Histogram(Box::new(histogram))
            }
            Kind::BlocksGet => return Ok(Read::Blocks(Box::new(decode(payload)?))),
            Kind::Ack => return Err(Rejected::Topic),
        }))
    }

    fn label(&self, payload: &[u8]) -> Result<LabelRow, Rejected> {
        let label: LabelMsg = decode(payload)?;
        key(label.key())?;
        below("model", label.model, MAX_COUNT)?;
        let other = label.instances.iter().find(|i| i.keypoints.len() != self.keypoints);
        let refused = if let Some(instance) = other {
            Some(format!("its skeleton has {} keypoints, the manual set's has {}", instance.keypoints.len(), self.keypoints))
        } else {
            impossible(&label)
        };
        Ok(LabelRow {
            key: label.key(),
            frame: label.frame,
            captured_ms: label.captured_ms.min(LAST_MS),
            model: label.model,
            model_hash: label.model_hash,
            instances: label.instances.len() as u32,
            kept: label.instances.iter().filter(|i| i.kept).count() as u32,
            wants_frame: label.jpeg,
            refused,
            payload: Vec::new(),
        })
    }

    fn frame(&self, payload: &[u8]) -> Result<Read, Rejected> {
        let malformed = || Rejected::Wire(WireError::Malformed(0));
        let (length, rest) = payload.split_first_chunk::<2>().ok_or_else(malformed)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let header = rest.get(..length).filter(|_| length <= FrameHeader::MAX_BYTES).ok_or_else(malformed)?;
        let header = FrameHeader::decode(header)?;
        let key = LabelKey { epoch: header.epoch, sequence: header.sequence };
        self::key(key)?;
        let jpeg = &rest[length..];
        // A picture that cannot be used still settles its label, or the device would send it for ever.
        let refused = if jpeg.is_empty() {
            Some(EVICTED.to_owned())
        } else if jpeg.len() > self.limits.max_frame_bytes {
            Some(format!("the JPEG has {} bytes, at most {} are taken", jpeg.len(), self.limits.max_frame_bytes))
        } else {
            picture(jpeg).err()
        };
        Ok(Read::Frame { key, frame: header.frame, refused, jpeg_at: 2 + length })
    }
}

/// What a message is, without the bytes that are kept of it.
enum Read {
    Label(Box<LabelRow>),
    Frame { key: LabelKey, frame: u64, refused: Option<String>, jpeg_at: usize },
    Store(Record),
    Blocks(Box<BlockRequest>),
}

impl Read {
    fn with(self, mut payload: Vec<u8>) -> Taken {
        match self {
            Self::Label(row) => Taken::Store(Record::Label(Box::new(LabelRow { payload, ..*row }))),
            Self::Frame { key, frame, refused, jpeg_at } => {
                Taken::Store(Record::Frame { key, frame, refused, jpeg: payload.split_off(jpeg_at) })
            }
            Self::Store(record) => Taken::Store(record),
            Self::Blocks(request) => Taken::Blocks(request),
        }
    }
}

/// Why nobody could have seen this on a frame: a time that is none, sides that no frame has, boxes that end before they begin, points
/// farther outside of the frame than it is large (a model may well guess where a hand is that the frame cuts off).
fn impossible(label: &LabelMsg) -> Option<String> {
    if label.captured_ms > LAST_MS {
        return Some(format!("its frame was captured after the year 9999: {} ms since 1970", label.captured_ms));
    }
    let limit = omnilabel_detect::frame::MAX_FRAME_SIDE;
    if [label.width, label.height].iter().any(|side| !(1..=limit).contains(side)) {
        return Some(format!("its frame has {} × {} pixels, 1 to {limit} expected", label.width, label.height));
    }
    // 1/16 px.
    let near = |value: i32, side: u32| (-16 * i64::from(side)..=32 * i64::from(side)).contains(&i64::from(value));
    label.instances.iter().enumerate().find_map(|(index, instance)| {
        let [x1, y1, x2, y2] = instance.rect;
        if x1 > x2 || y1 > y2 {
            return Some(format!("the box of instance {index} ends before it begins: {:?} in 1/16 px", instance.rect));
        }
        if ![x1, x2].iter().all(|x| near(*x, label.width)) || ![y1, y2].iter().all(|y| near(*y, label.height)) {
            return Some(format!("the box of instance {index} begins or ends far outside of the frame: {:?} in 1/16 px", instance.rect));
        }
        let far = instance.keypoints.iter().position(|point| !near(point.0, label.width) || !near(point.1, label.height))?;
        Some(format!("keypoint {far} of instance {index} lies far outside of the frame: {:?} in 1/16 px", instance.keypoints[far]))
    })
}

/// Checks the head of a JPEG without decoding its pixels.
fn picture(jpeg: &[u8]) -> Result<(), String> {
    let reader = image::ImageReader::with_format(std::io::Cursor::new(jpeg), image::ImageFormat::Jpeg);
    let (width, height) = reader.into_dimensions().map_err(|error| format!("not a JPEG: {error}"))?;
    let limit = omnilabel_detect::frame::MAX_FRAME_SIDE;
    if width == 0 || height == 0 || width > limit || height > limit {
        return Err(format!("the JPEG has {width} × {height} pixels, 1 to {limit} expected"));
    }
    Ok(())
}

fn decode<M: Message>(payload: &[u8]) -> Result<M, Rejected> {
    if payload.len() > M::MAX_BYTES {
        return Err(Rejected::Size { found: payload.len(), limit: M::MAX_BYTES });
    }
    Ok(M::decode(payload)?)
}

fn below(what: &'static str, found: u64, limit: u64) -> Result<(), Rejected> {
    if found <= limit { Ok(()) } else { Err(Rejected::Value { what, found, expected: "a smaller number" }) }
}

/// Sequences count from 1 and stay below 2⁶²; the epoch may be anything.
fn key(key: LabelKey) -> Result<(), Rejected> {
    if (1..1 << 62).contains(&key.sequence) {
        Ok(())
    } else {
        Err(Rejected::Value { what: "sequence", found: key.sequence, expected: "1 to 2^62 - 1" })
    }
}

#[cfg(test)]
mod tests;
