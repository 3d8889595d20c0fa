//! `tidemill keys`

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use tidemill_common::auth;
use tidemill_common::config::Connections;

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
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    match command {
        Command::Create { project, scope, rate_limit } => {
            let scopes = names(&scope);
            let new = auth::generate();
            if !store::insert_key(&mut db, &new, &project, &scopes, rate_limit).await? {
                bail!("there is no project {project:?}; make it with 'tidemill projects create {project}'");
            }
            let created = Created { key: new.key, prefix: new.prefix, project, scopes, rate_limit };
            output.thing(&created, &["key", "prefix", "project", "scopes", "rate_limit"])
        }
        Command::List { project } => output.things(&store::keys(&mut db, project.as_deref()).await?, &FIELDS),
        Command::Revoke { prefix } => {
            let revoked: Key = store::revoke_key(&mut db, &prefix)
                .await?
                .with_context(|| format!("there is no key with the prefix {prefix:?}; see 'tidemill keys list'"))?;
            output.thing(&revoked, &FIELDS)
        }
    }
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
