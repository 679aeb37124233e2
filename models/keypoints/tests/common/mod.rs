//! Random valid messages, and CBOR taken apart, for the wire tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use minicbor::data::Type;
use minicbor::encode::write::Cursor;
use minicbor::{Decoder, Encoder};
use omnilabel_keypoints::wire::*;

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Of any magnitude.
    pub fn number(&mut self) -> u64 {
        let shift = self.below(65);
        self.next().checked_shr(shift as u32).unwrap_or(0)
    }

    pub fn bool(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// A message that can be drawn at random, and its optional fields by their wire names.
pub trait Sample: Message + PartialEq + core::fmt::Debug + Send + 'static {
    const OPTIONAL: &'static [&'static str];
    fn sample(r: &mut Rng) -> Self;
    /// This message with the optional fields at their defaults.
    fn required_only(self) -> Self;
    /// Largest values everywhere.
    fn extreme() -> Self;
}

fn keypoint(r: &mut Rng) -> WireKeypoint {
    WireKeypoint(r.number() as i32, r.number() as i32, r.next() as u8, r.next() as u8, r.number() as i16)
}

impl Sample for LabelMsg {
    const OPTIONAL: &'static [&'static str] = &["t", "m", "h", "o", "j", "n", "x", "u", "k"];
    fn sample(r: &mut Rng) -> Self {
        let (people, keypoints) = (r.below(5), r.below(20));
        Self {
            version: 1,
            epoch: r.number(),
            sequence: r.number(),
            frame: r.number(),
            captured_ms: r.number(),
            model: r.number(),
            model_hash: r.number(),
            width: r.number() as u32,
            height: r.number() as u32,
            overflow: r.number() as u32,
            jpeg: r.bool(),
            camera: ["", "gate", "yard-2.north"][r.below(3)].try_into().unwrap(),
            changes: r.next() as u8,
            views: r.next() as u16,
            instances: (0..people)
                .map(|_| WireInstance {
                    rect: core::array::from_fn(|_| r.number() as i32),
                    score: r.next() as u16,
                    kept: r.bool(),
                    keypoints: (0..keypoints).map(|_| keypoint(r)).collect(),
                })
                .collect(),
        }
    }
    fn required_only(self) -> Self {
        let mut instances = self.instances;
        instances.iter_mut().for_each(|i| i.kept = false);
        Self {
            captured_ms: 0,
            model: 0,
            model_hash: 0,
            overflow: 0,
            jpeg: false,
            camera: Default::default(),
            changes: 0,
            views: 0,
            instances,
            ..self
        }
    }
    fn extreme() -> Self {
        let instance = WireInstance {
            rect: [i32::MIN; 4],
            score: u16::MAX,
            kept: false,
            keypoints: [WireKeypoint(i32::MIN, i32::MIN, 255, 255, i16::MIN); 32].into_iter().collect(),
        };
        let n = u64::MAX;
        Self {
            version: 1,
            epoch: n,
            sequence: n,
            frame: n,
            captured_ms: n,
            model: n,
            model_hash: n,
            width: u32::MAX,
            height: u32::MAX,
            overflow: u32::MAX,
            jpeg: false,
            camera: "n".repeat(MAX_ID).as_str().try_into().unwrap(),
            changes: u8::MAX,
            views: u16::MAX,
            instances: (0..20).map(|_| instance.clone()).collect(),
        }
    }
}

impl Sample for FrameHeader {
    const OPTIONAL: &'static [&'static str] = &[];
    fn sample(r: &mut Rng) -> Self {
        Self { version: 1, epoch: r.number(), sequence: r.number(), frame: r.number() }
    }
    fn required_only(self) -> Self {
        self
    }
    fn extreme() -> Self {
        Self { version: 1, epoch: u64::MAX, sequence: u64::MAX, frame: u64::MAX }
    }
}

impl Sample for HistogramMsg {
    const OPTIONAL: &'static [&'static str] = &[];
    fn sample(r: &mut Rng) -> Self {
        Self { version: 1, model: r.number(), frames: r.number(), scores: (0..HISTOGRAM_BINS).map(|_| r.number() as u32).collect() }
    }
    fn required_only(self) -> Self {
        self
    }
    fn extreme() -> Self {
        Self { version: 1, model: u64::MAX, frames: u64::MAX, scores: [u32::MAX; HISTOGRAM_BINS].into_iter().collect() }
    }
}

