//! What is refused, by file, place and expectation; and that nothing is left behind then.

use super::super::recognise::recognise;
use super::super::*;
use super::write_picture;
use proptest::prelude::*;

/// Files of a set, of which one is changed; what the error says.
fn check(files: &[(&str, &str)], change: (&str, &str, &str), expect: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    write_picture(&dir.path().join("images/a.png"), 200, 100);
    for (name, text) in files {
        let text = if *name == change.0 { text.replace(change.1, change.2) } else { (*text).to_owned() };
        assert!(*name != change.0 || text != files.iter().find(|(of, _)| of == name).unwrap().1 || change.1 == change.2, "{change:?}");
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let made = recognise(dir.path(), None)
        .and_then(|(format, file)| import(format, &file, &ImportOptions::default(), &dir.path().join("out")).map(drop));
    let error = made.expect_err(&format!("{change:?}")).to_string();
    for part in expect {
        assert!(error.contains(part), "{change:?}: {error} does not say {part}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|name| name.starts_with("out")), "{left:?}");
}

const COCO: &str = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
"annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2, 3, 4, 1]}],
"categories": [{"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]}]}"#;

#[test]
fn coco() {
    let check = |from: &str, to: &str, expect: &[&str]| check(&[("annotations.json", COCO)], ("annotations.json", from, to), expect);
    check("[1, 2, 2, 3, 4, 1]", "[1, 2, 2, 3, 4]", &["annotations.json", "annotation 5", "5 keypoint numbers"]);
    check("[1, 2, 2, 3, 4, 1]", "[1, 2, 2]", &["annotation 5", "1 keypoints, expected 2"]);
    check("[1, 2, 2, 3, 4, 1]", "[1, 2, 7, 3, 4, 1]", &["annotation 5", "visibility 7"]);
    check("[1, 2, 3, 4]", "[1, 2, 3]", &["annotation 5", "bbox has 3 numbers"]);
    check("[1, 2, 3, 4]", "[1, 2, -3, 4]", &["annotation 5", "the box is"]);
    check("\"image_id\": 1", "\"image_id\": 2", &["annotation 5", "image 2, which is not in the file"]);
    check("right_eye", "Left Eye", &["\"Left Eye\" occurs twice"]);
    check("[[1, 2]]", "[[0, 1]]", &["category 1", "skeleton edge [0, 1]"]);
    check("\"a.png\"", "\"../a.png\"", &["image 1", "../a.png"]);
    check("\"a.png\"", "\"b.png\"", &["image 1", "no picture \"b.png\"", "--pictures"]);
    check("\"width\": 200, \"height\": 100", "\"width\": 100, \"height\": 200", &["image 1", "100×200", "200×100", "EXIF"]);
    check("\"keypoints\": [\"left_eye\", \"right_eye\"], ", "", &["2 keypoints without names", "--skeleton"]);
    check("]}]}", "]}]", &["annotations.json", "line 3"]);
    check("{\"images\"", "PK\x03\x04", &["no file of annotations"]);
}

const CVAT: &str = "<annotations>\n<image id=\"0\" name=\"a.png\" width=\"200\" height=\"100\">\n<skeleton label=\"p\" group_id=\"1\">\n\
                    <points label=\"eye\" outside=\"0\" occluded=\"0\" points=\"1,2\"></points>\n</skeleton>\n\
                    <box label=\"b\" group_id=\"1\" xtl=\"0\" ytl=\"0\" xbr=\"5\" ybr=\"6\"></box>\n</image>\n</annotations>";

#[test]
fn cvat() {
    let check = |from: &str, to: &str, expect: &[&str]| check(&[("annotations.xml", CVAT)], ("annotations.xml", from, to), expect);
    check("points=\"1,2\"", "points=\"1;2\"", &["annotations.xml", "line 4, <points>", "\"1;2\", expected x,y"]);
    check("points=\"1,2\"", "points=\"1,nan\"", &["line 4, <points>", "expected a number"]);
    check("outside=\"0\"", "outside=\"no\"", &["line 4, <points>", "`outside` is \"no\""]);
    check("width=\"200\"", "width=\"-2\"", &["line 2, <image>", "`width` is \"-2\""]);
    check(" name=\"a.png\"", "", &["line 2, <image>", "no attribute `name`"]);
    check("xbr=\"5\"", "xbr=\"-5\"", &["line 6, <box>", "upper left corner first"]);
    check("xbr=\"5\"", "xbr=\"5\" rotation=\"30.0\"", &["line 6, <box>", "rotated"]);
    check("</skeleton>", "</skeleton><skeleton label=\"p\" group_id=\"1\"></skeleton>", &["group 1 has 2 skeletons and 1 boxes"]);
    check("</skeleton>", "</skeleton><skeleton label=\"q\"></skeleton>", &["[\"p\", \"q\"]", "--category"]);
    check("<image ", "<track id=\"0\"></track><image ", &["line 2, <track>", "CVAT for video"]);
    check("</annotations>", "", &["annotations.xml", "not XML"]);
    let grows = "<!DOCTYPE a [<!ENTITY b \"bbbb\"><!ENTITY c \"&b;&b;&b;\">]><annotations>";
    check("<annotations>", grows, &["annotations.xml", "not XML"]);
}

const TASKS: &str = r#"[{"id": 3, "data": {"image": "a.png"}, "annotations": [{"result": [
{"id": "b", "type": "rectanglelabels", "original_width": 200, "original_height": 100, "value": {"x": 0, "y": 0, "width": 10, "height": 20, "rotation": 0, "rectanglelabels": ["p"]}},
{"id": "k", "parentID": "b", "type": "keypointlabels", "original_width": 200, "original_height": 100, "value": {"x": 1, "y": 2, "width": 1, "keypointlabels": ["eye"]}}]}]}]"#;

