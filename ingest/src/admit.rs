//! The path of a request's events, from parsed to answered:
//!
//! `admit` (limit → validate → encode) → `claim` (one round trip for many requests) → `produce` → `settle`
//! (spool what failed, confirm or release, again one round trip for many) → answer.
//!
//! From the claim on, events belong to the gateway and not to their request: a client that hangs up cannot
//! leave them between claim and confirm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use futures::future::join;
use futures::stream::FuturesUnordered;
use rdkafka::error::KafkaError;
use tidemill_common::auth::ApiKey;
use tidemill_common::kafka::{Deliveries, Outgoing, Recipient};
use tidemill_common::names::ROUTE;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::batches::{BatchNote, Types};
use crate::flight::Flight;
use crate::gateway::Gateway;
use crate::json_schemas::{Checker, Judged};
use crate::outcome::{Answered, Outcome, SOON};
use crate::overload::Share;
use crate::parse::Parsed;
use crate::stages::{Encoded, RawEvent, Receipt};

/// Round trips to Redis under way at once: while one is on its way or its answers are worked on, Redis has the other.
const ROUND_TRIPS: usize = 2;
/// Events from which a round trip gets such a companion: beside a smaller one it costs less to wait and to share.
const LARGE: usize = 256;
/// Most events that share a round trip to Redis, claims and settlements each; a larger request has one of its own.
const SHARED: usize = 2_000;

/// Admits events that were parsed; gives an answer for each, in order. The share is held until they are settled.
pub async fn admit(
    gateway: &Gateway,
    caller: &ApiKey,
    receipt: &Receipt,
    events: Vec<Parsed<'_>>,
    share: &Arc<Share>,
) -> Vec<Answered> {
    gateway.meters.batch(events.len());
    let encoder = gateway.schemas.encoder(&caller.project).await;
    let (granted, whose) = gateway.limits.admit(caller, events.len());
    let wanted = events.iter().take(granted.events).filter_map(|event| Some(&*event.as_ref().ok()?.event_type));
    let schemas = gateway.json_schemas.checker(caller, wanted).await;
    let mut answers: Vec<Option<Answered>> = Vec::with_capacity(events.len());
    let mut encoded = Encoded::with_capacity(events.len(), share.bytes());
    let mut types = Types::default();
    for (index, event) in events.into_iter().enumerate() {
        let raw = match event {
            Ok(raw) => raw,
            Err(refused) => {
                answers.push(Some(refused.into()));
                continue;
            }
        };
        let outcome = match &encoder {
            _ if index >= granted.events => Some(Outcome::Limited(whose, granted.retry_after)),
            Err(_) => Some(Outcome::Retry(SOON)),
            Ok(encoder) => match gateway.limits.event(&caller.project, &raw.event_type, raw.user_id.as_deref()) {
                Err((whose, wait)) => Some(Outcome::Limited(whose, wait)),
                Ok(()) => match encoded.push(&raw, receipt, *encoder, &caller.routes, caller.partitions) {
                    Err(invalid) => Some(Outcome::Invalid(invalid)),
                    Ok(()) => against_schema(&schemas, &raw).inspect(|_| encoded.take_back()),
                },
            },
        };
        if outcome.is_none() {
            gateway.event_types.count(&raw.event_type);
            types.count(raw.event_type);
        }
        answers.push(outcome.map(|outcome| Answered { event_id: Some(raw.event_id.into_owned()), outcome }));
    }
    let mut delivered = Vec::new().into_iter();
    if !encoded.events().is_empty() {
        delivered = deliver(gateway, caller, encoded, share).await.into_iter();
    }
    let answers = answers.into_iter().map(|answer| answer.or_else(|| delivered.next()));
    let answers: Vec<Answered> = answers.map(|answer| answer.expect("one for each valid event")).collect();
    let (key_prefix, project, bytes) = (&caller.prefix, &caller.project, share.bytes());
    gateway.batches.note(&BatchNote { key_prefix, project, bytes, answers: &answers, types });
    answers
}

/// What is to be answered because of the event's JSON Schema, if it may not go on.
fn against_schema(schemas: &Checker<'_>, raw: &RawEvent<'_>) -> Option<Outcome> {
    match schemas.judge(&raw.event_type, raw.properties.as_deref()) {
        Judged::Fine => None,
        Judged::Invalid(violation) => Some(Outcome::Violates(violation)),
        Judged::Unknown => Some(Outcome::Retry(SOON)),
    }
}

/// Brings valid events into the log; gives their answers, in order.
async fn deliver(gateway: &Gateway, caller: &ApiKey, encoded: Encoded, share: &Arc<Share>) -> Vec<Answered> {
    let log = gateway.incarnations.log(&caller.project, &caller.routes);
    let lanes = &gateway.lanes;
    let (flight, outcomes) =
        Flight::new(log, encoded, token(), lanes.delivered.clone(), Arc::clone(share), gateway.tasks.token());
    let _ = lanes.claims.send(Arc::clone(&flight)); // the receiver lives as long as the gateway
    let outcomes = outcomes.await.unwrap_or_else(|_| vec![Outcome::Retry(SOON); flight.encoded.events().len()]);
    gateway.meters.outcomes(&outcomes);
    let events = flight.encoded.events().iter().map(|event| Some(flight.encoded.id_text(event).to_owned()));
    events.zip(outcomes).map(|(event_id, outcome)| Answered { event_id, outcome }).collect()
}

/// Where requests wait to be claimed and settled together.
pub struct Lanes {
    claims: mpsc::UnboundedSender<Arc<Flight>>,
    delivered: mpsc::UnboundedSender<Arc<Flight>>,
}

