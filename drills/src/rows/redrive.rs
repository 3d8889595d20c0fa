//! Dead letters that an operator sends through again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidemill_common::codec::Encoder;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_testkit::{LateRegistry, PARTITIONS};

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::journal::{Answer, Entry, Via};
use crate::log::LATE_SCHEMA;
use crate::settle::until;
use crate::traffic::Style;

const LETTERS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(40);
/// Garbage is part of the traffic, and so may be a lot of letters.
const SETTINGS: [(&str, &str); 2] =
    [("TIDEMILL_STREAM__UNKNOWN_SCHEMA_WAIT_MS", "300"), ("TIDEMILL_STREAM__POISON_SHARE", "1")];

pub fn rows() -> Vec<Row> {
    vec![Row::new("redrive", redrive)]
}

/// Events whose schema nobody knows, a quarter of them in the wrong partition. Once it is registered they are sent through
/// again, by a run that is killed, one that sends what is open while the worker is killed, and one that sends all of what
/// is left as if nobody had noted what was sent.
async fn redrive(options: Options) -> anyhow::Result<Outcome> {
    let registry = LateRegistry::without(Some(LATE_SCHEMA)).await;
    let mut drill = Drill::with(&options, 1, |components| components.registry_url = registry.url.clone()).await?;
    drill.archiver().await?;
    let mut worker = drill.live_worker("a", &SETTINGS).await?;
    let flow = drill.flow(Stream { rate: 200, ..Stream::default() })?;
    let events = drill.traffic("late", Style::default()).events(LETTERS, chrono::Utc::now().timestamp_micros());
    send(&drill, &events).await?;
    until(PATIENCE, "all are dead letters", async || Ok(letters(&drill, "open").await? == LETTERS as i64)).await?;

    registry.learn();
    let mut first = run(&options, &drill, 60)?;
    until(PATIENCE, "some count", async || Ok(letters(&drill, "counted").await? >= 40)).await?;
    first.kill()?;
    first.wait()?;
    let killed_at = letters(&drill, "counted").await?;
    ensure!(killed_at < LETTERS as i64, "the first run was over before it was killed");
    let mut second = run(&options, &drill, 200)?;
    until(PATIENCE, "more count", async || Ok(letters(&drill, "counted").await? > killed_at + 20)).await?;
    worker.kill()?;
    let fault = Instant::now();
    sqlx::query("UPDATE dead_letters SET sent_attempts = NULL").execute(&drill.stack.pool).await?;
    let mut third = run(&options, &drill, 1_000)?;
    let _worker = drill.live_worker("b", &SETTINGS).await?;
    let recovery = drill.recovered(fault).await?;
    for run in [&mut second, &mut third] {
        until(PATIENCE, "a run is over", async || Ok(run.try_wait()?.is_some())).await?;
        ensure!(run.wait()?.success(), "'tidemill dlq redrive' failed");
    }
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    let counted = letters(&drill, "counted").await?;
    if counted != LETTERS as i64 {
        outcome.differences.push(format!("{counted} of {LETTERS} letters are closed as counted"));
    }
    let closed: i64 = sqlx::query_scalar("SELECT count(*) FROM redrives WHERE outcome = 'closed'")
        .fetch_one(&drill.stack.pool)
        .await?;
    outcome.facts.push(format!("{LETTERS} letters, {closed} sent in vain"));
    Ok(outcome)
}

/// Sends events under the late schema, every fourth beside its home.
async fn send(drill: &Drill, events: &[Event]) -> anyhow::Result<()> {
    let encoder = Encoder::new(LATE_SCHEMA);
    for (i, event) in events.iter().enumerate() {
        let key = event.event_id.as_bytes();
        let partition = (home_partition(key, PARTITIONS) + i32::from(i % 4 == 0)) % PARTITIONS;
        let position = Some(drill.stack.send_raw(partition, Some(key), &encoder.encode(event)).await);
        let event_id = event.event_id.clone();
        // What it becomes, the log tells: no event, and later one.
        drill.journal.add(Entry { event_id, via: Via::Native, answer: Answer::Accepted, position, event: None })?;
    }
    Ok(())
}

/// The letters under the late schema in a state.
async fn letters(drill: &Drill, state: &str) -> anyhow::Result<i64> {
    let sql = "SELECT count(*) FROM dead_letters WHERE reason = 'unknown-schema' AND state = $1";
    Ok(sqlx::query_scalar(sql).bind(state).fetch_one(&drill.stack.pool).await?)
}

/// `tidemill dlq redrive`
fn run(options: &Options, drill: &Drill, rate: u32) -> anyhow::Result<Child> {
    let components = &drill.stack.connections;
    Command::new(&options.binary)
        .args(["dlq", "redrive", "--yes", "--reason", "unknown-schema", "--project", &drill.stack.project])
        .args(["--rate", &rate.to_string()])
        .env("KAFKA_BROKERS", &components.kafka.brokers)
        .env("DATABASE_URL", &components.database_url)
        .env("SCHEMA_REGISTRY_URL", &components.registry_url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", options.binary.display()))
}
