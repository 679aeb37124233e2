//! The configuration of `omnilabel-trainer collect`: what a collector needs beside the `run` of its database.

use super::{CollectorConfig, ConfigError, StoreConfig, check_broker, extract, first_wrong, intake_checks, locate_tls};
use omnilabel_link::LinkConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `collector.toml`. Relative paths are relative to the file's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectConfig {
    /// MQTT client id, another one for each.
    pub client_id: String,
    /// Events and the marker; a folder for each.
    pub state_dir: PathBuf,
    /// The database.
    pub store: StoreConfig,
    /// The broker.
    pub broker: LinkConfig,
    /// Limits of what is taken in, and the group that shares it.
    pub collector: CollectorConfig,
}

impl CollectConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| ConfigError::Shape { path: path.to_owned(), message: error.to_string() })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for errors and relative paths.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = extract(path, text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.state_dir = folder.join(&config.state_dir);
        config.store.locate(folder);
        locate_tls(&mut config.broker, folder);
        let needed = "a PostgreSQL database: with SQLite `omnilabel-trainer run` collects alone";
        let group = "the name of the group, the same for every collector and the `run`";
        let own = [
            (config.store.url.is_some(), "store.url", "missing".to_owned(), needed),
            (config.collector.share.is_some(), "collector.share", "missing".to_owned(), group),
        ];
        let intake = intake_checks(&config.client_id, &config.broker, &config.collector);
        first_wrong(path, own.into_iter().chain(intake).chain(config.store.checks()))?;
        check_broker(path, &config.broker)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "client_id = \"collector-2\"\nstate_dir = \"state\"\n[store]\nurl = \"postgres://centre@db/omnilabel\"\n\
                        [broker]\nhost = \"127.0.0.1\"\nsite = \"yard\"\n[collector]\nshare = \"centre\"\n";

    #[test]
    fn a_collector_has_a_database_and_a_group() {
        let path = Path::new("/etc/omnilabel/collector.toml");
        let config = CollectConfig::parse(path, GOOD).unwrap();
        assert_eq!((config.state_dir.as_path(), config.collector.share.as_deref()), (Path::new("/etc/omnilabel/state"), Some("centre")));
        assert_eq!(CollectConfig::parse(path, &toml::to_string_pretty(&config).unwrap()).unwrap(), config);
        let check = |text: &str, expect: &str| {
            let told = CollectConfig::parse(path, text).expect_err(expect).to_string();
            assert!(told.contains(expect) && told.contains("collector.toml"), "{told} does not say {expect}");
        };
        check(&GOOD.replace("url = \"postgres://centre@db/omnilabel\"", ""), "`store.url` is missing");
        check(&GOOD.replace("share = \"centre\"", ""), "`collector.share` is missing");
        check(&GOOD.replace("client_id = \"collector-2\"", ""), "client_id");
        check(&format!("{GOOD}[round]\nmin_labels = 1"), "round");
    }
}
