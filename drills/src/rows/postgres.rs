//! Postgres that dies, loses what it had, comes back older, or is slow.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::Rng;
use sqlx::{Connection, PgConnection};
use tidemill_testkit::Own;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::process::signal;
use crate::proxy::{Fault, Mode, Proxy};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("commit-unknown", commit_unknown),
        Row::new("postgres-slow", slow).within(Duration::from_secs(150)),
        Row::new("postgres-crash", crash).within(Duration::from_secs(180)),
        Row::new("postgres-restored", restored),
    ]
}

/// The connection breaks at COMMIT: half of them have happened, half have not, and the worker cannot know.
async fn commit_unknown(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let (proxy, through) = Proxy::before(&drill.stack.connections.database_url).await?;
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[("DATABASE_URL", &through)]).await?;
    let mut recovery = Duration::ZERO;
    for round in 0..12 {
        proxy.set(Mode::Once(if round % 2 == 0 { Fault::Unanswered } else { Fault::Lost }));
        proxy.passes().await?;
        recovery = recovery.max(drill.recovered(Instant::now()).await?);
    }
    flow.stop().await?;
    drill.finish(recovery).await
}

/// Every statement takes long, then none is answered for longer than the worker waits.
async fn slow(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let (proxy, through) = Proxy::before(&drill.stack.connections.database_url).await?;
    let flow = drill.flow(Stream { rate: 200, ..Stream::default() })?;
    let _worker = drill.live_worker("a", &[("DATABASE_URL", &through)]).await?;
    for (mode, seconds) in [(Mode::Slow(Duration::from_millis(60)), 12), (Mode::Pass, 2), (Mode::Frozen, 34)] {
        proxy.set(mode);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    proxy.set(Mode::Pass);
    let recovery = drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// So that nothing but a synchronous commit brings what was committed to the disk.
const UNFLUSHED: [&str; 4] = [
    "ALTER SYSTEM SET autovacuum = off",
    "ALTER SYSTEM SET bgwriter_lru_maxpages = 0",
    "ALTER SYSTEM SET checkpoint_timeout = '1h'",
    "SELECT pg_reload_conf()",
];

/// kill -9 of the whole server, three times. The log of asynchronous commits lies in its memory, and the process that
/// would write it is stopped some seconds before: so a kill loses what else only a machine without power does.
async fn crash(options: Options) -> anyhow::Result<Outcome> {
    let own = Own::start(&["postgres"]).await;
    let mut drill =
        Drill::with(&options, 1, |connections| connections.database_url = own.value("DATABASE_URL")).await?;
    for statement in UNFLUSHED {
        sqlx::query(statement).execute(&drill.stack.pool).await?;
    }
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[]).await?;
    let (mut recovery, mut lost) = (Duration::ZERO, Vec::new());
    for _ in 0..3 {
        drill.sent(200).await?;
        stop_writing(&drill).await?;
        tokio::time::sleep(Duration::from_millis(drill.random.random_range(1_500..4_000))).await;
        let before = drill.position().await?;
        signal("KILL", &with_children(own.pid("postgres"))?)?;
        own.services("start").await;
        let fault = Instant::now();
        lost.push(before - position(&drill).await?);
        recovery = recovery.max(drill.recovered(fault).await?);
    }
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{lost:?} offsets lost and counted again"));
    ensure!(lost.iter().all(|lost| *lost > 0), "a crash lost nothing ({lost:?}), so the row does not show much");
    Ok(outcome)
}

/// Stops the process that writes what was committed asynchronously.
async fn stop_writing(drill: &Drill) -> anyhow::Result<()> {
    let writer = sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
    let writer: i32 = writer.fetch_one(&drill.stack.pool).await?;
    signal("STOP", &[writer.unsigned_abs()])
}

/// Right after its start the worker may already count again, so this is a lower bound of what was lost.
async fn position(drill: &Drill) -> anyhow::Result<i64> {
    for _ in 0..20 {
        if let Ok(position) = drill.position().await {
            return Ok(position);
        }
    }
    drill.position().await
}

/// A process and its children; the server first, so that it cannot tidy up after them.
fn with_children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut pids = vec![parent];
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // `pid (name) state ppid …`; the name may hold blanks.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let ppid = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok());
        if ppid == Some(parent) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The database comes back as it was some time ago, under a worker and a Redis that know better.
async fn restored(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[]).await?;
    drill.sent(1_000).await?;
    drill.recovered(Instant::now()).await?;
    let mut server = Server::of(&drill.stack.connections.database_url).await?;
    server.back_up().await?;
    let before = drill.position().await?;
    drill.sent(2_000).await?;
    drill.recovered(Instant::now()).await?;
    let lost = drill.position().await? - before;
    server.restore().await?;
    let recovery = drill.recovered(Instant::now()).await?;
    drill.sent(300).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{lost} offsets back"));
    Ok(outcome)
}

/// A connection beside the database that is replaced.
struct Server {
    connection: PgConnection,
    database: String,
}

impl Server {
    async fn of(url: &str) -> anyhow::Result<Self> {
        let (server, database) = url.rsplit_once('/').context("a URL with a database")?;
        let connection = PgConnection::connect(&format!("{server}/postgres")).await?;
        Ok(Self { connection, database: database.to_owned() })
    }

    async fn back_up(&mut self) -> anyhow::Result<()> {
        let name = self.database.clone();
        self.close().await?;
        self.run(format!("CREATE DATABASE {name}_backup TEMPLATE {name}")).await?;
        self.run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await
    }

    async fn restore(&mut self) -> anyhow::Result<()> {
        let name = self.database.clone();
        self.close().await?;
        self.run(format!("DROP DATABASE {name}")).await?;
        self.run(format!("ALTER DATABASE {name}_backup RENAME TO {name}")).await
    }

    /// A database can only be copied, dropped or renamed while nobody is in it.
    async fn close(&mut self) -> anyhow::Result<()> {
        let name = self.database.clone();
        self.run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
        loop {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
            let left: i64 = sqlx::query_scalar(ended).bind(&name).fetch_one(&mut self.connection).await?;
            if left == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn run(&mut self, statement: String) -> anyhow::Result<()> {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut self.connection).await?;
        Ok(())
    }
}
