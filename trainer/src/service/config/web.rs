//! `[web]` of `trainer.toml`.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[web]`: the centre's page, its API, metrics and health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// Where it listens; nowhere without it. An address that other machines reach needs a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<SocketAddr>,
    /// A file (mode 0600) with the token of those who may look, at least 32 characters. On loopback and without it, who is on this machine
    /// may look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viewer_token_file: Option<PathBuf>,
    /// A file (mode 0600) with the token of those who may also halt, resume and recall releases and start rounds; nobody may without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_token_file: Option<PathBuf>,
    /// Connections at once; further ones wait to be accepted. A browser opens six.
    pub connections: usize,
    /// A connection whose request has not come, or that does not take its answer, is closed after so many seconds.
    pub header_timeout_secs: u64,
    /// How long somebody stays logged in.
    pub session_minutes: u64,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            bind: None,
            viewer_token_file: None,
            operator_token_file: None,
            connections: 64,
            header_timeout_secs: 10,
            session_minutes: 720,
        }
    }
}

impl WebConfig {
    /// Whether each value can be: good, key, found, expected.
    pub(super) fn checks(&self) -> [(bool, &'static str, String, &'static str); 4] {
        let outside = self.bind.filter(|address| !address.ip().is_loopback());
        let guarded = self.viewer_token_file.is_some() || self.operator_token_file.is_some();
        [
            (
                outside.is_none() || guarded,
                "web.viewer_token_file",
                "missing".to_owned(),
                "a token file, or `web.operator_token_file`: `web.bind` is an address that other machines reach",
            ),
            ((1..=4096).contains(&self.connections), "web.connections", self.connections.to_string(), "1 to 4096"),
            ((1..=300).contains(&self.header_timeout_secs), "web.header_timeout_secs", self.header_timeout_secs.to_string(), "1 to 300"),
            ((1..=43_200).contains(&self.session_minutes), "web.session_minutes", self.session_minutes.to_string(), "1 to 43200"),
        ]
    }
}
