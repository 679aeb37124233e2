//! Pictures for people: what `label --draw` and `evaluate --draw` leave in a folder, and what they leave alone.

use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use omnilabel_tests::peers::{run, succeed, teacher};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Program arguments; every `@` is the next path.
fn words<'a>(line: &'a str, paths: &'a [&'a Path]) -> Vec<&'a OsStr> {
    let mut paths = paths.iter();
    let word = |w: &'a str| if w == "@" { paths.next().expect("a path for every @").as_os_str() } else { OsStr::new(w) };
    line.split(' ').map(word).collect()
}

/// The files below a folder, by name, with their contents.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for path in std::fs::read_dir(&next).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("within").to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// `count` scenes, the second one's picture cut short.
fn scenes(dir: &Path, count: u64) -> (PathBuf, String) {
    let folder = dir.join("scenes");
    let dataset = write_coco(&folder, &[Look::studio()], 31, count, DEFAULT_SIZE).expect("scenes");
    let bad = dataset.image_path(&dataset.images[1]);
    let bytes = std::fs::read(&bad).expect("a picture");
    std::fs::write(&bad, &bytes[..bytes.len() / 3]).expect("a picture");
    (folder, dataset.images[1].file_name.clone())
}

fn results(path: &Path) -> Vec<f64> {
    let results: Value = serde_json::from_slice(&std::fs::read(path).expect("results")).expect("JSON");
    results.as_array().expect("a list").iter().map(|r| r["score"].as_f64().expect("a score")).collect()
}

#[test]
fn label_draws_what_passes_the_threshold_under_the_pictures_own_names() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, bad) = scenes(dir.path(), 6);
    let before = files(&folder);
    let (out, drawn) = (dir.path().join("results.json"), dir.path().join("drawn"));
    let label = |more: &str| {
        let line = format!("label --model @ --images @ --out @ --draw @ --json {more}");
        let summary: Value =
            serde_json::from_str(&succeed("omnilabel-edge", words(line.trim(), &[&teacher(), &folder, &out, &drawn]))).expect("JSON");
        assert_eq!(summary["drawn"], drawn.join("index.html").display().to_string());
        std::fs::read_to_string(drawn.join("index.html")).expect("the page")
    };
    let page = label("");
    let tau = f64::from(Bundle::open(&teacher()).expect("the shipped model").manifest().thresholds.instance);
    let scores = results(&out);
    let sure = scores.iter().filter(|score| **score >= tau).count();
    assert!(sure > 0 && sure < scores.len(), "the scenes tell τ from no threshold: {scores:?}");
    assert_eq!(page.matches("<span class=\"\">person ").count(), sure);
    assert_eq!(page.matches("<figure>").count(), 5);
    assert!(page.contains("Left out: 1") && page.contains(&bad), "the picture that cannot be read is named");

    let inputs: BTreeSet<String> = before.keys().filter_map(|name| name.strip_prefix("images/")).map(str::to_owned).collect();
    let expected: BTreeSet<String> = inputs.iter().filter(|name| **name != bad).cloned().chain(["index.html".to_owned()]).collect();
    assert_eq!(files(&drawn).into_keys().collect::<BTreeSet<_>>(), expected);
    for name in expected.iter().filter(|name| *name != "index.html") {
        let picture = Frame::open(&drawn.join(name)).expect("a picture");
        let zoom = picture.size.width / DEFAULT_SIZE.width;
        assert!(zoom > 1 && picture.size.height == zoom * DEFAULT_SIZE.height, "{name} is enlarged: {:?}", picture.size);
    }

    // The threshold that is given wins, and a folder that was drawn into is drawn into again.
    let page = label("--min-score 0.01");
    assert_eq!(page.matches("<span class=\"\">person ").count(), scores.iter().filter(|score| **score >= 0.01).count());
    let page = label("--min-score 1.5");
    assert_eq!((page.matches("<span class=\"\">person ").count(), page.matches(">nobody<").count()), (0, 5));
    assert_eq!(files(&folder), before, "what is read stays as it is");
}

#[test]
fn a_folder_of_pictures_is_never_drawn_into() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, _) = scenes(dir.path(), 2);
    let before = files(&folder);
    let out = dir.path().join("results.json");
    for taken in [folder.clone(), folder.join("images")] {
        for output in [
            run("omnilabel-edge", words("label --model @ --images @ --out @ --draw @", &[&teacher(), &folder, &out, &taken])),
            run("omnilabel-trainer", words("evaluate --model @ --data @ --draw @", &[&teacher(), &folder, &taken])),
        ] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(&taken.display().to_string()) && said.contains("another"), "{said}");
        }
    }
    assert_eq!(files(&folder), before);
    assert!(!out.exists(), "it is refused before anything is labelled");
}

#[test]
fn evaluate_draws_the_worst_first_with_everybody_found_or_missed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, bad) = scenes(dir.path(), 8);
    let dataset = omnilabel_coco::Dataset::load(&folder).expect("the scenes");
    let drawn = dir.path().join("drawn");
    let evaluate = |more: &str| {
        let line = format!("evaluate --model @ --data @ --draw @ --json {more}");
        let told: Value =
            serde_json::from_str(&succeed("omnilabel-trainer", words(line.trim(), &[&teacher(), &folder, &drawn]))).expect("JSON");
        assert_eq!(told["drawn"], drawn.join("index.html").display().to_string());
        std::fs::read_to_string(drawn.join("index.html")).expect("the page")
    };
    let qualities = |page: &str| -> Vec<f64> {
        let after = page.split("quality ").skip(1);
        after.filter_map(|text| text.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.parse().ok()).collect()
    };
    let page = evaluate("");
    let all = qualities(&page);
    assert!(all.len() == 7 && all.is_sorted() && all[0] < all[6], "{all:?}");
    let images = dataset.images.iter().filter(|image| image.file_name != bad);
    let people: usize = images.clone().map(|image| dataset.annotations_of(image.id).len()).sum();
    let (found, missed) = (page.matches(": found</span>").count(), page.matches("missed: annotation ").count());
    assert!(found > 0 && missed > 0 && found + missed == people, "{found} found, {missed} missed, {people} people");
    assert!(page.contains(&bad) && page.contains("AP50 "));
    for image in images {
        let picture = Frame::open(&drawn.join(&image.file_name)).expect("a picture");
        assert!(picture.size.width > 2 * picture.size.height, "two pictures side by side: {:?}", picture.size);
    }
    assert_eq!(qualities(&evaluate("--draw-limit 3")), all[..3]);
}
