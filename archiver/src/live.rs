//! The path of a project's records, from the log to its table: [`Live::take`] up to the buffer, [`Live::hand_over`] to
//! the commit that [`crate::writing`] makes of them, [`Live::settle`] when it has gone through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iceberg::table::Table;
use tidemill_common::codec::DecodeError;
use tidemill_common::failpoint::{existed, mutant};
use tidemill_common::home::Layout;
use tidemill_common::kafka::Record;
use tidemill_common::origin::Origin;
use tidemill_common::projects::{Project, layouts_now};
use tidemill_common::seen::fingerprint;
use tidemill_common::verdict::{Verdict, judge};

use crate::buffer::Buffer;
use crate::declared::Declared;
use crate::error::ArchiveError;
use crate::given_up::{Fate, GivenUp, Log};
use crate::positions::Positions;
use crate::prepare::{Prepared, Seen, Shared};
use crate::writing::{self, Batch, Writing};

/// How often a record that cannot be judged is tried again.
const HELD_RETRY: Duration = Duration::from_secs(1);
/// A day with less than this share of a row group's bytes gets no row group of its own before its commit.
const LEAST_SHARE: usize = 4;
/// After so many records it is asked whether the layout holds that they were judged by, if no commit has asked before.
const CONFIRMED: usize = 10_000;
/// How many files the table has is shown at least this often.
const SHOWN: Duration = Duration::from_secs(300);
/// The answer has to come within this time.
const ANSWER: Duration = Duration::from_secs(30);

/// A project whose partitions are being read.
pub struct Live {
    project: Project,
    layout: Arc<Layout>,
    topic: Arc<str>,
    /// As of the last commit, or of the start.
    table: Table,
    /// Where our partitions stand in it: what we have read and committed, whatever others have made of it since.
    positions: Positions,
    /// The next offset of each partition that is ours.
    next: BTreeMap<i32, i64>,
    given_up: GivenUp,
    buffer: Buffer,
    /// The commit that is on its way.
    writing: Option<Writing>,
    declared: Declared,
    seen: Seen,
    /// Records that cannot be judged yet. Their partitions stand still; the others go on.
    held: BTreeMap<i32, Record>,
    held_at: Instant,
    /// How many records were judged since it was last known that our layout holds.
    judged: usize,
    /// When it was last shown how many files the table has.
    shown_at: Instant,
}

impl Live {
    pub fn new(topic: Arc<str>, prepared: Prepared) -> Self {
        let Prepared { project, layout, table, positions, starts, seen } = prepared;
        let (buffer, given_up, declared, writing) = Default::default();
        let (held, held_at) = (BTreeMap::new(), Instant::now());
        let next = starts;
        writing::show(&project.id, &table);
        Self {
            project,
            layout,
            topic,
            table,
            positions,
            next,
            given_up,
            buffer,
            writing,
            declared,
            seen,
            held,
            held_at,
            judged: 0,
            shown_at: held_at,
        }
    }

    /// Judges the next record of a partition and buffers what it leaves.
    pub async fn take(&mut self, record: Record, shared: &Shared, now: Instant) -> Result<(), ArchiveError> {
        if self.judged >= CONFIRMED {
            self.confirm(shared).await?;
        }
        let expected = self.next.get(&record.partition).is_some_and(|next| record.offset >= *next);
        if !expected || self.held.contains_key(&record.partition) {
            return Ok(());
        }
        let log = Log { project: &self.project.id, topic: &self.topic, incarnation: &self.seen.incarnation };
        match self.given_up.fate(&record, &shared.pool, log, &self.next).await? {
            Fate::Dead => return self.pass(&record, None, now),
            Fate::Undecided => {
                self.hold(record, now);
                return Ok(());
            }
            Fate::Open | Fate::Read => {}
        }
        match judged(&self.project, &self.layout, &record, shared).await {
            Ok(verdict) => self.pass(&record, Some(verdict), now)?,
            Err(error) => {
                let (partition, offset) = (record.partition, record.offset);
                tracing::warn!(topic = %self.topic, partition, offset, %error, "a record cannot be read yet, its partition waits");
                self.given_up.ask_again(&record);
                self.hold(record, now);
            }
        }
        Ok(())
    }

