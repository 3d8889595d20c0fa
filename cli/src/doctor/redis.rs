//! Redis: how it is made, and each node's version, role, memory.

use std::collections::BTreeMap;

use tidemill_common::config::Connections;
use tidemill_common::redis::{Mode, Node, RING_BOUND, Redis, Role};

use super::{Finding, Found};

const CHECK: &str = "redis";
/// The oldest major version that is known to do.
const OLDEST: u32 = 6;

pub async fn check(connections: &Connections) -> Found<()> {
    let asked = async {
        let redis = Redis::background(&connections.redis_url).map_err(|error| error.to_string())?;
        let nodes = redis.nodes().await.map_err(|error| error.to_string())?;
        Ok::<_, String>((redis, nodes))
    };
    match asked.await {
        Ok((redis, nodes)) => {
            let mut findings = whole(redis.mode(), &nodes);
            for node in &nodes {
                findings.extend(of_node(&redis, node, nodes.len() > 1).await);
            }
            (findings, ())
        }
        // The URL may hold a password.
        Err(error) => (vec![Finding::failure(CHECK, error, "mend REDIS_URL, or start Redis")], ()),
    }
}

/// What there is to say of all nodes together.
fn whole(mode: Mode, nodes: &[Node]) -> Vec<Finding> {
    let masters: Vec<&Node> = nodes.iter().filter(|node| node.role == Role::Master).collect();
    let replicas = nodes.len() - masters.len();
    let mut findings = vec![Finding::ok(CHECK, format!("{mode}: {} masters, {replicas} replicas", masters.len()))];
    let share: f64 = masters.iter().map(|node| node.share).sum();
    if mode == Mode::Cluster && share < 0.999_99 {
        let what = format!("nobody has {:.1} % of the cluster's slots", 100.0 * (1.0 - share));
        findings.push(Finding::failure(CHECK, what, "run 'redis-cli --cluster fix'"));
    }
    let alone = |master: &&&Node| !nodes.iter().any(|node| node.master.as_ref() == Some(&master.address));
    if matches!(mode, Mode::Sentinel | Mode::Cluster) {
        for master in masters.iter().filter(alone) {
            let what = format!("{} has no replica, so nobody can take its place", master.address);
            findings.push(Finding::warning(CHECK, what, "add a replica to it"));
        }
    }
    let uneven = |master: &&&Node| (master.share * masters.len() as f64 - 1.0).abs() > RING_BOUND;
    if mode == Mode::Ring {
        for master in masters.iter().filter(uneven) {
            let what = format!("{} has {:.1} % of the ring", master.address, 100.0 * master.share);
            findings.push(Finding::warning(CHECK, what, "name the nodes otherwise, or give it the memory for it"));
        }
    }
    findings
}

/// What a node says of itself; it is named where there are others.
async fn of_node(redis: &Redis, node: &Node, is_named: bool) -> Vec<Finding> {
    let asked = async { redis.on(node)?.info("default").await };
    let mut findings = match asked.await {
        Ok(info) => judge(&info, node.role == Role::Replica && is_named),
        Err(error) if !is_named => vec![Finding::failure(CHECK, error.to_string(), "mend REDIS_URL, or start Redis")],
        Err(error) if node.role == Role::Replica => vec![Finding::warning(CHECK, error.to_string(), "start it")],
        Err(error) => vec![Finding::failure(CHECK, error.to_string(), "start it, or take it out of REDIS_URL")],
    };
    if is_named {
        findings.iter_mut().for_each(|finding| finding.what = format!("{}: {}", node.address, finding.what));
    }
    findings
}

fn judge(info: &BTreeMap<String, String>, is_a_replica: bool) -> Vec<Finding> {
    let get = |name: &str| info.get(name).map(String::as_str).unwrap_or_default();
    let (version, mut findings) = (get("redis_version"), Vec::new());
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    findings.push(match major >= OLDEST {
        true => Finding::ok(CHECK, format!("version {version}, {}", get("redis_mode"))),
        false => Finding::failure(CHECK, format!("version {version:?} is too old"), "upgrade to Redis 6 or later"),
    });
    if is_a_replica && get("master_link_status") != "up" {
        let what = "a replica that does not reach its master, so it cannot take its place";
        findings.push(Finding::warning(CHECK, what, "see its log"));
    }
    if !is_a_replica && get("role") == "slave" {
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
    use tidemill_common::redis::read_info;

    use super::super::State;
    use super::*;

    #[test]
    fn what_redis_says_of_itself_is_judged() {
        let states =
            |info: &str| judge(&read_info(info), false).iter().map(|finding| finding.state).collect::<Vec<_>>();
        let good = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory:1000\r\n\
                    maxmemory_policy:allkeys-lru\r\nloading:0\r\ncluster_enabled:0\r\n";
        assert_eq!(states(good), [State::Ok, State::Ok]);
        assert_eq!(states(&good.replace("allkeys-lru", "noeviction")), [State::Ok, State::Warning]);
        assert_eq!(states(&good.replace("role:master", "role:slave")), [State::Ok, State::Failure, State::Ok]);
        assert_eq!(states(&good.replace("7.0.15", "5.0.1"))[0], State::Failure);
        let replica =
            |info: &str| judge(&read_info(info), true).iter().map(|finding| finding.state).collect::<Vec<_>>();
        let follows = good.replace("role:master", "role:slave\r\nmaster_link_status:up");
        assert_eq!(replica(&follows), [State::Ok, State::Ok]);
        assert_eq!(replica(&follows.replace("status:up", "status:down")), [State::Ok, State::Warning, State::Ok]);
    }

    #[test]
    fn all_nodes_together_are_judged() {
        let node = |address: &str, master: Option<&str>, share| Node {
            address: address.to_owned(),
            role: if master.is_some() { Role::Replica } else { Role::Master },
            master: master.map(str::to_owned),
            slots: Vec::new(),
            share,
            tag: String::new(),
            ring: String::new(),
        };
        let states = |mode, nodes: &[Node]| whole(mode, nodes).iter().map(|finding| finding.state).collect::<Vec<_>>();
        let (a, b, c) = (node("a", None, 0.5), node("b", None, 0.5), node("c", Some("a"), 0.5));
        let d = node("d", Some("b"), 0.5);
        assert_eq!(states(Mode::Cluster, &[a.clone(), b.clone(), c.clone(), d.clone()]), [State::Ok]);
        assert_eq!(
            states(Mode::Cluster, &[a.clone(), b.clone(), c.clone()]),
            [State::Ok, State::Warning],
            "b is alone"
        );
        assert_eq!(states(Mode::Cluster, &[a.clone(), c.clone()]), [State::Ok, State::Failure], "half is missing");
        assert_eq!(states(Mode::Ring, &[a.clone(), b.clone()]), [State::Ok]);
        let uneven = [node("a", None, 0.7), node("b", None, 0.3)];
        assert_eq!(states(Mode::Ring, &uneven), [State::Ok, State::Warning, State::Warning]);
    }
}
