//! Files as tools write them, by their documentation, become what they mean.

use super::super::recognise::recognise;
use super::super::*;
use super::write_picture;
use serde_json::json;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)], pictures: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        pictures.iter().for_each(|name| write_picture(&dir.path().join(name), 200, 100));
        Self(dir)
    }

    fn import(&self, options: ImportOptions) -> Imported {
        let (format, file) = recognise(self.0.path(), None).unwrap();
        import(format, &file, &options, &self.0.path().join("out")).unwrap()
    }
}

fn pair() -> Option<Skeleton> {
    Some(Skeleton::new(&["left_eye", "right_eye"], &[(0, 1)], None, None).unwrap())
}

fn people(imported: &Imported) -> Vec<([f64; 4], Vec<f64>, u8)> {
    let all = &imported.dataset.annotations;
    all.iter().map(|a| (a.bbox, a.keypoints.clone(), a.iscrowd)).collect()
}

/// <https://docs.cvat.ai/docs/dataset_management/formats/xml_format/>, "Annotation": a skeleton's points with `outside` and `occluded`,
/// its drawing in `<svg>`, shapes of other labels beside it.
const CVAT: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><id>4</id><labels>
    <label><name>body</name><color>#c06060</color><type>skeleton</type><attributes></attributes>
      <svg>&lt;line x1="38.92" y1="26.94" x2="49.99" y2="57.12" stroke="black" data-type="edge" data-node-from="2" stroke-width="0.5" data-node-to="1"&gt;&lt;/line&gt;&lt;circle r="1.5" data-type="element node" data-element-id="1" data-node-id="1" data-label-name="Left Eye"&gt;&lt;/circle&gt;&lt;circle r="1.5" data-type="element node" data-element-id="2" data-node-id="2" data-label-name="Right Eye"&gt;&lt;/circle&gt;</svg></label>
    <label><name>Left Eye</name><type>points</type><attributes></attributes><parent>body</parent></label>
    <label><name>Right Eye</name><type>points</type><attributes></attributes><parent>body</parent></label>
    <label><name>car</name><type>rectangle</type><attributes></attributes></label>
  </labels></job><dumped>2026-05-12 09:27:26.441571+00:00</dumped></meta>
  <image id="0" name="day/a.png" width="200" height="100">
    <skeleton label="body" source="manual" z_order="0">
      <points label="Right Eye" source="manual" outside="0" occluded="1" points="40.25,20.00"></points>
      <points label="Left Eye" source="manual" outside="0" occluded="0" points="20.50,30.75"></points>
    </skeleton>
    <skeleton label="body" source="manual" z_order="0" group_id="3">
      <points label="Left Eye" source="manual" outside="1" occluded="0" points="1.00,1.00"></points>
      <points label="Right Eye" source="manual" outside="0" occluded="0" points="50.00,60.00"></points>
    </skeleton>
    <box label="car" source="manual" occluded="0" xtl="44.00" ytl="50.00" xbr="70.00" ybr="90.50" z_order="0" group_id="3"></box>
    <box label="car" source="manual" occluded="0" xtl="0.00" ytl="0.00" xbr="10.00" ybr="10.00" z_order="0"></box>
    <box label="body_box" source="manual" occluded="0" xtl="100.00" ytl="10.00" xbr="190.00" ybr="90.00" z_order="0"><attribute name="is_crowd">true</attribute></box>
    <polygon label="car" source="manual" occluded="0" points="1.0,1.0;2.0,1.0;2.0,2.0" z_order="0"></polygon>
  </image>
  <image id="1" name="b.png" width="200" height="100">
  </image>
</annotations>
"#;

