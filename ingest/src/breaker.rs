//! A circuit breaker with a time limit, before what the gateway can do without for a while.

use std::future::Future;
use std::time::Duration;

use recloser::{AsyncRecloser, Error, Recloser};

/// The breaker opens when half of this many calls failed, and lets one through after `OPEN`.
const CALLS: usize = 20;
const OPEN: Duration = Duration::from_secs(30);

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure<E> {
    /// Too many calls failed lately; this one was not tried.
    #[error("left alone for {} s after repeated failures", OPEN.as_secs())]
    Open,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// An error answer.
    #[error(transparent)]
    Failed(#[from] E),
}

/// A breaker for one component.
pub struct Breaker {
    recloser: AsyncRecloser,
    timeout: Duration,
}

impl Breaker {
    /// A closed breaker whose calls may take up to `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let recloser = Recloser::custom().error_rate(0.5).closed_len(CALLS).half_open_len(1).open_wait(OPEN).build();
        Self { recloser: AsyncRecloser::from(recloser), timeout }
    }

    /// Makes a call, unless too many failed lately.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, Failure<E>> {
        let limited = async {
            match tokio::time::timeout(self.timeout, call).await {
                Ok(answer) => answer.map_err(Failure::Failed),
                Err(_) => Err(Failure::Timeout),
            }
        };
        self.recloser.call(limited).await.map_err(|error| match error {
            Error::Rejected => Failure::Open,
            Error::Inner(failure) => failure,
        })
    }
}
