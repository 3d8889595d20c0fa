//! What integration tests share: the real components with a database, a project and topics of one's own, so
//! that tests run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot set itself up must fail loudly

mod countries;
mod late_registry;
mod own;
mod private_redis;
mod redises;
mod s3;

use std::collections::HashMap;
use std::future::Future;
use std::io::Write;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tidemill_common::auth;
use tidemill_common::codec::{EVENT_SCHEMA, Encoder};
use tidemill_common::config::{Connections, Settings};
use tidemill_common::event::Event;
use tidemill_common::home::{Layout, home_partition};
use tidemill_common::kafka::{History, Outgoing, Producer, Record, Span, TopicPartition};
use tidemill_common::names::{ROUTE, dlq_topic, events_topic, processed_topic};
use tidemill_common::origin::{Origin, SOURCE};
use tidemill_common::registry::Registry;
use tidemill_common::{postgres, projects};
use tidemill_topics::{Change, Topic, Wanted, begin_route, grow, plan_growth, plan_route};
use tokio_util::sync::CancellationToken;

pub use countries::countries;
pub use late_registry::LateRegistry;
pub use own::{Cluster, Own, free_port};
pub use private_redis::PrivateRedis;
pub use redises::Redises;
pub use s3::S3;

/// Partitions of a test project, unless it grows.
pub const PARTITIONS: i32 = 4;

/// The real components, and a project of one's own on them. All of it is removed on drop.
pub struct Stack {
    /// The components' addresses, with this test's own database and warehouse.
    pub connections: Connections,
    /// This test's database, migrated.
    pub pool: PgPool,
    /// This test's project, with its topics, schema and row.
    pub project: String,
    /// Writes events as the gateway does.
    pub encoder: Encoder,
    /// Sends records.
    pub producer: Producer,
    replication: i32,
    /// Of the project's events, in Kafka.
    partitions: AtomicI32,
    server_url: String,
    database: String,
    warehouse: std::path::PathBuf,
}

impl Stack {
    /// Connects to the components that the environment names; fails when one is missing.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// The same with some components elsewhere, e.g. a Postgres that the test may stop.
    pub async fn with(change: impl FnOnce(&mut Connections)) -> Self {
        Self::replicated(1, change).await
    }

    /// The same with topics that so many brokers hold.
    pub async fn replicated(replication: i32, change: impl FnOnce(&mut Connections)) -> Self {
        Self::build(replication, None, change).await
    }

