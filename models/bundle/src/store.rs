//! Bundles on disk.

use crate::check::{DETECTOR, MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, check_path, max_bytes};
use crate::{FORMAT, FileEntry, Manifest, onnx};
use omnilabel_keypoints::skeleton::Skeleton;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Why a bundle was refused; names the file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `manifest.json` is not JSON of the expected shape.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The manifest has a format this code does not know.
    #[error("{path}: manifest format {found}, expected {expected}")]
    Format {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// [`crate::FORMAT`].
        expected: u32,
    },
    /// A file has another size or hash than the manifest says.
    #[error("{path}: {what} is {found}, the manifest says {expected}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// `size` or `sha256`.
        what: &'static str,
        /// On disk.
        found: String,
        /// In the manifest.
        expected: String,
    },
    /// Anything else the manifest says that cannot be.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// A bundle whose every file has the size and hash of its manifest.
#[derive(Clone, Debug)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
    manifest_sha256: [u8; 32],
    skeleton: Skeleton,
}

impl Bundle {
    /// Opens and verifies a bundle: format and numbers of the manifest, no file missing, none too many, no link, sizes, hashes,
    /// ONNX external data inside.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn open(root: &Path) -> Result<Self, BundleError> {
        let path = root.join(MANIFEST);
        let mut bytes = Vec::new();
        let file = open_file(&path, MAX_MANIFEST_BYTES)?;
        file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).map_err(io(&path))?;
        let bundle = Self::from_manifest(root, &path, &bytes)?;
        bundle.verify()?;
        Ok(bundle)
    }

    fn from_manifest(root: &Path, path: &Path, bytes: &[u8]) -> Result<Self, BundleError> {
        /// Read first: a manifest of another format may have another shape.
        #[derive(serde::Deserialize)]
        struct Probe {
            format: u32,
        }
        let json = |source| BundleError::Json { path: path.to_owned(), source };
        let found = serde_json::from_slice::<Probe>(bytes).map_err(json)?.format;
        if found != FORMAT {
            return Err(BundleError::Format { path: path.to_owned(), found, expected: FORMAT });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check().map_err(|message| content(path, message))?;
        let skeleton = manifest.skeleton.skeleton().map_err(|e| content(path, format!("skeleton: {e}")))?;
        Ok(Self { root: root.to_owned(), manifest, manifest_sha256: Sha256::digest(bytes).into(), skeleton })
    }

    fn verify(&self) -> Result<(), BundleError> {
        let on_disk = list(&self.root)?;
        for name in self.manifest.files.keys() {
            if !on_disk.contains_key(name) {
                return Err(content(&self.path(name), "the manifest lists this file, but it is missing".to_owned()));
            }
        }
        for (name, &bytes) in &on_disk {
            let Some(entry) = self.manifest.files.get(name) else {
                return Err(content(&self.path(name), "the manifest does not list this file".to_owned()));
            };
            if bytes != entry.bytes {
                return Err(mismatch(self.path(name), "size", bytes.to_string(), entry.bytes.to_string()));
            }
        }
        for (name, entry) in &self.manifest.files {
            let found = hex(&sha256_file(&self.path(name))?);
            if found != entry.sha256 {
                return Err(mismatch(self.path(name), "sha256", found, entry.sha256.clone()));
            }
        }
        check_external_data(&self.root, &self.manifest.files)?;
        check_detector(&self.root, &self.manifest)
    }

    /// The bundle that finds people for this top-down model, where one lies inside.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn detector(&self) -> Result<Option<Bundle>, BundleError> {
        open_detector(&self.root, &self.manifest)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the manifest's bytes: the bundle's identity.
    pub fn sha256(&self) -> [u8; 32] {
        self.manifest_sha256
    }

    /// The skeleton.
    pub fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    /// A file of the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Hashes every file below `root` but the manifest into `manifest.files` and writes `manifest.json` last, atomically. The same
/// files and manifest give the same bytes.
///
/// # Errors
/// See [`BundleError`]; nothing is written when the manifest or a file would be refused by [`Bundle::open`].
pub fn seal(root: &Path, mut manifest: Manifest) -> Result<Bundle, BundleError> {
    let path = root.join(MANIFEST);
    let partial = root.join(PARTIAL);
    match fs::remove_file(&partial) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&partial)(e)),
        _ => {}
    }
    manifest.files.clear();
    for (name, bytes) in list(root)? {
        let sha256 = hex(&sha256_file(&root.join(&name))?);
        manifest.files.insert(name, FileEntry { bytes, sha256 });
    }
    manifest.check().map_err(|message| content(&path, message))?;
    check_external_data(root, &manifest.files)?;
    check_detector(root, &manifest)?;
    let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(|source| BundleError::Json { path: path.clone(), source })?;
    bytes.push(b'\n');
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(content(&path, format!("{} bytes, at most {MAX_MANIFEST_BYTES}", bytes.len())));
    }
    for name in manifest.files.keys() {
        let file = root.join(name);
        File::open(&file).and_then(|f| f.sync_all()).map_err(io(&file))?;
    }
    let mut file = File::create(&partial).map_err(io(&partial))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io(&partial))?;
    fs::rename(&partial, &path).map_err(io(&path))?;
    File::open(root).and_then(|dir| dir.sync_all()).map_err(io(root))?;
    Bundle::from_manifest(root, &path, &bytes)
}

