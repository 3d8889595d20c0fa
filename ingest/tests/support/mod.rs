//! A gateway on the real components, and ways to break what it stands on.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a test that cannot go on must fail

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tidemill_common::config::Connections;
use tidemill_common::redis::Redis;
use tidemill_ingest::Config;
use tidemill_testkit::{Stack, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running gateway with a write key for the stack's project.
pub struct Gateway {
    pub stack: Stack,
    pub address: SocketAddr,
    pub key: String,
    pub shutdown: CancellationToken,
    pub service: Option<JoinHandle<anyhow::Result<()>>>,
    client: reqwest::Client,
    redis: Redis,
}

impl Gateway {
    /// A gateway with everything as it should be.
    pub async fn start() -> Self {
        Self::with(Stack::new().await, |_, _| ()).await
    }

    /// A gateway with other settings or connections.
    pub async fn with(stack: Stack, change: impl FnOnce(&mut Config, &mut Connections)) -> Self {
        let (mut config, mut connections) = (Config::default(), stack.connections.clone());
        change(&mut config, &mut connections);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let redis = Redis::new(&connections.redis_url).unwrap();
        let service = tokio::spawn(tidemill_ingest::run(config, connections, listener.into(), shutdown.clone()));
        let key = create_key(&stack, &stack.project, &["write"], None).await;
        let client = reqwest::Client::new();
        let gateway = Self { stack, address, key, shutdown, service: Some(service), client, redis };
        eventually("the gateway is ready", || async {
            gateway.get("/readyz").await.is_ok_and(|answer| answer.status() == StatusCode::OK)
        })
        .await;
        gateway
    }

    /// Another gateway on the same components; gives its address. It ends with this one.
    pub async fn another(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, shutdown) = (self.stack.connections.clone(), self.shutdown.clone());
        tokio::spawn(tidemill_ingest::run(Config::default(), connections, listener.into(), shutdown));
        eventually("the other gateway is ready", || async {
            let answer = self.client.get(format!("http://{address}/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
        })
        .await;
        address
    }

    /// A gateway whose project has no topics yet, so that nothing can be delivered.
    pub async fn without_topics() -> (Self, String, String) {
        let gateway = Self::start().await;
        let project = format!("{}-new", gateway.stack.project);
        gateway.stack.insert_project(&project).await;
        let key = create_key(&gateway.stack, &project, &["write"], None).await;
        (gateway, project, key)
    }

    pub async fn get(&self, path: &str) -> reqwest::Result<Response> {
        self.client.get(format!("http://{}{path}", self.address)).send().await
    }

    /// A request with the gateway's key, whose body is still to be set.
    pub fn request(&self) -> RequestBuilder {
        self.anonymous().bearer_auth(&self.key)
    }

    /// A request without a key.
    pub fn anonymous(&self) -> RequestBuilder {
        self.to("/v1/events")
    }

    /// A request to another path, without a key.
    pub fn to(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.address))
    }

    /// Sends JSON with the gateway's key.
    pub async fn post(&self, body: &Value) -> Answer {
        self.post_as(&self.key, body).await
    }

    /// Sends JSON with another key.
    pub async fn post_as(&self, key: &str, body: &Value) -> Answer {
        answer(self.anonymous().bearer_auth(key).json(body)).await
    }

    /// What Redis holds for an event.
    pub async fn claim(&self, project: &str, event_id: &str) -> Option<String> {
        let (value,): (Option<String>,) =
            self.redis.run(redis::pipe().cmd("GET").arg(format!("event:{project}:{event_id}"))).await.unwrap();
        value
    }

    /// Puts a value where an event's claim stands.
    pub async fn set_claim(&self, project: &str, event_id: &str, value: &str, ms: u64) {
        let key = format!("event:{project}:{event_id}");
        self.redis.run::<()>(redis::pipe().cmd("SET").arg(key).arg(value).arg("PX").arg(ms).ignore()).await.unwrap();
    }

    /// Waits until an event of a project is in flight.
    pub async fn in_flight(&self, project: &str, event_id: &str) {
        eventually("the event is claimed", || async {
            self.claim(project, event_id).await.is_some_and(|claim| claim.starts_with("P:"))
        })
        .await;
    }

    /// How many records of an event are in a project's log.
    pub async fn in_log(&self, project: &str, event_id: &str) -> usize {
        let records = self.stack.records(&format!("events.{project}")).await;
        records.iter().filter(|record| record.key() == Some(event_id.as_bytes())).count()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An answer, read.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<u64>,
    pub content_type: String,
    pub body: Value,
}

impl Answer {
    /// The problem's stable word.
    pub fn problem(&self) -> &str {
        assert_eq!(self.content_type, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert!(self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{self:?}");
        self.body["type"].as_str().unwrap().strip_prefix("urn:tidemill:problem:").unwrap()
    }

    /// The statuses of several events.
    pub fn statuses(&self) -> Vec<&str> {
        assert_eq!(self.status, 202, "{self:?}");
        let results = self.body["results"].as_array().unwrap();
        assert!(results.iter().enumerate().all(|(i, result)| result["index"] == i), "{self:?}");
        results.iter().map(|result| result["status"].as_str().unwrap()).collect()
    }
}

/// Sends a request.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: response.status().as_u16(),
        retry_after: header("retry-after").map(|seconds| seconds.parse().unwrap()),
        content_type: header("content-type").unwrap_or_default(),
        body: serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default(),
    }
}

/// An event that is good.
pub fn event(event_id: &str) -> Value {
    json!({"eventId": event_id, "eventType": "page_view", "userId": "u-1", "properties": {"page": "/", "price": 1}})
}

/// Makes an API key.
pub async fn create_key(stack: &Stack, project: &str, scopes: &[&str], rate_limit: Option<i32>) -> String {
    stack.create_key(project, scopes, rate_limit).await
}

/// A TCP proxy that can be cut.
pub struct Proxy {
    pub address: SocketAddr,
    cut: CancellationToken,
}

impl Proxy {
    /// A proxy before the component at `url`, and the URL that leads through it.
    pub async fn before(url: &str) -> (Self, String) {
        let proxy = Self::at("127.0.0.1:0".parse().unwrap(), url).await;
        let through = url.replace(upstream(url), &proxy.address.to_string());
        (proxy, through)
    }

    /// A proxy at an address of the caller's choice.
    pub async fn at(address: SocketAddr, url: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, cut) = (listener.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(cut.clone().run_until_cancelled_owned(forward(listener, upstream(url).to_owned(), cut.clone())));
        Self { address, cut }
    }

    /// Breaks all connections and refuses new ones.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

/// The host and port in a URL.
fn upstream(url: &str) -> &str {
    let authority = url.split_once("://").unwrap().1.split('/').next().unwrap();
    authority.rsplit('@').next().unwrap()
}

async fn forward(listener: TcpListener, upstream: String, cut: CancellationToken) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let (upstream, cut) = (upstream.clone(), cut.clone());
        tokio::spawn(cut.run_until_cancelled_owned(async move {
            let mut server = TcpStream::connect(&upstream).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }));
    }
}

/// A Redis of the test's own, which it can do anything to.
pub struct PrivateRedis {
    pub url: String,
    process: Child,
}

impl PrivateRedis {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server on the PATH; dev/services start installs it");
        let redis = Self { url: format!("redis://127.0.0.1:{port}"), process };
        eventually("redis answers", || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
        redis
    }

    /// Runs one command.
    pub async fn run(&self, command: &[&str]) {
        let mut pipeline = redis::pipe();
        pipeline.cmd(command[0]).arg(&command[1..]).ignore();
        Redis::new(&self.url).unwrap().run::<()>(&pipeline).await.unwrap();
    }

    /// Stops it where it is, as SIGSTOP does, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// kill -9
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How long anything may take that should be quick.
pub const QUICK: Duration = Duration::from_secs(10);
