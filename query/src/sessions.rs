//! `GET /v1/sessions/{id}`: the live state from Redis, all else from Postgres.

use std::collections::HashMap;

use axum::http::StatusCode;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;

use crate::hot;
use crate::metrics::rfc3339;
use crate::postgres::{self, Interval};

/// A session is live until this long after its last event.
const GAP: TimeDelta = TimeDelta::minutes(30);
/// The latest sessions of an id that are given.
const MAX_INTERVALS: i64 = 1_000;

/// A session id: its latest session, and all of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    session_id: String,
    #[serde(flatten)]
    latest: State,
    live: bool,
    /// Latest first.
    sessions: Vec<State>,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    user_id: Option<String>,
    first_event_at: String,
    last_event_at: String,
    page_views: i64,
    total_events: i64,
    has_conversion: bool,
    is_new: bool,
    current_page: Option<String>,
}

impl From<Interval> for State {
    fn from(row: Interval) -> Self {
        Self {
            user_id: row.user_id,
            first_event_at: rfc3339(row.first_event_at),
            last_event_at: rfc3339(row.last_event_at),
            page_views: row.page_views,
            total_events: row.total_events,
            has_conversion: row.conversions > 0,
            is_new: row.is_new,
            current_page: row.current_page,
        }
    }
}

/// Answers for one session id.
pub async fn answer(
    pool: &PgPool,
    redis: &Redis,
    project: &Project,
    session_id: &str,
    now: DateTime<Utc>,
) -> Result<Answer, Problem> {
    if session_id.contains('\0') {
        return Err(unknown(session_id)); // Postgres cannot even be asked
    }
    let (hash, rows) = tokio::join!(
        hot::session(redis, project, session_id),
        postgres::intervals(pool, project, session_id, MAX_INTERVALS)
    );
    let rows = rows.map_err(postgres::problem)?;
    let Some(newest) = rows.first() else { return Err(unknown(session_id)) };
    let (last_event_at, total_events) = (newest.last_event_at, newest.total_events);
    let sessions: Vec<State> = rows.into_iter().map(State::from).collect();
    // Never a copy that is older than what Postgres has just said.
    let copy = hash.and_then(|hash| live_copy(&hash, now));
    let copy = copy.filter(|(at, state)| *at >= last_event_at && state.total_events >= total_events);
    let (last_event_at, latest) = copy.unwrap_or_else(|| (last_event_at, sessions[0].clone()));
    Ok(Answer { session_id: session_id.to_owned(), latest, live: last_event_at + GAP > now, sessions })
}

/// What Redis says of a live session, with the time of its last event.
fn live_copy(hash: &HashMap<String, String>, now: DateTime<Utc>) -> Option<(DateTime<Utc>, State)> {
    let text = |name: &str| hash.get(name).filter(|value| !value.is_empty()).cloned();
    let time = |name: &str| hash.get(name)?.parse::<DateTime<Utc>>().ok();
    let flag = |name: &str| hash.get(name)?.parse::<bool>().ok();
    let number = |name: &str| hash.get(name)?.parse::<i64>().ok();
    let last_event_at = time("lastEventAt").filter(|at| *at + GAP > now)?;
    let state = State {
        user_id: text("userId"),
        first_event_at: rfc3339(time("firstEventAt")?),
        last_event_at: rfc3339(last_event_at),
        page_views: number("pageViews")?,
        total_events: number("totalEvents")?,
        has_conversion: flag("hasConversion")?,
        is_new: flag("isNew")?,
        current_page: text("currentPage"),
    };
    Some((last_event_at, state))
}

fn unknown(session_id: &str) -> Problem {
    let detail = format!("the project has no session {session_id:?}; one appears when its first event is counted");
    Problem::new(StatusCode::NOT_FOUND, "no-session", "No such session", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(last_event_at: &str) -> HashMap<String, String> {
        [
            ("userId", "u1"),
            ("firstEventAt", "2026-01-31T11:00:00Z"),
            ("lastEventAt", last_event_at),
            ("pageViews", "2"),
            ("totalEvents", "5"),
            ("hasConversion", "true"),
            ("isNew", "false"),
            ("currentPage", ""),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    #[test]
    fn a_copy_counts_while_the_session_is_live() {
        let now = "2026-01-31T12:00:00Z".parse().expect("a time");
        let (_, state) = live_copy(&hash("2026-01-31T11:30:00.001Z"), now).expect("live");
        assert_eq!((state.total_events, state.has_conversion, state.current_page), (5, true, None));
        assert_eq!(live_copy(&hash("2026-01-31T11:30:00Z"), now), None);
        let mut torn = hash("2026-01-31T11:59:00Z");
        torn.remove("totalEvents");
        assert_eq!(live_copy(&torn, now), None, "a torn copy is none");
    }
}