/// SHA-256 of a file, streamed.
///
/// # Errors
/// [`BundleError::Io`].
pub fn sha256_file(path: &Path) -> Result<[u8; 32], BundleError> {
    let mut file = File::open(path).map_err(io(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io(path))? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Makes a bundle in a folder of its own, which gets the name `out` when `make` is done: nothing half-made ever stands
/// there. Returns the bundle and what `make` did.
///
/// # Errors
/// Those of `make`; [`BundleError`] where `out` is not an empty place outside of other bundles, or what was made is no bundle.
pub fn build<T, E: From<BundleError>>(out: &Path, make: impl FnOnce(&Path) -> Result<T, E>) -> Result<(Bundle, T), E> {
    may_become_bundle(out)?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io(parent))?;
    let part = parent.join(format!(".omnilabel-{}.part", std::process::id()));
    // A name that is taken is somebody else's.
    fs::create_dir(&part).map_err(io(&part))?;
    let made = make(&part).and_then(|made| {
        if out.exists() {
            fs::remove_dir(out).map_err(io(out))?;
        }
        fs::rename(&part, out).map_err(io(out))?;
        Ok((Bundle::open(out)?, made))
    });
    if made.is_err() {
        // The reason matters more than what could not be tidied up behind it.
        let _ = fs::remove_dir_all(&part);
    }
    made
}

/// Whether a bundle may be made at `out`, for whoever wants to know before the work: whatever else lies in a bundle's folder would become
/// part of it, and it would become part of a bundle around it.
///
/// # Errors
/// [`BundleError::Content`] says what stands in the way.
pub fn may_become_bundle(out: &Path) -> Result<(), BundleError> {
    if let Some(outer) = out.ancestors().skip(1).find(|folder| !folder.as_os_str().is_empty() && folder.join(MANIFEST).is_file()) {
        return Err(content(out, format!("it lies inside of the bundle {}, which would be damaged", outer.display())));
    }
    match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(content(out, "the folder is not empty".to_owned())),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(out)(error)),
        _ => Ok(()),
    }
}

/// Lowercase hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes of hex digits, lower or upper case; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// What a manifest is called while it is being written.
const PARTIAL: &str = "manifest.json.partial";

