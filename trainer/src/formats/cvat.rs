//! CVAT for images 1.1 (<https://docs.cvat.ai/docs/dataset_management/formats/xml_format/>): one XML file, a `<skeleton>` of `<points>`
//! for each person. `occluded="1"` is COCO's v = 1, `outside="1"` v = 0. A skeleton has no box there: the `<box>` of the same `group_id`
//! is its box. Coordinates are continuous, the picture's edge is 0.

use super::draft::{Draft, DraftImage, DraftPerson};
use super::{FormatError, ImportOptions, Lost, read_text};
use omnilabel_coco::{Annotation, Dataset};
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// The label of people in files that are written here, and that of their boxes: CVAT wants one label for each shape.
const PERSON: &str = "person";
const BOX: &str = "_box";
/// The attribute of a box with many people, as CVAT's COCO format calls it.
const CROWD: &str = "is_crowd";

/// An XML file with the places of its lines.
struct Xml<'f> {
    path: &'f Path,
    /// Where each line begins, bytes.
    lines: Vec<usize>,
}

impl Xml<'_> {
    /// Line and name of an element, for errors.
    fn at(&self, node: Node<'_, '_>) -> String {
        let line = self.lines.partition_point(|start| *start <= node.range().start);
        format!("line {line}, <{}>", node.tag_name().name())
    }

    fn wrong(&self, node: Node<'_, '_>, message: impl Into<String>) -> FormatError {
        FormatError::content(self.path, self.at(node), message)
    }

    fn text<'n>(&self, node: Node<'n, '_>, name: &str) -> Result<&'n str, FormatError> {
        node.attribute(name).ok_or_else(|| self.wrong(node, format!("no attribute `{name}`, expected one")))
    }

    fn number(&self, node: Node<'_, '_>, name: &str, text: &str) -> Result<f64, FormatError> {
        let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| self.wrong(node, format!("`{name}` is {text:?}, expected a number")))
    }

    fn flag(&self, node: Node<'_, '_>, name: &str) -> Result<bool, FormatError> {
        match node.attribute(name) {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(self.wrong(node, format!("`{name}` is {other:?}, expected 0 or 1"))),
        }
    }
}

fn elements<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

fn child_text<'a>(node: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    elements(node, name).next().and_then(|child| child.text()).map(str::trim)
}

pub(super) fn read(path: &Path, options: &ImportOptions) -> Result<Draft, FormatError> {
    let text = read_text(path)?;
    // Entities are not defined here: a file cannot grow in memory.
    let parsed = Document::parse_with_options(&text, ParsingOptions { allow_dtd: false, ..ParsingOptions::default() });
    let document = parsed.map_err(|error| FormatError::content(path, format!("line {}", error.pos().row), format!("not XML: {error}")))?;
    let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let xml = Xml { path, lines };
    let root = document.root_element();
    if !root.has_tag_name("annotations") {
        return Err(xml.wrong(root, "expected <annotations>, as CVAT writes"));
    }
    if let Some(track) = elements(root, "track").next() {
        return Err(xml.wrong(track, "this is CVAT for video, expected an export as `CVAT for images 1.1`"));
    }
    let mut draft = Draft { path: path.to_owned(), ..Draft::default() };
    let label = label(&xml, root, options)?;
    (draft.names, draft.edges) = keypoints(&xml, root, label)?;
    draft.count = draft.names.len();
    let numbers: BTreeMap<String, usize> = draft.names.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect();
    let mut others = 0;
    for element in elements(root, "image") {
        draft.images.push(image(&xml, element, label, &numbers, &mut others)?);
    }
    if others > 0 {
        draft.notes.push(format!("{others} shapes of other labels or kinds than skeletons of {label:?} are left out"));
    }
    Ok(draft)
}

