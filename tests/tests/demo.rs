//! The main job in small: `omnilabel demo`, interrupted with Ctrl-C and continued, on rendered scenes; and on real pictures where they are.

use omnilabel_tests::peers::{Process, program, real_images, succeed, until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn demo(dir: &Path, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["demo", "--json", "--minutes", "0.2", "--dir"].map(String::from).to_vec();
    args.push(dir.display().to_string());
    args.extend(more.iter().map(|&word| word.to_owned()));
    args
}

/// Names the demo that a process belongs to: every role inherits it.
const MARK: &str = "OMNILABEL_TEST_DEMO";

fn start(dir: &Path, log: &Path) -> Process {
    Process::spawn("omnilabel", Command::new(program("omnilabel")).args(demo(dir, &[])).env(MARK, dir), log)
}

/// The command lines of everything that runs for a demo. A process that has ended has none.
fn roles(dir: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}", dir.display());
    let words = |path: PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let ours = processes.filter(|entry| words(entry.path().join("environ")).split('\0').any(|word| word == mark));
    ours.map(|entry| words(entry.path().join("cmdline")).replace('\0', " ")).filter(|line| !line.is_empty()).collect()
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
    assert!(page.contains("<image") && page.contains("<svg") && page.contains("distilled"), "the report has pictures and curves");
}

#[test]
fn it_is_interrupted_and_continues_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("demo");
    let log = folder.path().join("log");
    let first = start(&dir, &log);
    let events = dir.join("centre/events.jsonl");
    until("the first labels", || std::fs::read_to_string(&events).is_ok_and(|text| text.contains("\"labels\"")).then_some(()));
    // A second one in the same folder is told so.
    let (status, _) = start(&dir, &folder.path().join("second")).wait();
    let said = std::fs::read_to_string(folder.path().join("second")).expect("a log");
    assert!(status.code() == Some(1) && said.contains("another demo is running"), "{status}: {said}");
    first.signal("INT");
    let (status, _) = first.wait();
    let said = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("the same command continues from here"), "{said}");
    assert_eq!(roles(&dir), Vec::<String>::new(), "processes that Ctrl-C left behind");

    // Killed, it cannot stop them; the system does.
    let second = start(&dir, &log);
    until("the fleet again", || (roles(&dir).len() >= 5).then_some(()));
    second.kill();
    until("the end of every role", || roles(&dir).is_empty().then_some(()));

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
