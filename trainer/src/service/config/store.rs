//! `[store]`: which database, and where the pictures lie.

use super::{Check, S3Config};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyConnectOptions;
use std::path::{Path, PathBuf};

/// Of a database's URL, those that both the service's client and `pg_dump` know; `application_name` is the service's, a password in a file.
const PARAMETERS: &str = "sslmode, sslrootcert, sslcert, sslkey, host, hostaddr, port, dbname, user, options";

/// `[store]`: SQLite in the state folder without `url`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A PostgreSQL database: `postgres://USER@HOST[:PORT]/DATABASE[?sslmode=verify-full&sslrootcert=FILE]`, without a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A file (mode 0600) with the password; without it the one of `PGPASSFILE` or `~/.pgpass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Where pictures go: `s3://BUCKET/PREFIX` or `file:///FOLDER`; into the database without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<String>,
    /// Pictures that are put or fetched at once.
    pub picture_requests: usize,
    /// How long one request for one picture may take, s.
    pub picture_timeout_secs: u64,
    /// How the bucket is reached.
    pub s3: S3Config,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: None, password_file: None, pictures: None, picture_requests: 16, picture_timeout_secs: 30, s3: S3Config::default() }
    }
}

impl StoreConfig {
    /// Files are relative to the configuration's folder.
    pub(super) fn locate(&mut self, folder: &Path) {
        for file in self.password_file.iter_mut().chain(&mut self.s3.credentials_file).chain(&mut self.s3.ca) {
            *file = folder.join(&*file);
        }
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = Check> {
        self.database_checks().into_iter().chain(self.picture_checks())
    }

    fn database_checks(&self) -> [Check; 4] {
        let parsed = self.url.as_deref().map(str::parse::<AnyConnectOptions>);
        let url = parsed.as_ref().and_then(|parsed| parsed.as_ref().ok()).map(|options| &options.database_url);
        let is_postgres = url.is_some_and(|url| matches!(url.scheme(), "postgres" | "postgresql"));
        let has_password = url.is_some_and(|url| url.password().is_some() || url.query_pairs().any(|(key, _)| key == "password"));
        // The client ignores what it does not know: a slip in `sslmode` would connect to whoever answers.
        let unknown = url.and_then(|url| {
            url.query_pairs().map(|(key, _)| key.into_owned()).find(|key| PARAMETERS.split(", ").all(|known| known != key))
        });
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
            (unknown.is_none(), "store.url", format!("a URL with {:?}", unknown.unwrap_or_default()), PARAMETERS),
            (
                self.password_file.is_none() || self.url.is_some(),
                "store.password_file",
                format!("{:?}", self.password_file),
                "none without `store.url`",
            ),
        ]
    }
}
