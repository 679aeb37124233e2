//! Labels of people in the formats of other tools, in and out. What comes in becomes a COCO keypoint folder, the project's own format.
//!
//! ```text
//! a tool's files ─▶ Draft (names, pixels and boxes as the tool means them) ─▶ Dataset ─▶ a tool's files
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`recognise`] | which format files are in |
//! | `draft` | names matched, half pixels, boxes, ids: a draft becomes a data set |
//! | `pictures` | finding, measuring and copying pictures |
//! | `coco` | COCO keypoints as CVAT, FiftyOne and others write them |
//! | `cvat` | CVAT for images 1.1 |
//! | `label_studio` | Label Studio's JSON |
//! | `ultralytics` | Ultralytics' pose folders |
//! | [`table`] | Parquet, one row a person; out only |

mod coco;
mod cvat;
mod draft;
mod label_studio;
mod pictures;
pub mod recognise;
pub mod table;
mod ultralytics;

use omnilabel_coco::{CocoError, Dataset};
use omnilabel_keypoints::skeleton::Skeleton;
use std::path::{Path, PathBuf};

/// The largest file of annotations that is read, bytes.
const MAX_FILE: u64 = 2 << 30;

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// COCO keypoints: `annotations.json` and `images/`
    Coco,
    /// FiftyOne's COCODetectionDataset: `labels.json` and `data/`
    Fiftyone,
    /// CVAT for images 1.1: `annotations.xml` and `images/`
    Cvat,
    /// Label Studio's JSON with rectangles and keypoints
    LabelStudio,
    /// Ultralytics' pose folders: `data.yaml`, `images/` and `labels/`
    Ultralytics,
}

impl Format {
    /// What its keypoints' coordinates count from.
    pub const fn coordinates(self) -> Coordinates {
        match self {
            Self::Coco | Self::Fiftyone => Coordinates::Index,
            Self::Cvat | Self::LabelStudio | Self::Ultralytics => Coordinates::Continuous,
        }
    }

    /// As the command line calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coco => "coco",
            Self::Fiftyone => "fiftyone",
            Self::Cvat => "cvat",
            Self::LabelStudio => "label-studio",
            Self::Ultralytics => "ultralytics",
        }
    }

    /// The folder of its pictures.
    pub const fn pictures(self) -> &'static str {
        if matches!(self, Self::Fiftyone) { "data" } else { "images" }
    }
}

/// What the coordinates of keypoints count from. Boxes are continuous in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Coordinates {
    /// The centre of the first pixel is 0, as in COCO
    Index,
    /// The edge of the picture is 0 and the centre of the first pixel 0.5
    Continuous,
}

impl Coordinates {
    /// From these to COCO's.
    const fn to_index(self) -> f64 {
        match self {
            Self::Index => 0.0,
            Self::Continuous => -0.5,
        }
    }
}

/// Why files were refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in a file is not what it has to be.
    #[error("{}: {at}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, element or id.
        at: String,
        /// What is there, and what was expected.
        message: String,
    },
    /// As a whole it is no set of labels in a known format.
    #[error("{}: {message}", path.display())]
    Whole {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what was expected.
        message: String,
    },
    /// Our own format.
    #[error(transparent)]
    Coco(#[from] CocoError),
}

impl FormatError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    fn whole(path: &Path, message: impl Into<String>) -> Self {
        Self::Whole { path: path.to_owned(), message: message.into() }
    }

    fn content(path: &Path, at: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), at: at.into(), message: message.into() }
    }
}

/// What somebody says about files beside their place.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What the keypoints are to be: matched by name, or by number where the files have no names. The files' own without it.
    pub skeleton: Option<Skeleton>,
    /// The class, category or label of people, where there are several.
    pub category: Option<String>,
    /// The split of an Ultralytics folder, or `all`.
    pub split: Option<String>,
    /// Where the pictures lie; beside the annotations without it.
    pub pictures: Option<PathBuf>,
    /// What coordinates count from; what the format's own tool means without it.
    pub coordinates: Option<Coordinates>,
}

/// What an import made.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The folder that was written, read again.
    pub dataset: Dataset,
    /// What a person should know: what was left out, what was not in the files.
    pub notes: Vec<String>,
}

