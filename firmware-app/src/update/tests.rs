//! Only what was signed gets in, whole.

use super::*;
use crate::durable::power;
use crate::testing::{BLOCK, bundle, key, release, sign};
use omnilabel_bundle::{Bundle, BundleError, hex};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

struct Setup {
    folder: tempfile::TempDir,
    confirmed: PathBuf,
    release: VerifiedRelease,
    blocks: Vec<Vec<u8>>,
}

fn setup() -> Setup {
    setup_with(10_500)
}

/// The same with so many bytes of new weights.
fn setup_with(weights: usize) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let confirmed = folder.path().join("a");
    bundle(&confirmed, "first", 1, 3000);
    let next = bundle(&folder.path().join("centre"), "second", 2, weights);
    let (manifest, blocks) = release(&next, 3);
    let release = VerifiedRelease::verify(&sign(&manifest, &key()), &key().verifying_key()).unwrap();
    Setup { confirmed, release, blocks, folder }
}

impl Setup {
    fn begin(&self) -> Fetch {
        Fetch::begin(&self.release, self.folder.path(), &self.confirmed).unwrap()
    }

    /// The block with this hash.
    fn block(&self, hash: &str) -> &[u8] {
        self.blocks.iter().find(|block| hex(&Sha256::digest(block)) == hash).unwrap()
    }

