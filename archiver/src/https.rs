//! The client of a REST catalog: plain HTTP, or TLS that trusts the system's authorities or those in a file.
//!
//! What Iceberg's library brings speaks no TLS by itself, and has no time limit either.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use iceberg::{Error, ErrorKind, Result};
use reqwest012::Client;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError, RootCertStore};

const CONNECT: Duration = Duration::from_secs(10);
/// Longer than a commit takes. What comes of one that is given up, the next look at the table says.
const ANSWER: Duration = Duration::from_secs(60);

/// A client that trusts the authorities in this PEM file; without one, the system's.
pub fn client(authorities: Option<&Path>) -> Result<Client> {
    let roots = match authorities {
        Some(path) => of_file(path)?,
        None => of_system(),
    };
    let wrong = |error: TlsError| invalid(format!("TLS cannot be set up: {error}"));
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Client::builder().use_preconfigured_tls(tls).connect_timeout(CONNECT).timeout(ANSWER).build();
    client.map_err(|error| invalid(format!("the REST catalog's client cannot be set up: {error}")))
}

fn of_file(path: &Path) -> Result<RootCertStore> {
    let unusable = |why: String| {
        let path = path.display();
        invalid(format!(
            "warehouse.catalog_ca names {path}, which cannot be used: {why}; it must be a PEM file with the certificates of authorities"
        ))
    };
    let found: std::result::Result<Vec<CertificateDer<'static>>, PemError> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for authority in &found {
        roots.add(authority.clone()).map_err(|error| unusable(error.to_string()))?;
    }
    if found.is_empty() { Err(unusable("there is no certificate in it".to_owned())) } else { Ok(roots) }
}

/// A system without any is no error: a catalog may be spoken to without TLS.
fn of_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::DataInvalid, what)
}
