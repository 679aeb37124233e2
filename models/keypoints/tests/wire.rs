//! Every message in both encodings: round trips, other versions' fields, hostile bytes; topics.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{ENCODINGS, Rng, Sample, edit, encode};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Instance, Keypoint, Label};
use omnilabel_keypoints::wire::*;
use proptest::prelude::*;

fn round_trip<M: Sample>(seed: u64) {
    let message = M::sample(&mut Rng(seed));
    for encoding in ENCODINGS {
        let bytes = encode(&message, encoding);
        let again = M::decode(&bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes)));
        assert_eq!(again, message);
        assert_eq!(encode(&again, encoding), bytes);

        let extended = edit(&bytes, encoding, &[], true);
        assert_eq!(M::decode(&extended).unwrap(), message, "unknown fields are skipped");
        for only_one in M::OPTIONAL {
            M::decode(&edit(&bytes, encoding, &[only_one], false)).unwrap();
        }
        let required = edit(&bytes, encoding, M::OPTIONAL, true);
        assert_eq!(M::decode(&required).unwrap(), M::sample(&mut Rng(seed)).required_only(), "optional fields are defaulted");
    }
}

fn truncations_and_bits<M: Sample>(seed: u64) {
    let message = M::sample(&mut Rng(seed));
    for encoding in ENCODINGS {
        let bytes = encode(&message, encoding);
        for end in 0..bytes.len() {
            assert!(M::decode(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[end] ^= 1 << bit;
                if let Ok(other) = M::decode(&flipped) {
                    assert_eq!(M::decode(&encode(&other, encoding)).unwrap(), other);
                }
            }
        }
        let mut longer = bytes.clone();
        longer.push(b'0');
        assert!(M::decode(&longer).is_err(), "bytes after the message");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn every_message_survives_both_encodings(seed: u64) {
        for_every_message!(round_trip, seed);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fn read<M: Sample>(bytes: &[u8]) {
            let _ = M::decode(bytes);
            let _ = M::decode(&[b"{\"v\":", bytes].concat());
        }
        for_every_message!(read, &bytes);
    }

    #[test]
    fn quantised_values_are_exact(seed: u64) {
        let mut message = LabelMsg::sample(&mut Rng(seed));
        // f32 has 24 bits: the coordinates of frames up to 2^20 px are exact.
        let inside = |v: &mut i32| *v %= 1 << 24;
        for instance in &mut message.instances {
            instance.rect.iter_mut().for_each(inside);
            instance.keypoints.iter_mut().flat_map(|k| [&mut k.0, &mut k.1]).for_each(inside);
        }
        let again = LabelMsg::quantise(&message.label(), message.key(), message.frame, message.captured_ms, message.model, message.model_hash);
        prop_assert_eq!(LabelMsg { jpeg: message.jpeg, camera: message.camera.clone(), changes: message.changes, views: message.views, ..again }, message);
    }

    #[test]
    fn quantising_moves_less_than_half_a_step(x in -5e3f32..5e3, p in 0f32..=1.0, logit in -2000f32..2000.0) {
        let label = label_of(Keypoint { point: Point { x, y: -x }, peak_logit: logit, probability: p, agreement: 1.0 - p }, p);
        let back = LabelMsg::quantise(&label, LabelKey { epoch: 1, sequence: 2 }, 3, 4, 5, 6).label();
        let (a, b) = (&label.instances[0].detection, &back.instances[0].detection);
        // Half a step and the rounding of the division.
        let near = |a: f32, b: f32, steps: f32| (a - b).abs() <= 0.5001 / steps + 1e-6;
        prop_assert!(near(a.rect.x2, b.rect.x2, 16.0) && near(a.score, b.score, 65535.0));
        let (a, b) = (a.keypoints[0], b.keypoints[0]);
        prop_assert!(near(a.point.x, b.point.x, 16.0) && near(a.point.y, b.point.y, 16.0) && near(a.peak_logit, b.peak_logit, 16.0));
        prop_assert!(near(a.probability, b.probability, 255.0) && near(a.agreement, b.agreement, 255.0));
    }
}

fn label_of(keypoint: Keypoint, score: f32) -> Label {
    let rect = Rect::new(keypoint.point.x, 0.0, keypoint.point.x, 1.0);
    let detection = Detection { rect, score, keypoints: [keypoint].into_iter().collect() };
    Label { size: Size { width: 4, height: 3 }, instances: [Instance { detection, kept: true }].into_iter().collect(), overflow: 7 }
}

#[test]
fn truncated_and_flipped_messages_never_panic() {
    for seed in 0..3 {
        for_every_message!(truncations_and_bits, seed);
    }
}

#[test]
fn the_largest_messages_fit() {
    fn fits<M: Sample>() {
        let message = M::extreme();
        for encoding in ENCODINGS {
            assert_eq!(M::decode(&encode(&message, encoding)).unwrap(), message);
        }
        let mut small = [0; 20];
        assert_eq!(message.encode(Encoding::Cbor, &mut small), Err(WireError::Buffer(20)));
        assert_eq!(message.encode(Encoding::Json, &mut small), Err(WireError::Buffer(20)));
    }
    for_every_message!(fits);
}

#[test]
fn values_out_of_range_are_clamped() {
    let check = |value: f32, pixels: i32, share: u8, score: u16, logit: i16| {
        let keypoint = Keypoint { point: Point { x: value, y: value }, peak_logit: value, probability: value, agreement: value };
        let message = LabelMsg::quantise(&label_of(keypoint, value), LabelKey { epoch: 0, sequence: 0 }, 0, 0, 0, 0);
        let instance = &message.instances[0];
        assert_eq!((instance.rect[0], instance.score), (pixels, score), "{value}");
        assert_eq!(instance.keypoints[0], WireKeypoint(pixels, pixels, share, share, logit), "{value}");
    };
    check(f32::NAN, 0, 0, 0, 0);
    check(f32::INFINITY, i32::MAX, 255, 65535, i16::MAX);
    check(f32::NEG_INFINITY, i32::MIN, 0, 0, i16::MIN);
    check(1e30, i32::MAX, 255, 65535, i16::MAX);
    check(1.0, 16, 255, 65535, 16);
    check(-0.5, -8, 0, 0, -8);
}

#[test]
fn a_newer_version_is_refused_by_name() {
    for encoding in ENCODINGS {
        let bytes = encode(&StatusMsg { version: 2, ..Default::default() }, encoding);
        assert_eq!(StatusMsg::decode(&bytes), Err(WireError::Version(2)));
    }
    let missing = br#"{"online": true}"#;
    assert_eq!(StatusMsg::decode(missing), Err(WireError::Malformed(missing.len())));
}

#[test]
fn keypoints_may_be_shorter_and_longer() {
    let read = |json: &str| {
        let text = format!(r#"{{"v":1,"e":1,"q":1,"f":1,"W":1,"H":1,"i":[{{"b":[0,0,0,0],"s":1,"p":[{json}]}}]}}"#);
        LabelMsg::decode(text.as_bytes()).map(|m| m.instances[0].keypoints[0])
    };
    assert_eq!(read("[1,2,3]"), Ok(WireKeypoint(1, 2, 3, 0, 0)));
    assert_eq!(read("[1,2,3,4]"), Ok(WireKeypoint(1, 2, 3, 4, 0)));
    assert_eq!(read("[1,2,3,4,5,6,{\"x\":[]}]"), Ok(WireKeypoint(1, 2, 3, 4, 5)));
    for bad in ["[1,2]", "[1,2,256]", "[1,2,3,]", "{}", "[1.0,2,3]", "[1,2,-1]"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn nesting_is_bounded() {
    for depth in [MAX_DEPTH - 1, MAX_DEPTH, 100_000] {
        let json = format!(r#"{{"v":1,"online":true,"x":{}0{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let mut cbor = b"\xa3\x61v\x01\x66online\xf5\x61x".to_vec();
        cbor.extend(std::iter::repeat_n(0x81, depth));
        cbor.push(0);
        for bytes in [json.as_bytes(), &cbor] {
            assert_eq!(StatusMsg::decode(bytes).is_ok(), depth < MAX_DEPTH, "{depth}");
        }
    }
    // Tags nest too.
    let mut tags = b"\xa3\x61v\x01\x66online\xf5\x61x".to_vec();
    tags.extend(std::iter::repeat_n(0xc1, 100_000));
    tags.push(0);
    assert!(StatusMsg::decode(&tags).is_err());
}

#[test]
fn lengths_are_definite_and_honest() {
    let check = |cbor: &[u8], good: bool| assert_eq!(StatusMsg::decode(cbor).is_ok(), good, "{cbor:02x?}");
    check(b"\xa2\x61v\x01\x66online\xf5", true);
    check(b"\xbf\x61v\x01\x66online\xf5\xff", false);
    check(b"\xa3\x61v\x01\x66online\xf5\x61x\x9f\xff", false);
    check(b"\xa3\x61v\x01\x66online\xf5\x61x\xf9\x3c\x00", true);
    check(b"\xa3\x61v\x01\x66online\xf5\x61x\x9b\xff\xff\xff\xff\xff\xff\xff\xff", false);
    check(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x61v\x01", false);
    check(b"\xa2\x61v\x01\x61v\x01", false);
    check(b"", false);
    check(b" {\"v\":1,\"online\":true} \n", true);
    check(b"{\"v\":1,\"v\":1,\"online\":true}", false);
    check(b"{\"v\":01,\"online\":true}", false);
    check(b"{\"v\":1,\"online\":true,}", false);
    check(b"{\"v\":1,\"online\":true,\"x\":nope}", false);
    check(b"[1,true]", false);
}

#[test]
fn strings_and_base64_are_strict() {
    let reason = |json: &str| ModelMsg::decode(format!(r#"{{"v":1,"confirmed":0,"reason":"{json}"}}"#).as_bytes()).map(|m| m.reason);
    assert_eq!(reason(r"a\u00e9\ud83e\udd80\/\n").unwrap(), "aé🦀/\n");
    for bad in [r"\ud83e", r"\udd80", r"\ud83e\u0041", r"\x", r"\u12g4", "\n", &"x".repeat(161), &r"\n".repeat(513)] {
        assert!(reason(bad).is_err(), "{bad:?}");
    }
    let release = |m: &str| ReleaseMsg::decode(format!(r#"{{"v":1,"m":"{m}","s":""}}"#).as_bytes()).map(|m| m.manifest.to_vec());
    for (text, bytes) in
        [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("Zm9vYg==", b"foob"), ("+/+/", b"\xfb\xff\xbf")]
    {
        assert_eq!(release(text).unwrap(), bytes, "RFC 4648 §10");
    }
    for bad in ["Z", "Zg", "Zg=", "Zh==", "Zg==Zg==", "Zm9=", "====", "Z===", "-_-_", "Zm 9v", "Zm9v\\n"] {
        assert!(release(bad).is_err(), "{bad}");
    }
    assert!(release(&"A".repeat(44_000)).is_err(), "longer than a manifest");
}

#[test]
fn topics_are_built_and_parsed() {
    use topic::{Kind, block, device, id, parse_device, release};
    let prefix = "omnilabel/v1";
    assert_eq!(device(prefix, "yard", "cam-1", Kind::Labels), "omnilabel/v1/yard/cam-1/labels");
    assert_eq!(device(prefix, "yard", "+", Kind::BlocksGet), "omnilabel/v1/yard/+/blocks/get");
    assert_eq!(release(prefix, "yard", "stable"), "omnilabel/v1/yard/release/stable");
    assert_eq!(block(prefix, "yard", "ab"), "omnilabel/v1/yard/blocks/ab");
    for kind in Kind::ALL {
        let topic = device(prefix, "yard", "cam.1", kind);
        assert_eq!(parse_device(prefix, "yard", &topic), Some(("cam.1", kind)));
        assert_eq!(parse_device(prefix, "roof", &topic), None);
        assert_eq!(parse_device("omnilabel/v2", "yard", &topic), None);
        assert_eq!(parse_device(prefix, "yard", &format!("{topic}/x")), None);
    }
    for other in
        ["omnilabel/v1/yard/release/stable", "omnilabel/v1/yard/blocks/ab", "omnilabel/v1/yard//labels", "omnilabel/v1/yardx/a/labels"]
    {
        assert_eq!(parse_device(prefix, "yard", other), None, "{other}");
    }
    assert_eq!(id(&"x".repeat(MAX_ID)).unwrap().len(), MAX_ID);
    for bad in ["", "a/b", "+", "#", "é", "a b", &"x".repeat(MAX_ID + 1)] {
        assert_eq!(id(bad), Err(WireError::Id), "{bad}");
    }
    let long = "x".repeat(MAX_ID);
    assert!(device(&"p".repeat(topic::MAX_PREFIX), &long, &long, Kind::BlocksGet).ends_with("/blocks/get"));
    assert_eq!(device(&"p".repeat(200), &long, &long, Kind::Ack), "", "too long");
}
