//! Metrics: hot windows from Redis, all others from Postgres.

mod groups;
mod listing;
mod points;
mod request;
mod selection;
mod source;
mod span;

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;

use crate::hot::{self, HotWindow};
use crate::postgres::{self, Series};
use crate::routes::Service;

pub use listing::{declare, list, undeclare};
pub use request::{Request, once};
pub use source::Source;
pub use span::Piece;

use groups::{Chosen, Shown};
use points::{Point, Points};
use request::Windows;
use source::Select;

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    metric: String,
    granularity: &'static str,
    data: Vec<Point>,
    /// What was told apart, where a dimension was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Shown>,
    /// Every event appended to the log before this time is counted here; `null` when that is not known.
    #[serde(rename = "asOf")]
    as_of: Option<String>,
}

/// A time as all answers give it.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Answers a request.
pub async fn answer(service: &Service, project: &Project, request: Request) -> Result<Answer, Problem> {
    // Before the data is read, from Redis too, so that it never promises more than the data holds.
    let fresh = service.freshness.of(project).await.map_err(postgres::problem)?;
    let hot = if fresh.redis_is_even { hot_windows(service, project, &request).await } else { HashMap::new() };
    let series = series(&request.source);
    let pieces = match request.windows {
        Windows::Each(granularity) => vec![Piece { granularity, span: request.span.clone() }],
        Windows::All => span::cover(request.span.clone(), &request.source.granularities),
    };
    let Chosen { groups, shown, values } = groups::choose(&service.pool, project, &request, &series, &pieces).await?;
    let series = Series { values: values.as_deref().or(series.values), ..series };
    let mut points = Points::new(&request, groups);
    let known: Vec<i64> = hot.keys().copied().collect();
    postgres::rollups(&service.pool, project, &series, &pieces, &known, |row| points.add(row))
        .await
        .map_err(postgres::problem)?;
    let data = points.finish(hot)?;
    Ok(Answer {
        granularity: request.windows.as_str(),
        metric: request.name,
        data,
        groups: shown,
        as_of: fresh.as_of.map(rfc3339),
    })
}

fn series(source: &Source) -> Series<'_> {
    let values = match &source.select {
        Select::Total | Select::Each(None) => None,
        Select::Only(values) | Select::Each(Some(values)) => Some(values.as_slice()),
    };
    let metrics = std::iter::once(source.metric.as_str()).chain(source.over).collect();
    Series { metrics, dimension: &source.dimension, values }
}

/// The windows that are hot now and in Redis. One that is missing there, for whatever reason, is read from
/// Postgres like the cold ones.
async fn hot_windows(service: &Service, project: &Project, request: &Request) -> HashMap<i64, HotWindow> {
    let (Some(name), Windows::Each(granularity)) = (&request.source.hot_name, request.windows) else {
        return HashMap::new();
    };
    let now = Utc::now().timestamp();
    let starts: Vec<i64> = (request.span.start..request.span.end.min(now + 1))
        .step_by(granularity.seconds() as usize)
        .filter(|start| granularity.hot_until(*start) > now)
        .collect();
    let mut hot = hot::hot_windows(&service.redis, project, name, granularity, &starts).await;
    // Another metric may have had this name before.
    hot.retain(|_, window| window.is_of(&request.source));
    hot
}
