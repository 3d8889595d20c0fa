//! Redis: version, role, memory.

use std::collections::HashMap;

use tidemill_common::config::Connections;
use tidemill_common::redis::Redis;

use super::{Finding, Found};

const CHECK: &str = "redis";
/// The oldest major version that is known to do.
const OLDEST: u32 = 6;

pub async fn check(connections: &Connections) -> Found<()> {
    let asked = async {
        let redis = Redis::background(&connections.redis_url).map_err(|error| error.to_string())?;
        let info = redis.run::<(String,)>(redis::pipe().cmd("INFO")).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(info.0)
    };
    match asked.await {
        Ok(info) => (judge(&read(&info)), ()),
        // The URL may hold a password.
        Err(error) => (vec![Finding::failure(CHECK, error, "mend REDIS_URL, or start Redis")], ()),
    }
}

fn read(info: &str) -> HashMap<&str, &str> {
    info.lines().filter_map(|line| line.trim_end().split_once(':')).collect()
}

fn judge(info: &HashMap<&str, &str>) -> Vec<Finding> {
    let get = |name: &str| info.get(name).copied().unwrap_or_default();
    let (version, mut findings) = (get("redis_version"), Vec::new());
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    findings.push(match major >= OLDEST {
        true => Finding::ok(CHECK, format!("version {version}, {}", get("redis_mode"))),
        false => Finding::failure(CHECK, format!("version {version:?} is too old"), "upgrade to Redis 6 or later"),
    });
    if get("role") == "slave" {
        let what = "REDIS_URL leads to a replica, which takes no writes";
        findings.push(Finding::failure(CHECK, what, "name the master, or the sentinels"));
    }
    let limited = get("maxmemory").parse::<u64>().is_ok_and(|bytes| bytes > 0);
    match (limited, get("maxmemory_policy")) {
        (true, "noeviction") => {
            let what = "when its memory is full it takes no more writes: hints of duplicates and hot copies stop";
            findings.push(Finding::warning(CHECK, what, "set maxmemory-policy to allkeys-lru: nothing is lost by it"));
        }
        (false, _) => {
            let what = "its memory has no limit, so it may be killed by its system";
            findings.push(Finding::warning(CHECK, what, "set maxmemory, and maxmemory-policy allkeys-lru"));
        }
        (true, policy) => findings.push(Finding::ok(CHECK, format!("memory is limited, {policy}"))),
    }
    if get("cluster_enabled") == "1" && get("cluster_state").starts_with("fail") {
        findings.push(Finding::failure(
            CHECK,
            "the cluster has slots without a master",
            "see 'redis-cli cluster info'",
        ));
    }
    if get("loading") == "1" {
        findings.push(Finding::warning(CHECK, "it is loading its data", "wait"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn what_redis_says_of_itself_is_judged() {
        let states = |info: &str| judge(&read(info)).iter().map(|finding| finding.state).collect::<Vec<_>>();
        let good = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory:1000\r\n\
                    maxmemory_policy:allkeys-lru\r\nloading:0\r\ncluster_enabled:0\r\n";
        assert_eq!(states(good), [State::Ok, State::Ok]);
        assert_eq!(states(&good.replace("allkeys-lru", "noeviction")), [State::Ok, State::Warning]);
        assert_eq!(states(&good.replace("role:master", "role:slave")), [State::Ok, State::Failure, State::Ok]);
        assert_eq!(states(&good.replace("7.0.15", "5.0.1"))[0], State::Failure);
    }
}
