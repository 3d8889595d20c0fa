//! Metrics: hot windows from Redis, all others from Postgres.

mod request;

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;

use crate::hot::{self, HotWindow};
use crate::postgres::{self, Rollup, Series};
use crate::routes::Service;

pub use request::Request;
use request::{BUILT_IN, MAX_GROUPS, MAX_WINDOWS, Source, Value, bad};

/// Data points in one answer; only groups can give more than there are windows.
const MAX_POINTS: usize = 10 * MAX_WINDOWS as usize;
/// Event types that are listed.
const MAX_LISTED: i64 = 10_000;

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    metric: String,
    granularity: &'static str,
    data: Vec<Point>,
    /// Every event appended to the log before this time is counted here; `null` when that is not known.
    #[serde(rename = "asOf")]
    as_of: Option<String>,
}

/// A window that has data.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Point {
    timestamp: String,
    #[serde(rename = "eventType", skip_serializing_if = "Option::is_none")]
    event_type: Option<String>,
    value: i64,
    count: i64,
    /// `null` where users are not counted.
    unique_users: Option<u64>,
}

/// A time as all answers give it.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The metrics that can be asked for.
pub async fn names(pool: &PgPool, project: &Project) -> Result<Vec<String>, Problem> {
    let types = postgres::event_types(pool, project, MAX_LISTED).await.map_err(postgres::problem)?;
    let types = types.into_iter().filter(|name| !tidemill_stream::metric::is_reserved(name));
    Ok(BUILT_IN.into_iter().map(str::to_owned).chain(types).collect())
}

/// Answers a request.
pub async fn answer(service: &Service, project: &Project, request: Request) -> Result<Answer, Problem> {
    // Before the data is read, from Redis too, so that it never promises more than the data holds.
    let fresh = service.freshness.of(project).await.map_err(postgres::problem)?;
    let hot = if fresh.redis_is_even { hot_windows(service, project, &request).await } else { HashMap::new() };
    let series = series(&service.pool, project, &request.source).await?;
    let grouped = request.source == Source::EachEventType;
    let mut points: Vec<(i64, Point)> = hot
        .iter()
        .map(|(start, window)| (*start, point(&request, *start, None, window.count, Some(window.unique_users))))
        .collect();
    let known: Vec<i64> = hot.keys().copied().collect();
    let mut too_many = false;
    let add = |window: Rollup| {
        too_many |= points.len() >= MAX_POINTS;
        if !too_many {
            let users = window.users.map(|users| users.count());
            let event_type = grouped.then_some(window.dimension_value);
            points.push((window.start, point(&request, window.start, event_type, window.count, users)));
        }
    };
    postgres::rollups(&service.pool, project, &series, request.granularity, request.span.clone(), &known, add)
        .await
        .map_err(postgres::problem)?;
    if too_many {
        return Err(bad("groupBy", "the answer has too many data points; ask for less time or a coarser granularity"));
    }
    points.sort_by_key(|(start, _)| *start);
    Ok(Answer {
        granularity: request.granularity.as_str(),
        metric: request.name,
        data: points.into_iter().map(|(_, point)| point).collect(),
        as_of: fresh.as_of.map(rfc3339),
    })
}

/// The windows that are hot now and in Redis. One that is missing there, for whatever reason, is read from
/// Postgres like the cold ones.
async fn hot_windows(service: &Service, project: &Project, request: &Request) -> HashMap<i64, HotWindow> {
    let Some(name) = request.source.hot_name() else { return HashMap::new() };
    let now = Utc::now().timestamp();
    let length = request.granularity.seconds();
    let starts: Vec<i64> = (request.span.start..request.span.end.min(now + 1))
        .step_by(length as usize)
        .filter(|start| request.granularity.hot_until(*start) > now)
        .collect();
    hot::hot_windows(&service.redis, project, name, request.granularity, &starts).await
}

async fn series(pool: &PgPool, project: &Project, source: &Source) -> Result<Series, Problem> {
    let values = match source {
        Source::Events | Source::Sessions => vec![String::new()],
        Source::EventType(event_type) => vec![event_type.clone()],
        Source::EachEventType => {
            let limit = MAX_GROUPS as i64 + 1;
            let types = postgres::event_types(pool, project, limit).await.map_err(postgres::problem)?;
            if types.len() > MAX_GROUPS {
                let detail = format!("there are more than {MAX_GROUPS} event types; ask for them one by one");
                return Err(bad("groupBy", &detail));
            }
            types
        }
    };
    Ok(Series { metric: source.metric(), dimension: source.dimension(), values })
}

fn point(request: &Request, start: i64, event_type: Option<String>, count: i64, users: Option<u64>) -> Point {
    let unique_users = if request.source == Source::Sessions { users } else { Some(users.unwrap_or(0)) };
    Point {
        timestamp: DateTime::from_timestamp(start, 0).map(rfc3339).unwrap_or_default(),
        event_type,
        value: match request.value {
            Value::Count => count,
            Value::UniqueUsers => unique_users.and_then(|users| i64::try_from(users).ok()).unwrap_or(0),
        },
        count,
        unique_users,
    }
}
