//! A Redis client that fails fast: every call has a timeout, and a circuit breaker stands before it.
//! Nothing in Redis is the truth of anything, so its callers go on without it.

use std::sync::Arc;
use std::time::Duration;

use recloser::{AsyncRecloser, Error as BreakerError, Recloser};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, Pipeline, RedisError};

const TIMEOUT: Duration = Duration::from_secs(1);
/// The breaker opens when half of this many calls failed, and lets one through after `OPEN`.
const CALLS: usize = 20;
const OPEN: Duration = Duration::from_secs(30);

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    breaker: Arc<AsyncRecloser>,
}

/// Why Redis gave no answer. The outcome is unknown: scripts and commands must be safe to run twice.
#[derive(Debug, thiserror::Error)]
pub enum RedisFailure {
    /// Too many calls failed lately; this one was not tried.
    #[error("redis is left alone for {} s after repeated failures", OPEN.as_secs())]
    Open,
    /// No answer in time.
    #[error("redis did not answer within {} ms", TIMEOUT.as_millis())]
    Timeout,
    /// An error answer or a lost connection.
    #[error("redis: {0}")]
    Failed(#[from] RedisError),
}

impl Redis {
    /// A client for `redis://host:port/db`; it connects when it is first used. Needs a tokio runtime.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500))
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        let connection = ConnectionManager::new_lazy_with_config(redis::Client::open(url)?, config)?;
        let breaker = Recloser::custom().error_rate(0.5).closed_len(CALLS).half_open_len(1).open_wait(OPEN).build();
        Ok(Self { connection, breaker: Arc::new(AsyncRecloser::from(breaker)) })
    }

    /// Runs a pipeline in one round trip.
    pub async fn run<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisFailure> {
        let mut connection = self.connection.clone();
        let call = async {
            match tokio::time::timeout(TIMEOUT, pipeline.query_async(&mut connection)).await {
                Ok(answer) => Ok(answer?),
                Err(_) => Err(RedisFailure::Timeout),
            }
        };
        match self.breaker.call(call).await {
            Ok(answer) => Ok(answer),
            Err(BreakerError::Rejected) => Err(RedisFailure::Open),
            Err(BreakerError::Inner(failure)) => Err(failure),
        }
    }

    /// Asks for a PONG.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        self.run::<()>(redis::pipe().cmd("PING").ignore()).await
    }
}
