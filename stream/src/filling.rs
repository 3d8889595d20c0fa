//! A batch being filled: records are sorted as they come, while the batch before is applied.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use tidemill_common::failpoint::hit;
use tidemill_common::kafka::{Record, TopicPartition};

use crate::emit::Emission;
use crate::ledger::Advance;
use crate::live::Live;
use crate::sort::{Sorted, Sorter, Transient};
use crate::state::State;
use crate::store::Batch;

/// What has come since the last batch was closed.
#[derive(Default)]
pub struct Filling {
    sorted: Sorted,
    steps: BTreeMap<TopicPartition, Advance>,
    held: Vec<TopicPartition>,
    records: usize,
    since: Option<Instant>,
}

/// A batch that is complete.
pub struct Filled {
    /// What is sent on.
    pub emissions: Vec<Emission>,
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
    /// Sorts records and adds them. A partition whose next record cannot be judged yet is held: it gives
    /// nothing until it is live again.
    pub async fn add(&mut self, records: Vec<Record>, state: &mut State, sorter: &mut Sorter) -> Result<(), Transient> {
        if records.is_empty() {
            return Ok(());
        }
        hit("stream.polled").await?;
        self.since.get_or_insert_with(Instant::now);
        for (at, records) in state.ours(records) {
            let Some(live) = state.live.get_mut(&at) else { continue };
            let taken = sorter.sort(&records, live, &mut self.sorted).await?;
            if taken < records.len() {
                live.held = true;
                self.held.push(at.clone());
            }
            if let Some(last) = records[..taken].last() {
                self.step(at, live, last);
                self.records += taken;
            }
        }
        Ok(())
    }

    /// From the end of the last batch to behind this record.
    fn step(&mut self, at: TopicPartition, live: &mut Live, last: &Record) {
        let step = self.steps.entry(at).or_insert_with(|| Advance {
            place: live.place.clone(),
            start: live.read,
            next: live.read,
            projected: 0, // known when the batch is closed
            as_of: DateTime::UNIX_EPOCH,
        });
        live.read = last.offset + 1;
        step.next = live.read;
        step.as_of = DateTime::from_timestamp_millis(last.append_ms).unwrap_or_default();
    }

    /// Whether it holds this many records.
    pub fn full(&self, size: usize) -> bool {
        self.records >= size
    }

    /// When it has waited long enough; none while it is empty.
    pub fn due(&self, wait: Duration) -> Option<Instant> {
        self.since.map(|since| since + wait)
    }

    /// Takes what is there, and begins the next batch.
    pub fn close(&mut self, state: &State) -> Filled {
        let Self { sorted, steps, held, .. } = std::mem::take(self);
        let Sorted { events, dead_letters, emissions, copies, strays } = sorted;
        let with_projected = |(at, step): (TopicPartition, Advance)| {
            let projected = state.live.get(&at).map_or(step.start, |live| live.projected);
            Advance { projected, ..step }
        };
        let steps = steps.into_iter().map(with_projected).collect();
        Filled { emissions, batch: Batch { steps, events, dead_letters }, copies, strays, held }
    }
}
