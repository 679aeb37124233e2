//! `store.pictures` and `[store.s3]`: where pictures lie that are not in the database.

use super::{Check, StoreConfig};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Requests to the object store at once, of one process.
const MAX_REQUESTS: usize = 256;

/// `[store.s3]`: how the bucket of `store.pictures` is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// `https://HOST[:PORT]` of the service; Amazon's own without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's region; the one of `AWS_REGION` or `AWS_DEFAULT_REGION`, or `us-east-1`, without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `HOST/BUCKET` and not `BUCKET.HOST`; without it so where there is an `endpoint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// Plain HTTP to another machine: pictures can be read on the way.
    pub allow_http: bool,
    /// A file (mode 0600) in the form of AWS's with `aws_access_key_id` and `aws_secret_access_key`; in the environment without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// PEM file with the certificates that the service's is signed by; the system's without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// Where pictures lie that are not in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PictureUrl {
    /// `s3://BUCKET[/PREFIX]`
    S3 {
        /// The bucket.
        bucket: String,
        /// Folders in it, empty or without slashes at its ends.
        prefix: String,
    },
    /// `file:///FOLDER`
    Folder(PathBuf),
}

impl FromStr for PictureUrl {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() > 1024 {
            return Err(());
        }
        if let Some(path) = text.strip_prefix("file://") {
            let path = Path::new(path);
            let plain = path.components().all(|part| part != std::path::Component::ParentDir);
            return if path.is_absolute() && path.parent().is_some() && plain { Ok(Self::Folder(path.to_owned())) } else { Err(()) };
        }
        let (bucket, prefix) = text.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))).ok_or(())?;
        let prefix = prefix.trim_end_matches('/');
        let is_edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let named = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|byte| is_edge(byte) || byte == b'-' || byte == b'.')
            && bucket.bytes().next().is_some_and(is_edge)
            && bucket.bytes().next_back().is_some_and(is_edge)
            && !bucket.contains("..");
        let is_part = |part: &str| omnilabel_keypoints::wire::topic::id(part).is_ok() && part != "." && part != "..";
        if !named || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
            return Err(());
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for PictureUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Folder(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// Scheme, host, and whether nothing but a host and a port are named.
fn endpoint(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => match rest.split_once(']')? {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.strip_prefix(':')?)),
        },
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let good_host = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    (matches!(scheme, "http" | "https") && good_host && good_port).then_some((scheme, host))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl StoreConfig {
    /// Where pictures lie that are not in the database; `None` where all do.
    pub fn picture_url(&self) -> Option<PictureUrl> {
        self.pictures.as_deref().and_then(|text| text.parse().ok())
    }

    /// Whether plain HTTP is spoken.
    pub(crate) fn speaks_http(&self) -> bool {
        self.s3.endpoint.as_deref().and_then(endpoint).is_some_and(|(scheme, _)| scheme == "http")
    }

    pub(super) fn picture_checks(&self) -> [Check; 6] {
        let url = self.picture_url();
        let is_s3 = matches!(url, Some(PictureUrl::S3 { .. }));
        let at = self.s3.endpoint.as_deref().and_then(endpoint);
        let outside = at.is_some_and(|(scheme, host)| scheme == "http" && !is_loopback(host));
        // What is no such URL may have a key in it.
        let shown = if self.s3.endpoint.as_deref().is_some_and(|text| text.contains('@')) { "a URL with a user" } else { "another text" };
        let region =
            |text: &String| (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        [
            (
                self.pictures.is_none() || url.is_some(),
                "store.pictures",
                format!("{:?}", self.pictures.as_deref().unwrap_or_default().chars().take(200).collect::<String>()),
                "s3://BUCKET/PREFIX (names of [A-Za-z0-9._-], the bucket's of 3 to 63 of [a-z0-9.-]) or file:///FOLDER",
            ),
            (is_s3 || self.s3 == S3Config::default(), "store.s3", "a table".to_owned(), "none without `store.pictures = \"s3://…\"`"),
            (
                self.s3.endpoint.is_none() || at.is_some(),
                "store.s3.endpoint",
                shown.to_owned(),
                "https://HOST[:PORT]; keys are in the environment or in `store.s3.credentials_file`",
            ),
            (
                !outside || self.s3.allow_http,
                "store.s3.endpoint",
                format!("{:?}", self.s3.endpoint.as_deref().unwrap_or_default()),
                "https://…: by plain HTTP pictures could be read on the way (`store.s3.allow_http = true` says that they may)",
            ),
            (
                self.s3.region.as_ref().is_none_or(region),
                "store.s3.region",
                format!("{:?}", self.s3.region),
                "a region's name, such as eu-central-1",
            ),
            (
                (1..=MAX_REQUESTS).contains(&self.picture_requests) && (1..=600).contains(&self.picture_timeout_secs),
                "store.picture_requests, store.picture_timeout_secs",
                format!("{}, {}", self.picture_requests, self.picture_timeout_secs),
                "1 to 256, 1 to 600",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_pictures_are_told() {
        let s3 = |bucket: &str, prefix: &str| Ok(PictureUrl::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        let check = |text: &str, expect: Result<PictureUrl, ()>| assert_eq!(text.parse::<PictureUrl>(), expect, "{text}");
        check("s3://labels", s3("labels", ""));
        check("s3://labels/", s3("labels", ""));
        check("s3://my.labels-2/yard/north_1", s3("my.labels-2", "yard/north_1"));
        check("file:///srv/pictures", Ok(PictureUrl::Folder("/srv/pictures".into())));
        for bad in [
            "",
            "labels",
            "s3:labels",
            "s3://",
            "s3://ab",
            "s3://Labels",
            "s3://labels//a",
            "s3://labels/../a",
            "s3://labels/a b",
            "s3://la..els",
            "s3://-labels",
            "s3://key:secret@labels",
            "file://pictures",
            "file:///",
            "file:///srv/../etc",
            "https://labels",
        ] {
            check(bad, Err(()));
        }
        let long = format!("s3://labels/{}", "a/".repeat(600));
        check(&long, Err(()));
        for text in ["s3://labels", "s3://labels/yard", "file:///srv/pictures"] {
            assert_eq!(text.parse::<PictureUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_reached_safely_is_refused() {
        let check = |text: &str, expect: Option<&str>| {
            let config: StoreConfig = toml::from_str(text).unwrap();
            let wrong = config.picture_checks().into_iter().find(|(good, ..)| !good);
            let told = wrong.map(|(_, key, found, expected)| format!("{key} is {found}, expected {expected}"));
            match (&told, expect) {
                (None, None) => {}
                (Some(told), Some(expect)) if told.contains(expect) => {}
                _ => panic!("{text}: {told:?}, expected {expect:?}"),
            }
            assert!(!told.unwrap_or_default().contains("hunter2"), "{text}");
        };
        let s3 = "pictures = \"s3://labels\"\n[s3]\n";
        check("", None);
        check("pictures = \"file:///srv/pictures\"", None);
        check("pictures = \"s3:/labels\"", Some("store.pictures is \"s3:/labels\""));
        check("[s3]\nregion = \"eu-central-1\"", Some("store.s3"));
        check("pictures = \"file:///srv/pictures\"\n[s3]\nallow_http = true", Some("store.s3"));
        for good in ["https://minio.example:9000", "http://127.0.0.1:9000", "http://localhost:9000/", "http://[::1]:9000"] {
            check(&format!("{s3}endpoint = \"{good}\""), None);
        }
        check(&format!("{s3}endpoint = \"http://minio.example:9000\""), Some("allow_http"));
        check(&format!("{s3}endpoint = \"http://minio.example:9000\"\nallow_http = true"), None);
        for bad in
            ["minio", "ftp://minio", "https://", "https://user:hunter2@minio", "https://minio/path", "https://minio:x", "https://minio:0"]
        {
            check(&format!("{s3}endpoint = \"{bad}\""), Some("store.s3.endpoint"));
        }
        check(&format!("{s3}region = \"eu central\""), Some("store.s3.region"));
        check("picture_requests = 0", Some("store.picture_requests"));
        check("picture_timeout_secs = 601", Some("picture_timeout_secs"));
    }
    #[test]
    fn files_are_relative_and_errors_name_the_file() {
        use crate::service::config::CollectConfig;
        let path = Path::new("/etc/omnilabel/collector.toml");
        let text = "client_id = \"collector-2\"\nstate_dir = \"state\"\n[store]\nurl = \"postgres://centre@db/omnilabel\"\n\
                    pictures = \"s3://labels/yard\"\n[store.s3]\ncredentials_file = \"s3.credentials\"\nca = \"ca.pem\"\n\
                    [broker]\nhost = \"127.0.0.1\"\nsite = \"yard\"\n[collector]\nshare = \"centre\"\n";
        let config = CollectConfig::parse(path, text).unwrap();
        assert_eq!(config.store.s3.credentials_file.as_deref(), Some(Path::new("/etc/omnilabel/s3.credentials")));
        assert_eq!(config.store.s3.ca.as_deref(), Some(Path::new("/etc/omnilabel/ca.pem")));
        assert_eq!(CollectConfig::parse(path, &toml::to_string_pretty(&config).unwrap()).unwrap(), config);
        let told = CollectConfig::parse(path, &text.replace("s3://labels", "s3:labels")).unwrap_err().to_string();
        assert!(told.contains("collector.toml: `store.pictures` is \"s3:labels/yard\", expected s3://BUCKET/PREFIX"), "{told}");
    }
}
