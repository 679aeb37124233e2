//! `--boxes`: boxes of another detector, each entry judged by itself.

use anyhow::{Context, bail};
use omnilabel_keypoints::geometry::Rect;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct BoxRecord {
    image_id: u64,
    bbox: [f64; 4],
    #[serde(default = "one")]
    score: f32,
}

const fn one() -> f32 {
    1.0
}

/// The boxes that can be used, and those that cannot.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Given {
    /// By image, with their index in the file and their scores.
    pub(super) boxes: BTreeMap<u64, Vec<(usize, Rect, f32)>>,
    /// File, index, image and reason of every entry that was left out.
    pub(super) left_out: Vec<String>,
}

/// Reads the boxes for the images that `has`.
///
/// # Errors
/// The file is no JSON list, or has entries and none of them can be used.
pub(super) fn read(path: &Path, has: impl Fn(u64) -> bool) -> anyhow::Result<Given> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected a list of {{image_id, bbox: [x, y, width, height], score}}", path.display()))?;
    let mut given = Given::default();
    for (index, entry) in entries.into_iter().enumerate() {
        let image = entry.get("image_id").map_or("without image_id".to_owned(), |id| format!("of image {id}"));
        match usable(entry, &has) {
            Ok((image_id, (rect, score))) => given.boxes.entry(image_id).or_default().push((index, rect, score)),
            Err(reason) => given.left_out.push(format!("{}: box {index} {image}: {reason}", path.display())),
        }
    }
    match given.left_out.first() {
        Some(first) if given.boxes.is_empty() => {
            bail!("{}: none of the {} boxes can be used; the first: {first}", path.display(), given.left_out.len())
        }
        _ => Ok(given),
    }
}

fn usable(entry: serde_json::Value, has: &impl Fn(u64) -> bool) -> Result<(u64, (Rect, f32)), String> {
    let BoxRecord { image_id, bbox: [x, y, width, height], score } =
        serde_json::from_value(entry).map_err(|error| format!("expected {{image_id, bbox: [x, y, width, height], score}}: {error}"))?;
    if !has(image_id) {
        return Err("there is no such image".to_owned());
    }
    let rect = Rect::from_xywh(x as f32, y as f32, width as f32, height as f32);
    // In `f32`, where a large finite number may not be one any more.
    if !(rect.is_valid() && rect.area() > 0.0 && rect.area().is_finite()) {
        return Err(format!("bbox is [{x}, {y}, {width}, {height}], expected finite numbers, width and height above 0"));
    }
    if !score.is_finite() {
        return Err(format!("score is {score}, expected a number"));
    }
    Ok((image_id, (rect, score)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> anyhow::Result<Given> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("boxes.json");
        std::fs::write(&path, text)?;
        let mut given = read(&path, |id| id < 10)?;
        given.left_out.iter_mut().for_each(|line| *line = line.replace(&format!("{}/", dir.path().display()), ""));
        Ok(given)
    }

    #[test]
    fn bad_entries_are_left_out_by_file_index_and_image_and_the_others_stay() {
        let text = r#"[
            {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}, {"image_id": 2, "bbox": [1, 2, 0, 4]}, {"image_id": 77, "bbox": [1, 2, 3, 4]},
            {"image_id": 3, "bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, 4]}, {"image_id": 1, "bbox": [1, 1, 1e300, 4]}, 5,
            {"image_id": 1, "bbox": [0, 0, 9, 9]}, {"image_id": "x", "bbox": [1, 2, 3, 4]}, {"image_id": 1, "bbox": [0, 0, 9, 9], "score": 1e60}
        ]"#;
        let given = given(text).unwrap();
        assert_eq!(
            given.boxes,
            BTreeMap::from([(1, vec![(0, Rect::new(1.0, 2.0, 4.0, 6.0), 0.5), (7, Rect::new(0.0, 0.0, 9.0, 9.0), 1.0)])])
        );
        let starts = [
            "boxes.json: box 1 of image 2: bbox is [1, 2, 0, 4]",
            "boxes.json: box 2 of image 77: there is no such image",
            "boxes.json: box 3 of image 3: expected {image_id",
            "boxes.json: box 4 without image_id: expected",
            "boxes.json: box 5 of image 1: bbox is",
            "boxes.json: box 6 without image_id: expected",
            "boxes.json: box 8 of image \"x\": expected",
            "boxes.json: box 9 of image 1: score is",
        ];
        assert_eq!(given.left_out.len(), starts.len(), "{:#?}", given.left_out);
        for (line, start) in given.left_out.iter().zip(starts) {
            assert!(line.starts_with(start), "{line} does not start with {start}");
        }
    }

    #[test]
    fn no_usable_box_is_an_error_and_no_box_at_all_is_none() {
        let error = given(r#"[{"image_id": 1, "bbox": [1, 2, -3, 4]}]"#).unwrap_err().to_string();
        assert!(error.contains("boxes.json: none of the 1 boxes") && error.contains("box 0 of image 1"), "{error}");
        assert_eq!(given("[]").unwrap(), Given::default());
        let error = given("{}").unwrap_err().to_string();
        assert!(error.contains("expected a list"), "{error}");
    }
}
