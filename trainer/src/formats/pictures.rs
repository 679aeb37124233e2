//! Pictures beside annotations: found by name, measured by their header, copied.

use super::FormatError;
use omnilabel_detect::frame::MAX_FRAME_SIDE;
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// Folders in each other that are searched.
const MAX_DEPTH: usize = 12;
/// Pictures of one set.
const MAX_PICTURES: usize = 10_000_000;

/// Whether a file is called as the pictures that can be read.
pub(super) fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// All pictures below a folder, by ascending path.
///
/// # Errors
/// A folder that cannot be read, or holds too much.
pub(super) fn below(root: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let (mut open, mut found) = (vec![(root.to_owned(), 0)], Vec::new());
    // A folder that links lead to many times is looked into once.
    let mut known = HashSet::new();
    while let Some((folder, depth)) = open.pop() {
        if !known.insert(std::fs::canonicalize(&folder).map_err(FormatError::io(&folder))?) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(FormatError::io(&folder))? {
            let path = entry.map_err(FormatError::io(&folder))?.path();
            if path.is_dir() {
                if depth < MAX_DEPTH {
                    open.push((path, depth + 1));
                }
            } else if is_picture(&path) {
                found.push(path);
            }
            if found.len() > MAX_PICTURES {
                return Err(FormatError::whole(root, format!("more than {MAX_PICTURES} pictures below it")));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Pictures by the name that annotations give them.
pub(super) struct Pictures {
    root: PathBuf,
    by_name: HashMap<String, Vec<PathBuf>>,
}

impl Pictures {
    /// Those below a folder.
    ///
    /// # Errors
    /// See [`below`].
    pub(super) fn of(root: &Path) -> Result<Self, FormatError> {
        let mut by_name: HashMap<String, Vec<PathBuf>> = HashMap::new();
        for path in below(root)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            by_name.entry(name).or_default().push(path);
        }
        Ok(Self { root: root.to_owned(), by_name })
    }

    /// The one whose path ends with `name`; that in the folder itself where there are several.
    ///
    /// # Errors
    /// In words: none, or several.
    pub(super) fn find(&self, name: &str) -> Result<&Path, String> {
        let last = name.rsplit('/').next().unwrap_or(name);
        let called: Vec<&PathBuf> = self.by_name.get(last).into_iter().flatten().filter(|path| path.ends_with(name)).collect();
        match called[..] {
            [one] => Ok(one.as_path()),
            [] => {
                Err(format!("no picture {name:?} (JPEG or PNG) below {}; --pictures names the folder of the pictures", self.root.display()))
            }
            _ => called.iter().find(|path| ***path == self.root.join(name)).map(|path| path.as_path()).ok_or_else(|| {
                format!("{} pictures are called {name:?}: {}, {}, …", called.len(), called[0].display(), called[1].display())
            }),
        }
    }
}

/// A picture's name as a path below `images/`; `None` of one that leads elsewhere.
pub(super) fn clean(name: &str) -> Option<String> {
    let name = name.replace('\\', "/");
    let mut parts = Vec::new();
    for part in Path::new(&name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty() && !name.contains('\0')).then(|| parts.join("/"))
}

/// Width and height of a picture, by its header, px.
///
/// # Errors
/// What is no picture that can be read.
pub(super) fn dimensions(path: &Path) -> Result<(u32, u32), FormatError> {
    let reader = image::ImageReader::open(path).and_then(image::ImageReader::with_guessed_format).map_err(FormatError::io(path))?;
    let (width, height) =
        reader.into_dimensions().map_err(|error| FormatError::whole(path, format!("expected a JPEG or a PNG: {error}")))?;
    if !(1..=MAX_FRAME_SIDE).contains(&width) || !(1..=MAX_FRAME_SIDE).contains(&height) {
        return Err(FormatError::whole(path, format!("{width}×{height} px, expected sides of 1 to {MAX_FRAME_SIDE} px")));
    }
    Ok((width, height))
}

/// Copies a picture, and makes the folders that its name asks for.
///
/// # Errors
/// What the system says.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), FormatError> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(FormatError::io(folder))?;
    }
    std::fs::copy(from, to).map_err(FormatError::io(from)).map(drop)
}
