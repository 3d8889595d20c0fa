//! A Redis client that fails fast: every call has a timeout, and a circuit breaker stands before each node. Nothing in
//! Redis is the truth of anything, so its callers go on without it.
//!
//! One node or many is the URL's matter: [`Redis::run`] takes any pipeline, and each command goes to the node that has
//! its key. Only a command's own keys must be of one place ([`Redis::place`]).

mod address;
mod commands;
mod discover;
mod node;
mod ring;
mod router;
mod slots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisFuture, Value};

use crate::breaker::Failure;
use address::Address;
pub use address::Mode;
use node::{Kind, NodeClient, TIMEOUT, error_of};
pub use ring::BOUND as RING_BOUND;
use router::{Map, Router};
pub use slots::SLOTS;
use slots::Shard;

/// A client. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    mode: Mode,
    route: Route,
}

#[derive(Clone)]
enum Route {
    One(Arc<NodeClient>),
    Many(Arc<Router>),
}

/// Why Redis gave no answer. The outcome is unknown: scripts and commands must be safe to run twice.
pub type RedisFailure = Failure<RedisError>;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It takes writes.
    Master,
    /// It follows a master.
    Replica,
}

/// A node of a Redis.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Node {
    /// `host:port`
    pub address: String,
    /// What it is.
    pub role: Role,
    /// A replica's master, `host:port`.
    pub master: Option<String>,
    /// A cluster's slots that it has, or its master: first and last of each range.
    pub slots: Vec<(u16, u16)>,
    /// The part of all keys that it has.
    pub share: f64,
    /// A key that ends with this, and has no braces before, is at this master as long as the slot is, which this says:
    /// it is the same for as long as possible. Empty where any key may be.
    pub tag: String,
    /// Which nodes share the keys out with it by a ring; empty without one.
    pub ring: String,
}

impl Redis {
    /// A client for any of the forms of `REDIS_URL`; it connects when it is first used. Needs a tokio runtime.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        Self::guarded(url, None)
    }

    /// A client for background work, which waits by itself after a failure: its breakers let a call through every
    /// second, so that it is there as soon as Redis is.
    pub fn background(url: &str) -> Result<Self, RedisError> {
        Self::guarded(url, Some(TIMEOUT))
    }

    fn guarded(url: &str, open_for: Option<Duration>) -> Result<Self, RedisError> {
        let address = Address::read(url)?;
        let mode = address.mode;
        let route = match (mode, address.named.first()) {
            (Mode::Standalone, Some(named)) => {
                Route::One(Arc::new(NodeClient::new(named.clone(), open_for, Kind::Only)?))
            }
            _ => Route::Many(Arc::new(Router::new(address, open_for)?)),
        };
        Ok(Self { mode, route })
    }

    /// Runs a pipeline; every node is asked once, all at the same time. A command without a key goes to all nodes that
    /// the others go to, or to all there are. Fails when any command does: see [`Redis::run_each`]. A transaction's
    /// keys must all be of one place.
    pub async fn run<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisFailure> {
        let values = match &self.route {
            Route::One(node) => node.send(pipeline).await?,
            Route::Many(router) if pipeline.is_transaction() => router.home(pipeline).await?.send(pipeline).await?,
            Route::Many(router) => router.run(pipeline).await.into_iter().collect::<Result<_, _>>()?,
        };
        pipeline.query_async(&mut Answered(values)).await.map_err(|error| Failure::Failed("redis", error))
    }

    /// Runs a pipeline, no transaction, and gives each command's answer, ignored ones too: what one node cannot answer
    /// takes nothing from what others can.
    pub async fn run_each(&self, pipeline: &Pipeline) -> Vec<Result<Value, RedisFailure>> {
        match &self.route {
            Route::One(node) => match node.send(pipeline).await {
                Ok(values) => values.into_iter().map(error_of).collect(),
                Err(error) => vec![Err(error); pipeline.len()],
            },
            Route::Many(router) => router.run(pipeline).await,
        }
    }

    /// Asks for a PONG, of all nodes that have keys.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        self.run::<()>(redis::pipe().cmd("PING").ignore()).await
    }

    /// What a node says of itself in a section of `INFO`, by name. For a client of one node ([`Redis::on`]).
    pub async fn info(&self, section: &str) -> Result<BTreeMap<String, String>, RedisFailure> {
        let (info,): (String,) = self.run(redis::pipe().cmd("INFO").arg(section)).await?;
        Ok(read_info(&info))
    }

    /// How this Redis is made.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A number that keys have in common which may stand together in one command: all of them, those of a slot, or
    /// those of a node of the ring. It never changes.
    pub fn place(&self, key: &[u8]) -> usize {
        match &self.route {
            Route::Many(router) => router.place(key),
            Route::One(_) => 0,
        }
    }

    /// The node that has a key, `host:port`, as far as is known.
    pub fn node_of(&self, key: &[u8]) -> Option<String> {
        match &self.route {
            Route::One(node) => Some(node.address.clone()),
            Route::Many(router) => router.node_of(key),
        }
    }

    /// The nodes that have keys, as they are now.
    pub async fn masters(&self) -> Result<Vec<Node>, RedisFailure> {
        match &self.route {
            Route::One(node) => Ok(vec![Node::alone(&node.address)]),
            Route::Many(router) => Ok(Node::all(&*router.look().await?)),
        }
    }

    /// All nodes as they are now, replicas too. What a master that does not answer has for replicas is not known.
    pub async fn nodes(&self) -> Result<Vec<Node>, RedisFailure> {
        let mut nodes = self.masters().await?;
        if let Route::Many(router) = &self.route
            && let Map::Slots(slots) = &*router.map().await?
        {
            for shard in &slots.shards {
                let Some(master) = nodes.iter().find(|node| node.address == shard.master).cloned() else { continue };
                nodes.extend(shard.replicas.iter().map(|replica| master.replica(replica)));
            }
            return Ok(nodes);
        }
        for number in 0..nodes.len() {
            match discover::role(&*self.client(&nodes[number])?).await {
                Ok(discover::Role::Master(replicas)) => {
                    let replicas: Vec<Node> = replicas.iter().map(|replica| nodes[number].replica(replica)).collect();
                    nodes.extend(replicas);
                }
                Ok(discover::Role::ReplicaOf(master)) => {
                    (nodes[number].role, nodes[number].master) = (Role::Replica, Some(master));
                }
                Err(error) => tracing::debug!(%error, node = nodes[number].address, "it does not say what it is"),
            }
        }
        Ok(nodes)
    }

    /// A client for this one node, whatever keys it has.
    pub fn on(&self, node: &Node) -> Result<Self, RedisFailure> {
        Ok(Self { mode: Mode::Standalone, route: Route::One(self.client(node)?) })
    }

    fn client(&self, node: &Node) -> Result<Arc<NodeClient>, RedisFailure> {
        match &self.route {
            Route::One(one) if one.address == node.address => Ok(Arc::clone(one)),
            Route::One(one) => one.beside(&node.address).map(Arc::new),
            Route::Many(router) if self.mode == Mode::Cluster && node.role == Role::Replica => {
                router.node(&node.address, Kind::Replica)
            }
            Route::Many(router) => router.node(&node.address, Kind::OfMany),
        }
    }
}

