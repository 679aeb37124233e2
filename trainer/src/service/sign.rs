//! Keys, manifests and signatures. A key file is the 32-byte Ed25519 seed as 64 hex digits, readable by its owner alone; the public
//! key is 64 hex digits beside it.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::release::{
    DOMAIN, KEYS_DOMAIN, KeySet, MAX_BLOCK_BYTES, MAX_BLOCKS, MAX_COUNTER, MAX_FILES, MAX_KEY_SET, MAX_KEYS, MAX_MANIFEST, Newest,
    PRIVATE_KEY_TAG, ReleaseFile, ReleaseManifest, is_inside,
};
use omnilabel_keypoints::wire::{ReleaseMsg, VERSION};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Why a key, manifest or signature was refused.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not a key file.
    #[error("{path}: expected {expected}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// A bundle that a release cannot carry.
    #[error("{path}: {message}")]
    Bundle {
        /// The bundle or its file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
    /// A set of release keys that cannot be.
    #[error("release keys: {message}")]
    Keys {
        /// What is wrong.
        message: String,
    },
    /// Signed, but not a manifest.
    #[error("the signed manifest is not JSON of the expected shape: {0}")]
    Manifest(serde_json::Error),
}

/// File of the private key.
pub const PRIVATE: &str = "release.key";
/// File of the public key.
pub const PUBLIC: &str = "release.pub";

/// Draws a key pair and writes `release.key` (mode 0600) and `release.pub` to `dir`; never overwrites one.
///
/// # Errors
/// [`SignError::Io`].
pub fn keygen(dir: &Path) -> Result<(PathBuf, PathBuf), SignError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| SignError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| SignError::Io { path: dir.to_owned(), source: std::io::Error::other(e.to_string()) })?;
    let key = SigningKey::from_bytes(&seed);
    let (private, public) = (dir.join(PRIVATE), dir.join(PUBLIC));
    if let Some(path) = [&private, &public].into_iter().find(|path| path.exists()) {
        return Err(SignError::Key { path: path.clone(), expected: "no file there: a key is never overwritten" });
    }
    for (path, bytes, mode) in [(&private, key.to_bytes(), 0o600), (&public, key.verifying_key().to_bytes(), 0o644)] {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let mut file = options.open(path).map_err(io(path))?;
        let tag = if *path == private { PRIVATE_KEY_TAG } else { "" };
        writeln!(file, "{tag}{}", omnilabel_bundle::hex(&bytes)).and_then(|()| file.sync_all()).map_err(io(path))?;
    }
    Ok((private, public))
}

fn read_text(path: &Path) -> Result<String, SignError> {
    let text = std::fs::read_to_string(path).map_err(|source| SignError::Io { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

fn key_bytes(text: &str) -> Option<[u8; 32]> {
    omnilabel_bundle::unhex(text)?.try_into().ok()
}

/// Reads a private key; refuses one that others can read.
///
/// # Errors
/// [`SignError::Io`], [`SignError::Key`].
pub fn read_key(path: &Path) -> Result<SigningKey, SignError> {
    let text = read_text(path)?;
    // Files of before have no tag.
    let seed = key_bytes(text.strip_prefix(PRIVATE_KEY_TAG).unwrap_or(&text))
        .ok_or_else(|| SignError::Key { path: path.to_owned(), expected: "a private key, as `omnilabel-trainer keygen` writes it" })?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_err(|source| SignError::Io { path: path.to_owned(), source })?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(SignError::Key { path: path.to_owned(), expected: "mode 0600: others can read this private key" });
        }
    }
    Ok(SigningKey::from_bytes(&seed))
}

/// Reads a public key.
///
/// # Errors
/// [`SignError::Io`], [`SignError::Key`].
pub fn read_public(path: &Path) -> Result<VerifyingKey, SignError> {
    let refuse = |expected| SignError::Key { path: path.to_owned(), expected };
    let text = read_text(path)?;
    if text.starts_with(PRIVATE_KEY_TAG) || path.extension().is_some_and(|end| end == "key") {
        return Err(refuse("a public key, such as release.pub; this is a private one"));
    }
    let key = key_bytes(&text).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.ok_or_else(|| refuse("a public Ed25519 key: 64 hex digits"))
}

/// What a release names beside its files.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// The site it is for.
    pub site: &'a str,
    /// The channel it is for.
    pub channel: &'a str,
    /// Above every earlier one.
    pub counter: u64,
    /// For people.
    pub name: &'a str,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Unix milliseconds after which no device takes it; 0: never.
    pub expires_ms: u64,
}

