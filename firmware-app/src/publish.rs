//! Messages as they leave the device.

use crate::camera::Shot;
use crate::config::{FramePolicy, PublishConfig};
use crate::outbox::Entry;
use crate::privacy;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::label::{Instance, Label};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{
    Encoding, FACES_BLURRED, FrameHeader, HISTOGRAM_BINS, HistogramMsg, Message, ONLY_PEOPLE, VERSION, WireError,
};
use omnilabel_link::{LinkConfig, MAX_PACKET};
use std::borrow::Cow;

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

/// Whether a label's frame travels with it.
pub fn wants_picture(label: &Label, config: &PublishConfig) -> bool {
    let uncertain = |instance: &Instance| {
        let keypoints = &instance.detection.keypoints;
        let sum: f32 = keypoints.iter().map(|keypoint| keypoint.agreement).sum();
        sum < config.uncertain_below * keypoints.len() as f32
    };
    match config.frames {
        FramePolicy::None => false,
        FramePolicy::Kept => label.instances.iter().any(|instance| instance.kept),
        FramePolicy::Uncertain => label.instances.iter().any(uncertain),
        FramePolicy::All => true,
    }
}

/// What is done to frames before they leave, as [`changes`](omnilabel_keypoints::wire::LabelMsg::changes) of a label says it.
pub fn changes(config: &PublishConfig) -> u8 {
    [(config.blur_faces, FACES_BLURRED), (config.only_people, ONLY_PEOPLE)].iter().map(|&(on, bit)| if on { bit } else { 0 }).sum()
}

/// A frame as it may be shown: as it is, changed, or not at all where faces are to be blurred and cannot be found: the skeleton has no
/// keypoints of them, or the label has no room for everybody who was.
pub fn changed<'f>(frame: &'f Frame, label: &Label, skeleton: &Skeleton, config: &PublishConfig) -> Option<Cow<'f, Frame>> {
    if config.blur_faces && (label.overflow > 0 || !privacy::knows_faces(skeleton)) {
        return None;
    }
    let mut frame = Cow::Borrowed(frame);
    if config.blur_faces {
        privacy::blur_faces(frame.to_mut(), label, skeleton);
    }
    if config.only_people {
        privacy::only_people(frame.to_mut(), label);
    }
    Some(frame)
}

