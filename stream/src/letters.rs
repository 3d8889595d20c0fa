//! Records that are sent through again, as the worker meets them: whose letters they say they are, and whether those
//! are open.
//!
//! The answer is read before they are judged, and the transaction that counts them checks that it still holds, also
//! between records of one batch; if not, the batch is dropped and read again. So what is kept here of decisions that are on
//! their way to Postgres may be forgotten at any time: that costs a batch, nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::{PgPool, Row};
use tidemill_common::dead_letters::{LetterId, digest, redrive_of};
use tidemill_common::kafka::Record;
use tidemill_common::names::events_topic;
use tidemill_common::origin::Origin;

use crate::ledger::Place;
use crate::store::Outcome;

/// A letter, as it is once all that was decided goes through.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Which.
    pub id: LetterId,
    /// Where its record was refused first.
    pub first: Origin,
    /// How often.
    pub attempts: i32,
    open: bool,
    digest: Vec<u8>,
}

/// What is known of a record that says it is sent through again.
#[derive(Debug, Clone)]
pub enum Redriven {
    /// For this letter, which is open.
    Open(Letter),
    /// For this one, which is not.
    Closed(Letter),
    /// The live generation has counted it, or found it to be a copy.
    Read,
    /// The live generation has passed it over.
    Dead,
    /// It is the live generation's to decide, which has not come to it.
    Undecided,
}

/// Knows letters.
pub struct Letters {
    pool: PgPool,
    /// Those on which something was decided lately.
    decided: HashMap<LetterId, Letter>,
}

impl Letters {
    /// Reads them from this database.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, decided: HashMap::new() }
    }

    /// By their offsets, those of a partition's records that are sent through again. What only says so, or has other
    /// bytes than its letter, is a record like any other.
    pub async fn look_up(
        &self,
        records: &[Record],
        project: &str,
        place: &Place,
    ) -> Result<BTreeMap<i64, Redriven>, sqlx::Error> {
        let redriven: Vec<_> = records.iter().filter_map(|record| Some((record, redrive_of(record)?))).collect();
        if redriven.is_empty() {
            return Ok(BTreeMap::new());
        }
        let letters = self.read(project, redriven.iter().map(|(_, letter)| letter).collect()).await?;
        let is_of = |record: &Record, letter: &Letter| letter.digest == digest(record.key(), record.value());
        let of_letters = redriven.iter().filter_map(|(record, id)| {
            let letter = letters.get(id).filter(|letter| is_of(record, letter))?;
            Some((record.offset, letter))
        });
        let of_letters: HashMap<i64, &Letter> = of_letters.collect();
        let (is_live, outcomes) = self.outcomes(project, place, of_letters.keys().copied().collect()).await?;
        let known = |(offset, letter): (i64, &Letter)| {
            let redriven = match outcomes.get(&offset).map(String::as_str) {
                Some("counted" | "duplicate") => Redriven::Read,
                Some(_) => Redriven::Dead,
                None if !is_live => Redriven::Undecided,
                None => self.now(letter),
            };
            (offset, redriven)
        };
        Ok(of_letters.into_iter().map(known).collect())
    }

    /// A letter as what was decided since makes it.
    fn now(&self, letter: &Letter) -> Redriven {
        let letter = self.decided.get(&letter.id).unwrap_or(letter).clone();
        if letter.open { Redriven::Open(letter) } else { Redriven::Closed(letter) }
    }

    /// The same for a record that was looked up before others were decided on.
    pub fn again(&self, redriven: Redriven) -> Redriven {
        match redriven {
            Redriven::Open(letter) => self.now(&letter),
            known => known,
        }
    }

    /// Keeps in mind what was decided on a letter.
    pub fn decided(&mut self, mut letter: Letter, outcome: &Outcome) {
        match outcome {
            Outcome::Counted | Outcome::Duplicate | Outcome::Closed => letter.open = false,
            Outcome::Refused(_) => letter.attempts += 1,
        }
        self.decided.insert(letter.id.clone(), letter);
    }

    /// Forgets what was decided: all of it is in Postgres, or will not be.
    pub fn forget(&mut self) {
        self.decided.clear();
    }

    async fn read(&self, project: &str, ids: BTreeSet<&LetterId>) -> Result<HashMap<LetterId, Letter>, sqlx::Error> {
        let rows = sqlx::query(
            r#"SELECT d.topic_incarnation, d.partition, d."offset", d.append_time, d.attempts, d.state = 'open', d.digest
               FROM unnest($2::text[], $3::int[], $4::bigint[]) AS w(incarnation, partition, "offset")
               CROSS JOIN LATERAL (
                   SELECT * FROM dead_letters d
                   WHERE d.topic = $1 AND d.topic_incarnation = w.incarnation AND d.partition = w.partition
                     AND d."offset" = w."offset"
                   OFFSET 0) d"#,
        )
        .bind(events_topic(project))
        .bind(ids.iter().map(|id| &*id.incarnation).collect::<Vec<_>>())
        .bind(ids.iter().map(|id| id.partition).collect::<Vec<_>>())
        .bind(ids.iter().map(|id| id.offset).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        let letter = |row: &sqlx::postgres::PgRow| {
            let id = LetterId { incarnation: row.try_get(0)?, partition: row.try_get(1)?, offset: row.try_get(2)? };
            let append_ms = row.try_get::<chrono::DateTime<chrono::Utc>, _>(3)?.timestamp_millis();
            let first = Origin { partition: id.partition, offset: id.offset, append_ms };
            let (attempts, open, digest) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
            Ok((id.clone(), Letter { id, first, attempts, open, digest }))
        };
        rows.iter().map(letter).collect()
    }

    /// Whether the partition is the live generation's, and what that has made of records.
    async fn outcomes(
        &self,
        project: &str,
        place: &Place,
        offsets: Vec<i64>,
    ) -> Result<(bool, HashMap<i64, String>), sqlx::Error> {
        if offsets.is_empty() {
            return Ok((true, HashMap::new()));
        }
        let rows = sqlx::query(
            r#"SELECT p.generation = $2, r."offset", r.outcome
               FROM projects p LEFT JOIN redrives r
                 ON r.topic = $3 AND r.topic_incarnation = $4 AND r.partition = $5 AND r."offset" = ANY ($6)
               WHERE p.id = $1"#,
        )
        .bind(project)
        .bind(place.generation)
        .bind(&place.topic)
        .bind(&place.incarnation)
        .bind(place.partition)
        .bind(offsets)
        .fetch_all(&self.pool)
        .await?;
        let (mut is_live, mut outcomes) = (true, HashMap::new());
        for row in rows {
            is_live = row.try_get(0)?;
            if let Some(offset) = row.try_get(1)? {
                outcomes.insert(offset, row.try_get(2)?);
            }
        }
        Ok((is_live, outcomes))
    }
}
