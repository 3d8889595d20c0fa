//! Archivers to start, and what a table should hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use futures::TryStreamExt;
use iceberg::Catalog;
use iceberg::spec::DataFile;
use iceberg::table::Table;
use tidemill_archiver::commit::{self, CommitError};
use tidemill_archiver::files::Files;
use tidemill_archiver::positions::{self, Positions};
use tidemill_archiver::rows::Rows;
use tidemill_archiver::table::Tables;
use tidemill_archiver::{Config, run};
use tidemill_common::codec::datum;
use tidemill_common::config::Connections;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{History, Outgoing};
use tidemill_common::names::events_topic;
use tidemill_common::origin::Origin;
use tidemill_common::projects;
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A test's own project on the real components, and the tables that archivers make of it.
pub struct World {
    pub stack: Stack,
    pub tables: Tables,
}

impl World {
    pub async fn new() -> Self {
        // LOG_LEVEL=debug shows what archivers do.
        tidemill_common::telemetry::start_logging(&std::env::var("LOG_LEVEL").unwrap_or("off".to_owned()));
        let stack = Stack::new().await;
        Self { tables: Tables::new(&stack.connections), stack }
    }
}

impl std::ops::Deref for World {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        &self.stack
    }
}

/// An archiver that runs.
pub struct Archiver {
    shutdown: CancellationToken,
    pub address: String,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl Archiver {
    /// Stops it as SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it as kill -9 does: its future is dropped wherever it stands.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// What it answers to a GET, head and body.
    pub async fn get(&self, path: &str) -> String {
        ask(&self.address, &format!("GET {path}")).await
    }
}

/// What an HTTP server answers to a method and a path, head and body.
pub async fn ask(address: &str, what: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{what} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Settings for a test: commits are quick, and it has its own group and topics.
pub fn config(world: &World, group: &str) -> Config {
    Config {
        group: format!("{group}.{}", world.project),
        topics: format!(r"^events\.{}.*", world.project),
        session_timeout_ms: 6_000,
        commit_interval_ms: 100,
        seen_dir: world.folder("seen-archiver"),
        ..Config::default()
    }
}

/// Starts an archiver.
pub async fn start(world: &World, config: Config) -> Archiver {
    start_with(config, world.connections.clone()).await
}

/// Starts an archiver on these components.
pub async fn start_with(config: Config, connections: Connections) -> Archiver {
    let shutdown = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(run(config, connections, listener.into(), shutdown.clone()));
    Archiver { shutdown, address, task }
}

/// Events as rows of a partition, by their offsets.
pub fn as_rows(partition: i32, events: &[(i64, Event)]) -> Rows {
    let mut rows = Rows::default();
    for (offset, event) in events {
        let mut bytes = Vec::new();
        datum::write(&event.as_ref(), &mut bytes);
        rows.add(&event.as_ref(), &bytes, Origin { partition, offset: *offset, append_ms: 1_700_000_000_000 });
    }
    rows
}

/// Writes events of any days to new files of a table.
pub async fn write_files(table: &Table, partition: i32, events: &[(i64, Event)]) -> Vec<DataFile> {
    let mut days: BTreeMap<i64, Vec<(i64, Event)>> = BTreeMap::new();
    for (offset, event) in events {
        days.entry(event.timestamp.div_euclid(86_400_000_000)).or_default().push((*offset, event.clone()));
    }
    let mut files = Files::new(table, Arc::default(), usize::MAX).unwrap();
    for (day, events) in days {
        files.write(day, as_rows(partition, &events), true).await.unwrap();
    }
    files.close().await.unwrap()
}

/// A commit of who has read from where a table is.
pub async fn commit(
    catalog: &dyn Catalog,
    known: &Table,
    topic: &str,
    end: &Positions,
    files: &[DataFile],
) -> Result<Table, CommitError> {
    let start = positions::read(known.metadata().properties(), topic)?;
    commit::commit(catalog, known.identifier(), topic, &start, end, files).await
}

/// The rows of a project's table.
pub async fn batches(world: &World, project: &str) -> Vec<RecordBatch> {
    let Some(table) = world.tables.load(project).await.unwrap() else { return Vec::new() };
    table.scan().select_all().build().unwrap().to_arrow().await.unwrap().try_collect().await.unwrap()
}

/// Partition, offset and eventId of every row, sorted.
pub async fn rows(world: &World, project: &str) -> Vec<(i32, i64, String)> {
    let mut rows = Vec::new();
    for batch in batches(world, project).await {
        let column = |name| batch.column_by_name(name).unwrap();
        let partitions = column("kafka_partition").as_primitive::<Int32Type>();
        let offsets = column("kafka_offset").as_primitive::<Int64Type>();
        let ids = column("event_id").as_string::<i32>();
        rows.extend((0..batch.num_rows()).map(|i| (partitions.value(i), offsets.value(i), ids.value(i).to_owned())));
    }
    rows.sort();
    rows
}

/// The positions in a project's table, by the numbers of partitions.
pub async fn table_positions(world: &World, project: &str) -> Positions {
    match world.tables.load(project).await.unwrap() {
        Some(table) => positions::read_all(table.metadata().properties(), project).unwrap(),
        None => Positions::new(),
    }
}

/// The ends of a project's partitions that have records, by their numbers.
pub async fn ends(world: &World, project: &str) -> BTreeMap<i32, i64> {
    let history = History::new(world.connections.kafka.clone());
    let partitions = if project == world.project {
        world.event_partitions().await
    } else {
        projects::load(&world.pool, project).await.unwrap().unwrap().partitions_of_events()
    };
    let bounds = tokio::task::spawn_blocking(move || history.bounds(&partitions)).await.unwrap().unwrap();
    bounds.into_iter().filter(|(_, (_, high))| *high > 0).map(|(at, (_, high))| (at.number(), high)).collect()
}

/// Kafka's id of the project's topic.
pub async fn incarnation(world: &World) -> String {
    let (history, topic) = (History::new(world.connections.kafka.clone()), events_topic(&world.project));
    let ask = move || {
        let mut found = history.incarnations([&topic], Duration::from_secs(10)).unwrap();
        found.remove(&topic).unwrap()
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// The stream gives up on records of a partition.
pub async fn give_up(world: &World, partition: i32, offsets: &[i64]) {
    sqlx::query(
        "INSERT INTO dead_letters
             (project, topic, topic_incarnation, partition, \"offset\", append_time, stage, reason, detail)
         SELECT $1, $2, $3, $4, o, now(), 'decode', 'unknown-schema', '' FROM unnest($5::bigint[]) AS o",
    )
    .bind(&world.project)
    .bind(events_topic(&world.project))
    .bind(incarnation(world).await)
    .bind(partition)
    .bind(offsets)
    .execute(&world.pool)
    .await
    .unwrap();
}

/// Sends events to another project.
pub async fn send_to(world: &World, project: &str, events: &[Event]) {
    let topic = events_topic(project);
    for event in events {
        let (key, value) = (event.event_id.as_bytes(), world.encoder.encode(event));
        let partition = home_partition(key, PARTITIONS);
        let record = Outgoing { topic: &topic, partition, key: Some(key), value: &value, headers: &[] };
        world.producer.send(&record).await.unwrap();
    }
}

/// Waits until a project's table has passed all that its log holds now.
pub async fn archived(world: &World, project: &str) {
    let ends = ends(world, project).await;
    eventually("the table has passed the log", || async {
        let at = table_positions(world, project).await;
        ends.iter().all(|(partition, end)| at.get(partition).is_some_and(|position| position.next >= *end))
    })
    .await;
}

/// All is archived, and the ids in the table are these, each once; gives the rows.
pub async fn assert_once(world: &World, ids: std::ops::Range<usize>) -> Vec<(i32, i64, String)> {
    archived(world, &world.project).await;
    let rows = rows(world, &world.project).await;
    let distinct: BTreeSet<&str> = rows.iter().map(|(.., id)| id.as_str()).collect();
    let expected: Vec<String> = ids.map(|i| format!("e-{i}")).collect();
    assert_eq!(distinct, expected.iter().map(String::as_str).collect());
    let twice = rows.iter().filter(|(.., id)| rows.iter().filter(|row| row.2 == *id).count() > 1);
    assert_eq!(twice.collect::<Vec<_>>(), Vec::<&(i32, i64, String)>::new());
    rows
}

/// Events `e-<from>` to `e-<to>` over three days, with copies: every fifth a few events later.
pub fn events_with_copies(from: usize, to: usize) -> Vec<Event> {
    let event = |i: usize| event(&format!("e-{i}"), "click", 1_700_000_000 + (i as i64 % 3) * 86_400);
    (from..to)
        .flat_map(|i| {
            let copy = (i % 5 == 0 && i >= from + 3).then(|| event(i - 3));
            std::iter::once(event(i)).chain(copy)
        })
        .collect()
}

/// What a table must hold: of every eventId the first record in the log.
pub async fn first_sights(world: &World, ids: impl Fn(&str) -> bool) -> Vec<(i32, i64, String)> {
    let mut first: HashMap<String, (i32, i64)> = HashMap::new();
    for record in world.records(&events_topic(&world.project)).await {
        let id = String::from_utf8(record.key().unwrap_or_default().to_vec()).unwrap();
        if ids(&id) {
            first.entry(id).or_insert((record.partition, record.offset));
        }
    }
    let mut rows: Vec<_> = first.into_iter().map(|(id, (partition, offset))| (partition, offset, id)).collect();
    rows.sort();
    rows
}
