//! A circuit breaker with a time limit, before what a service can do without for a while.

use std::future::Future;
use std::time::Duration;

use metrics::{Counter, Gauge, Label};
use recloser::{AsyncRecloser, Error, Recloser};

/// The breaker opens when half of this many calls failed, and by default lets one through after `OPEN`.
const CALLS: usize = 20;
const OPEN: Duration = Duration::from_secs(30);

/// Why a call to the component of this name gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure<E> {
    /// Too many calls failed lately; this one was not tried.
    #[error("{0} is left alone for a while after repeated failures")]
    Open(&'static str),
    /// No answer in time.
    #[error("{0} did not answer within {ms} ms", ms = .1.as_millis())]
    Timeout(&'static str, Duration),
    /// An error answer or a lost connection.
    #[error("{0}: {1}")]
    Failed(&'static str, #[source] E),
}

/// A breaker for one component. `tidemill_breaker_open{component}` is 1 while it lets nothing through, and
/// `tidemill_breaker_failures_total{component}` counts what failed.
pub struct Breaker {
    name: &'static str,
    timeout: Duration,
    recloser: AsyncRecloser,
    open: Gauge,
    failures: Counter,
}

impl Breaker {
    /// A closed breaker whose calls may take up to `timeout`.
    pub fn new(name: &'static str, timeout: Duration) -> Self {
        Self::labelled(name, timeout, OPEN, vec![Label::new("component", name)])
    }

    /// The same with another pause before a call is tried again, for one `node` of several, where there are: its
    /// metrics bear that as a label.
    pub fn of_node(name: &'static str, node: Option<&str>, timeout: Duration, open: Option<Duration>) -> Self {
        let mut labels = vec![Label::new("component", name)];
        labels.extend(node.map(|node| Label::new("node", node.to_owned())));
        Self::labelled(name, timeout, open.unwrap_or(OPEN), labels)
    }

    fn labelled(name: &'static str, timeout: Duration, open: Duration, labels: Vec<Label>) -> Self {
        let recloser = Recloser::custom().error_rate(0.5).closed_len(CALLS).half_open_len(1).open_wait(open).build();
        let open = metrics::gauge!("tidemill_breaker_open", labels.clone());
        let failures = metrics::counter!("tidemill_breaker_failures_total", labels);
        Self { name, timeout, recloser: AsyncRecloser::from(recloser), open, failures }
    }

    /// Makes a call, unless too many failed lately.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, Failure<E>> {
        let limited = async {
            match tokio::time::timeout(self.timeout, call).await {
                Ok(answer) => answer.map_err(|error| Failure::Failed(self.name, error)),
                Err(_) => Err(Failure::Timeout(self.name, self.timeout)),
            }
        };
        let answer = self.recloser.call(limited).await;
        match &answer {
            Ok(_) => self.open.set(0.0),
            Err(Error::Rejected) => self.open.set(1.0),
            Err(Error::Inner(_)) => self.failures.increment(1),
        }
        answer.map_err(|error| match error {
            Error::Rejected => Failure::Open(self.name),
            Error::Inner(failure) => failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn what_keeps_failing_is_left_alone() {
        let breaker = Breaker::new("it", Duration::from_secs(1));
        assert!(matches!(breaker.call(ready(Ok::<_, &str>(1))).await, Ok(1)));
        for _ in 0..CALLS {
            assert!(matches!(breaker.call(ready(Err::<(), _>("no"))).await, Err(Failure::Failed("it", "no"))));
        }
        let untried = async { unreachable!("the breaker is open") };
        assert!(matches!(breaker.call::<(), Infallible>(untried).await, Err(Failure::Open("it"))));
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_none() {
        let breaker = Breaker::new("it", Duration::ZERO);
        let answer = breaker.call(pending::<Result<(), Infallible>>()).await;
        assert!(matches!(answer, Err(Failure::Timeout("it", _))));
    }
}
