//! `tidemill cache`

mod audit;
mod status;
mod warm;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::{PgConnection, PgPool};
use tidemill_common::config::Settings;
use tidemill_common::postgres;
use tidemill_common::redis::Redis;
use tidemill_ingest::json_schemas;
use tidemill_stream::Config;
use tidemill_stream::cache::{Cache, Contents, Plain, ProjectError};
use tidemill_stream::metric::Definitions;

pub use audit::Wrong;

use crate::output::Output;
use crate::store::{self, explain};

#[derive(Subcommand)]
pub enum Command {
    /// Fill Redis with all that is live in Postgres: hot windows, sessions, carts, seen users, JSON Schemas
    ///
    /// Part by part, three at a time; each is read back and compared, and what does not show what Postgres has is deleted
    /// again: readers ask Postgres then. It writes as the workers do, an older version never over a newer one, so it runs
    /// beside them, and may be ended and run again. API keys are kept in the gateways' memory, and results of queries come
    /// again when they are asked for.
    Warm(warm::Args),
    /// Compare every hot value in Redis with Postgres, and replicas with their masters
    ///
    /// The exit code is 4 if something is wrong. What is missing is not: readers ask Postgres.
    Audit(audit::Args),
    /// How each node of Redis is, and what to do about what is odd
    Status(status::Args),
}

pub async fn run(command: Command, settings: &Settings, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Warm(args) => warm::run(args, settings, output).await,
        Command::Audit(args) => audit::run(args, settings, output).await,
        Command::Status(args) => status::run(args, &settings.connections(), output).await,
    }
}

/// What warm and audit work with.
struct Desk {
    db: PgConnection,
    redis: Redis,
    cache: Cache,
    contents: Vec<Contents>,
}

impl Desk {
    /// The copies in this Redis of a project, or of all.
    async fn open(url: &str, project: Option<&str>, settings: &Settings) -> anyhow::Result<Self> {
        let connections = settings.connections();
        let mut db = store::connect(&connections.database_url).await?; // tells at once when nobody is there
        let projects = match project {
            Some(id) => vec![store::project(&mut db, id).await?.ok_or_else(|| store::no_project(id))?.id],
            None => store::live_projects(&mut db).await?.into_iter().map(|project| project.id).collect(),
        };
        let pool = postgres::pool(&connections.database_url, 4)?;
        let contents = contents(&pool, projects).await.map_err(explain)?;
        // The workers' settings, so that what is written is what they would write.
        let config: Config = settings.section("stream")?;
        let definitions = Definitions::new(pool.clone(), config.metrics_dir.as_deref())?;
        let redis = Redis::background(url)?;
        let cache = Cache::new(pool, redis.clone(), definitions, config.compress_sessions_above);
        Ok(Self { db, redis, cache, contents })
    }

    fn projects(&self) -> Vec<String> {
        self.contents.iter().map(|contents| contents.project.clone()).collect()
    }
}

async fn contents(pool: &PgPool, projects: Vec<String>) -> Result<Vec<Contents>, sqlx::Error> {
    let mut all = Vec::with_capacity(projects.len());
    for project in projects {
        let plain =
            |cached: json_schemas::Cached| Plain { key: cached.key, value: cached.value, seconds: cached.seconds };
        let schemas = json_schemas::cached(pool, &project).await?.into_iter().map(plain).collect();
        all.push(Contents { project, schemas });
    }
    Ok(all)
}

/// The library shows nothing where standard error is no terminal.
fn bar(style: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    ProgressBar::new(length).with_style(style)
}

fn failure(error: ProjectError) -> anyhow::Error {
    match error {
        ProjectError::Postgres(error) => explain(error),
        error => error.into(),
    }
}
