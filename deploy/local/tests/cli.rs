//! What the binary says to wrong arguments: what, where, and what was expected.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn omnilabel(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnilabel")).current_dir(dir).args(args).output().unwrap()
}

fn check(dir: &Path, args: &[&str], code: i32, expect: &[&str]) {
    let output = omnilabel(dir, args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    for expect in expect {
        assert!(text.contains(expect), "{args:?}: {text} does not say {expect}");
    }
}

#[test]
fn wrong_arguments_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir_all(dir.join("empty")).unwrap();
    std::fs::create_dir_all(dir.join("photos")).unwrap();
    std::fs::write(dir.join("photos/a.jpg"), "x").unwrap();
    check(dir, &["--data", "nowhere"], 1, &["nowhere", "no such folder", "train/"]);
    check(dir, &["demo", "--data", "empty"], 1, &["empty", "has no train/"]);
    check(dir, &["demo", "--fresh", "--dir", "photos"], 1, &["photos", "state.json"]);
    check(dir, &["--minutes", "0"], 2, &["0.1 to 600"]);
    check(dir, &["scenes", "--look", "moon", "--out", "x"], 2, &["moon", "studio"]);
    check(dir, &["scenes", "--width", "5", "--out", "x"], 2, &["32..=2048"]);
    check(dir, &["broker", "--listen", "0.0.0.0:0"], 1, &["loopback"]);
    assert!(dir.join("photos/a.jpg").exists() && !dir.join("omnilabel-demo").exists(), "nothing was made or removed");
}

#[test]
fn scenes_are_written_where_they_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let output = omnilabel(dir.path(), &["scenes", "--out", "mixed", "--count", "3", "--look", "mixed"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("mixed: 3 pictures"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path().join("mixed/images")).unwrap().count(), 3);
}

#[test]
fn the_roles_are_there() {
    let dir = tempfile::tempdir().unwrap();
    for (role, word) in [("edge", "label"), ("trainer", "evaluate")] {
        let output = omnilabel(dir.path(), &[role, "--help"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(word), "{role}: {text}");
    }
}
