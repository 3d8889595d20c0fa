//! Noticing that Postgres has come back older than what it had shown: restored from a backup, or crashed with
//! `synchronous_commit = off`.
//!
//! Whoever has seen the ledger at a position knows that it can only be ahead of it, unless Postgres tells another
//! history now. Then the epoch is raised, once: by whoever is first to replace the one it has read beside the older
//! position. Values in Redis bear the epoch, so those of the lost future, whose versions are higher, give way.

use std::collections::HashMap;

use sqlx::PgPool;

use crate::ledger::{Place, Standing};

/// What one has seen of the ledger. Positions belong to an epoch: another one says nothing about them.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The latest epoch seen.
    pub epoch: Option<i64>,
    reached: HashMap<Place, i64>,
}

impl Timeline {
    /// Says that the ledger has stood here, in the latest epoch.
    pub fn reached(&mut self, place: &Place, next: i64) {
        match self.reached.get_mut(place) {
            Some(reached) => *reached = next.max(*reached),
            None => drop(self.reached.insert(place.clone(), next)),
        }
    }

    /// Goes on in this epoch. True when it is another one.
    pub fn enter(&mut self, epoch: i64) -> bool {
        let another = self.epoch != Some(epoch);
        if another {
            self.reached.clear();
            self.epoch = Some(epoch);
        }
        another
    }

    /// Why Postgres must have come back older, if it has.
    pub fn broken(&self, now: &Standing) -> Option<String> {
        let known = self.epoch?;
        if now.positions.is_empty() || now.epoch > known {
            return None; // nothing is said, or somebody has noticed already
        }
        if now.epoch < known {
            return Some(format!("it is in epoch {}, and was in {known}", now.epoch));
        }
        let older = |(place, reached): (&Place, &i64)| {
            let next = now.positions.get(place)?.next;
            (next < *reached).then(|| behind(place, next, *reached))
        };
        self.reached.iter().find_map(older)
    }
}

/// How the ledger is behind what is known of it, for people.
pub fn behind(place: &Place, next: i64, reached: i64) -> String {
    format!("{}/{} stands at offset {next} in the ledger, and stood at {reached}", place.topic, place.partition)
}

/// Raises the epoch above `above`, unless somebody has done so since `seen` was read. Gives the epoch that holds now.
pub async fn raise(pool: &PgPool, seen: i64, above: i64, reason: &str) -> Result<i64, sqlx::Error> {
    let mut seen = seen;
    loop {
        // The clock, too: what was raised in a future that is lost to the backup as well must not come again.
        let raised = sqlx::query_scalar::<_, i64>(
            "UPDATE timeline
             SET epoch = greatest(epoch + 1, $2::bigint + 1, extract(epoch FROM clock_timestamp())::bigint),
                 raised_at = now(), reason = $3
             WHERE epoch = $1 RETURNING epoch",
        )
        .bind(seen)
        .bind(above)
        .bind(reason)
        .fetch_optional(pool)
        .await?;
        if let Some(epoch) = raised {
            metrics::counter!("tidemill_stream_restores_total").increment(1);
            tracing::error!(reason, epoch, "postgres has come back older; Redis is projected again");
            return Ok(epoch);
        }
        seen = sqlx::query_scalar("SELECT epoch FROM timeline").fetch_one(pool).await?;
        if seen > above {
            return Ok(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Position;

    fn place(partition: i32) -> Place {
        Place { topic: "events.a".to_owned(), partition, incarnation: "i".to_owned(), generation: 0 }
    }

    fn standing(epoch: i64, next: i64) -> Standing {
        Standing {
            epoch,
            positions: HashMap::from([(place(0), Position { next, projected: 0 })]),
            ..Standing::default()
        }
    }

    #[test]
    fn only_a_ledger_that_went_back_is_older() {
        let mut timeline = Timeline::default();
        assert_eq!(timeline.broken(&standing(3, 10)), None, "nothing was known");
        assert!(timeline.enter(3));
        timeline.reached(&place(0), 10);
        timeline.reached(&place(0), 9);
        timeline.reached(&place(1), 90);
        assert_eq!(timeline.broken(&standing(3, 10)), None);
        assert_eq!(timeline.broken(&standing(3, 11)), None, "another worker was faster");
        let reason = timeline.broken(&standing(3, 9)).expect("older");
        assert!(reason.contains("events.a/0 stands at offset 9 in the ledger, and stood at 10"), "{reason}");
        assert!(timeline.broken(&standing(2, 10)).is_some(), "older than the epoch itself");
        assert_eq!(timeline.broken(&Standing::default()), None, "nothing was asked");
    }

    #[test]
    fn a_raised_epoch_is_noticed_once() {
        let mut timeline = Timeline::default();
        timeline.enter(3);
        timeline.reached(&place(0), 10);
        assert_eq!(timeline.broken(&standing(4, 5)), None, "somebody has raised it");
        assert!(timeline.enter(4));
        assert_eq!(timeline.broken(&standing(4, 5)), None, "what was reached was in another history");
        assert!(!timeline.enter(4));
    }
}
