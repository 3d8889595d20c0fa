//! Sends batches to a gateway, again and again until every event has its verdict or the tries are used up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::generator::Event;

/// An event is given up when the gateway asks for a longer pause than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Lets a pause pass.
pub type Wait = Arc<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How long and how often a gateway is asked.
#[derive(Clone)]
pub struct Patience {
    /// Further tries after the first.
    pub retries: u32,
    /// For one answer.
    pub timeout: Duration,
    /// Between the tries. Tests need not wait in earnest.
    pub wait: Wait,
}

impl Patience {
    /// As it is meant for real gateways.
    pub fn new(retries: u32) -> Self {
        let wait: Wait = Arc::new(|pause| Box::pin(tokio::time::sleep(pause)));
        Self { retries, timeout: Duration::from_secs(15), wait }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Accepted,
    Duplicate,
    Invalid,
    /// All tries are used up, and nobody knows whether it is in the log.
    Failed,
}

/// What the gateway said of an event: `failed` as long as it has said nothing.
#[derive(Debug, Clone)]
pub struct Fate {
    pub status: Status,
    pub position: Option<String>,
}

/// An event under way.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub event: Arc<Event>,
    /// It is to be sent a second time.
    pub again: bool,
    /// What became of it the first time, if this is the second.
    pub first: Option<Fate>,
    pub fate: Fate,
}

impl Delivery {
    /// An event that nothing is known of yet.
    pub fn new(event: Arc<Event>, again: bool) -> Self {
        Self { event, again, first: None, fate: Fate { status: Status::Failed, position: None } }
    }

    /// Its second time.
    pub fn copy(self) -> Self {
        Self { first: Some(self.fate), ..Self::new(self.event, false) }
    }
}

/// A batch whose fate is known.
pub struct Delivered {
    pub deliveries: Vec<Delivery>,
    /// Requests beyond the first.
    pub retries: u64,
}

/// A gateway, and how to talk to it. Cheap to clone.
#[derive(Clone)]
pub struct Sender {
    client: Client,
    url: String,
    key: String,
    patience: Patience,
    connections: Arc<Semaphore>,
}

/// The gateway's answer to one request.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

/// One event's part of the answer.
#[derive(Debug, Deserialize)]
struct Verdict {
    index: usize,
    status: String,
    #[serde(default)]
    position: Option<String>,
}

#[derive(Default, Deserialize)]
struct Verdicts {
    results: Vec<Verdict>,
}

impl Sender {
    pub fn new(url: &str, key: &str, connections: usize, patience: Patience) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(patience.timeout).redirect(redirect::Policy::none());
        let client = client.pool_max_idle_per_host(connections).build()?;
        let url = format!("{}/v1/events", url.trim_end_matches('/'));
        Ok(Self { client, url, key: key.to_owned(), patience, connections: Arc::new(Semaphore::new(connections)) })
    }

    /// A connection to send on. Fresh batches and retries wait for it in one line.
    pub async fn connection(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.connections).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Sends a batch until each event has its verdict. An error means that nothing will ever get through.
    pub async fn deliver(
        &self,
        mut batch: Vec<Delivery>,
        connection: OwnedSemaphorePermit,
    ) -> anyhow::Result<Delivered> {
        let mut delivered = Delivered { deliveries: Vec::with_capacity(batch.len()), retries: 0 };
        let mut connection = Some(connection);
        for attempt in 0.. {
            let permit = match connection.take() {
                Some(permit) => permit,
                None => self.connection().await,
            };
            let answer = self.post(&batch).await;
            drop(permit);
            let (done, again, retry_after) = judge(batch, answer)?;
            delivered.deliveries.extend(done);
            batch = again;
            let pause = pause(attempt, retry_after);
            if batch.is_empty() || attempt >= self.patience.retries || pause > LONGEST_PAUSE {
                break;
            }
            delivered.retries += 1;
            (self.patience.wait)(pause).await;
        }
        delivered.deliveries.extend(batch);
        Ok(delivered)
    }

    /// An error means that there was no answer, which is to be tried again.
    async fn post(&self, batch: &[Delivery]) -> Result<Answer, reqwest::Error> {
        let events: Vec<&Event> = batch.iter().map(|delivery| delivery.event.as_ref()).collect();
        let body = serde_json::to_vec(&events).expect("events have text keys only");
        let request = self.client.post(&self.url).bearer_auth(&self.key).header(CONTENT_TYPE, "application/json");
        let response = request.body(body).send().await?;
        let (status, retry_after) = (response.status(), retry_after(response.headers(), Utc::now()));
        Ok(Answer { status, retry_after, body: response.bytes().await?.to_vec() })
    }
}

type Judged = (Vec<Delivery>, Vec<Delivery>, Option<Duration>);

/// Parts a batch into what is done and what is to be sent again.
fn judge(batch: Vec<Delivery>, answer: Result<Answer, reqwest::Error>) -> anyhow::Result<Judged> {
    let Ok(answer) = answer else { return Ok((Vec::new(), batch, None)) };
    let (done, again) = match answer.status {
        // An answer that makes no sense is none.
        status if status.is_success() => apply(batch, serde_json::from_slice(&answer.body).unwrap_or_default()),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (Vec::new(), batch),
        status if status.is_server_error() => (Vec::new(), batch),
        status => bail!("the gateway refuses the traffic: {}", refusal(status, &answer.body)),
    };
    Ok((done, again, answer.retry_after))
}

