//! `tidemill keys`

use anyhow::{Context, anyhow};
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use sqlx::PgConnection;
use tidemill_common::auth;
use tidemill_common::config::Connections;

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, print_line};
use crate::store::{self, Key};

const FIELDS: [&str; 7] = ["prefix", "project", "scopes", "rate_limit", "created_at", "expires_at", "revoked_at"];

#[derive(Subcommand)]
pub enum Command {
    /// Make a key for a project; the key is shown once and kept nowhere
    Create {
        /// The project's id
        project: String,
        /// What the key allows; may be given several times
        #[arg(long, value_enum, required = true, value_delimiter = ',')]
        scope: Vec<Scope>,
        /// Events per second that the key may send [default: no limit]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        rate_limit: Option<i32>,
        /// How long the key works, e.g. 30d, 12h or 15m [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<TimeDelta>,
        #[command(flatten)]
        consent: Consent,
    },
    /// List keys, by their prefixes
    List {
        /// Only this project's
        project: Option<String>,
    },
    /// Make a key useless, within seconds and for ever
    Revoke {
        /// The key's first characters, as `tidemill keys list` shows them
        prefix: String,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Send events
    Write,
    /// Read metrics, sessions and events
    Read,
    /// Operate the project
    Admin,
}

const PLAN: [&str; 4] = ["project", "scopes", "rate_limit", "expires_at"];
const REVOKING: [&str; 7] = ["prefix", "project", "scopes", "created_at", "expires_at", "revoked_at", "note"];

/// A key that is made. The key itself is there once it is.
#[derive(Serialize)]
struct Created {
    key: Option<String>,
    prefix: Option<String>,
    project: String,
    scopes: Vec<&'static str>,
    rate_limit: Option<i32>,
    expires_at: Option<DateTime<Utc>>,
    applied: bool,
}

/// A key that is revoked.
#[derive(Serialize)]
struct Revoked {
    #[serde(flatten)]
    key: Key,
    /// What its project can do with no other key.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    applied: bool,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    match command {
        Command::Create { project, scope, rate_limit, expires, consent } => {
            let known = store::project(&mut db, &project).await?.filter(|project| project.deleted_at.is_none());
            known.with_context(|| no_project(&project))?;
            let expires_at = expires.map(|expires| Utc::now() + expires);
            let scopes = names(&scope);
            let planned = Created { key: None, prefix: None, project, scopes, rate_limit, expires_at, applied: false };
            create(planned, consent, &mut db, output).await
        }
        Command::List { project } => {
            store::known(&mut db, project.as_deref()).await?;
            output.things(&store::keys(&mut db, project.as_deref()).await?, &FIELDS)
        }
        Command::Revoke { prefix, consent } => {
            let mut keys = store::keys(&mut db, None).await?;
            let known = keys.iter().position(|key| key.prefix == prefix);
            let key = keys
                .swap_remove(known.with_context(|| {
                    format!("there is no key with the prefix {prefix:?}; see 'tidemill keys list'")
                })?);
            revoke(key, &keys, consent, &mut db, output).await
        }
    }
}

async fn create(mut created: Created, consent: Consent, db: &mut PgConnection, output: Output) -> anyhow::Result<()> {
    output.plan(&created, &PLAN)?;
    let question = format!("Make a key of project {} for {}?", created.project, created.scopes.join(" and "));
    if !consent.given(&question)? {
        return output.ended(&created, false);
    }
    let new = auth::generate();
    created.prefix = Some(new.prefix.clone());
    let Created { project, scopes, rate_limit, expires_at, .. } = &created;
    let entry = audit::begin(db, "keys create", Some(project), &created).await?;
    let inserted = match store::insert_key(db, &new, project, scopes, *rate_limit, *expires_at).await {
        Ok(false) => Err(anyhow!(no_project(project))),
        inserted => inserted,
    };
    entry.end(db, inserted).await?;
    (created.key, created.applied) = (Some(new.key), true);
    match output {
        Output::Json => output.ended(&created, true),
        Output::Table => {
            output.thing(&created, &["prefix", "key"])?;
            print_line("done; nobody can show this key again")
        }
    }
}

async fn revoke(
    key: Key,
    others: &[Key],
    consent: Consent,
    db: &mut PgConnection,
    output: Output,
) -> anyhow::Result<()> {
    let note = missed(&key, others, Utc::now());
    let mut revoked = Revoked { key, note, applied: false };
    output.plan(&revoked, &REVOKING)?;
    let question = format!("Make key {} of project {} useless for ever?", revoked.key.prefix, revoked.key.project);
    if consent.given(&question)? {
        let entry = audit::begin(db, "keys revoke", Some(&revoked.key.project), &revoked).await?;
        let done = store::revoke_key(db, &revoked.key.prefix).await;
        (revoked.key, revoked.applied) = (entry.end(db, done).await?, true);
    }
    output.ended(&revoked, revoked.applied)
}

fn no_project(project: &str) -> String {
    format!("there is no project {project:?}; make it with 'tidemill projects create {project}'")
}

/// What nobody can do any more without this key.
fn missed(key: &Key, others: &[Key], now: DateTime<Utc>) -> Option<String> {
    let usable = |key: &Key| key.revoked_at.is_none() && key.expires_at.is_none_or(|at| at > now);
    if !usable(key) {
        return Some("it is useless already".to_owned());
    }
    let others: Vec<&Key> = others.iter().filter(|other| other.project == key.project && usable(other)).collect();
    let only = |scope: &&String| others.iter().all(|other| !other.scopes.contains(scope));
    let missed: Vec<&str> = key.scopes.iter().filter(only).map(String::as_str).collect();
    (!missed.is_empty()).then(|| format!("no other key of {} is for: {}", key.project, missed.join(", ")))
}

/// Reads a number of days, hours or minutes; ten years are the most.
fn lifetime(text: &str) -> Result<TimeDelta, String> {
    const MOST: i64 = 10 * 365 * 24 * 60;
    let minutes = [('d', 24 * 60), ('h', 60), ('m', 1)].into_iter().find_map(|(unit, minutes)| {
        let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(minutes).filter(|minutes| (1..=MOST).contains(minutes))
    });
    minutes.map(TimeDelta::minutes).ok_or_else(|| "give a time up to ten years, e.g. 30d, 12h or 15m".to_owned())
}

/// Each scope once, in their order of declaration.
fn names(scopes: &[Scope]) -> Vec<&'static str> {
    let all = [
        (Scope::Write, auth::Scope::Write.as_str()),
        (Scope::Read, auth::Scope::Read.as_str()),
        (Scope::Admin, auth::Scope::Admin.as_str()),
    ];
    all.into_iter().filter(|(scope, _)| scopes.contains(scope)).map(|(_, name)| name).collect()
}
