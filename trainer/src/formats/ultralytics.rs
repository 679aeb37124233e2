//! Ultralytics' pose folders (<https://docs.ultralytics.com/datasets/pose/>): `data.yaml` with `kpt_shape`, a text file for each picture,
//! a line `class cx cy w h` and `x y [v]` of each keypoint for each person, everything as a share of the picture, whose edge is 0.
//!
//! With two numbers a keypoint, a negative one means unlabelled (`ultralytics/data/utils.py`, `verify_image_label`), and so does (0, 0)
//! here, as converters write it. Its loader passes over a whole picture with a number outside of 0 to 1: what lies outside is cut off
//! when written.

use super::draft::{Draft, DraftImage, DraftPerson};
use super::{FormatError, ImportOptions, Lost, pictures, read_text};
use omnilabel_coco::Dataset;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use yaml_rust2::{Yaml, YamlLoader};

/// The largest `data.yaml`, bytes.
const MAX_YAML: usize = 1 << 20;
/// Lists in each other in `data.yaml`.
const MAX_DEPTH: i64 = 32;
/// What may lie outside of 0 to 1, as rounding leaves it; Ultralytics' own margin.
const MARGIN: f64 = 0.01;

/// What `data.yaml` says.
struct Spec {
    count: usize,
    dims: usize,
    flip: Option<Vec<u8>>,
    classes: Vec<(i64, String)>,
    names: Vec<(i64, Vec<String>)>,
    splits: Vec<(String, Vec<String>)>,
    roots: Vec<PathBuf>,
}

pub(super) fn read(path: &Path, options: &ImportOptions) -> Result<Draft, FormatError> {
    let spec = spec(path)?;
    let class = class(path, &spec, options)?;
    let named = spec.names.iter().find(|(of, _)| *of == class).map(|(_, names)| names.clone()).unwrap_or_default();
    if !named.is_empty() && named.len() != spec.count {
        let message = format!("{} names of class {class}, expected {} as kpt_shape says", named.len(), spec.count);
        return Err(FormatError::content(path, "kpt_names", message));
    }
    let mut draft = Draft { path: path.to_owned(), names: named, count: spec.count, flip: spec.flip.clone(), ..Draft::default() };
    let mut others = 0;
    let mut seen = BTreeSet::new();
    for entry in splits(path, &spec, options)? {
        for source in listed(path, &spec, entry, options)? {
            if seen.insert(source.clone()) {
                draft.images.push(image(source, &spec, class, &mut others)?);
            }
        }
    }
    if others > 0 {
        draft.notes.push(format!("{others} lines of other classes are left out"));
    }
    Ok(draft)
}