impl Sample for AckMsg {
    const OPTIONAL: &'static [&'static str] = &["r"];
    fn sample(r: &mut Rng) -> Self {
        let gaps = r.below(MAX_GAPS + 1);
        Self {
            version: 1,
            collector: r.number(),
            epoch: r.number(),
            watermark: r.number(),
            stored: (0..gaps).map(|_| (r.number(), r.number())).collect(),
        }
    }
    fn required_only(self) -> Self {
        Self { stored: Default::default(), ..self }
    }
    fn extreme() -> Self {
        let n = u64::MAX;
        Self { version: 1, collector: n, epoch: n, watermark: n, stored: [(n, n); MAX_GAPS].into_iter().collect() }
    }
}

impl Sample for StatusMsg {
    const OPTIONAL: &'static [&'static str] =
        &["model", "frames", "bad_frames", "committed", "pending", "frames_evicted", "evicted", "epoch"];
    fn sample(r: &mut Rng) -> Self {
        Self {
            version: 1,
            online: r.bool(),
            model: r.number(),
            frames: r.number(),
            bad_frames: r.number(),
            committed: r.number(),
            pending: r.number(),
            frames_evicted: r.number(),
            evicted: r.number(),
            epoch: r.number(),
        }
    }
    fn required_only(self) -> Self {
        Self { version: 1, online: self.online, ..Default::default() }
    }
    fn extreme() -> Self {
        let n = u64::MAX;
        let frames = StatusMsg { frames: n, bad_frames: n, frames_evicted: n, ..Default::default() };
        Self { version: 1, online: false, model: n, committed: n, pending: n, evicted: n, epoch: n, ..frames }
    }
}

impl Sample for ModelMsg {
    const OPTIONAL: &'static [&'static str] = &["trial", "refused", "reason"];
    fn sample(r: &mut Rng) -> Self {
        const REASONS: [&str; 5] = ["", "golden", "the \"golden\" frames\n", "écart 雪 🦀", "\u{1}\\/\u{7f}"];
        Self {
            version: 1,
            confirmed: r.number(),
            trial: r.bool().then(|| r.number()),
            refused: r.bool().then(|| r.number()),
            reason: REASONS[r.below(5)].try_into().unwrap(),
        }
    }
    fn required_only(self) -> Self {
        Self { version: 1, confirmed: self.confirmed, ..Default::default() }
    }
    fn extreme() -> Self {
        let n = u64::MAX;
        Self { version: 1, confirmed: n, trial: Some(n), refused: Some(n), reason: (0..160).map(|_| '\u{1}').collect() }
    }
}

impl Sample for ReleaseMsg {
    const OPTIONAL: &'static [&'static str] = &["k", "r", "w", "d"];
    fn sample(r: &mut Rng) -> Self {
        let lengths = [r.below(200), r.below(65), r.below(200), r.below(65)];
        let [manifest, signature, keys, keys_signature] = lengths.map(|n| (0..n).map(|_| r.next() as u8).collect::<Vec<_>>());
        Self {
            version: 1,
            manifest: manifest.into_iter().collect(),
            signature: signature.into_iter().collect(),
            keys: keys.into_iter().collect(),
            keys_signature: keys_signature.into_iter().collect(),
            waiting: r.next() as u16,
            shadow_secs: r.number() as u32,
        }
    }
    fn required_only(self) -> Self {
        Self { keys: Default::default(), keys_signature: Default::default(), waiting: 0, shadow_secs: 0, ..self }
    }
    fn extreme() -> Self {
        use omnilabel_keypoints::release::{MAX_KEY_SET, MAX_MANIFEST};
        Self {
            version: 1,
            manifest: (0..MAX_MANIFEST).map(|_| 255).collect(),
            signature: [255; 64].into_iter().collect(),
            keys: (0..MAX_KEY_SET).map(|_| 255).collect(),
            keys_signature: [255; 64].into_iter().collect(),
            waiting: u16::MAX,
            shadow_secs: u32::MAX,
        }
    }
}

impl Sample for BlockRequest {
    const OPTIONAL: &'static [&'static str] = &[];
    fn sample(r: &mut Rng) -> Self {
        let blocks = r.below(5);
        let mut hex = || format!("{:016x}", r.next()).repeat(4).as_str().try_into().unwrap();
        let blocks = (0..blocks).map(|_| hex()).collect();
        Self { version: 1, counter: r.number(), blocks }
    }
    fn required_only(self) -> Self {
        self
    }
    fn extreme() -> Self {
        Self { version: 1, counter: u64::MAX, blocks: (0..64).map(|_| "f".repeat(64).as_str().try_into().unwrap()).collect() }
    }
}

