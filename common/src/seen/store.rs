//! The sightings of one partition.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use super::background::Outcome;
use super::buffer::Buffer;
use super::format::About;
use super::run::{self, Run};
use super::stores::{Shared, StoreKey};
use super::{Fingerprint, SeenError, Sighting, plan};
use crate::kafka::Reached;

/// With so many buffers on their way to disk, the store waits for the first of them.
const MOST_FLUSHING: usize = 2;
/// What a store covers that has to be completed first.
const NOTHING: Range<i64> = i64::MIN..i64::MIN;

/// The sightings of one partition. What is not on disk when it is dropped is written in the background.
#[derive(Debug)]
pub struct SeenStore {
    shared: Arc<Shared>,
    key: StoreKey,
    folder: PathBuf,
    window_ms: i64,
    /// In the order of the offsets that they cover.
    runs: Vec<Arc<Run>>,
    flushing: VecDeque<Flushing>,
    merging: Option<Merging>,
    /// What is not in a run yet: first what is settled, then what is not.
    buffer: Buffer,
    /// How many of them belong to batches that went through.
    settled: usize,
    /// The offsets whose sightings are all here.
    covered: Range<i64>,
    /// Up to where runs, and what becomes runs now, cover.
    flushed: i64,
    /// The end of the last batch that went through, which may be behind what is covered: then nothing may leave,
    /// since what is old beside the newest is not old beside what is judged.
    position: i64,
    /// The youngest append time of what is covered: old is what is old beside it. No clock of ours would do,
    /// since what is read may be days behind.
    newest_ms: i64,
    /// The youngest one of what is not in a run yet, nor becomes one now.
    unflushed_ms: i64,
    /// Since when there has been something to flush, by the clock of [`Self::tick`].
    dirty_since: Option<i64>,
    /// Since when nothing has been asked, by the same clock.
    idle_since: Option<i64>,
    /// Told to callers by the next [`Self::sight`].
    trouble: Option<SeenError>,
    /// How many buffered sightings the process knows of.
    counted: usize,
}

/// A buffer on its way to disk.
#[derive(Debug)]
struct Flushing {
    buffer: Arc<Buffer>,
    covers: Range<i64>,
    newest_ms: i64,
    /// None: it failed and is to be tried again.
    outcome: Option<Outcome<Run>>,
}

#[derive(Debug)]
struct Merging {
    inputs: Vec<Arc<Run>>,
    outcome: Outcome<Run>,
}

/// What is known of a sighting's fingerprint.
#[derive(Default)]
struct Found {
    copy: bool,
    present: bool,
}

impl Found {
    fn note(&mut self, entry: &Sighting, sighting: &Sighting, window_ms: i64) {
        self.present |= entry.offset == sighting.offset;
        self.copy |= entry.offset < sighting.offset && sighting.append_ms - entry.append_ms <= window_ms;
    }
}

impl SeenStore {
    pub(super) fn new(shared: Arc<Shared>, key: StoreKey, window_ms: i64, runs: Vec<Run>) -> Self {
        let covered = match (runs.first(), runs.last()) {
            (Some(first), Some(last)) => first.about.covers.start..last.about.covers.end,
            _ => NOTHING,
        };
        let newest_ms = runs.iter().map(|run| run.about.newest_ms).max().unwrap_or(i64::MIN);
        let folder = shared.folder_of(&key);
        let store = Self {
            shared,
            key,
            folder,
            window_ms,
            runs: runs.into_iter().map(Arc::new).collect(),
            flushing: VecDeque::new(),
            merging: None,
            buffer: Buffer::default(),
            settled: 0,
            flushed: covered.end,
            position: NOTHING.end,
            covered,
            newest_ms,
            unflushed_ms: i64::MIN,
            dirty_since: None,
            idle_since: None,
            trouble: None,
            counted: 0,
        };
        store.publish();
        store
    }

