//! The path of one request's events, from JSON to their answers. It must run to its end: its caller gives it
//! a task of its own, so that a client that hangs up cannot leave it between claim and confirm.

use std::time::Duration;

use futures::future::join_all;
use tidemill_common::auth::ApiKey;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::events_topic;

use crate::claims::{Claim, Found};
use crate::gateway::Gateway;
use crate::keys::Stored;
use crate::outcome::{Answered, Fate, Firsts, Outcome};
use crate::stages::{EncodedEvent, RawEvent, Receipt, Refused, ValidEvent};

/// After a failure of our own.
const SOON: Duration = Duration::from_secs(1);

/// Admits events that were parsed: limit → validate → encode → claim → produce → confirm or release. Each gets
/// its answer, in order.
pub async fn admit(
    gateway: &Gateway,
    caller: &ApiKey,
    receipt: &Receipt,
    events: Vec<Result<RawEvent<'_>, Refused>>,
) -> Vec<Answered> {
    metrics::histogram!("analytics_batch_size_histogram").record(events.len() as f64);
    let granted = gateway.limits.take(&caller.prefix, caller.rate_limit, events.len());
    let mut answers: Vec<Option<Answered>> = Vec::with_capacity(events.len());
    let mut valid: Vec<ValidEvent> = Vec::with_capacity(events.len());
    for (index, event) in events.into_iter().enumerate() {
        match event {
            Err(refused) => answers.push(Some(refused.into())),
            Ok(raw) if index >= granted.events => {
                answers.push(Some(answered(raw.event_id.into_owned(), Outcome::Limited(granted.retry_after))));
            }
            Ok(raw) => match raw.validate(receipt) {
                Err(refused) => answers.push(Some(refused.into())),
                Ok(event) => {
                    gateway.event_types.count(event.event_type());
                    answers.push(None);
                    valid.push(event);
                }
            },
        }
    }
    let mut delivered = deliver(gateway, caller, valid).await.into_iter();
    answers.into_iter().map(|answer| answer.or_else(|| delivered.next()).expect("one for each valid event")).collect()
}

/// Brings valid events into the log; gives their answers, in order.
async fn deliver(gateway: &Gateway, caller: &ApiKey, events: Vec<ValidEvent>) -> Vec<Answered> {
    if events.is_empty() {
        return Vec::new();
    }
    let encoder = match gateway.schemas.encoder(&caller.project).await {
        Ok(encoder) => encoder,
        Err(error) => {
            tracing::warn!(%error, project = &*caller.project, "events wait for their schema id");
            let answer = |event: ValidEvent| answered(event.into_event_id(), Outcome::Retry(SOON));
            return events.into_iter().map(answer).collect();
        }
    };
    let events: Vec<EncodedEvent> = events.into_iter().map(|event| event.encode(&encoder, caller.partitions)).collect();
    let firsts = Firsts::of(&events);
    let topic = events_topic(&caller.project);
    let incarnation = gateway.incarnations.of(&topic);

    let ids: Vec<&str> = firsts.at.iter().map(|&at| events[at].event_id.as_str()).collect();
    let found = gateway.claims.claim(&caller.project, &ids, &incarnation).await;
    let produced = firsts.at.iter().zip(found).map(async |(&at, found)| match found {
        Found::Stored(stored) => (Fate::Known(stored), None),
        Found::InFlight { retry_after } => (Fate::Open(retry_after), None),
        Found::New(claim) => (produce(gateway, &topic, &incarnation, &events[at]).await, Some(claim)),
    });
    let fates = settle(gateway, join_all(produced).await).await;

    let outcomes = firsts.outcomes(&events, &fates);
    count(&outcomes);
    events.into_iter().zip(outcomes).map(|(event, outcome)| answered(event.event_id, outcome)).collect()
}

/// Sends one event home and waits for its delivery. An error says nothing about whether it is in the log.
async fn produce(gateway: &Gateway, topic: &str, incarnation: &str, event: &EncodedEvent) -> Fate {
    let depth = metrics::gauge!("analytics_queue_depth");
    depth.increment(1.0);
    let record = Outgoing {
        topic,
        partition: event.partition,
        key: Some(event.event_id.as_bytes()),
        value: &event.value,
        headers: Vec::new(),
    };
    let delivery = gateway.producer.send(&record).await;
    depth.decrement(1.0);
    match delivery {
        Ok((partition, offset)) => {
            Fate::Delivered(Stored { incarnation: incarnation.to_owned(), partition, offset, body: event.body })
        }
        Err(error) => {
            tracing::debug!(%error, topic, "not delivered");
            Fate::Open(SOON)
        }
    }
}

/// Confirms what was delivered and gives the other claims back.
async fn settle(gateway: &Gateway, produced: Vec<(Fate, Option<Claim>)>) -> Vec<Fate> {
    let (mut delivered, mut failed) = (Vec::new(), Vec::new());
    let mut fates = Vec::with_capacity(produced.len());
    for (fate, claim) in produced {
        match (&fate, claim) {
            (Fate::Delivered(stored), Some(claim)) => delivered.push((claim, stored.clone())),
            (_, Some(claim)) => failed.push(claim),
            (_, None) => {}
        }
        fates.push(fate);
    }
    if !failed.is_empty() {
        tracing::warn!(events = failed.len(), "events could not be delivered to Kafka; their senders must retry");
    }
    tokio::join!(gateway.claims.confirm(delivered), gateway.claims.release(failed));
    fates
}

fn count(outcomes: &[Outcome]) {
    let of = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count() as u64;
    metrics::counter!("analytics_events_queued_total").increment(of(|o| matches!(o, Outcome::Accepted(_))));
    metrics::counter!("tidemill_event_ids_reused_total").increment(of(|o| matches!(o, Outcome::Reused)));
}

fn answered(event_id: String, outcome: Outcome) -> Answered {
    Answered { event_id: Some(event_id), outcome }
}