fn spec(path: &Path) -> Result<Spec, FormatError> {
    let wrong = |at: &str, message: String| FormatError::content(path, at, message);
    let text = read_text(path)?;
    if text.len() > MAX_YAML {
        return Err(FormatError::whole(path, format!("{} bytes, expected at most {MAX_YAML}", text.len())));
    }
    if let Some(line) = too_deep(&text) {
        return Err(wrong(&format!("line {line}"), format!("lists in lists in lists, expected at most {MAX_DEPTH} in each other")));
    }
    // An alias is a copy when it is read, and copies of copies grow without end.
    let alias = |word: &str| word.len() > 1 && word.starts_with(['*', '&']);
    if let Some(line) = text.lines().position(|line| line.split(|c: char| c.is_whitespace() || "[]{},:\"'".contains(c)).any(alias)) {
        return Err(wrong(&format!("line {}", line + 1), "anchors and aliases (& and *) are not read".to_owned()));
    }
    let documents = YamlLoader::load_from_str(&text)
        .map_err(|error| wrong(&format!("line {}", error.marker().line()), format!("not YAML: {error}")))?;
    let root =
        documents.first().filter(|root| root.as_hash().is_some()).ok_or_else(|| wrong("line 1", "expected keys and values".to_owned()))?;
    let numbers = |value: &Yaml| value.as_vec().and_then(|list| list.iter().map(Yaml::as_i64).collect::<Option<Vec<i64>>>());
    let shape = numbers(&root["kpt_shape"]).unwrap_or_default();
    let (count, dims) = match shape[..] {
        [count, dims @ (2 | 3)] if (1..=255).contains(&count) => (count as usize, dims as usize),
        _ => return Err(wrong("kpt_shape", format!("{shape:?}, expected [keypoints, 2 or 3]"))),
    };
    let flip = match &root["flip_idx"] {
        Yaml::BadValue | Yaml::Null => None,
        value => {
            let flip = numbers(value).unwrap_or_default();
            let index = |i: &i64| u8::try_from(*i).ok().filter(|i| usize::from(*i) < count);
            let flip: Option<Vec<u8>> = flip.iter().map(index).collect();
            Some(
                flip.filter(|flip| flip.len() == count)
                    .ok_or_else(|| wrong("flip_idx", format!("expected {count} numbers from 0 to {}", count - 1)))?,
            )
        }
    };
    let mut spec = Spec { count, dims, flip, classes: Vec::new(), names: Vec::new(), splits: Vec::new(), roots: Vec::new() };
    let text_of = |value: &Yaml| value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|number| number.to_string()));
    for (number, value) in numbered(&root["names"]) {
        spec.classes.push((number, text_of(value).ok_or_else(|| wrong("names", "expected the names of classes".to_owned()))?));
    }
    for (number, value) in numbered(&root["kpt_names"]) {
        let names: Option<Vec<String>> = value.as_vec().and_then(|names| names.iter().map(text_of).collect());
        spec.names.push((number, names.ok_or_else(|| wrong("kpt_names", "expected a list of names for each class".to_owned()))?));
    }
    for split in ["train", "val", "test"] {
        let places = match &root[split] {
            Yaml::BadValue | Yaml::Null => continue,
            Yaml::Array(list) => list.iter().map(text_of).collect::<Option<Vec<String>>>(),
            value => text_of(value).map(|place| vec![place]),
        };
        spec.splits
            .push((split.to_owned(), places.ok_or_else(|| wrong(split, "expected a folder, a list of files, or several".to_owned()))?));
    }
    let beside = path.parent().unwrap_or(Path::new("")).to_owned();
    spec.roots = root["path"].as_str().map(|root| beside.join(root)).into_iter().chain([beside]).collect();
    Ok(spec)
}

/// The line, if there is one, from which on brackets, or the dashes of one line, open more lists in each other than a reader that calls itself
/// for each has room for.
fn too_deep(text: &str) -> Option<usize> {
    let mut depth = 0_i64;
    for (number, line) in text.lines().enumerate() {
        let dashes = line.split_whitespace().take_while(|word| ["-", "?", ":"].contains(word)).count();
        for c in line.chars() {
            depth += i64::from(matches!(c, '[' | '{')) - i64::from(matches!(c, ']' | '}'));
            if depth > MAX_DEPTH {
                return Some(number + 1);
            }
        }
        if dashes as i64 > MAX_DEPTH {
            return Some(number + 1);
        }
    }
    None
}

/// A list, or a table with numbers as keys.
fn numbered(value: &Yaml) -> Vec<(i64, &Yaml)> {
    match value {
        Yaml::Array(list) => (0..).zip(list).collect(),
        Yaml::Hash(table) => table.iter().filter_map(|(key, value)| Some((key.as_i64()?, value))).collect(),
        _ => Vec::new(),
    }
}

/// The class of people.
fn class(path: &Path, spec: &Spec, options: &ImportOptions) -> Result<i64, FormatError> {
    let names: Vec<&String> = spec.classes.iter().map(|(_, name)| name).collect();
    match (&options.category, &spec.classes[..]) {
        (Some(wanted), classes) => classes
            .iter()
            .find(|(_, name)| name == wanted)
            .map(|(number, _)| *number)
            .ok_or_else(|| FormatError::content(path, "names", format!("there are {names:?}, expected {wanted:?} as --category says"))),
        (None, []) => Ok(0),
        (None, [(one, _)]) => Ok(*one),
        (None, _) => Err(FormatError::content(path, "names", format!("the classes {names:?}, expected --category to name one"))),
    }
}

