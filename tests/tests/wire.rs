//! The documented formats against validators of their own kind.

use omnilabel_tests::peers::{python, root};
use std::process::Command;

#[test]
fn every_example_is_what_the_schema_and_the_cddl_say() {
    let Some(python) = python() else { return };
    let output = Command::new(python).arg(root().join("tests/python/check_examples.py")).arg(root().join("docs")).output().expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut kinds: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    kinds.sort_unstable();
    let expected = ["ack", "blockRequest", "frameHeader", "histogram", "label", "model", "release", "releaseManifest", "status"];
    assert_eq!(kinds, expected, "kinds of messages with examples");
}
