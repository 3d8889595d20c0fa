//! A member of a consumer group whose positions come from its view, never from the group.
//!
//! One thread owns the client and polls without ever waiting on work. Newly assigned partitions stand still
//! until [`GroupConsumer::start`] says where to read; what was fetched before a `start` never comes out
//! after it.
//!
//! A start hands the client all started partitions anew, each at its own next offset. Seeking would be
//! cheaper, but a seek that comes while the client is still looking up a logical offset is undone half a
//! second later (librdkafka 2.12 retries the outdated look-up and goes where that says: to the log's end), and
//! a partition whose offset was out of range can never be seeked in again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;

use super::way_back::look_after;
use super::{KafkaConfig, Record, TopicPartition};
use crate::names::NO_EVENT_TOPICS;

/// Most records that are handed over at once, and from how many bytes of them on no more.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 1024 * 1024;
const POLL: Duration = Duration::from_millis(50);
/// A revocation waits this long for the batch in hand, so that the next owner seldom meets its transaction. Longer
/// would hold up the whole group; the ledger decides in any case.
const IN_HAND: Duration = Duration::from_secs(3);
/// A stall this short is waited out, since pausing throws away what the client has fetched ahead.
const SHORT_STALL: Duration = Duration::from_secs(1);

/// How much may wait for the worker; above it fetching stops until half of it is gone.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// So many records,
    pub records: usize,
    /// or bytes of them.
    pub bytes: usize,
    /// And so many KiB in Kafka's client, at the most twice.
    pub client_kib: usize,
    /// A partition's share of one answer, in bytes. A longer record comes all the same.
    pub partition_bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        // With less, partitions are read so unevenly that a batch touches several times as many sessions.
        Self { records: 8_192, bytes: 8 * 1024 * 1024, client_kib: 6_144, partition_bytes: 512 * 1024 }
    }
}

/// What the consumer tells its worker.
#[derive(Debug)]
pub enum GroupEvent {
    /// These partitions are ours now and stand still until they are started.
    Assigned(Vec<TopicPartition>),
    /// These are ours no more.
    Revoked(Vec<TopicPartition>),
    /// The next records of a started partition: at least one, and what came with it.
    Records(Vec<Record>),
    /// A started partition cannot be read on, e.g. because retention has passed its position. The client
    /// does not say which: check them all.
    Failed(KafkaError),
}

enum Command {
    Start { at: TopicPartition, offset: i64, ticket: u64 },
    Commit(Vec<(TopicPartition, i64)>),
    Stop,
}

/// The worker's end.
pub struct GroupConsumer {
    events: mpsc::UnboundedReceiver<(u64, GroupEvent)>,
    commands: std_mpsc::Sender<Command>,
    queued: Arc<Queued>,
    batches: Arc<Batches>,
    /// The latest start of each partition; what bears another number is from before it.
    tickets: HashMap<TopicPartition, u64>,
    next_ticket: u64,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Queued {
    room: Room,
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queued {
    fn full(&self) -> bool {
        self.records.load(Ordering::Relaxed) >= self.room.records
            || self.bytes.load(Ordering::Relaxed) >= self.room.bytes
    }

    fn half_empty(&self) -> bool {
        self.records.load(Ordering::Relaxed) < self.room.records / 2
            && self.bytes.load(Ordering::Relaxed) < self.room.bytes / 2
    }
}

/// How many batches were taken in hand, and how many of them are done.
#[derive(Default)]
struct Batches {
    counts: Mutex<(u64, u64)>,
    done: Condvar,
}

impl Batches {
    fn counts(&self) -> MutexGuard<'_, (u64, u64)> {
        self.counts.lock().expect("no holder panics")
    }

    /// Waits until the batches that are in hand now are done, or for `limit`.
    fn settle(&self, limit: Duration) {
        let counts = self.counts();
        let (taken, _) = *counts;
        drop(self.done.wait_timeout_while(counts, limit, |(_, done)| *done < taken));
    }
}

/// A batch that is being applied, until this is dropped.
#[must_use]
pub struct InHand(Arc<Batches>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.counts().1 += 1;
        self.0.done.notify_all();
    }
}

