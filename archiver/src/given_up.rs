//! What the stream made of records that do not speak for themselves: those that it has given up on are dead letters for
//! good, though they might be read by the time that we come to them; and one that is sent through again counts only if
//! the stream found its letter open.

use std::collections::{BTreeMap, HashSet};

use sqlx::PgPool;
use tidemill_common::codec::schema_id;
use tidemill_common::dead_letters::{Passed, passed, redrive_of};
use tidemill_common::kafka::Record;

/// What the stream made of a record, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has not come to it yet, and only it can tell.
    Undecided,
    /// It has not come to it yet, but will see in it what anybody sees.
    Open,
    /// It is nobody's event.
    Dead,
    /// It was judged like any other.
    Read,
}

/// Of which log.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    pub project: &'a str,
    pub topic: &'a str,
    pub incarnation: &'a str,
}

/// What the stream had made of a topic when we last asked.
#[derive(Default)]
pub struct GivenUp {
    passed: BTreeMap<i32, Passed>,
    /// Schemas that were asked for before that. The stream gives up nothing whose schema the registry knows.
    schemas: HashSet<u32>,
    /// The last one that was asked for: neighbours mostly have the same.
    last: Option<u32>,
}

impl GivenUp {
    /// The fate of a record, before it is judged. Asks when it may not know: at first, once for each schema, and for
    /// what is sent through again. `next` is where we stand.
    pub async fn fate(
        &mut self,
        record: &Record,
        pool: &PgPool,
        log: Log<'_>,
        next: &BTreeMap<i32, i64>,
    ) -> Result<Fate, sqlx::Error> {
        let (schema, known) = (schema_id(record.value()).ok(), self.known(record));
        match known {
            Some(fate @ (Fate::Dead | Fate::Read)) => return Ok(fate),
            Some(Fate::Open) if schema == self.last => return Ok(Fate::Open),
            _ => {}
        }
        if known != Some(Fate::Open) || schema.is_some_and(|schema| !self.schemas.contains(&schema)) {
            self.ask(pool, log, next).await?;
        }
        let fate = self.known(record).unwrap_or(Fate::Undecided);
        // It is judged now, and then the registry is known to know its schema.
        if fate != Fate::Undecided {
            self.schemas.extend(schema);
            self.last = schema;
        }
        Ok(fate)
    }

    /// Asks again, from where we stand on.
    pub async fn ask(&mut self, pool: &PgPool, log: Log<'_>, next: &BTreeMap<i32, i64>) -> Result<(), sqlx::Error> {
        let Log { project, topic, incarnation } = log;
        self.passed = passed(pool, project, topic, incarnation, next).await?;
        Ok(())
    }

    /// As of when it was last asked; none: nothing is known of its partition.
    pub fn known(&self, record: &Record) -> Option<Fate> {
        let passed = self.passed.get(&record.partition)?;
        Some(if passed.dead.contains(&record.offset) {
            Fate::Dead
        } else if record.offset < passed.next {
            Fate::Read
        } else if redrive_of(record).is_some() {
            Fate::Undecided
        } else {
            Fate::Open
        })
    }

    /// The registry does not know this record's schema now, so the stream may yet give up on more of them.
    pub fn ask_again(&mut self, record: &Record) {
        if let Ok(schema) = schema_id(record.value()) {
            self.schemas.remove(&schema);
            self.last = None;
        }
    }
}
