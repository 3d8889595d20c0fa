//! Load through the gateway alone, from several clients at once, and what its answers were like.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tidemill_common::event::Event;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::drill::Drill;
use crate::send::{Answered, Http};
use crate::traffic::{Item, Style, Traffic};

/// Clients that send at once.
const CLIENTS: usize = 6;
/// Events of a request.
const EVENTS: usize = 50;
/// What clients are to be told, whatever is broken behind the gateway.
const TOLD: [u16; 4] = [202, 409, 429, 503];

/// Load in the background. It ends on drop.
pub struct Load {
    clients: Vec<AbortOnDropHandle<anyhow::Result<usize>>>,
    stop: CancellationToken,
    http: Http,
    began: Instant,
}

/// What a load was like.
pub struct Loaded {
    /// Events that were sent.
    pub events: usize,
    /// For how long.
    pub seconds: f64,
    /// What the answers were like.
    pub answered: Answered,
}

impl Load {
    /// Sends so many events a second, as far as they are answered: what a client could not send in time comes as soon as it
    /// can.
    pub fn start(drill: &Drill, rate: usize) -> anyhow::Result<Self> {
        let (http, stop) = (drill.http()?.clone(), CancellationToken::new());
        let run = format!("{}-{}", drill.stack.project, drill.journal.len());
        let client = |number: usize| {
            let style = Style { users: 400, garbage: 0.0, ..Style::default() };
            let traffic = drill.traffic(&format!("{run}-{number}"), style);
            let pause = Duration::from_secs_f64((CLIENTS * EVENTS) as f64 / rate as f64);
            AbortOnDropHandle::new(tokio::spawn(send(http.clone(), traffic, pause, stop.clone())))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Ok(Self { clients, stop, http, began: Instant::now() })
    }

    /// Ends it, once what is under way has its answer.
    pub async fn stop(self) -> anyhow::Result<Loaded> {
        self.stop.cancel();
        let mut events = 0;
        for client in self.clients {
            events += client.await??;
        }
        Ok(Loaded { events, seconds: self.began.elapsed().as_secs_f64(), answered: self.http.answered() })
    }
}

impl Loaded {
    /// A line about it; fails when a client was told something that none should be told, or not within `limit`.
    pub fn judged(&self, wanted: usize, limit: Duration) -> anyhow::Result<String> {
        let answered = &self.answered;
        let odd: Vec<_> = answered.statuses.iter().filter(|(status, _)| !TOLD.contains(status)).collect();
        ensure!(odd.is_empty(), "clients were told {odd:?} of {:?}", answered.statuses);
        let (p50, p99) = (answered.within(0.5), answered.within(0.99));
        ensure!(p99 < limit, "99 % of the answers took up to {p99:?}");
        let rate = self.events as f64 / self.seconds;
        let held = if rate < 0.95 * wanted as f64 { ", all that this machine holds" } else { "" };
        let statuses = &answered.statuses;
        Ok(format!("{rate:.0} events/s of {wanted}{held}; answers {statuses:?}, p50 {p50:.0?}, p99 {p99:.0?}"))
    }
}

async fn send(http: Http, mut traffic: Traffic, pause: Duration, stop: CancellationToken) -> anyhow::Result<usize> {
    let (mut beat, mut sent) = (tokio::time::interval(pause), 0);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = stop.cancelled() => return Ok(sent),
        }
        let event = |item: Item| match item {
            Item::Event(event) => Some(event),
            Item::Garbage { .. } => None,
        };
        let items = traffic.items(EVENTS, chrono::Utc::now().timestamp_micros());
        let events: Vec<Event> = items.into_iter().filter_map(event).collect();
        http.send(&events).await?;
        sent += events.len();
    }
}
