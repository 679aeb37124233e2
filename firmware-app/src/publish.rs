//! Messages as they leave the device.

use crate::camera::Shot;
use crate::config::{FramePolicy, PublishConfig};
use crate::outbox::Entry;
use omnilabel_keypoints::label::Label;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{Encoding, FrameHeader, HISTOGRAM_BINS, HistogramMsg, LabelKey, LabelMsg, Message, VERSION, WireError};
use omnilabel_link::{LinkConfig, MAX_PACKET};

/// The largest JPEG that travels: a packet less its topic and headers.
pub const MAX_JPEG: usize = MAX_PACKET - 4096;

/// This device's topics.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: String,
    site: String,
    device: String,
}

impl Topics {
    /// The topics of `device`.
    pub fn new(link: &LinkConfig, device: &str) -> Self {
        Self { prefix: link.prefix.clone(), site: link.site.clone(), device: device.to_owned() }
    }

    /// `…/{device}/{kind}`.
    pub fn of(&self, kind: Kind) -> String {
        topic::device(&self.prefix, &self.site, &self.device, kind).as_str().to_owned()
    }

    /// `…/release/{channel}`.
    pub fn release(&self, channel: &str) -> String {
        topic::release(&self.prefix, &self.site, channel).as_str().to_owned()
    }

    /// `…/blocks/+`.
    pub fn blocks(&self) -> String {
        topic::block(&self.prefix, &self.site, "+").as_str().to_owned()
    }

    /// The hash in `…/blocks/{sha256}`.
    pub fn block_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let rest = topic.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?.strip_prefix(self.site.as_str())?;
        rest.strip_prefix("/blocks/").filter(|hash| hash.len() == 64)
    }
}

