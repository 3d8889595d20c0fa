//! Where declared metrics come from: YAML files for all projects, Postgres for single ones.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde::Deserialize;
use sqlx::{PgPool, Row};
use tidemill_common::declared::{Unreadable, yaml_files};
use tokio_util::sync::CancellationToken;

use super::compiled::Metrics;
use super::declaration::{BadDeclaration, Declaration};

/// How soon a change in Postgres is known everywhere.
pub const REFRESH: Duration = Duration::from_secs(2);
const EMBEDDED: [(&str, &str); 1] = [("commerce.yaml", include_str!("../../../metrics/commerce.yaml"))];

/// The declared metrics, kept up to date. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Definitions {
    pool: PgPool,
    /// From the files: for all projects.
    everywhere: Arc<Vec<Declaration>>,
    current: Arc<RwLock<Option<Arc<Snapshot>>>>,
}

/// The declared metrics at a time.
#[derive(Debug, Default)]
pub struct Snapshot {
    everywhere: Arc<Metrics>,
    projects: HashMap<String, Arc<Metrics>>,
    own: HashMap<String, Vec<Declaration>>,
}

/// Declarations in files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// A file or the folder cannot be read.
    #[error("{0}; metrics_dir must name a folder with declared metrics (*.yaml)")]
    Unreadable(#[from] Unreadable),
    /// A file does not say what it should.
    #[error("{file}: {problem}")]
    Invalid {
        /// Its name.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A metric of a file is wrong.
    #[error("{file}: {metric}: {problem}")]
    Metric {
        /// Its name.
        file: String,
        /// The metric's.
        metric: String,
        /// What is wrong.
        problem: BadDeclaration,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    metrics: Vec<Declaration>,
}

impl Definitions {
    /// The metrics of the folder's files (those in the binary where there is none), and those in Postgres, which is
    /// asked later.
    pub fn new(pool: PgPool, folder: Option<&Path>) -> Result<Self, DefinitionError> {
        let everywhere = match folder {
            Some(folder) => parse(yaml_files(folder)?)?,
            None => parse(EMBEDDED.into_iter().map(|(file, text)| (file.to_owned(), text.to_owned())))?,
        };
        Ok(Self { pool, everywhere: Arc::new(everywhere), current: Arc::default() })
    }

    /// The metrics as they were a moment ago. Postgres is asked only if it never was.
    pub async fn current(&self) -> Result<Arc<Snapshot>, sqlx::Error> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        self.refresh().await
    }

    /// Asks Postgres.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, sqlx::Error> {
        let rows = sqlx::query("SELECT project, definition FROM metric_definitions ORDER BY project, name")
            .fetch_all(&self.pool)
            .await?;
        let mut own = HashMap::<String, Vec<Declaration>>::new();
        for row in rows {
            let (project, definition): (String, serde_json::Value) = (row.try_get(0)?, row.try_get(1)?);
            match Declaration::from_json(definition) {
                Ok(declared) => own.entry(project).or_default().push(declared),
                // Written by a newer version, perhaps; the others go on.
                Err(error) => tracing::error!(%error, project, "a declared metric is not understood"),
            }
        }
        let known = self.known().filter(|known| known.own == own);
        let snapshot = known.unwrap_or_else(|| Arc::new(Snapshot::of(&self.everywhere, own)));
        *self.current.write().expect("no holder panics") = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Asks Postgres again and again until shutdown.
    pub fn watch(&self, shutdown: CancellationToken) {
        let definitions = self.clone();
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(REFRESH)).await.is_some() {
                if let Err(error) = definitions.refresh().await {
                    tracing::debug!(%error, "declared metrics are those known before");
                }
            }
        });
    }

    fn known(&self) -> Option<Arc<Snapshot>> {
        self.current.read().expect("no holder panics").clone()
    }
}

impl Snapshot {
    /// These metrics for all projects, and more for some; a project's own go first.
    pub fn of(everywhere: &[Declaration], own: HashMap<String, Vec<Declaration>>) -> Self {
        let metrics = |declared: &Vec<Declaration>| Arc::new(Metrics::of(everywhere.iter().chain(declared).cloned()));
        Self {
            everywhere: Arc::new(Metrics::of(everywhere.iter().cloned())),
            projects: own.iter().map(|(project, declared)| (project.clone(), metrics(declared))).collect(),
            own,
        }
    }

    /// A project's metrics.
    pub fn project(&self, project: &str) -> &Arc<Metrics> {
        self.projects.get(project).unwrap_or(&self.everywhere)
    }

    /// Whether a metric is declared for this project alone.
    pub fn is_own(&self, project: &str, name: &str) -> bool {
        self.own.get(project).is_some_and(|own| own.iter().any(|declared| declared.name == name))
    }
}

fn parse(texts: impl IntoIterator<Item = (String, String)>) -> Result<Vec<Declaration>, DefinitionError> {
    let mut all = Vec::<Declaration>::new();
    for (file, text) in texts {
        let parsed: Result<File, _> = serde_yaml_ng::from_str(&text);
        let parsed =
            parsed.map_err(|error| DefinitionError::Invalid { file: file.clone(), problem: error.to_string() })?;
        for declared in parsed.metrics {
            let checked = declared.check().and_then(|()| {
                let twice = all.iter().any(|other| other.name == declared.name);
                if twice {
                    Err(BadDeclaration { field: "name", problem: "is declared twice".to_owned() })
                } else {
                    Ok(())
                }
            });
            if let Err(problem) = checked {
                return Err(DefinitionError::Metric { file, metric: declared.name, problem });
            }
            all.push(declared);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_files_of_the_repository_are_those_in_the_binary() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../metrics"));
        let embedded = EMBEDDED.into_iter().map(|(file, text)| (file.to_owned(), text.to_owned()));
        let names = |all: Vec<Declaration>| all.into_iter().map(|declared| declared.name).collect::<Vec<_>>();
        assert_eq!(
            names(parse(yaml_files(folder).expect("a folder")).expect("good")),
            names(parse(embedded).expect("good"))
        );
    }

    #[test]
    fn mistakes_in_files_are_named() {
        let problem = |text: &str| parse([("x.yaml".to_owned(), text.to_owned())]).expect_err("wrong").to_string();
        assert!(problem("metrics: [{name: a, agregation: sum}]").starts_with("x.yaml: "));
        assert_eq!(
            problem("metrics: [{name: a, aggregation: sum}]"),
            "x.yaml: a: field: sum needs one: a property's name, userId or sessionId"
        );
        assert_eq!(problem("metrics: [{name: a}, {name: a}]"), "x.yaml: a: name: is declared twice");
    }

    #[test]
    fn a_projects_own_metrics_go_before_those_for_all() {
        let declared = |json| Declaration::from_json(json).expect("good");
        let own = declared(json!({"name": "a", "aggregation": "sum", "field": "x"}));
        let all = [declared(json!({"name": "a"})), declared(json!({"name": "b"}))];
        let snapshot = Snapshot::of(&all, HashMap::from([("shop".to_owned(), vec![own])]));
        let aggregation = |project| snapshot.project(project).get("a").map(|metric| metric.aggregation().as_str());
        assert_eq!((aggregation("shop"), aggregation("blog")), (Some("sum"), Some("count")));
        assert!(snapshot.project("shop").get("b").is_some());
        assert!(snapshot.is_own("shop", "a") && !snapshot.is_own("blog", "a"));
    }
}
