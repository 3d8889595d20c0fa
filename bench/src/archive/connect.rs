//! Kafka Connect with the Iceberg sink (`bench/connect`) on the same topic, into a table of its own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use tidemill_common::codec::EVENT_SCHEMA;
use tokio::process::Command;

use super::table::Table;
use super::{Archived, Moment, until};
use crate::process::{Server, cpu_seconds, free_address, peak_mb, written_back};
use crate::stream::drain::WARM_UP;
use crate::stream::place::{Fresh, Place};
use crate::stream::topic::Topic;

/// Both of the sink's tasks would make the namespace of its catalog, `iceberg`, upon which one of them fails for good.
const NAMESPACE: &str =
    "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
    VALUES ('iceberg', $1, 'exists', 'true') ON CONFLICT DO NOTHING";

/// What it is told beside where everything is.
pub struct Settings<'a> {
    /// The JVM's heap, as `-Xmx` takes it.
    pub heap: &'a str,
    /// Records that a task takes at once at most. Between two times it waits for its control topic, for up to a second:
    /// few make it slow, many need heap.
    pub poll: u32,
    /// How often it commits, in milliseconds.
    pub commit_ms: u64,
}

/// Has it drain a topic, and checks how many rows its table holds. `round` makes its name a new one.
pub async fn run(place: &Place, topic: &Topic, settings: &Settings<'_>, round: u32) -> anyhow::Result<Archived> {
    let fresh = place.fresh(topic.project).await?;
    let name = format!("bench-connect-{}-{round}-{}", std::process::id(), settings.heap);
    place.empty_warehouse(&fresh).await?;
    let folder = place.logs.join("connect");
    let _ = std::fs::remove_dir_all(&folder); // of a round before
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    sqlx::query(NAMESPACE).bind(topic.project).execute(&fresh.pool).await?;
    place.create_topic(&control(&name)).await?;
    written_back().await?;
    let archived = drain(place, &fresh, topic, settings, &name, &folder).await;
    place.delete_topics(&control(&name)).await?;
    archived
}

async fn drain(
    place: &Place,
    fresh: &Fresh,
    topic: &Topic,
    settings: &Settings<'_>,
    name: &str,
    folder: &Path,
) -> anyhow::Result<Archived> {
    let java = start(place, fresh, topic, settings, name, folder)?;
    match measured(&java, fresh, topic).await {
        Ok(archived) => java.stop().await.map(|()| archived),
        Err(error) => Err(error.context(format!("Kafka Connect; its log ends with:\n{}", java.last_words()))),
    }
}

async fn measured(java: &Server, fresh: &Fresh, topic: &Topic) -> anyhow::Result<Archived> {
    let table = Table { pool: &fresh.pool, namespace: topic.project.to_owned(), name: "events" };
    let moment = |rows: u64| -> anyhow::Result<Moment> {
        Ok(Moment { at: Instant::now(), rows, cpu: cpu_seconds(java.pid())? })
    };
    let rows = topic.records(); // it has no dedupe: copies are rows
    let warm = moment(until(&table, (rows as f64 * WARM_UP) as u64).await?.rows)?;
    let held = until(&table, rows).await?;
    let done = moment(held.rows)?;
    let peak = peak_mb(java.pid())?;
    ensure!(held.rows == rows, "Kafka Connect's table holds {} rows instead of {rows}", held.rows);
    Ok(Archived::between(&warm, &done, peak, held))
}

fn start(
    place: &Place,
    fresh: &Fresh,
    topic: &Topic,
    settings: &Settings<'_>,
    name: &str,
    folder: &Path,
) -> anyhow::Result<Server> {
    let jars = place.connect.as_ref().context("--connect names no folder; run this through dev/bench")?;
    let write = |file: &str, properties: Vec<(&str, String)>| -> anyhow::Result<PathBuf> {
        let path = folder.join(file);
        let text: String = properties.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let worker = write("worker.properties", worker(place, settings, folder)?)?;
    let sink = write("sink.properties", sink(place, fresh, topic, settings, name)?)?;
    let mut java = Command::new(&place.java);
    java.args([format!("-Xms{0}", settings.heap), format!("-Xmx{0}", settings.heap)])
        .args(["-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
        .arg(format!("{0}/*:{0}/libs/*", jars.display()))
        .arg("org.apache.kafka.connect.cli.ConnectStandalone")
        .args([worker, sink]);
    Server::start(java, &place.logs.join(format!("connect-{}.log", settings.heap)))
}

fn control(name: &str) -> String {
    format!("control-{name}")
}

fn worker(place: &Place, settings: &Settings<'_>, folder: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("bootstrap.servers", place.brokers.clone()),
        ("listeners", format!("http://{}", free_address()?)),
        ("key.converter", "org.apache.kafka.connect.converters.ByteArrayConverter".to_owned()),
        ("value.converter", "org.apache.kafka.connect.converters.ByteArrayConverter".to_owned()),
        ("offset.storage.file.filename", folder.join("offsets").display().to_string()),
        ("plugin.discovery", "only_scan".to_owned()),
        ("consumer.max.poll.records", settings.poll.to_string()),
        ("consumer.max.partition.fetch.bytes", (8 * 1024 * 1024).to_string()),
    ])
}

fn sink(
    place: &Place,
    fresh: &Fresh,
    topic: &Topic,
    settings: &Settings<'_>,
    name: &str,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let database: PgConnectOptions = fresh.url.parse()?;
    let jdbc = format!(
        "jdbc:postgresql://{}:{}/{}",
        database.get_host(),
        database.get_port(),
        database.get_database().context("the database has no name")?
    );
    let schema: Value = serde_json::from_str(EVENT_SCHEMA)?; // on one line, as properties have it
    let text = |text: &str| text.to_owned();
    Ok(vec![
        ("name", text(name)),
        ("connector.class", text("org.apache.iceberg.connect.IcebergSinkConnector")),
        ("tasks.max", text("2")),
        ("topics", topic.name.clone()),
        ("value.converter", text("dev.tidemill.bench.EventConverter")),
        ("value.converter.event.schema", schema.to_string()),
        ("iceberg.tables", format!("{}.events", topic.project)),
        ("iceberg.tables.auto-create-enabled", text("true")),
        ("iceberg.tables.default-partition-by", text("day(timestamp)")),
        ("iceberg.tables.auto-create-props.write.parquet.compression-codec", text("zstd")),
        ("iceberg.tables.auto-create-props.write.parquet.compression-level", text("1")),
        ("iceberg.control.topic", control(name)),
        ("iceberg.control.commit.interval-ms", settings.commit_ms.to_string()),
        ("iceberg.catalog.catalog-impl", text("org.apache.iceberg.jdbc.JdbcCatalog")),
        ("iceberg.catalog.uri", jdbc),
        ("iceberg.catalog.jdbc.user", text(database.get_username())),
        ("iceberg.catalog.jdbc.schema-version", text("V1")),
        ("iceberg.catalog.warehouse", place.warehouse()),
    ])
}