#[test]
fn label_studio() {
    let check = |from: &str, to: &str, expect: &[&str]| check(&[("t.json", TASKS)], ("t.json", from, to), expect);
    check("\"parentID\": \"b\"", "\"parentID\": \"z\"", &["t.json", "task 3, region \"k\"", "region \"z\", expected a person's rectangle"]);
    // Inside of no rectangle, a keypoint has to say whose it is.
    let stray = "\"type\": \"keypointlabels\", \"original_width\": 200, \"original_height\": 100, \"value\": {\"x\": 1";
    check(&format!("\"parentID\": \"b\", {stray}"), &stray.replace("\"x\": 1", "\"x\": 91"), &["region \"k\"", "0 rectangles are around"]);
    check("\"rotation\": 0", "\"rotation\": 12.5", &["task 3, region \"b\"", "rotated"]);
    check("\"x\": 1, ", "", &["task 3, region \"k\"", "expected `x` and `y`"]);
    check("[\"eye\"]", "[\"eye\", \"ear\"]", &["task 3, region \"k\"", "one label"]);
    check("\"a.png\"", "\"a.txt\"", &["task 3", "no picture \"a.txt\""]);
    check("[{\"id\": 3", "[{\"id\": -3", &["t.json", "line 1", "JSON-MIN"]);
    check(
        "\"original_width\": 200, \"original_height\": 100, \"value\": {\"x\": 1",
        "\"value\": {\"x\": 1",
        &["region \"k\"", "original_width"],
    );
}

const YAML: &str = "train: images\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\nnames: [person]\nkpt_names:\n  0: [left_eye, right_eye]\n";
const LINES: &str = "0 0.5 0.5 0.2 0.2 0.5 0.5 2 0.25 0.5 1\n";

