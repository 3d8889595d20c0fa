//! `tidemill keys`

use anyhow::{Context, anyhow};
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;
use tidemill_common::auth;
use tidemill_common::config::Connections;

use crate::audit;
use crate::consent::Consent;
use crate::output::Output;
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

#[derive(Serialize)]
struct Created {
    key: String,
    prefix: String,
    project: String,
    scopes: Vec<&'static str>,
    rate_limit: Option<i32>,
    expires_at: Option<DateTime<Utc>>,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    match command {
        Command::Create { project, scope, rate_limit, expires } => {
            let expires_at = expires.map(|expires| Utc::now() + expires);
            let scopes = names(&scope);
            let new = auth::generate();
            let plan =
                json!({"prefix": new.prefix, "scopes": scopes, "rate_limit": rate_limit, "expires_at": expires_at});
            let entry = audit::begin(&mut db, "keys create", Some(&project), &plan).await?;
            let inserted = match store::insert_key(&mut db, &new, &project, &scopes, rate_limit, expires_at).await {
                Ok(false) => {
                    Err(anyhow!("there is no project {project:?}; make it with 'tidemill projects create {project}'"))
                }
                inserted => inserted,
            };
            entry.end(&mut db, inserted).await?;
            let created = Created { key: new.key, prefix: new.prefix, project, scopes, rate_limit, expires_at };
            output.thing(&created, &["key", "prefix", "project", "scopes", "rate_limit", "expires_at"])
        }
        Command::List { project } => output.things(&store::keys(&mut db, project.as_deref()).await?, &FIELDS),
        Command::Revoke { prefix, consent } => {
            let known = store::keys(&mut db, None).await?.into_iter().find(|key| key.prefix == prefix);
            let mut key: Key = known
                .with_context(|| format!("there is no key with the prefix {prefix:?}; see 'tidemill keys list'"))?;
            let question = format!("Make key {prefix} of project {} useless for ever?", key.project);
            if consent.given(&question)? {
                let entry = audit::begin(&mut db, "keys revoke", Some(&key.project), &key).await?;
                let revoked = store::revoke_key(&mut db, &prefix).await;
                key = entry.end(&mut db, revoked).await?;
            }
            output.thing(&key, &FIELDS)
        }
    }
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
