//! A small fleet for a few seconds: the programs start, everything breaks, nothing is lost, the report can be read.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::Command;

fn mosquitto() -> bool {
    let there = ["mosquitto", "/usr/sbin/mosquitto"].iter().any(|name| Command::new(name).arg("-h").output().is_ok());
    if !there {
        println!("skipped: no mosquitto (tests/setup installs it)");
    }
    there
}

fn fleet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnilabel-bench"));
    command.arg("fleet");
    command
}

#[test]
fn twenty_devices_lose_nothing() {
    if !mosquitto() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("fleet.json");
    let size = ["--devices", "20", "--minutes", "0.17", "--rate", "5", "--frames", "0.1", "--bad", "0.2", "--seed", "3"];
    let times = ["--probation", "1", "--block-rate", "16384", "--drain", "150"];
    let output = fleet().args(size).args(times).arg("--json").arg(&json).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("every promise held"), "{out}");

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let labels = |key: &str| report["labels"][key].as_u64().unwrap();
    assert!(labels("made") > 300 && labels("made") == labels("stored"), "{out}");
    assert!(labels("compared") > 2, "{out}");
    for key in ["lost", "twice", "altered", "foreign", "pending", "missing", "conflicts", "unsettled"] {
        assert_eq!(labels(key), 0, "{key}: {out}");
    }
    let release = &report["release"];
    assert_eq!((release["good"].as_u64(), release["confirmed"].as_u64()), (Some(12), Some(12)), "{out}");
    assert!(release["all_secs"].as_f64().unwrap() > 1.0, "nobody confirms before its probation: {out}");
    assert!(report["faults"].as_object().unwrap().len() > 3, "{out}");
    assert!(!report["marks"].as_array().unwrap().is_empty() && report["calm"]["labels"].as_u64().unwrap() > 0, "{out}");
    let svg = std::fs::read_to_string(json.with_extension("svg")).unwrap();
    assert!(svg.contains("on the new release") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn an_impossible_fleet_is_refused() {
    for (option, value) in [("--devices", "0"), ("--minutes", "0"), ("--rate", "-1"), ("--bad", "1.5"), ("--block-rate", "0")] {
        let output = fleet().arg(format!("{option}={value}")).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(option), "{option}");
    }
}
