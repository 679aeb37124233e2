//! The JSON reader on a release manifest: no panic, and a manifest that passes the check has its blocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use omnilabel_keypoints::release::ReleaseManifest;
use omnilabel_keypoints::wire::json;

fuzz_target!(|data: &[u8]| {
    let Ok(manifest) = json::from_slice::<ReleaseManifest>(data) else { return };
    if manifest.check(&manifest.site, &manifest.channel, 0).is_ok() {
        let blocks: usize = (0..manifest.files.len()).map(|i| manifest.blocks_of(i).len()).sum();
        assert_eq!(blocks, manifest.blocks.len());
    }
});
