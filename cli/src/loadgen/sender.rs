//! Sends batches to a gateway, again and again until every event has its verdict or the tries are used up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::generator::Event;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A gateway that asks for a longer pause than this gets asked again all the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    retries: u32,
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

#[derive(Deserialize)]
struct Verdicts {
    results: Vec<Verdict>,
}

impl Sender {
    pub fn new(url: &str, key: &str, connections: usize, retries: u32) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(REQUEST_TIMEOUT).pool_max_idle_per_host(connections).build()?;
        let url = format!("{}/v1/events", url.trim_end_matches('/'));
        Ok(Self { client, url, key: key.to_owned(), retries, connections: Arc::new(Semaphore::new(connections)) })
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
            if batch.is_empty() || attempt >= self.retries {
                break;
            }
            delivered.retries += 1;
            tokio::time::sleep(pause(attempt, retry_after)).await;
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
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        Ok(Answer { status, retry_after, body: response.bytes().await?.to_vec() })
    }
}

type Judged = (Vec<Delivery>, Vec<Delivery>, Option<Duration>);

/// Parts a batch into what is done and what is to be sent again.
fn judge(batch: Vec<Delivery>, answer: Result<Answer, reqwest::Error>) -> anyhow::Result<Judged> {
    let Ok(answer) = answer else { return Ok((Vec::new(), batch, None)) };
    match answer.status {
        StatusCode::ACCEPTED => {
            let verdicts: Verdicts = serde_json::from_slice(&answer.body)
                .context("the gateway's answer has no results; is --url that of 'tidemill ingest'?")?;
            let (done, again) = apply(batch, verdicts.results)?;
            Ok((done, again, answer.retry_after))
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Ok((Vec::new(), batch, answer.retry_after)),
        status if status.is_server_error() => Ok((Vec::new(), batch, answer.retry_after)),
        status => bail!("the gateway refuses the traffic: {}", refusal(status, &answer.body)),
    }
}

fn apply(batch: Vec<Delivery>, verdicts: Vec<Verdict>) -> anyhow::Result<(Vec<Delivery>, Vec<Delivery>)> {
    let mut by_index: Vec<Option<Verdict>> = batch.iter().map(|_| None).collect();
    for verdict in verdicts {
        let place = by_index.get_mut(verdict.index);
        *place.ok_or_else(|| anyhow!("the gateway answers for an event that it was not sent"))? = Some(verdict);
    }
    let (mut done, mut again) = (Vec::new(), Vec::new());
    for (mut delivery, verdict) in batch.into_iter().zip(by_index) {
        let verdict = verdict.ok_or_else(|| anyhow!("the gateway's answer leaves out {}", delivery.event.event_id))?;
        delivery.fate.status = match verdict.status.as_str() {
            "accepted" => Status::Accepted,
            "duplicate" => Status::Duplicate,
            "invalid" => Status::Invalid,
            "retry" | "limited" => {
                again.push(delivery);
                continue;
            }
            other => bail!("the gateway answers with the unknown status {other:?}"),
        };
        delivery.fate.position = verdict.position;
        done.push(delivery);
    }
    Ok((done, again))
}

/// 1, 2, 4, 4, … seconds, or what the gateway asks for.
fn pause(attempt: u32, retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or(Duration::from_secs(1 << attempt.min(2))).min(LONGEST_PAUSE)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
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
        assert!(judge(batch(2), answer(202, "<html>")).is_err());
        assert!(judge(batch(2), answer(202, r#"{"results":[]}"#)).is_err());
    }

    #[test]
    fn pauses_double_up_to_four_seconds_unless_the_gateway_says_otherwise() {
        let seconds: Vec<u64> = (0..5).map(|attempt| pause(attempt, None).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 4, 4]);
        assert_eq!(pause(0, Some(Duration::from_secs(7))).as_secs(), 7);
        assert_eq!(pause(0, Some(Duration::from_secs(7_000))), LONGEST_PAUSE);
    }
}
