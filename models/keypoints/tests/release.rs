//! Which manifests a device takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_keypoints::release::{MAX_BLOCKS, MAX_FILES, MAX_MANIFEST, ReleaseError, ReleaseFile, ReleaseManifest, is_inside};

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
        ReleaseManifest { counter: u64::MAX, block_bytes: 1 << 20, blocks: (0..MAX_BLOCKS).map(|_| hex(9)).collect(), ..manifest() };
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
