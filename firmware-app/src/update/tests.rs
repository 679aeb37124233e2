//! Only what was signed gets in, whole.

use super::*;
use crate::testing::{BLOCK, bundle, key, release, sign};
use omnilabel_bundle::{Bundle, hex};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Instant;

struct Setup {
    folder: tempfile::TempDir,
    confirmed: PathBuf,
    release: VerifiedRelease,
    blocks: Vec<Vec<u8>>,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let confirmed = folder.path().join("a");
    bundle(&confirmed, "first", 1, 3000);
    let next = bundle(&folder.path().join("centre"), "second", 2, 10_500);
    let (manifest, blocks) = release(&next, 3);
    let release = VerifiedRelease::verify(&sign(&manifest, &key()), &key().verifying_key()).unwrap();
    Setup { confirmed, release, blocks, folder }
}

impl Setup {
    fn begin(&self) -> Fetch {
        Fetch::begin(&self.release, self.folder.path(), &self.confirmed).unwrap()
    }

    fn give(&self, fetch: &mut Fetch, wanted: impl Fn(usize) -> bool) {
        for (index, block) in self.blocks.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            let _ = index;
            fetch.block(&hex(&Sha256::digest(block)), block).unwrap();
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_manifest_or_signature_is_refused() {
    let setup = setup();
    let message = sign(setup.release.manifest(), &key());
    let trusted = key().verifying_key();
    assert!(VerifiedRelease::verify(&message, &trusted).is_ok());
    for index in 0..message.manifest.len() {
        let mut flipped = message.clone();
        flipped.manifest[index] ^= 1 << (index % 8);
        assert!(matches!(VerifiedRelease::verify(&flipped, &trusted), Err(Refusal::Signature)), "manifest byte {index}");
    }
    for index in 0..64 {
        let mut flipped = message.clone();
        flipped.signature[index] ^= 1 << (index % 8);
        assert!(matches!(VerifiedRelease::verify(&flipped, &trusted), Err(Refusal::Signature)), "signature byte {index}");
    }
    let other = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    assert!(VerifiedRelease::verify(&sign(setup.release.manifest(), &other), &trusted).is_err());
    let mut unsigned = message.clone();
    unsigned.signature.clear();
    assert!(VerifiedRelease::verify(&unsigned, &trusted).is_err());
    // The same bytes signed without the domain are something else.
    let mut undomained = message;
    let bare = ed25519_dalek::Signer::sign(&key(), &undomained.manifest).to_bytes();
    undomained.signature = heapless::Vec::from_slice(&bare).unwrap();
    assert!(VerifiedRelease::verify(&undomained, &trusted).is_err());
}

#[test]
fn blocks_make_the_bundle_and_unchanged_files_are_not_fetched() {
    let setup = setup();
    let mut fetch = setup.begin();
    let unchanged = 2500_usize.div_ceil(BLOCK as usize);
    assert_eq!(fetch.missing(), setup.blocks.len() - unchanged);
    let mut asked = Vec::new();
    while let Some(request) = fetch.request(Instant::now()) {
        assert!(request.blocks.len() <= IN_FLIGHT && request.counter == 3);
        for hash in &request.blocks {
            let block = setup.blocks.iter().find(|block| hex(&Sha256::digest(block)) == hash.as_str()).unwrap();
            fetch.block(hash, block).unwrap();
            asked.push(hash.clone());
        }
    }
    assert!(fetch.is_complete() && asked.len() == setup.blocks.len() - unchanged);
    let made = fetch.assemble(&setup.folder.path().join("b")).unwrap();
    let wanted = Bundle::open(&setup.folder.path().join("centre")).unwrap();
    assert_eq!(made.sha256(), wanted.sha256());
    Fetch::clean(setup.folder.path());
    assert!(!setup.folder.path().join("blocks").exists());
}

#[test]
fn a_fetch_goes_on_after_a_restart_and_torn_blocks_are_fetched_again() {
    let setup = setup();
    let mut fetch = setup.begin();
    let all = fetch.missing();
    setup.give(&mut fetch, |index| index % 2 == 0);
    let left = fetch.missing();
    assert!(left < all && left > 0);
    drop(fetch);
    assert_eq!(setup.begin().missing(), left);
    let some = std::fs::read_dir(setup.folder.path().join("blocks")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&some).unwrap();
    std::fs::write(&some, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(setup.folder.path().join("blocks/of-another-release"), "x").unwrap();
    let mut fetch = setup.begin();
    assert_eq!(fetch.missing(), left + 1);
    setup.give(&mut fetch, |_| true);
    assert!(fetch.is_complete());
    fetch.assemble(&setup.folder.path().join("b")).unwrap();
}

#[test]
fn requests_are_repeated_when_nothing_comes() {
    let setup = setup();
    let mut fetch = setup.begin();
    let now = Instant::now();
    let first = fetch.request(now).unwrap();
    assert_eq!(fetch.request(now), None);
    assert_eq!(fetch.request(now + REQUEST_AGAIN), Some(first.clone()));
    fetch.restart();
    assert_eq!(fetch.request(now + REQUEST_AGAIN), Some(first));
}

#[test]
fn a_block_with_a_flipped_bit_never_gets_in() {
    let setup = setup();
    let mut fetch = setup.begin();
    let before = fetch.missing();
    for block in &setup.blocks {
        let hash = hex(&Sha256::digest(block));
        for index in (0..block.len()).step_by(97) {
            let mut flipped = block.clone();
            flipped[index] ^= 4;
            fetch.block(&hash, &flipped).unwrap();
        }
        fetch.block(&hash, &[]).unwrap();
        fetch.block(&hash, &vec![0; 2 * BLOCK as usize]).unwrap();
    }
    fetch.block("not a hash", b"x").unwrap();
    assert_eq!(fetch.missing(), before);
}

#[test]
fn a_block_that_is_damaged_on_disk_does_not_become_a_bundle() {
    let setup = setup();
    let mut fetch = setup.begin();
    setup.give(&mut fetch, |_| true);
    let slot = setup.folder.path().join("b");
    for entry in std::fs::read_dir(setup.folder.path().join("blocks")).unwrap() {
        let path = entry.unwrap().path();
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = format!("{:#}", fetch.assemble(&slot).unwrap_err());
        assert!(error.contains("signed"), "{error}");
        std::fs::write(&path, &good).unwrap();
    }
    fetch.assemble(&slot).unwrap();
}

#[test]
fn a_public_key_file_is_read_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.pub");
    std::fs::write(&path, format!("{}\n", hex(key().verifying_key().as_bytes()))).unwrap();
    assert_eq!(read_public_key(&path).unwrap(), key().verifying_key());
    for bad in ["", "abc", &"g".repeat(64), &"€".repeat(64)] {
        std::fs::write(&path, bad).unwrap();
        assert!(read_public_key(&path).unwrap_err().to_string().contains("64 hex digits"));
    }
    // A private key is told, by its tag or by its name: half of all are points of the curve, too.
    let good = hex(key().verifying_key().as_bytes());
    let named = folder.path().join("release.key");
    for (path, text) in [(&path, format!("omnilabel-private-key {good}")), (&named, good)] {
        std::fs::write(path, text).unwrap();
        assert!(read_public_key(path).unwrap_err().to_string().contains("private key"), "{}", path.display());
    }
}
