//! Which format files are in, by their contents.

use super::{Format, FormatError};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file that are looked at.
const HEAD: u64 = 4096;
/// Files of a folder that are looked at.
const MAX_LISTED: usize = 1000;

/// What is expected where nothing is recognised.
const EXPECTED: &str = "expected COCO keypoints (JSON), CVAT for images 1.1 (XML), Label Studio's JSON, or an Ultralytics `data.yaml`";

/// The format of a file, or of the one file of annotations in a folder, and that file. With `wanted` only such files count.
///
/// # Errors
/// A place where nothing, or more than one thing, is recognised.
pub fn recognise(from: &Path, wanted: Option<Format>) -> Result<(Format, PathBuf), FormatError> {
    if !from.is_dir() {
        let found = format_of(from)?;
        // COCO and FiftyOne write the same file.
        return match (found, wanted) {
            (Found::Format(found), Some(wanted)) if !same(found, wanted) => {
                Err(FormatError::whole(from, format!("this is {}, expected {}, as --format says", found.name(), wanted.name())))
            }
            (Found::Format(found), wanted) => Ok((wanted.unwrap_or(found), from.to_owned())),
            (Found::Zip, _) => Err(FormatError::whole(from, "this is a zip archive: unpack it, and name the folder")),
            (Found::Nothing, _) => Err(FormatError::whole(from, EXPECTED)),
        };
    }
    let mut found = Vec::new();
    for folder in [from.to_owned(), from.join("annotations")] {
        if !folder.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).map_err(FormatError::io(&folder))?.take(MAX_LISTED) {
            let path = entry.map_err(FormatError::io(&folder))?.path();
            let candidate =
                path.extension().is_some_and(|e| ["json", "xml", "yaml", "yml"].iter().any(|known| e.eq_ignore_ascii_case(known)));
            if candidate
                && path.is_file()
                && let Found::Format(format) = format_of(&path)?
                && wanted.is_none_or(|wanted| same(format, wanted))
            {
                found.push((wanted.unwrap_or(format), path));
            }
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(FormatError::whole(from, format!("no file of annotations in it: {EXPECTED}"))),
        count => {
            let names: Vec<String> = found.iter().take(5).map(|(_, path)| path.display().to_string()).collect();
            Err(FormatError::whole(from, format!("{count} files of annotations, name one of them: {}", names.join(", "))))
        }
    }
}

const fn same(found: Format, wanted: Format) -> bool {
    found as u8 == wanted as u8 || matches!((found, wanted), (Format::Coco, Format::Fiftyone) | (Format::Fiftyone, Format::Coco))
}

enum Found {
    Format(Format),
    Zip,
    Nothing,
}

fn format_of(path: &Path) -> Result<Found, FormatError> {
    let mut head = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head)).map_err(FormatError::io(path))?;
    let text = String::from_utf8_lossy(&head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let yaml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
    Ok(match text.as_bytes().first() {
        _ if head.starts_with(b"PK\x03\x04") => Found::Zip,
        Some(b'<') if text.contains("<annotations") => Found::Format(Format::Cvat),
        // A list of tasks, and not of results or of labels alone.
        Some(b'[') if text.contains("\"annotations\"") || text.contains("\"data\"") || text.contains("\"completions\"") => {
            Found::Format(Format::LabelStudio)
        }
        Some(b'{') if path.file_name().is_some_and(|name| name == "labels.json") => Found::Format(Format::Fiftyone),
        Some(b'{')
            if ["images", "annotations", "categories", "info", "licenses"].iter().any(|key| text.contains(&format!("\"{key}\""))) =>
        {
            Found::Format(Format::Coco)
        }
        Some(_) if yaml && std::fs::read_to_string(path).is_ok_and(|text| text.contains("kpt_shape")) => Found::Format(Format::Ultralytics),
        _ => Found::Nothing,
    })
}