/// The manifest of a release of `bundle`: every file with its hash and the hashes of its blocks, `manifest.json` first.
///
/// # Errors
/// [`SignError::Bundle`] when it has more files or blocks than a release can name, [`SignError::Io`].
pub fn build_manifest(bundle: &Bundle, naming: Naming<'_>) -> Result<ReleaseManifest, SignError> {
    let refuse = |path: &Path, message: String| SignError::Bundle { path: path.to_owned(), message };
    let text = |what: &str, value: &str| {
        heapless::String::try_from(value).map_err(|_| refuse(bundle.root(), format!("the {what} {value:?} is longer than 64 bytes")))
    };
    let block_bytes = block_bytes(bundle, naming.block_bytes);
    let mut manifest = ReleaseManifest {
        format: 1,
        site: text("site", naming.site)?,
        channel: text("channel", naming.channel)?,
        counter: naming.counter,
        name: text("name", naming.name)?,
        block_bytes,
        expires_ms: naming.expires_ms,
        files: heapless::Vec::new(),
        blocks: heapless::Vec::new(),
    };
    let names = std::iter::once("manifest.json").chain(bundle.manifest().files.keys().map(String::as_str));
    for name in names {
        let path = bundle.path(name);
        if !is_inside(name) {
            return Err(refuse(&path, "its path leaves the bundle".to_owned()));
        }
        let (mut entry, blocks) = hash_file(&path, block_bytes as usize)?;
        for block in blocks {
            manifest.blocks.push(block).map_err(|_| {
                let message = format!("more than {MAX_BLOCKS} blocks of {block_bytes} bytes: weights of 16 bits take half the room");
                refuse(bundle.root(), message)
            })?;
        }
        entry.path = heapless::String::try_from(name).map_err(|_| refuse(&path, "its path is longer than 96 bytes".to_owned()))?;
        manifest.files.push(entry).map_err(|_| refuse(bundle.root(), format!("more than {MAX_FILES} files")))?;
    }
    Ok(manifest)
}

/// `least`, doubled until the bundle has no more blocks than a release may name, or a block cannot be larger.
fn block_bytes(bundle: &Bundle, least: u32) -> u32 {
    let manifest = std::fs::metadata(bundle.path("manifest.json")).map_or(0, |file| file.len());
    let sizes = || bundle.manifest().files.values().map(|file| file.bytes).chain([manifest]);
    let fits = |block: u32| sizes().map(|bytes| bytes.div_ceil(u64::from(block))).sum::<u64>() <= MAX_BLOCKS as u64;
    let mut block = least.max(1);
    while !fits(block) && block < MAX_BLOCK_BYTES {
        block = block.saturating_mul(2).min(MAX_BLOCK_BYTES);
    }
    block
}