    /// Adds a sighting and says whether it is the first within the window. It is kept for good once
    /// [`Self::advance`] has passed it; until then, one at its offset or a lower one takes it back, as when a
    /// batch that did not go through is read again. After an error, what is [`Self::missing`] has to be completed.
    pub fn sight(&mut self, fingerprint: Fingerprint, offset: i64, append_ms: i64) -> Result<bool, SeenError> {
        if let Some(trouble) = self.trouble.take() {
            self.flush_again();
            return Err(trouble);
        }
        if self.covered == NOTHING {
            return Err(SeenError::Incomplete(self.folder.clone()));
        }
        let sighting = Sighting { fingerprint, offset, append_ms: append_ms.max(0) };
        self.take_back(offset);
        let found = self.find(&sighting).inspect_err(|error| self.give_up_if_damaged(error))?;
        if !found.present {
            self.buffer.push(sighting);
        }
        Ok(!found.copy)
    }

    fn find(&mut self, sighting: &Sighting) -> Result<Found, SeenError> {
        let (mut found, fingerprint, window_ms) = (Found::default(), sighting.fingerprint, self.window_ms);
        let flushing = self.flushing.iter().map(|flushing| &*flushing.buffer);
        for entry in flushing.chain([&self.buffer]).flat_map(|buffer| buffer.of(fingerprint)) {
            found.note(entry, sighting, window_ms);
        }
        let known = sighting.offset < self.covered.end;
        if found.copy && !known {
            return Ok(found);
        }
        self.idle_since = None;
        for run in &mut self.runs {
            if run.about.newest_ms < sighting.append_ms - window_ms {
                continue;
            }
            if !run.is_loaded() {
                *run = Arc::new(run.loaded()?);
            }
            run.find(fingerprint, |entry| found.note(&entry, sighting, window_ms))?;
        }
        Ok(found)
    }

    /// Adds a sighting that the store does not cover yet, without asking whether it is the first.
    pub fn note(&mut self, fingerprint: Fingerprint, offset: i64, append_ms: i64) {
        self.take_back(offset);
        self.buffer.push(Sighting { fingerprint, offset, append_ms: append_ms.max(0) });
    }

    /// The offsets that must still be read so that records from `next` on can be judged, when sightings from
    /// `oldest` (one window before `next`) on may matter.
    pub fn missing(&self, oldest: i64, next: i64) -> Range<i64> {
        plan::missing(&self.covered, oldest, next)
    }

    /// Gets ready for records from `missing.end` on to be judged, and before that, for what is missing to be noted,
    /// in order: if that does not go on where the store ends, what it has is of no use.
    pub fn complete(&mut self, missing: &Range<i64>) {
        self.take_back(i64::MIN);
        self.position = missing.end;
        if missing.start < self.covered.start || missing.start > self.covered.end {
            self.forget();
            (self.covered, self.flushed) = (missing.start..missing.start, missing.start);
        }
    }

    /// How far it goes, as the log is asked about it.
    pub fn reached(&self) -> Reached {
        Reached { next: self.covered.end, newest_ms: self.newest_ms }
    }

    /// Forgets everything, and has to be completed before it answers again.
    pub fn forget(&mut self) {
        // Their files appear behind our back otherwise.
        self.runs.extend(self.flushing.drain(..).filter_map(|f| f.outcome?.recv().ok()?.ok()).map(Arc::new));
        self.runs.extend(self.merging.take().and_then(|m| m.outcome.recv().ok()?.ok()).map(Arc::new));
        self.runs.drain(..).for_each(|run| run.make_obsolete());
        (self.buffer, self.settled) = (Buffer::default(), 0);
        (self.covered, self.flushed) = (NOTHING, NOTHING.end);
        (self.newest_ms, self.unflushed_ms) = (i64::MIN, i64::MIN);
        (self.dirty_since, self.trouble) = (None, None);
        self.count();
        self.publish();
    }

