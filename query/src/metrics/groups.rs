//! Which values of a dimension an answer tells apart: the most frequent ones; the rest is put together.

use std::collections::HashSet;

use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_stream::fold::guard;
use tidemill_stream::metric::OTHER;
use tidemill_stream::window::Granularity;

use super::request::Request;
use super::source::Select;
use super::span::Piece;
use crate::postgres::{self, Series};

/// The values that stand for themselves.
#[derive(Debug)]
pub enum Groups {
    /// Everything in one.
    One,
    /// These; all others are [`OTHER`].
    Top(HashSet<String>),
}

/// What an answer says of its groups.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The dimension.
    dimension: String,
    /// Values that are told apart.
    shown: usize,
    /// Values that are put together under `__other__`.
    folded: usize,
    /// Whether the dimension had more values on some day than are told apart when counting; then some are not
    /// known any more, and the values told apart are no longer the most frequent ones.
    limited: bool,
    /// Values asked for of which only a part was counted by itself; the rest is in `__other__`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<String>,
}

impl Groups {
    /// Where a value counts.
    pub fn place<'a>(&self, value: &'a str) -> &'a str {
        match self {
            Self::One => "",
            Self::Top(top) if top.contains(value) => value,
            Self::Top(_) => OTHER,
        }
    }
}

/// Chooses the groups of an answer, and says what was chosen.
pub async fn choose(
    pool: &PgPool,
    project: &Project,
    request: &Request,
    series: &Series<'_>,
    pieces: &[Piece],
) -> Result<(Groups, Option<Shown>), Problem> {
    let source = &request.source;
    if source.select == Select::Total {
        return Ok((Groups::One, None));
    }
    let limit = limit(pool, project, request).await.map_err(postgres::problem)?;
    let complete = |value: &str| value != OTHER && guard::is_complete(value, limit);
    let asked = match &source.select {
        Select::Only(values) | Select::Each(Some(values)) => values.as_slice(),
        Select::Each(None) | Select::Total => &[],
    };
    let incomplete = asked.iter().filter(|value| !complete(value)).cloned().collect();
    let shown =
        |shown, folded| Shown { dimension: source.shown.clone(), shown, folded, limited: limit.is_some(), incomplete };
    if !request.is_grouped() {
        // Worth a word only if what was asked for may be incomplete.
        return Ok((Groups::One, limit.map(|_| shown(asked.len(), 0))));
    }
    let mut counts = postgres::counts_by_value(pool, project, series, pieces).await.map_err(postgres::problem)?;
    let all = counts.iter().filter(|(value, _)| value != OTHER).count();
    counts.retain(|(value, _)| complete(value));
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(request.limit);
    let folded = all - counts.len();
    let shown = shown(counts.len(), folded);
    Ok((Groups::Top(counts.into_iter().map(|(value, _)| value).collect()), Some(shown)))
}

/// Up to which hash values are complete on every day asked for.
async fn limit(pool: &PgPool, project: &Project, request: &Request) -> Result<Option<u64>, sqlx::Error> {
    let source = &request.source;
    let days = Granularity::Day.window(request.span.start * 1_000_000)..request.span.end;
    let stored = postgres::overflowing_days(pool, project, &source.metric, &source.dimension, days).await?;
    let limits = stored.values().map(|day| guard::limit(day.iter().map(String::as_str), source.max_values));
    Ok(limits.flatten().min())
}