/// Makes the COCO keypoint folder `out` of `file`, which is in `format` (see [`recognise::recognise`]).
///
/// # Errors
/// See [`FormatError`]: a file that is not what its format says, a picture that is missing or has another size, keypoints that are not the
/// skeleton's, a folder `out` that is there. Nothing is left behind then.
pub fn import(format: Format, file: &Path, options: &ImportOptions, out: &Path) -> Result<Imported, FormatError> {
    let draft = match format {
        Format::Coco | Format::Fiftyone => coco::read(file, options)?,
        Format::Cvat => cvat::read(file, options)?,
        Format::LabelStudio => label_studio::read(file, options)?,
        Format::Ultralytics => ultralytics::read(file, options)?,
    };
    let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // FiftyOne's and COCO's annotations may lie in a folder beside that of the pictures.
    let beside = if beside.file_name().is_some_and(|name| name == "annotations") { beside.parent().unwrap_or(beside) } else { beside };
    let coordinates = options.coordinates.unwrap_or(format.coordinates());
    let root = options.pictures.as_deref().unwrap_or(beside);
    let (mut dataset, mut notes) = (None, Vec::new());
    write_folder(out, |part| {
        let (mut made, told) = draft.finish(options.skeleton.as_ref(), coordinates, root, part)?;
        made.root = part.to_owned();
        made.write(part)?;
        (dataset, notes) = (Some(Dataset::load(part)?), told);
        Ok(())
    })?;
    match dataset {
        Some(dataset) => Ok(Imported { dataset: Dataset { root: out.to_owned(), ..dataset }, notes }),
        None => Err(FormatError::whole(out, "nothing was written")),
    }
}

/// What the files of a data set cannot carry, by count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Crowd regions.
    pub crowds: u64,
    /// Keypoints outside of their picture.
    pub keypoints: u64,
    /// Boxes that were cut at the picture's edge.
    pub boxes: u64,
}

/// Writes a data set's labels into the folder `out` in `format`. Its pictures have to lie in [`Format::pictures`] of that folder.
///
/// # Errors
/// See [`FormatError`].
pub fn write_labels(dataset: &Dataset, format: Format, coordinates: Option<Coordinates>, out: &Path) -> Result<Lost, FormatError> {
    let shift = -coordinates.unwrap_or(format.coordinates()).to_index();
    match format {
        Format::Coco => coco::write(dataset, shift, &out.join("annotations.json")),
        Format::Fiftyone => coco::write(dataset, shift, &out.join("labels.json")),
        Format::Cvat => cvat::write(dataset, shift, &out.join("annotations.xml")),
        Format::LabelStudio => label_studio::write(dataset, shift, out),
        Format::Ultralytics => ultralytics::write(dataset, shift, out),
    }
}

/// Writes a data set with its pictures as the new folder `out` in `format`.
///
/// # Errors
/// See [`FormatError`]; a folder `out` that is there is one. Nothing is left behind then.
pub fn export(dataset: &Dataset, format: Format, coordinates: Option<Coordinates>, out: &Path) -> Result<Lost, FormatError> {
    let mut lost = Lost::default();
    write_folder(out, |part| {
        let folder = part.join(format.pictures());
        std::fs::create_dir_all(&folder).map_err(FormatError::io(&folder))?;
        for image in &dataset.images {
            pictures::copy(&dataset.image_path(image), &folder.join(&image.file_name))?;
        }
        lost = write_labels(dataset, format, coordinates, part)?;
        Ok(())
    })?;
    Ok(lost)
}

/// Writes a folder beside its place and puts it there when it is whole.
///
/// # Errors
/// What `write` says, what the system says, and a folder that is there.
pub fn write_folder(out: &Path, write: impl FnOnce(&Path) -> Result<(), FormatError>) -> Result<(), FormatError> {
    if out.exists() {
        return Err(FormatError::whole(out, "is there already, expected the name of a new folder"));
    }
    let mut part = out.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    std::fs::create_dir_all(&part).map_err(FormatError::io(&part))?;
    let written = write(&part).and_then(|()| std::fs::rename(&part, out).map_err(FormatError::io(out)));
    if written.is_err() {
        // What went wrong is told already.
        drop(std::fs::remove_dir_all(&part));
    }
    written
}

/// A whole file of annotations.
fn read_file(path: &Path) -> Result<Vec<u8>, FormatError> {
    let length = std::fs::metadata(path).map_err(FormatError::io(path))?.len();
    if length > MAX_FILE {
        return Err(FormatError::whole(path, format!("the file has {length} bytes, expected at most {MAX_FILE}")));
    }
    std::fs::read(path).map_err(FormatError::io(path))
}

/// The same as text.
fn read_text(path: &Path) -> Result<String, FormatError> {
    let text = String::from_utf8(read_file(path)?).map_err(|error| FormatError::whole(path, format!("not UTF-8: {error}")))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests;
