//! Outcomes to HTTP.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use tidemill_common::problem::Problem;
use utoipa::ToSchema;

use crate::json_schemas::Violation;
use crate::limits::Whose;
use crate::outcome::{Answered, Outcome, Position};

/// The answer to a single event that is accepted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    #[schema(required, value_type = String)]
    event_id: Option<String>,
    #[schema(pattern = "^accepted$")]
    status: &'static str,
    /// Partition and offset in the log, or `spooled`.
    #[schema(value_type = String, pattern = "^([0-9]+:[0-9]+|spooled)$")]
    #[serde(serialize_with = "text")]
    position: Position,
}

/// One of several events. Every member is always there.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Verdict)]
pub struct Item {
    /// Where the event stood in the request.
    index: usize,
    /// Its id, if it has one.
    #[schema(required)]
    event_id: Option<String>,
    #[schema(value_type = Status)]
    status: &'static str,
    /// Of `accepted` and `duplicate`: partition and offset in the log, or `spooled`.
    #[schema(required, value_type = Option<String>, pattern = "^([0-9]+:[0-9]+|spooled)$")]
    #[serde(serialize_with = "text_or_null")]
    position: Option<Position>,
    /// Of all others: what is wrong.
    #[schema(required)]
    error: Option<Problem>,
}

/// What became of one of several events.
#[derive(ToSchema)]
#[schema(as = VerdictStatus, rename_all = "lowercase")]
#[allow(dead_code)] // a description; the words themselves are in `item`
enum Status {
    Accepted,
    Duplicate,
    Invalid,
    Limited,
    Retry,
}

fn text<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(position)
}

// serde hands these over by reference.
fn text_or_null<S: Serializer>(position: &Option<Position>, serializer: S) -> Result<S::Ok, S::Error> {
    match position {
        Some(position) => text(position, serializer),
        None => serializer.serialize_none(),
    }
}

/// Bytes of an item, most often.
const ITEM: usize = 128;

#[derive(Serialize, ToSchema)]
#[schema(as = Verdicts)]
pub struct Items {
    /// One for each event, in their order.
    results: Vec<Item>,
}

/// Answers a single event.
pub fn one(answered: Answered) -> Response {
    let Answered { event_id, outcome } = answered;
    match outcome {
        Outcome::Accepted(position) => {
            (StatusCode::ACCEPTED, Json(Accepted { event_id, status: "accepted", position })).into_response()
        }
        Outcome::Duplicate(position) => {
            let detail = "this event is in the log already; nothing is to be done";
            let problem = Problem::new(StatusCode::CONFLICT, "duplicate", "Duplicate event", detail);
            named(problem.position(position.to_string()), event_id).into_response()
        }
        other => match problem(&other) {
            Some(problem) => named(problem, event_id).into_response(),
            None => StatusCode::ACCEPTED.into_response(),
        },
    }
}

/// Answers several events.
pub fn many(answers: Vec<Answered>) -> Response {
    let wait = answers.iter().filter_map(|answered| wait(&answered.outcome)).max();
    if answers.iter().all(|answered| matches!(answered.outcome, Outcome::Retry(_))) {
        return retry(wait.unwrap_or_default()).into_response();
    }
    let mut body = Vec::with_capacity(ITEM * answers.len());
    let written = serde_json::to_writer(&mut body, &Items { results: items(answers) });
    written.expect("texts and numbers only, into memory");
    let mut response = (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Some(wait) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds(wait)));
    }
    response
}

/// What Segment's libraries look for.
#[derive(Serialize, ToSchema)]
pub struct Taken {
    success: bool,
    /// One for each message, in their order.
    results: Vec<Item>,
}

/// Answers a Segment batch. Its libraries send a batch again or give it up, as a whole: it is sent again as long
/// as any event is open, and those that were taken are duplicates then.
pub fn batch(answers: Vec<Answered>) -> Response {
    let open = answers.iter().filter(|answered| wait(&answered.outcome).is_some());
    match open.max_by_key(|answered| wait(&answered.outcome)).and_then(|answered| problem(&answered.outcome)) {
        Some(problem) => broken_off(problem, answers),
        None => Json(Taken { success: true, results: items(answers) }).into_response(),
    }
}

/// A request that could not be taken whole, with the verdicts on the events that were.
#[derive(Serialize, ToSchema)]
#[schema(as = ProblemWithVerdicts)]
pub struct BrokenOff {
    #[serde(flatten)]
    problem: Problem,
    /// The verdicts so far, where some events have been decided.
    #[schema(required = false)]
    results: Vec<Item>,
}

/// Answers a request that could not be read to its end, or not taken whole. What was decided is not hidden.
pub fn broken_off(problem: Problem, answers: Vec<Answered>) -> Response {
    let (head, _) = problem.clone().into_response().into_parts();
    let body = BrokenOff { problem, results: items(answers) };
    Response::from_parts(head, Body::from(serde_json::to_vec(&body).unwrap_or_default()))
}

fn items(answers: Vec<Answered>) -> Vec<Item> {
    answers.into_iter().enumerate().map(|(index, answered)| item(index, answered)).collect()
}

