//! The report: one HTML file that needs nothing else.

mod chart;
mod figure;
mod page;

pub use chart::{Bar, Series};
pub use figure::{Drawn, Picture};

use crate::demo::outcome::Outcome;
use anyhow::Context;
use std::path::{Path, PathBuf};

/// The pictures of a report.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    /// Frames as the devices labelled them.
    pub labelled: Vec<Picture>,
    /// Rows of held-out frames: truth, the model before, the model after.
    pub compared: Vec<[Picture; 3]>,
}

/// Writes `folder/index.html` and `folder/outcome.json`, and returns the page's path.
///
/// # Errors
/// The folder cannot be written.
pub fn write(folder: &Path, outcome: &Outcome, pictures: &Pictures) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let page = folder.join("index.html");
    std::fs::write(&page, page::html(outcome, pictures)?).with_context(|| page.display().to_string())?;
    let json = folder.join("outcome.json");
    std::fs::write(&json, serde_json::to_string_pretty(outcome)?).with_context(|| json.display().to_string())?;
    Ok(page)
}

/// Text made safe for HTML content and attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_leaves_no_markup() {
        assert_eq!(escape("<a b=\"c\">'&"), "&lt;a b=&quot;c&quot;&gt;&#39;&amp;");
    }
}
