//! Several nodes as one Redis: who has which key, kept up to date; pipelines shared out, redirections followed.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::{ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};

use super::address::{Address, Mode};
use super::commands::{self, Homeless, Shared};
use super::node::{Kind, NodeClient, error_of, failure};
use super::ring::Ring;
use super::slots::{Slots, slot};
use super::{RedisFailure, discover};

/// The map is asked for again when it is older, used and not fixed.
const OLD: Duration = Duration::from_secs(5);
/// Between two looks while something is wrong.
const SOON: Duration = Duration::from_millis(200);
/// How often a command may be sent on.
const HOPS: usize = 4;
/// While a slot is on the move some commands have to wait for a moment.
const MOVING: Duration = Duration::from_millis(20);

/// Who has which key.
pub(super) enum Map {
    One(String),
    Slots(Slots),
    Ring(Ring),
}

impl Map {
    /// The nodes that have keys.
    pub fn masters(&self) -> Vec<&str> {
        match self {
            Map::One(node) => vec![node],
            Map::Slots(slots) => slots.shards.iter().map(|shard| shard.master.as_str()).collect(),
            Map::Ring(ring) => ring.nodes().iter().map(String::as_str).collect(),
        }
    }

    fn home(&self, key: &[u8]) -> Option<&str> {
        match self {
            Map::One(node) => Some(node),
            Map::Slots(slots) => slots.master_of(slot(key)),
            Map::Ring(ring) => Some(ring.node_of(key)),
        }
    }
}

/// All nodes of a Redis.
pub(super) struct Router {
    pub address: Address,
    open_for: Option<Duration>,
    nodes: Mutex<HashMap<(String, Kind), Arc<NodeClient>>>,
    sentinels: Vec<Arc<NodeClient>>,
    map: RwLock<Option<(Arc<Map>, Instant)>>,
    /// When somebody looked last; held by who looks.
    look: tokio::sync::Mutex<Option<Instant>>,
    looking: AtomicBool,
}

