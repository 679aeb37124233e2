//! What simulated devices send. A label is made of the seed, its device, its key and what its outbox knows of it: it has the same bytes
//! whenever it is sent, and waits in an outbox without them.

use super::outbox::Entry;
use crate::fixture::generated::Random;
use anyhow::{Result, anyhow};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::wire::{Encoding, FrameHeader, LabelKey, LabelMsg, Message, VERSION, WireInstance, WireKeypoint};
use std::cell::RefCell;
use std::sync::OnceLock;

/// Of the skeleton of the centre's data sets.
const KEYPOINTS: usize = 17;
/// Of the frames that labels speak of, px.
const SIZE: Size = Size { width: 160, height: 120 };
/// Different pictures.
const PICTURES: u64 = 8;

thread_local! {
    /// Room for a message that is encoded, one for each worker and none for each device.
    static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; LabelMsg::MAX_BYTES]);
}

/// Encodes a message by way of the worker's room: only the bytes that travel are allocated.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Vec<u8>> {
    ROOM.with_borrow_mut(|room| -> Result<Vec<u8>> {
        let length = message.encode(Encoding::Cbor, room)?;
        Ok(room[..length].to_vec())
    })
}

/// Makes the messages of all devices.
pub(crate) struct Press {
    seed: u64,
    frames: f64,
    jpegs: Vec<Vec<u8>>,
    /// Unix milliseconds when the run's clock was nought.
    unix_ms: u64,
    /// Of the release's model: under another the centre takes labels of its number for a refusal.
    hash: OnceLock<u64>,
}

impl Press {
    /// `frames` is the share of labels with a picture.
    pub(crate) fn new(seed: u64, frames: f64, unix_ms: u64) -> Self {
        let picture = |index: u64| {
            let shade = |pixel: u64| ((pixel * (index + 2) / 7) % 251) as u8;
            let rgb = (0..3 * u64::from(SIZE.width) * u64::from(SIZE.height)).map(shade).collect();
            Frame { size: SIZE, rgb }.to_jpeg(40)
        };
        Self { seed, frames, jpegs: (0..PICTURES).map(picture).collect(), unix_ms, hash: OnceLock::new() }
    }

    /// The hash of the release's model, before anybody labels with it; a run has one.
    pub(crate) fn learn(&self, hash: u64) {
        self.hash.get_or_init(|| hash);
    }

    fn random(&self, device: usize, key: LabelKey) -> Random {
        let mut random = Random(self.seed ^ key.epoch ^ ((device as u64) << 40));
        Random(random.next() ^ key.sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Payloads of a label and, where one travels with it, of its picture.
    pub(crate) fn messages(&self, device: usize, key: LabelKey, entry: Entry) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
        let mut random = self.random(device, key);
        let jpeg = random.range(0.0, 1.0) < self.frames;
        // Nobody, one or two people: one on the mean.
        let people = [0, 1, 1, 2][random.below(4) as usize];
        let label = LabelMsg {
            version: VERSION,
            epoch: key.epoch,
            sequence: key.sequence,
            frame: key.sequence,
            captured_ms: self.unix_ms + entry.committed_ms,
            model: entry.model,
            model_hash: if entry.model == 0 { 0 } else { self.hash.get().copied().unwrap_or_default() },
            width: SIZE.width,
            height: SIZE.height,
            jpeg,
            views: 6,
            instances: (0..people).map(|rank| instance(&mut random, rank)).collect(),
            ..LabelMsg::default()
        };
        let payload = encode(&label)?;
        let picture = if jpeg { Some(self.picture(key, random.below(PICTURES) as usize)?) } else { None };
        Ok((payload, picture))
    }

    /// `length ‖ header ‖ JPEG`.
    fn picture(&self, key: LabelKey, index: usize) -> Result<Vec<u8>> {
        let header = FrameHeader { version: VERSION, epoch: key.epoch, sequence: key.sequence, frame: key.sequence };
        let header = encode(&header)?;
        let jpeg = self.jpegs.get(index).ok_or_else(|| anyhow!("no picture {index}"))?;
        let mut payload = Vec::with_capacity(2 + header.len() + jpeg.len());
        payload.extend_from_slice(&(header.len() as u16).to_be_bytes());
        payload.extend_from_slice(&header);
        payload.extend_from_slice(jpeg);
        Ok(payload)
    }
}

fn instance(random: &mut Random, rank: u16) -> WireInstance {
    let mut place = |size: u32| random.below(16 * u64::from(size)) as i32;
    let rect = [place(SIZE.width / 2), place(SIZE.height / 2), 8 * SIZE.width as i32, 8 * SIZE.height as i32];
    let keypoints = (0..KEYPOINTS).map(|_| WireKeypoint(place(SIZE.width), place(SIZE.height), place(16) as u8, 255, 40)).collect();
    WireInstance { rect, score: 60_000 - 10_000 * rank, kept: rank == 0, keypoints }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_the_same_bytes_whenever_it_is_made() {
        let press = Press::new(3, 0.25, 1_700_000_000_000);
        let entry = Entry { committed_ms: 1500, model: 4 };
        let (mut pictures, mut people, mut same) = (0, 0, 0);
        for sequence in 1..=400 {
            let key = LabelKey { epoch: 77, sequence };
            let (label, picture) = press.messages(5, key, entry).unwrap();
            assert_eq!(press.messages(5, key, entry).unwrap(), (label.clone(), picture.clone()));
            same += u32::from(press.messages(6, key, entry).unwrap().0 == label);
            let label = LabelMsg::decode(&label).unwrap();
            assert_eq!((label.key(), label.captured_ms, label.model, label.jpeg), (key, 1_700_000_001_500, 4, picture.is_some()));
            assert!(label.instances.iter().all(|instance| instance.keypoints.len() == KEYPOINTS));
            people += label.instances.len();
            if let Some(payload) = picture {
                let length = usize::from(u16::from_be_bytes([payload[0], payload[1]]));
                assert_eq!(FrameHeader::decode(&payload[2..2 + length]).unwrap().sequence, sequence);
                assert_eq!(Frame::decode("picture", &payload[2 + length..]).unwrap().size, SIZE);
                pictures += 1;
            }
        }
        assert!(same < 80, "{same} labels of another device are the same: only those with nobody may be");
        assert!((60..140).contains(&pictures), "{pictures} pictures of 400");
        assert!((300..500).contains(&people), "{people} people in 400");
    }
}
