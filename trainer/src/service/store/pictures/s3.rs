//! How a bucket is reached: the address, the keys, and HTTP over the connections that the rest of the centre's TLS is made of, too.

use crate::service::config::{S3Config, StoreConfig};
use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect};
use hyper_util::rt::TokioExecutor;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::{ClientOptions, CredentialProvider, RetryConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one is kept that nobody needs.
const IDLE: Duration = Duration::from_secs(60);
/// A larger file has no keys in it.
const MAX_FILE: u64 = 65_536;

/// The client of a bucket, or what is wrong with its configuration.
pub(super) fn open(config: &StoreConfig, bucket: &str) -> Result<AmazonS3, String> {
    let s3 = &config.s3;
    let keys = Keys { file: s3.credentials_file.clone() };
    keys.read()?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let region = s3.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let by_path = s3.path_style.unwrap_or(s3.endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
        .with_virtual_hosted_style_request(!by_path)
        .with_credentials(Arc::new(keys))
        .with_http_connector(Connector { tls: tls(s3)?, plain: config.speaks_http(), idle: config.picture_requests })
        .with_client_options(ClientOptions::new().with_allow_http(config.speaks_http()).with_default_content_type("image/jpeg"))
        // The one who asks is patient.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
    if let Some(endpoint) = &s3.endpoint {
        let endpoint = endpoint.trim_end_matches('/');
        let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
        builder = builder.with_endpoint(if by_path { endpoint.to_owned() } else { format!("{scheme}://{bucket}.{host}") });
    }
    builder.build().map_err(|error| super::said(&error))
}

/// Whose certificates are trusted.
fn tls(s3: &S3Config) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &s3.ca {
        let pem = |error: &dyn std::fmt::Display| format!("{}: {error}, expected certificates in PEM", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| pem(&error))? {
            roots.add(certificate.map_err(|error| pem(&error))?).map_err(|error| pem(&error))?;
        }
        if roots.is_empty() {
            return Err(pem(&"no certificate"));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The keys that requests are signed with: of the environment, or of a file, which may be replaced while the centre runs.
#[derive(Debug)]
struct Keys {
    file: Option<PathBuf>,
}

impl Keys {
    fn read(&self) -> Result<AwsCredential, String> {
        let text = self.file.as_deref().map(private).transpose()?;
        let get = |name: &str| match &text {
            Some(text) => value(text, name).map(str::to_owned),
            None => std::env::var(name.to_uppercase()).ok().filter(|value| !value.is_empty()),
        };
        let key = |name: &str| {
            get(name).ok_or_else(|| match &self.file {
                Some(path) => format!("{}: no `{name}` in `[default]`", path.display()),
                None => format!("no {} in the environment: expected it, or `store.s3.credentials_file`", name.to_uppercase()),
            })
        };
        Ok(AwsCredential { key_id: key("aws_access_key_id")?, secret_key: key("aws_secret_access_key")?, token: get("aws_session_token") })
    }
}

/// The text of a file that only its owner can read.
fn private(path: &Path) -> Result<String, String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(|error| said(&error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(|error| said(&error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(said(&format!("mode {:04o}, expected 0600: others can read it", mode & 0o7777)));
        }
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| said(&error))?;
    Ok(text)
}

/// A value of the `[default]` part of a file in the form of AWS's; what stands before any part counts, too.
fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut part = "default";
    text.lines().map(str::trim).find_map(|line| {
        if let Some(head) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            part = head.trim();
        }
        let (key, value) = line.split_once('=')?;
        (part == "default" && key.trim() == name && !value.trim().is_empty()).then(|| value.trim())
    })
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.read().map(Arc::new).map_err(|message| object_store::Error::Generic { store: "S3", source: message.into() })
    }
}

/// Makes the HTTP client.
#[derive(Debug)]
struct Connector {
    tls: ClientConfig,
    /// HTTP without TLS.
    plain: bool,
    /// Connections that are kept.
    idle: usize,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = connect::HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new().with_tls_config(self.tls.clone());
        let https = if self.plain { https.https_or_http() } else { https.https_only() };
        let https = https.enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).pool_max_idle_per_host(self.idle).build(https);
        Ok(HttpClient::new(Requests(client)))
    }
}

/// Requests as the object store's client makes them.
#[derive(Debug)]
struct Requests(Client<HttpsConnector<connect::HttpConnector>, HttpRequestBody>);

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |error: hyper_util::client::legacy::Error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
            HttpError::new(kind, error)
        };
        let (head, body) = self.0.request(request).await.map_err(failed)?.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_read_from_a_file_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Keys { file: Some(path.clone()) }.read().map(|keys| (keys.key_id, keys.secret_key, keys.token))
        };
        let keys = |token: Option<&str>| Ok(("AKIA".to_owned(), "hunter2=/+".to_owned(), token.map(str::to_owned)));
        let good = "[default]\naws_access_key_id = AKIA\naws_secret_access_key=hunter2=/+\n";
        assert_eq!(read(good, 0o600), keys(None));
        assert_eq!(read(&format!("{good}aws_session_token = t\n"), 0o400), keys(Some("t")));
        assert_eq!(read(&good.replace("[default]", ""), 0o600), keys(None));
        let other = format!("[other]\naws_access_key_id = NO\n{good}[more]\naws_session_token = no\n");
        assert_eq!(read(&other, 0o600), keys(None));
        for (text, mode, expect) in [
            (good, 0o640, "mode 0640, expected 0600"),
            ("[default]\naws_access_key_id = AKIA\n", 0o600, "no `aws_secret_access_key` in `[default]`"),
            (good.replace("default", "prod").as_str(), 0o600, "no `aws_access_key_id`"),
            (good.replace("AKIA", "").as_str(), 0o600, "no `aws_access_key_id`"),
        ] {
            let told = read(text, mode).unwrap_err();
            assert!(told.contains(expect) && told.contains("/keys: ") && !told.contains("hunter2"), "{told}");
        }
        let gone = Keys { file: Some(folder.path().join("gone")) }.read().unwrap_err();
        assert!(gone.contains("/gone: "), "{gone}");
    }

    #[test]
    fn certificates_are_read_or_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let told = tls(&S3Config { ca: Some(path), ..S3Config::default() }).unwrap_err();
        assert!(told.contains("ca.pem: no certificate, expected certificates in PEM"), "{told}");
        assert!(tls(&S3Config::default()).is_ok());
    }
}
