//! `tidemill projects create`
//!
//! What is there is looked at, what is missing is made, in an order in which whoever sees a part finds those that it
//! needs in place. So a run that was cut short is completed by the same command.

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tidemill_archiver::table::Tables;
use tidemill_common::auth::{self, NewKey, Scope};
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::codec::processed::PROCESSED_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::failpoint::hit;
use tidemill_common::names::{ProjectId, events_topic, processed_topic};
use tidemill_common::registry::Registry;
use tidemill_topics::{Change, Partitions};

use super::partitions::{partitions, refuse_other_partitions};
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line, print_line, spinner, told};
use crate::store::{self, Project};
use crate::topics::{Declared, Target};

const PARTS: [&str; 4] = ["part", "name", "state", "note"];
const KEYS: [&str; 2] = ["scopes", "key"];
/// What a project's first keys allow, a key each.
const FIRST_KEYS: [Scope; 2] = [Scope::Write, Scope::Read];
const AGAIN: &str = "what was made stays; run the same command again, and it goes on from here";

/// What is asked for.
pub struct Wanted {
    pub id: String,
    pub size: Option<String>,
    pub quota: Option<i32>,
    pub keys: bool,
    pub declared: Declared,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It was there before.
    There,
    /// It is otherwise than declared, and is left so.
    Differs,
    Missing,
    Made,
}

/// One of the things that a project consists of.
#[derive(Serialize)]
struct Part {
    part: &'static str,
    name: String,
    state: State,
    note: Option<String>,
}

/// A key, shown once.
#[derive(Serialize)]
struct FirstKey {
    key: String,
    prefix: String,
    scopes: [&'static str; 1],
}

/// The plan, and then what came of it.
#[derive(Serialize)]
struct Creation {
    project: String,
    partitions: i32,
    dlq_partitions: i32,
    quota_per_second: Option<i32>,
    applied: bool,
    /// Whether the project is new.
    created: bool,
    /// Of the topics: those that were created, and differences that were only found, in words.
    topics_created: Vec<String>,
    drift: Vec<String>,
    parts: Vec<Part>,
    keys: Vec<FirstKey>,
}

/// What is there, and what is to be made of it.
struct Look {
    id: ProjectId,
    known: Option<Project>,
    partitions: Partitions,
    changes: Vec<Change>,
    target: Target,
    registry: Registry,
    /// Subject, schema, and what it lacks.
    schemas: Vec<(String, &'static str, Option<String>)>,
    tables: Tables,
    has_table: bool,
    /// A new quota.
    quota: Option<i32>,
    keys: bool,
}

pub async fn run(wanted: &Wanted, consent: Consent, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let bar = spinner("looking at what is there");
    let look = Look::at(wanted, connections, &mut db).await;
    bar.finish_and_clear();
    let look = look?;
    let mut creation = look.creation();
    if matches!(output, Output::Table) {
        output.things(&creation.parts, &PARTS)?;
    }
    let missing = creation.parts.iter().filter(|part| part.state == State::Missing).count();
    let question = match look.known {
        None => format!("Make project {}?", look.id),
        Some(_) => format!("Project {} is there. Make the {missing} parts that it lacks?", look.id),
    };
    if missing > 0 && consent.given(&question)? {
        let entry = audit::begin(&mut db, "projects create", Some(look.id.as_str()), &creation).await?;
        let bar = spinner("beginning");
        let made = look.make(&mut db, &bar).await.map_err(|error| anyhow!("{}; {AGAIN}", told(&error)));
        bar.finish_and_clear();
        let (kept, keys) = entry.end(&mut db, made).await?;
        creation.finish(kept, keys);
    }
    match output {
        Output::Json => json_line(&creation),
        Output::Table if missing == 0 => print_line("there is nothing to do"),
        Output::Table if creation.keys.is_empty() => output.ended(&creation, creation.applied),
        Output::Table => {
            output.things(&creation.keys, &KEYS)?;
            print_line("done; nobody can show these keys again")
        }
    }
}

impl Look {
    async fn at(wanted: &Wanted, connections: &Connections, db: &mut PgConnection) -> anyhow::Result<Self> {
        let id = ProjectId::parse(&wanted.id)?;
        let known = store::project(db, id.as_str()).await?;
        if known.as_ref().is_some_and(|project| project.deleted_at.is_some()) {
            bail!("project {id} was deleted and its id is never used again; choose another id");
        }
        let target = Target::new(&wanted.declared, connections).await?;
        let partitions = partitions(known.as_ref(), wanted.size.as_deref(), &target)?;
        let routed = known.as_ref().map(Project::routed).unwrap_or_default();
        let changes = target.plan(&target.declarations.project(&id, partitions, &routed, target.replication)).await?;
        if known.is_none() {
            refuse_other_partitions(&changes)?;
        }
        let registry = Registry::new(&connections.registry_url)?;
        let mut schemas = Vec::new();
        // Dead letters are whatever bytes came in, so their topic has no schema.
        let events = known.as_ref().map_or_else(|| vec![events_topic(id.as_str())], Project::topics);
        let events = events.into_iter().map(|topic| (topic, EVENT_SCHEMA));
        for (topic, schema) in events.chain([(processed_topic(id.as_str()), PROCESSED_SCHEMA)]) {
            let subject = format!("{topic}-value");
            let lacks = registry.lacks(&subject, schema).await?;
            schemas.push((subject, schema, lacks));
        }
        let place = &connections.warehouse_url;
        if !["file:///", "s3://"].iter().any(|scheme| place.starts_with(scheme)) {
            bail!("WAREHOUSE_URL is {place:?}; give the archiver's, which begins with file:/// or s3://");
        }
        let tables = Tables::new(connections);
        let table =
            tables.load(id.as_str()).await.context("the archive cannot be looked at; is WAREHOUSE_URL right?")?;
        let quota = wanted.quota.filter(|_| wanted.quota != known.as_ref().and_then(|known| known.quota_per_second));
        let keys = wanted.keys && !store::had_keys(db, id.as_str()).await?;
        let has_table = table.is_some();
        Ok(Self { id, known, partitions, changes, target, registry, schemas, tables, has_table, quota, keys })
    }

