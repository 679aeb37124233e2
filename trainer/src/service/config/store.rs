//! `[store]`: which database.

use super::Check;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyConnectOptions;
use std::path::PathBuf;

/// `[store]`: SQLite in the state folder without `url`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A PostgreSQL database: `postgres://USER@HOST[:PORT]/DATABASE[?sslmode=verify-full&sslrootcert=FILE]`, without a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A file (mode 0600) with the password; without it the one of `PGPASSFILE` or `~/.pgpass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl StoreConfig {
    pub(super) fn checks(&self) -> [Check; 3] {
        let parsed = self.url.as_deref().map(str::parse::<AnyConnectOptions>);
        let url = parsed.as_ref().and_then(|parsed| parsed.as_ref().ok()).map(|options| &options.database_url);
        let is_postgres = url.is_some_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
        let has_password = url.is_some_and(|url| url.password().is_some() || url.query_pairs().any(|(key, _)| key == "password"));
        // One with a password is never shown; nor is what may be one, because it is no URL.
        let shown = if is_postgres && !has_password { format!("{:?}", self.url) } else { "another text".to_owned() };
        [
            (self.url.is_none() || is_postgres, "store.url", shown, "postgres://USER@HOST/DATABASE"),
            (
                !has_password,
                "store.url",
                "a URL with a password".to_owned(),
                "one without: a password is in the file `store.password_file` or in `PGPASSFILE`",
            ),
            (
                self.password_file.is_none() || self.url.is_some(),
                "store.password_file",
                format!("{:?}", self.password_file),
                "none without `store.url`",
            ),
        ]
    }
}