    /// The same with TimescaleDB in its database; none where Postgres has not loaded it, which is said.
    pub async fn with_timescaledb() -> Option<Self> {
        let url = Settings::load("test").expect("settings").connections().database_url;
        let mut server = PgConnection::connect(&url).await.expect("Postgres; start it with dev/services start");
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
                    AND current_setting('shared_preload_libraries') LIKE '%timescaledb%'",
        )
        .fetch_one(&mut server)
        .await
        .expect("settings");
        if !there {
            // Not by a macro, which shows nothing of tests that pass.
            let _ = writeln!(std::io::stderr(), "skipped: the server of DATABASE_URL has not loaded TimescaleDB");
            return None;
        }
        Some(Self::build(1, Some("CREATE EXTENSION IF NOT EXISTS timescaledb"), |_| {}).await)
    }

    /// `first` is run in the new database, before its migrations.
    async fn build(replication: i32, first: Option<&'static str>, change: impl FnOnce(&mut Connections)) -> Self {
        let mut connections = Settings::load("test").expect("settings").connections();
        change(&mut connections);
        let server_url = connections.database_url.clone();
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (project, database) = (format!("t-{}", &id[..10]), format!("test_{}", &id[..10]));
        let mut server = PgConnection::connect(&server_url).await.expect("Postgres; start it with dev/services start");
        server.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}"))).await.expect("CREATE DATABASE");
        let (base, _) = server_url.rsplit_once('/').expect("a URL with a database");
        connections.database_url = format!("{base}/{database}");
        let warehouse = std::env::temp_dir().join(&database);
        std::fs::create_dir_all(&warehouse).expect("a folder for the warehouse");
        connections.warehouse_url = format!("file://{}", warehouse.display());
        let pool = postgres::pool(&connections.database_url, 20).expect("pool");
        if let Some(first) = first {
            pool.execute(first).await.expect(first);
        }
        postgres::MIGRATIONS.run(&pool).await.expect("migrations");
        let producer = Producer::new(&connections.kafka, Duration::from_secs(20)).expect("producer");
        let registry = Registry::new(&connections.registry_url).expect("registry URL");
        let subject = format!("{}-value", events_topic(&project));
        let schema_id =
            registry.register(&subject, EVENT_SCHEMA).await.expect("the registry; start it with dev/services start");
        let encoder = Encoder::new(schema_id);
        let partitions = AtomicI32::new(PARTITIONS);
        let stack = Self {
            connections,
            pool,
            project,
            encoder,
            producer,
            replication,
            partitions,
            server_url,
            database,
            warehouse,
        };
        stack.create_project(&stack.project).await;
        stack
    }

    /// Another project in this test's database, with its topics.
    pub async fn create_project(&self, project: &str) {
        self.insert_project(project).await;
        self.create_topics(project).await;
    }

    /// A project's row alone.
    pub async fn insert_project(&self, project: &str) {
        sqlx::query("INSERT INTO projects (id, partitions, dlq_partitions) VALUES ($1, $2, $2)")
            .bind(project)
            .bind(PARTITIONS)
            .execute(&self.pool)
            .await
            .expect("project row");
    }

    /// Makes an API key.
    pub async fn create_key(&self, project: &str, scopes: &[&str], rate_limit: Option<i32>) -> String {
        let new = auth::generate();
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        sqlx::query("INSERT INTO api_keys (hash, prefix, project, scopes, rate_limit) VALUES ($1, $2, $3, $4, $5)")
            .bind(new.hash)
            .bind(new.prefix)
            .bind(project)
            .bind(scopes)
            .bind(rate_limit)
            .execute(&self.pool)
            .await
            .expect("a key");
        new.key
    }

    /// A project's topics alone.
    pub async fn create_topics(&self, project: &str) {
        let names = [events_topic(project), processed_topic(project), dlq_topic(project)];
        let topics: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| {
                NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(self.replication))
                    .set("message.timestamp.type", "LogAppendTime")
            })
            .collect();
        let results = self.admin().create_topics(&topics, &AdminOptions::new()).await;
        results.expect("Kafka; start it with dev/services start").into_iter().for_each(|r| drop(r.expect("topic")));
        let consumer: BaseConsumer = self.connections.kafka.client().set("group.id", "tidemill.test").create().unwrap();
        eventually("topics have leaders", || async {
            names.iter().all(|name| {
                consumer.fetch_metadata(Some(name), Duration::from_secs(5)).is_ok_and(|metadata| {
                    let partitions = metadata.topics()[0].partitions();
                    partitions.len() == PARTITIONS as usize && partitions.iter().all(|p| p.leader() >= 0)
                })
            })
        })
        .await;
    }

    /// Deletes a project's topics, and waits until they are gone.
    pub async fn delete_topics(&self, project: &str) {
        let names = [events_topic(project), processed_topic(project), dlq_topic(project)];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let admin = self.admin();
        admin.delete_topics(&names, &AdminOptions::new()).await.expect("delete topics");
        eventually("topics are gone", || async {
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(5));
            metadata.is_ok_and(|metadata| metadata.topics().iter().all(|topic| !names.contains(&topic.name())))
        })
        .await;
    }

    /// A folder of this test's own.
    pub fn folder(&self, name: &str) -> std::path::PathBuf {
        self.warehouse.join(name)
    }

    /// This test's project.
    pub async fn project(&self) -> projects::Project {
        projects::load(&self.pool, &self.project).await.unwrap().expect("this test's project")
    }

    /// Gives the project's topics more partitions in Kafka, where nothing belongs yet.
    pub async fn add_partitions(&self, to: i32) {
        let from = self.partitions.swap(to, Ordering::Relaxed);
        let topics = [events_topic(&self.project), processed_topic(&self.project)];
        let changes = topics.map(|topic| Change::Grow { topic, from, to });
        let cluster = tidemill_topics::Cluster::new(&self.connections.kafka).expect("a client");
        cluster.apply(&changes).await.expect("partitions");
    }

    /// Has the project's events spread over so many partitions from now on.
    pub async fn grow(&self, to: i32) {
        let mut db = self.pool.acquire().await.expect("a connection");
        let growth = plan_growth(&mut db, &self.project, to).await.expect("it may grow").expect("it is to grow");
        let grown = grow(&mut db, &self.connections.kafka, &growth, Duration::ZERO, |_| {}).await;
        grown.expect("it has grown");
        self.has_partitions(to);
    }

    /// Says that the project's topics have so many partitions by now.
    pub fn has_partitions(&self, partitions: i32) {
        self.partitions.store(partitions, Ordering::Relaxed);
    }

    /// Has events of a type go to a topic of their own from now on.
    pub async fn route(&self, name: &str, event_type: &str) {
        self.route_as(name, event_type, None, false).await;
    }

    /// The same with so many partitions, over which users decide, too.
    pub async fn route_as(&self, name: &str, event_type: &str, partitions: Option<i32>, by_user: bool) {
        let mut db = self.pool.acquire().await.expect("a connection");
        let wanted = Wanted { name, event_types: &[event_type.to_owned()], partitions, by_user };
        let route = plan_route(&mut db, &self.project, wanted).await.expect("it may be");
        let config = [("message.timestamp.type".to_owned(), "LogAppendTime".to_owned())].into();
        let (name, partitions, replication) = (events_topic(&self.project), route.partitions, self.replication);
        let own = Topic { name, partitions, replication, homes: true, config };
        let begun = begin_route(&mut db, &self.connections.kafka, &route, &[own], Duration::ZERO, |_| {}).await;
        begun.expect("it has begun");
    }

    /// All partitions of the project's events: those of its own topic that Kafka has, and those of the routes that there are,
    /// as far as Postgres tells.
    pub async fn event_partitions(&self) -> Vec<TopicPartition> {
        let topic: std::sync::Arc<str> = events_topic(&self.project).into();
        let own = (0..self.partitions_of(&topic)).map(|partition| TopicPartition { topic: topic.clone(), partition });
        let project = projects::load(&self.pool, &self.project).await.ok().flatten();
        let all = project.map(|project| project.partitions_of_events()).unwrap_or_default();
        own.chain(all.into_iter().filter(|at| at.number() >= ROUTE)).collect()
    }

    /// What a consumer subscribes to that wants this project's events, and no other's.
    pub fn pattern(&self) -> String {
        format!("^events\\.{}(\\.|$)", self.project)
    }

    /// How this test's project spreads its events.
    pub async fn layout(&self) -> Layout {
        let project = self.project().await;
        let (history, topics) = (History::new(self.connections.kafka.clone()), project.topics());
        let ask = move || history.incarnations(&topics, Duration::from_secs(10)).expect("Kafka");
        project.layout(&tokio::task::spawn_blocking(ask).await.expect("an answer"))
    }

    /// The partitions that a topic of the project has in Kafka, as far as this knows.
    pub fn partitions_of(&self, topic: &str) -> i32 {
        let grows = [events_topic(&self.project), processed_topic(&self.project)].iter().any(|grows| grows == topic);
        if grows { self.partitions.load(Ordering::Relaxed) } else { PARTITIONS }
    }

    /// Sends an event to its home partition; gives its partition and offset.
    pub async fn send(&self, event: &Event) -> (i32, i64) {
        let home = home_partition(event.event_id.as_bytes(), PARTITIONS);
        self.send_raw(home, Some(event.event_id.as_bytes()), &self.encoder.encode(event)).await
    }

    /// Sends many events to their home partitions.
    pub async fn send_all(&self, events: &[Event]) {
        for chunk in events.chunks(1_000) {
            self.try_send_by(chunk, PARTITIONS).await.expect("delivered");
        }
    }

    /// Sends events as one does who believes that there are so many partitions, as soon as Kafka's client knows them.
    pub async fn send_by(&self, events: &[Event], partitions: i32) {
        eventually("Kafka's client knows the partitions", || async {
            self.try_send_by(events, partitions).await.is_ok()
        })
        .await;
    }

    async fn try_send_by(&self, events: &[Event], partitions: i32) -> rdkafka::error::KafkaResult<()> {
        let topic = events_topic(&self.project);
        let home = |event: &Event| (topic.clone(), home_partition(event.event_id.as_bytes(), partitions));
        self.try_send(events, home).await
    }

    /// Sends events to where they belong now, one that is routed to its route.
    pub async fn send_home(&self, events: &[Event]) {
        let (project, layout) = (self.project().await, self.layout().await);
        let home = |event: &Event| project.place(layout.home(&event.as_ref()));
        eventually("Kafka's client knows the partitions", || async { self.try_send(events, home).await.is_ok() }).await;
    }

    async fn try_send(
        &self,
        events: &[Event],
        place: impl Fn(&Event) -> (String, i32),
    ) -> rdkafka::error::KafkaResult<()> {
        let values: Vec<Vec<u8>> = events.iter().map(|event| self.encoder.encode(event)).collect();
        let places: Vec<(String, i32)> = events.iter().map(place).collect();
        let records: Vec<Outgoing<'_>> = events
            .iter()
            .zip(&values)
            .zip(&places)
            .map(|((event, value), (topic, partition))| Outgoing {
                topic,
                partition: *partition,
                key: Some(event.event_id.as_bytes()),
                value,
                headers: &[],
            })
            .collect();
        self.producer.send_all(&records).await.map(drop)
    }

    /// Sends any bytes to a partition of the project's events topic.
    pub async fn send_raw(&self, partition: i32, key: Option<&[u8]>, value: &[u8]) -> (i32, i64) {
        let topic = events_topic(&self.project);
        let record = Outgoing { topic: &topic, partition, key, value, headers: &[] };
        self.producer.send(&record).await.expect("delivered")
    }

    /// All records of a topic, by partition and offset.
    pub async fn records(&self, topic: &str) -> Vec<Record> {
        self.records_of(topic, self.partitions_of(topic)).await
    }

    /// The same of a topic that may not be there, with as many partitions as it has.
    pub async fn records_of_any(&self, topic: &str) -> Vec<Record> {
        let consumer: BaseConsumer = self.connections.kafka.client().set("group.id", "tidemill.test").create().unwrap();
        let name = topic.to_owned();
        let look = move || consumer.fetch_metadata(Some(&name), Duration::from_secs(10)).expect("Kafka");
        let metadata = tokio::task::spawn_blocking(look).await.expect("reader");
        match metadata.topics().first().map_or(0, |topic| topic.partitions().len()) {
            0 => Vec::new(),
            partitions => self.records_of(topic, partitions as i32).await,
        }
    }

    async fn records_of(&self, topic: &str, partitions: i32) -> Vec<Record> {
        let history = History::new(self.connections.kafka.clone());
        let topic: std::sync::Arc<str> = topic.into();
        let read = move || {
            let partitions: Vec<TopicPartition> =
                (0..partitions).map(|partition| TopicPartition { topic: topic.clone(), partition }).collect();
            let bounds: HashMap<TopicPartition, (i64, i64)> = history.bounds(&partitions).expect("bounds");
            let spans: Vec<Span> = bounds.into_iter().map(|(at, (from, to))| Span { at, from, to }).collect();
            let mut records = Vec::new();
            history
                .read(&spans, &CancellationToken::new(), |record| {
                    records.push(record);
                    Ok::<(), rdkafka::error::KafkaError>(())
                })
                .expect("records");
            records
        };
        let mut records = tokio::task::spawn_blocking(read).await.expect("reader");
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// How many records have been written to the topics of the project's events, all together.
    pub async fn end_of_all(&self) -> i64 {
        let (history, partitions) = (History::new(self.connections.kafka.clone()), self.event_partitions().await);
        let bounds = tokio::task::spawn_blocking(move || history.bounds(&partitions)).await.expect("reader");
        bounds.expect("bounds").values().map(|(_, high)| high).sum()
    }

    /// The next offset of each partition of a topic.
    pub async fn ends(&self, topic: &str) -> HashMap<i32, i64> {
        let (history, count) = (History::new(self.connections.kafka.clone()), self.partitions_of(topic));
        let topic: std::sync::Arc<str> = topic.into();
        let partitions: Vec<TopicPartition> =
            (0..count).map(|partition| TopicPartition { topic: topic.clone(), partition }).collect();
        let bounds = tokio::task::spawn_blocking(move || history.bounds(&partitions)).await.expect("reader");
        bounds.expect("bounds").into_iter().map(|(at, (_, high))| (at.partition, high)).collect()
    }

    /// Sends an event to its home as a worker sends a stray that was appended elsewhere `seconds` ago.
    pub async fn send_stray(&self, event: &Event, seconds: u32) -> (i32, i64) {
        let topic = events_topic(&self.project);
        let key = event.event_id.as_bytes();
        let (home, value) = (home_partition(key, PARTITIONS), self.encoder.encode(event));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
        let append_ms = now - i64::from(seconds) * 1_000;
        let source = Origin { partition: (home + 1) % PARTITIONS, offset: 7, append_ms }.to_string();
        let headers = &[(SOURCE, &*source)];
        let stray = Outgoing { topic: &topic, partition: home, key: Some(key), value: &value, headers };
        self.producer.send(&stray).await.expect("delivered")
    }

    /// Deletes what a partition of the project's events topic holds below `offset`, as retention does.
    pub async fn delete_records(&self, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&events_topic(&self.project), partition, Offset::Offset(offset)).unwrap();
        let deleted = self.admin().delete_records(&offsets, &AdminOptions::new()).await.expect("delete records");
        deleted.elements().iter().for_each(|element| element.error().expect("deleted"));
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.connections.kafka.client().create().expect("admin client")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let (url, database, project) = (self.server_url.clone(), self.database.clone(), self.project.clone());
        let admin = self.admin();
        let clean_up = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(mut server) = PgConnection::connect(&url).await {
                    let drop_database = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
                    let _ = server.execute(sqlx::AssertSqlSafe(drop_database)).await;
                }
                // The test's other projects have names that start with this one's.
                let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(10)) else { return };
                let names = metadata.topics().iter().map(|topic| topic.name());
                let ours: Vec<&str> =
                    names.filter(|name| name.starts_with("events.") && name.contains(&project)).collect();
                let _ = admin.delete_topics(&ours, &AdminOptions::new()).await;
            });
        };
        let _ = std::thread::spawn(clean_up).join();
        let _ = std::fs::remove_dir_all(&self.warehouse);
    }
}

/// Waits until `condition` holds; fails with its name after a minute.
pub async fn eventually<F: Future<Output = bool>>(name: &str, condition: impl FnMut() -> F) {
    eventually_within(Duration::from_secs(60), name, condition).await;
}

/// Waits until `condition` holds; fails with its name after `limit`.
pub async fn eventually_within<F: Future<Output = bool>>(
    limit: Duration,
    name: &str,
    mut condition: impl FnMut() -> F,
) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {name}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An event with an id, a type and a time in seconds since 1970, and nothing else.
pub fn event(event_id: &str, event_type: &str, seconds: i64) -> Event {
    Event::new(event_id, event_type, seconds * 1_000_000)
}
