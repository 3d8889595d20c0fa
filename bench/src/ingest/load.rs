//! Load on a server: closed loop (each connection sends as soon as it has its answer) or open loop (requests
//! have their times, whatever the server does). All connections live on one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::events::{Ids, Timestamp};
use super::request::{Request, Target};
use super::tally::{Counts, Tally};
use crate::http::Connection;

/// How often the pacer looks which requests are due. What this adds to a latency is part of it.
const TICK: Duration = Duration::from_micros(200);
/// Other events per connection; enough that what is compressed together does not repeat.
const EVENTS_PER_CONNECTION: usize = 16;
/// Answers that are still awaited when a load ends are waited for this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// Over how many connections.
    pub connections: usize,
    /// How many events a request has.
    pub batch: usize,
    /// Requests per second of an open loop; without it the loop is closed.
    pub rate: Option<f64>,
    /// Whether refusals and lost connections are expected, and so counted instead of ending the run.
    pub overload: bool,
}

/// A load that is running.
pub struct Load {
    shared: Arc<Shared>,
    connections: JoinSet<anyhow::Result<()>>,
}

struct Shared {
    plan: Plan,
    ids: Ids,
    stop: AtomicBool,
    tally: Tally,
    schedule: Option<Schedule>,
}

/// When requests of an open loop are due: number n at `start + n * period`. Permits are handed out as they are.
struct Schedule {
    start: Instant,
    period: Duration,
    due: Semaphore,
    taken: AtomicU64,
}

impl Load {
    /// Connects and begins.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let mut connections = Vec::with_capacity(plan.connections);
        for _ in 0..plan.connections {
            connections.push(Connection::open(plan.target.address).await?);
        }
        let schedule = plan.rate.map(Schedule::new);
        let (ids, stop, tally) = (Ids::new(), AtomicBool::new(false), Tally::new());
        let shared = Arc::new(Shared { plan, ids, stop, tally, schedule });
        if shared.schedule.is_some() {
            let shared = shared.clone();
            std::thread::spawn(move || shared.pace());
        }
        let mut tasks = JoinSet::new();
        for (number, connection) in connections.into_iter().enumerate() {
            tasks.spawn(shared.clone().drive(connection, number));
        }
        Ok(Self { shared, connections: tasks })
    }

    /// What has been counted.
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Lets time pass; fails as soon as a connection does.
    pub async fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            Some(ended) = self.connections.join_next() => {
                ended??;
                bail!("a connection ended before its time")
            }
        }
    }

    /// Ends it, once all answers are there, and gives the final counts.
    pub async fn stop(mut self) -> anyhow::Result<Counts> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(schedule) = &self.shared.schedule {
            schedule.due.close();
        }
        let all = async {
            while let Some(ended) = self.connections.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, all).await.context("the server does not answer any more")??;
        Ok(self.shared.tally.counts())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// One connection's life.
    async fn drive(self: Arc<Self>, mut connection: Connection, number: usize) -> anyhow::Result<()> {
        let Plan { target, batch, overload, .. } = &self.plan;
        let mut requests = self.requests(number);
        let mut timestamp = Timestamp::new();
        for turn in 0.. {
            let Some(begin) = self.turn().await else { break };
            timestamp.set(SystemTime::now());
            let turn = turn % requests.len();
            let sent = Instant::now();
            let request = requests[turn].renewed(&self.ids, &timestamp);
            match connection.exchange(request).await {
                Ok(response) => {
                    let accepted = target.accepted(response.status, response.body, *batch);
                    self.tally.answered(accepted, &response, begin, sent);
                    if accepted != *batch && !overload {
                        bail!("{accepted} of {batch} events were accepted: {}", response.excerpt());
                    }
                }
                Err(error) if !overload => return Err(error),
                Err(_) => {
                    self.tally.broken();
                    connection = Connection::open(target.address).await?;
                }
            }
        }
        Ok(())
    }

    fn requests(&self, number: usize) -> Vec<Request> {
        let Plan { target, batch, .. } = &self.plan;
        let count = EVENTS_PER_CONNECTION.div_ceil(*batch);
        let events = count * batch;
        (0..count).map(|request| Request::new(target, *batch, (number * events + request * batch) as u64)).collect()
    }

    /// Waits for the next request's turn and gives the time at which it should have been sent; nothing at the end.
    async fn turn(&self) -> Option<Instant> {
        if let Some(schedule) = &self.schedule {
            return schedule.turn().await;
        }
        (!self.stop.load(Ordering::Relaxed)).then(Instant::now)
    }

    /// Hands out permits for requests that are due. A thread, because the runtime's timers only know milliseconds.
    fn pace(&self) {
        let Some(schedule) = &self.schedule else { return };
        let mut given = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let due = schedule.due_at(Instant::now());
            schedule.due.add_permits((due - given) as usize);
            given = due;
            std::thread::sleep(TICK);
        }
    }
}

impl Schedule {
    fn new(per_second: f64) -> Self {
        let period = Duration::from_secs_f64(1.0 / per_second);
        Self { start: Instant::now(), period, due: Semaphore::new(0), taken: AtomicU64::new(0) }
    }

    /// How many requests should have been sent by a time.
    fn due_at(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_nanos() / self.period.as_nanos().max(1)) as u64
    }

    async fn turn(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        Some(self.start + Duration::from_nanos(self.period.as_nanos() as u64 * number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_of_an_open_loop_keep_their_times() {
        let schedule = Schedule::new(1_000.0);
        assert_eq!(schedule.due_at(schedule.start), 0);
        assert_eq!(schedule.due_at(schedule.start + Duration::from_micros(2_999)), 2);
        schedule.due.add_permits(2);
        assert_eq!(schedule.turn().await, Some(schedule.start));
        // Taken late or not: it counts from when it was due.
        assert_eq!(schedule.turn().await, Some(schedule.start + Duration::from_millis(1)));
        schedule.due.close();
        assert_eq!(schedule.turn().await, None);
    }
}
