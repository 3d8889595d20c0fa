//! What Redis shows of a project.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use chrono::DateTime;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};
use serde_json::Value;
use tidemill_common::redis::Redis;
use tidemill_testkit::Stack;

use crate::oracle::{EVENTS, Reading, WindowKey};

/// Everything that Redis shows.
#[derive(Debug, Default)]
pub struct Shown {
    /// The fields of live sessions, by session key; times in microseconds.
    pub sessions: BTreeMap<String, BTreeMap<String, String>>,
    /// The fields of carts, by session key.
    pub carts: BTreeMap<String, BTreeMap<String, String>>,
    /// Hot windows.
    pub windows: BTreeMap<WindowKey, Reading>,
    /// Users that were seen.
    pub users: BTreeSet<String>,
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Commands per round trip: few enough to be answered in time on a busy machine.
const CHUNK: usize = 500;
/// Fields by which the stream tells which state of a hash is the newer one.
const STAMP: [&str; 3] = ["epoch", "generation", "version"];

/// What Redis shows of the stack's project now.
pub async fn shown(stack: &Stack) -> anyhow::Result<Shown> {
    let redis = Redis::background(&stack.connections.redis_url)?;
    let project = &stack.project;
    let mut sessions = hashes(&redis, &format!("analytics:session:{project}:")).await?;
    for (key, fields) in &mut sessions {
        for name in ["firstEventAt", "lastEventAt"] {
            if let Some(value) = fields.get_mut(name) {
                *value = DateTime::parse_from_rfc3339(value).context(key.clone())?.timestamp_micros().to_string();
            }
        }
    }
    let mut users = redis::pipe();
    users.cmd("SMEMBERS").arg(format!("analytics:seen_users:{project}"));
    let (users,) = redis.run(&users).await?;
    Ok(Shown {
        sessions,
        carts: hashes(&redis, &format!("cart:{project}:")).await?,
        windows: windows(&redis, project).await?,
        users,
    })
}

/// A connection on which answers may take as long as a busy machine needs.
pub async fn connect(url: &str) -> anyhow::Result<MultiplexedConnection> {
    let patient =
        AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE)).set_connection_timeout(Some(PATIENCE));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await?)
}

/// The hashes below a prefix, by what comes behind it.
async fn hashes(redis: &Redis, prefix: &str) -> anyhow::Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut hashes = BTreeMap::new();
    for (key, mut fields) in values::<BTreeMap<String, String>>(redis, prefix, "HGETALL").await? {
        fields.retain(|name, _| !STAMP.contains(&name.as_str()));
        if !fields.is_empty() {
            // else it has expired since
            hashes.insert(key[prefix.len()..].to_owned(), fields);
        }
    }
    Ok(hashes)
}

/// The keys below a prefix, each with what a command says of it.
async fn values<T: FromRedisValue>(redis: &Redis, prefix: &str, command: &str) -> anyhow::Result<Vec<(String, T)>> {
    let keys = scan(redis, prefix).await?;
    let mut values = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(CHUNK) {
        let mut pipeline = redis::pipe();
        for key in chunk {
            pipeline.cmd(command).arg(key);
        }
        values.extend(redis.run::<Vec<T>>(&pipeline).await?);
    }
    Ok(keys.into_iter().zip(values).collect())
}

async fn windows(redis: &Redis, project: &str) -> anyhow::Result<BTreeMap<WindowKey, Reading>> {
    let prefix = format!("metric:{project}:");
    let values = values::<Option<String>>(redis, &prefix, "GET").await?;
    let mut windows = BTreeMap::new();
    for (key, value) in values {
        let parts: Vec<&str> = key[prefix.len()..].split(':').collect();
        let ([name, granularity, start], Some(value)) = (&parts[..], value) else { continue };
        let value: Value = serde_json::from_str(&value).with_context(|| key.clone())?;
        let (name, granularity, start) = ((*name).to_owned(), (*granularity).to_owned(), start.parse()?);
        let count = value["count"].as_i64().with_context(|| format!("{key} has no count"))?;
        // Metrics say what they compute; what does not are the events, all of them or those of a type.
        let declared = value["value"].as_str().and_then(|text| text.parse::<f64>().ok());
        let (is_metric, users) = (value.get("aggregation").is_some(), value["unique_users"].as_f64());
        let value = if is_metric { declared } else { users };
        if count == 0 && value.unwrap_or_default() == 0.0 {
            continue; // sessions that have merged away
        }
        let (metric, dimension, of) = match () {
            () if is_metric || name == EVENTS => (name, "", String::new()),
            () => (EVENTS.to_owned(), "event_type", name),
        };
        let key = WindowKey { metric, dimension: dimension.to_owned(), value: of, granularity, start };
        windows.insert(key, Reading { count, value });
    }
    Ok(windows)
}

/// The keys below a prefix that lie where readers look for them.
async fn scan(redis: &Redis, prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut keys = BTreeSet::new();
    for node in redis.masters().await? {
        let (on, mut cursor) = (redis.on(&node)?, 0u64);
        loop {
            let mut ask = redis::pipe();
            ask.cmd("SCAN").arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(5_000);
            let ((next, found),): ((u64, Vec<String>),) = on.run(&ask).await?;
            keys.extend(found.into_iter().filter(|key| redis.node_of(key.as_bytes()).as_ref() == Some(&node.address)));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(keys.into_iter().collect())
}
