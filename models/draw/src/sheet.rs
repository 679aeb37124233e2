//! The contact sheet: one HTML page of its own, with relative links and pictures that are fetched when they are scrolled to.

use omnilabel_keypoints::geometry::Size;
use std::fmt::Write;

/// How a line under a picture is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emphasis {
    /// As usual.
    Plain,
    /// Something right.
    Good,
    /// Something wrong.
    Bad,
    /// Beside the point.
    Faint,
}

impl Emphasis {
    const fn class(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Faint => "faint",
        }
    }
}

/// One picture of the sheet.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// The picture's file within the album's folder, with `/`.
    pub file: String,
    /// Its size, so that the page does not move while it loads.
    pub size: Size,
    /// The heading: a name.
    pub title: String,
    /// The lines under it.
    pub lines: Vec<(Emphasis, String)>,
}

/// Marks a page as one of ours, which may be written anew.
pub(crate) const GENERATOR: &str = "<meta name=\"generator\" content=\"omnilabel-draw\">";

const STYLE: &str = include_str!("sheet.css");

/// Text for HTML, between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A relative path as a URL: everything but RFC 3986's unreserved characters and `/` is percent-encoded. A name never passes for a
/// scheme, since `:` is encoded too.
fn url(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// The page. `summary` stands under the title, `notes` (pictures that could not be read, say) at the end.
pub(crate) fn html(title: &str, summary: &[String], cards: &[Card], notes: &[String]) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">{GENERATOR}\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\n<style>{STYLE}</style></head>\n\
         <body><header><h1>{title}</h1>"
    );
    summary.iter().for_each(|line| page += &format!("<p>{}</p>", escape(line)));
    // Pictures side by side need wider columns.
    let wide = cards.iter().filter(|card| card.size.width > 2 * card.size.height).count();
    page += if 2 * wide > cards.len() { "</header>\n<main class=\"wide\">\n" } else { "</header>\n<main>\n" };
    for Card { file, size, title, lines } in cards {
        let (link, title) = (url(file), escape(title));
        page += &format!(
            "<figure><a href=\"{link}\"><img src=\"{link}\" width=\"{}\" height=\"{}\" loading=\"lazy\" decoding=\"async\" alt=\"{title}\"></a>\
             <figcaption><b>{title}</b>",
            size.width, size.height
        );
        for (emphasis, line) in lines {
            page += &format!("<span class=\"{}\">{}</span>", emphasis.class(), escape(line));
        }
        page += "</figcaption></figure>\n";
    }
    page += "</main>\n";
    if !notes.is_empty() {
        page += &format!("<footer><h2>Left out: {}</h2><ul>", notes.len());
        notes.iter().for_each(|note| page += &format!("<li>{}</li>", escape(note)));
        page += "</ul></footer>\n";
    }
    page + "</body></html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_links_are_relative() {
        let card = Card {
            file: "a b/<x>\"#?é.jpg".to_owned(),
            size: Size { width: 3, height: 2 },
            title: "<script>alert('x')</script>".to_owned(),
            lines: vec![(Emphasis::Bad, "missed & \"lost\"".to_owned())],
        };
        let page = html("t<i>", &["s<u>".to_owned()], &[card], &["n<b>".to_owned()]);
        assert!(page.contains("href=\"a%20b/%3Cx%3E%22%23%3F%C3%A9.jpg\""), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)") && page.contains("missed &amp; &quot;lost&quot;"), "{page}");
        for raw in ["<script", "t<i>", "s<u>", "n<b>", "http"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert_eq!(url("javascript:alert(1)"), "javascript%3Aalert%281%29");
    }
}