fn item(index: usize, Answered { event_id, outcome }: Answered) -> Item {
    let error = problem(&outcome);
    let (status, position) = match outcome {
        Outcome::Accepted(position) => ("accepted", Some(position)),
        Outcome::Duplicate(position) => ("duplicate", Some(position)),
        // Not `duplicate`: this event is not in the log, and will never be under this id.
        Outcome::Reused | Outcome::Invalid(_) | Outcome::Violates(_) => ("invalid", None),
        Outcome::Limited(..) => ("limited", None),
        Outcome::Retry(_) => ("retry", None),
    };
    Item { index, event_id, status, position, error }
}

/// What is wrong, where something is.
fn problem(outcome: &Outcome) -> Option<Problem> {
    match outcome {
        Outcome::Accepted(_) | Outcome::Duplicate(_) => None,
        Outcome::Reused => {
            let detail = "another event has this eventId already; give every event an id of its own";
            Some(Problem::new(StatusCode::CONFLICT, "event-id-reused", "eventId reused", detail).field("eventId"))
        }
        Outcome::Invalid(invalid) => {
            let title = "Invalid event";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-event", title, invalid.to_string());
            Some(problem.field(invalid.field))
        }
        Outcome::Violates(Violation { field, problem }) => {
            let detail = format!("{field}: {problem}; GET /v1/schemas/{{eventType}} shows the schema of its type");
            let title = "Event breaks its schema";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "schema-violation", title, detail);
            Some(problem.field(field.as_str()))
        }
        Outcome::Limited(whose, wait) => {
            let whose = match whose {
                Whose::Key => "this API key",
                Whose::Project => "the project",
                Whose::EventType => "the event's type",
                Whose::User => "the event's user",
            };
            let detail = format!("the limit of events per second of {whose} is used up; send the event again later");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "limited", "Limit reached", detail);
            Some(problem.retry_after(seconds(*wait)))
        }
        Outcome::Retry(wait) => Some(retry(*wait)),
    }
}

fn retry(wait: Duration) -> Problem {
    let detail = "it is not known yet whether the event is in the log; send it again with the same eventId";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "retry", "Send it again", detail).retry_after(seconds(wait))
}

fn named(problem: Problem, event_id: Option<String>) -> Problem {
    match event_id {
        Some(event_id) => problem.event_id(event_id),
        None => problem,
    }
}

fn wait(outcome: &Outcome) -> Option<Duration> {
    match outcome {
        Outcome::Limited(_, wait) | Outcome::Retry(wait) => Some(*wait),
        _ => None,
    }
}

/// Whole seconds, at least one: less cannot be said in `Retry-After`.
fn seconds(wait: Duration) -> u64 {
    (wait.as_millis().div_ceil(1_000) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_common::event::Invalid;

    fn answered(outcome: Outcome) -> Answered {
        Answered { event_id: Some("e".into()), outcome }
    }

    #[test]
    fn each_outcome_has_its_status() {
        let wait = Duration::from_millis(2_100);
        let position = Position::Log { partition: 0, offset: 1 };
        let table = [
            (Outcome::Accepted(position), 202, None),
            (Outcome::Duplicate(position), 409, None),
            (Outcome::Reused, 409, None),
            (Outcome::Invalid(Invalid::new("eventId", "is missing")), 422, None),
            (Outcome::Violates(Violation { field: "properties/a".into(), problem: "no".into() }), 422, None),
            (Outcome::Limited(Whose::User, wait), 429, Some("3")),
            (Outcome::Retry(Duration::ZERO), 503, Some("1")),
        ];
        for (outcome, status, retry_after) in table {
            let response = one(answered(outcome.clone()));
            assert_eq!(response.status().as_u16(), status, "{outcome:?}");
            let header = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().expect("a number"));
            assert_eq!(header, retry_after, "{outcome:?}");
        }
    }

    #[test]
    fn several_are_told_to_retry_only_when_all_are() {
        let wait = Duration::from_secs(1);
        let position = Position::Log { partition: 0, offset: 1 };
        let (retry, accepted) = (answered(Outcome::Retry(wait)), answered(Outcome::Accepted(position)));
        assert_eq!(many(vec![retry.clone(), retry.clone()]).status(), StatusCode::SERVICE_UNAVAILABLE);
        let mixed = many(vec![retry, accepted]);
        assert_eq!(mixed.status(), StatusCode::ACCEPTED);
        assert!(mixed.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(many(vec![answered(Outcome::Limited(Whose::User, wait))]).status(), StatusCode::ACCEPTED);
    }

    #[test]
    fn a_batch_is_sent_again_while_any_event_is_open() {
        let position = Position::Log { partition: 0, offset: 1 };
        let accepted = || answered(Outcome::Accepted(position));
        let invalid = answered(Outcome::Invalid(Invalid::new("eventId", "is missing")));
        assert_eq!(batch(vec![accepted(), invalid, answered(Outcome::Duplicate(position))]).status(), StatusCode::OK);
        let limited = batch(vec![accepted(), answered(Outcome::Limited(Whose::Key, Duration::from_secs(3)))]);
        assert_eq!(limited.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(limited.headers()[header::RETRY_AFTER], "3");
        let open = batch(vec![answered(Outcome::Retry(Duration::ZERO)), accepted()]);
        assert_eq!(open.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