#[test]
fn ultralytics() {
    let files = [("data.yaml", YAML), ("labels/a.txt", LINES)];
    let yaml = |from: &str, to: &str, expect: &[&str]| check(&files, ("data.yaml", from, to), expect);
    let line = |from: &str, to: &str, expect: &[&str]| check(&files, ("labels/a.txt", from, to), expect);
    yaml("[2, 3]", "[2, 4]", &["data.yaml: kpt_shape", "[2, 4], expected [keypoints, 2 or 3]"]);
    yaml("[1, 0]", "[1, 2]", &["data.yaml: flip_idx", "2 numbers from 0 to 1"]);
    yaml("[person]", "[person, dog]", &["names", "[\"person\", \"dog\"]", "--category"]);
    yaml("[left_eye, right_eye]", "[left_eye]", &["kpt_names", "1 names of class 0, expected 2"]);
    yaml("kpt_names:\n  0: [left_eye, right_eye]\n", "", &["2 keypoints without names", "--skeleton"]);
    yaml("train: images", "train: elsewhere", &["splits", "\"elsewhere\" is not there"]);
    yaml("train: images\n", "", &["data.yaml: train", "no split"]);
    yaml("names: [person]", "names: &a [person]\nother: *a", &["line 4", "anchors and aliases"]);
    yaml("names: [person]", "names: [person", &["data.yaml", "not YAML"]);
    yaml("names: [person]", &format!("names: {}", "[".repeat(100_000)), &["line 4", "lists in lists"]);
    yaml("names: [person]", &format!("names:\n{}", "- ".repeat(100_000)), &["line 5", "lists in lists"]);
    line(" 1\n", "\n", &["labels/a.txt: line 1", "10 numbers, expected 11"]);
    line("0.25", "x", &["labels/a.txt: line 1", "\"x\", expected a number"]);
    line("0.25", "1.25", &["labels/a.txt: line 1", "a keypoint lies at (1.25, 0.5)"]);
    line("0 0.5", "0 50", &["labels/a.txt: line 1", "the box has 50"]);
    line("0 0.5", "0.5 0.5", &["labels/a.txt: line 1", "the class is 0.5"]);
    line(" 1\n", " 3\n", &["labels/a.txt, line 1", "visibility 3"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    /// Whatever a byte becomes, files are read or refused, and what is read is a data set.
    #[test]
    fn damaged_files_are_read_or_refused(which in 0..5_usize, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let (name, text) = [("annotations.json", COCO), ("annotations.xml", CVAT), ("t.json", TASKS), ("data.yaml", YAML), ("labels/a.txt", LINES)][which];
        let mut bytes = text.as_bytes().to_vec();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let dir = tempfile::tempdir().unwrap();
        write_picture(&dir.path().join("images/a.png"), 200, 100);
        std::fs::create_dir_all(dir.path().join("labels")).unwrap();
        if which == 4 {
            std::fs::write(dir.path().join("data.yaml"), YAML).unwrap();
        }
        std::fs::write(dir.path().join(name), bytes).unwrap();
        if let Ok((format, file)) = recognise(dir.path(), None)
            && let Ok(imported) = import(format, &file, &ImportOptions::default(), &dir.path().join("out"))
        {
            prop_assert_eq!(Dataset::load(&dir.path().join("out")).unwrap().annotations, imported.dataset.annotations);
        }
    }
}

#[test]
fn what_is_nothing_or_too_much_is_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let said = |from: &Path, format| recognise(from, format).unwrap_err().to_string();
    assert!(said(dir.path(), None).contains("no file of annotations"), "{}", said(dir.path(), None));
    std::fs::write(dir.path().join("export.json"), b"PK\x03\x04").unwrap();
    assert!(said(&dir.path().join("export.json"), None).contains("unpack it"));
    std::fs::write(dir.path().join("export.json"), COCO).unwrap();
    assert_eq!(recognise(dir.path(), None).unwrap().0, Format::Coco);
    let wanted = said(&dir.path().join("export.json"), Some(Format::Cvat));
    assert!(wanted.contains("this is coco, expected cvat"), "{wanted}");
    std::fs::write(dir.path().join("tasks.json"), TASKS).unwrap();
    let two = said(dir.path(), None);
    assert!(two.contains("2 files of annotations") && two.contains("export.json") && two.contains("tasks.json"), "{two}");
    assert_eq!(recognise(dir.path(), Some(Format::LabelStudio)).unwrap().1, dir.path().join("tasks.json"));
    // A folder that is there is not written into.
    let there = import(Format::Coco, &dir.path().join("export.json"), &ImportOptions::default(), dir.path()).unwrap_err().to_string();
    assert!(there.contains("is there already"), "{there}");
}
