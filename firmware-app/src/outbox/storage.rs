//! Where the outbox keeps its bytes: a folder, behind a trait so that tests can lose power at every single operation.

use crate::durable::{replace_file, sync_folder};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A flat folder of append-only files.
pub trait Storage: Send {
    /// Names of all files, in any order.
    ///
    /// # Errors
    /// What the system says, as for every operation here.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// The whole file.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>>;
    /// `length` bytes from `offset`.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn read_at(&mut self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Bytes of the file.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn length(&mut self, name: &str) -> io::Result<u64>;
    /// Appends to the file, which is made when it is not there. Not durable before [`Storage::sync`].
    ///
    /// # Errors
    /// See [`Storage::list`]; part of the bytes may be in the file then.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's bytes and its name durable.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// Removes the file.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Gives the file another name, durably, and takes it from the file that had it.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Gives the file a further name, durably, which no file has yet. Where there are no such links, it fails.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn link(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Replaces the file as a whole, durably; what has its further names stays. Afterwards it has the old bytes or the new ones.
    ///
    /// # Errors
    /// See [`Storage::list`].
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// A folder on disk.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    open: HashMap<String, File>,
    /// Files whose names are durable.
    named: HashSet<String>,
}

impl Disk {
    /// Opens the folder, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), open: HashMap::new(), named: HashSet::new() })
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            // A handful of segments is in use at a time; closing all when there are many is simpler than an order of use.
            if self.open.len() >= 16 {
                self.open.clear();
            }
            let file = OpenOptions::new().read(true).append(true).create(true).open(self.folder.join(name))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get_mut(name).ok_or_else(|| io::Error::other("the file was just opened"))
    }
}

impl Storage for Disk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.folder.join(name))
    }

    fn read_at(&mut self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn length(&mut self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.folder.join(name))?.len())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()?;
        if self.named.insert(name.to_owned()) {
            sync_folder(&self.folder)?;
        }
        Ok(())
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let file = self.file(name)?;
        file.set_len(length)?;
        file.sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        self.named.remove(name);
        std::fs::remove_file(self.folder.join(name))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        for name in [from, to] {
            self.open.remove(name);
            self.named.remove(name);
        }
        std::fs::rename(self.folder.join(from), self.folder.join(to))?;
        sync_folder(&self.folder)
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.folder.join(from), self.folder.join(to))?;
        sync_folder(&self.folder)
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.open.remove(name);
        replace_file(&self.folder.join(name), bytes)
    }
}
