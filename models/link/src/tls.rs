//! The TLS side: PEM files into a rustls configuration, each error naming its file.

use crate::{LinkError, TlsConfig};
use rumqttc::TlsConfiguration;
use rumqttc::tokio_rustls::rustls::pki_types::pem::PemObject;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use std::path::Path;
use std::sync::Arc;

fn read(path: &Path) -> Result<Vec<u8>, LinkError> {
    std::fs::read(path).map_err(|error| refuse(path, error.to_string()))
}

fn refuse(path: &Path, message: impl Into<String>) -> LinkError {
    LinkError::Tls { path: path.to_owned(), message: message.into() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let list = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refuse(path, format!("not PEM: {error}")))?;
    if list.is_empty() {
        return Err(refuse(path, "no certificate in it, expected PEM with `BEGIN CERTIFICATE`"));
    }
    Ok(list)
}

/// Only the authorities of the file are trusted, not the system's.
pub(crate) fn configuration(tls: &TlsConfig) -> Result<TlsConfiguration, LinkError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&tls.ca)? {
        roots.add(certificate).map_err(|error| refuse(&tls.ca, format!("not a usable authority: {error}")))?;
    }
    let chain = certificates(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?)
        .map_err(|error| refuse(&tls.key, format!("no usable private key in it: {error}")))?;
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Config(error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| refuse(&tls.key, format!("does not go with {}: {error}", tls.certificate.display())))?;
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}
