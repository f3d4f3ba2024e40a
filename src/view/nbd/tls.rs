//! TLS for clients elsewhere, with the files that QEMU and nbdkit know, too: `ca-cert.pem`, `server-cert.pem` and
//! `server-key.pem` in one directory, and `ca-crl.pem` where certificates were revoked.
//!
//! Guarantees: a client without a certificate of that authority, or with one that was revoked, is told nothing; TLS 1.3 alone,
//! which changes its keys as often as the amount of data asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, Result};

/// Reads what is needed from `directory`.
pub fn load(directory: &Path) -> Result<Arc<ServerConfig>> {
    let at = |name: &str| directory.join(name);
    let mut roots = RootCertStore::empty();
    let authority = at("ca-cert.pem");
    for certificate in certificates(&authority)? {
        roots
            .add(certificate)
            .map_err(|error| unfit(&authority, &error))?;
    }
    let (chain, key) = (at("server-cert.pem"), at("server-key.pem"));
    let certificates = certificates(&chain)?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| unfit(&key, &error))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut verifier = verifier;
    let revoked = at("ca-crl.pem");
    if revoked.symlink_metadata().is_ok() {
        let lists: std::result::Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_file_iter(&revoked).and_then(Iterator::collect);
        let lists = lists.map_err(|error| unfit(&revoked, &error))?;
        // A file in another form would let everybody in.
        if lists.is_empty() {
            return Err(unfit(&revoked, &"there is no revocation list in it"));
        }
        verifier = verifier.with_crls(lists);
    }
    let verifier = verifier
        .build()
        .map_err(|error| unfit(&authority, &error))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unfit(directory, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, private)
        .map_err(|error| unfit(&chain, &error))?;
    Ok(Arc::new(config))
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>> {
    let all: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all = all.map_err(|error| unfit(path, &error))?;
    if all.is_empty() {
        return Err(unfit(path, &"there is no certificate in it"));
    }
    Ok(all)
}

fn unfit(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::refused(
        path.display().to_string(),
        format!("cannot serve with TLS: {reason}"),
        "--tls-certificates names a directory with ca-cert.pem, server-cert.pem and server-key.pem, as for nbdkit and QEMU.",
    )
}
