//! Freshness: from an event to its count in `GET /v1/metrics/{name}`, while others arrive at a fixed rate.
//!
//! Each prober has an event type of its own. It sends one event, asks until that is counted, and begins anew.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::{join, try_join_all};
use serde::Deserialize;
use tidemill_common::event::EventRef;

use super::place::Place;
use super::topic::{EventProducer, now_us, play};
use super::traffic::{Shape, Traffic};
use crate::http::Connection;
use crate::process::written_back;
use crate::random::{Random, uuid};

/// How long, the warm-up included.
const SECONDS: u32 = 100;
/// A broker that has just been started is compiling itself; until it has, it takes a core from everybody.
const WARM_UP: Duration = Duration::from_secs(40);
const PROBERS: u64 = 5;
/// How long a prober waits between two questions, and at most between two events.
const ASK: Duration = Duration::from_millis(50);
const PAUSE_MS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(30);

/// So many of the slowest are told.
const SLOWEST: usize = 10;

/// One event, and how long it took to be counted.
struct Probe {
    sent: Duration,
    ms: f64,
}

/// What was measured.
pub struct Freshness {
    /// Median, in milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

/// Measures it with one worker and one query service while `rate` events per second are offered.
pub async fn measure(place: &Place, project: &str, rate: u64, seed: u64) -> anyhow::Result<Freshness> {
    let key = place.key.as_ref().context("--key is missing; run this through dev/bench")?;
    let fresh = place.fresh(project).await?;
    let traffic = Traffic::new(Shape::steady(rate, SECONDS, seed));
    let Place { brokers, registry, partitions, .. } = place;
    let mut load = EventProducer::new(brokers, registry, project, *partitions).await?;
    let probes = RefCell::new(EventProducer::new(brokers, registry, project, *partitions).await?);
    written_back().await?;
    let worker = place.worker(&fresh, &tidemill_common::names::events_topic(project), 1).await?;
    let (query, address) = place.query(&fresh).await?;
    let begun = Instant::now();
    // Late events and copies trail behind the end; nothing is measured then.
    let probers = (0..PROBERS).map(|number| probe(number, address, key, &probes, begun));
    let playing = tokio::time::timeout(Duration::from_secs(SECONDS.into()), play(&mut load, &traffic));
    let (played, taken) = join(playing, try_join_all(probers)).await;
    if let Ok(ended) = played {
        ended?;
    }
    worker.stop().await?;
    query.stop().await?;
    let mut taken: Vec<Probe> = taken?.into_iter().flatten().collect();
    ensure!(taken.len() >= 100, "only {} probes were counted", taken.len());
    taken.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    for probe in taken.iter().rev().take(SLOWEST) {
        eprintln!("  {:.0} ms for an event sent {:.1} s after the start", probe.ms, probe.sent.as_secs_f64());
    }
    let quantile = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize].ms;
    Ok(Freshness { p50_ms: quantile(0.5), p99_ms: quantile(0.99) })
}

/// Sends events of a type of its own, one after the other; gives how long each took to be counted.
async fn probe(
    number: u64,
    address: SocketAddr,
    key: &str,
    producer: &RefCell<EventProducer>,
    begun: Instant,
) -> anyhow::Result<Vec<Probe>> {
    let mut random = Random::new(now_us() as u64, number);
    let name = format!("probe_{number}");
    let mut asker = Asker::open(address, key, &name).await?;
    let mut taken = Vec::new();
    for sent in 1.. {
        tokio::time::sleep(Duration::from_millis(random.below(PAUSE_MS))).await;
        if begun.elapsed() > Duration::from_secs(SECONDS.into()) {
            break;
        }
        let sending = Instant::now();
        let id = uuid(random.next(), random.next());
        producer.borrow_mut().send(&event(std::str::from_utf8(&id)?, &name))?;
        while asker.count().await? < sent {
            ensure!(sending.elapsed() < PATIENCE, "an event is not counted after 30 s: the worker does not keep up");
            producer.borrow().poll();
            tokio::time::sleep(ASK).await;
        }
        let since_start = sending.duration_since(begun);
        if since_start > WARM_UP {
            taken.push(Probe { sent: since_start, ms: sending.elapsed().as_secs_f64() * 1e3 });
        }
    }
    Ok(taken)
}

fn event<'a>(event_id: &'a str, event_type: &'a str) -> EventRef<'a> {
    EventRef { event_id, event_type, timestamp: now_us(), ..EventRef::default() }
}

/// Asks for the count of one event type.
struct Asker {
    connection: Connection,
    request: String,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    value: f64,
}

impl Asker {
    async fn open(address: SocketAddr, key: &str, name: &str) -> anyhow::Result<Self> {
        let start = chrono::DateTime::from_timestamp_micros(now_us()).unwrap_or_default();
        let start = start.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let request = format!(
            "GET /v1/metrics/{name}?granularity=1m&startTime={start} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        Ok(Self { connection: Connection::open(address).await?, request })
    }

    async fn count(&mut self) -> anyhow::Result<u64> {
        let response = self.connection.exchange(self.request.as_bytes()).await?;
        match response.status {
            200 => {
                let answer: Answer = serde_json::from_slice(response.body).context("not a metric's answer")?;
                Ok(answer.data.iter().map(|point| point.value as u64).sum())
            }
            404 => Ok(0), // no event of this type has been counted yet
            _ => anyhow::bail!("the query service answers {}", response.excerpt()),
        }
    }
}