impl Router {
    pub fn new(address: Address, open_for: Option<Duration>) -> Result<Self, RedisError> {
        let sentinels = match address.mode {
            Mode::Sentinel => address.sentinels(),
            _ => Vec::new(),
        };
        let sentinel = |info| NodeClient::new(info, Some(SOON), Kind::OfMany).map(Arc::new);
        let sentinels = sentinels.into_iter().map(sentinel).collect::<Result<Vec<_>, _>>()?;
        let ring = (address.mode == Mode::Ring)
            .then(|| Ring::new(address.named.iter().map(|named| named.addr().to_string()).collect()));
        for (node, share) in ring.iter().flat_map(Ring::uneven) {
            tracing::warn!(node, share, "this node's share of the ring is far from even");
        }
        let map = ring.map(|ring| (Arc::new(Map::Ring(ring)), Instant::now()));
        let (nodes, looking) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { address, open_for, nodes, sentinels, map: RwLock::new(map), look: Default::default(), looking })
    }

    /// The client of the node at `host:port`.
    pub fn node(&self, address: &str, kind: Kind) -> Result<Arc<NodeClient>, RedisFailure> {
        let mut nodes = self.nodes.lock().expect("no holder panics");
        if let Some(node) = nodes.get(&(address.to_owned(), kind)) {
            return Ok(Arc::clone(node));
        }
        let info = self.address.node(address);
        let node = info.and_then(|info| NodeClient::new(info, self.open_for, kind));
        let node = Arc::new(node.map_err(|error| RedisFailure::Failed("redis", error))?);
        nodes.insert((address.to_owned(), kind), Arc::clone(&node));
        Ok(node)
    }

    /// Who has which key, as far as is known. Only the first who asks waits for it.
    pub async fn map(self: &Arc<Self>) -> Result<Arc<Map>, RedisFailure> {
        let known = self.map.read().expect("no holder panics").clone();
        match known {
            Some((map, since)) => {
                if since.elapsed() > OLD {
                    self.look_soon();
                }
                Ok(map)
            }
            None => self.look().await,
        }
    }

    /// Asks who has which key now.
    pub async fn look(&self) -> Result<Arc<Map>, RedisFailure> {
        let asked = Instant::now();
        let mut last = self.look.lock().await;
        let known = self.map.read().expect("no holder panics").clone();
        match known {
            Some((map, _)) if self.address.mode == Mode::Ring => return Ok(map),
            // Somebody looked while we waited.
            Some((map, _)) if last.is_some_and(|last| last > asked) => return Ok(map),
            None if last.is_some_and(|last| last.elapsed() < SOON) => return Err(RedisFailure::Open("redis")),
            _ => {}
        }
        let found = self.found().await;
        *last = Some(Instant::now());
        let map = Arc::new(found?);
        *self.map.write().expect("no holder panics") = Some((Arc::clone(&map), Instant::now()));
        Ok(map)
    }

    /// See [`super::Redis::node_of`].
    pub fn node_of(&self, key: &[u8]) -> Option<String> {
        let known = self.map.read().expect("no holder panics");
        known.as_ref().and_then(|(map, _)| map.home(key)).map(str::to_owned)
    }

    /// See [`super::Redis::place`].
    pub fn place(&self, key: &[u8]) -> usize {
        match (self.address.mode, &*self.map.read().expect("no holder panics")) {
            (Mode::Cluster, _) => usize::from(slot(key)),
            (Mode::Ring, Some((map, _))) => match &**map {
                Map::Ring(ring) => ring.number_of(key),
                _ => 0,
            },
            _ => 0,
        }
    }

    async fn found(&self) -> Result<Map, RedisFailure> {
        match self.address.mode {
            Mode::Sentinel => discover::master(&self.sentinels, &self.address.master).await.map(Map::One),
            Mode::Cluster => discover::slots(&self.known()?).await.map(Map::Slots),
            Mode::Standalone | Mode::Ring => Err(failure("a ring is what its URL says")),
        }
    }

    /// The nodes that may know: those that are named, and those that were found.
    fn known(&self) -> Result<Vec<Arc<NodeClient>>, RedisFailure> {
        let mut known: Vec<String> = self.address.named.iter().map(|named| named.addr().to_string()).collect();
        if let Some((map, _)) = &*self.map.read().expect("no holder panics")
            && let Map::Slots(slots) = &**map
        {
            known.extend(slots.shards.iter().flat_map(|shard| shard.replicas.iter().chain([&shard.master])).cloned());
        }
        known.sort();
        known.dedup();
        known.iter().map(|address| self.node(address, Kind::OfMany)).collect()
    }

    /// Asks beside everything else who has which key; at once, but not too often.
    fn look_soon(self: &Arc<Self>) {
        if self.address.mode == Mode::Ring || self.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let router = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = router.look().await {
                tracing::debug!(%error, "nobody says who has which keys");
            }
            tokio::time::sleep(SOON).await;
            router.looking.store(false, Ordering::Relaxed);
        });
    }

    /// Runs a pipeline: each node gets its commands in one round trip, all nodes at once. Gives each command's answer,
    /// in the pipeline's order; one that goes to several nodes has the error of any that failed, or an answer.
    pub async fn run(self: &Arc<Self>, pipeline: &Pipeline) -> Vec<Result<Value, RedisFailure>> {
        let map = match self.map().await {
            Ok(map) => map,
            Err(error) => return vec![Err(error); pipeline.len()],
        };
        let mut answers = Answers(vec![None; pipeline.len()]);
        let masters = map.masters();
        let shared = match &*map {
            Map::One(node) => {
                Shared { by_node: BTreeMap::from([(&**node, (0..pipeline.len()).collect())]), homeless: Vec::new() }
            }
            map => commands::share(pipeline, &masters, |key| map.home(key)),
        };
        for (number, why) in &shared.homeless {
            answers.0[*number] = Some(Err(why.failure()));
        }
        let is_whole = shared.by_node.len() == 1 && shared.homeless.is_empty();
        let parts = shared.by_node.iter().map(|(node, numbers)| async move {
            match is_whole {
                true => (numbers, self.send(node, pipeline).await),
                false => (numbers, self.send(node, &part(pipeline, numbers)).await),
            }
        });
        for (numbers, answer) in join_all(parts).await {
            answers.take(numbers, answer);
        }
        if answers.say_that_the_map_is_old() {
            self.look_soon();
        }
        if let Map::Slots(slots) = &*map {
            self.follow(pipeline, slots, &mut answers).await;
        }
        answers.0.into_iter().map(|answer| answer.unwrap_or_else(|| Err(failure("no node was asked")))).collect()
    }

    /// The node at which all keys of a pipeline are.
    pub async fn home(self: &Arc<Self>, pipeline: &Pipeline) -> Result<Arc<NodeClient>, RedisFailure> {
        let map = self.map().await?;
        let masters = map.masters();
        let shared = commands::share(pipeline, &masters, |key| map.home(key));
        match (shared.homeless.first(), &shared.by_node.keys().collect::<Vec<_>>()[..]) {
            (Some((_, why)), _) => Err(why.failure()),
            (None, [node]) => self.node(node, Kind::OfMany),
            (None, _) => Err(Homeless::Apart.failure()),
        }
    }

    async fn send(&self, node: &str, pipeline: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        self.node(node, Kind::OfMany)?.send(pipeline).await
    }

    /// Sends on what is elsewhere by now, or on its way.
    async fn follow(self: &Arc<Self>, pipeline: &Pipeline, slots: &Slots, answers: &mut Answers) {
        for _ in 0..HOPS {
            let (mut onwards, mut is_moving) = (BTreeMap::<Onwards, Vec<usize>>::new(), false);
            for (number, command) in pipeline.cmd_iter().enumerate() {
                let Some(Err(RedisFailure::Failed(_, error))) = &answers.0[number] else { continue };
                let onward = match (error.redirect_node(), error.code()) {
                    (Some((node, _)), code) => Onwards { node: node.to_owned(), asking: code == Some("ASK") },
                    (None, Some("TRYAGAIN")) => {
                        is_moving = true;
                        let keys = commands::keys(command);
                        let home = keys.first().and_then(|key| slots.master_of(slot(key)));
                        Onwards { node: home.unwrap_or_default().to_owned(), asking: false }
                    }
                    _ => continue,
                };
                onwards.entry(onward).or_default().push(number);
            }
            if onwards.is_empty() {
                return;
            }
            if is_moving {
                tokio::time::sleep(MOVING).await;
            }
            let parts = onwards
                .iter()
                .map(|(onward, numbers)| async move { (numbers, self.onwards(pipeline, onward, numbers).await) });
            for (numbers, answer) in join_all(parts).await {
                numbers.iter().for_each(|number| answers.0[*number] = None);
                answers.take(numbers, answer);
            }
        }
    }

    /// Sends some commands to another node, behind what has no key: it may not know their scripts.
    async fn onwards(&self, pipeline: &Pipeline, to: &Onwards, numbers: &[usize]) -> Result<Vec<Value>, RedisFailure> {
        let mut part = redis::pipe();
        let mut wanted = Vec::with_capacity(numbers.len());
        for (number, command) in pipeline.cmd_iter().enumerate() {
            let is_wanted = numbers.binary_search(&number).is_ok();
            if is_wanted && to.asking {
                part.cmd("ASKING"); // lets the next one in where its slot is about to be
            }
            if is_wanted {
                wanted.push(part.len());
            }
            if is_wanted || commands::keys(command).is_empty() {
                part.add_command(command.clone());
            }
        }
        let mut values = self.send(&to.node, &part).await?;
        Ok(wanted.into_iter().map(|at| std::mem::replace(&mut values[at], Value::Nil)).collect())
    }
}