    fn creation(&self) -> Creation {
        let known = self.known.as_ref();
        Creation {
            project: self.id.to_string(),
            partitions: self.partitions.events,
            dlq_partitions: self.partitions.dlq,
            quota_per_second: self.quota.or(known.and_then(|known| known.quota_per_second)),
            applied: false,
            created: false,
            topics_created: Vec::new(),
            drift: self.changes.iter().filter(|change| !is_missing(change)).map(Change::to_string).collect(),
            parts: self.parts(),
            keys: Vec::new(),
        }
    }

    fn parts(&self) -> Vec<Part> {
        let part = |part, name: String, state, note| Part { part, name, state, note };
        let missing = |is: bool| if is { State::Missing } else { State::There };
        let mut parts = Vec::new();
        let routed = self.known.as_ref().map(Project::routed).unwrap_or_default();
        for topic in self.target.declarations.project(&self.id, self.partitions, &routed, self.target.replication) {
            let found = self.changes.iter().find(|change| change.of() == topic.name);
            let (state, note) = match found {
                None => (State::There, None),
                Some(Change::Create(topic)) => (
                    State::Missing,
                    Some(format!("{} partitions, replication {}", topic.partitions, topic.replication)),
                ),
                Some(_) => (State::Differs, Some("see 'tidemill topics plan'".to_owned())),
            };
            parts.push(part("topic", topic.name, state, note));
        }
        for (subject, _, lacks) in &self.schemas {
            parts.push(part("schema", subject.clone(), missing(lacks.is_some()), lacks.clone()));
        }
        parts.push(part("table", format!("tidemill.{}.events", self.id), missing(!self.has_table), None));
        parts.push(part("project", self.id.to_string(), missing(self.known.is_none()), None));
        if let Some(quota) = self.quota {
            parts.push(part("quota", format!("{quota} events a second"), State::Missing, None));
        }
        if self.keys {
            let key = |scope: Scope| part("key", scope.as_str().to_owned(), State::Missing, None);
            parts.extend(FIRST_KEYS.map(key));
        }
        parts
    }

    /// Each step is safe to take again.
    async fn make(&self, db: &mut PgConnection, bar: &ProgressBar) -> anyhow::Result<(Project, Vec<NewKey>)> {
        let id = self.id.as_str();
        bar.set_message("topics");
        hit("projects.topics").await?;
        let missing: Vec<Change> = self.changes.iter().filter(|change| is_missing(change)).cloned().collect();
        self.target.cluster.apply(&missing).await?;
        bar.set_message("schemas");
        for (subject, schema, _) in self.schemas.iter().filter(|(.., lacks)| lacks.is_some()) {
            hit("projects.schemas").await?;
            self.registry.register(subject, schema).await?;
            self.registry.keep_backward_compatible(subject).await?;
        }
        bar.set_message("table");
        hit("projects.table").await?;
        self.tables.load_or_create(id).await.context("the archive's table cannot be made")?;
        bar.set_message("project");
        hit("projects.row").await?;
        store::insert_project(db, id, self.partitions).await?;
        if self.quota.is_some() {
            store::set_quota(db, id, self.quota).await?;
        }
        let kept = store::project(db, id).await?.context("the project's row vanished")?;
        if kept.partitions() != self.partitions {
            bail!("project {id} was created with other partition counts by someone else just now");
        }
        bar.set_message("keys");
        hit("projects.keys").await?;
        let keys = if self.keys { first_keys(db, id).await? } else { Vec::new() };
        Ok((kept, keys))
    }
}

impl Creation {
    fn finish(&mut self, kept: Project, keys: Vec<NewKey>) {
        self.applied = true;
        self.quota_per_second = kept.quota_per_second;
        let keys = FIRST_KEYS.into_iter().zip(keys);
        self.keys =
            keys.map(|(scope, new)| FirstKey { key: new.key, prefix: new.prefix, scopes: [scope.as_str()] }).collect();
        for part in self.parts.iter_mut().filter(|part| part.state == State::Missing) {
            part.state = State::Made;
            match part.part {
                "key" if self.keys.is_empty() => part.state = State::There, // somebody else's
                "topic" => self.topics_created.push(part.name.clone()),
                "project" => self.created = true,
                _ => {}
            }
        }
    }
}

/// All or none, and none if somebody else has made some just now: whoever did has seen them.
async fn first_keys(db: &mut PgConnection, project: &str) -> anyhow::Result<Vec<NewKey>> {
    let mut tx = db.begin().await.map_err(store::explain)?;
    store::lock_project(&mut tx, project).await?;
    let mut keys = Vec::new();
    if !store::had_keys(&mut tx, project).await? {
        for scope in FIRST_KEYS {
            let new = auth::generate();
            store::insert_key(&mut tx, &new, project, &[scope.as_str()], None, None).await?;
            keys.push(new);
        }
    }
    tx.commit().await.map_err(store::explain)?;
    Ok(keys)
}

/// Only topics that are missing are made here; the rest is for `topics apply`.
fn is_missing(change: &Change) -> bool {
    matches!(change, Change::Create(_))
}