impl GroupConsumer {
    /// Joins `group` for the topics that match the regular expression `topics`.
    pub fn join(kafka: &KafkaConfig, group: &str, topics: &str, session_timeout: Duration) -> KafkaResult<Self> {
        Self::join_with(kafka, group, topics, session_timeout, Room::default())
    }

    /// The same with another room.
    pub fn join_with(
        kafka: &KafkaConfig,
        group: &str,
        topics: &str,
        session_timeout: Duration,
        room: Room,
    ) -> KafkaResult<Self> {
        let (event_sender, events) = mpsc::unbounded_channel();
        let (commands, command_receiver) = std_mpsc::channel();
        let batches = Arc::<Batches>::default();
        let context = Context { events: event_sender, assigned: Mutex::default(), batches: Arc::clone(&batches) };
        let config = Self::config(kafka, group, session_timeout, room);
        let consumer: BaseConsumer<Context> = config.create_with_context(context)?;
        consumer.subscribe(&[topics])?;
        let consumer = Arc::new(consumer);
        look_after(kafka, &consumer, |consumer| consumer.client());
        let queued = Arc::new(Queued { room, records: AtomicUsize::new(0), bytes: AtomicUsize::new(0) });
        let poller = Poller {
            consumer,
            commands: command_receiver,
            waiting: Vec::new(),
            queued: Arc::clone(&queued),
            topics: HashMap::new(),
            paused: false,
        };
        let thread = std::thread::Builder::new().name(group.to_owned()).spawn(move || poller.run());
        let thread = Some(thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?);
        Ok(Self { events, commands, queued, batches, tickets: HashMap::new(), next_ticket: 1, thread })
    }

    /// Its settings, for a client of the same kind.
    pub fn config(kafka: &KafkaConfig, group: &str, session_timeout: Duration, room: Room) -> ClientConfig {
        let mut config = kafka.client();
        config
            .set("group.id", group)
            .set("topic.blacklist", NO_EVENT_TOPICS)
            // Cooperative assignment has known faults; range gives every small topic to the first member.
            .set("partition.assignment.strategy", "roundrobin")
            .set("session.timeout.ms", session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (session_timeout.as_millis() / 4).to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("topic.metadata.refresh.interval.ms", super::METADATA.as_millis().to_string())
            .set("queued.max.messages.kbytes", room.client_kib.to_string())
            .set("fetch.message.max.bytes", room.partition_bytes.to_string())
            // How long nothing is fetched once that is full. A second, the client's default, is many times what it lasts.
            .set("fetch.queue.backoff.ms", "20")
            // While records come one by one, an answer for each would keep the broker busy.
            .set("fetch.min.bytes", "65536")
            .set("fetch.wait.max.ms", "50");
        config
    }

    /// The next event; `None` once the consumer has stopped. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<GroupEvent> {
        loop {
            let (ticket, event) = self.events.recv().await?;
            if let Some(event) = self.pass(ticket, event) {
                return Some(event);
            }
        }
    }

    /// An event, unless it is from before its partition was started anew.
    fn pass(&mut self, ticket: u64, event: GroupEvent) -> Option<GroupEvent> {
        match &event {
            GroupEvent::Records(records) => {
                self.queued.records.fetch_sub(records.len(), Ordering::Relaxed);
                self.queued.bytes.fetch_sub(size(records), Ordering::Relaxed);
                let at = records.first()?.topic_partition();
                (self.tickets.get(&at) == Some(&ticket)).then_some(event)
            }
            GroupEvent::Revoked(partitions) => {
                self.tickets.retain(|at, _| !partitions.contains(at));
                Some(event)
            }
            _ => Some(event),
        }
    }

    /// Reads a partition from `offset` on. All that was fetched of it before is forgotten.
    pub fn start(&mut self, at: &TopicPartition, offset: i64) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(at.clone(), ticket);
        self.send(Command::Start { at: at.clone(), offset, ticket });
    }

    /// Says that a batch is being applied: a revocation waits for it, though not for long.
    pub fn in_hand(&self) -> InHand {
        self.batches.counts().0 += 1;
        InHand(Arc::clone(&self.batches))
    }

    /// Tells Kafka the next offsets, for lag displays only.
    pub fn commit(&self, next_offsets: Vec<(TopicPartition, i64)>) {
        self.send(Command::Commit(next_offsets));
    }

    /// Leaves the group and waits for the thread to end.
    pub async fn leave(mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // The thread only fails by a panic, which it has printed.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn send(&self, command: Command) {
        // The receiver lives until Stop or until our own end of the events is gone.
        let _ = self.commands.send(command);
    }
}