/// Another node; asking: it does not have the slot yet.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Onwards {
    node: String,
    asking: bool,
}

/// What has been answered so far, by the commands' numbers.
struct Answers(Vec<Option<Result<Value, RedisFailure>>>);

impl Answers {
    /// Puts a node's answers where they belong.
    fn take(&mut self, numbers: &[usize], answer: Result<Vec<Value>, RedisFailure>) {
        match answer {
            Ok(values) => {
                for (number, value) in numbers.iter().zip(values) {
                    let answer = error_of(value);
                    if answer.is_err() || self.0[*number].is_none() {
                        self.0[*number] = Some(answer);
                    }
                }
            }
            Err(error) => numbers.iter().for_each(|number| self.0[*number] = Some(Err(error.clone()))),
        }
    }

    /// Whether a key was not where it was looked for, or a node did not answer.
    fn say_that_the_map_is_old(&self) -> bool {
        let says = |error: &RedisFailure| match error {
            RedisFailure::Failed(_, error) => match error.kind() {
                ErrorKind::Server(kind) => matches!(
                    kind,
                    ServerErrorKind::Moved
                        | ServerErrorKind::Ask
                        | ServerErrorKind::ClusterDown
                        | ServerErrorKind::ReadOnly
                        | ServerErrorKind::MasterDown
                ),
                _ => true,
            },
            RedisFailure::Open(_) | RedisFailure::Timeout(..) => true,
        };
        self.0.iter().flatten().any(|answer| answer.as_ref().is_err_and(says))
    }
}

/// Some commands of a pipeline.
fn part(pipeline: &Pipeline, numbers: &[usize]) -> Pipeline {
    let mut part = Pipeline::with_capacity(numbers.len());
    let mut numbers = numbers.iter().copied().peekable();
    for (number, command) in pipeline.cmd_iter().enumerate() {
        if numbers.next_if_eq(&number).is_some() {
            part.add_command(command.clone());
        }
    }
    part
}
