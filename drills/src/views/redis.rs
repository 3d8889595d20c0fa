//! What Redis shows of a project.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use chrono::DateTime;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tidemill_testkit::Stack;

use crate::oracle::{ALL, WindowKey};

/// Everything that Redis shows.
#[derive(Debug, Default)]
pub struct Shown {
    /// The fields of live sessions, by session id; times in microseconds.
    pub sessions: BTreeMap<String, BTreeMap<String, String>>,
    /// Count and different users of hot windows.
    pub windows: BTreeMap<WindowKey, (i64, u64)>,
    /// Users that were seen.
    pub users: BTreeSet<String>,
}

/// The fields that readers rely on; others are the stream's own.
const FIELDS: [&str; 9] = [
    "sessionId",
    "userId",
    "firstEventAt",
    "lastEventAt",
    "pageViews",
    "totalEvents",
    "hasConversion",
    "isNew",
    "currentPage",
];

/// What Redis shows of the stack's project now.
pub async fn shown(stack: &Stack) -> anyhow::Result<Shown> {
    let client = redis::Client::open(stack.connections.redis_url.clone())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let project = &stack.project;
    let seen_users = format!("analytics:seen_users:{project}");
    let users = redis::cmd("SMEMBERS").arg(seen_users).query_async(&mut redis).await?;
    Ok(Shown { sessions: sessions(&mut redis, project).await?, windows: windows(&mut redis, project).await?, users })
}

async fn sessions(
    redis: &mut MultiplexedConnection,
    project: &str,
) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
    let prefix = format!("analytics:session:{project}:");
    let keys = scan(redis, &prefix).await?;
    let mut pipeline = redis::pipe();
    for key in &keys {
        pipeline.hgetall(key);
    }
    let hashes: Vec<BTreeMap<String, String>> =
        if keys.is_empty() { Vec::new() } else { pipeline.query_async(redis).await? };
    let mut sessions = BTreeMap::new();
    for (key, mut fields) in keys.into_iter().zip(hashes) {
        if fields.is_empty() {
            continue; // it has expired since
        }
        fields.retain(|name, _| FIELDS.contains(&name.as_str()));
        for name in ["firstEventAt", "lastEventAt"] {
            if let Some(value) = fields.get_mut(name) {
                *value = DateTime::parse_from_rfc3339(value).context(key.clone())?.timestamp_micros().to_string();
            }
        }
        sessions.insert(key[prefix.len()..].to_owned(), fields);
    }
    Ok(sessions)
}

async fn windows(redis: &mut MultiplexedConnection, project: &str) -> anyhow::Result<BTreeMap<WindowKey, (i64, u64)>> {
    let prefix = format!("metric:{project}:");
    let keys = scan(redis, &prefix).await?;
    let mut pipeline = redis::pipe();
    for key in &keys {
        pipeline.get(key);
    }
    let values: Vec<Option<String>> = if keys.is_empty() { Vec::new() } else { pipeline.query_async(redis).await? };
    let mut windows = BTreeMap::new();
    for (key, value) in keys.into_iter().zip(values) {
        let parts: Vec<&str> = key[prefix.len()..].split(':').collect();
        let ([name, granularity, start], Some(value)) = (&parts[..], value) else { continue };
        let value: Value = serde_json::from_str(&value).with_context(|| key.clone())?;
        let name = if *name == "events" { ALL } else { name };
        let numbers = (value["count"].as_i64(), value["unique_users"].as_u64());
        let (Some(count), Some(users)) = numbers else { continue };
        windows.insert((name.to_owned(), (*granularity).to_owned(), start.parse()?), (count, users));
    }
    Ok(windows)
}

async fn scan(redis: &mut MultiplexedConnection, prefix: &str) -> anyhow::Result<Vec<String>> {
    let (mut keys, mut cursor) = (BTreeSet::new(), 0u64);
    loop {
        let pattern = format!("{prefix}*");
        let ask = redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(5_000).to_owned();
        let (next, found): (u64, Vec<String>) = ask.query_async(redis).await?;
        keys.extend(found);
        cursor = next;
        if cursor == 0 {
            return Ok(keys.into_iter().collect());
        }
    }
}