/// What rebalances see. They run inside `poll`, on the poller's thread.
struct Context {
    events: mpsc::UnboundedSender<(u64, GroupEvent)>,
    /// The partitions that are ours; nothing until started.
    assigned: Mutex<HashMap<TopicPartition, Option<Started>>>,
    batches: Arc<Batches>,
}

#[derive(Debug, Clone, Copy)]
struct Started {
    ticket: u64,
    /// The next offset to pass on.
    next: i64,
}

impl Context {
    fn assigned(&self) -> MutexGuard<'_, HashMap<TopicPartition, Option<Started>>> {
        self.assigned.lock().expect("no holder panics")
    }

    /// The started partitions, each at its next offset.
    fn started(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (at, started) in self.assigned().iter() {
            if let Some(started) = started {
                let mut element = list.add_partition(&at.topic, at.partition);
                element.set_offset(Offset::Offset(started.next)).expect("an offset that is not negative");
            }
        }
        list
    }
}

impl ClientContext for Context {
    /// That offsets for lag displays were not committed is nothing to be told of with every batch: when a topic is deleted
    /// it takes some seconds until its partitions are nobody's.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match facility {
            "COMMITFAIL" => tracing::debug!(message, "offsets for lag displays were not committed"),
            _ => DefaultClientContext.log(level, facility, message),
        }
    }
}

impl ConsumerContext for Context {
    /// Overridden whole: hooks before and after the default would assign twice.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = partitions_of(list);
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            *self.assigned() = partitions.iter().map(|at| (at.clone(), None)).collect();
            if let Err(error) = consumer.assign(&self.started()) {
                tracing::error!(%error, "cannot take over assigned partitions");
            }
            let _ = self.events.send((0, GroupEvent::Assigned(partitions)));
        } else {
            self.batches.settle(IN_HAND);
            if let Err(error) = consumer.unassign() {
                tracing::warn!(%error, "cannot give revoked partitions back");
            }
            self.assigned().clear();
            let _ = self.events.send((0, GroupEvent::Revoked(partitions)));
        }
    }
}

struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    commands: std_mpsc::Receiver<Command>,
    /// Starts that the client has not taken yet.
    waiting: Vec<(TopicPartition, Started)>,
    queued: Arc<Queued>,
    topics: HashMap<String, Arc<str>>,
    paused: bool,
}

/// Records of one partition that will be handed over together.
struct Chunk {
    at: TopicPartition,
    started: Started,
    records: Vec<Record>,
    bytes: usize,
}

impl Poller {
    /// What the client has at once is handed over together, so that the worker is woken once for it.
    fn run(mut self) {
        let mut chunk: Option<Chunk> = None;
        loop {
            let more = chunk.as_ref().is_some_and(|chunk| chunk.records.len() < CHUNK && chunk.bytes < CHUNK_BYTES);
            if !more {
                self.hand_over(chunk.take());
                if self.consumer.context().events.is_closed() || !self.obey() {
                    return;
                }
                self.throttle();
            }
            match self.consumer.poll(if more { Duration::ZERO } else { POLL }) {
                Some(Ok(message)) => self.collect(&mut chunk, &message),
                Some(Err(error)) => self.report(error),
                None => self.hand_over(chunk.take()),
            }
        }
    }