    fn hold(&mut self, record: Record, now: Instant) {
        self.held.insert(record.partition, record);
        self.held_at = now;
    }

    /// Goes past a record. What the stream gave up has no verdict and leaves nothing.
    fn pass(&mut self, record: &Record, verdict: Option<Verdict<'_>>, now: Instant) -> Result<(), ArchiveError> {
        let (partition, at) = (record.partition, Origin::from(record));
        let Some(seen) = self.seen.stores.get_mut(&partition) else { return Ok(()) };
        match verdict {
            Some(Verdict::Valid(decoded)) => {
                let event = decoded.event();
                let first = seen.sight(fingerprint(event.event_id), at.offset, at.append_ms)?;
                if first && !existed("archive-existence", event.event_id) {
                    self.buffer.add(&event, &decoded.datum(), at, now);
                } else {
                    let project = self.project.id.clone();
                    metrics::counter!("tidemill_archiver_copies_total", "project" => project).increment(1);
                    self.buffer.pass(at, now);
                }
            }
            // Strays count at home, rejected records nowhere: here, both are only passed.
            Some(Verdict::Stray { .. } | Verdict::Rejected(_)) | None => {
                self.buffer.pass(at, now);
            }
        }
        self.next.insert(partition, at.offset + 1);
        self.judged += 1;
        Ok(())
    }

    /// Makes sure that what was judged so far was judged by the layout that holds, asked after all of it was read. Only
    /// then it is known for good what was seen.
    async fn confirm(&mut self, shared: &Shared) -> Result<(), ArchiveError> {
        let asked = tokio::time::timeout(ANSWER, layouts_now(&shared.pool, &[&self.project.id])).await;
        let now = asked.map_err(|_| ArchiveError::Slow("a question to Postgres", ANSWER.as_secs()))??;
        if now.get(&self.project.id) != Some(&self.layout.version) && !mutant("old-archive-layout") {
            return Err(ArchiveError::Grown(self.topic.to_string()));
        }
        for (partition, seen) in &mut self.seen.stores {
            self.buffer.moved().get(partition).into_iter().for_each(|reached| seen.advance(*reached));
        }
        self.judged = 0;
        Ok(())
    }

    /// Hands rows over to be written when there are enough of them, and ends the commit when it is time to; at once
    /// where `everything` is to go. One commit at a time: while it is ending, rows wait.
    pub async fn hand_over(&mut self, shared: &Shared, now: Instant, everything: bool) -> Result<(), ArchiveError> {
        let config = &shared.config;
        if self.buffer.is_empty() || self.writing.as_ref().is_some_and(Writing::ending) {
            return Ok(());
        }
        let long = self.writing.as_ref().is_some_and(|writing| writing.written() >= config.file_bytes);
        if everything || long || self.buffer.due(&config.limits(), now) {
            self.end(shared).await?;
        } else if self.buffer.bytes() >= config.row_group_bytes {
            let Some((day, bytes)) = self.buffer.largest() else { return Ok(()) };
            let writing = self.writing(shared);
            if writing.waiting() > 0 {
                return Ok(()); // it is slower than we are
            }
            if bytes >= config.row_group_bytes / LEAST_SHARE && writing.takes(day) {
                let rows = self.buffer.take_day(day);
                self.writing(shared).write(day, rows);
            } else {
                self.end(shared).await?;
            }
        }
        Ok(())
    }

    /// Has the commit end with all that there is.
    async fn end(&mut self, shared: &Shared) -> Result<(), ArchiveError> {
        self.confirm(shared).await?;
        let (rows, moved) = self.buffer.take();
        self.writing(shared).end(rows, moved);
        Ok(())
    }

    fn writing(&mut self, shared: &Shared) -> &mut Writing {
        self.writing.get_or_insert_with(|| {
            let batch = Batch {
                project: self.project.id.clone(),
                topic: self.topic.clone(),
                incarnation: self.seen.incarnation.clone(),
                table: self.table.clone(),
                start: self.positions.clone(),
                declared: self.declared.clone(),
            };
            Writing::begin(batch, shared)
        })
    }