/// The other ends.
pub struct LaneEnds {
    claims: mpsc::UnboundedReceiver<Arc<Flight>>,
    delivered: mpsc::UnboundedReceiver<Arc<Flight>>,
}

impl Lanes {
    /// Empty lanes. What is in them is bounded by the requests' shares.
    pub fn new() -> (Self, LaneEnds) {
        let (claims, claims_end) = mpsc::unbounded_channel();
        let (delivered, delivered_end) = mpsc::unbounded_channel();
        (Self { claims, delivered }, LaneEnds { claims: claims_end, delivered: delivered_end })
    }
}

impl LaneEnds {
    /// Works for all requests until it is told to stop.
    pub fn work(self, gateway: &Arc<Gateway>, stop: &CancellationToken) {
        tokio::spawn(stop.clone().run_until_cancelled_owned(self.turns(Arc::clone(gateway))));
    }

    /// Asks Redis for all that waits, claims and settlements alike: what comes while it works shares the next round
    /// trip, because a round trip costs more than the events in it. All of it in one task: a task each would cost more
    /// in wake-ups than the work itself.
    async fn turns(mut self, gateway: Arc<Gateway>) {
        let mut under_way = FuturesUnordered::new();
        let mut latest = 0; // events of the round trip that was begun last
        loop {
            let (mut claims, mut delivered) = (Vec::new(), Vec::new());
            let room = under_way.is_empty() || latest >= LARGE && under_way.len() < ROUND_TRIPS;
            tokio::select! {
                Some(()) = under_way.next() => continue,
                Some(flight) = self.claims.recv(), if room => claims.push(flight),
                Some(flight) = self.delivered.recv(), if room => delivered.push(flight),
                else => return,
            }
            latest =
                take_what_waits(&mut self.claims, &mut claims) + take_what_waits(&mut self.delivered, &mut delivered);
            under_way.push(turn(Arc::clone(&gateway), claims, delivered));
        }
    }
}

async fn turn(gateway: Arc<Gateway>, claims: Vec<Arc<Flight>>, delivered: Vec<Arc<Flight>>) {
    join(claim(&gateway, claims), settle(&gateway, delivered)).await;
}

/// Adds what waits to the flights; gives how many events they hold.
fn take_what_waits(lane: &mut mpsc::UnboundedReceiver<Arc<Flight>>, flights: &mut Vec<Arc<Flight>>) -> usize {
    let mut events: usize = flights.iter().map(|flight| flight.encoded.events().len()).sum();
    while events < SHARED
        && let Ok(next) = lane.try_recv()
    {
        events += next.encoded.events().len();
        flights.push(next);
    }
    events
}

async fn claim(gateway: &Gateway, flights: Vec<Arc<Flight>>) {
    let found = gateway.claims.claim(&flights).await;
    for (flight, found) in flights.iter().zip(found) {
        produce(gateway, flight, &flight.claimed(found));
    }
}

/// Sends the events that are new home. The client tells the flight of each delivery. Where they could wait on
/// disk, they do so at once as long as Kafka is known to be down.
fn produce(gateway: &Gateway, flight: &Arc<Flight>, new: &[usize]) {
    gateway.meters.queue_depth.increment(new.len() as f64);
    if gateway.spooling.as_ref().is_some_and(|spooling| spooling.kafka_is_down(&flight.log.project)) {
        return new.iter().for_each(|&number| Arc::clone(flight).delivered(number, Err(KafkaError::Canceled)));
    }
    for &number in new {
        let event = flight.first(number);
        let record = Outgoing {
            topic: &flight.log.topic(event.partition).name,
            partition: event.partition % ROUTE,
            key: Some(flight.encoded.id(event)),
            value: flight.encoded.value(event),
            headers: &[],
        };
        let deliveries = Arc::clone(flight) as Arc<dyn Deliveries>;
        if let Err(error) = gateway.producer.enqueue(&record, Arc::new(Recipient { deliveries, number })) {
            Arc::clone(flight).delivered(number, Err(error));
        }
    }
}

/// Confirms what was delivered, gives the other claims back, and answers. What was not delivered is spooled first,
/// where there is a spool, and comes back.
async fn settle(gateway: &Arc<Gateway>, mut flights: Vec<Arc<Flight>>) {
    flights.retain(|flight| {
        let spooled = gateway.spooling.is_some() && flight.is_to_be_spooled();
        if spooled {
            tokio::spawn(spool(Arc::clone(gateway), Arc::clone(flight)));
        }
        !spooled
    });
    let settled: Vec<_> = flights.into_iter().map(|flight| (flight.fates(), flight)).collect();
    gateway.claims.settle(&settled).await;
    for (fates, flight) in settled {
        let (ours, failed) = (flight.ours().count(), flight.failed().count());
        gateway.meters.queue_depth.decrement(ours as f64);
        if failed > 0 && gateway.spooling.is_none() {
            tracing::warn!(events = failed, "events could not be delivered to Kafka; their senders must retry");
        }
        if let Some(spooling) = &gateway.spooling
            && ours > 0
            && failed == 0
        {
            spooling.outages.over(&flight.log.project); // nothing of ours would say nothing
        }
        flight.answer(&fates);
    }
}

/// Beside the lanes: nobody else waits for the disk.
async fn spool(gateway: Arc<Gateway>, flight: Arc<Flight>) {
    let Some(spooling) = &gateway.spooling else { return };
    let failed: Vec<usize> = flight.failed().collect();
    let spooled = spooling.append(&flight, &failed).await;
    flight.came_back(spooled);
}

/// Differs between all requests of all gateways.
fn token() -> String {
    static PROCESS: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| uuid::Uuid::new_v4().as_u64_pair().0);
    static REQUEST: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", *PROCESS, REQUEST.fetch_add(1, Ordering::Relaxed))
}