    /// Carries out the worker's commands; false ends the thread.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start { at, offset, ticket } => self.waiting.push((at, Started { ticket, next: offset })),
                Command::Commit(offsets) => self.commit(&offsets),
                Command::Stop => return false,
            }
        }
        if !self.waiting.is_empty() {
            match self.start() {
                Ok(()) => self.waiting.clear(),
                Err(error) => tracing::warn!(%error, "cannot start partitions, trying again"),
            }
        }
        true
    }

    /// Starts what waits and is still ours. Until the client has taken it, what it gives is from before.
    fn start(&mut self) -> KafkaResult<()> {
        for (at, started) in &self.waiting {
            self.topics.entry(at.topic.to_string()).or_insert_with(|| Arc::clone(&at.topic));
            if let Some(assigned) = self.consumer.context().assigned().get_mut(at) {
                *assigned = Some(*started);
            }
        }
        let started = self.consumer.context().started();
        self.consumer.assign(&started)?;
        if self.paused { self.consumer.pause(&started) } else { self.consumer.resume(&started) }
    }

    fn commit(&self, offsets: &[(TopicPartition, i64)]) {
        let mut list = TopicPartitionList::new();
        for (at, next) in offsets {
            if list.add_partition_offset(&at.topic, at.partition, Offset::Offset(*next)).is_err() {
                return;
            }
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            tracing::debug!(%error, "offsets for lag displays were not committed");
        }
    }

    /// Stops fetching while too much waits for the worker.
    fn throttle(&mut self) {
        if self.paused {
            if self.queued.half_empty() {
                self.paused = !self.on_started(|consumer, list| consumer.resume(list));
            }
            return;
        }
        if !self.queued.full() {
            return; // before looking at the clock, which every record would
        }
        let give_up = Instant::now() + SHORT_STALL;
        while self.queued.full() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.queued.full() {
            self.paused = self.on_started(|consumer, list| consumer.pause(list));
        }
    }

    fn on_started(&self, act: impl Fn(&BaseConsumer<Context>, &TopicPartitionList) -> KafkaResult<()>) -> bool {
        act(&self.consumer, &self.consumer.context().started()).is_ok()
    }

    fn collect(&self, chunk: &mut Option<Chunk>, message: &BorrowedMessage<'_>) {
        let of = |at: &TopicPartition| at.partition == message.partition() && *at.topic == *message.topic();
        if !chunk.as_ref().is_some_and(|chunk| of(&chunk.at)) {
            self.hand_over(chunk.take());
            *chunk = self.begin(message);
        }
        let Some(Chunk { at, started, records, bytes }) = chunk else { return };
        if message.offset() >= started.next {
            started.next = message.offset() + 1;
            *bytes += message.payload_len();
            records.push(Record::of(Arc::clone(&at.topic), message));
        } // or it was fetched before the partition was started
    }

    fn begin(&self, message: &BorrowedMessage<'_>) -> Option<Chunk> {
        let topic = Arc::clone(self.topics.get(message.topic())?);
        let at = TopicPartition { topic, partition: message.partition() };
        if self.waiting.iter().any(|(waiting, _)| *waiting == at) {
            return None;
        }
        let started = (*self.consumer.context().assigned().get(&at)?)?;
        Some(Chunk { at, started, records: Vec::new(), bytes: 0 })
    }

    fn hand_over(&self, chunk: Option<Chunk>) {
        let Some(Chunk { at, started, records, .. }) = chunk.filter(|chunk| !chunk.records.is_empty()) else { return };
        match self.consumer.context().assigned().get_mut(&at) {
            Some(Some(ours)) if ours.ticket == started.ticket => ours.next = started.next,
            _ => return, // it has been taken from us meanwhile
        }
        self.queued.records.fetch_add(records.len(), Ordering::Relaxed);
        self.queued.bytes.fetch_add(size(&records), Ordering::Relaxed);
        // The receiver is gone when the worker is.
        let _ = self.consumer.context().events.send((started.ticket, GroupEvent::Records(records)));
    }

    fn report(&self, error: KafkaError) {
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
            | KafkaError::MessageConsumptionFatal(_) => {
                let _ = self.consumer.context().events.send((0, GroupEvent::Failed(error)));
            }
            other => tracing::debug!(error = %other, "kafka consumer"),
        }
    }
}

fn size(records: &[Record]) -> usize {
    records.iter().map(Record::size).sum()
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|e| TopicPartition { topic: Arc::from(e.topic()), partition: e.partition() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_waits_for_the_batch_in_hand_and_not_for_ever() {
        let batches = Arc::<Batches>::default();
        batches.settle(Duration::from_secs(60)); // nothing is in hand
        batches.counts().0 += 1;
        let in_hand = InHand(Arc::clone(&batches));
        batches.settle(Duration::ZERO);
        let waiting = std::thread::spawn({
            let batches = Arc::clone(&batches);
            move || batches.settle(Duration::from_secs(60))
        });
        drop(in_hand);
        waiting.join().expect("it does not wait for the next batch");
    }
}
