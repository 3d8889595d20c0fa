//! Which values of a dimension an answer tells apart: the most frequent ones; the rest is put together.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_stream::fold::guard;
use tidemill_stream::metric::{OTHER, SEPARATOR};
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
    /// These, by the group that each belongs to; all others are [`OTHER`].
    Top(HashMap<String, String>),
}

/// What an answer tells apart.
#[derive(Debug)]
pub struct Chosen {
    /// The groups.
    pub groups: Groups,
    /// What is said of them.
    pub shown: Option<Shown>,
    /// The values that count, where only now it is known which.
    pub values: Option<Vec<String>>,
}

/// What an answer says of its groups.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The dimension, or those that are told apart.
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
    pub fn place(&self, value: &str) -> &str {
        match self {
            Self::One => "",
            Self::Top(top) => top.get(value).map_or(OTHER, String::as_str),
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
) -> Result<Chosen, Problem> {
    let source = &request.source;
    if source.select == Select::Total {
        return Ok(Chosen { groups: Groups::One, shown: None, values: None });
    }
    let limit = limit(pool, project, request).await.map_err(postgres::problem)?;
    let complete = |value: &str| value != OTHER && guard::is_complete(value, limit);
    let asked = match &source.select {
        Select::Only(values) | Select::Each(Some(values)) => values.as_slice(),
        Select::Each(None) | Select::Total => &[],
    };
    let incomplete = asked.iter().filter(|value| !complete(value)).cloned().collect();
    let dimension = source.shown.join(&SEPARATOR.to_string());
    let shown = |shown, folded| Shown { dimension, shown, folded, limited: limit.is_some(), incomplete };
    if !request.is_grouped() {
        // Worth a word only if what was asked for may be incomplete.
        let shown = limit.map(|_| shown(asked.len(), 0));
        return Ok(Chosen { groups: Groups::One, shown, values: None });
    }
    let mut counts = postgres::counts_by_value(pool, project, series, pieces).await.map_err(postgres::problem)?;
    let mut values = None;
    if let Some(parts) = source.parts.as_ref().filter(|parts| parts.filters()) {
        counts.retain(|(value, _)| parts.group(value).is_some());
        values = Some(counts.iter().map(|(value, _)| value.clone()).collect());
    }
    counts.retain(|(value, _)| value != OTHER);
    let (groups, folded) = most_frequent(counts, request, &complete);
    let told_apart = groups.values().collect::<HashSet<_>>().len();
    Ok(Chosen { shown: Some(shown(told_apart, folded)), groups: Groups::Top(groups), values })
}

/// The group of each value that is told apart, and how many groups are not: of those that are known completely, the most
/// frequent ones are.
fn most_frequent(
    counts: Vec<(String, i64)>,
    request: &Request,
    complete: &impl Fn(&str) -> bool,
) -> (HashMap<String, String>, usize) {
    let parts = request.source.parts.as_ref();
    let mut groups = HashMap::<String, (i64, Vec<String>)>::new();
    for (value, count) in counts {
        let group = parts.map_or_else(|| value.clone(), |parts| parts.group(&value).unwrap_or_default());
        let (sum, values) = groups.entry(group).or_default();
        *sum += count;
        values.push(value);
    }
    let all = groups.len();
    let is_known = |group: &str| match parts {
        Some(parts) => parts.members(group).iter().all(|value| complete(value)),
        None => complete(group),
    };
    let mut known: Vec<_> = groups.into_iter().filter(|(group, _)| is_known(group)).collect();
    known.sort_by(|(a, (most, _)), (b, (less, _))| less.cmp(most).then_with(|| a.cmp(b)));
    known.truncate(request.limit);
    let folded = all - known.len();
    let of_values = |(group, (_, values)): (String, (i64, Vec<String>))| {
        values.into_iter().map(move |value| (value, group.clone()))
    };
    (known.into_iter().flat_map(of_values).collect(), folded)
}

/// Up to which hash values are complete on every day asked for.
async fn limit(pool: &PgPool, project: &Project, request: &Request) -> Result<Option<u64>, sqlx::Error> {
    let source = &request.source;
    let days = Granularity::Day.window(request.span.start * 1_000_000)..request.span.end;
    let stored = postgres::overflowing_days(pool, project, &source.metric, &source.dimension, days).await?;
    let limits = stored.values().map(|day| guard::limit(day.iter().map(String::as_str), source.max_values));
    Ok(limits.flatten().min())
}
