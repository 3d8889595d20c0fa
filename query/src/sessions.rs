//! `GET /v1/sessions/{id}`: the live state from Redis, all else from Postgres. `GET /v1/sessions?active=true`: what is
//! live, from Postgres.

use std::borrow::Cow;
use std::collections::HashMap;

use axum::http::StatusCode;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;
use tidemill_stream::session_key;

use crate::hot;
use crate::metrics::rfc3339;
use crate::money::Money;
use crate::postgres::{self, Interval};

/// A session is live until this long after its last event.
const GAP: TimeDelta = TimeDelta::minutes(30);
/// The latest sessions of an id that are given.
const MAX_INTERVALS: i64 = 1_000;
/// Live sessions in a list: as many as are asked for, at most so many.
const DEFAULT_LISTED: usize = 100;
const MAX_LISTED: usize = 1_000;

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
    /// Between them, in seconds.
    duration: f64,
    page_views: i64,
    total_events: i64,
    /// One event was all.
    bounce: bool,
    has_conversion: bool,
    conversions: i64,
    revenue: Money,
    is_new: bool,
    traffic_source: String,
    device_type: Option<String>,
    country: Option<String>,
    entry_page: Option<String>,
    exit_page: Option<String>,
    /// The same, while it is not known to be the last.
    current_page: Option<String>,
}

impl From<Interval> for State {
    fn from(row: Interval) -> Self {
        Self {
            user_id: row.user_id,
            first_event_at: rfc3339(row.first_event_at),
            last_event_at: rfc3339(row.last_event_at),
            duration: seconds(row.last_event_at - row.first_event_at),
            page_views: row.page_views,
            total_events: row.total_events,
            bounce: row.total_events == 1,
            has_conversion: row.conversions > 0,
            conversions: row.conversions,
            revenue: Money::parse(row.revenue.as_deref()),
            is_new: row.is_new,
            traffic_source: row.traffic_source,
            device_type: row.device_type,
            country: row.country,
            entry_page: row.entry_page,
            exit_page: row.current_page.clone(),
            current_page: row.current_page,
        }
    }
}

fn seconds(time: TimeDelta) -> f64 {
    time.num_microseconds().unwrap_or(i64::MAX) as f64 / 1e6
}

/// A session in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// None: the events of a user that name no session.
    session_id: Option<String>,
    #[serde(flatten)]
    state: State,
}

/// Live sessions, the one with the latest event first.
#[derive(Debug, Serialize)]
pub struct List {
    sessions: Vec<Listed>,
    /// Whether there are more than asked for.
    truncated: bool,
}

/// The sessions that are live at `now`. Parameters: `active`, which must be `true`, and `limit`.
pub async fn active(
    pool: &PgPool,
    project: &Project,
    params: &HashMap<String, String>,
    now: DateTime<Utc>,
) -> Result<List, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail);
    if params.get("active").map(String::as_str) != Some("true") {
        let detail =
            "only live sessions are listed: ask with ?active=true; for others there is SQL, the table sessions";
        return Err(bad(detail.to_owned()));
    }
    let limit = params.get("limit").map_or(Ok(DEFAULT_LISTED), |limit| limit.parse::<usize>());
    let Some(limit) = limit.ok().filter(|limit| (1..=MAX_LISTED).contains(limit)) else {
        return Err(bad(format!("'limit' must be a number from 1 to {MAX_LISTED}")));
    };
    let rows = postgres::active(pool, project, now - GAP, limit as i64 + 1).await.map_err(postgres::problem)?;
    let truncated = rows.len() > limit;
    let listed = |row: Interval| {
        let session_id = session_key::session_id(&row.session_key).map(str::to_owned);
        Listed { session_id, state: row.into() }
    };
    Ok(List { sessions: rows.into_iter().take(limit).map(listed).collect(), truncated })
}

/// Answers for one session id.
pub async fn answer(
    pool: &PgPool,
    redis: &Redis,
    project: &Project,
    session_id: &str,
    now: DateTime<Utc>,
) -> Result<Answer, Problem> {
    let key = key(session_id)?;
    let (hash, rows) =
        tokio::join!(hot::session(redis, project, &key), postgres::intervals(pool, project, &key, MAX_INTERVALS));
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
    let first_event_at = time("firstEventAt")?;
    let (total_events, conversions) = (number("totalEvents")?, number("conversions")?);
    let state = State {
        user_id: text("userId"),
        first_event_at: rfc3339(first_event_at),
        last_event_at: rfc3339(last_event_at),
        duration: seconds(last_event_at - first_event_at),
        page_views: number("pageViews")?,
        total_events,
        bounce: total_events == 1,
        has_conversion: flag("hasConversion")?,
        conversions,
        revenue: Money::parse(hash.get("revenue").map(String::as_str)),
        is_new: flag("isNew")?,
        traffic_source: text("trafficSource")?,
        device_type: text("deviceType"),
        country: text("country"),
        entry_page: text("entryPage"),
        exit_page: text("currentPage"),
        current_page: text("currentPage"),
    };
    Some((last_event_at, state))
}

/// Under which key a session id's rows stand.
pub fn key(session_id: &str) -> Result<Cow<'_, str>, Problem> {
    if session_id.contains('\0') {
        return Err(unknown(session_id)); // Postgres cannot even be asked
    }
    Ok(session_key::of_session(session_id))
}

/// There is no such session.
pub fn unknown(session_id: &str) -> Problem {
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
            ("conversions", "1"),
            ("revenue", "12.30"),
            ("trafficSource", "email"),
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
        assert_eq!((state.duration, state.bounce, &*state.traffic_source), (1_800.001, false, "email"));
        assert_eq!(serde_json::to_string(&state.revenue).expect("JSON"), "12.3");
        assert_eq!(live_copy(&hash("2026-01-31T11:30:00Z"), now), None);
        let mut torn = hash("2026-01-31T11:59:00Z");
        torn.remove("totalEvents");
        assert_eq!(live_copy(&torn, now), None, "a torn copy is none");
    }
}
