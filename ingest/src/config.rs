//! The gateway's settings: section `ingest`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::spool;

/// Settings of the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where it listens.
    pub port: u16,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Most events in one request.
    pub max_events: usize,
    /// Requests under way at once; more are told to come back.
    pub max_requests: usize,
    /// Bytes of bodies held at once; more are told to come back.
    pub max_bytes_in_flight: usize,
    /// A body must have arrived within this time, in milliseconds.
    pub body_timeout_ms: u64,
    /// Events per second of one type in one project, at each gateway; 0: no limit.
    pub event_type_rate: u32,
    /// Events per second of one user in one project, at each gateway; 0: no limit. Of more than 65,536 users
    /// (or types) at a time the newest share limits.
    pub user_rate: u32,
    /// Largest NDJSON body, in bytes. It is never held as a whole.
    pub max_ndjson_bytes: usize,
    /// Most events in an NDJSON body.
    pub max_ndjson_events: usize,
    /// An NDJSON body must have ended within this time, in milliseconds; each piece of it within
    /// `body_timeout_ms` of the one before.
    pub max_ndjson_ms: u64,
    /// Whether a CloudEvent's `subject` is its userId.
    pub cloudevents_subject_is_user: bool,
    /// Origins whose pages may send events, separated by commas; `*` for all.
    pub cors_origins: String,
    /// What is kept of a client's address.
    pub client_address: ClientAddress,
    /// Where accepted events wait while Kafka is down; without it they are told to come again.
    pub spool_dir: Option<PathBuf>,
    /// Most bytes in there.
    pub spool_max_bytes: u64,
}

/// What is kept of a client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAddress {
    /// Its network: the first 24 bits of an IPv4 address, the first 48 of an IPv6 address.
    Truncated,
    /// All of it.
    Full,
    /// Nothing.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 4001,
            max_body_bytes: 5 * 1024 * 1024,
            max_events: 10_000,
            max_requests: 1_024,
            max_bytes_in_flight: 256 * 1024 * 1024,
            body_timeout_ms: 30_000,
            event_type_rate: 0,
            user_rate: 0,
            max_ndjson_bytes: 256 * 1024 * 1024,
            max_ndjson_events: 100_000,
            max_ndjson_ms: 600_000,
            cloudevents_subject_is_user: false,
            cors_origins: String::new(),
            client_address: ClientAddress::Truncated,
            spool_dir: None,
            spool_max_bytes: spool::DEFAULT_BYTES,
        }
    }
}
