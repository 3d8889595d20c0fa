//! The nodes of a Redis: the master that a URL leads to, and the replicas that follow it.

use std::collections::BTreeMap;

use redis::RedisError;
use serde::Serialize;
use tidemill_common::redis::{Redis, RedisFailure};
use url::Url;

/// One process.
#[derive(Clone)]
pub struct Node {
    /// `host:port`
    pub address: String,
    /// What it says it is.
    pub role: Role,
    /// Whom a replica follows.
    pub master: Option<String>,
    /// A client for this node alone.
    pub client: Redis,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It takes writes.
    Master,
    /// It follows one.
    Replica,
}

/// Why nodes cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// It is no address of a Redis.
    #[error("the URL is none of a Redis ({0}); give e.g. redis://host:6379/0")]
    Url(String),
    /// It does not answer.
    #[error("Redis at {0}: {1}; is it up, and its address right?")]
    Redis(String, RedisFailure),
}

impl Node {
    /// Whether it is one.
    pub fn is_master(&self) -> bool {
        self.role == Role::Master
    }
}

impl From<RedisError> for NodesError {
    fn from(error: RedisError) -> Self {
        Self::Url(error.to_string())
    }
}

/// The nodes behind a URL; masters first.
pub async fn nodes(url: &str) -> Result<Vec<Node>, NodesError> {
    let parsed = Url::parse(url).map_err(|error| NodesError::Url(error.to_string()))?;
    let address = address(&parsed);
    let client = Redis::background(url)?;
    let said = info(&client).await.map_err(|failure| NodesError::Redis(address.clone(), failure))?;
    let followed = match (said.get("master_host"), said.get("master_port")) {
        (Some(host), Some(port)) => Some(format!("{host}:{port}")),
        _ => None,
    };
    let role = if followed.is_some() { Role::Replica } else { Role::Master };
    let mut nodes = vec![Node { address: address.clone(), role, master: followed, client }];
    for (host, port) in replicas(&said) {
        let mut replica = parsed.clone();
        if replica.set_host(Some(&host)).is_err() || replica.set_port(Some(port)).is_err() {
            continue;
        }
        let client = Redis::background(replica.as_str())?;
        let (role, master) = (Role::Replica, Some(address.clone()));
        nodes.push(Node { address: format!("{host}:{port}"), role, master, client });
    }
    Ok(nodes)
}

/// Where a URL leads, without what may be secret in it.
pub fn place(url: &str) -> String {
    Url::parse(url).map_or_else(|_| "?".to_owned(), |url| address(&url))
}

fn address(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(6_379))
}

/// What a node says of itself, by name.
pub async fn info(node: &Redis) -> Result<BTreeMap<String, String>, RedisFailure> {
    let (info,): (String,) = node.run(redis::pipe().cmd("INFO").arg("everything")).await?;
    Ok(read(&info))
}

/// The lines of `INFO`.
pub fn read(info: &str) -> BTreeMap<String, String> {
    let lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `slave0:ip=10.0.0.2,port=6379,state=online,offset=42,lag=0`
fn replicas(info: &BTreeMap<String, String>) -> Vec<(String, u16)> {
    let lines = info.iter().filter(|(name, _)| name.strip_prefix("slave").is_some_and(|n| n.parse::<u32>().is_ok()));
    lines
        .filter_map(|(_, line)| {
            let get = |name: &str| line.split(',').find_map(|part| part.split_once('=').filter(|(n, _)| *n == name));
            Some((get("ip")?.1.to_owned(), get("port")?.1.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_found_in_what_a_master_says() {
        let said = "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
                    slave0:ip=10.0.0.2,port=6380,state=online,offset=42,lag=0\r\nslave_x:ip=1,port=2\r\n";
        assert_eq!(replicas(&read(said)), [("10.0.0.2".to_owned(), 6_380)]);
        let url = Url::parse("redis://:secret@10.0.0.1:6379/0").expect("a URL");
        assert_eq!(address(&url), "10.0.0.1:6379");
    }
}