/// The lines of an answer to `INFO`, by name.
pub fn read_info(info: &str) -> BTreeMap<String, String> {
    let lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Node {
    /// How many of a cluster's slots it has, or its master.
    pub fn slot_count(&self) -> u32 {
        self.slots.iter().map(|(first, last)| u32::from(last.saturating_sub(*first)) + 1).sum()
    }

    fn alone(address: &str) -> Self {
        let (address, role, master) = (address.to_owned(), Role::Master, None);
        Self { address, role, master, slots: Vec::new(), share: 1.0, tag: String::new(), ring: String::new() }
    }

    fn all(map: &Map) -> Vec<Self> {
        match map {
            Map::One(address) => vec![Self::alone(address)],
            Map::Slots(slots) => slots.shards.iter().filter_map(Self::of_shard).collect(),
            Map::Ring(ring) => {
                let nodes = ring.nodes().iter().zip(ring.shares());
                nodes.map(|(address, share)| Self { share, ring: ring.name(), ..Self::alone(address) }).collect()
            }
        }
    }

    fn of_shard(shard: &Shard) -> Option<Self> {
        let slots: Vec<(u16, u16)> = shard.ranges.iter().map(|range| (*range.start(), *range.end())).collect();
        let tag = slots::tag(slots::steady(shard.ranges.iter().cloned().flatten())?);
        let node = Self { slots, tag, ..Self::alone(&shard.master) };
        Some(Self { share: f64::from(node.slot_count()) / f64::from(SLOTS), ..node })
    }

    fn replica(&self, address: &str) -> Self {
        let master = Some(self.address.clone());
        Self { address: address.to_owned(), role: Role::Replica, master, ..self.clone() }
    }
}

/// Answers that are there, for a pipeline to read: it knows which it ignores.
struct Answered(Vec<Value>);

impl ConnectionLike for Answered {
    fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(std::future::ready(Ok(self.0.pop().unwrap_or(Value::Nil))))
    }

    fn req_packed_commands<'a>(&'a mut self, _: &'a Pipeline, _: usize, _: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(std::future::ready(Ok(std::mem::take(&mut self.0))))
    }

    fn get_db(&self) -> i64 {
        0
    }
}