    fn give(&self, fetch: &mut Fetch, wanted: impl Fn(usize) -> bool) {
        for (index, block) in self.blocks.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            let _ = index;
            fetch.block(&hex(&Sha256::digest(block)), block, Instant::now()).unwrap();
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
            fetch.block(hash, block, Instant::now()).unwrap();
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
fn requests_are_repeated_when_nothing_comes_ever_later_and_for_fewer_blocks() {
    let setup = setup();
    let mut fetch = setup.begin();
    let (all, mut now) = (fetch.missing(), Instant::now());
    let mut asked = fetch.request(now).unwrap().blocks.to_vec();
    assert_eq!(asked.len(), IN_FLIGHT);
    let mut wait = REQUEST_AGAIN;
    for blocks in [4, 2, 1, 1, 1, 1, 1] {
        assert_eq!(fetch.request(now + wait - Duration::from_millis(1)), None);
        now += wait;
        let request = fetch.request(now).unwrap();
        assert_eq!(request.blocks.len(), blocks);
        asked.extend(request.blocks);
        wait = (2 * wait).min(REQUEST_AGAIN_AT_MOST);
    }
    let different: BTreeSet<_> = asked.iter().collect();
    assert!(wait == REQUEST_AGAIN_AT_MOST && different.len() == all && asked.len() > all, "{} of {all}", different.len());
    // A new connection does not wait.
    fetch.restart();
    assert!(fetch.request(now).is_some());
    assert_eq!(fetch.request(now), None);
    now += REQUEST_AGAIN;
    // For each that comes one more is asked for.
    for blocks in [1, 2, 4, IN_FLIGHT.min(all - 7)] {
        let request = fetch.request(now).unwrap();
        assert_eq!(request.blocks.len(), blocks);
        for hash in &request.blocks {
            fetch.block(hash, setup.block(hash), now).unwrap();
        }
    }
}

/// Fetches everything over a link that takes `per_block` for each block, one after another as they were asked for; those of `lost`, counted
/// over all that are sent, do not arrive. How often each was sent, and how long it took.
fn over_a_link(setup: &Setup, per_block: Duration, lost: &[usize]) -> (Vec<usize>, Duration) {
    let mut fetch = setup.begin();
    let begin = Instant::now();
    let (mut now, mut free, mut count) = (begin, begin, 0);
    let mut link: VecDeque<(Instant, String)> = VecDeque::new();
    let mut sent: BTreeMap<String, usize> = BTreeMap::new();
    while !fetch.is_complete() {
        assert!(now - begin < Duration::from_secs(100_000), "{} blocks never come", fetch.missing());
        while let Some((_, hash)) = link.front().filter(|(at, _)| *at <= now).cloned() {
            link.pop_front();
            fetch.block(&hash, setup.block(&hash), now).unwrap();
        }
        for hash in fetch.request(now).into_iter().flat_map(|request| request.blocks) {
            *sent.entry(hash.as_str().to_owned()).or_default() += 1;
            if !lost.contains(&count) {
                free = free.max(now) + per_block;
                link.push_back((free, hash.as_str().to_owned()));
            }
            count += 1;
        }
        now += Duration::from_millis(50);
    }
    (sent.into_values().collect(), now - begin)
}

/// Each block is sent once. Where one takes less than [`REQUEST_AGAIN`], it comes before the wait is over. Where it takes longer, others
/// are asked for until the first one comes and tells how long that is, and there are enough of them: 8, 4, 2 and then one at a time.
#[test]
fn a_slow_link_carries_each_block_once() {
    let setup = setup_with(90_000);
    let all = setup.begin().missing();
    assert!(all > 90, "{all}");
    // 256 KiB at 2 Mbit/s, 1 MiB at 1 Mbit/s, 1 MiB at 200 kbit/s.
    for per_block in [1.05, 8.4, 42.0].map(Duration::from_secs_f64) {
        let (sent, took) = over_a_link(&setup, per_block, &[]);
        std::fs::remove_dir_all(setup.folder.path().join("blocks")).unwrap();
        assert!(sent.len() == all && sent.iter().all(|&count| count == 1), "{per_block:?}: {sent:?}");
        let least = per_block * all as u32;
        assert!(took >= least && took < least + 2 * per_block + REQUEST_AGAIN, "{per_block:?}: {took:?}, {least:?} would do");
    }
}

#[test]
fn a_lost_block_is_asked_for_again() {
    let setup = setup_with(90_000);
    let all = setup.begin().missing();
    let per_block = Duration::from_millis(1050);
    let (sent, took) = over_a_link(&setup, per_block, &[3, 50]);
    let twice = sent.iter().filter(|&&count| count == 2).count();
    assert!(sent.len() == all && twice == 2 && sent.iter().all(|&count| count <= 2), "{sent:?}");
    assert!(took < per_block * all as u32 + 5 * REQUEST_AGAIN, "{took:?}");
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
            fetch.block(&hash, &flipped, Instant::now()).unwrap();
        }
        fetch.block(&hash, &[], Instant::now()).unwrap();
        fetch.block(&hash, &vec![0; 2 * BLOCK as usize], Instant::now()).unwrap();
    }
    fetch.block("not a hash", b"x", Instant::now()).unwrap();
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
fn a_disk_that_fails_while_a_release_is_assembled_says_nothing_about_it() {
    let setup = setup();
    let mut fetch = setup.begin();
    setup.give(&mut fetch, |_| true);
    let mut faults = 0;
    loop {
        power::supply(setup.folder.path(), faults);
        let assembled = fetch.assemble(&setup.folder.path().join("b"));
        power::restore(setup.folder.path());
        let Err(error) = assembled else { break };
        assert!(may_pass(&error), "step {faults}: {error:#}");
        faults += 1;
    }
    assert!(faults > 20, "{faults}");
}

#[test]
fn what_cannot_be_read_for_now_is_tried_again_and_what_the_disk_has_lost_is_fetched_again() {
    use nix::errno::Errno;
    let setup = setup();
    let mut fetch = setup.begin();
    setup.give(&mut fetch, |_| true);
    let (folder, slot) = (setup.folder.path(), setup.folder.path().join("b"));
    let block = std::fs::read_dir(folder.join("blocks")).unwrap().next().unwrap().unwrap().path();
    let local = setup.confirmed.join("notes/unchanged.txt");
    for path in [&block, &local] {
        for error in [Errno::EMFILE, Errno::EACCES, Errno::EIO] {
            faults::set(path, error);
            let failed = fetch.assemble(&slot).unwrap_err();
            assert!(may_pass(&failed), "{}: {failed:#}", path.display());
        }
        faults::set(path, Errno::ENFILE);
        for failed in [fetch.look().unwrap_err(), Fetch::begin(&setup.release, folder, &setup.confirmed).unwrap_err()] {
            assert!(may_pass(&failed), "{}: {failed:#}", path.display());
        }
        faults::mend(path);
        fetch.look().unwrap();
        assert!(fetch.is_complete() && block.exists(), "nothing is removed that may be good");
        fetch.assemble(&slot).unwrap();
    }
    // The three blocks of the file that does not change have two hashes.
    for (path, missing) in [(&block, 1), (&local, 2)] {
        faults::set(path, Errno::EIO);
        assert_eq!(setup.begin().missing(), missing, "{}", path.display());
        fetch.look().unwrap();
        assert!(fetch.missing() == missing && path.exists());
        setup.give(&mut fetch, |_| true);
        fetch.look().unwrap();
        assert!(fetch.is_complete());
        fetch.assemble(&slot).unwrap();
    }
    std::fs::remove_file(&block).unwrap();
    let failed = fetch.assemble(&slot).unwrap_err();
    assert!(may_pass(&failed), "{failed:#}");
    fetch.look().unwrap();
    assert_eq!(fetch.missing(), 1);
}

#[test]
fn errors_of_the_disk_are_told_from_those_of_the_content() {
    use io::ErrorKind as Kind;
    let of = |error: io::Error| anyhow::Error::from(error).context("a file").context("the release");
    for kind in [Kind::StorageFull, Kind::QuotaExceeded, Kind::ReadOnlyFilesystem, Kind::PermissionDenied, Kind::Interrupted, Kind::Other] {
        assert!(may_pass(&of(kind.into())), "{kind:?}");
    }
    // A medium that does not answer, no descriptors: kinds without a name.
    for code in [nix::errno::Errno::EIO, nix::errno::Errno::EMFILE] {
        assert!(may_pass(&of(io::Error::from_raw_os_error(code as i32))), "{code}");
    }
    let full = BundleError::Io { path: PathBuf::new(), source: Kind::StorageFull.into() };
    assert!(may_pass(&anyhow::Error::from(full).context("the bundle of the release does not verify")));
    for kind in [Kind::NotFound, Kind::InvalidFilename, Kind::IsADirectory, Kind::NotADirectory, Kind::UnexpectedEof] {
        assert!(!may_pass(&of(kind.into())), "{kind:?}");
    }
    assert!(!may_pass(&anyhow::anyhow!("the blocks do not make the file that was signed")));
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
