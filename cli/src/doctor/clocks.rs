//! Clocks: how far those of Postgres, Redis and the brokers are from ours.

use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, TopicPartition};
use tidemill_common::redis::Redis;

use super::{Finding, Found};
use crate::store::{self, Project};

const CHECK: &str = "clocks";
/// More is told of,
const NOTABLE: Duration = Duration::from_secs(2);
/// and more than this is wrong: windows and keys would end early or late.
const WRONG: Duration = Duration::from_secs(60);

pub async fn check(connections: &Connections, projects: &[Project]) -> Found<()> {
    let mut findings = Vec::new();
    for (whose, skew) in [("Postgres", postgres(connections).await), ("Redis", redis(connections).await)] {
        // What does not answer is told of elsewhere.
        findings.extend(skew.ok().map(|ms| judge(whose, ms)));
    }
    findings.extend(brokers(connections, projects).await.unwrap_or_default());
    (findings, ())
}

fn judge(whose: &str, skew_ms: i64) -> Finding {
    let (skew, seconds) = (Duration::from_millis(skew_ms.unsigned_abs()), skew_ms as f64 / 1_000.0);
    let what = format!(
        "the clock of {whose} is {:.1} s {} ours",
        seconds.abs(),
        if skew_ms < 0 { "behind" } else { "ahead of" }
    );
    let what_to_do = "run NTP on both machines";
    match skew {
        skew if skew > WRONG => Finding::failure(CHECK, what, what_to_do),
        skew if skew > NOTABLE => Finding::warning(CHECK, what, what_to_do),
        _ => Finding::ok(CHECK, what),
    }
}

/// Theirs less ours, in milliseconds, where ours was read before and after.
fn skew(before: i64, theirs: i64, after: i64) -> i64 {
    if (before..=after).contains(&theirs) { 0 } else { theirs - (before + after) / 2 }
}

async fn postgres(connections: &Connections) -> anyhow::Result<i64> {
    let mut db = store::connect(&connections.database_url).await?;
    let before = Utc::now().timestamp_millis();
    let theirs: chrono::DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut db).await?;
    Ok(skew(before, theirs.timestamp_millis(), Utc::now().timestamp_millis()))
}

async fn redis(connections: &Connections) -> anyhow::Result<i64> {
    let all = Redis::background(&connections.redis_url)?;
    // One of several will do: they are meant to be alike.
    let nodes = all.masters().await?;
    let redis = nodes.first().map(|node| all.on(node)).transpose()?.unwrap_or(all);
    redis.ping().await?;
    let before = Utc::now().timestamp_millis();
    let ((seconds, micros),): ((i64, i64),) = redis.run(redis::pipe().cmd("TIME")).await?;
    Ok(skew(before, seconds * 1_000 + micros / 1_000, Utc::now().timestamp_millis()))
}

/// Nothing is written to ask brokers for their time, so only records show it: none can have been appended later than now.
async fn brokers(connections: &Connections, projects: &[Project]) -> anyhow::Result<Vec<Finding>> {
    let partitions: Vec<TopicPartition> = projects.iter().flat_map(Project::events_partitions).collect();
    let history = History::new(connections.kafka.clone());
    let ask = move || {
        let bounds = history.bounds(&partitions)?;
        let last = bounds.into_iter().filter(|(_, (low, high))| low < high).map(|(at, (_, high))| (at, high - 1));
        // Few are enough: each broker leads some.
        history.append_times(&last.take(20).collect::<Vec<_>>())
    };
    let times = tokio::task::spawn_blocking(ask).await?.context("Kafka does not answer")?;
    let now = Utc::now().timestamp_millis();
    let Some(newest) = times.into_values().max() else { return Ok(Vec::new()) };
    Ok(vec![match newest > now {
        true => judge("a broker", newest - now),
        false => Finding::ok(CHECK, "no broker's clock is ahead of ours"),
    }])
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_clock_that_lies_between_is_right() {
        assert_eq!(skew(100, 105, 110), 0);
        assert_eq!(skew(100, 5_105, 110), 5_000);
        assert_eq!(skew(100, 0, 100), -100);
        let states: Vec<State> = [0, 1_999, -3_000, 61_000].map(|ms| judge("it", ms).state).into();
        assert_eq!(states, [State::Ok, State::Ok, State::Warning, State::Failure]);
    }
}
