//! Where the teacher runs, on a machine without a GPU: what is asked for is refused with a reason, `auto` labels all the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use omnilabel_bundle::Bundle;
use omnilabel_edge::annotate::Model;
use omnilabel_edge::config::{TeacherConfig, TeacherDevice};
use omnilabel_runtime::{RuntimeError, check_golden};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn zoo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/nano-scenes")
}

fn label(device: &str, out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omnilabel-edge"));
    command.arg("label").arg("--model").arg(zoo()).arg("--images").arg(zoo().join("golden"));
    command.arg("--out").arg(out).args(["--device", device]).output().unwrap()
}

/// Whether this machine has what the GPU needs; then nothing is to be refused here.
fn has_gpu() -> bool {
    std::env::var_os("OMNILABEL_GPU").is_some()
}

#[test]
fn a_missing_gpu_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = label("cuda", &dir.path().join("out.json"));
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.success(), has_gpu(), "{told}");
    if !has_gpu() {
        assert!(told.contains("no GPU: ") && !told.contains("panicked"), "{told}");
        let config = TeacherConfig { device: TeacherDevice::Cuda, ..TeacherConfig::default() };
        let error = Model::load(&Bundle::open(&zoo()).unwrap(), 0, &config).err().unwrap();
        assert!(matches!(error, RuntimeError::Gpu(_)), "{error}");
    }
}

#[test]
fn auto_labels_wherever_it_can_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (cpu, auto) = (dir.path().join("cpu.json"), dir.path().join("auto.json"));
    assert!(label("cpu", &cpu).status.success());
    let out = label("auto", &auto);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{told}");
    if !has_gpu() {
        assert!(told.contains("runs on the CPU") && told.contains("no GPU: "), "{told}");
        assert_eq!(std::fs::read(cpu).unwrap(), std::fs::read(auto).unwrap());
    }
    let config = TeacherConfig { device: TeacherDevice::Auto, ..TeacherConfig::default() };
    let bundle = Bundle::open(&zoo()).unwrap();
    let model = Model::load(&bundle, 0, &config).unwrap();
    assert_eq!(check_golden(&bundle, model.teacher()).unwrap(), Ok(()));
}
