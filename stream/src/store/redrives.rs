//! Records that were sent through again: what the stream made of them, and what that makes of their letters.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use tidemill_common::dead_letters::LetterId;
use tidemill_common::names::own_topic;
use tidemill_common::verdict::Rejection;

use crate::ledger::Place;

/// What became of a record that was sent through again.
#[derive(Debug, Clone)]
pub struct Redrive {
    /// Where the record stands now.
    pub place: Place,
    /// Its offset there.
    pub offset: i64,
    /// The letter of the same project that it is sent through again for.
    pub letter: LetterId,
    /// How often that had been refused when the record was judged.
    pub attempts: i32,
    /// What it was found to be.
    pub outcome: Outcome,
}

/// What a record is that was sent through again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An event, and the first sight of it: it counts.
    Counted,
    /// A copy of an event that has counted meanwhile.
    Duplicate,
    /// No event still.
    Refused(Rejection),
    /// Nobody waits for it: its letter was closed before.
    Closed,
}

impl Outcome {
    /// Its name in rows and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Duplicate => "duplicate",
            Self::Refused(_) => "refused",
            Self::Closed => "closed",
        }
    }
}

const OPEN: &str = "open";

/// What a batch makes of a letter.
struct Change<'a> {
    before: i32,
    attempts: i32,
    state: &'static str,
    rejection: Option<&'a Rejection>,
}

/// Closes the letters of what counts or is a copy, and notes another attempt at those that were refused. False, and
/// nothing is changed: one of them is not what it was when its record was judged. The rows stay locked until the
/// transaction ends.
pub async fn close(tx: &mut PgConnection, redrives: &[Redrive]) -> Result<bool, sqlx::Error> {
    if redrives.is_empty() {
        return Ok(true);
    }
    let changes = match changes(redrives) {
        Some(changes) if lock(tx, &changes).await? => changes,
        _ => {
            tracing::warn!("a dead letter was closed, or sent through again by another worker, meanwhile");
            return Ok(false);
        }
    };
    let columns = Columns::of(&changes);
    sqlx::query(
        r#"UPDATE dead_letters d
           SET state = w.state, attempts = w.attempts, stage = coalesce(w.stage, d.stage),
               reason = coalesce(w.reason, d.reason), detail = coalesce(w.detail, d.detail),
               refused_at = CASE WHEN w.reason IS NULL THEN d.refused_at ELSE now() END,
               closed_at = CASE WHEN w.state = 'open' THEN NULL ELSE now() END
           FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[], $6::int[], $7::text[], $8::text[],
                       $9::text[])
                AS w(topic, incarnation, partition, "offset", state, attempts, stage, reason, detail)
           WHERE d.topic = w.topic AND d.topic_incarnation = w.incarnation AND d.partition = w.partition
             AND d."offset" = w."offset""#,
    )
    .bind(&columns.topics)
    .bind(&columns.incarnations)
    .bind(&columns.partitions)
    .bind(&columns.offsets)
    .bind(changes.values().map(|change| change.state).collect::<Vec<_>>())
    .bind(changes.values().map(|change| change.attempts).collect::<Vec<_>>())
    .bind(changes.values().map(|change| change.rejection.map(|why| why.stage)).collect::<Vec<_>>())
    .bind(changes.values().map(|change| change.rejection.map(|why| why.reason)).collect::<Vec<_>>())
    .bind(changes.values().map(|change| change.rejection.map(detail)).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    insert(tx, redrives).await?;
    Ok(true)
}

/// What they make of each letter. Of several records for one, each has to take it up where the one before has left it;
/// else one of them was judged without knowing of the other, and there is no answer.
fn changes(redrives: &[Redrive]) -> Option<BTreeMap<(String, &LetterId), Change<'_>>> {
    let mut changes = BTreeMap::<_, Change<'_>>::new();
    for Redrive { place, letter, attempts, outcome, .. } in redrives {
        let (state, rejection) = match outcome {
            Outcome::Counted => ("counted", None),
            Outcome::Duplicate => ("duplicate", None),
            Outcome::Refused(rejection) => (OPEN, Some(rejection)),
            Outcome::Closed => continue,
        };
        let new = Change { before: *attempts, attempts: *attempts, state: OPEN, rejection: None };
        let change = changes.entry((own_topic(&place.topic), letter)).or_insert(new);
        if change.state != OPEN || change.attempts != *attempts {
            return None;
        }
        change.state = state;
        change.attempts += i32::from(rejection.is_some());
        change.rejection = rejection.or(change.rejection);
    }
    Some(changes)
}

