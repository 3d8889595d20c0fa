//! The nodes of a Redis, each with a client of its own.

use tidemill_common::redis::{self as client, Redis, RedisFailure, Role};

/// One process.
#[derive(Clone)]
pub struct Node {
    /// What it is, and what it has.
    pub at: client::Node,
    /// A client for this node alone.
    pub client: Redis,
}

impl Node {
    /// Whether it takes writes.
    pub fn is_master(&self) -> bool {
        self.at.role == Role::Master
    }
}

/// All nodes; masters first.
pub async fn nodes(redis: &Redis) -> Result<Vec<Node>, RedisFailure> {
    let mut nodes = Vec::new();
    for at in redis.nodes().await? {
        nodes.push(Node { client: redis.on(&at)?, at });
    }
    nodes.sort_by_key(|node| !node.is_master());
    Ok(nodes)
}

/// Where a URL leads, without what may be secret in it.
pub fn place(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}://{}", rest.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_tells_no_password() {
        assert_eq!(place("redis://:secret@10.0.0.1:6379/0"), "redis://10.0.0.1:6379/0");
        assert_eq!(place("redis+cluster://me:p@ss@a:1,b:2"), "redis+cluster://a:1,b:2");
        assert_eq!(place("redis://a:1"), "redis://a:1");
    }
}