/// The label of people: the one that somebody named, or the one that skeletons have.
fn label<'a>(xml: &Xml<'_>, root: Node<'a, '_>, options: &'a ImportOptions) -> Result<&'a str, FormatError> {
    if let Some(wanted) = &options.category {
        return Ok(wanted.as_str());
    }
    let mut found: Vec<&str> = Vec::new();
    for skeleton in elements(root, "image").flat_map(|image| elements(image, "skeleton")) {
        let label = xml.text(skeleton, "label")?;
        if !found.contains(&label) {
            found.push(label);
        }
    }
    if found.is_empty() {
        let labels = root.descendants().filter(|node| node.has_tag_name("label") && child_text(*node, "type") == Some("skeleton"));
        found = labels.filter_map(|node| child_text(node, "name")).collect();
    }
    match found[..] {
        [one] => Ok(one),
        [] => Err(xml.wrong(root, "no <skeleton> in an <image>, expected people as skeletons")),
        _ => Err(xml.wrong(root, format!("skeletons of the labels {found:?}, expected --category to name one"))),
    }
}

/// Names, and 0-based edges.
type Points = (Vec<String>, Vec<(u8, u8)>);

/// Names and edges of a skeleton's points: of the file's labels, or without these of the skeletons themselves, in the order of their
/// appearance.
fn keypoints(xml: &Xml<'_>, root: Node<'_, '_>, label: &str) -> Result<Points, FormatError> {
    let labels = || root.descendants().filter(|node| node.has_tag_name("label") && node.is_element());
    let mut names: Vec<String> = labels()
        .filter(|node| child_text(*node, "parent") == Some(label))
        .filter_map(|node| child_text(node, "name"))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        let skeletons = elements(root, "image").flat_map(|image| elements(image, "skeleton"));
        for points in
            skeletons.filter(|skeleton| skeleton.attribute("label") == Some(label)).flat_map(|skeleton| elements(skeleton, "points"))
        {
            let name = xml.text(points, "label")?;
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    let drawn = labels().find(|node| child_text(*node, "name") == Some(label)).and_then(|node| child_text(node, "svg"));
    Ok((names.clone(), drawn.map(|svg| edges(svg, &names)).unwrap_or_default()))
}

/// The edges of a skeleton's drawing; none where it is not as expected, as nothing but pictures for people depends on them.
fn edges(svg: &str, names: &[String]) -> Vec<(u8, u8)> {
    let text = format!("<svg>{svg}</svg>");
    let Ok(document) = Document::parse(&text) else { return Vec::new() };
    let nodes: BTreeMap<&str, u8> = document
        .descendants()
        .filter(|node| node.has_tag_name("circle"))
        .filter_map(|node| {
            let index = names.iter().position(|name| Some(name.as_str()) == node.attribute("data-label-name"))?;
            Some((node.attribute("data-node-id")?, u8::try_from(index).ok()?))
        })
        .collect();
    let lines = document.descendants().filter(|node| node.has_tag_name("line"));
    lines.filter_map(|line| Some((*nodes.get(line.attribute("data-node-from")?)?, *nodes.get(line.attribute("data-node-to")?)?))).collect()
}

/// Skeletons and boxes.
type Group<'a, 'i> = (Vec<Node<'a, 'i>>, Vec<Node<'a, 'i>>);

fn image(
    xml: &Xml<'_>,
    element: Node<'_, '_>,
    label: &str,
    numbers: &BTreeMap<String, usize>,
    others: &mut u64,
) -> Result<DraftImage, FormatError> {
    let side = |name: &str| {
        let text = xml.text(element, name)?;
        text.parse().ok().filter(|side: &u32| *side > 0).ok_or_else(|| xml.wrong(element, format!("`{name}` is {text:?}, expected pixels")))
    };
    let size = Some((side("width")?, side("height")?));
    let mut image = DraftImage { at: xml.at(element), name: xml.text(element, "name")?.to_owned(), size, ..DraftImage::default() };
    let group = |node: Node<'_, '_>| node.attribute("group_id").filter(|group| *group != "0").map(str::to_owned);
    let is_person = |node: Node<'_, '_>| node.has_tag_name("skeleton") && node.attribute("label") == Some(label);
    // Of each group its skeletons and boxes.
    let mut groups: BTreeMap<String, Group<'_, '_>> = BTreeMap::new();
    for shape in element.children().filter(Node::is_element) {
        let Some(group) = group(shape) else { continue };
        if is_person(shape) {
            groups.entry(group).or_default().0.push(shape);
        } else if shape.has_tag_name("box") {
            groups.entry(group).or_default().1.push(shape);
        }
    }
    if let Some((group, (skeletons, boxes))) = groups.iter().find(|(_, (s, b))| !s.is_empty() && !b.is_empty() && s.len() + b.len() > 2) {
        let message = format!("group {group} has {} skeletons and {} boxes, expected one of each", skeletons.len(), boxes.len());
        return Err(xml.wrong(skeletons[0], message));
    }
    let box_label = format!("{label}{BOX}");
    for shape in element.children().filter(Node::is_element) {
        let mates = group(shape).and_then(|group| groups.get(&group));
        if is_person(shape) {
            let mate = mates.and_then(|(_, boxes)| boxes.first()).copied();
            let (bbox, crowd) = (mate.map(|node| rectangle(xml, node)).transpose()?, mate.is_some_and(is_crowd));
            image.people.push(DraftPerson {
                at: xml.at(shape),
                bbox,
                crowd,
                keypoints: skeleton(xml, shape, numbers)?,
                ..DraftPerson::default()
            });
        } else if shape.has_tag_name("box") && mates.is_some_and(|(skeletons, _)| !skeletons.is_empty()) {
            // It is its skeleton's.
        } else if shape.has_tag_name("box") && shape.attribute("label").is_some_and(|of| of == label || of == box_label) {
            let (bbox, crowd) = (Some(rectangle(xml, shape)?), is_crowd(shape));
            image.people.push(DraftPerson { at: xml.at(shape), bbox, crowd, ..DraftPerson::default() });
        } else {
            *others += 1;
        }
    }
    Ok(image)
}

fn is_crowd(node: Node<'_, '_>) -> bool {
    elements(node, "attribute").any(|attribute| {
        let said = attribute.text().is_some_and(|text| matches!(text.trim(), "true" | "True" | "1"));
        said && matches!(attribute.attribute("name"), Some(CROWD | "iscrowd"))
    })
}

fn rectangle(xml: &Xml<'_>, node: Node<'_, '_>) -> Result<[f64; 4], FormatError> {
    let edge = |name: &str| xml.number(node, name, xml.text(node, name)?);
    if node.attribute("rotation").is_some_and(|angle| angle.trim().parse::<f64>() != Ok(0.0)) {
        return Err(xml.wrong(node, "the box is rotated, expected one along the picture's edges"));
    }
    let (left, top, right, bottom) = (edge("xtl")?, edge("ytl")?, edge("xbr")?, edge("ybr")?);
    if left > right || top > bottom {
        return Err(xml.wrong(node, format!("from ({left}, {top}) to ({right}, {bottom}), expected the upper left corner first")));
    }
    Ok([left, top, right - left, bottom - top])
}

fn skeleton(xml: &Xml<'_>, node: Node<'_, '_>, numbers: &BTreeMap<String, usize>) -> Result<Vec<[f64; 3]>, FormatError> {
    let mut keypoints = vec![[0.0; 3]; numbers.len()];
    let mut seen = vec![false; numbers.len()];
    for points in elements(node, "points") {
        let name = xml.text(points, "label")?;
        let Some(&index) = numbers.get(name) else {
            let expected: Vec<&String> = numbers.keys().collect();
            return Err(xml.wrong(points, format!("the label is {name:?}, expected one of {expected:?}")));
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(xml.wrong(points, format!("a second {name:?} in one skeleton")));
        }
        let text = xml.text(points, "points")?;
        let Some((x, y)) = text.split_once(',') else {
            return Err(xml.wrong(points, format!("`points` is {text:?}, expected x,y")));
        };
        let visibility = match (xml.flag(points, "outside")?, xml.flag(points, "occluded")?) {
            (true, _) => 0.0,
            (false, true) => 1.0,
            (false, false) => 2.0,
        };
        keypoints[index] = [xml.number(points, "points", x)?, xml.number(points, "points", y)?, visibility];
    }
    Ok(keypoints)
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

/// Writes `annotations.xml`; coordinates with four decimals, keypoints shifted by `shift` px.
pub(super) fn write(dataset: &Dataset, shift: f64, path: &Path) -> Result<Lost, FormatError> {
    let file = std::fs::File::create(path).map_err(FormatError::io(path))?;
    let mut file = std::io::BufWriter::new(file);
    file.write_all(meta(dataset).as_bytes()).map_err(FormatError::io(path))?;
    for (number, image) in dataset.images.iter().enumerate() {
        let (name, width, height) = (escaped(&image.file_name), image.width, image.height);
        let mut text = format!("  <image id=\"{number}\" name=\"{name}\" width=\"{width}\" height=\"{height}\">\n");
        for (person, annotation) in dataset.annotations_of(image.id).iter().enumerate() {
            shapes(&mut text, dataset, annotation, person + 1, shift);
        }
        text.push_str("  </image>\n");
        file.write_all(text.as_bytes()).map_err(FormatError::io(path))?;
    }
    file.write_all(b"</annotations>\n").and_then(|()| file.flush()).map_err(FormatError::io(path))?;
    Ok(Lost::default())
}

/// One person: its box, and its skeleton in the same group where a keypoint is labelled.
fn shapes(text: &mut String, dataset: &Dataset, annotation: &Annotation, group: usize, shift: f64) {
    let [x, y, w, h] = annotation.bbox;
    let crowd = if annotation.iscrowd == 1 { format!(r#"<attribute name="{CROWD}">true</attribute>"#) } else { String::new() };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        r#"    <box label="{PERSON}{BOX}" source="manual" occluded="0" xtl="{x:.4}" ytl="{y:.4}" xbr="{:.4}" ybr="{:.4}" group_id="{group}">{crowd}</box>"#,
        x + w,
        y + h
    );
    if !annotation.keypoints.chunks_exact(3).any(|keypoint| keypoint[2] > 0.0) {
        return;
    }
    let _ = writeln!(text, r#"    <skeleton label="{PERSON}" source="manual" z_order="0" group_id="{group}">"#);
    for (name, keypoint) in dataset.skeleton.names().zip(annotation.keypoints.chunks_exact(3)) {
        let (outside, occluded) = (u8::from(keypoint[2] == 0.0), u8::from(keypoint[2] == 1.0));
        let at = |value: f64| if outside == 1 { 0.0 } else { value + shift };
        let _ = writeln!(
            text,
            r#"      <points label="{}" source="manual" outside="{outside}" occluded="{occluded}" points="{:.4},{:.4}"></points>"#,
            escaped(name),
            at(keypoint[0]),
            at(keypoint[1])
        );
    }
    text.push_str("    </skeleton>\n");
}

/// The head of the file: what a CVAT task needs to know of its labels.
fn meta(dataset: &Dataset) -> String {
    let skeleton = &dataset.skeleton;
    // Nodes of the drawing on a circle: where they lie is a matter of looks.
    let node = |index: usize| {
        let angle = std::f64::consts::TAU * index as f64 / skeleton.len() as f64;
        (50.0 + 40.0 * angle.sin(), 50.0 - 40.0 * angle.cos())
    };
    let mut svg = String::new();
    for &(from, to) in skeleton.edges() {
        let ((x1, y1), (x2, y2)) = (node(from.into()), node(to.into()));
        let _ = write!(
            svg,
            r#"<line x1="{x1:.2}" y1="{y1:.2}" x2="{x2:.2}" y2="{y2:.2}" data-type="edge" data-node-from="{}" data-node-to="{}"></line>"#,
            from + 1,
            to + 1
        );
    }
    let mut points = String::new();
    for (index, name) in skeleton.names().enumerate() {
        let ((x, y), number, name) = (node(index), index + 1, escaped(name));
        let _ = write!(
            svg,
            r#"<circle r="0.75" cx="{x:.2}" cy="{y:.2}" data-type="element node" data-element-id="{number}" data-node-id="{number}" "#
        );
        let _ = write!(svg, r#"data-label-name="{name}"></circle>"#);
        let _ = writeln!(
            points,
            "        <label><name>{name}</name><type>points</type><attributes></attributes><parent>{PERSON}</parent></label>"
        );
    }
    format!(
        r#"<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <size>{}</size>
      <mode>annotation</mode>
      <labels>
        <label><name>{PERSON}</name><type>skeleton</type><attributes></attributes><svg>{}</svg></label>
{points}        <label><name>{PERSON}{BOX}</name><type>rectangle</type><attributes>
          <attribute><name>{CROWD}</name><mutable>False</mutable><input_type>checkbox</input_type><default_value>false</default_value>
            <values>false</values></attribute>
        </attributes></label>
      </labels>
    </task>
  </meta>
"#,
        dataset.images.len(),
        escaped(&svg)
    )
}
