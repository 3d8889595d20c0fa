//! Asking nodes who has which keys: a cluster for its slots, sentinels for their master.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use redis::{FromRedisValue, Value, from_redis_value};

use super::RedisFailure;
use super::node::{NodeClient, failure};
use super::slots::Slots;

/// The master that most sentinels name; of as many, any.
pub async fn master(sentinels: &[Arc<NodeClient>], name: &str) -> Result<String, RedisFailure> {
    let mut ask = redis::pipe();
    ask.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let mut named = BTreeMap::<String, usize>::new();
    let mut last = failure("no sentinel knows a master of this name: mend REDIS_URL");
    for answer in join_all(sentinels.iter().map(|sentinel| sentinel.send(&ask))).await {
        match answer.map(|mut values| values.pop().and_then(read::<(String, u16)>)) {
            Ok(Some((host, port))) => *named.entry(format!("{host}:{port}")).or_default() += 1,
            Ok(None) => {}
            Err(error) => last = error,
        }
    }
    named.into_iter().max_by_key(|(_, votes)| *votes).map(|(master, _)| master).ok_or(last)
}

/// The slots as the node says that knows of the latest change.
pub async fn slots(nodes: &[Arc<NodeClient>]) -> Result<Slots, RedisFailure> {
    let mut ask = redis::pipe();
    ask.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    let (mut found, mut last) = (None, failure("no node says which slots there are: is it a cluster?"));
    for (node, answer) in nodes.iter().zip(join_all(nodes.iter().map(|node| node.send(&ask))).await) {
        let mut values = match answer {
            Ok(values) => values.into_iter(),
            Err(error) => {
                last = error;
                continue;
            }
        };
        let info = values.next().and_then(read::<String>).unwrap_or_default();
        let Some(slots) = values.next().and_then(|answer| Slots::read(&answer, &node.address)) else { continue };
        let is_newer = |(newest, _): &((bool, u64), Slots)| age(&info) > *newest;
        if found.as_ref().is_none_or(is_newer) {
            found = Some((age(&info), slots));
        }
    }
    found.map(|(_, slots)| slots).ok_or(last)
}

/// A node that the cluster has lost knows less than one that it has; else the latest epoch tells.
fn age(info: &str) -> (bool, u64) {
    let get = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
    let epoch = get("cluster_current_epoch").and_then(|epoch| epoch.parse().ok());
    (get("cluster_state") == Some("ok"), epoch.unwrap_or(0))
}

/// What a master says of its replicas (`host:port` each), or a replica of its master.
pub enum Role {
    Master(Vec<String>),
    ReplicaOf(String),
}

/// Asks a node what it is.
pub async fn role(node: &NodeClient) -> Result<Role, RedisFailure> {
    let mut values = node.send(redis::pipe().cmd("ROLE")).await?;
    let Some(Value::Array(parts)) = values.pop() else { return Err(failure("ROLE was answered by something else")) };
    let mut parts = parts.into_iter();
    let kind = parts.next().and_then(read::<String>).unwrap_or_default();
    if kind == "slave" {
        let master = (parts.next().and_then(read::<String>), parts.next().and_then(read::<u16>));
        return Ok(Role::ReplicaOf(format!("{}:{}", master.0.unwrap_or_default(), master.1.unwrap_or_default())));
    }
    let replicas = parts.nth(1).and_then(read::<Vec<(String, u16, Value)>>).unwrap_or_default();
    Ok(Role::Master(replicas.into_iter().map(|(host, port, _)| format!("{host}:{port}")).collect()))
}

fn read<T: FromRedisValue>(value: Value) -> Option<T> {
    from_redis_value(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_more_is_believed() {
        let info = |state: &str, epoch| format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n");
        assert!(age(&info("ok", 7)) > age(&info("ok", 6)));
        assert!(age(&info("ok", 6)) > age(&info("fail", 7)), "it is alone");
        assert!(age(&info("fail", 1)) > age(""));
    }
}
