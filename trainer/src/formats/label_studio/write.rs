//! The way out: tasks with their annotations, and the labelling configuration of a project for them.

use super::super::{FormatError, Lost};
use super::CONFIG;
use omnilabel_coco::{Annotation, Dataset, ImageRecord};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The tasks.
const TASKS: &str = "tasks.json";
/// What stands before the path of a picture of Label Studio's local storage.
const LOCAL: &str = "/data/local-files/?d=";
/// Size of a drawn keypoint, percent of the picture's width.
const POINT: f64 = 0.5;

/// What an address cannot have as it is.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

/// Writes `tasks.json`, one task a line, and `label_config.xml`.
pub(in crate::formats) fn write(dataset: &Dataset, shift: f64, out: &Path) -> Result<Lost, FormatError> {
    let path = out.join(TASKS);
    let file = std::fs::File::create(&path).map_err(FormatError::io(&path))?;
    let mut file = std::io::BufWriter::new(file);
    for (number, image) in dataset.images.iter().enumerate() {
        let people = dataset.annotations_of(image.id);
        let result: Vec<Value> = people.iter().enumerate().flat_map(|(person, a)| regions(dataset, image, a, person, shift)).collect();
        let address = format!("{LOCAL}images/{}", encoded(&image.file_name));
        let task = json!({ "id": number + 1, "data": { "image": address }, "annotations": [{ "result": result, "was_cancelled": false }] });
        let before = if number == 0 { "[\n" } else { ",\n" };
        write!(file, "{before}{task}").map_err(FormatError::io(&path))?;
    }
    let end = if dataset.images.is_empty() { "[]\n" } else { "\n]\n" };
    file.write_all(end.as_bytes()).and_then(|()| file.flush()).map_err(FormatError::io(&path))?;
    let config = out.join(CONFIG);
    std::fs::write(&config, label_config(dataset)).map_err(FormatError::io(&config))?;
    Ok(Lost::default())
}

/// One person: its rectangle, its labelled keypoints, and what a choice says of them.
fn regions(dataset: &Dataset, image: &ImageRecord, annotation: &Annotation, person: usize, shift: f64) -> Vec<Value> {
    let (width, height) = (f64::from(image.width) / 100.0, f64::from(image.height) / 100.0);
    let region = |id: &str, from: &str, kind: &str, value: Value| {
        json!({
            "id": id, "from_name": from, "to_name": "image", "type": kind, "origin": "manual", "image_rotation": 0,
            "original_width": image.width, "original_height": image.height, "value": value,
        })
    };
    let [x, y, w, h] = annotation.bbox;
    let whole = format!("person{person}");
    let value = json!({
        "x": x / width, "y": y / height, "width": w / width, "height": h / height, "rotation": 0, "rectanglelabels": ["person"],
    });
    let mut regions = vec![region(&whole, "box", "rectanglelabels", value)];
    if annotation.iscrowd == 1 {
        regions.push(region(&whole, "crowd", "choices", json!({ "choices": ["crowd"] })));
    }
    for (index, (name, keypoint)) in dataset.skeleton.names().zip(annotation.keypoints.chunks_exact(3)).enumerate() {
        if keypoint[2] == 0.0 {
            continue;
        }
        let id = format!("{whole}-{index}");
        let (x, y) = ((keypoint[0] + shift) / width, (keypoint[1] + shift) / height);
        let mut point = region(&id, "keypoint", "keypointlabels", json!({ "x": x, "y": y, "width": POINT, "keypointlabels": [name] }));
        point["parentID"] = whole.clone().into();
        regions.push(point);
        if keypoint[2] == 1.0 {
            regions.push(region(&id, "visibility", "choices", json!({ "choices": ["hidden"] })));
        }
    }
    regions
}

/// The labelling configuration that a project for these tasks wants.
fn label_config(dataset: &Dataset) -> String {
    let escaped = |name: &str| name.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let labels: String = dataset.skeleton.names().map(|name| format!("    <Label value=\"{}\"/>\n", escaped(name))).collect();
    format!(
        r#"<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image">
    <Label value="person"/>
  </RectangleLabels>
  <KeyPointLabels name="keypoint" toName="image">
{labels}  </KeyPointLabels>
  <Choices name="visibility" toName="image" perRegion="true" whenTagName="keypoint">
    <Choice value="hidden"/>
  </Choices>
  <Choices name="crowd" toName="image" perRegion="true" whenTagName="box">
    <Choice value="crowd"/>
  </Choices>
</View>
"#
    )
}