/// The places of the split that is wanted.
fn splits<'s>(path: &Path, spec: &'s Spec, options: &ImportOptions) -> Result<Vec<&'s String>, FormatError> {
    let names: Vec<&String> = spec.splits.iter().map(|(name, _)| name).collect();
    let places =
        |wanted: &dyn Fn(&str) -> bool| spec.splits.iter().filter(|(name, _)| wanted(name)).flat_map(|(_, places)| places).collect();
    match (options.split.as_deref(), &spec.splits[..]) {
        (_, []) => Err(FormatError::content(path, "train", "no split, expected `train`, `val` or `test`")),
        (Some("all"), _) | (None, [_]) => Ok(places(&|_| true)),
        (Some(wanted), _) if spec.splits.iter().any(|(name, _)| name == wanted) => Ok(places(&|name| name == wanted)),
        (Some(wanted), _) => Err(FormatError::content(path, "splits", format!("there are {names:?}, expected {wanted:?} as --split says"))),
        // Who trains on one and judges on the other does not want them in one folder.
        (None, [(_, first), rest @ ..]) if rest.iter().all(|(_, places)| places == first) => Ok(first.iter().collect()),
        (None, _) => Err(FormatError::content(path, "splits", format!("there are {names:?}, expected --split to name one, or `all`"))),
    }
}

/// The pictures of one place of a split: those below a folder, or those that a text file lists.
fn listed(path: &Path, spec: &Spec, place: &str, options: &ImportOptions) -> Result<Vec<PathBuf>, FormatError> {
    // Exports name folders from where their maker thinks that the file lies.
    let short = place.trim_start_matches("../");
    let mut candidates = options.pictures.iter().chain(&spec.roots).flat_map(|root| [root.join(place), root.join(short)]);
    let found = candidates.find(|place| place.exists());
    let found = found.ok_or_else(|| FormatError::content(path, "splits", format!("{place:?} is not there, below {:?}", spec.roots)))?;
    if found.is_dir() {
        return pictures::below(&found);
    }
    let beside = found.parent().unwrap_or(Path::new(""));
    let text = read_text(&found)?;
    let lines = text.lines().enumerate().map(|(number, line)| (number, line.trim())).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            let mut candidates = std::iter::once(beside).chain(spec.roots.iter().map(PathBuf::as_path)).map(|root| root.join(line));
            let picture = candidates.find(|picture| picture.is_file());
            picture
                .ok_or_else(|| FormatError::content(&found, format!("line {}", number + 1), format!("the picture {line:?} is not there")))
        })
        .collect()
}

fn image(source: PathBuf, spec: &Spec, class: i64, others: &mut u64) -> Result<DraftImage, FormatError> {
    let parts: Vec<_> = source.components().collect();
    // The name below the last folder `images`; its labels lie below `labels` in its place.
    let images = parts.iter().rposition(|part| part.as_os_str() == "images").filter(|at| at + 1 < parts.len());
    let below = |from: usize| parts[from..].iter().collect::<PathBuf>();
    let (name, labels) = match images {
        Some(at) => (below(at + 1), parts[..at].iter().collect::<PathBuf>().join("labels").join(below(at + 1)).with_extension("txt")),
        None => (below(parts.len().saturating_sub(1)), source.with_extension("txt")),
    };
    let (width, height) = pictures::dimensions(&source)?;
    let mut image = DraftImage {
        at: source.display().to_string(),
        name: name.to_string_lossy().into_owned(),
        size: Some((width, height)),
        source: Some(source),
        ..DraftImage::default()
    };
    // A picture without a file shows nobody.
    if !labels.is_file() {
        return Ok(image);
    }
    let text = read_text(&labels)?;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = format!("line {}", number + 1);
        let wrong = |message: String| FormatError::content(&labels, at.clone(), message);
        let numbers: Result<Vec<f64>, FormatError> = line
            .split_whitespace()
            .map(|word| word.parse().ok().filter(|n: &f64| n.is_finite()).ok_or_else(|| wrong(format!("{word:?}, expected a number"))))
            .collect();
        let numbers = numbers?;
        let expected = 5 + spec.count * spec.dims;
        if numbers.len() != expected {
            let message = format!(
                "{} numbers, expected {expected}: class, box, and {} of each of {} keypoints",
                numbers.len(),
                spec.dims,
                spec.count
            );
            return Err(wrong(message));
        }
        if numbers[0].fract() != 0.0 || numbers[0] < 0.0 {
            return Err(wrong(format!("the class is {}, expected a whole number", numbers[0])));
        }
        if numbers[0] as i64 != class {
            *others += 1;
            continue;
        }
        let share = -MARGIN..=1.0 + MARGIN;
        if let Some(outside) = numbers[1..5].iter().find(|n| !share.contains(*n)) {
            return Err(wrong(format!("the box has {outside}, expected shares of the picture from 0 to 1")));
        }
        let (w, h) = (f64::from(width), f64::from(height));
        let [cx, cy, bw, bh] = [numbers[1] * w, numbers[2] * h, numbers[3] * w, numbers[4] * h];
        let keypoint = |k: &[f64]| {
            let visibility = k.get(2).copied();
            let none = k[0] < 0.0 || k[1] < 0.0 || (k[0] == 0.0 && k[1] == 0.0);
            let v = visibility.unwrap_or(if none { 0.0 } else { 2.0 });
            if v > 0.0 && !(share.contains(&k[0]) && share.contains(&k[1])) {
                return Err(wrong(format!("a keypoint lies at ({}, {}), expected shares of the picture from 0 to 1", k[0], k[1])));
            }
            Ok([k[0] * w, k[1] * h, v])
        };
        let keypoints: Result<Vec<[f64; 3]>, FormatError> = numbers[5..].chunks_exact(spec.dims).map(keypoint).collect();
        let at = format!("{}, line {}", labels.display(), number + 1);
        let bbox = Some([cx - bw / 2.0, cy - bh / 2.0, bw, bh]);
        image.people.push(DraftPerson { at, bbox, keypoints: keypoints?, ..DraftPerson::default() });
    }
    Ok(image)
}

