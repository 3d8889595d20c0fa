//! A request's events on their way into the log. What happens to them is in `admit`; this is where it is noted.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tidemill_common::kafka::{Deliveries, Delivery};
use tidemill_common::names::ROUTE;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::claims::Found;
use crate::keys::Stored;
use crate::outcome::{Fate, Firsts, Outcome, SOON};
use crate::overload::Share;
use crate::stages::{Encoded, EncodedEvent};

const PENDING: i64 = -1;
const FAILED: i64 = -2;

/// Where a project's events go.
#[derive(Debug, Clone)]
pub struct Log {
    /// Whose events they are.
    pub project: Arc<str>,
    /// The topics of its events: its own, then those of its routes.
    pub topics: Arc<[Topic]>,
}

/// A topic of events.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its incarnation; blank if it is not known yet.
    pub incarnation: Arc<str>,
}

impl Log {
    /// The topic that has the partition with this number.
    pub fn topic(&self, partition: i32) -> &Topic {
        let route = usize::try_from(partition / ROUTE).unwrap_or(0);
        self.topics.get(route).unwrap_or(&self.topics[0]) // a project has its own topic
    }
}

/// The valid events of one request, from their claim to their answer.
pub struct Flight {
    /// Where they go.
    pub log: Log,
    /// All of them.
    pub encoded: Encoded,
    /// The first of each eventId: these are claimed and produced.
    pub firsts: Firsts,
    /// Stands in this request's claims.
    pub token: String,
    /// What the claim of each first found.
    found: OnceLock<Vec<Found>>,
    /// The offset of each first.
    offsets: Box<[AtomicI64]>,
    /// Whether what was not delivered is in the spool; unset before that was tried.
    spooled: OnceLock<bool>,
    /// Deliveries that are still to come.
    left: AtomicUsize,
    /// Where it goes once all have come.
    delivered: mpsc::UnboundedSender<Arc<Flight>>,
    answer: Mutex<Option<oneshot::Sender<Vec<Outcome>>>>,
    _share: Arc<Share>,
    _running: TaskTrackerToken,
}

impl Flight {
    /// Ready to be claimed, and where its outcomes will come out, one for each event.
    pub fn new(
        log: Log,
        encoded: Encoded,
        token: String,
        delivered: mpsc::UnboundedSender<Arc<Flight>>,
        share: Arc<Share>,
        running: TaskTrackerToken,
    ) -> (Arc<Self>, oneshot::Receiver<Vec<Outcome>>) {
        let firsts = Firsts::of(&encoded);
        let (answer, outcomes) = oneshot::channel();
        let flight = Self {
            offsets: firsts.at.iter().map(|_| AtomicI64::new(PENDING)).collect(),
            log,
            encoded,
            firsts,
            token,
            found: OnceLock::new(),
            spooled: OnceLock::new(),
            left: AtomicUsize::new(0),
            delivered,
            answer: Mutex::new(Some(answer)),
            _share: share,
            _running: running,
        };
        (Arc::new(flight), outcomes)
    }

    /// The event that is a request's first with its id.
    pub fn first(&self, number: usize) -> &EncodedEvent {
        &self.encoded.events()[self.firsts.at[number]]
    }

    /// Notes what the claims found; gives the numbers of the events to produce. With none, it is done.
    pub fn claimed(self: &Arc<Self>, found: Vec<Found>) -> Vec<usize> {
        let new: Vec<usize> = (0..found.len()).filter(|&number| matches!(found[number], Found::New)).collect();
        self.left.store(new.len(), Ordering::Release);
        let _ = self.found.set(found); // claimed once
        if new.is_empty() {
            self.done();
        }
        new
    }

    fn done(self: &Arc<Self>) {
        let _ = self.delivered.send(Arc::clone(self)); // the receiver lives as long as the gateway
    }

    /// The numbers of the firsts that were ours to produce.
    pub fn ours(&self) -> impl Iterator<Item = usize> {
        (0..self.offsets.len()).filter(|&number| self.is_ours(number))
    }

    /// Those of them that were not delivered.
    pub fn failed(&self) -> impl Iterator<Item = usize> {
        self.ours().filter(|&number| self.offsets[number].load(Ordering::Acquire) < 0)
    }

    /// Whether something was not delivered that might be spooled.
    pub fn is_to_be_spooled(&self) -> bool {
        self.spooled.get().is_none() && self.failed().next().is_some()
    }

    /// Goes on with what was not delivered in the spool, or not even there.
    pub fn came_back(self: &Arc<Self>, spooled: bool) {
        let _ = self.spooled.set(spooled); // tried once
        self.done();
    }

    /// What became of each first.
    pub fn fates(&self) -> Vec<Fate> {
        (0..self.offsets.len()).map(|number| self.fate(number)).collect()
    }

    fn fate(&self, number: usize) -> Fate {
        match self.found.get().map(|found| &found[number]) {
            Some(Found::Stored(stored)) => Fate::Known(*stored),
            Some(Found::InFlight { retry_after }) => Fate::Open(*retry_after),
            Some(Found::New) => match self.offsets[number].load(Ordering::Acquire) {
                PENDING | FAILED if self.spooled.get() == Some(&true) => Fate::Spooled,
                PENDING | FAILED => Fate::Open(SOON),
                offset => {
                    let event = self.first(number);
                    Fate::Delivered(Stored { partition: event.partition, offset, body: event.body })
                }
            },
            None => Fate::Open(SOON),
        }
    }

    /// Whether a first was ours to produce.
    pub fn is_ours(&self, number: usize) -> bool {
        self.found.get().is_some_and(|found| matches!(found[number], Found::New))
    }

    /// Answers the request, whose client may be gone.
    pub fn answer(&self, fates: &[Fate]) {
        if let Some(answer) = self.answer.lock().expect("no holder panics").take() {
            let _ = answer.send(self.firsts.outcomes(&self.encoded, fates));
        }
    }
}

impl Deliveries for Flight {
    fn delivered(self: Arc<Self>, number: usize, delivery: Delivery) {
        let offset = match delivery {
            Ok((_, offset)) => offset,
            Err(error) => {
                tracing::debug!(%error, topic = &*self.log.topic(self.first(number).partition).name, "not delivered");
                FAILED
            }
        };
        self.offsets[number].store(offset, Ordering::Release);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done();
        }
    }
}