/// Every file below `root` but the manifest, by its `/`-separated path, with its size. The root may be reached through a link;
/// anything below it that is neither a folder nor a plain file is refused.
fn list(root: &Path) -> Result<BTreeMap<String, u64>, BundleError> {
    let mut files = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let dir = root.join(&folder);
        for entry in fs::read_dir(&dir).map_err(io(&dir))? {
            let entry = entry.map_err(io(&dir))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(content(&path, "the name is not UTF-8".to_owned()));
            };
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let meta = fs::symlink_metadata(&path).map_err(io(&path))?;
            if name == MANIFEST && meta.is_file() {
                continue;
            }
            check_path(&name).map_err(|message| content(&path, message.to_owned()))?;
            if meta.is_dir() {
                folders.push(name);
            } else if meta.is_file() {
                files.insert(name, meta.len());
            } else {
                return Err(content(&path, "a bundle holds plain files only, no link or device".to_owned()));
            }
            if files.len() + folders.len() > MAX_FILES {
                return Err(content(root, format!("more than {MAX_FILES} files")));
            }
        }
    }
    Ok(files)
}

/// External data of every graph lies in a listed file, within its size.
fn check_external_data(root: &Path, files: &BTreeMap<String, FileEntry>) -> Result<(), BundleError> {
    for name in files.keys().filter(|name| name.ends_with(".onnx")) {
        let path = root.join(name);
        let file = open_file(&path, max_bytes(name))?;
        for data in onnx::external_data(BufReader::new(file)).map_err(|message| content(&path, message))? {
            let refuse =
                |what: String| Err(content(&path, format!("tensor {:?}: external data in {:?}: {what}", data.tensor, data.location)));
            if let Err(message) = check_path(&data.location) {
                return refuse(message.to_owned());
            }
            // ONNX resolves the location against the folder of the graph.
            let file = match name.rsplit_once('/') {
                Some((folder, _)) => format!("{folder}/{}", data.location),
                None => data.location.clone(),
            };
            let Some(entry) = files.get(&file) else { return refuse("no such file in the bundle".to_owned()) };
            let end = data.offset.checked_add(data.length.unwrap_or(0));
            if end.is_none_or(|end| end > entry.bytes) {
                return refuse(format!("offset {} and length {:?} go beyond its {} bytes", data.offset, data.length, entry.bytes));
            }
        }
    }
    Ok(())
}

fn open_detector(root: &Path, manifest: &Manifest) -> Result<Option<Bundle>, BundleError> {
    if !manifest.files.contains_key(&format!("{DETECTOR}/{MANIFEST}")) {
        return Ok(None);
    }
    Bundle::open(&root.join(DETECTOR)).map(Some)
}

/// A detector stands in a top-down model's bundle, verifies, and finds people by itself.
fn check_detector(root: &Path, manifest: &Manifest) -> Result<(), BundleError> {
    let Some(detector) = open_detector(root, manifest)? else { return Ok(()) };
    let path = root.join(DETECTOR);
    if !manifest.network.takes_boxes() {
        return Err(content(&path, "a detector is for a top-down model, and this one finds people by itself".to_owned()));
    }
    if detector.manifest().network.takes_boxes() {
        return Err(content(&path, "the detector is a top-down model, which needs boxes itself".to_owned()));
    }
    Ok(())
}

/// Opens a plain file of at most `limit` bytes; a link is not followed.
fn open_file(path: &Path, limit: u64) -> Result<File, BundleError> {
    let meta = fs::symlink_metadata(path).map_err(io(path))?;
    if !meta.is_file() {
        return Err(content(path, "not a plain file".to_owned()));
    }
    if meta.len() > limit {
        return Err(content(path, format!("{} bytes, at most {limit}", meta.len())));
    }
    File::open(path).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::Io { path, source }
}

fn content(path: &Path, message: String) -> BundleError {
    BundleError::Content { path: path.to_owned(), message }
}

fn mismatch(path: PathBuf, what: &'static str, found: String, expected: String) -> BundleError {
    BundleError::Mismatch { path, what, found, expected }
}
