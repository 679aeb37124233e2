//! Label Studio's JSON (<https://labelstud.io/guide/export#JSON>, results as in <https://labelstud.io/tags/keypointlabels> and
//! <https://labelstud.io/tags/rectanglelabels>): a rectangle for each person, keypoints that belong to it by `parentID` or by a relation,
//! coordinates in percent of the picture, whose edge is 0. Visibility is no part of the format: a choice of the keypoint's own region
//! (`perRegion="true"`) says `hidden`, one of a rectangle's says `crowd`.

use super::draft::{Draft, DraftImage, DraftPerson};
use super::{FormatError, ImportOptions, read_file, read_text};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

mod write;
pub(super) use write::write;

/// The labelling configuration beside the tasks.
const CONFIG: &str = "label_config.xml";

#[derive(Deserialize)]
struct Task {
    id: Option<u64>,
    #[serde(default)]
    data: BTreeMap<String, Value>,
    /// Earlier versions call them `completions`.
    #[serde(default, alias = "completions")]
    annotations: Vec<Annotated>,
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    result: Vec<Region>,
    #[serde(default)]
    was_cancelled: bool,
    #[serde(default)]
    ground_truth: bool,
    #[serde(default)]
    updated_at: Option<String>,
}

#[derive(Deserialize)]
struct Region {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default, rename = "parentID", alias = "parent_id")]
    parent: Option<String>,
    #[serde(default)]
    original_width: Option<f64>,
    #[serde(default)]
    original_height: Option<f64>,
    #[serde(default)]
    image_rotation: Option<f64>,
    #[serde(default)]
    value: Shape,
    #[serde(default)]
    from_id: Option<String>,
    #[serde(default)]
    to_id: Option<String>,
}

/// All that a region's value may have; which of it, its type says.
#[derive(Default, Deserialize)]
struct Shape {
    x: Option<f64>,
    y: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
    rotation: Option<f64>,
    #[serde(default)]
    keypointlabels: Vec<String>,
    #[serde(default)]
    rectanglelabels: Vec<String>,
    #[serde(default)]
    choices: Vec<String>,
}

pub(super) fn read(path: &Path, options: &ImportOptions) -> Result<Draft, FormatError> {
    let tasks: Vec<Task> = serde_json::from_slice(&read_file(path)?).map_err(|error| {
        let expected = "expected tasks as Label Studio's export `JSON` has them (not `JSON-MIN`)";
        FormatError::content(path, format!("line {}, column {}", error.line(), error.column()), format!("{error}; {expected}"))
    })?;
    let mut draft = Draft { path: path.to_owned(), ..Draft::default() };
    let (mut unlabelled, mut several) = (0_u64, 0_u64);
    let mut chosen: Vec<(String, Task, Annotated)> = Vec::new();
    for (number, mut task) in tasks.into_iter().enumerate() {
        let at = task.id.map_or_else(|| format!("[{number}]"), |id| format!("task {id}"));
        let mut done: Vec<Annotated> = std::mem::take(&mut task.annotations).into_iter().filter(|a| !a.was_cancelled).collect();
        several += u64::from(done.len() > 1);
        // The one that somebody marked as the truth, or the newest.
        done.sort_by(|a, b| (a.ground_truth, &a.updated_at).cmp(&(b.ground_truth, &b.updated_at)));
        match done.pop() {
            Some(annotated) => chosen.push((at, task, annotated)),
            None => unlabelled += 1,
        }
    }
    if unlabelled > 0 {
        draft.notes.push(format!("{unlabelled} tasks without an annotation are left out"));
    }
    if several > 0 {
        draft.notes.push(format!("{several} tasks have several annotations: the one marked as ground truth is taken, or the newest"));
    }
    draft.names = names(&mut draft.notes, path, &chosen, options)?;
    draft.count = draft.names.len();
    let label = label(path, &chosen, options)?;
    let mut others = 0;
    for (at, task, annotated) in &chosen {
        draft.images.push(image(path, at, task, annotated, &draft.names, label.as_deref(), &mut others)?);
    }
    if others > 0 {
        draft.notes.push(format!("{others} regions of other labels or kinds are left out"));
    }
    Ok(draft)
}

