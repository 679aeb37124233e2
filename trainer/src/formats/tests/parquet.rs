//! The table, read by another implementation.

use super::super::table::{Row, RowKeypoint, Source, Table};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The interpreter of `OMNILABEL_PYTHON`, or of `.venv-test` at the repository's root, if it has pyarrow.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let path = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root.join(".venv-test/bin/python"), PathBuf::from);
    let found = Command::new(&path).args(["-c", "import pyarrow.parquet"]).output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: no Python with pyarrow at {} (set OMNILABEL_PYTHON, or run the README's test command)", path.display());
    }
    found.then_some(path)
}

fn rows() -> [Row; 3] {
    let source = Source {
        device: "cam-1".to_owned(),
        epoch: u64::MAX - 1,
        sequence: 7,
        frame: 1 << 63,
        camera: String::new(),
        captured_ms: 0,
        received_ms: 1_700_000_000_123,
        model: 3,
        model_hash: 0xab,
        views: 6,
        faces_blurred: true,
        thresholds: Some((0.5, 0.25)),
    };
    let keypoint = |x: f64, v: f64, score| RowKeypoint { place: [x, x + 1.0, v], score };
    let generated = Row {
        picture: "cam-1_7.jpg".into(),
        sha256: Some("00ff".into()),
        size: (640, 480),
        source: Some(Arc::new(source)),
        score: Some((0.75, 0.5)),
        crowd: false,
        bbox: [1.5, 2.0, 30.25, 40.0],
        keypoints: vec![keypoint(9.5, 2.0, Some((0.875, 1.0))), keypoint(0.0, 0.0, Some((0.125, 0.25)))],
    };
    let manual = Row { picture: "ü.png".into(), size: (9, 8), keypoints: vec![keypoint(-0.5, 1.0, None)], ..Row::default() };
    let crowd = Row { picture: "ü.png".into(), size: (9, 8), crowd: true, ..Row::default() };
    [generated, manual, crowd]
}

fn write(path: &Path, rows: impl IntoIterator<Item = Row>) -> u64 {
    let mut table = Table::create(path).unwrap();
    rows.into_iter().for_each(|row| table.add(row).unwrap());
    table.finish().unwrap()
}

#[test]
fn row_groups_are_bounded_and_a_table_may_be_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let [row, ..] = rows();
    assert_eq!(write(&path, std::iter::repeat_n(row, 40_000)), 40_000);
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    let groups: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [16_384, 16_384, 7_232]);
    assert_eq!(write(&path, []), 0);
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!((reader.metadata().file_metadata().num_rows(), reader.metadata().num_row_groups()), (0, 0));
}

#[test]
fn pyarrow_reads_what_was_written() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("labels.parquet");
    write(&path, rows());
    let script = "import json, sys, pyarrow.parquet as pq\n\
                  table = pq.read_table(sys.argv[1])\n\
                  print(json.dumps({'types': {f.name: str(f.type) for f in table.schema}, 'rows': table.to_pylist()}, default=str))";
    let output = Command::new(python).args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, expected) in [
        ("picture", "string"),
        ("epoch", "uint64"),
        ("width", "uint32"),
        ("captured", "timestamp[ms, tz=UTC]"),
        ("tau", "float"),
        ("crowd", "bool"),
        ("box", "struct<x: double not null, y: double not null, width: double not null, height: double not null>"),
    ] {
        assert_eq!(read["types"][name], expected, "{name}");
    }
    let first = json!({
        "picture": "cam-1_7.jpg", "picture_sha256": "00ff", "width": 640, "height": 480, "device": "cam-1", "epoch": u64::MAX - 1, "sequence": 7,
        "frame": 1_u64 << 63, "camera": null, "captured": null, "received": "2023-11-14 22:13:20.123000+00:00", "model": 3,
        "model_hash": "00000000000000ab", "views": 6, "faces_blurred": true, "tau": 0.5, "tau_k": 0.25, "score": 0.75, "agreement": 0.5,
        "crowd": false, "box": {"x": 1.5, "y": 2.0, "width": 30.25, "height": 40.0},
        "keypoints": [{"x": 9.5, "y": 10.5, "v": 2, "score": 0.875, "agreement": 1.0}, {"x": 0.0, "y": 1.0, "v": 0, "score": 0.125, "agreement": 0.25}],
    });
    assert_eq!(read["rows"][0], first);
    let second = &read["rows"][1];
    assert_eq!(
        (&second["picture"], &second["device"], &second["score"], &second["tau"]),
        (&"ü.png".into(), &Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(second["keypoints"], json!([{"x": -0.5, "y": 0.5, "v": 1, "score": null, "agreement": null}]));
    assert_eq!((&read["rows"][2]["keypoints"], &read["rows"][2]["crowd"]), (&json!([]), &true.into()));
}

/// The most memory that this process has had, bytes. Each test is a process of its own (nextest).
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_grow_with_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let row = |index: u64| {
        let [row, ..] = rows();
        let keypoint = |k: u64| RowKeypoint { place: [index as f64 * 0.37 + k as f64, k as f64, 2.0], score: Some((0.5, 0.25)) };
        Row { picture: format!("cam-1_{index}.jpg").into(), keypoints: (0..17).map(keypoint).collect(), ..row }
    };
    write(&path, (0..3 * 16_384).map(row));
    let before = peak();
    write(&path, (0..30 * 16_384).map(row));
    let grown = peak() - before;
    assert!(grown < 32 << 20, "{grown} bytes more for ten times as many rows, {before} before");
}
