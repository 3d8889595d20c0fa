//! `Idempotency-Key`: a whole request that is sent again gets its first answer again.
//!
//! Only final verdicts are kept; events that were told `retry` or `limited` are admitted anew. Without Redis a
//! request is taken as if it were the first: its events' own ids still keep them from counting twice.

use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tidemill_common::event::Invalid;
use tidemill_common::problem::Problem;
use tidemill_common::redis::Redis;
use xxhash_rust::xxh3::xxh3_128;

use crate::json_schemas::Violation;
use crate::keys;
use crate::outcome::{Answered, Outcome, Position};

const HEADER: &str = "idempotency-key";
/// Longest key, in bytes.
const LONGEST: usize = 255;
/// The fields that an error can name.
const FIELDS: [&str; 16] = [
    "eventId",
    "eventType",
    "timestamp",
    "userId",
    "sessionId",
    "eventAction",
    "properties",
    // CloudEvents
    "id",
    "type",
    "source",
    "specversion",
    "time",
    "data_base64",
    "userid",
    "sessionid",
    "eventaction",
];

/// First answers in Redis. Cheap to clone.
#[derive(Clone)]
pub struct Idempotency {
    redis: Redis,
}

/// A request that may have been here before.
pub struct Request {
    redis_key: String,
    body: u128,
}

/// What a request was answered, as far as that was final.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    body: u128,
    answers: Vec<Option<KeptAnswer>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptAnswer {
    event_id: Option<String>,
    outcome: KeptOutcome,
}

#[derive(Debug, Serialize, Deserialize)]
enum KeptOutcome {
    Accepted(Position),
    Duplicate(Position),
    Reused,
    Invalid(String, String),
    Violates(String, String),
}

impl Request {
    /// The key of a request, if it has one.
    pub fn of(headers: &HeaderMap, project: &str, body: &[u8]) -> Result<Option<Self>, Problem> {
        let Some(key) = headers.get(HEADER) else { return Ok(None) };
        if key.is_empty() || key.len() > LONGEST {
            let detail = format!("Idempotency-Key must have 1 to {LONGEST} bytes, but has {}", key.len());
            return Err(
                Problem::new(StatusCode::BAD_REQUEST, "bad-header", "Bad header", detail).field("Idempotency-Key")
            );
        }
        let redis_key = keys::idempotency(project, key.as_bytes());
        Ok(Some(Self { redis_key, body: xxh3_128(body) }))
    }
}

impl Idempotency {
    /// Answers in this Redis.
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// The final answers that a request's events got before; none for those to be admitted.
    pub async fn first_answers(&self, request: &Request, events: usize) -> Result<Vec<Option<Answered>>, Problem> {
        let none = || (0..events).map(|_| None).collect();
        let (kept,): (Option<Vec<u8>>,) = match self.redis.run(redis::pipe().cmd("GET").arg(&request.redis_key)).await {
            Ok(kept) => kept,
            Err(failure) => {
                tracing::debug!(%failure, "going on without first answers");
                return Ok(none());
            }
        };
        let Some(kept) = kept.and_then(|kept| serde_json::from_slice::<Kept>(&kept).ok()) else { return Ok(none()) };
        if kept.body != request.body || kept.answers.len() != events {
            let detail = "another request had this Idempotency-Key in the last 24 hours; give every request its own";
            let title = "Idempotency-Key reused";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", title, detail)
                .field("Idempotency-Key"));
        }
        Ok(kept.answers.into_iter().map(|answer| answer.map(KeptAnswer::into_answered)).collect())
    }

    /// Keeps what is final of an answer.
    pub async fn keep(&self, request: &Request, answers: &[Answered]) {
        let kept = Kept { body: request.body, answers: answers.iter().map(KeptAnswer::of).collect() };
        if kept.answers.iter().all(Option::is_none) {
            return;
        }
        let value = serde_json::to_vec(&kept).expect("texts and numbers only");
        let mut pipeline = redis::pipe();
        pipeline.cmd("SET").arg(&request.redis_key).arg(value).arg("PX").arg(keys::CONFIRMED_MS).ignore();
        if let Err(failure) = self.redis.run::<()>(&pipeline).await {
            tracing::debug!(%failure, "the first answer is not kept");
        }
    }
}

impl KeptAnswer {
    fn of(answered: &Answered) -> Option<Self> {
        let outcome = match &answered.outcome {
            Outcome::Accepted(at) => KeptOutcome::Accepted(*at),
            Outcome::Duplicate(at) => KeptOutcome::Duplicate(*at),
            Outcome::Reused => KeptOutcome::Reused,
            Outcome::Invalid(invalid) => KeptOutcome::Invalid(invalid.field.to_owned(), invalid.problem.clone()),
            Outcome::Violates(violation) => KeptOutcome::Violates(violation.field.clone(), violation.problem.clone()),
            Outcome::Limited(..) | Outcome::Retry(_) => return None,
        };
        Some(Self { event_id: answered.event_id.clone(), outcome })
    }

    fn into_answered(self) -> Answered {
        let outcome = match self.outcome {
            KeptOutcome::Accepted(at) => Outcome::Accepted(at),
            KeptOutcome::Duplicate(at) => Outcome::Duplicate(at),
            KeptOutcome::Reused => Outcome::Reused,
            KeptOutcome::Violates(field, problem) => Outcome::Violates(Violation { field, problem }),
            KeptOutcome::Invalid(field, problem) => {
                let known = FIELDS.into_iter().find(|known| *known == field);
                Outcome::Invalid(Invalid::new(known.unwrap_or("event"), problem))
            }
        };
        Answered { event_id: self.event_id, outcome }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::Whose;

    #[test]
    fn final_answers_are_kept_as_they_are() {
        let position = Position::Log { partition: 3, offset: 41 };
        let outcomes = [
            Outcome::Accepted(position),
            Outcome::Accepted(Position::Spooled),
            Outcome::Duplicate(position),
            Outcome::Reused,
            Outcome::Invalid(Invalid::new("timestamp", "is before the year 2000")),
            Outcome::Invalid(Invalid::new("event", "must be a JSON object")),
            Outcome::Violates(Violation { field: "properties/a".into(), problem: "no".into() }),
        ];
        for outcome in outcomes {
            let answered = Answered { event_id: Some("e".into()), outcome };
            let kept = serde_json::to_vec(&KeptAnswer::of(&answered)).expect("JSON");
            let read: Option<KeptAnswer> = serde_json::from_slice(&kept).expect("JSON");
            assert_eq!(read.map(KeptAnswer::into_answered), Some(answered));
        }
        for outcome in [Outcome::Retry(Duration::ZERO), Outcome::Limited(Whose::Key, Duration::ZERO)] {
            assert!(KeptAnswer::of(&Answered { event_id: None, outcome }).is_none());
        }
    }
}
