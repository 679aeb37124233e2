//! `docs/` says what the code does: the examples are the encoder's own bytes, and every field is in the text, the CDDL and the schema.
//!
//! `OMNILABEL_WRITE_EXAMPLES=1` writes `docs/examples` anew.
#![allow(clippy::unwrap_used)]

mod common;

use common::{ENCODINGS, Sample, encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Keypoint, Label, Thresholds};
use omnilabel_keypoints::release::{DOMAIN, KEYS_DOMAIN, KeySet, Newest, ReleaseFile, ReleaseManifest};
use omnilabel_keypoints::wire::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn read(name: &str) -> String {
    let path = docs().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Two people of a 3-point skeleton (head, left hand, right hand), the second below τ.
fn label() -> LabelMsg {
    let keypoint = |x, y, probability, agreement, peak_logit| Keypoint { point: Point { x, y }, probability, agreement, peak_logit };
    let detections = [
        Detection {
            rect: Rect::new(100.0, 50.5, 180.25, 300.0),
            score: 0.9,
            keypoints: [
                keypoint(141.5, 70.25, 0.8, 1.0, 9.5),
                keypoint(110.0, 160.0, 0.5, 0.9, 7.0),
                keypoint(170.0, 158.5, 0.4, 0.2, -1.0),
            ]
            .into_iter()
            .collect(),
        },
        Detection { rect: Rect::new(400.0, 60.0, 450.0, 200.0), score: 0.3, keypoints: [Keypoint::default(); 3].into_iter().collect() },
    ];
    let thresholds = Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 };
    let label = Label::from_detections(Size { width: 640, height: 480 }, &detections, thresholds);
    let key = LabelKey { epoch: 0x1122_3344_5566_7788, sequence: 42 };
    LabelMsg {
        jpeg: true,
        camera: "gate".try_into().unwrap(),
        changes: FACES_BLURRED,
        views: 6,
        ..LabelMsg::quantise(&label, key, 1001, 1_767_225_600_000, 3, 0xB0C4_71D5_93EE_0A12)
    }
}

fn manifest() -> ReleaseManifest {
    let digest = |byte: &str| byte.repeat(32).as_str().try_into().unwrap();
    let file = |path: &str, bytes, sha256| ReleaseFile { path: path.try_into().unwrap(), bytes, sha256: digest(sha256) };
    ReleaseManifest {
        format: 1,
        site: "yard".try_into().unwrap(),
        channel: "stable".try_into().unwrap(),
        counter: 4,
        name: "round-4".try_into().unwrap(),
        block_bytes: 262_144,
        expires_ms: 1_893_456_000_000,
        files: [file("manifest.json", 1_800, "a0"), file("weights.safetensors", 300_000, "b0")].into_iter().collect(),
        blocks: ["a0", "b1", "b2"].map(digest).into_iter().collect(),
    }
}

/// The secret of the example's key is 32 bytes of 7.
fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn release() -> ReleaseMsg {
    let manifest = serde_json::to_vec(&manifest()).unwrap();
    let signature = signing_key().sign(&[DOMAIN, &manifest].concat()).to_bytes();
    let keys = serde_json::to_vec(&key_set()).unwrap();
    let keys_signature = root_key().sign(&[KEYS_DOMAIN, &keys].concat()).to_bytes();
    ReleaseMsg {
        version: 1,
        manifest: manifest.into_iter().collect(),
        signature: signature.into_iter().collect(),
        keys: keys.into_iter().collect(),
        keys_signature: keys_signature.into_iter().collect(),
        waiting: 900,
        shadow_secs: 1800,
    }
}

/// The secret of the example's root key is 32 bytes of 8.
fn root_key() -> SigningKey {
    SigningKey::from_bytes(&[8; 32])
}

fn key_set() -> KeySet {
    let key: String = signing_key().verifying_key().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    let keys = [key.as_str().try_into().unwrap()].into_iter().collect();
    let newest = [Newest { channel: "stable".try_into().unwrap(), counter: 3 }].into_iter().collect();
    KeySet { format: 1, site: "yard".try_into().unwrap(), serial: 1, keys, newest }
}

/// A message of each kind with its name in the schema and the CDDL.
macro_rules! with_examples {
    ($run:ident) => {{
        let (epoch, sequence) = (0x1122_3344_5566_7788, 42);
        $run("label", "label", label());
        $run("frameHeader", "frame-header", FrameHeader { version: 1, epoch, sequence, frame: 1001 });
        let scores = (0..HISTOGRAM_BINS as u32).map(|bin| if bin % 16 == 0 { bin } else { 0 }).collect();
        $run("histogram", "histogram", HistogramMsg { version: 1, model: 3, frames: 5000, scores });
        let stored = [(44, 44), (47, 60)].into_iter().collect();
        $run("ack", "ack", AckMsg { version: 1, collector: 7, epoch, watermark: sequence, stored });
        let counts = StatusMsg { frames: 900, bad_frames: 2, committed: 61, pending: 3, evicted: 0, ..Default::default() };
        $run("status", "status", StatusMsg { version: 1, online: true, model: 3, epoch, ..counts });
        let reason = "golden".try_into().unwrap();
        $run("model", "model", ModelMsg { version: 1, confirmed: 3, trial: Some(5), refused: Some(4), reason });
        $run("release", "release", release());
        $run(
            "blockRequest",
            "block-request",
            BlockRequest { version: 1, counter: 4, blocks: manifest().blocks[..2].iter().cloned().collect() },
        );
    }};
}

