//! HTTP as every service speaks it: 1.1 and 2, with or without TLS, within limits that a stranger cannot exceed.

mod connections;
mod health;
mod serve;
mod tls;
mod watched;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use tokio::net::TcpListener;

pub use health::Health;
pub use serve::serve;
pub use tls::TlsError;

/// Settings of the server loop: section `http`, the same for every service.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// Connections at a time. A newcomer beyond them takes the place of one on which nothing is going on.
    pub max_connections: usize,
    /// A request's head, once begun, must have arrived within this time, in milliseconds; on a new connection the
    /// first one, TLS handshake included.
    pub head_timeout_ms: u64,
    /// A connection is closed when nothing of a request or an answer has moved for so long, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Largest head of a request, in bytes; above: 431.
    pub max_head_bytes: u32,
    /// PEM file with the certificate chain, the server's own certificate first. Without it: no TLS.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    pub tls_key: Option<PathBuf>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_connections: 4_096,
            head_timeout_ms: 10_000,
            // Longer than load balancers keep unused connections (60 s), so that it is they who close them.
            idle_timeout_ms: 75_000,
            max_head_bytes: 16 * 1024,
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// A socket that listens, and how to talk on it.
pub struct Listener {
    socket: TcpListener,
    config: HttpConfig,
    tls: Option<tls::Tls>,
}

impl Listener {
    /// Fails when the certificate cannot be used, before anything else of a service is started.
    pub fn new(socket: TcpListener, config: HttpConfig) -> Result<Self, TlsError> {
        let tls = tls::Tls::new(config.tls_cert.as_deref(), config.tls_key.as_deref())?;
        Ok(Self { socket, config, tls })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// With the defaults, which have no TLS.
impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket, config: HttpConfig::default(), tls: None }
    }
}
