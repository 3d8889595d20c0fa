//! How each node is: how fast it answers, its memory, what it does, how far replicas are behind; and what is odd about
//! it, with what to do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tidemill_common::redis::{Mode, Redis, RedisFailure, Role, SLOTS};

use super::nodes::{self, Node};

/// Answers that are timed.
const PINGS: usize = 200;
/// Counters are looked at twice, so long apart.
const MEASURE: Duration = Duration::from_secs(1);
/// A p99 above this is odd: the gateway waits for Redis, in milliseconds.
const SLOW_MS: f64 = 20.0;
/// A share of its memory above this is odd.
const FULL: f64 = 0.9;
/// A replica is behind if it lacks so many bytes, or has heard nothing for so many seconds.
const BEHIND_BYTES: u64 = 10 << 20;
const BEHIND_SECONDS: u64 = 10;

/// A node. What it does not say is not there.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// `host:port`
    pub address: String,
    /// What it is.
    pub role: Option<Role>,
    /// Its version.
    pub version: String,
    /// Time to an answer, in milliseconds: half of them, and all but one in a hundred.
    pub p50_ms: Option<f64>,
    /// See there.
    pub p99_ms: Option<f64>,
    /// In bytes.
    pub memory: u64,
    /// In bytes; 0: no limit.
    pub memory_max: u64,
    /// What the system gives it, by what it uses.
    pub fragmentation: Option<f64>,
    /// Commands a second, during the look.
    pub ops: Option<f64>,
    /// Clients that are connected.
    pub clients: u64,
    /// Keys thrown out for lack of memory since it started.
    pub evicted: u64,
    /// And during the look.
    pub evicting: u64,
    /// Of 100 reads, how many found something since it started.
    pub hit_rate: Option<f64>,
    /// Slots it has, of a cluster.
    pub slots: Option<u64>,
    /// Of 100 keys, how many are its, or its master's.
    pub share: Option<f64>,
    /// Of a replica, bytes that it lacks.
    pub lag_bytes: Option<u64>,
    /// And seconds since its master was heard of.
    pub lag_seconds: Option<u64>,
    /// Where it stands in what its master sends.
    #[serde(skip)]
    pub offset: Option<u64>,
    /// What is odd, and what to do.
    pub anomalies: Vec<String>,
}

/// What a node says.
pub type Info = BTreeMap<String, String>;

/// Looks at all nodes of a Redis, for a second or so.
pub async fn look(redis: &Redis) -> Result<Vec<Status>, RedisFailure> {
    let all = &nodes::nodes(redis).await?;
    let first = futures::future::join_all(all.iter().map(|node| node.client.info("everything"))).await;
    tokio::time::sleep(MEASURE).await;
    let looks = all.iter().zip(first).map(|(node, first)| async move {
        let (times, second) = (pings(node).await, node.client.info("everything").await);
        match (first, second) {
            (Ok(first), Ok(second)) => judge(&node.at.address, &first, &second, &times),
            (_, Err(error)) | (Err(error), _) => silent(node, &error.to_string()),
        }
    });
    let mut found = futures::future::join_all(looks).await;
    follow(all, &mut found);
    if redis.mode() == Mode::Cluster {
        covered(&mut found);
    }
    Ok(found)
}

fn silent(node: &Node, error: &str) -> Status {
    let anomalies = vec![format!("it does not answer ({error}): start it, or take it out")];
    Status { address: node.at.address.clone(), role: Some(node.at.role), anomalies, ..Status::default() }
}

/// Times to answers, in milliseconds, in order; none of those that failed.
async fn pings(node: &Node) -> Vec<f64> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        let answer: Result<(), RedisFailure> = node.client.ping().await;
        if answer.is_ok() {
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    times
}

/// What a node says, twice a second or so apart, and how long it takes to answer, in milliseconds in order.
pub fn judge(address: &str, first: &Info, second: &Info, times: &[f64]) -> Status {
    let number = |info: &Info, name: &str| info.get(name).and_then(|value| value.parse::<u64>().ok());
    let now = |name: &str| number(second, name);
    let rose = |name: &str| Some(now(name)?.saturating_sub(number(first, name)?));
    let seconds = rose("server_time_usec").filter(|micros| *micros > 0).map_or(1.0, |micros| micros as f64 / 1e6);
    let rank = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let (hits, misses) = (now("keyspace_hits").unwrap_or(0), now("keyspace_misses").unwrap_or(0));
    let text = |name: &str| second.get(name).map(String::as_str).unwrap_or_default();
    let mut status = Status {
        address: address.to_owned(),
        role: Some(if text("role") == "slave" { Role::Replica } else { Role::Master }),
        version: text("redis_version").to_owned(),
        p50_ms: rank(0.5).map(|ms| rounded(*ms)),
        p99_ms: rank(0.99).map(|ms| rounded(*ms)),
        memory: now("used_memory").unwrap_or(0),
        memory_max: now("maxmemory").unwrap_or(0),
        fragmentation: text("mem_fragmentation_ratio").parse().ok(),
        ops: rose("total_commands_processed").map(|commands| rounded(commands as f64 / seconds)),
        clients: now("connected_clients").unwrap_or(0),
        evicted: now("evicted_keys").unwrap_or(0),
        evicting: rose("evicted_keys").unwrap_or(0),
        hit_rate: (hits + misses > 0).then(|| rounded(hits as f64 * 100.0 / (hits + misses) as f64)),
        lag_seconds: now("master_last_io_seconds_ago"),
        offset: now("slave_repl_offset").or(now("master_repl_offset")),
        ..Status::default()
    };
    status.anomalies = anomalies(&status, second);
    status
}