    /// Says that all sightings below an offset have been added for good, the log's gaps included, and how new the
    /// newest record was on the way there, whether it left a sighting or not.
    pub fn advance(&mut self, Reached { next, newest_ms }: Reached) {
        if self.covered == NOTHING {
            return;
        }
        self.position = next;
        self.covered.end = self.covered.end.max(next);
        let pending = &self.buffer.sightings()[self.settled..];
        let settling = &pending[..pending.partition_point(|sighting| sighting.offset < self.covered.end)];
        self.settled += settling.len();
        self.unflushed_ms = self.unflushed_ms.max(newest_ms);
        self.newest_ms = self.newest_ms.max(newest_ms);
        self.count();
        if self.shared.is_full(self.buffer.len()) {
            self.flush();
        }
        if !self.flushing.is_empty() || self.merging.is_some() {
            self.collect();
        }
    }

    /// Does what time brings, now and then: `now_ms` is the time in milliseconds since 1970. What has long been
    /// in memory only is written to disk, and a store that has long been idle leaves memory.
    pub fn tick(&mut self, now_ms: i64) {
        if self.flushed == self.covered.end {
            self.dirty_since = None;
        } else if now_ms - *self.dirty_since.get_or_insert(now_ms) >= self.shared.limits.flush_ms as i64 {
            self.flush();
        }
        self.flush_again();
        self.collect();
        if now_ms - *self.idle_since.get_or_insert(now_ms) >= self.shared.limits.idle_ms as i64 {
            self.unload(|_| true);
        }
        self.tidy();
    }

    /// Has everything that is settled written to disk, in the background.
    pub fn flush(&mut self) {
        if self.flushed >= self.covered.end {
            return;
        }
        let (buffer, covers) = (Arc::new(self.buffer.split(self.settled)), self.flushed..self.covered.end);
        let newest_ms = std::mem::replace(&mut self.unflushed_ms, i64::MIN);
        (self.settled, self.flushed, self.dirty_since) = (0, covers.end, None);
        let outcome = Some(self.write(&buffer, &covers, newest_ms));
        self.flushing.push_back(Flushing { buffer, covers, newest_ms, outcome });
        self.count();
        while self.flushing.len() > MOST_FLUSHING && self.trouble.is_none() {
            let Some(Flushing { outcome: Some(outcome), .. }) = self.flushing.front() else { break };
            let flushed = outcome.recv();
            self.flushed(flushed.ok());
        }
    }

    /// How many sightings are kept.
    pub fn len(&self) -> usize {
        let flushing: usize = self.flushing.iter().map(|flushing| flushing.buffer.len()).sum();
        self.runs.iter().map(|run| run.about.len as usize).sum::<usize>() + flushing + self.buffer.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&self, buffer: &Arc<Buffer>, covers: &Range<i64>, newest_ms: i64) -> Outcome<Run> {
        let (folder, buffer, covers) = (self.folder.clone(), Arc::clone(buffer), covers.clone());
        self.shared.background.run(move || run::write(&folder, covers, buffer.sightings().to_vec(), newest_ms))
    }

    fn take_back(&mut self, offset: i64) {
        while self.buffer.len() > self.settled && self.buffer.sightings().last().is_some_and(|s| s.offset >= offset) {
            self.buffer.pop();
        }
    }

    /// Takes what the background has finished.
    fn collect(&mut self) {
        while let Some(Flushing { outcome: Some(outcome), .. }) = self.flushing.front() {
            match outcome.try_recv() {
                Ok(flushed) => self.flushed(Some(flushed)),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.flushed(None),
            }
        }
        let Some(Merging { outcome, .. }) = &self.merging else { return };
        match outcome.try_recv() {
            Ok(merged) => self.merged(merged),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => self.merging = None,
        }
    }