    /// Takes note of a commit's outcome, when it is there or, if we are to `wait`, once it is. Gives the next offset
    /// of each partition that it has moved.
    pub async fn settle(&mut self, wait: bool) -> Result<Option<BTreeMap<i32, i64>>, ArchiveError> {
        let Some(writing) = self.writing.take_if(|writing| wait || writing.is_finished()) else { return Ok(None) };
        let committed = writing.outcome().await?;
        self.table = committed.table;
        self.shown_at = Instant::now();
        self.declared = committed.declared;
        let moved = committed.end.iter().map(|(&partition, position)| (partition, position.next)).collect();
        self.positions.extend(committed.end);
        Ok(Some(moved))
    }

    /// How many bytes of rows are in memory.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes() + self.writing.as_ref().map_or(0, Writing::waiting)
    }

    /// Whether a commit is on its way that frees memory without anything being done.
    pub fn is_ending(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.ending() || writing.waiting() > 0)
    }

    /// Whether its commit waits for Kafka.
    pub fn unconfirmed(&self) -> bool {
        self.writing.as_ref().is_some_and(Writing::unconfirmed)
    }

    /// Shows how many files the table has when no commit has done so for long: other engines make them fewer. False: it
    /// need not.
    pub fn show_table(&mut self, shared: &Shared) -> bool {
        if self.shown_at.elapsed() < SHOWN {
            return false;
        }
        self.shown_at = Instant::now();
        let (tables, project) = (shared.tables.clone(), self.project.id.clone());
        tokio::spawn(async move {
            match tables.load(&project).await {
                Ok(table) => table.iter().for_each(|table| writing::show(&project, table)),
                Err(error) => tracing::debug!(project, %error, "it cannot be shown how many files the table has"),
            }
        });
        true
    }

    /// What was seen.
    pub fn seen(&mut self) -> &mut Seen {
        &mut self.seen
    }

    /// Tries held records again; gives the partitions that can go on, and from where.
    pub async fn release(&mut self, shared: &Shared) -> Result<Vec<(i32, i64)>, ArchiveError> {
        if self.held.is_empty() || self.held_at.elapsed() < HELD_RETRY {
            return Ok(Vec::new());
        }
        // The stream first: what it could read before we ask the registry, we can read too. And what it has given up
        // stays a dead letter, even when the registry knows the schema by now.
        let log = Log { project: &self.project.id, topic: &self.topic, incarnation: &self.seen.incarnation };
        self.given_up.ask(&shared.pool, log, &self.next).await?;
        let mut released = Vec::new();
        for (partition, record) in self.held.clone() {
            let fate = self.given_up.known(&record).unwrap_or(Fate::Undecided);
            let verdict = match fate {
                Fate::Undecided => continue,
                Fate::Dead => None,
                Fate::Open | Fate::Read => match judged(&self.project, &self.layout, &record, shared).await {
                    Ok(verdict) => Some(verdict),
                    Err(error @ DecodeError::UnknownSchema(_)) if fate == Fate::Read => {
                        let (at, offset) = (record.topic_partition(), record.offset);
                        return Err(ArchiveError::Unreadable { at, offset, reason: error.to_string() });
                    }
                    Err(DecodeError::UnknownSchema(_)) => continue,
                    Err(_) => break,
                },
            };
            self.held.remove(&partition);
            self.pass(&record, verdict, Instant::now())?;
            released.push((partition, record.offset + 1));
        }
        self.held_at = Instant::now();
        Ok(released)
    }

    /// What waits for the next commit.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// What was seen outlives the assignment; what was buffered does not.
    pub fn into_seen(self) -> Seen {
        self.seen
    }
}

/// A record's verdict. It borrows no store: those cannot be shared between threads.
async fn judged<'a>(
    project: &Project,
    layout: &Layout,
    record: &'a Record,
    shared: &Shared,
) -> Result<Verdict<'a>, DecodeError> {
    judge(&shared.filler.decoder, record, layout, project.dedupe_window_ms).await
}