fn anomalies(status: &Status, info: &Info) -> Vec<String> {
    let says = |name: &str, value: &str| info.get(name).is_some_and(|said| said == value);
    let mut odd = Vec::new();
    if status.p99_ms.is_some_and(|ms| ms > SLOW_MS) {
        odd.push(format!("p99 above {SLOW_MS} ms: look at its CPU, at SLOWLOG GET and at its network"));
    }
    if status.evicting > 0 {
        odd.push(
            "keys are thrown out now: nothing is lost by it, but reads go to Postgres; give it more memory".to_owned(),
        );
    } else if status.evicted > 0 {
        odd.push("keys were thrown out since it started: give it more memory if that goes on".to_owned());
    }
    if status.memory_max > 0 && status.memory as f64 > status.memory_max as f64 * FULL {
        let what =
            "above 90 % of its memory: raise maxmemory, add a node, or set TIDEMILL_STREAM__COMPRESS_SESSIONS_ABOVE";
        odd.push(what.to_owned());
    }
    // A small one is always fragmented.
    if status.memory > 64 << 20 && status.fragmentation.is_some_and(|ratio| ratio > 1.5) {
        odd.push("memory is fragmented: set activedefrag yes, or restart it when a replica can take over".to_owned());
    }
    if status.role == Some(Role::Replica) && says("master_link_status", "down") {
        odd.push("its link to the master is down: it shows old values; look at the master and the network".to_owned());
    }
    for (name, what) in
        [("rdb_last_bgsave_status", "its last snapshot"), ("aof_last_write_status", "its last write of the AOF")]
    {
        if says(name, "err") {
            odd.push(format!(
                "{what} failed: look at its log and its disk; with stop-writes-on-bgsave-error it takes no writes"
            ));
        }
    }
    if says("loading", "1") {
        odd.push("it is loading its data: wait".to_owned());
    }
    odd
}

/// How far replicas are behind their masters.
fn follow(all: &[Node], found: &mut [Status]) {
    let offsets: BTreeMap<String, u64> =
        found.iter().filter_map(|status| Some((status.address.clone(), status.offset?))).collect();
    for (node, status) in all.iter().zip(found) {
        let slots = u64::from(node.at.slot_count());
        status.slots = (slots > 0).then_some(slots);
        status.share = Some(rounded(node.at.share * 100.0));
        let master = node.at.master.as_ref().and_then(|master| offsets.get(master));
        status.lag_bytes = master.zip(status.offset).map(|(master, own)| master.saturating_sub(own));
        let behind = status.lag_bytes.is_some_and(|bytes| bytes > BEHIND_BYTES)
            || status.lag_seconds.is_some_and(|seconds| seconds > BEHIND_SECONDS);
        if behind {
            let what = "it is far behind its master: look at the network, and at client-output-buffer-limit replica";
            status.anomalies.push(what.to_owned());
        }
    }
}

/// Whether every slot has a master; said once.
fn covered(found: &mut [Status]) {
    let masters = found.iter().filter(|status| status.role == Some(Role::Master));
    let missing = u64::from(SLOTS).saturating_sub(masters.filter_map(|status| status.slots).sum());
    if missing > 0
        && let Some(first) = found.first_mut()
    {
        let what = "no reads or writes of their keys: start their master, or see redis-cli --cluster check and fix";
        first.anomalies.push(format!("{missing} slots have no master, so {what}"));
    }
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use tidemill_common::redis::read_info;

    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nrole:master\r\nserver_time_usec:2000000\r\nused_memory:200000000\r\n\
        maxmemory:1000000000\r\nmem_fragmentation_ratio:1.1\r\nconnected_clients:3\r\nevicted_keys:0\r\n\
        total_commands_processed:900\r\nkeyspace_hits:75\r\nkeyspace_misses:25\r\nmaster_repl_offset:1000\r\n\
        rdb_last_bgsave_status:ok\r\nloading:0\r\ncluster_enabled:0\r\n";

    fn status(now: &str) -> Status {
        let before = GOOD.replace("usec:2000000", "usec:1000000").replace("processed:900", "processed:400");
        let times: Vec<f64> = (1..=100).map(|ms| f64::from(ms) / 100.0).collect();
        judge("a:1", &read_info(&before), &read_info(now), &times)
    }

    #[test]
    fn a_node_is_told_by_what_it_says() {
        let good = status(GOOD);
        assert_eq!(good.anomalies, Vec::<String>::new());
        assert_eq!(
            (good.ops, good.hit_rate, good.p50_ms, good.p99_ms),
            (Some(500.0), Some(75.0), Some(0.51), Some(1.0))
        );
    }

    #[test]
    fn what_is_odd_is_named() {
        let odd = |from: &str, to: &str| status(&GOOD.replace(from, to)).anomalies.join("; ");
        assert!(odd("evicted_keys:0", "evicted_keys:5").contains("thrown out now"));
        assert!(odd("used_memory:200", "used_memory:950").contains("maxmemory"));
        assert!(odd("ratio:1.1", "ratio:2.0").contains("fragmented"));
        assert!(odd("role:master", "role:slave\r\nmaster_link_status:down").contains("link"));
        assert!(odd("status:ok", "status:err").contains("snapshot"));
        assert!(odd("loading:0", "loading:1").contains("loading"));
        let master = |slots| Status { role: Some(Role::Master), slots: Some(slots), ..Status::default() };
        let mut uncovered = [master(5_461), master(5_462)];
        covered(&mut uncovered);
        assert!(uncovered[0].anomalies[0].contains("5461 slots have no master"), "{uncovered:?}");
        let mut whole = [master(8_192), master(8_192)];
        covered(&mut whole);
        assert!(whole[0].anomalies.is_empty());
        let slow = judge("a:1", &read_info(GOOD), &read_info(GOOD), &[30.0]);
        assert!(slow.anomalies[0].contains("p99"), "{slow:?}");
    }
}
