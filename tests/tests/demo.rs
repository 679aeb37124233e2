//! The main job in small: `omnilabel demo`, interrupted with Ctrl-C and continued, on rendered scenes; and on real pictures where they are.

use omnilabel_tests::peers::{Process, real_images, succeed, until};
use serde_json::Value;
use std::path::Path;

fn demo(dir: &Path, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["demo", "--json", "--minutes", "0.2", "--dir"].map(String::from).to_vec();
    args.push(dir.display().to_string());
    args.extend(more.iter().map(|&word| word.to_owned()));
    args
}

/// What must hold whatever a student of a few steps has learnt.
fn check(outcome: &Value, dir: &Path) {
    let devices = outcome["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 2, "{outcome}");
    for device in devices {
        let figure = |key: &str| device[key].as_u64().unwrap_or_else(|| panic!("no {key}: {device}"));
        assert!(figure("made") >= 20 && figure("made") == figure("delivered"), "{device}");
        assert_eq!((figure("lost"), figure("pending"), figure("evicted")), (0, 0, 0), "{device}");
    }
    let release = &outcome["release"];
    assert!(release["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{release}");
    let counter = release["counter"].as_u64().unwrap_or(0);
    assert!(devices.iter().all(|device| device["running"].as_u64() == Some(counter)), "{outcome}");
    let arms = outcome["arms"].as_array().expect("arms");
    for (arm, kind) in arms.iter().zip(["lower", "distilled"]) {
        assert_eq!(arm["kind"].as_str(), Some(kind));
        assert!(arm["ap"].as_f64().is_some_and(|ap| (0.0..=1.0).contains(&ap)), "{arm}");
        assert_eq!(arm["steps"], arms[0]["steps"], "equal steps");
    }
    let page = std::fs::read_to_string(dir.join("report/index.html")).expect("the report");
    assert!(page.contains("<img") && page.contains("<svg") && page.contains("distilled"), "the report has pictures and curves");
}

#[test]
fn it_is_interrupted_and_continues_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("demo");
    let log = folder.path().join("log");
    let first = Process::start("omnilabel", demo(&dir, &[]), &log);
    let events = dir.join("centre/events.jsonl");
    until("the first labels", || std::fs::read_to_string(&events).is_ok_and(|text| text.contains("\"labels\"")).then_some(()));
    // A second one in the same folder is told so.
    let (status, _) = Process::start("omnilabel", demo(&dir, &[]), &folder.path().join("second")).wait();
    let said = std::fs::read_to_string(folder.path().join("second")).expect("a log");
    assert!(status.code() == Some(1) && said.contains("another demo is running"), "{status}: {said}");
    first.signal("INT");
    let (status, _) = first.wait();
    let said = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("the same command continues from here"), "{said}");
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        if line.contains(&dir.display().to_string()) {
            left.push(line);
        }
    }
    assert_eq!(left, Vec::<String>::new(), "processes that Ctrl-C left behind");

    let outcome: Value = serde_json::from_str(succeed("omnilabel", demo(&dir, &[])).trim()).expect("one JSON object");
    check(&outcome, &dir);
    // Done is done: once more gives the same figures at once.
    let again: Value = serde_json::from_str(succeed("omnilabel", demo(&dir, &[])).trim()).expect("one JSON object");
    assert_eq!((&again["arms"], &again["devices"]), (&outcome["arms"], &outcome["devices"]));
}

#[test]
fn it_runs_on_a_folder_of_real_pictures_with_its_own_skeleton() {
    let Some(data) = real_images("lspe") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("demo");
    let outcome: Value =
        serde_json::from_str(succeed("omnilabel", demo(&dir, &["--data", &data.display().to_string()])).trim()).expect("one JSON object");
    check(&outcome, &dir);
    assert_eq!(outcome["skeleton"]["keypoints"].as_array().map(Vec::len), Some(14));
}
