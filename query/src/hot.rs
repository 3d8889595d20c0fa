//! Reads of the hot copies that the stream writes. Redis is never the truth: a key that is missing, of
//! another generation or unreadable is simply not found, and Postgres is asked.

use std::collections::HashMap;

use serde::Deserialize;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;
use tidemill_stream::decimal::Decimal;
use tidemill_stream::fold::carts::{self, Cart};
use tidemill_stream::keys;
use tidemill_stream::metric::Aggregation;
use tidemill_stream::packed;
use tidemill_stream::window::Granularity;

use crate::metrics::Source;

/// A window's copy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HotWindow {
    /// Events.
    pub count: i64,
    /// Different users, where they are counted.
    #[serde(default)]
    pub unique_users: Option<u64>,
    /// What other metrics than of events compute, and the result.
    #[serde(default)]
    aggregation: Option<String>,
    #[serde(default)]
    value: Option<String>,
    generation: i32,
}

impl HotWindow {
    /// Whether this is a copy of what is read from `source`.
    pub fn is_of(&self, source: &Source) -> bool {
        match &self.aggregation {
            None => source.has_users() && self.unique_users.is_some(),
            Some(aggregation) => !source.has_users() && aggregation == source.aggregation.as_str(),
        }
    }

    /// The value.
    pub fn value(&self, aggregation: Aggregation) -> Option<Decimal> {
        match (&self.aggregation, aggregation) {
            (Some(_), _) => Decimal::parse(self.value.as_deref()?),
            (None, Aggregation::Unique) => Some(i64::try_from(self.unique_users?).ok()?.into()),
            (None, _) => Some(self.count.into()),
        }
    }
}

/// The copies of those of `windows` (starts, in seconds since 1970) that are there, in one round trip.
pub async fn hot_windows(
    redis: &Redis,
    project: &Project,
    metric: &str,
    granularity: Granularity,
    windows: &[i64],
) -> HashMap<i64, HotWindow> {
    if windows.is_empty() {
        return HashMap::new();
    }
    let mut pipeline = redis::pipe();
    for start in windows {
        pipeline.cmd("GET").arg(keys::metric(&project.id, metric, granularity, *start));
    }
    let mut found = HashMap::with_capacity(windows.len());
    for (start, answer) in windows.iter().zip(redis.run_each(&pipeline).await) {
        match answer {
            Ok(value) => {
                let value = redis::from_redis_value::<Option<String>>(value).ok().flatten();
                found.extend(value.and_then(|value| Some((*start, parse(&value, project.generation)?))));
            }
            Err(error) => tracing::debug!(%error, "a hot window is read from Postgres"),
        }
    }
    found
}

fn parse(value: &str, generation: i32) -> Option<HotWindow> {
    serde_json::from_str::<HotWindow>(value).ok().filter(|window| window.generation == generation)
}

/// The hash of a live session, by its key, of this generation.
pub async fn session(redis: &Redis, project: &Project, session_key: &str) -> Option<HashMap<String, String>> {
    hash(redis, project, keys::session(&project.id, session_key)).await
}

/// The cart of a session, by its key.
pub async fn cart(redis: &Redis, project: &Project, session_key: &str) -> Option<Cart> {
    carts::hash::cart(&hash(redis, project, keys::cart(&project.id, session_key)).await?)
}

async fn hash(redis: &Redis, project: &Project, key: String) -> Option<HashMap<String, String>> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("HGETALL").arg(key);
    match redis.run::<(HashMap<String, Vec<u8>>,)>(&pipeline).await {
        Ok((hash,)) => packed::unpack(hash)
            .filter(|hash| hash.get("generation").is_some_and(|text| text.parse() == Ok(project.generation))),
        Err(error) => {
            tracing::debug!(%error, "a session or cart is read from Postgres");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_counts_only_in_its_generation() {
        let value = r#"{"count":3,"unique_users":2,"generation":1,"epoch":0,"version":9}"#;
        let window = parse(value, 1).expect("a copy");
        assert_eq!((window.count, window.unique_users), (3, Some(2)));
        assert_eq!(window.value(Aggregation::Unique), Some(2.into()));
        assert_eq!(parse(value, 2), None);
        assert_eq!(parse("{\"count\":3}", 1), None);
    }
}
