//! The path of a project's records, from the log to its table: [`Live::take`] up to the buffer,
//! [`Live::write_batch`] from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iceberg::table::Table;
use tidemill_common::codec::DecodeError;
use tidemill_common::failpoint::hit;
use tidemill_common::kafka::Record;
use tidemill_common::projects::Project;
use tidemill_common::seen::fingerprint;
use tidemill_common::verdict::{Verdict, judge};

use crate::buffer::{Buffer, Row};
use crate::commit::commit;
use crate::error::ArchiveError;
use crate::files;
use crate::given_up::GivenUp;
use crate::positions::{Position, Positions};
use crate::prepare::{Prepared, Seen, Shared};
use crate::sql::{Fate, fate};

/// Storage or catalog that take longer are given up for now.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a record that cannot be judged is tried again.
const HELD_RETRY: Duration = Duration::from_secs(1);

/// A project whose partitions are being read.
pub struct Live {
    project: Project,
    topic: Arc<str>,
    /// As of the last commit, or of the start.
    table: Table,
    /// The next offset of each partition that is ours.
    next: BTreeMap<i32, i64>,
    given_up: GivenUp,
    buffer: Buffer,
    seen: Seen,
    /// Records that cannot be judged yet. Their partitions stand still; the others go on.
    held: BTreeMap<i32, Record>,
    held_at: Instant,
}

impl Live {
    pub fn new(topic: Arc<str>, prepared: Prepared) -> Self {
        let Prepared { project, table, starts, seen } = prepared;
        let (buffer, given_up) = (Buffer::default(), GivenUp::default());
        let (held, held_at) = (BTreeMap::new(), Instant::now());
        Self { project, topic, table, next: starts, given_up, buffer, seen, held, held_at }
    }

    /// Judges the next record of a partition and buffers what it leaves.
    pub async fn take(&mut self, record: Record, shared: &Shared) -> Result<(), ArchiveError> {
        let expected = self.next.get(&record.partition).is_some_and(|next| record.offset >= *next);
        if !expected || self.held.contains_key(&record.partition) {
            return Ok(());
        }
        if self.given_up.has(&record, &shared.pool, &self.seen.incarnation).await? {
            return self.settle(&record, None);
        }
        match judged(&self.project, &record, shared).await {
            Ok(verdict) => self.settle(&record, Some(verdict))?,
            Err(error) => {
                let (partition, offset) = (record.partition, record.offset);
                tracing::warn!(topic = %self.topic, partition, offset, %error, "a record cannot be read yet, its partition waits");
                self.given_up.ask_again(&record);
                self.held.insert(partition, record);
                self.held_at = Instant::now();
            }
        }
        Ok(())
    }

    /// Goes past a record. What the stream gave up has no verdict and leaves nothing.
    fn settle(&mut self, record: &Record, verdict: Option<Verdict>) -> Result<(), ArchiveError> {
        let (partition, offset, append_ms) = (record.partition, record.offset, record.append_ms);
        let Some(seen) = self.seen.stores.get_mut(&partition) else { return Ok(()) };
        let now = Instant::now();
        match verdict {
            Some(Verdict::Valid(event)) if seen.sight(fingerprint(&event.event_id), offset, append_ms)? => {
                self.buffer.add(Row { event, partition, offset, append_ms }, record.value.len(), now);
            }
            Some(Verdict::Valid(_)) => {
                metrics::counter!("tidemill_archiver_copies_total", "project" => self.project.id.clone()).increment(1);
                self.buffer.pass(partition, offset, now);
            }
            // Strays count at home, rejected records nowhere: here, both are only passed.
            Some(Verdict::Stray { .. } | Verdict::Rejected(_)) | None => self.buffer.pass(partition, offset, now),
        }
        seen.advance(offset + 1);
        self.next.insert(partition, offset + 1);
        Ok(())
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
        let mut released = Vec::new();
        for (partition, record) in self.held.clone() {
            // The stream first: what it could read before we ask the registry, we can read too. And what it
            // has given up stays a dead letter, even when the registry knows the schema by now.
            let fate =
                fate(&shared.pool, &self.project.id, &self.topic, &self.seen.incarnation, partition, record.offset);
            let fate = fate.await?;
            let verdict = match fate {
                Fate::Dead => None,
                Fate::Open | Fate::Read => match judged(&self.project, &record, shared).await {
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
            self.settle(&record, verdict)?;
            released.push((partition, record.offset + 1));
        }
        self.held_at = Instant::now();
        Ok(released)
    }

    /// Writes the buffer's rows to new files and commits them with the positions behind them, once.
    pub async fn write_batch(&mut self, shared: &Shared) -> Result<(), ArchiveError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let end: Positions = self.buffer.moved().iter().map(|(&partition, &next)| (partition, self.at(next))).collect();
        let write = async {
            hit("archive.polled").await?;
            let files = files::write(&self.table, self.buffer.rows()).await?;
            let catalog = shared.tables.catalog().await?;
            Ok::<Table, ArchiveError>(commit(catalog, &self.table, &self.topic, &end, &files).await?)
        };
        let limit = ArchiveError::Slow("a commit", COMMIT_TIMEOUT.as_secs());
        self.table = tokio::time::timeout(COMMIT_TIMEOUT, write).await.map_err(|_| limit)??;
        let rows = std::mem::take(&mut self.buffer).rows().len();
        let project = || self.project.id.clone();
        metrics::counter!("tidemill_archiver_rows_total", "project" => project()).increment(rows as u64);
        metrics::counter!("tidemill_archiver_commits_total", "project" => project()).increment(1);
        metrics::histogram!("tidemill_archiver_commit_seconds").record(started.elapsed());
        tracing::debug!(topic = %self.topic, rows, seconds = started.elapsed().as_secs_f64(), "committed");
        Ok(())
    }

    fn at(&self, next: i64) -> Position {
        Position { incarnation: self.seen.incarnation.clone(), next }
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
async fn judged(project: &Project, record: &Record, shared: &Shared) -> Result<Verdict, DecodeError> {
    judge(&shared.filler.decoder, record, project.partitions, project.dedupe_window_ms).await
}
