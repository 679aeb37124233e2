//! A small fleet for a few seconds: the programs start, everything breaks, nothing is lost, a release goes out by waves, the report can be
//! read.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::process::Command;

fn mosquitto() -> bool {
    let there = ["mosquitto", "/usr/sbin/mosquitto"].iter().any(|name| Command::new(name).arg("-h").output().is_ok());
    if !there {
        println!("skipped: no mosquitto (tests/setup installs it)");
    }
    there
}

/// Share, devices, seconds from the release on.
fn wave(opened: &Value) -> (u64, u64, f64) {
    (opened["share"].as_u64().unwrap(), opened["devices"].as_u64().unwrap(), opened["secs"].as_f64().unwrap())
}

fn fleet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnilabel-bench"));
    command.arg("fleet");
    command
}

#[test]
fn sixty_devices_lose_nothing_and_take_a_release_by_waves() {
    if !mosquitto() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("fleet.json");
    let size = ["--devices", "60", "--minutes", "0.17", "--rate", "3", "--frames", "0.1", "--bad", "0.06", "--seed", "3"];
    let times = ["--probation", "1", "--block-rate", "8192", "--drain", "240"];
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
    assert_eq!((release["good"].as_u64(), release["confirmed"].as_u64()), (Some(52), Some(52)), "{out}");
    assert_eq!((&release["refused"], &release["hung"], &release["lied"]), (&json!([4, 4]), &json!([2, 2]), &json!([2, 2])), "{out}");
    let canary = &release["canary"];
    let waves: Vec<(u64, u64, f64)> = canary["opened"].as_array().unwrap().iter().map(wave).collect();
    let [(50, first, 0.0), (250, second, later), (1000, 60, last)] = waves[..] else { panic!("{waves:?}: {out}") };
    assert!(0 < first && first < second && second < 60, "{out}");
    // A wave takes five seconds from its decision on, which is a little before the event; nobody confirms before its probation.
    assert!(later > 2.0 && last > later + 4.0 && canary["complete_secs"].as_f64().unwrap() > last + 1.0, "{out}");
    assert_eq!((&canary["complete"], &canary["halted"], &canary["early"]), (&json!(true), &json!(null), &json!([])), "{out}");
    assert_eq!(canary["began"].as_u64(), Some(60), "{out}");
    assert!(release["all_secs"].as_f64().unwrap() > last + 1.0, "nobody confirms before its wave and its probation: {out}");
    assert!(report["faults"].as_object().unwrap().len() > 3, "{out}");
    assert!(!report["marks"].as_array().unwrap().is_empty() && report["calm"]["labels"].as_u64().unwrap() > 0, "{out}");
    let svg = std::fs::read_to_string(json.with_extension("svg")).unwrap();
    assert!(svg.contains("on the new release") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn an_impossible_fleet_is_refused() {
    let shares = [("--bad", "1.5"), ("--bad", "0.3"), ("--waves", "50,20,100"), ("--waves", "50")];
    for (option, value) in [("--devices", "0"), ("--minutes", "0"), ("--rate", "-1"), ("--block-rate", "0")].into_iter().chain(shares) {
        let output = fleet().arg(format!("{option}={value}")).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(option), "{option}");
    }
}
