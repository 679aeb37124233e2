//! The topics of DESIGN.md, built and parsed in one place.

use super::{Id, MAX_TOPIC, WireError};
use heapless::String;

/// The longest prefix in bytes that leaves room for every topic.
pub const MAX_PREFIX: usize = 96;

/// What a device's topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `status`
    Status,
    /// `labels`
    Labels,
    /// `frames`
    Frames,
    /// `histogram`
    Histogram,
    /// `ack`
    Ack,
    /// `model`
    Model,
    /// `blocks/get`
    BlocksGet,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [Self::Status, Self::Labels, Self::Frames, Self::Histogram, Self::Ack, Self::Model, Self::BlocksGet];

    /// The last levels of the topic.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Labels => "labels",
            Self::Frames => "frames",
            Self::Histogram => "histogram",
            Self::Ack => "ack",
            Self::Model => "model",
            Self::BlocksGet => "blocks/get",
        }
    }
}

/// The levels, joined by `/`. Names are at most [`super::MAX_ID`] bytes and a prefix at most [`MAX_PREFIX`], so it fits; what does
/// not fit gives the empty topic, which no broker accepts.
fn join(levels: &[&str]) -> String<MAX_TOPIC> {
    let mut topic = String::new();
    for (index, level) in levels.iter().enumerate() {
        let separator = if index > 0 { "/" } else { "" };
        if topic.push_str(separator).and_then(|()| topic.push_str(level)).is_err() {
            return String::new();
        }
    }
    topic
}

/// Checks a site, device or channel name.
///
/// # Errors
/// [`WireError::Id`].
pub fn id(name: &str) -> Result<Id, WireError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(WireError::Id);
    }
    Id::try_from(name).map_err(|_| WireError::Id)
}

/// `{prefix}/{site}/{device}/{kind}`; `device` may be `+` for a subscription. `prefix` is `omnilabel/v1` by default.
pub fn device(prefix: &str, site: &str, device: &str, kind: Kind) -> String<MAX_TOPIC> {
    join(&[prefix, site, device, kind.name()])
}

/// `{prefix}/{site}/release/{channel}`.
pub fn release(prefix: &str, site: &str, channel: &str) -> String<MAX_TOPIC> {
    join(&[prefix, site, "release", channel])
}

/// `{prefix}/{site}/blocks/{sha256}`.
pub fn block(prefix: &str, site: &str, sha256: &str) -> String<MAX_TOPIC> {
    join(&[prefix, site, "blocks", sha256])
}

/// The device and kind of a device topic under `prefix/site`, or `None` when it is not one.
pub fn parse_device<'t>(prefix: &str, site: &str, topic: &'t str) -> Option<(&'t str, Kind)> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix('/')?.strip_prefix(site)?.strip_prefix('/')?;
    let (device, kind) = rest.split_once('/')?;
    id(device).ok()?;
    Kind::ALL.into_iter().find(|k| k.name() == kind).map(|kind| (device, kind))
}