    fn flushed(&mut self, flushed: Option<Result<Run, SeenError>>) {
        let Some(first) = self.flushing.front_mut() else { return };
        match flushed {
            Some(Ok(run)) => {
                self.flushing.pop_front();
                self.runs.push(Arc::new(run));
                metrics::counter!("tidemill_seen_files_written_total", "by" => "flush").increment(1);
                self.tidy();
            }
            failed => {
                first.outcome = None;
                self.trouble = failed.and_then(Result::err);
            }
        }
    }

    fn merged(&mut self, merged: Result<Run, SeenError>) {
        let Some(Merging { inputs, .. }) = self.merging.take() else { return };
        let first = self.runs.iter().position(|run| run.is(&inputs[0]));
        match (merged, first) {
            (Ok(run), Some(first)) => {
                let inputs = self.runs.splice(first..first + inputs.len(), [Arc::new(run)]);
                inputs.for_each(|input| input.make_obsolete());
                metrics::counter!("tidemill_seen_files_written_total", "by" => "merge").increment(1);
                self.tidy();
            }
            // Some inputs have become too old meanwhile, so a part of it is.
            (Ok(run), None) => run.make_obsolete(),
            // More files than need be are no trouble; the next tick tries again.
            (Err(error), _) => {
                tracing::warn!(%error, "files of a seen store are not merged");
                self.give_up_if_damaged(&error);
            }
        }
    }

    fn flush_again(&mut self) {
        for i in 0..self.flushing.len() {
            if self.flushing[i].outcome.is_none() {
                let Flushing { buffer, covers, newest_ms, .. } = &self.flushing[i];
                self.flushing[i].outcome = Some(self.write(buffer, covers, *newest_ms));
            }
        }
    }

    /// After runs have changed: removes, unloads, merges.
    fn tidy(&mut self) {
        let (now_ms, window_ms, limits) = (self.newest_ms, self.window_ms, self.shared.limits);
        let read_again = self.position < self.covered.end;
        let expired = if read_again { 0 } else { plan::expired(&self.abouts(), now_ms, window_ms) };
        self.runs.drain(..expired).for_each(|run| run.make_obsolete());
        if expired > 0 {
            let next = self.runs.first().map(|run| run.about.covers.start);
            let next = next.or(self.flushing.front().map(|flushing| flushing.covers.start)).unwrap_or(self.flushed);
            self.covered.start = self.covered.start.max(next);
        }
        self.unload(|about| plan::cold(about, now_ms, window_ms, &limits));
        if self.merging.is_none()
            && let Some(range) = plan::next_merge(&self.abouts(), now_ms, window_ms, &limits)
        {
            let inputs = self.runs[range].to_vec();
            let (folder, runs) = (self.folder.clone(), inputs.clone());
            let outcome = self.shared.background.run(move || run::merge(&folder, &runs));
            self.merging = Some(Merging { inputs, outcome });
        }
        self.publish();
    }

    fn unload(&mut self, which: impl Fn(&About) -> bool) {
        for run in self.runs.iter_mut().filter(|run| run.is_loaded() && which(&run.about)) {
            *run = Arc::new(run.unloaded());
        }
    }

    fn abouts(&self) -> Vec<&About> {
        self.runs.iter().map(|run| &run.about).collect()
    }

    /// A damaged file cannot be told from a missing one, so nothing is covered any more.
    fn give_up_if_damaged(&mut self, error: &SeenError) {
        if let SeenError::Damaged { .. } = error {
            tracing::error!(%error, "a seen store starts anew");
            self.forget();
        }
    }

    fn count(&mut self) {
        self.shared.count(self.counted, self.buffer.len());
        self.counted = self.buffer.len();
    }

    fn publish(&self) {
        self.shared.publish(&self.key, &self.runs);
    }
}

impl Drop for SeenStore {
    fn drop(&mut self) {
        self.flush();
        self.shared.count(self.counted, 0);
        self.shared.withdraw(&self.key);
    }
}
