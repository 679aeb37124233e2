//! What GStreamer is asked for.

use crate::config::Transport;
use std::path::Path;

/// Where a pipeline gets its pictures.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// For people; without a password.
    pub(super) name: String,
    /// The pipeline up to raw video, as `gst-launch-1.0` takes it.
    pub(super) pipeline: String,
    /// What must not be told: user, password and query of a URL.
    secrets: Vec<String>,
}

/// Without what must not be told.
impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Source {
    /// An RTSP stream. The first video of it is taken; Over TCP, RTP is interleaved with RTSP.
    ///
    /// # Errors
    /// When `url` is no `rtsp://` or `rtsps://` URL.
    pub fn rtsp(url: &str, transport: Transport, latency_ms: u32) -> Result<Self, String> {
        let rest = url.strip_prefix("rtsp://").or_else(|| url.strip_prefix("rtsps://"));
        let Some(rest) = rest.filter(|rest| !rest.is_empty() && is_plain(rest)) else {
            return Err("is not a URL of the form rtsp://[user:password@]host[:port]/path".to_owned());
        };
        // Passwords stand before the host, or in the query.
        let (user, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (place, query) = place.find(['?', ';']).map_or((place, ""), |at| place.split_at(at));
        let protocols = match transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        Ok(Self {
            name: format!("rtsp://{place}"),
            secrets: [user, query].iter().filter(|text| !text.is_empty()).map(|text| (*text).to_owned()).collect(),
            pipeline: format!(
                "rtspsrc location=\"{url}\" protocols={protocols} latency={latency_ms} ! application/x-rtp,media=video ! decodebin"
            ),
        })
    }

    /// A camera of the kernel (V4L2): USB cameras.
    ///
    /// # Errors
    /// When the path cannot stand in a pipeline.
    pub fn v4l2(device: &Path) -> Result<Self, String> {
        let pipeline = format!("v4l2src device={} ! decodebin", quoted(device)?);
        Ok(Self { name: device.display().to_string(), pipeline, secrets: Vec::new() })
    }

    /// A video file.
    ///
    /// # Errors
    /// When the path cannot stand in a pipeline.
    pub fn video(path: &Path) -> Result<Self, String> {
        let pipeline = format!("filesrc location={} ! decodebin", quoted(path)?);
        Ok(Self { name: path.display().to_string(), pipeline, secrets: Vec::new() })
    }

    /// A pipeline as it is. Its name is its first element.
    ///
    /// # Errors
    /// When it is empty, or ends in the middle of a quotation.
    pub fn pipeline(text: &str) -> Result<Self, String> {
        let words = words(text).ok_or_else(|| "ends within quotation marks".to_owned())?;
        let first = words.first().ok_or_else(|| "is empty, expected GStreamer elements that end in raw video".to_owned())?;
        // Between `://` and `@` stands who somebody is.
        let between = text.split("://").skip(1).filter_map(|rest| Some(rest.split(['"', ' ', '/']).next()?.rsplit_once('@')?.0.to_owned()));
        Ok(Self { name: format!("pipeline {first}"), pipeline: text.to_owned(), secrets: between.collect() })
    }

    /// A text without what must not be told.
    pub(super) fn discreet(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "…"))
    }
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '"' || c == '\\')
}

fn quoted(path: &Path) -> Result<String, String> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\\']) && !text.chars().any(char::is_control) => Ok(format!("\"{text}\"")),
        _ => Err(format!("is {path:?}, expected a path without quotation marks and backslashes")),
    }
}

/// Words between white space outside of quotation marks, which stay: `gst-launch-1.0` reads them itself. None where they do not end.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        if c.is_whitespace() && !quoted {
            words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
        } else {
            word.push(c);
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    (!quoted).then_some(words)
}