/// The JPEG that travels with a label, or an empty one where none does: the camera's own bytes where nothing is to be changed, else
/// encoded here.
pub fn picture(shot: &Shot, label: &Label, skeleton: &Skeleton, config: &PublishConfig) -> Vec<u8> {
    if !wants_picture(label, config) {
        return Vec::new();
    }
    let Some(frame) = changed(&shot.frame, label, skeleton, config) else { return Vec::new() };
    let jpeg = match (&shot.jpeg, &frame) {
        (Some(jpeg), Cow::Borrowed(_)) if jpeg.len() <= MAX_JPEG => jpeg.clone(),
        _ => frame.to_jpeg(config.jpeg_quality),
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
    use omnilabel_keypoints::geometry::{Point, Rect, Size};
    use omnilabel_keypoints::label::{Detection, Instance, Keypoint};

    fn label(scores: &[f32], tau: f32) -> Label {
        let instances =
            scores.iter().map(|&score| Instance { detection: Detection { score, ..Detection::default() }, kept: score >= tau }).collect();
        Label { size: Size { width: 8, height: 6 }, instances, overflow: 0 }
    }

    #[test]
    fn frames_about_which_views_disagree_travel() {
        let config = PublishConfig { frames: FramePolicy::Uncertain, uncertain_below: 0.6, ..PublishConfig::default() };
        let agreeing = |agreement: &[f32]| {
            let mut label = label(&[0.9], 0.5);
            let keypoints = agreement.iter().map(|&agreement| Keypoint { agreement, ..Keypoint::default() });
            label.instances[0].detection.keypoints = keypoints.collect();
            label
        };
        assert!(wants_picture(&agreeing(&[1.0, 0.1]), &config));
        assert!(!wants_picture(&agreeing(&[1.0, 0.3]), &config));
        assert!(!wants_picture(&label(&[], 0.5), &config), "nobody is there to be uncertain about");
    }

    #[test]
    fn what_is_to_be_hidden_is_hidden_or_nothing_travels() {
        // Noise, which a mosaic makes flat.
        let size = Size { width: 96, height: 64 };
        let grey = |pixel: u32| {
            let mixed = pixel.wrapping_mul(0x9E37_79B1);
            ((mixed ^ mixed >> 15).wrapping_mul(0x85EB_CA77) >> 24) as u8
        };
        let rgb = (0..96 * 64).flat_map(|pixel| [grey(pixel); 3]).collect();
        let frame = Frame { size, rgb };
        let shot = Shot { id: 3, captured_ms: 1, name: "x".into(), jpeg: Some(frame.to_jpeg(95)), frame, position: None };
        let mut label = Label { size, ..label(&[0.9, 0.1], 0.5) };
        let faces = [(24.0, 24.0), (72.0, 20.0)];
        for (instance, (x, y)) in label.instances.iter_mut().zip(faces) {
            instance.detection.rect = Rect::new(x - 14.0, y - 14.0, x + 14.0, y + 24.0);
            let at = |x, y| Keypoint { point: Point { x, y }, ..Keypoint::default() };
            let coco = Skeleton::coco17();
            let place = |index| if coco.is_facial(index) { at(x + (index as f32 - 2.0) * 2.0, y) } else { at(x, y + 20.0) };
            instance.detection.keypoints = (0..17).map(place).collect();
        }
        let open = |config: &PublishConfig| Frame::decode("x", &picture(&shot, &label, &Skeleton::coco17(), config)).unwrap();
        // Standard deviation of the green values of a square of 8 px.
        let noise = |frame: &Frame, (x, y): (f32, f32)| {
            let pixels = (0..64).map(|i| (x as usize - 4 + i % 8, y as usize - 4 + i / 8));
            let values: Vec<f32> = pixels.map(|(x, y)| f32::from(frame.rgb[3 * (96 * y + x) + 1])).collect();
            let mean = values.iter().sum::<f32>() / 64.0;
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 64.0).sqrt()
        };
        let all = PublishConfig { frames: FramePolicy::All, jpeg_quality: 95, ..PublishConfig::default() };
        let (plain, faceless) = (open(&all), open(&PublishConfig { blur_faces: true, ..all.clone() }));
        for face in faces {
            assert!(noise(&plain, face) > 50.0 && noise(&faceless, face) < 30.0, "{} {}", noise(&plain, face), noise(&faceless, face));
        }
        let between = (48.0, 56.0);
        assert!(noise(&faceless, between) > 50.0, "nothing else is touched");
        let people = open(&PublishConfig { only_people: true, ..all.clone() });
        assert!(noise(&people, faces[1]) > 50.0 && noise(&people, between) < 3.0);
        let both = PublishConfig { blur_faces: true, only_people: true, ..all.clone() };
        assert!(noise(&open(&both), faces[0]) < 30.0 && noise(&open(&both), between) < 3.0);
        assert_eq!([&all, &both].map(changes), [0, FACES_BLURRED | ONLY_PEOPLE]);
        let crowd = Label { overflow: 1, ..label.clone() };
        assert!(picture(&shot, &crowd, &Skeleton::coco17(), &both).is_empty(), "somebody's face is not in the label");
        let headless = Skeleton::new(&["left_hand", "right_hand"], &[], None, None).unwrap();
        assert!(picture(&shot, &label, &headless, &both).is_empty(), "without a face's keypoints no frame leaves the device");
    }

    #[test]
    fn the_policy_decides_which_frames_travel() {
        let skeleton = Skeleton::coco17();
        let frame = Frame { size: Size { width: 8, height: 6 }, rgb: vec![100; 144] };
        let shot = Shot { id: 3, captured_ms: 1, name: "x".into(), jpeg: Some(frame.to_jpeg(50)), frame, position: None };
        let config = |frames| PublishConfig { frames, ..PublishConfig::default() };
        let (kept, unkept) = (label(&[0.9], 0.5), label(&[0.4], 0.5));
        for (policy, with_kept, without) in
            [(FramePolicy::None, false, false), (FramePolicy::Kept, true, false), (FramePolicy::All, true, true)]
        {
            assert_eq!(!picture(&shot, &kept, &skeleton, &config(policy)).is_empty(), with_kept);
            assert_eq!(!picture(&shot, &unkept, &skeleton, &config(policy)).is_empty(), without);
        }
        let jpeg = picture(&shot, &kept, &skeleton, &config(FramePolicy::All));
        assert_eq!(Some(&jpeg), shot.jpeg.as_ref(), "the camera's own bytes travel");
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
