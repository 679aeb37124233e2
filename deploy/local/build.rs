//! Lists `models/zoo` as `include_bytes!`, so that an installed binary has the shipped model with it.

use std::io::Write;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    // Asked when it runs: a target folder may be copied or shared between checkouts, and the program with it.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| std::io::Error::other("cargo sets CARGO_MANIFEST_DIR"))?;
    let zoo = Path::new(&package).join("../../models/zoo");
    println!("cargo:rerun-if-changed={}", zoo.display());
    let mut files = Vec::new();
    if zoo.is_dir() {
        walk(&zoo, &mut files)?;
    }
    files.sort();
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| std::io::Error::other("cargo sets OUT_DIR"))?;
    let mut list = std::fs::File::create(out.join("zoo.rs"))?;
    writeln!(list, "&[")?;
    for file in files {
        let name = file.strip_prefix(&zoo).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        println!("cargo:rerun-if-changed={}", file.display());
        writeln!(list, "    ({name:?}, include_bytes!({:?})),", file.canonicalize()?)?;
    }
    writeln!(list, "]")
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            println!("cargo:rerun-if-changed={}", path.display());
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