fn apply(batch: Vec<Delivery>, verdicts: Verdicts) -> (Vec<Delivery>, Vec<Delivery>) {
    let mut by_index: Vec<Option<Verdict>> = batch.iter().map(|_| None).collect();
    for verdict in verdicts.results {
        if let Some(place) = by_index.get_mut(verdict.index) {
            *place = Some(verdict);
        }
    }
    let (mut done, mut again) = (Vec::new(), Vec::new());
    for (mut delivery, verdict) in batch.into_iter().zip(by_index) {
        let (status, position) = verdict.map(|verdict| (verdict.status, verdict.position)).unwrap_or_default();
        delivery.fate.status = match status.as_str() {
            "accepted" => Status::Accepted,
            "duplicate" => Status::Duplicate,
            "invalid" => Status::Invalid,
            // `retry`, `limited`, or nothing that is known.
            _ => {
                again.push(delivery);
                continue;
            }
        };
        delivery.fate.position = position;
        done.push(delivery);
    }
    (done, again)
}

/// 1, 2, 4, 8, 8, … seconds, or later where the gateway says so.
fn pause(attempt: u32, retry_after: Option<Duration>) -> Duration {
    Duration::from_secs(1 << attempt.min(3)).max(retry_after.unwrap_or_default())
}

/// Seconds or a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - now).to_std().ok()
}

/// The problem's own words, if it has any.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    problem["detail"].as_str().map_or_else(|| format!("status {status}"), |detail| format!("{detail} ({status})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(count: usize) -> Vec<Delivery> {
        let event = |i: usize| Event {
            event_id: format!("e{i}"),
            event_type: "page_view".to_owned(),
            timestamp: "2026-01-01T00:00:00.000Z".to_owned(),
            user_id: "u".to_owned(),
            session_id: "s".to_owned(),
            properties: serde_json::json!({}),
        };
        (0..count).map(|i| Delivery::new(Arc::new(event(i)), false)).collect()
    }

    fn answer(status: u16, body: &str) -> Result<Answer, reqwest::Error> {
        let status = StatusCode::from_u16(status).expect("status");
        Ok(Answer { status, retry_after: None, body: body.as_bytes().to_vec() })
    }

    #[test]
    fn each_event_gets_its_own_verdict_and_only_some_are_sent_again() {
        let body = r#"{"results":[{"index":1,"eventId":"e1","status":"retry"},
            {"index":0,"eventId":"e0","status":"accepted","position":"3:7"},
            {"index":3,"eventId":"e3","status":"limited"},{"index":2,"eventId":"e2","status":"invalid"}]}"#;
        let (done, again, _) = judge(batch(4), answer(202, body)).expect("judged");
        let done: Vec<_> =
            done.iter().map(|d| (d.event.event_id.as_str(), d.fate.status, d.fate.position.as_deref())).collect();
        assert_eq!(done, [("e0", Status::Accepted, Some("3:7")), ("e2", Status::Invalid, None)]);
        let again: Vec<_> = again.iter().map(|d| (d.event.event_id.as_str(), d.fate.status)).collect();
        assert_eq!(again, [("e1", Status::Failed), ("e3", Status::Failed)]);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_cannot_ends_the_run() {
        for status in [408, 429, 500, 502, 503] {
            let (done, again, _) = judge(batch(2), answer(status, "")).expect("judged");
            assert_eq!((done.len(), again.len()), (0, 2), "{status}");
        }
        let refused = judge(batch(2), answer(401, r#"{"detail":"this API key is unknown"}"#)).expect_err("refused");
        assert!(refused.to_string().contains("this API key is unknown (401"), "{refused}");
    }

    #[test]
    fn what_an_answer_says_nothing_of_is_sent_again() {
        let strange = r#"{"results":[{"index":0,"status":"perhaps"},{"index":7,"status":"accepted"}]}"#;
        for body in ["", "<html>", "[]", r#"{"results":[]}"#, strange] {
            let (done, again, _) = judge(batch(2), answer(202, body)).expect("judged");
            assert_eq!((done.len(), again.len()), (0, 2), "{body}");
        }
    }

    #[test]
    fn pauses_double_up_to_eight_seconds_or_are_as_long_as_the_gateway_says() {
        let seconds: Vec<u64> = (0..6).map(|attempt| pause(attempt, None).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 8, 8]);
        assert_eq!(pause(0, Some(Duration::from_secs(7))).as_secs(), 7);
        assert_eq!(pause(2, Some(Duration::from_secs(1))).as_secs(), 4, "never sooner");
    }

    #[test]
    fn retry_after_has_seconds_or_a_date() {
        let now = DateTime::from_timestamp(784_111_777, 0).expect("a time");
        let seconds = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))]);
            retry_after(&headers, now).map(|pause| pause.as_secs())
        };
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds("99999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:57 GMT"), Some(20));
        for text in ["Sun, 06 Nov 1994 08:49:07 GMT", "", "-1", "soon"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