/// Names of the keypoints in the order of `label_config.xml` beside the file, or without one in that of the alphabet.
fn names(
    notes: &mut Vec<String>,
    path: &Path,
    chosen: &[(String, Task, Annotated)],
    options: &ImportOptions,
) -> Result<Vec<String>, FormatError> {
    let regions = chosen.iter().flat_map(|(_, _, annotated)| &annotated.result).filter(|region| is_keypoint(region));
    let used: BTreeSet<&String> = regions.flat_map(|region| &region.value.keypointlabels).collect();
    let config = path.with_file_name(CONFIG);
    let mut names = Vec::new();
    if config.is_file() {
        let text = read_text(&config)?;
        let document = roxmltree::Document::parse(&text)
            .map_err(|error| FormatError::content(&config, format!("line {}", error.pos().row), format!("not XML: {error}")))?;
        let keypoints = document.descendants().filter(|node| node.has_tag_name("KeyPointLabels"));
        names = keypoints.flat_map(|node| node.children()).filter_map(|label| label.attribute("value")).map(str::to_owned).collect();
        if let Some(unknown) = used.iter().find(|name| !names.contains(name)) {
            let message = format!("no <Label value={unknown:?}> in <KeyPointLabels>, expected all that {} uses", path.display());
            return Err(FormatError::content(&config, "the labels", message));
        }
    } else {
        names.extend(used.into_iter().cloned());
        if options.skeleton.is_none() {
            notes.push(format!(
                "the order of the keypoints is not in the files, it is that of the alphabet: {CONFIG} beside them or --skeleton gives one"
            ));
        }
    }
    if names.is_empty() {
        return Err(FormatError::content(path, "results", "no keypoints, expected regions of the type `keypointlabels`"));
    }
    Ok(names)
}

fn is_keypoint(region: &Region) -> bool {
    region.kind == "keypointlabels"
}

/// The label of people's rectangles; `None` where there are no rectangles.
fn label(path: &Path, chosen: &[(String, Task, Annotated)], options: &ImportOptions) -> Result<Option<String>, FormatError> {
    if options.category.is_some() {
        return Ok(options.category.clone());
    }
    let regions = chosen.iter().flat_map(|(_, _, annotated)| &annotated.result);
    let labels: BTreeSet<&String> = regions.flat_map(|region| &region.value.rectanglelabels).collect();
    if labels.len() > 1 {
        return Err(FormatError::content(path, "results", format!("rectangles of the labels {labels:?}, expected --category to name one")));
    }
    Ok(labels.first().map(|label| (*label).clone()))
}

fn image(
    path: &Path,
    at: &str,
    task: &Task,
    annotated: &Annotated,
    names: &[String],
    label: Option<&str>,
    others: &mut u64,
) -> Result<DraftImage, FormatError> {
    let wrong = |region: &Region, message: String| {
        let id = region.id.as_deref().unwrap_or("?");
        FormatError::content(path, format!("{at}, region {id:?}"), message)
    };
    let (name, other_name) = picture(task).ok_or_else(|| {
        FormatError::content(path, at, "`data` names no picture, expected a path or an address that ends with .jpg, .jpeg or .png")
    })?;
    let mut image = DraftImage { at: at.to_owned(), name, other_name, ..DraftImage::default() };
    let chosen: BTreeMap<&str, &Vec<String>> =
        annotated.result.iter().filter(|r| r.kind == "choices").filter_map(|r| Some((r.id.as_deref()?, &r.value.choices))).collect();
    let says = |region: &Region, words: &[&str]| {
        let choices = region.id.as_deref().and_then(|id| chosen.get(id));
        choices.is_some_and(|choices| choices.iter().any(|choice| words.iter().any(|word| choice.eq_ignore_ascii_case(word))))
    };
    // By id of its rectangle, which person it is.
    let mut people: BTreeMap<&str, usize> = BTreeMap::new();
    for region in &annotated.result {
        let shape = &region.value;
        if region.kind != "rectanglelabels" {
            *others += u64::from(!["keypointlabels", "choices", "relation"].contains(&region.kind.as_str()));
            continue;
        }
        if !label.is_none_or(|label| shape.rectanglelabels.iter().any(|of| of == label)) {
            *others += 1;
            continue;
        }
        let (width, height) = size(&mut image, region).map_err(|message| wrong(region, message))?;
        if shape.rotation.is_some_and(|angle| angle != 0.0) {
            return Err(wrong(region, "the rectangle is rotated, expected one along the picture's edges".to_owned()));
        }
        let [Some(x), Some(y), Some(w), Some(h)] = [shape.x, shape.y, shape.width, shape.height] else {
            return Err(wrong(region, "expected `x`, `y`, `width` and `height` in percent".to_owned()));
        };
        if let Some(id) = &region.id {
            people.insert(id, image.people.len());
        }
        let at = format!("{at}, region {:?}", region.id.as_deref().unwrap_or("?"));
        let bbox = Some([x * width, y * height, w * width, h * height]);
        image.people.push(DraftPerson { at, bbox, crowd: says(region, &["crowd", "iscrowd"]), ..DraftPerson::default() });
    }
    let mut related: BTreeMap<&str, &str> = BTreeMap::new();
    for (from, to) in annotated.result.iter().filter_map(|region| region.from_id.as_deref().zip(region.to_id.as_deref())) {
        if people.contains_key(to) {
            related.insert(from, to);
        } else if people.contains_key(from) {
            related.insert(to, from);
        }
    }
    for region in annotated.result.iter().filter(|region| is_keypoint(region)) {
        let (width, height) = size(&mut image, region).map_err(|message| wrong(region, message))?;
        let shape = &region.value;
        let ([Some(x), Some(y)], [name]) = ([shape.x, shape.y], &shape.keypointlabels[..]) else {
            return Err(wrong(
                region,
                format!("expected `x` and `y` in percent and one label, found the labels {:?}", shape.keypointlabels),
            ));
        };
        let Some(index) = names.iter().position(|known| known == name) else {
            return Err(wrong(region, format!("the label is {name:?}, expected one of {names:?}")));
        };
        let mate = || region.id.as_deref().and_then(|id| related.get(id)).copied();
        let owner = region.parent.as_deref().or_else(mate).map(|id| {
            people.get(id).copied().ok_or_else(|| wrong(region, format!("it belongs to region {id:?}, expected a person's rectangle")))
        });
        let (px, py) = (x * width, y * height);
        let owner = match owner {
            Some(owner) => owner?,
            None => alone(&mut image, px, py).map_err(|message| wrong(region, message))?,
        };
        let person = &mut image.people[owner];
        person.keypoints.resize(names.len(), [0.0; 3]);
        if person.keypoints[index][2] > 0.0 {
            return Err(wrong(region, format!("a second {name:?} of one person")));
        }
        let hidden = says(region, &["hidden", "occluded", "invisible", "not visible"]);
        person.keypoints[index] = [px, py, if hidden { 1.0 } else { 2.0 }];
    }
    Ok(image)
}