/// Encodes a message.
///
/// # Errors
/// [`WireError::Buffer`], which a message of this crate does not give.
pub fn encode<M: Message>(message: &M, encoding: Encoding) -> Result<Vec<u8>, WireError> {
    // JSON of the same message is longer; MAX_BYTES holds for both.
    let mut buffer = vec![0; M::MAX_BYTES];
    let length = message.encode(encoding, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The label message of a frame; `jpeg` says that its frame follows.
pub fn label_message(label: &Label, key: LabelKey, shot: &Shot, model: (u64, u64), jpeg: bool) -> LabelMsg {
    LabelMsg { jpeg, ..LabelMsg::quantise(label, key, shot.id, shot.captured_ms, model.0, model.1) }
}

/// The JPEG that travels with a label, or an empty one: the camera's own bytes where there are such, else encoded here.
pub fn picture(shot: &Shot, label: &Label, config: &PublishConfig) -> Vec<u8> {
    let wanted = match config.frames {
        FramePolicy::None => false,
        FramePolicy::Kept => label.instances.iter().any(|instance| instance.kept),
        FramePolicy::All => true,
    };
    if !wanted {
        return Vec::new();
    }
    let jpeg = match &shot.jpeg {
        Some(jpeg) if jpeg.len() <= MAX_JPEG => jpeg.clone(),
        _ => shot.frame.to_jpeg(config.jpeg_quality),
    };
    if jpeg.len() > MAX_JPEG {
        tracing::warn!(name = shot.name, bytes = jpeg.len(), "the frame is too large to travel: its label goes alone");
        return Vec::new();
    }
    jpeg
}

/// The payload of `…/frames`.
///
/// # Errors
/// See [`encode`].
pub fn frame_payload(epoch: u64, entry: &Entry) -> Result<Vec<u8>, WireError> {
    let header = FrameHeader { version: VERSION, epoch, sequence: entry.sequence, frame: entry.frame };
    let header = encode(&header, Encoding::Cbor)?;
    let mut payload = Vec::with_capacity(2 + header.len() + entry.jpeg.len());
    payload.extend_from_slice(&(header.len() as u16).to_be_bytes());
    payload.extend_from_slice(&header);
    payload.extend_from_slice(&entry.jpeg);
    Ok(payload)
}

/// Scores since a model began to run.
#[derive(Clone, Debug)]
pub struct Histogram {
    message: HistogramMsg,
}

impl Histogram {
    /// An empty one for the model of release `model`.
    pub fn new(model: u64) -> Self {
        let mut scores = heapless::Vec::new();
        // The length is the capacity.
        let _ = scores.resize(HISTOGRAM_BINS, 0);
        Self { message: HistogramMsg { version: VERSION, model, frames: 0, scores } }
    }

    /// Adds the instances of a label made by the model of release `model`; another model begins anew.
    pub fn add(&mut self, label: &Label, model: u64) {
        if model != self.message.model {
            *self = Self::new(model);
        }
        self.message.frames += 1;
        for instance in &label.instances {
            let bin = (instance.detection.score.clamp(0.0, 1.0) * HISTOGRAM_BINS as f32) as usize;
            if let Some(count) = self.message.scores.get_mut(bin.min(HISTOGRAM_BINS - 1)) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// What is sent.
    pub fn message(&self) -> &HistogramMsg {
        &self.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_detect::frame::Frame;
    use omnilabel_keypoints::geometry::Size;
    use omnilabel_keypoints::label::{Detection, Instance};

    fn label(scores: &[f32], tau: f32) -> Label {
        let instances =
            scores.iter().map(|&score| Instance { detection: Detection { score, ..Detection::default() }, kept: score >= tau }).collect();
        Label { size: Size { width: 8, height: 6 }, instances, overflow: 0 }
    }

    #[test]
    fn the_policy_decides_which_frames_travel() {
        let frame = Frame { size: Size { width: 8, height: 6 }, rgb: vec![100; 144] };
        let shot = Shot { id: 3, captured_ms: 1, name: "x".into(), jpeg: Some(frame.to_jpeg(50)), frame, position: None };
        let config = |frames| PublishConfig { frames, ..PublishConfig::default() };
        let (kept, unkept) = (label(&[0.9], 0.5), label(&[0.4], 0.5));
        for (policy, with_kept, without) in
            [(FramePolicy::None, false, false), (FramePolicy::Kept, true, false), (FramePolicy::All, true, true)]
        {
            assert_eq!(!picture(&shot, &kept, &config(policy)).is_empty(), with_kept);
            assert_eq!(!picture(&shot, &unkept, &config(policy)).is_empty(), without);
        }
        assert_eq!(Some(picture(&shot, &kept, &config(FramePolicy::All))), shot.jpeg, "the camera's own bytes travel");
        let jpeg = picture(&shot, &kept, &config(FramePolicy::All));
        let entry = Entry { sequence: 9, frame: 3, label: vec![], jpeg: jpeg.clone() };
        let payload = frame_payload(77, &entry).unwrap();
        let length = usize::from(u16::from_be_bytes([payload[0], payload[1]]));
        let header = FrameHeader::decode(&payload[2..2 + length]).unwrap();
        assert_eq!((header.epoch, header.sequence, header.frame), (77, 9, 3));
        assert_eq!(payload[2 + length..], jpeg);
    }

    #[test]
    fn histograms_count_scores_and_begin_anew_with_another_model() {
        let mut histogram = Histogram::new(0);
        histogram.add(&label(&[1.0, 0.0, 0.999], 0.5), 0);
        let message = histogram.message();
        assert_eq!((message.frames, message.scores[0], message.scores[HISTOGRAM_BINS - 1]), (1, 1, 2));
        histogram.add(&label(&[], 0.5), 4);
        assert_eq!((histogram.message().model, histogram.message().frames, histogram.message().scores[0]), (4, 1, 0));
    }

    #[test]
    fn blocks_are_known_by_their_topic() {
        let topics = Topics { prefix: "omnilabel/v1".into(), site: "s".into(), device: "d".into() };
        let hash = "a".repeat(64);
        assert_eq!(topics.block_of(&format!("omnilabel/v1/s/blocks/{hash}")), Some(hash.as_str()));
        assert_eq!(topics.block_of("omnilabel/v1/s/blocks/short"), None);
        assert_eq!(topics.block_of(&format!("omnilabel/v1/other/blocks/{hash}")), None);
    }
}
