//! `tidemill schemas`

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use tidemill_common::config::Connections;
use tidemill_common::projects::SchemaMode;
use tidemill_ingest::json_schemas::{self, MOST_BYTES, Registration, SchemaError};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line, print_line};
use crate::setting::Setting;
use crate::store;

#[derive(Subcommand)]
pub enum Command {
    /// Register a schema of an event type's properties
    ///
    /// It becomes the next version, unless it is the same as the newest. Events that are valid under the newest
    /// version must stay valid. Gateways use it within seconds.
    Register {
        #[command(flatten)]
        new: New,
        /// Register it even if events that were valid may become invalid
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Say whether a schema could be registered, and what is against it
    Check(New),
    /// List a project's schemas
    List {
        /// The project's id
        project: String,
    },
    /// Show an event type's schema
    #[command(disable_version_flag = true)]
    Show {
        /// The project's id
        project: String,
        /// The event type
        event_type: String,
        /// Not the newest but this one
        #[arg(long, value_name = "N")]
        version: Option<i32>,
    },
    /// Show or change what a project does with events that break their schema
    Mode {
        /// The project's id
        project: String,
        /// The new mode
        mode: Option<Mode>,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Args)]
pub struct New {
    /// The project's id
    project: String,
    /// The event type
    event_type: String,
    /// The JSON Schema of the events' `properties`; `-` is standard input
    file: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    /// Nobody looks
    Off,
    /// They are accepted and counted
    Warn,
    /// They are invalid
    Strict,
}

#[derive(Serialize)]
struct Registered {
    project: String,
    event_type: String,
    version: i32,
    created: bool,
}

/// A schema that is registered.
#[derive(Serialize)]
struct Registering {
    #[serde(flatten)]
    schema: Registered,
    /// Whether events that were valid may become invalid.
    force: bool,
    applied: bool,
}

#[derive(Serialize)]
struct Version {
    event_type: String,
    version: i32,
    created_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Value>,
}

#[derive(Serialize)]
struct ProjectMode {
    project: String,
    mode: &'static str,
    /// Whether it was changed.
    applied: bool,
}

const REGISTERED: [&str; 4] = ["project", "event_type", "version", "created"];

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    match command {
        Command::Register { new, force, consent } => register(&new, force, consent, &mut db, output).await,
        Command::Check(new) => {
            let checked = look(&mut db, &Asked::read(&new, false)?, true).await?;
            output.thing(&checked, &REGISTERED)
        }
        Command::List { project } => {
            json_schemas::mode(&mut db, &project).await.map_err(explain)?; // or there is no such project
            let listed = json_schemas::list(&mut db, &project).await.map_err(explain)?;
            let versions: Vec<Version> = listed
                .into_iter()
                .map(|one| Version {
                    event_type: one.event_type,
                    version: one.version,
                    created_at: one.created_at,
                    schema: None,
                })
                .collect();
            output.things(&versions, &["event_type", "version", "created_at"])
        }
        Command::Show { project, event_type, version } => {
            json_schemas::mode(&mut db, &project).await.map_err(explain)?;
            let one = json_schemas::show(&mut db, &project, &event_type, version).await.map_err(explain)?;
            let (version, schema) = (one.version, Some(one.schema));
            let shown = Version { event_type: one.event_type, version, created_at: one.created_at, schema };
            output.thing(&shown, &["event_type", "version", "created_at", "schema"])
        }
        Command::Mode { project, mode, consent } => {
            let before = json_schemas::mode(&mut db, &project).await.map_err(explain)?;
            let Some(mode) = mode.map(named) else {
                let shown = ProjectMode { project, mode: before.as_str(), applied: false };
                return output.thing(&shown, &["project", "mode"]);
            };
            let (from, to) = (before.as_str().into(), mode.as_str().into());
            let setting = Setting { project: &project, setting: "schema_mode", from, to };
            let question = format!("Go over to mode {} in project {project}?", mode.as_str());
            let set = async |db: &mut PgConnection| {
                json_schemas::set_mode(db, &project, mode).await.map(drop).map_err(explain)
            };
            let applied = setting.change("schemas mode", &question, (consent, output), &mut db, set).await?;
            let mode = if applied { mode } else { before }.as_str();
            output.ended(&ProjectMode { project, mode, applied }, applied)
        }
    }
}

/// What is to be registered, read.
struct Asked<'a> {
    new: &'a New,
    text: String,
    force: bool,
}

impl<'a> Asked<'a> {
    fn read(new: &'a New, force: bool) -> anyhow::Result<Self> {
        Ok(Self { new, text: read(&new.file)?, force })
    }
}

async fn register(
    new: &New,
    force: bool,
    consent: Consent,
    db: &mut PgConnection,
    output: Output,
) -> anyhow::Result<()> {
    let asked = Asked::read(new, force)?;
    let schema = look(db, &asked, true).await?;
    let listed = json_schemas::list(db, &new.project).await.map_err(explain)?;
    let there = listed.iter().any(|one| (&one.event_type, one.version) == (&schema.event_type, schema.version));
    let mut registering = Registering { schema, force, applied: false };
    output.plan(&registering, &["project", "event_type", "version", "force"])?;
    let version = registering.schema.version;
    if there {
        return match output {
            Output::Json => json_line(&registering),
            Output::Table => print_line("there is nothing to do: it is the newest already"),
        };
    }
    let question = format!("Register version {version} for {} of project {}?", new.event_type, new.project);
    if consent.given(&question)? {
        let entry = audit::begin(db, "schemas register", Some(&new.project), &registering).await?;
        let done = look(db, &asked, false).await;
        (registering.schema, registering.applied) = (entry.end(db, done).await?, true);
    }
    output.ended(&registering, registering.applied)
}

async fn look(db: &mut PgConnection, asked: &Asked<'_>, dry_run: bool) -> anyhow::Result<Registered> {
    let Asked { new, text, force } = asked;
    let registration =
        Registration { project: &new.project, event_type: &new.event_type, schema: text, force: *force, dry_run };
    let done = json_schemas::register(db, &registration).await.map_err(explain)?;
    Ok(Registered { project: done.project, event_type: done.event_type, version: done.version, created: done.created })
}

/// No more than a schema may have, and one byte, so that it can be told.
fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(MOST_BYTES as u64 + 1).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(MOST_BYTES as u64 + 1).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}

fn named(mode: Mode) -> SchemaMode {
    match mode {
        Mode::Off => SchemaMode::Off,
        Mode::Warn => SchemaMode::Warn,
        Mode::Strict => SchemaMode::Strict,
    }
}

fn explain(error: SchemaError) -> anyhow::Error {
    match error {
        SchemaError::Postgres(error) => store::explain(error),
        SchemaError::Incompatible { .. } => {
            anyhow!("{}", error.to_string().replace("or force it", "or register it with --force"))
        }
        other => other.into(),
    }
}
