//! A batch being filled: records are sorted and what follows from them is sent on as they come, while the batch before
//! is applied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tidemill_common::failpoint::hit;
use tidemill_common::kafka::{Record, TopicPartition};

use crate::config::Config;
use crate::ledger::Advance;
use crate::live::Live;
use crate::outbox::{Closed, Judged, Outbox, Post};
use crate::sort::{Sorted, Sorter, Transient};
use crate::state::State;
use crate::store::{Batch, Counted, is_behind};

/// So many records that are to be sent on go together, or what has come within this time: each parcel costs a question.
const PARCEL: usize = 1_000;
const PARCEL_TIME: Duration = Duration::from_millis(20);

/// What is behind waits so long for a full batch, which takes less for an event.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// What has come since the last batch was closed.
#[derive(Default)]
pub struct Filling {
    sorted: Sorted,
    outbox: Option<Outbox>,
    /// When the last parcel went.
    posted: Option<Instant>,
    judged: Judged,
    steps: BTreeMap<TopicPartition, Advance>,
    held: Vec<TopicPartition>,
    records: usize,
    bytes: usize,
    since: Option<Instant>,
    /// The emptied list of a batch before, for the next one: it is large.
    spare: Vec<Counted>,
}

/// A batch that is complete.
pub struct Filled {
    /// What is on its way to other topics. It has to be there before anything counts: were it lost, nobody would send
    /// it again. What arrives and does not count in the end is a repeat that readers know by its headers.
    pub outbox: Closed,
    /// What is committed.
    pub batch: Batch,
    /// Copies and strays among the records.
    pub copies: u64,
    /// See `copies`.
    pub strays: u64,
    /// Partitions that go on from the ledger after it, since their next record could not be judged.
    pub held: Vec<TopicPartition>,
}

impl Filling {
    /// Sorts records of one partition and adds them. If the next record cannot be judged yet, the partition is held: it
    /// gives nothing until it is live again. Neither does one that is not ours.
    pub async fn add(
        &mut self,
        records: &[Record],
        state: &mut State,
        sorter: &mut Sorter,
        post: &Post,
    ) -> Result<(), Transient> {
        let Some(at) = records.first().map(Record::topic_partition) else { return Ok(()) };
        let Some(live) = state.live.get_mut(&at).filter(|live| !live.held) else { return Ok(()) };
        hit("stream.polled").await?;
        self.since.get_or_insert_with(Instant::now);
        let taken = sorter.sort(records, live, &mut self.sorted).await?;
        self.judged.insert((Arc::clone(&live.project_id), live.layout.version));
        let waiting = self.sorted.emissions.len();
        if waiting >= PARCEL || (waiting > 0 && self.posted.is_none_or(|at| at.elapsed() >= PARCEL_TIME)) {
            let next = self.sorted.emissions.room_for_as_many();
            let emissions = std::mem::replace(&mut self.sorted.emissions, next);
            self.outbox.get_or_insert_with(|| post.outbox()).add(emissions, self.judged.clone());
            self.posted = Some(Instant::now());
        }
        if taken < records.len() {
            live.held = true;
            self.held.push(at.clone());
        }
        let taken = &records[..taken];
        if !taken.is_empty() {
            self.step(at, live, taken);
            self.records += taken.len();
            self.bytes += taken.iter().map(Record::size).sum::<usize>();
        }
        Ok(())
    }

    /// From the end of the last batch to behind these records.
    fn step(&mut self, at: TopicPartition, live: &mut Live, taken: &[Record]) {
        let step = self.steps.entry(at).or_insert_with(|| Advance {
            place: live.place.clone(),
            start: live.read,
            next: live.read,
            projected: 0, // known when the batch is closed
            newest_ms: 0,
        });
        live.read = taken.last().map_or(live.read, |last| last.offset + 1);
        step.next = live.read;
        // Clocks of brokers differ, so the last one need not be the newest.
        let newest_ms = taken.iter().map(|record| record.append_ms).max().unwrap_or_default();
        step.newest_ms = step.newest_ms.max(newest_ms);
    }

    /// Whether it decides on dead letters.
    pub fn redrives(&self) -> bool {
        !self.sorted.redrives.is_empty()
    }

    /// Whether it holds as much as a batch may.
    pub fn full(&self, config: &Config) -> bool {
        self.records >= config.batch_size || self.bytes >= config.batch_bytes
    }

    /// When it has waited long enough; none while it is empty.
    pub fn due(&self, config: &Config, now: DateTime<Utc>) -> Option<Instant> {
        let wait = config.batch_wait();
        let wait = if is_behind(self.steps.values(), now) { wait.max(CATCHING_UP) } else { wait };
        self.since.map(|since| since + wait)
    }

    /// Takes back what a batch was in.
    pub fn recycle(&mut self, mut batch: Batch) {
        batch.events.clear();
        self.spare = batch.events;
    }

    /// Takes what is there, and begins the next batch.
    pub fn close(&mut self, state: &State, post: &Post) -> Filled {
        let next = Sorted { events: std::mem::take(&mut self.spare), ..Sorted::default() };
        let Self { sorted, outbox, judged, steps, held, .. } =
            std::mem::replace(self, Self { sorted: next, ..Self::default() });
        let Sorted { events, dead_letters, redrives, emissions, copies, strays } = sorted;
        let outbox = outbox.unwrap_or_else(|| post.outbox());
        outbox.add(emissions, judged);
        let with_projected = |(at, step): (TopicPartition, Advance)| {
            let projected = state.live.get(&at).map_or(step.start, |live| live.projected);
            Advance { projected, ..step }
        };
        let steps = steps.into_iter().map(with_projected).collect();
        Filled { outbox: outbox.close(), batch: Batch { steps, events, dead_letters, redrives }, copies, strays, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Place;

    #[test]
    fn it_is_full_of_records_or_of_their_bytes() {
        let config = Config { batch_size: 3, batch_bytes: 100, ..Config::default() };
        let full = |records, bytes| Filling { records, bytes, ..Filling::default() }.full(&config);
        assert_eq!([full(2, 99), full(3, 3), full(1, 100)], [false, true, true]);
    }

    #[test]
    fn what_is_behind_waits_for_more() {
        let config = Config { batch_wait_ms: 100, ..Config::default() };
        let (since, now) = (Instant::now(), Utc::now());
        let waits = |age_ms: i64, config: &Config| {
            let at = TopicPartition { topic: "events.p".into(), partition: 0 };
            let (topic, incarnation) = (at.topic.to_string(), String::new());
            let place = Place { topic, partition: 0, incarnation, generation: 0 };
            let newest_ms = now.timestamp_millis() - age_ms;
            let steps = BTreeMap::from([(at, Advance { place, start: 0, next: 1, projected: 0, newest_ms })]);
            let filling = Filling { since: Some(since), steps, ..Filling::default() };
            filling.due(config, now).map(|due| due - since)
        };
        assert_eq!(waits(4_000, &config), Some(Duration::from_millis(100)));
        assert_eq!(waits(6_000, &config), Some(CATCHING_UP));
        let patient = Config { batch_wait_ms: 3_000, ..config };
        assert_eq!(waits(6_000, &patient), Some(Duration::from_secs(3)), "never for less than it is told to");
        assert_eq!(Filling::default().due(&patient, now), None);
    }
}