fn hash_file(path: &Path, block_bytes: usize) -> Result<(ReleaseFile, Vec<heapless::String<64>>), SignError> {
    let io = |source| SignError::Io { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let (mut whole, mut entry, mut blocks) = (Sha256::new(), ReleaseFile::default(), Vec::new());
    let mut block = Vec::with_capacity(block_bytes);
    loop {
        block.clear();
        (&mut file).take(block_bytes as u64).read_to_end(&mut block).map_err(io)?;
        if block.is_empty() {
            break;
        }
        whole.update(&block);
        entry.bytes += block.len() as u64;
        blocks.push(hex_string(&Sha256::digest(&block)));
    }
    entry.sha256 = hex_string(&whole.finalize());
    Ok((entry, blocks))
}

fn hex_string(digest: &[u8]) -> heapless::String<64> {
    omnilabel_bundle::hex(digest).chars().collect()
}

/// Signs a manifest: Ed25519 over [`DOMAIN`] ‖ the exact JSON bytes that travel.
///
/// # Errors
/// [`SignError::Bundle`] when the JSON is longer than [`MAX_MANIFEST`].
pub fn sign(key: &SigningKey, manifest: &ReleaseManifest) -> Result<ReleaseMsg, SignError> {
    let json = serde_json::to_vec(manifest).map_err(SignError::Manifest)?;
    let signature = sign_bytes(key, &json);
    let refuse = |_| SignError::Bundle {
        path: PathBuf::from(manifest.name.as_str()),
        message: format!("its release manifest has {} bytes, {MAX_MANIFEST} at most: raise `release.block_bytes`", json.len()),
    };
    let bytes = heapless::Vec::from_slice(&json).map_err(refuse)?;
    let signature = heapless::Vec::from_slice(&signature).map_err(|_| SignError::Signature)?;
    Ok(ReleaseMsg { version: VERSION, manifest: bytes, signature, ..ReleaseMsg::default() })
}

/// The signature of a manifest's exact bytes.
pub fn sign_bytes(key: &SigningKey, manifest: &[u8]) -> [u8; 64] {
    key.sign(&[DOMAIN, manifest].concat()).to_bytes()
}

/// A set of release keys with the root key's signature, as it lies in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedKeys {
    /// The exact JSON of a [`KeySet`].
    keys: String,
    /// Signature over [`KEYS_DOMAIN`] ‖ keys, hex.
    signature: String,
    /// The root key that signed, hex: what devices were provisioned with.
    root: String,
}

impl SignedKeys {
    /// Signs a set with the root key. `newest` is the newest release by channel.
    ///
    /// # Errors
    /// [`SignError::Keys`] when the set is too large or not well-formed.
    pub fn sign(root: &SigningKey, site: &str, serial: u64, keys: &[VerifyingKey], newest: &[(String, u64)]) -> Result<Self, SignError> {
        let refuse = |message: &str| SignError::Keys { message: message.to_owned() };
        let site = heapless::String::try_from(site).map_err(|_| refuse("the site's name is longer than 64 bytes"))?;
        let mut set = KeySet { format: 1, site, serial, ..KeySet::default() };
        for (channel, counter) in newest {
            let channel = heapless::String::try_from(channel.as_str()).map_err(|_| refuse("a channel's name is longer than 64 bytes"))?;
            if *counter >= MAX_COUNTER || set.newest_of(&channel).is_some() {
                return Err(refuse(&format!("the newest release of {channel} is given twice, or is not below 2⁴⁸")));
            }
            let newest = Newest { channel, counter: *counter };
            set.newest.push(newest).map_err(|_| refuse(&format!("more than {MAX_KEYS} channels")))?;
        }
        for key in keys {
            set.keys.push(hex_string(key.as_bytes())).map_err(|_| refuse(&format!("more than {MAX_KEYS} keys")))?;
        }
        set.check(&set.site, 0).map_err(|error| refuse(&error.to_string()))?;
        let json = serde_json::to_string(&set).map_err(SignError::Manifest)?;
        if json.len() > MAX_KEY_SET {
            return Err(refuse(&format!("the set has {} bytes, {MAX_KEY_SET} at most: fewer keys or channels", json.len())));
        }
        let signature = root.sign(&[KEYS_DOMAIN, json.as_bytes()].concat()).to_bytes();
        let (signature, root) = (omnilabel_bundle::hex(&signature), omnilabel_bundle::hex(root.verifying_key().as_bytes()));
        Ok(Self { keys: json, signature, root })
    }

