//! A deterministic mutation fuzzer: no bytes make a reader panic, and what it accepts it writes and reads back the same.
//! `OMNILABEL_FUZZ_RUNS` sets the executions per target, 1,000,000 in the long suite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{ENCODINGS, Rng, Sample, edit, encode};
use omnilabel_keypoints::wire::Encoding;

fn runs() -> usize {
    std::env::var("OMNILABEL_FUZZ_RUNS").map_or(20_000, |n| n.parse().expect("OMNILABEL_FUZZ_RUNS is a number"))
}

/// Bytes that mean something in CBOR or JSON.
const TELLING: &[u8] =
    b"{}[]\",:\\-0e.tfnu\x00\x18\x19\x1a\x1b\x1f\x3b\x5f\x60\x7b\x7f\x80\x9b\x9f\xa0\xbb\xbf\xc2\xd8\xf4\xf6\xf9\xfb\xff";

fn mutate(bytes: &mut Vec<u8>, other: &[u8], r: &mut Rng) {
    for _ in 0..=r.below(4) {
        let at = r.below(bytes.len() + 1);
        let end = (at + r.below(16)).min(bytes.len());
        match r.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << r.below(8),
            1 if at < bytes.len() => bytes[at] = TELLING[r.below(TELLING.len())],
            2 => bytes.insert(at, TELLING[r.below(TELLING.len())]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = r.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            5 => {
                let start = r.below(other.len() + 1);
                let stop = (start + r.below(64)).min(other.len());
                bytes.splice(at..end, other[start..stop].iter().copied());
            }
            6 => bytes.truncate(at),
            _ => bytes.insert(at, r.next() as u8),
        }
    }
}

fn fuzz<M: Sample>() {
    let mut r = Rng(0x0123_4567_89AB_CDEF);
    let mut accepted = 0;
    let runs = runs();
    let mut seeds: Vec<(Encoding, Vec<u8>)> = Vec::new();
    for _ in 0..16 {
        for encoding in ENCODINGS {
            let bytes = encode(&M::sample(&mut r), encoding);
            seeds.push((encoding, edit(&bytes, encoding, &[], true)));
            seeds.push((encoding, bytes));
        }
    }
    for run in 0..runs {
        let (encoding, mut bytes) = seeds[r.below(seeds.len())].clone();
        if run % 8 == 0 {
            bytes = (0..r.below(64)).map(|_| r.next() as u8).collect();
        }
        let other = r.below(seeds.len());
        mutate(&mut bytes, &seeds[other].1, &mut r);
        if let Ok(message) = M::decode(&bytes) {
            accepted += 1;
            assert_eq!(M::decode(&encode(&message, encoding)).unwrap(), message, "{bytes:02x?}");
        }
    }
    println!("{}: {runs} executions, {accepted} accepted", core::any::type_name::<M>());
    assert!(accepted * 100 > runs, "the mutations are too wild to test anything: {accepted} of {runs} accepted");
}

macro_rules! targets {
    ($($name:ident $message:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz::<omnilabel_keypoints::wire::$message>();
        })*
    };
}

targets! {
    label LabelMsg
    frame_header FrameHeader
    histogram HistogramMsg
    ack AckMsg
    status StatusMsg
    model ModelMsg
    release ReleaseMsg
    block_request BlockRequest
}

#[test]
fn release_manifest() {
    use omnilabel_keypoints::release::ReleaseManifest;
    use omnilabel_keypoints::wire::json;
    let digest = "ab".repeat(32);
    let seed = format!(
        r#"{{"format":1,"site":"s","channel":"c","counter":3,"name":"n","block_bytes":16,"files":[{{"path":"a/b","bytes":20,"sha256":"{digest}"}}],"blocks":["{digest}","{digest}"]}}"#
    );
    let mut r = Rng(5);
    let mut accepted = 0;
    for _ in 0..runs() {
        let mut bytes = seed.clone().into_bytes();
        mutate(&mut bytes, seed.as_bytes(), &mut r);
        if let Ok(manifest) = json::from_slice::<ReleaseManifest>(&bytes) {
            accepted += 1;
            let good = manifest.check("s", "c", 2).is_ok();
            let blocks: usize = (0..manifest.files.len()).map(|i| manifest.blocks_of(i).len()).sum();
            assert!(!good || blocks == manifest.blocks.len());
        }
        // Two readers, one opinion on what JSON of this type is.
        let reference = serde_json::from_slice::<ReleaseManifest>(&bytes).is_ok();
        if json::from_slice::<ReleaseManifest>(&bytes).is_ok() {
            assert!(reference, "{}", String::from_utf8_lossy(&bytes));
        }
    }
    assert!(accepted * 100 > runs());
}
