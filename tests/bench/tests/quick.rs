//! The harness works: sides start, agree and are timed, and the report can be read. How fast anybody is, is not tested: a busy machine would
//! decide it.
#![allow(clippy::unwrap_used)]

use omnilabel_bench::report::Report;
use omnilabel_tests::peers;
use std::path::Path;
use std::process::Command;

/// Runs the program with the quick options on `only`; the report and the chart's text.
fn quick(command: &str, only: &[&str]) -> (Report, String) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let mut program = Command::new(env!("CARGO_BIN_EXE_omnilabel-bench"));
    program.args([command, "--quick", "--json"]).arg(&json).arg("--work").arg(folder.path().join("fixtures"));
    let output = program.args(only.iter().flat_map(|name| ["--only", *name])).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (report, std::fs::read_to_string(json.with_extension("svg")).unwrap())
}

fn torch() -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let there = std::env::var_os("OMNILABEL_TORCH_PYTHON").is_some() || root.join(".venv-torch/bin/python").exists();
    if !there {
        println!("skipped: no PyTorch (tests/setup --torch makes its venv)");
    }
    there
}

fn check(report: &Report, cases: usize) {
    assert_eq!(report.cases.len(), cases);
    for case in &report.cases {
        assert_eq!(case.invalid, None, "{}", case.case);
        assert!(case.sides.len() >= 2, "{} compares nobody", case.case);
        for (index, side) in case.sides.iter().enumerate() {
            assert_eq!(side.seconds.len(), case.rounds);
            assert!(side.seconds.iter().all(|seconds| *seconds > 0.0), "{} of {}", side.side, case.case);
            assert!(side.memory.peak > 1 << 20, "{} of {}: {:?}", side.side, case.case, side.memory);
            assert_eq!(side.ratio.is_some(), index > 0);
            assert!(side.ratios.iter().all(|ratio| *ratio > 0.0));
        }
    }
}

#[test]
fn other_tools_are_compared() {
    if peers::python().is_none() {
        return;
    }
    let (report, svg) = quick("compare", &["score", "wire", "ingest"]);
    check(&report, 5);
    assert!(svg.contains("pycocotools") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn networks_are_compared() {
    if !torch() || peers::python().is_none() {
        return;
    }
    let (report, svg) = quick("compare", &["train", "detect", "label"]);
    check(&report, 3);
    assert!(svg.contains("ONNX Runtime"));
}

#[test]
fn a_curve_is_drawn() {
    if !torch() {
        return;
    }
    let (report, svg) = quick("scale", &["people"]);
    let curve = &report.curves[0];
    assert_eq!(curve.points.len(), 2);
    for point in &curve.points {
        assert_eq!(point.report.invalid, None);
        assert!(point.y.len() == 2 && point.y.iter().all(|(_, y)| *y > 0.0), "{point:?}");
    }
    assert!(svg.contains("PyTorch") && svg.contains("omnilabel"));
}

#[test]
fn an_unknown_case_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_omnilabel-bench")).args(["compare", "--only", "nothing"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("omnilabel-bench list"));
}
