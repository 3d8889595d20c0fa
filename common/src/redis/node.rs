//! One node: its connection, and the breaker before it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{ConnectionInfo, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};

use super::RedisFailure;
use super::address::{Address, Mode};
use crate::breaker::{Breaker, Failure};

/// Limit of a call.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// After so many calls in a row without an answer in time, the connection is taken for dead: a machine that is gone
/// does not say so, and nothing would ever come on it.
const SILENT: u32 = 3;

/// A connection to a node.
pub(super) struct NodeClient {
    pub address: String,
    client: redis::Client,
    connection: Mutex<ConnectionManager>,
    silent: AtomicU32,
    breaker: Breaker,
    kind: Kind,
}

/// What a node is beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// There is no other.
    Only,
    /// There are others; metrics name it.
    OfMany,
    /// A cluster's replica: it answers only who says that he knows what it is.
    Replica,
}

/// An answer that counts as a failure, with its values.
enum Refused {
    Lost(RedisError),
    Answer(Vec<Value>),
}

impl NodeClient {
    /// Connects when it is first used. Needs a tokio runtime. `open_for`: the breaker's pause.
    pub fn new(info: ConnectionInfo, open_for: Option<Duration>, kind: Kind) -> Result<Self, RedisError> {
        // Without it a request in two segments waits for Redis' delayed ACK: 40 ms.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let address = info.addr().to_string();
        let client = redis::Client::open(info)?;
        let connection = Mutex::new(lazy(&client)?);
        let breaker = Breaker::of_node("redis", (kind != Kind::Only).then_some(&*address), TIMEOUT, open_for);
        Ok(Self { address, client, connection, silent: AtomicU32::new(0), breaker, kind })
    }

    /// A client for another node, as the same user.
    pub fn beside(&self, address: &str) -> Result<Self, RedisFailure> {
        let like = self.client.get_connection_info().clone();
        let found = Address { mode: Mode::Standalone, named: vec![like], master: String::new() }.node(address);
        found
            .and_then(|info| Self::new(info, Some(TIMEOUT), Kind::OfMany))
            .map_err(|error| Failure::Failed("redis", error))
    }

    /// Sends a pipeline in one round trip; gives an answer or an error for each of its commands.
    pub async fn send(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        if self.kind == Kind::Replica {
            return self.send_to_replica(pipeline).await;
        }
        match pipeline.is_transaction() {
            true => self.call(pipeline, pipeline.len() + 1, 1).await,
            false => self.call(pipeline, 0, pipeline.len()).await,
        }
    }

    async fn send_to_replica(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        let mut read_only = redis::pipe();
        read_only.cmd("READONLY");
        for command in pipeline.cmd_iter() {
            read_only.add_command(command.clone());
        }
        let mut values = self.call(&read_only, 0, read_only.len()).await?;
        values.remove(0);
        Ok(values)
    }

    async fn call(&self, pipeline: &Pipeline, offset: usize, count: usize) -> Result<Vec<Value>, RedisFailure> {
        let mut connection = self.connection().clone();
        let called = async {
            match connection.req_packed_commands(pipeline, offset, count).await {
                Ok(values) if values.iter().any(is_sick) => Err(Refused::Answer(values)),
                Ok(values) => Ok(values),
                Err(error) => Err(Refused::Lost(error)),
            }
        };
        let answer = self.breaker.call(called).await;
        let is_silent = match &answer {
            Err(Failure::Timeout(..)) => true,
            Err(Failure::Failed(_, Refused::Lost(error))) => error.is_timeout(),
            Err(Failure::Open(_)) => return Err(Failure::Open("redis")),
            _ => false,
        };
        self.listen(is_silent);
        match answer {
            Ok(values) | Err(Failure::Failed(_, Refused::Answer(values))) => Ok(values),
            Err(Failure::Failed(name, Refused::Lost(error))) => Err(Failure::Failed(name, error)),
            Err(Failure::Timeout(name, limit)) => Err(Failure::Timeout(name, limit)),
            Err(Failure::Open(name)) => Err(Failure::Open(name)),
        }
    }

    /// A connection on which nothing comes any more is made anew.
    fn listen(&self, is_silent: bool) {
        if !is_silent {
            return self.silent.store(0, Ordering::Relaxed);
        }
        if self.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT {
            self.silent.store(0, Ordering::Relaxed);
            if let Ok(new) = lazy(&self.client) {
                *self.connection() = new;
            }
        }
    }

    fn connection(&self) -> MutexGuard<'_, ConnectionManager> {
        self.connection.lock().expect("no holder panics")
    }
}

fn lazy(client: &redis::Client) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(1)
        .set_max_delay(Duration::from_millis(500))
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// Whether an answer says that the node is not well. One that sends us elsewhere, wants a script, or waits for others,
/// says so at once, and needs no breaker: that would be open for longer than it takes them.
fn is_sick(value: &Value) -> bool {
    let Value::ServerError(error) = value else { return false };
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, NoScript, ReadOnly, TryAgain};
    let passes = [Ask, BusyLoading, ClusterDown, MasterDown, Moved, NoScript, ReadOnly, TryAgain];
    !error.kind().is_some_and(|kind| passes.contains(&kind))
}

/// The error of one command.
pub(super) fn error_of(value: Value) -> Result<Value, RedisFailure> {
    value.extract_error().map_err(|error| Failure::Failed("redis", error))
}

/// An error of ours.
pub(super) fn failure(what: &'static str) -> RedisFailure {
    Failure::Failed("redis", RedisError::from((ErrorKind::Client, what)))
}