/// Whose a keypoint is that names nobody: that of the one rectangle around it, or of the one person of a picture without rectangles.
fn alone(image: &mut DraftImage, x: f64, y: f64) -> Result<usize, String> {
    if image.people.is_empty() {
        image.people.push(DraftPerson { at: image.at.clone(), ..DraftPerson::default() });
        return Ok(0);
    }
    if image.people[0].bbox.is_none() {
        return Ok(0);
    }
    let around = |person: &DraftPerson| person.bbox.is_some_and(|[l, t, w, h]| (l..=l + w).contains(&x) && (t..=t + h).contains(&y));
    let mut found = image.people.iter().enumerate().filter(|(_, person)| around(person)).map(|(index, _)| index);
    match (found.next(), found.count()) {
        (Some(one), 0) => Ok(one),
        (first, more) => {
            let count = usize::from(first.is_some()) + more;
            Err(format!("{count} rectangles are around the keypoint, expected a `parentID` or a relation that says whose it is"))
        }
    }
}

/// Hundredths of the picture's width and height, px; remembers the picture's size.
fn size(image: &mut DraftImage, region: &Region) -> Result<(f64, f64), String> {
    if region.image_rotation.is_some_and(|angle| angle != 0.0) {
        return Err("the picture was rotated in Label Studio, expected it as it is".to_owned());
    }
    let side = |side: Option<f64>| side.filter(|side| (1.0..=1e6).contains(side) && side.fract() == 0.0).map(|side| side as u32);
    let found = side(region.original_width).zip(side(region.original_height));
    let found = found.ok_or("expected `original_width` and `original_height` in pixels")?;
    if image.size.is_some_and(|known| known != found) {
        return Err(format!("the picture has {found:?} px here and {:?} px elsewhere", image.size.unwrap_or_default()));
    }
    image.size = Some(found);
    Ok((f64::from(found.0) / 100.0, f64::from(found.1) / 100.0))
}

/// The picture's name, and the name without what an upload puts before it.
fn picture(task: &Task) -> Option<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named = task.data.get("image").and_then(text).or_else(|| {
        task.data.values().filter_map(text).find(|value| super::pictures::is_picture(Path::new(value.split('?').next().unwrap_or(value))))
    })?;
    let path = match named.split_once("?d=") {
        Some((_, path)) => decoded(path),
        None => decoded(named.split(['?', '#']).next().unwrap_or(&named)),
    };
    let name = path.rsplit(['/', '\\']).next().unwrap_or(&path).to_owned();
    // Files of a storage keep their folder below `images`.
    let name = path.rsplit_once("images/").map_or(name, |(_, below)| below.to_owned());
    let last = name.rsplit('/').next().unwrap_or(&name);
    let original = last.split_once('-').filter(|(prefix, _)| prefix.len() == 8 && prefix.bytes().all(|b| b.is_ascii_hexdigit()));
    let other = original.map(|(_, rest)| rest.to_owned()).or_else(|| (last != name).then(|| last.to_owned()));
    (!name.is_empty()).then_some((name, other))
}

/// Percent signs of an address undone.
fn decoded(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
