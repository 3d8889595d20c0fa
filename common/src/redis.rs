//! A Redis client that fails fast: every call has a timeout, and a circuit breaker stands before it.
//! Nothing in Redis is the truth of anything, so its callers go on without it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{FromRedisValue, IntoConnectionInfo, Pipeline, RedisError};

use crate::breaker::{Breaker, Failure};

const TIMEOUT: Duration = Duration::from_secs(1);

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    breaker: Arc<Breaker>,
}

/// Why Redis gave no answer. The outcome is unknown: scripts and commands must be safe to run twice.
pub type RedisFailure = Failure<RedisError>;

impl Redis {
    /// A client for `redis://host:port/db`; it connects when it is first used. Needs a tokio runtime.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        Self::guarded(url, Breaker::new("redis", TIMEOUT))
    }

    /// A client for background work, which waits by itself after a failure: its breaker lets a call through every
    /// second, so that it is there as soon as Redis is.
    pub fn background(url: &str) -> Result<Self, RedisError> {
        Self::guarded(url, Breaker::opening_for("redis", TIMEOUT, TIMEOUT))
    }

    fn guarded(url: &str, breaker: Breaker) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500))
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        // Without it a request in two segments waits for Redis' delayed ACK: 40 ms.
        let address = url.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let connection = ConnectionManager::new_lazy_with_config(redis::Client::open(address)?, config)?;
        Ok(Self { connection, breaker: Arc::new(breaker) })
    }

    /// Runs a pipeline in one round trip.
    pub async fn run<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisFailure> {
        let mut connection = self.connection.clone();
        self.breaker.call(pipeline.query_async(&mut connection)).await
    }

    /// Asks for a PONG.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        self.run::<()>(redis::pipe().cmd("PING").ignore()).await
    }
}