/// Writes `data.yaml` and `labels/`; shares with eight decimals, keypoints shifted by `shift` px first. Crowds have no place there, and
/// what lies outside of the picture has none.
pub(super) fn write(dataset: &Dataset, shift: f64, out: &Path) -> Result<Lost, FormatError> {
    let mut lost = Lost::default();
    let mut taken = BTreeSet::new();
    for image in &dataset.images {
        let path = out.join("labels").join(&image.file_name).with_extension("txt");
        if !taken.insert(path.clone()) {
            return Err(FormatError::whole(&path, "two pictures whose names differ in their ending alone: their labels would be one file"));
        }
        let (w, h) = (f64::from(image.width), f64::from(image.height));
        let mut text = String::new();
        for annotation in dataset.annotations_of(image.id) {
            if annotation.iscrowd == 1 {
                lost.crowds += 1;
                continue;
            }
            let [x, y, bw, bh] = annotation.bbox;
            let (left, right) = (x.clamp(0.0, w), (x + bw).clamp(0.0, w));
            let (top, bottom) = (y.clamp(0.0, h), (y + bh).clamp(0.0, h));
            lost.boxes += u64::from(x < 0.0 || y < 0.0 || x + bw > w || y + bh > h);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "0 {:.8} {:.8} {:.8} {:.8}",
                (left + right) / 2.0 / w,
                (top + bottom) / 2.0 / h,
                (right - left) / w,
                (bottom - top) / h
            );
            let mut keypoints = annotation.keypoints.clone();
            keypoints.resize(3 * dataset.skeleton.len(), 0.0);
            for keypoint in keypoints.chunks_exact(3) {
                let (px, py) = ((keypoint[0] + shift) / w, (keypoint[1] + shift) / h);
                let inside = (0.0..=1.0).contains(&px) && (0.0..=1.0).contains(&py);
                lost.keypoints += u64::from(keypoint[2] > 0.0 && !inside);
                let (px, py, v) = if keypoint[2] > 0.0 && inside { (px, py, keypoint[2]) } else { (0.0, 0.0, 0.0) };
                let _ = write!(text, " {px:.8} {py:.8} {v:.0}");
            }
            text.push('\n');
        }
        let folder = path.parent().unwrap_or(out);
        std::fs::create_dir_all(folder).map_err(FormatError::io(folder))?;
        std::fs::write(&path, text).map_err(FormatError::io(&path))?;
    }
    let skeleton = &dataset.skeleton;
    // A JSON string is a YAML string.
    let names: Vec<String> = skeleton.names().map(|name| serde_json::Value::from(name).to_string()).collect();
    let yaml = format!(
        "path: .\ntrain: images\nval: images\nkpt_shape: [{}, 3]\nflip_idx: {:?}\nnames:\n  0: person\nkpt_names:\n  0: [{}]\n",
        skeleton.len(),
        skeleton.flip(),
        names.join(", ")
    );
    let path = out.join("data.yaml");
    std::fs::write(&path, yaml).map_err(FormatError::io(&path))?;
    Ok(lost)
}