#[test]
fn cvat_for_images() {
    let folder = Folder::new(&[("annotations.xml", CVAT)], &["images/day/a.png", "images/b.png"]);
    let imported = folder.import(ImportOptions::default());
    assert_eq!(imported.dataset.skeleton.names().collect::<Vec<_>>(), ["Left Eye", "Right Eye"]);
    assert_eq!((imported.dataset.skeleton.edges(), imported.dataset.images.len()), (&[(1, 0)][..], 2));
    let people = people(&imported);
    // Half a pixel less; the box of the pixels that the points lie in.
    assert_eq!(people[0], ([20.0, 19.5, 20.75, 11.75], vec![20.0, 30.25, 2.0, 39.75, 19.5, 1.0], 0));
    // The box of its group, whatever that is called.
    assert_eq!(people[1], ([44.0, 50.0, 26.0, 40.5], vec![0.0, 0.0, 0.0, 49.5, 59.5, 2.0], 0));
    assert_eq!(people[2], ([100.0, 10.0, 90.0, 80.0], vec![0.0; 6], 1));
    assert_eq!(people.len(), 3);
    let said = imported.notes.join("\n");
    assert!(said.contains("2 shapes of other labels") && said.contains("1 people have no box"), "{said}");
    // The project's own names, in its own order.
    std::fs::remove_dir_all(folder.0.path().join("out")).unwrap();
    let skeleton = Some(Skeleton::new(&["nose", "right_eye", "left-eye"], &[], None, None).unwrap());
    let imported = folder.import(ImportOptions { skeleton, ..ImportOptions::default() });
    assert_eq!(imported.dataset.annotations[0].keypoints, [0.0, 0.0, 0.0, 39.75, 19.5, 1.0, 20.0, 30.25, 2.0]);
    assert!(imported.notes.iter().any(|note| note.contains("[\"nose\"] are not in the files")), "{:?}", imported.notes);
}

/// <https://docs.cvat.ai/docs/dataset_management/formats/format-coco-keypoints/>: `annotations/person_keypoints_default.json`, keys and
/// attributes that COCO does not have.
#[test]
fn coco_keypoints_of_cvat() {
    let file = json!({
        "licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "date_created": ""},
        "categories": [{"id": 1, "name": "person", "supercategory": "", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]},
                       {"id": 2, "name": "car", "supercategory": ""}],
        "images": [{"id": 1, "width": 200, "height": 100, "file_name": "a.png", "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [], "area": 12.5, "bbox": [10.0, 11.0, 20.0, 21.5], "iscrowd": 0,
             "attributes": {"occluded": false, "keyframe": false}, "keypoints": [10.5, 11.5, 2, 20.25, 12.0, 1], "num_keypoints": 2},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [], "area": 1.0, "bbox": [0, 0, 1, 1], "iscrowd": 0}],
    });
    let folder = Folder::new(&[("annotations/person_keypoints_default.json", &file.to_string())], &["images/default/a.png"]);
    let imported = folder.import(ImportOptions::default());
    assert_eq!(people(&imported), [([10.0, 11.0, 20.0, 21.5], vec![10.5, 11.5, 2.0, 20.25, 12.0, 1.0], 0)]);
    assert_eq!((imported.dataset.annotations[0].area, imported.dataset.skeleton.edges()), (12.5, &[(0, 1)][..]));
    assert_eq!(imported.notes, ["1 annotations of other categories than \"person\" are left out"]);
    // CVAT draws in continuous coordinates, and says nothing of it.
    std::fs::remove_dir_all(folder.0.path().join("out")).unwrap();
    let imported = folder.import(ImportOptions { coordinates: Some(Coordinates::Continuous), ..ImportOptions::default() });
    assert_eq!(imported.dataset.annotations[0].keypoints, [10.0, 11.0, 2.0, 19.75, 11.5, 1.0]);
}

/// `fiftyone/utils/coco.py`, `COCODetectionDatasetExporter`: categories from 0 on without names of keypoints, `num_keypoints` of all of
/// them.
#[test]
fn fiftyone() {
    let file = json!({
        "info": {"year": "", "description": "Exported from FiftyOne"}, "licenses": [],
        "categories": [{"id": 0, "name": "person", "supercategory": null}],
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200, "license": null, "coco_url": null}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "keypoints": [1.5, 2.5, 2, 0, 0, 0],
                         "num_keypoints": 2, "area": 12.0}],
    });
    let folder = Folder::new(&[("labels.json", &file.to_string())], &["data/a.png"]);
    let imported = folder.import(ImportOptions { skeleton: pair(), ..ImportOptions::default() });
    assert_eq!(people(&imported), [([1.0, 2.0, 3.0, 4.0], vec![1.5, 2.5, 2.0, 0.0, 0.0, 0.0], 0)]);
    assert_eq!(imported.dataset.annotations[0].num_keypoints, 1);
    let (format, file) = recognise(folder.0.path(), None).unwrap_or((Format::Coco, folder.0.path().join("labels.json")));
    let error = import(format, &file, &ImportOptions::default(), &folder.0.path().join("again")).unwrap_err().to_string();
    assert!(error.contains("labels.json") && error.contains("2 keypoints without names") && error.contains("--skeleton"), "{error}");
}

