//! The import rules of ARCHITECTURE.md, as a function of the manifests.

use std::collections::{BTreeMap, BTreeSet};

/// The dependency graph as `cargo metadata` tells it: package name → names of its dependencies.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Normal and build dependencies.
    pub normal: BTreeMap<String, BTreeSet<String>>,
    /// Development dependencies.
    pub dev: BTreeMap<String, BTreeSet<String>>,
    /// The workspace's own packages.
    pub members: BTreeSet<String>,
}

/// One rule that was broken, in words.
pub type Violation = String;

const DEVICE: &str = "omnilabel-edge";
const CENTRE: &str = "omnilabel-trainer";
const LOCAL: &str = "omnilabel";
const SYSTEM_TESTS: &str = "omnilabel-tests";
/// The domain: no `std`, so nothing that needs it.
const DOMAIN: &str = "omnilabel-keypoints";
/// The kernels compiled as C++, for tests.
const SHIM: &str = "omnilabel-gpu-shim";
const MODELS: [&str; 11] = [
    "omnilabel-keypoints",
    "omnilabel-coco",
    "omnilabel-conv",
    "omnilabel-bundle",
    "omnilabel-detect",
    "omnilabel-gpu",
    "omnilabel-rcnn",
    "omnilabel-runtime",
    "omnilabel-link",
    "omnilabel-draw",
    "omnilabel-console",
];

impl Graph {
    /// Reads the output of `cargo metadata --format-version 1`.
    ///
    /// # Errors
    /// Names the field that is not there.
    pub fn from_metadata(json: &serde_json::Value) -> Result<Self, String> {
        let list = |v: &serde_json::Value, key: &str| v[key].as_array().cloned().ok_or(format!("cargo metadata: no `{key}`"));
        let text = |v: &serde_json::Value, key: &str| v[key].as_str().map(str::to_owned).ok_or(format!("cargo metadata: no `{key}`"));
        let mut name_of = BTreeMap::new();
        for package in list(json, "packages")? {
            name_of.insert(text(&package, "id")?, text(&package, "name")?);
        }
        let name = |id: &str| name_of.get(id).cloned().ok_or(format!("cargo metadata: no package `{id}`"));
        let mut graph = Self::default();
        for member in list(json, "workspace_members")? {
            graph.members.insert(name(member.as_str().unwrap_or_default())?);
        }
        for node in list(&json["resolve"], "nodes")? {
            let from = name(&text(&node, "id")?)?;
            for dep in list(&node, "deps")? {
                let to = name(&text(&dep, "pkg")?)?;
                for kind in list(&dep, "dep_kinds")? {
                    let table = if kind["kind"].as_str() == Some("dev") { &mut graph.dev } else { &mut graph.normal };
                    table.entry(from.clone()).or_default().insert(to.clone());
                }
            }
        }
        Ok(graph)
    }

    /// Everything `package` is linked with.
    pub fn reach(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(next) = open.pop() {
            for dep in self.normal.get(&next).into_iter().flatten() {
                if seen.insert(dep.clone()) {
                    open.push(dep.clone());
                }
            }
        }
        seen
    }

    /// The import rules: data goes round once, so no room may know the one that comes after it.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut forbid = |from: &str, to: &str, why: &str| {
            let direct_dev = self.dev.get(from).is_some_and(|d| d.contains(to));
            if direct_dev || self.reach(from).contains(to) {
                found.push(format!("{from} must not import {to}: {why}"));
            }
        };
        forbid(DEVICE, CENTRE, "the device and the centre know each other only through messages");
        forbid(CENTRE, DEVICE, "the device and the centre know each other only through messages");
        forbid(DEVICE, "omnilabel-rcnn", "a device runs bundles, it does not train");
        forbid(DEVICE, "candle-core", "a device runs bundles, it does not train");
        forbid("omnilabel-gpu", "tract-core", "the kernels know no graphs");
        for side in [DEVICE, CENTRE, LOCAL] {
            forbid(side, SHIM, "kernels on the CPU are for tests");
        }
        for model in MODELS {
            for side in [DEVICE, CENTRE, LOCAL] {
                forbid(model, side, "models are imported by both sides and know neither");
            }
        }
        forbid(DOMAIN, "serde_json", "the domain has no std");
        for member in &self.members {
            let both = [DEVICE, CENTRE].iter().all(|side| member != side && self.reach(member).contains(*side));
            if both && member != LOCAL && member != SYSTEM_TESTS {
                forbid(member, DEVICE, "deploy/local alone may import both sides");
            }
        }
        found.retain(|v| !(v.starts_with(DOMAIN) && v.contains("serde_json") && !self.reach(DOMAIN).contains("serde_json")));
        found
    }
}

/// What a member's own manifest must say: versions from the one table, lints from the workspace.
pub fn manifest_violations(path: &str, manifest: &toml::Table) -> Vec<Violation> {
    let mut found = Vec::new();
    let inherits = |v: Option<&toml::Value>| v.and_then(|v| v.get("workspace")).and_then(toml::Value::as_bool) == Some(true);
    if !inherits(manifest.get("lints")) {
        found.push(format!("{path}: [lints] does not say workspace = true"));
    }
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, spec) in manifest.get(table).and_then(toml::Value::as_table).into_iter().flatten() {
            if !inherits(Some(spec)) {
                found.push(format!("{path}: {table}.{name} has a version of its own"));
            }
        }
    }
    found
}

/// What the domain's manifests and root must say so that it builds without `std`: `#![no_std]` outside tests, and every dependency
/// without default features or known to have none that need `std`.
pub fn no_std_violations(lib_rs: &str, features: &BTreeMap<String, BTreeSet<String>>) -> Vec<Violation> {
    let mut found = Vec::new();
    if !(lib_rs.contains("#![no_std]") || lib_rs.contains("#![cfg_attr(not(test), no_std)]")) {
        found.push("models/keypoints/src/lib.rs does not say no_std".to_owned());
    }
    if lib_rs.contains("extern crate std") || lib_rs.contains("extern crate alloc") {
        found.push("models/keypoints/src/lib.rs brings std or alloc in again".to_owned());
    }
    for (package, enabled) in features {
        if enabled.contains("std") {
            found.push(format!("{package} has its feature `std` on in the domain's graph"));
        }
    }
    found
}
