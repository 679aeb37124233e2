//! `deploy/compose` without an engine: what its file says, and what of the machine lies where in a container.

use crate::peers::{command, python, root, until};
use crate::postgres::Postgres;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The folder of the compose file.
pub fn folder() -> PathBuf {
    root().join("deploy/compose")
}

/// Runs `prepare` to its end.
///
/// # Panics
/// It cannot be started.
pub fn prepare<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    Command::new(folder().join("prepare")).args(args).stdin(Stdio::null()).output().expect("bash")
}

/// Makes a database as the service `postgres` has it, of the user `omnilabel` with a password that the server asks for, and returns its
/// URL without it.
///
/// # Panics
/// The server refuses, or lets everybody in.
pub fn database(postgres: &Postgres, password: &str) -> String {
    assert!(!password.contains('\''), "a password without '");
    postgres.psql("postgres", &format!("CREATE ROLE omnilabel LOGIN PASSWORD '{password}'"));
    postgres.psql("postgres", "CREATE DATABASE omnilabel OWNER omnilabel");
    let rules = postgres.psql("postgres", "SHOW hba_file");
    let asked = "VALUES ('local all postgres trust'), ('local all omnilabel scram-sha-256')";
    postgres.psql("postgres", &format!("COPY ({asked}) TO '{rules}'"));
    postgres.psql("postgres", "SELECT pg_reload_conf()");
    let url = postgres.url("omnilabel").replace("//postgres@", "//omnilabel@");
    // It reads its rules a moment later.
    until("the server asks for a password", || {
        let mut client = Command::new("psql");
        client.args(["-X", "-w", "-c", "SELECT 1", &url]).env("PGPASSFILE", "/dev/null").env_remove("PGPASSWORD");
        let out = client.stdin(Stdio::null()).output().expect("psql");
        (!out.status.success()).then_some(())
    });
    url
}

/// A compose file for one site.
pub struct Compose {
    file: Value,
    /// Where named volumes lie.
    volumes: PathBuf,
}

impl Compose {
    /// Reads `compose.yaml` for the site that was prepared in a folder; named volumes become folders in `volumes`. `None`, with a message,
    /// where there is no Python.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn read(site: &Path, volumes: &Path) -> Option<Self> {
        let mut read = Command::new(python()?);
        read.arg(root().join("tests/python/read_compose.py")).arg(folder().join("compose.yaml")).arg(site.join("compose/compose.env"));
        let file = serde_json::from_str(&command(&mut read)).expect("JSON");
        Some(Self { file, volumes: volumes.to_owned() })
    }

    /// The whole file.
    pub const fn file(&self) -> &Value {
        &self.file
    }

    /// Names and settings of the services.
    ///
    /// # Panics
    /// There are none.
    pub fn services(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.file["services"].as_object().expect("services").iter().map(|(name, service)| (name.as_str(), service))
    }

    /// What a service has mounted: the path in its container, the path here; longer ones first.
    ///
    /// # Panics
    /// A mount that is none.
    pub fn mounts(&self, service: &str) -> Vec<(String, PathBuf)> {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{service}: expected text, not {value}")).to_owned();
        let service = &self.file["services"][service];
        let volumes = service["volumes"].as_array().into_iter().flatten().map(|mount| {
            let source = text(&mount["source"]);
            let here = if mount["type"] == "volume" { self.volumes.join(source) } else { folder().join(source) };
            (text(&mount["target"]), here)
        });
        let secrets = service["secrets"].as_array().into_iter().flatten().map(|name| {
            let name = text(name);
            (format!("/run/secrets/{name}"), PathBuf::from(text(&self.file["secrets"][&name]["file"])))
        });
        let mut mounts: Vec<_> = volumes.chain(secrets).collect();
        mounts.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        mounts
    }

    /// A path in a service's container, here.
    ///
    /// # Panics
    /// Nothing is mounted there.
    pub fn here(&self, service: &str, path: &str) -> PathBuf {
        let found = self.mounts(service).into_iter().find_map(|(target, here)| {
            let rest = path.strip_prefix(&target)?;
            if rest.is_empty() { Some(here) } else { Some(here.join(rest.strip_prefix('/')?)) }
        });
        found.unwrap_or_else(|| panic!("{service} has nothing mounted at {path}"))
    }
}
