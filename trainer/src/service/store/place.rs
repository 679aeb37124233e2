//! Where a centre's store is: a file in its state folder, or a PostgreSQL database that several collectors share.

use crate::service::config::{ServiceConfig, StoreConfig};
use std::path::{Path, PathBuf};

/// Where a store is. A path alone is the state folder of a centre on SQLite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is not in the database: bundles, events, the marker; with SQLite the database, too.
    pub(super) state_dir: PathBuf,
    /// The PostgreSQL database, where there is one.
    pub(super) store: StoreConfig,
}

impl Place {
    /// The store of `[store]`, for a process with this state folder.
    pub fn new(state_dir: &Path, store: &StoreConfig) -> Self {
        Self { state_dir: state_dir.to_owned(), store: store.clone() }
    }

    /// The folder with what is not in the database.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The same with another folder.
    pub fn with_state_dir(&self, state_dir: &Path) -> Self {
        Self::new(state_dir, &self.store)
    }

    /// Whether pictures go into an object store.
    pub const fn has_pictures(&self) -> bool {
        self.store.pictures.is_some()
    }

    /// Whether several processes may collect into it.
    pub const fn is_shared(&self) -> bool {
        self.store.url.is_some()
    }
}

impl From<&Path> for Place {
    fn from(state_dir: &Path) -> Self {
        Self::new(state_dir, &StoreConfig::default())
    }
}

impl From<&PathBuf> for Place {
    fn from(state_dir: &PathBuf) -> Self {
        state_dir.as_path().into()
    }
}

impl From<&ServiceConfig> for Place {
    fn from(config: &ServiceConfig) -> Self {
        Self::new(&config.state_dir, &config.store)
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}
