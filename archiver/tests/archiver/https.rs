//! A REST catalog behind TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tidemill_archiver::table::Tables;
use tidemill_common::config::{CatalogKind, Connections, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

/// What a catalog without tables answers.
const CONFIG: &str = r#"{"defaults":{},"overrides":{}}"#;
const NO_TABLE: &str = r#"{"error":{"message":"none","type":"NoSuchTableException","code":404}}"#;

/// Serves such a catalog; gives its address, and its certificate as a file.
async fn catalog(folder: &Path) -> (String, PathBuf) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let file = folder.join(format!("{}.pem", listener.local_addr().unwrap().port()));
    std::fs::write(&file, cert.pem()).unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { answer(acceptor, connection).await });
        }
    });
    (url, file)
}

/// One request on a connection; whoever does not trust us does not get as far.
async fn answer(acceptor: TlsAcceptor, connection: TcpStream) -> Option<()> {
    let mut connection = acceptor.accept(connection).await.ok()?;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        connection.read_buf(&mut head).await.ok().filter(|read| *read > 0)?;
    }
    let (status, body) =
        if head.starts_with(b"GET /v1/config") { ("200 OK", CONFIG) } else { ("404 Not Found", NO_TABLE) };
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ");
    connection.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await.ok()?;
    connection.shutdown().await.ok()
}

fn connections(url: &str, authorities: Option<PathBuf>) -> Connections {
    let mut connections = Settings::load("test").unwrap().connections();
    connections.warehouse.catalog = CatalogKind::Rest;
    connections.warehouse.catalog_url = Some(url.to_owned());
    connections.warehouse.catalog_ca = authorities;
    connections
}

#[tokio::test]
async fn a_catalog_behind_tls_is_trusted_by_its_authority_only() {
    let folder = std::env::temp_dir().join(format!("tidemill-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    let ((url, own), (_, others)) = (catalog(&folder).await, catalog(&folder).await);
    let load = async |authorities: Option<PathBuf>| {
        let loaded = Tables::new(&connections(&url, authorities)).load("shop").await;
        loaded.map(|table| table.is_some()).map_err(|error| format!("{error:?}"))
    };
    assert_eq!(load(Some(own.clone())).await, Ok(false), "it answers that there is no table");
    for unknown in [None, Some(others)] {
        let error = load(unknown).await.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
    }
    std::fs::write(&own, "nothing").unwrap();
    let error = load(Some(own)).await.unwrap_err();
    assert!(error.contains("warehouse.catalog_ca names") && error.contains("no certificate in it"), "{error}");
    let error = load(Some(folder.join("missing.pem"))).await.unwrap_err();
    assert!(error.contains("missing.pem, which cannot be used"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}