/// Runs a generic function for every message type.
#[macro_export]
macro_rules! for_every_message {
    ($run:ident $(, $argument:expr)*) => {{
        use omnilabel_keypoints::wire::*;
        $run::<LabelMsg>($($argument),*);
        $run::<FrameHeader>($($argument),*);
        $run::<HistogramMsg>($($argument),*);
        $run::<AckMsg>($($argument),*);
        $run::<StatusMsg>($($argument),*);
        $run::<ModelMsg>($($argument),*);
        $run::<ReleaseMsg>($($argument),*);
        $run::<BlockRequest>($($argument),*);
    }};
}

pub fn encode<M: Message>(message: &M, encoding: Encoding) -> Vec<u8> {
    let mut out = vec![0; M::MAX_BYTES];
    let n = message.encode(encoding, &mut out).unwrap();
    out.truncate(n);
    out
}

/// The same CBOR with the keys in `drop` left out of every map, and an unknown key with a nested value put first in each if `extra`.
pub fn edit_cbor(cbor: &[u8], drop: &[&str], extra: bool) -> Vec<u8> {
    let mut out = vec![0; 4 * cbor.len() + 4096];
    let mut encoder = Encoder::new(Cursor::new(&mut out[..]));
    copy(&mut Decoder::new(cbor), &mut encoder, drop, extra);
    let n = encoder.writer().position();
    out.truncate(n);
    out
}

fn copy(from: &mut Decoder<'_>, to: &mut Encoder<Cursor<&mut [u8]>>, drop: &[&str], extra: bool) {
    match from.datatype().unwrap() {
        Type::Array => {
            let n = from.array().unwrap().unwrap();
            to.array(n).unwrap();
            (0..n).for_each(|_| copy(from, to, drop, extra));
        }
        Type::Map => {
            let n = from.map().unwrap().unwrap();
            let mut keys = from.clone();
            let kept = (0..n)
                .filter(|_| {
                    let key = keys.str().unwrap();
                    keys.skip().unwrap();
                    !drop.contains(&key)
                })
                .count() as u64;
            to.map(kept + u64::from(extra)).unwrap();
            if extra {
                to.str("zz").unwrap().array(3).unwrap().i8(-4).unwrap().map(1).unwrap().str("v").unwrap().f64(0.5).unwrap();
                to.tag(minicbor::data::Tag::new(1)).unwrap().bytes(&[1, 2]).unwrap();
            }
            for _ in 0..n {
                let key = from.str().unwrap();
                if drop.contains(&key) {
                    from.skip().unwrap();
                } else {
                    to.str(key).unwrap();
                    copy(from, to, drop, extra);
                }
            }
        }
        _ => {
            let start = from.position();
            from.skip().unwrap();
            let raw = &from.input()[start..from.position()];
            minicbor::encode::Write::write_all(to.writer_mut(), raw).unwrap();
        }
    }
}

/// The same as [`edit_cbor`] for JSON.
pub fn edit_json(json: &[u8], drop: &[&str], extra: bool) -> Vec<u8> {
    fn edit(value: &mut serde_json::Value, drop: &[&str], extra: bool) {
        match value {
            serde_json::Value::Array(items) => items.iter_mut().for_each(|v| edit(v, drop, extra)),
            serde_json::Value::Object(map) => {
                drop.iter().for_each(|key| std::mem::drop(map.remove(*key)));
                map.values_mut().for_each(|v| edit(v, drop, extra));
                if extra {
                    let unknown = serde_json::json!([-4, {"v": 0.5, "a": [[], {}, "\u{1}\"\\ 🦀", null]}, "x", true, false, 1e300]);
                    map.insert("a \"quoted\" key".to_owned(), unknown.clone());
                    map.insert("zz".to_owned(), unknown);
                }
            }
            _ => {}
        }
    }
    let mut value = serde_json::from_slice(json).unwrap();
    edit(&mut value, drop, extra);
    serde_json::to_vec_pretty(&value).unwrap()
}

pub fn edit(bytes: &[u8], encoding: Encoding, drop: &[&str], extra: bool) -> Vec<u8> {
    match encoding {
        Encoding::Cbor => edit_cbor(bytes, drop, extra),
        Encoding::Json => edit_json(bytes, drop, extra),
    }
}

pub const ENCODINGS: [Encoding; 2] = [Encoding::Cbor, Encoding::Json];