fn compare(name: &str, bytes: &[u8]) {
    let path = docs().join("examples").join(name);
    if std::env::var_os("OMNILABEL_WRITE_EXAMPLES").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let found = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(found == bytes, "{} differs from what the code writes; OMNILABEL_WRITE_EXAMPLES=1 writes it anew", path.display());
}

#[test]
fn the_examples_are_what_the_code_writes() {
    fn check<M: Sample>(name: &str, _: &str, message: M) {
        for (encoding, extension) in ENCODINGS.into_iter().zip(["cbor", "json"]) {
            let bytes = encode(&message, encoding);
            compare(&format!("{name}.{extension}"), &bytes);
            assert_eq!(M::decode(&bytes).unwrap(), message);
        }
    }
    with_examples!(check);
    compare("releaseManifest.json", &serde_json::to_vec(&manifest()).unwrap());
    compare("keySet.json", &serde_json::to_vec(&key_set()).unwrap());
    let label = encode(&label(), Encoding::Cbor);
    let header = encode(&FrameHeader { version: 1, epoch: 0x1122_3344_5566_7788, sequence: 42, frame: 1001 }, Encoding::Cbor);
    assert!(label.len() == 191 && header.len() == 24, "WIRE.md names these sizes: {} and {}", label.len(), header.len());
}

#[test]
fn the_text_shows_the_examples() {
    let text = read("WIRE.md");
    for name in ["label", "ack", "releaseManifest", "keySet"] {
        let json = read(&format!("examples/{name}.json"));
        assert!(text.contains(&json), "WIRE.md does not show examples/{name}.json");
    }
    let bare: String = text.split_whitespace().collect();
    for name in ["label", "ack"] {
        let cbor = std::fs::read(docs().join(format!("examples/{name}.cbor"))).unwrap();
        let hex: String = cbor.iter().map(|b| format!("{b:02x}")).collect();
        assert!(bare.contains(&hex), "WIRE.md does not show examples/{name}.cbor: {hex}");
    }
    let public: String = signing_key().verifying_key().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert!(text.contains(&public), "WIRE.md does not name the example's public key {public}");
    let key = VerifyingKey::from_bytes(signing_key().verifying_key().as_bytes()).unwrap();
    let message = ReleaseMsg::decode(&std::fs::read(docs().join("examples/release.cbor")).unwrap()).unwrap();
    let signature = Signature::from_slice(&message.signature).unwrap();
    key.verify_strict(&[DOMAIN, &message.manifest].concat(), &signature).unwrap();
    assert!(manifest().check("yard", "stable", 3).is_ok());
    let root = VerifyingKey::from_bytes(root_key().verifying_key().as_bytes()).unwrap();
    let signature = Signature::from_slice(&message.keys_signature).unwrap();
    root.verify_strict(&[KEYS_DOMAIN, &message.keys].concat(), &signature).unwrap();
    assert!(key_set().check("yard", 1).is_ok());
}

#[test]
fn every_field_is_documented() {
    fn check<M: Sample>(name: &str, rule: &str, message: M) {
        let schema: Value = serde_json::from_str(&read("wire.schema.json")).unwrap();
        let json: Value = serde_json::from_slice(&encode(&message, Encoding::Json)).unwrap();
        let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
        let required = |definition: &Value| -> BTreeSet<String> {
            definition["required"].as_array().unwrap().iter().map(|k| k.as_str().unwrap().to_owned()).collect()
        };
        let mut parts = vec![(name, rule, json.clone())];
        if name == "label" {
            parts.push(("instance", "instance", json["i"][0].clone()));
        }
        let (cddl, text) = (read("wire.cddl"), read("WIRE.md"));
        for (name, rule, value) in parts {
            let definition = &schema["$defs"][name];
            assert_eq!(keys(&definition["properties"]), keys(&value), "{name} in the schema");
            let needed: BTreeSet<String> = keys(&value).into_iter().filter(|k| !M::OPTIONAL.contains(&k.as_str())).collect();
            assert_eq!(required(definition), needed, "{name}: required fields in the schema");
            let body = cddl.split(&format!("\n{rule} = {{")).nth(1).unwrap_or_else(|| panic!("{rule} in the CDDL"));
            let body = body.split('}').next().unwrap();
            for key in keys(&value) {
                let optional = M::OPTIONAL.contains(&key.as_str());
                let line = body.lines().map(str::trim).find(|l| l.trim_start_matches("? ").starts_with(&format!("\"{key}\":")));
                assert_eq!(line.map(|l| l.starts_with("? ")), Some(optional), "{rule}.{key} in the CDDL");
                assert!(text.contains(&format!("| `{key}` |")), "{name}.{key} in WIRE.md");
            }
        }
    }
    with_examples!(check);
}

#[test]
fn the_asyncapi_file_names_every_topic() {
    let yaml = read("omnilabel.asyncapi.yaml");
    let prefix = "omnilabel/v1";
    for kind in topic::Kind::ALL {
        let address = topic::device(prefix, "{site}", "{device}", kind);
        assert!(yaml.contains(&format!("address: '{address}'")), "{address}");
        assert!(read("WIRE.md").contains(kind.name()), "{address} in WIRE.md");
    }
    for address in [topic::release(prefix, "{site}", "{channel}"), topic::block(prefix, "{site}", "{sha256}")] {
        assert!(yaml.contains(&format!("address: '{address}'")), "{address}");
    }
    for definition in yaml.lines().filter_map(|l| l.trim().strip_prefix("$ref: './wire.schema.json#/$defs/")) {
        let schema: Value = serde_json::from_str(&read("wire.schema.json")).unwrap();
        assert!(schema["$defs"].get(definition.trim_end_matches('\'')).is_some(), "{definition}");
    }
}
