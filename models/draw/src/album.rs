//! A folder of drawn pictures with its contact sheet. It never writes over what somebody else put there.

use crate::sheet::{Card, GENERATOR, html};
use omnilabel_detect::frame::Frame;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

/// The JPEG quality of drawn pictures: letters and thin lines show what lower ones do.
const QUALITY: u8 = 92;
const INDEX: &str = "index.html";

/// Why pictures could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AlbumError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds something else.
    #[error("{0}: the folder is neither empty nor one that was drawn into before; choose another for the pictures")]
    Taken(PathBuf),
    /// The folder holds pictures that are to be drawn.
    #[error("{folder}: {input} lies in it, which is read and must not be overwritten; choose another folder for the pictures")]
    Input {
        /// The folder.
        folder: PathBuf,
        /// The picture.
        input: PathBuf,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> AlbumError + '_ {
    move |source| AlbumError::Io { path: path.to_owned(), source }
}

/// An open album. [`Album::finish`] writes the page.
#[derive(Debug)]
pub struct Album {
    folder: PathBuf,
    title: String,
    names: BTreeSet<String>,
    cards: Vec<Card>,
}

impl Album {
    /// Takes a new or empty folder, or one that was drawn into before, unless one of `inputs` lies in it.
    ///
    /// # Errors
    /// See [`AlbumError`].
    pub fn open<'i>(folder: &Path, title: &str, inputs: impl IntoIterator<Item = &'i Path>) -> Result<Self, AlbumError> {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let index = folder.join(INDEX);
        let mut entries = std::fs::read_dir(folder).map_err(io(folder))?;
        let ours = || std::fs::read(&index).is_ok_and(|page| page.windows(GENERATOR.len()).any(|part| part == GENERATOR.as_bytes()));
        if entries.next().is_some() && !ours() {
            return Err(AlbumError::Taken(folder.to_owned()));
        }
        let real = std::fs::canonicalize(folder).map_err(io(folder))?;
        for input in inputs {
            // One that cannot be found cannot be overwritten either.
            if std::fs::canonicalize(input).is_ok_and(|path| path.starts_with(&real)) {
                return Err(AlbumError::Input { folder: folder.to_owned(), input: input.to_owned() });
            }
        }
        // Claims the folder: after a run that was interrupted, the next one may go on here.
        write(&index, html(title, &[], &[], &[]).as_bytes())?;
        Ok(Self { folder: folder.to_owned(), title: title.to_owned(), names: BTreeSet::new(), cards: Vec::new() })
    }

    /// The file for a picture that is called `wanted`: its own name (a relative one with its folders), `.png` behind it where it is no
    /// JPEG or PNG, and a number where it is taken.
    pub fn name(&mut self, wanted: &Path) -> String {
        let wanted = if wanted.is_absolute() { wanted.file_name().map(Path::new).unwrap_or(wanted) } else { wanted };
        let parts = wanted.components().filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy()),
            _ => None,
        });
        let mut name = parts.collect::<Vec<_>>().join("/");
        let known = |name: &str| [".jpg", ".jpeg", ".png"].iter().any(|end| name.to_ascii_lowercase().ends_with(end));
        if !known(&name) {
            name += ".png";
        }
        let (stem, end) = name.rsplit_once('.').map(|(stem, end)| (stem.to_owned(), end.to_owned())).unwrap_or_default();
        let mut number = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{stem}-{number}.{end}");
            number += 1;
        }
        name
    }

    /// Writes a picture under a name that [`Album::name`] gave, in the format that the name says.
    ///
    /// # Errors
    /// [`AlbumError::Io`].
    pub fn save(&self, name: &str, picture: &Frame) -> Result<(), AlbumError> {
        let path = self.folder.join(name);
        let bytes = if name.to_ascii_lowercase().ends_with(".png") { picture.to_png() } else { picture.to_jpeg(QUALITY) };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        write(&path, &bytes)
    }

    /// Adds a picture to the end of the page.
    pub fn push(&mut self, card: Card) {
        self.cards.push(card);
    }

    /// How many pictures the page has.
    pub fn len(&self) -> usize {
        self.cards.len()
    }

    /// Whether the page has no picture.
    pub fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// Writes the page and returns its path.
    ///
    /// # Errors
    /// [`AlbumError::Io`].
    pub fn finish(self, summary: &[String], notes: &[String]) -> Result<PathBuf, AlbumError> {
        let index = self.folder.join(INDEX);
        write(&index, html(&self.title, summary, &self.cards, notes).as_bytes())?;
        Ok(index)
    }
}

/// Writes beside, then renames: a link that stands in the way is replaced, what it points to stays as it is.
fn write(path: &Path, bytes: &[u8]) -> Result<(), AlbumError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut file = std::fs::File::create(&part).map_err(io(&part))?;
    file.write_all(bytes).map_err(io(&part))?;
    std::fs::rename(&part, path).map_err(io(path))
}