    /// Reads a file and checks that the set is what its root key signed, for `site`, with `key` in it.
    ///
    /// # Errors
    /// [`SignError::Io`], [`SignError::Keys`].
    pub fn read(path: &Path, site: &str, key: &VerifyingKey) -> Result<Self, SignError> {
        let refuse = |message: String| SignError::Keys { message: format!("{}: {message}", path.display()) };
        let text = std::fs::read_to_string(path).map_err(|source| SignError::Io { path: path.to_owned(), source })?;
        let signed: Self =
            serde_json::from_str(&text).map_err(|_| refuse("expected the file that `omnilabel-trainer keys` wrote".to_owned()))?;
        let root = omnilabel_bundle::unhex(&signed.root).and_then(|bytes| VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok());
        let signature = omnilabel_bundle::unhex(&signed.signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
        let (Some(root), Some(signature)) = (root, signature) else {
            return Err(refuse(
                "`root` is no Ed25519 key or `signature` no signature: write the file anew with `omnilabel-trainer keys`".to_owned(),
            ));
        };
        let good = root.verify_strict(&[KEYS_DOMAIN, signed.keys.as_bytes()].concat(), &signature);
        good.map_err(|_| refuse("the signature is not the root key's".to_owned()))?;
        let set: KeySet = serde_json::from_str(&signed.keys).map_err(|error| refuse(error.to_string()))?;
        set.check(site, 0).map_err(|error| refuse(error.to_string()))?;
        if set.keys.iter().all(|known| *known != hex_string(key.as_bytes())) {
            return Err(refuse("devices would refuse every release: `release.key` is not in the set".to_owned()));
        }
        Ok(signed)
    }

    /// Whether it names the newest release of `channel`.
    ///
    /// # Errors
    /// [`SignError::Keys`] when it does not.
    pub fn check_channel(&self, channel: &str) -> Result<(), SignError> {
        let set: KeySet = serde_json::from_str(&self.keys).map_err(SignError::Manifest)?;
        let refuse = || SignError::Keys {
            message: format!(
                "the set does not name the newest release of the channel {channel}: sign the next one with `omnilabel-trainer keys … --newest {channel}=COUNTER`"
            ),
        };
        set.newest_of(channel).map(|_| ()).ok_or_else(refuse)
    }

    /// Puts the set into a release's message.
    ///
    /// # Errors
    /// [`SignError::Keys`] when it is too large.
    pub fn attach(&self, message: &mut ReleaseMsg) -> Result<(), SignError> {
        let long = |_| SignError::Keys { message: format!("the set has {} bytes, {MAX_KEY_SET} at most", self.keys.len()) };
        message.keys = heapless::Vec::from_slice(self.keys.as_bytes()).map_err(long)?;
        let unreadable = || SignError::Keys { message: "the signature is not hex".to_owned() };
        let signature = omnilabel_bundle::unhex(&self.signature).ok_or_else(unreadable)?;
        message.keys_signature = heapless::Vec::from_slice(&signature).map_err(long)?;
        Ok(())
    }
}

/// Checks a signature strictly, and only then parses the manifest.
///
/// # Errors
/// [`SignError::Signature`], [`SignError::Manifest`].
pub fn verify(key: &VerifyingKey, message: &ReleaseMsg) -> Result<ReleaseManifest, SignError> {
    let signature = Signature::from_slice(&message.signature).map_err(|_| SignError::Signature)?;
    key.verify_strict(&[DOMAIN, &message.manifest].concat(), &signature).map_err(|_| SignError::Signature)?;
    serde_json::from_slice(&message.manifest).map_err(SignError::Manifest)
}

/// First 8 bytes of the SHA-256 of the manifest of a release's bundle, as labels name it.
pub fn model_hash(manifest: &ReleaseManifest) -> Option<u64> {
    let file = manifest.files.iter().find(|file| file.path == "manifest.json")?;
    Some(u64::from_be_bytes(*omnilabel_bundle::unhex(&file.sha256)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ReleaseManifest {
        ReleaseManifest {
            format: 1,
            site: "home".try_into().unwrap(),
            channel: "stable".try_into().unwrap(),
            counter: 3,
            name: "round-3".try_into().unwrap(),
            block_bytes: 4096,
            expires_ms: 0,
            files: heapless::Vec::new(),
            blocks: heapless::Vec::new(),
        }
    }

    #[test]
    fn any_flipped_bit_breaks_the_signature() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = keygen(dir.path()).unwrap();
        let (private, public) = (read_key(&private).unwrap(), read_public(&public).unwrap());
        let good = sign(&private, &manifest()).unwrap();
        assert_eq!(verify(&public, &good).unwrap(), manifest());
        for index in 0..(good.manifest.len() + good.signature.len()) * 8 {
            let mut bad = good.clone();
            let byte = index / 8;
            let target = if byte < bad.manifest.len() { &mut bad.manifest[byte] } else { &mut bad.signature[byte - good.manifest.len()] };
            *target ^= 1 << (index % 8);
            assert!(matches!(verify(&public, &bad), Err(SignError::Signature)), "bit {index}");
        }
    }

    #[test]
    fn a_set_of_release_keys_is_the_roots_for_its_site_and_with_the_key_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let (root, key, other) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]), SigningKey::from_bytes(&[9; 32]));
        let signed = SignedKeys::sign(&root, "yard", 2, &[key.verifying_key()], &[]).unwrap();
        let write = |keys: &SignedKeys| std::fs::write(&path, serde_json::to_string(keys).unwrap()).unwrap();
        let read = |site: &str, key: &SigningKey| SignedKeys::read(&path, site, &key.verifying_key()).map_err(|error| error.to_string());
        write(&signed);
        assert_eq!(read("yard", &key).unwrap(), signed);
        assert!(read("field", &key).unwrap_err().contains("another site"));
        assert!(read("yard", &other).unwrap_err().contains("not in the set"));
        write(&SignedKeys { keys: signed.keys.replace("\"serial\":2", "\"serial\":3"), ..signed.clone() });
        assert!(read("yard", &key).unwrap_err().contains("not the root key's"));
        std::fs::write(&path, "{}").unwrap();
        assert!(read("yard", &key).unwrap_err().contains("keys.json"));
        assert!(SignedKeys::sign(&root, "yard", 0, &[key.verifying_key()], &[]).is_err());
        assert!(SignedKeys::sign(&root, "yard", 1, &[], &[]).is_err());
        let newest = |newest: &[(&str, u64)]| {
            let newest: Vec<_> = newest.iter().map(|&(channel, counter)| (channel.to_owned(), counter)).collect();
            SignedKeys::sign(&root, "yard", 1, &[key.verifying_key()], &newest)
        };
        assert!(newest(&[("stable", 1 << 48)]).is_err() && newest(&[("stable", 3), ("stable", 4)]).is_err());
        let named = newest(&[("stable", 3)]).unwrap();
        assert!(named.check_channel("stable").is_ok() && named.check_channel("beta").unwrap_err().to_string().contains("beta"));
        assert!(SignedKeys::sign(&root, "yard", 1, &[key.verifying_key(); 9], &[]).is_err());

        let mut message = sign(&key, &manifest()).unwrap();
        signed.attach(&mut message).unwrap();
        let signature = Signature::from_slice(&message.keys_signature).unwrap();
        root.verifying_key().verify_strict(&[KEYS_DOMAIN, &message.keys].concat(), &signature).unwrap();
    }

    #[test]
    fn the_domain_is_part_of_what_is_signed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut message = sign(&key, &manifest()).unwrap();
        message.signature = heapless::Vec::from_slice(&key.sign(&message.manifest).to_bytes()).unwrap();
        assert!(verify(&key.verifying_key(), &message).is_err());
        assert!(verify(&SigningKey::from_bytes(&[8; 32]).verifying_key(), &sign(&key, &manifest()).unwrap()).is_err());
    }

    #[test]
    fn key_files_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (private, _) = keygen(dir.path()).unwrap();
        let key = read_key(&private).unwrap();
        assert!(keygen(dir.path()).unwrap_err().to_string().contains("never overwritten"));
        assert_eq!(read_key(&private).unwrap(), key);
        // Half of all private keys are points of the curve, too.
        let renamed = dir.path().join("other.pub");
        std::fs::copy(&private, &renamed).unwrap();
        for path in [&private, &renamed] {
            assert!(read_public(path).unwrap_err().to_string().contains("a public"), "{}", path.display());
        }
        // Keys of before have no tag.
        std::fs::write(&private, omnilabel_bundle::hex(&key.to_bytes())).unwrap();
        assert_eq!(read_key(&private).unwrap(), key);
        let mut mode = std::fs::metadata(&private).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o644);
        std::fs::set_permissions(&private, mode).unwrap();
        assert!(read_key(&private).unwrap_err().to_string().contains("0600"));
        std::fs::write(&private, "zz").unwrap();
        assert!(read_key(&private).unwrap_err().to_string().contains("release.key"));
    }

    #[test]
    fn blocks_cover_the_file_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i * 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let (entry, found) = hash_file(&path, 4096).unwrap();
        let blocks: Vec<_> = bytes.chunks(4096).map(|b| hex_string(&Sha256::digest(b))).collect();
        assert_eq!((entry.bytes, found), (10_000, blocks));
        assert_eq!(entry.sha256, hex_string(&Sha256::digest(&bytes)));
    }
}