/// Locks the letters, in one order everywhere; says whether all of them are open and as often refused as was thought.
async fn lock(tx: &mut PgConnection, changes: &BTreeMap<(String, &LetterId), Change<'_>>) -> Result<bool, sqlx::Error> {
    let columns = Columns::of(changes);
    let found = sqlx::query(
        r#"SELECT 1 FROM dead_letters d
           JOIN unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::int[])
                AS w(topic, incarnation, partition, "offset", attempts)
             ON d.topic = w.topic AND d.topic_incarnation = w.incarnation AND d.partition = w.partition
            AND d."offset" = w."offset"
           WHERE d.state = 'open' AND d.attempts = w.attempts
           ORDER BY d.topic COLLATE "C", d.topic_incarnation COLLATE "C", d.partition, d."offset" FOR UPDATE OF d"#,
    )
    .bind(&columns.topics)
    .bind(&columns.incarnations)
    .bind(&columns.partitions)
    .bind(&columns.offsets)
    .bind(changes.values().map(|change| change.before).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    Ok(found.len() == changes.len())
}

async fn insert(tx: &mut PgConnection, redrives: &[Redrive]) -> Result<(), sqlx::Error> {
    fn column<'a, T>(redrives: &'a [Redrive], value: impl Fn(&'a Redrive) -> T) -> Vec<T> {
        redrives.iter().map(value).collect()
    }
    sqlx::query(
        r#"INSERT INTO redrives (topic, topic_incarnation, partition, "offset", letter_incarnation, letter_partition,
                                 letter_offset, outcome)
           SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::text[], $6::int[], $7::bigint[],
                                $8::text[])
           ON CONFLICT DO NOTHING"#,
    )
    .bind(column(redrives, |redrive| &*redrive.place.topic))
    .bind(column(redrives, |redrive| &*redrive.place.incarnation))
    .bind(column(redrives, |redrive| redrive.place.partition))
    .bind(column(redrives, |redrive| redrive.offset))
    .bind(column(redrives, |redrive| &*redrive.letter.incarnation))
    .bind(column(redrives, |redrive| redrive.letter.partition))
    .bind(column(redrives, |redrive| redrive.letter.offset))
    .bind(column(redrives, |redrive| redrive.outcome.as_str()))
    .execute(tx)
    .await?;
    Ok(())
}

/// What a hostile record says must not stop the worker: Postgres cannot store U+0000.
fn detail(rejection: &Rejection) -> String {
    rejection.detail.replace('\0', "\u{fffd}")
}

/// Letters by column, as Postgres' `unnest` takes them.
#[derive(Default)]
struct Columns<'a> {
    topics: Vec<&'a str>,
    incarnations: Vec<&'a str>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(changes: &'a BTreeMap<(String, &'a LetterId), Change<'_>>) -> Self {
        let mut columns = Self::default();
        for (topic, letter) in changes.keys() {
            columns.topics.push(topic);
            columns.incarnations.push(&letter.incarnation);
            columns.partitions.push(letter.partition);
            columns.offsets.push(letter.offset);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redrive(attempts: i32, outcome: Outcome) -> Redrive {
        let place = Place { topic: "events.p".into(), partition: 1, incarnation: "b".into(), generation: 0 };
        let letter = LetterId { incarnation: "a".into(), partition: 1, offset: 7 };
        Redrive { place, offset: 100, letter, attempts, outcome }
    }

    #[test]
    fn the_last_of_several_tries_is_what_the_letter_becomes() {
        let refused = Outcome::Refused(Rejection::unknown_schema(9));
        let tries = [
            redrive(1, refused.clone()),
            redrive(2, refused.clone()),
            redrive(3, Outcome::Counted),
            redrive(3, Outcome::Closed),
        ];
        let changes = changes(&tries).expect("they follow each other");
        let change = changes.values().next().expect("a letter");
        assert_eq!((changes.len(), change.before, change.attempts, change.state), (1, 1, 3, "counted"));
        assert_eq!(change.rejection.map(|why| why.reason), Some("unknown-schema"), "what it was refused for last");
        let closed = super::changes(&tries[3..]).expect("nothing");
        assert!(closed.is_empty(), "a closed letter is left alone");
        for ignorant in [redrive(3, Outcome::Duplicate), redrive(1, refused)] {
            let tries = [redrive(1, Outcome::Counted), ignorant];
            assert!(super::changes(&tries).is_none(), "the second did not know of the first");
        }
        let tries = [redrive(1, Outcome::Refused(Rejection::unknown_schema(9))), redrive(1, Outcome::Counted)];
        assert!(super::changes(&tries).is_none(), "the second did not know of the first");
    }
}
