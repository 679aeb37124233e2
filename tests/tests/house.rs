//! The manifests keep the rules of ARCHITECTURE.md, and a manifest that breaks them is noticed.

use omnilabel_tests::house::{Graph, manifest_violations, no_std_violations};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn cargo(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO"))
        .args(args)
        .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("cargo prints UTF-8")
}

fn graph() -> Graph {
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let version = String::from_utf8(rustc.stdout).expect("rustc prints UTF-8");
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).expect("rustc -vV names the host");
    let text = cargo(&["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host]);
    Graph::from_metadata(&serde_json::from_str(&text).expect("JSON")).expect("a dependency graph")
}

#[test]
fn the_workspace_keeps_its_import_rules() {
    assert_eq!(graph().violations(), Vec::<String>::new());
}

#[test]
fn a_forbidden_import_is_noticed() {
    for (from, to) in [
        ("omnilabel-edge", "omnilabel-trainer"),
        ("omnilabel-trainer", "omnilabel-edge"),
        ("omnilabel-edge", "candle-core"),
        ("omnilabel-runtime", "omnilabel-rcnn"),
        ("omnilabel-keypoints", "serde_json"),
        ("omnilabel-link", "omnilabel-edge"),
        ("omnilabel-gpu", "tract-core"),
        ("omnilabel-runtime", "omnilabel-gpu-shim"),
    ] {
        let mut graph = graph();
        graph.normal.entry(from.to_owned()).or_default().insert(to.to_owned());
        assert!(!graph.violations().is_empty(), "{from} -> {to} was not noticed");
    }
}

#[test]
fn every_member_takes_versions_and_lints_from_the_workspace() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml")).expect("readable").parse().expect("TOML");
    let members = manifest["workspace"]["members"].as_array().expect("members");
    let mut found = Vec::new();
    for member in members {
        let path = format!("{}/Cargo.toml", member.as_str().expect("a path"));
        let text = std::fs::read_to_string(root().join(&path)).expect("readable");
        found.extend(manifest_violations(&path, &text.parse().expect("TOML")));
    }
    assert_eq!(found, Vec::<String>::new());
    let own = "[dependencies]\nserde = \"1\"\n".parse().expect("TOML");
    assert_eq!(manifest_violations("fixture", &own).len(), 2);
}

/// Features of each package that the domain alone turns on, as cargo resolves them for a build of that package.
fn domain_features() -> BTreeMap<String, BTreeSet<String>> {
    let tree = cargo(&[
        "tree",
        "--offline",
        "--locked",
        "-p",
        "omnilabel-keypoints",
        "-e",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "-f",
        "{p}|{f}",
    ]);
    let line = |l: &str| {
        let (package, features) = l.split_once('|')?;
        let features = features.trim_end_matches(" (*)").split(',').map(str::to_owned).collect();
        Some((package.split(' ').next()?.to_owned(), features))
    };
    tree.lines().filter_map(line).collect()
}

#[test]
fn the_domain_is_no_std() {
    let lib = std::fs::read_to_string(root().join("models/keypoints/src/lib.rs")).expect("readable");
    let features = domain_features();
    assert!(features.len() > 3, "cargo tree lists the domain's dependencies: {features:?}");
    assert_eq!(no_std_violations(&lib, &features), Vec::<String>::new());
    let with_std = BTreeMap::from([("serde".to_owned(), BTreeSet::from(["std".to_owned()]))]);
    assert_eq!(no_std_violations("//! no attribute", &with_std).len(), 2);
}

/// Every Rust source of the repository, relative to its root.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && !name.starts_with('.') && !name.starts_with("target") && name != "node_modules" {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn an_errors_causes_are_put_together_in_one_place() {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    // Written apart, so that this line is not found itself.
    let chain = [":", "#}"].join("");
    let told = found.into_iter().filter(|path| {
        let text = std::fs::read_to_string(path).expect("readable");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        !path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs"))) && code.contains(&chain)
    });
    let mut told: Vec<PathBuf> = told.map(|path| path.strip_prefix(root()).expect("inside").to_owned()).collect();
    told.sort();
    // The place itself; tract's own causes, in the message of an error: everything else goes through `omnilabel_console::line`.
    let expected = ["models/console/src/lib.rs", "models/runtime/src/pose/inspect.rs", "models/runtime/src/tract.rs"];
    assert_eq!(told, expected.map(PathBuf::from));
}

#[test]
fn unsafe_code_is_where_the_map_says() {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 100, "{} sources", found.len());
    // Written apart, so that this line is not found itself.
    let words = ["{", "impl"].map(|next| ["unsafe", next].join(" "));
    let has_one = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        words.iter().any(|word| text.contains(word))
    };
    let opened = found.into_iter().filter(has_one);
    let mut opened: Vec<PathBuf> = opened.map(|path| path.strip_prefix(root()).expect("inside").to_owned()).collect();
    opened.sort();
    // The matrix product; the borders to CUDA, to the kernels, to tract-cuda's and candle's memory, and to the kernels as C++ with their test.
    let expected = [
        "models/conv/src/gemm.rs",
        "models/gpu/shim/src/lib.rs",
        "models/gpu/src/cuda.rs",
        "models/gpu/src/ops/mod.rs",
        "models/gpu/tests/shim.rs",
        "models/rcnn/src/ops/cuda.rs",
        "models/rcnn/src/ops/nccl.rs",
        "models/runtime/src/device/cuda.rs",
    ];
    assert_eq!(opened, expected.map(PathBuf::from));
}