/// <https://labelstud.io/guide/task_format>: an upload with its prefix, percent, a keypoint that says whose it is by `parentID`, one by a
/// relation, one by its place; a cancelled annotation; a task that nobody has done.
#[test]
fn label_studio() {
    let shape = |id: &str, kind: &str, value: serde_json::Value| {
        json!({"id": id, "type": kind, "from_name": "f", "to_name": "img", "original_width": 200, "original_height": 100, "image_rotation": 0,
               "value": value, "origin": "manual"})
    };
    let point =
        |id: &str, x: f64, y: f64, name: &str| shape(id, "keypointlabels", json!({"x": x, "y": y, "width": 0.3, "keypointlabels": [name]}));
    let mut owned = point("k1", 10.25, 20.0, "left_eye");
    owned["parentID"] = "b1".into();
    let rectangle = |id: &str, x: f64| {
        shape(
            id,
            "rectanglelabels",
            json!({"x": x, "y": 10.0, "width": 20.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["Person"]}),
        )
    };
    let tasks = json!([
        {"id": 7, "data": {"image": "/data/upload/2/0a1b2c3d-a.png"}, "annotations": [
            {"id": 1, "was_cancelled": true, "result": [], "updated_at": "2026-01-03T00:00:00Z"},
            {"id": 2, "ground_truth": false, "updated_at": "2026-01-02T00:00:00Z", "result": [
                rectangle("b1", 5.0), rectangle("b2", 50.0), owned, point("k2", 12.0, 30.0, "right_eye"), point("k3", 60.0, 20.0, "left_eye"),
                {"from_id": "k2", "to_id": "b1", "type": "relation", "direction": "right"},
                shape("k2", "choices", json!({"choices": ["occluded"]})), shape("b2", "choices", json!({"choices": ["crowd"]}))]}],
         "predictions": [{"result": [rectangle("p", 1.0)]}]},
        {"id": 8, "data": {"image": "s3://bucket/b.png"}, "annotations": []}
    ]);
    let folder = Folder::new(&[("project-1.json", &tasks.to_string())], &["a.png"]);
    let imported = folder.import(ImportOptions::default());
    let expected = [
        ([10.0, 10.0, 40.0, 50.0], vec![20.0, 19.5, 2.0, 23.5, 29.5, 1.0], 0),
        ([100.0, 10.0, 40.0, 50.0], vec![119.5, 19.5, 2.0, 0.0, 0.0, 0.0], 1),
    ];
    assert_eq!(people(&imported), expected);
    assert_eq!(imported.dataset.images[0].file_name, "a.png");
    let said = imported.notes.join("\n");
    assert!(said.contains("1 tasks without an annotation") && said.contains("that of the alphabet"), "{said}");
}

/// <https://docs.ultralytics.com/datasets/pose/>: two numbers a keypoint without visibility, splits, a table of classes.
#[test]
fn ultralytics() {
    let yaml = "path: ../datasets/tiger  # not here\ntrain: images/train\nval: images/val\n\n# Keypoints\nkpt_shape: [2, 2]\nflip_idx: [1, 0]\n\n\
                names:\n  0: car\n  1: person\n";
    let lines = "1 0.5 0.5 0.2 0.4 0.25 0.5 -1 -1\n0 0.1 0.1 0.1 0.1 0 0 0 0\n1 0.25 0.25 0.5 0.5 0 0 0.5 0.75\n";
    let pictures = ["images/train/a.png", "images/train/b.png", "images/val/c.png"];
    let folder = Folder::new(&[("data.yaml", yaml), ("labels/train/a.txt", lines)], &pictures);
    let options = || ImportOptions { skeleton: pair(), category: Some("person".to_owned()), ..ImportOptions::default() };
    let (format, file) = recognise(folder.0.path(), None).unwrap();
    let error = import(format, &file, &options(), &folder.0.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("[\"train\", \"val\"]") && error.contains("--split"), "{error}");
    let imported = folder.import(ImportOptions { split: Some("train".to_owned()), ..options() });
    let expected = [
        ([80.0, 30.0, 40.0, 40.0], vec![49.5, 49.5, 2.0, 0.0, 0.0, 0.0], 0),
        ([0.0, 0.0, 100.0, 50.0], vec![0.0, 0.0, 0.0, 99.5, 74.5, 2.0], 0),
    ];
    assert_eq!(people(&imported), expected);
    assert_eq!(imported.dataset.images.iter().map(|i| i.file_name.as_str()).collect::<Vec<_>>(), ["train/a.png", "train/b.png"]);
    assert_eq!(imported.notes, ["1 lines of other classes are left out"]);
    let both = import(format, &file, &ImportOptions { split: Some("all".to_owned()), ..options() }, &folder.0.path().join("both")).unwrap();
    assert_eq!(both.dataset.images.len(), 3);
}
