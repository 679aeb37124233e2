//! Which manifests a device takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_keypoints::release::{
    KeySet, KeySetError, MAX_BLOCKS, MAX_COUNTER, MAX_FILES, MAX_MANIFEST, ReleaseError, ReleaseFile, ReleaseManifest, is_inside,
};

fn hex(byte: u8) -> heapless::String<64> {
    (0..32).map(|_| format!("{byte:02x}")).collect::<String>().as_str().try_into().unwrap()
}

fn file(path: &str, bytes: u64) -> ReleaseFile {
    ReleaseFile { path: path.try_into().unwrap(), bytes, sha256: hex(1) }
}

fn manifest() -> ReleaseManifest {
    ReleaseManifest {
        format: 1,
        site: "yard".try_into().unwrap(),
        channel: "stable".try_into().unwrap(),
        counter: 5,
        name: "round-5".try_into().unwrap(),
        block_bytes: 100,
        expires_ms: 0,
        files: [file("manifest.json", 50), file("empty", 0), file("golden/0.png", 201)].into_iter().collect(),
        blocks: (0..4).map(hex).collect(),
    }
}

#[test]
fn a_good_manifest_passes_and_lists_its_blocks() {
    let manifest = manifest();
    assert_eq!(manifest.check("yard", "stable", 4), Ok(()));
    assert_eq!(manifest.blocks_of(0), [hex(0)]);
    assert!(manifest.blocks_of(1).is_empty() && manifest.blocks_of(3).is_empty());
    assert_eq!(manifest.blocks_of(2), [hex(1), hex(2), hex(3)]);
    let json = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(serde_json::from_slice::<ReleaseManifest>(&json).unwrap(), manifest);
}

#[test]
fn the_largest_manifest_fits() {
    let mut manifest =
        ReleaseManifest { counter: MAX_COUNTER - 1, block_bytes: 1 << 20, blocks: (0..MAX_BLOCKS).map(|_| hex(9)).collect(), ..manifest() };
    manifest.files = (0..MAX_FILES).map(|i| file(&format!("{i:0>32}"), u64::from(manifest.block_bytes) * 12)).collect();
    assert_eq!(manifest.check("yard", "stable", 4), Ok(()));
    let json = serde_json::to_vec(&manifest).unwrap();
    assert!(json.len() <= MAX_MANIFEST, "{}", json.len());
    assert!(size_of::<ReleaseManifest>() < 64 * 1024);
}

#[test]
fn others_are_refused() {
    let check = |change: &dyn Fn(&mut ReleaseManifest), expected| {
        let mut manifest = manifest();
        change(&mut manifest);
        assert_eq!(manifest.check("yard", "stable", 4), Err(expected));
    };
    check(&|m| m.format = 2, ReleaseError::Format(2));
    check(&|m| m.site = "roof".try_into().unwrap(), ReleaseError::Site);
    check(&|m| m.channel = "canary".try_into().unwrap(), ReleaseError::Channel);
    check(&|m| m.counter = MAX_COUNTER, ReleaseError::Large(MAX_COUNTER));
    check(&|m| m.counter = 4, ReleaseError::Counter { offered: 4, known: 4 });
    check(&|m| m.block_bytes = 0, ReleaseError::File(0));
    check(&|m| m.block_bytes = u32::MAX, ReleaseError::File(0));
    check(&|m| m.files.clear(), ReleaseError::File(0));
    check(&|m| m.files[2].bytes = u64::MAX, ReleaseError::File(2));
    check(&|m| m.files[2].bytes = 301, ReleaseError::File(2));
    check(&|m| m.files[2].bytes = 200, ReleaseError::File(3));
    check(&|m| m.files[1].path = "manifest.json".try_into().unwrap(), ReleaseError::File(1));
    check(&|m| m.files[1].path = "../x".try_into().unwrap(), ReleaseError::File(1));
    check(&|m| m.files[1].sha256 = "ff".try_into().unwrap(), ReleaseError::File(1));
    check(&|m| m.blocks[3] = "FF".repeat(32).as_str().try_into().unwrap(), ReleaseError::File(2));
}

#[test]
fn paths_stay_inside() {
    for good in ["a", "a/b.png", "a..b", "...", ".a"] {
        assert!(is_inside(good), "{good}");
    }
    for bad in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "C:x", "a\0"] {
        assert!(!is_inside(bad), "{bad:?}");
    }
}

#[test]
fn a_set_of_keys_is_for_its_site_no_older_and_of_keys() {
    let key = "ab".repeat(32);
    let keys = |keys: &[&str]| keys.iter().map(|&key| key.try_into().unwrap()).collect();
    let good = KeySet { format: 1, site: "yard".try_into().unwrap(), serial: 4, keys: keys(&[&key, &key]), ..KeySet::default() };
    assert_eq!([0, 3, 4].map(|known| good.check("yard", known)), [Ok(()); 3]);
    let check = |set: KeySet, known, error: KeySetError| assert_eq!(set.check("yard", known), Err(error));
    check(good.clone(), 5, KeySetError::Serial { offered: 4, known: 5 });
    check(KeySet { serial: 0, ..good.clone() }, 0, KeySetError::Serial { offered: 0, known: 0 });
    check(KeySet { format: 2, ..good.clone() }, 0, KeySetError::Format(2));
    check(KeySet { site: "field".try_into().unwrap(), ..good.clone() }, 0, KeySetError::Site);
    check(KeySet { keys: keys(&[]), ..good.clone() }, 0, KeySetError::Key(0));
    check(KeySet { keys: keys(&[&key, "AB"]), ..good }, 0, KeySetError::Key(1));
}

#[test]
fn a_release_expires_by_its_own_date_alone() {
    let never = ReleaseManifest::default();
    assert_eq!(never.check_time(u64::MAX), Ok(()));
    let dated = ReleaseManifest { expires_ms: 100, ..never.clone() };
    assert_eq!((dated.check_time(100), dated.check_time(101)), (Ok(()), Err(ReleaseError::Expired)));
    let old: ReleaseManifest = serde_json::from_str(&serde_json::to_string(&never).unwrap()).unwrap();
    assert_eq!(old, never, "a manifest without a date reads as before");
}
