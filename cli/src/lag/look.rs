//! Where all views stand, asked of those who know: the ledger, the archive's tables, and Kafka.

use std::collections::HashMap;

use anyhow::Context;
use rdkafka::error::KafkaError;
use sqlx::PgConnection;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition};
use tidemill_common::progress::{Lags, PartitionLag};
use tidemill_stream::hot::findings;

use super::View;
use crate::store::{self, Project, explain};

const KAFKA: std::time::Duration = std::time::Duration::from_secs(10);

type Offsets = HashMap<TopicPartition, i64>;

/// Looks at the views of some projects.
pub struct Looker {
    db: PgConnection,
    kafka: KafkaConfig,
    history: History,
    tables: Tables,
    project: Option<String>,
    views: Vec<(View, Lags)>,
}

impl Looker {
    /// For one project, or all.
    pub async fn new(connections: &Connections, project: Option<String>, views: &[View]) -> anyhow::Result<Self> {
        Ok(Self {
            db: store::connect(&connections.database_url).await?,
            kafka: connections.kafka.clone(),
            history: History::new(connections.kafka.clone()),
            tables: Tables::new(connections),
            project,
            views: views.iter().map(|view| (*view, Lags::default())).collect(),
        })
    }

    /// Looks once more.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        let mut projects = store::live_projects(&mut self.db).await?;
        projects.retain(|project| self.project.as_ref().is_none_or(|wanted| *wanted == project.id));
        if let (Some(project), true) = (&self.project, projects.is_empty()) {
            return Err(store::no_project(project));
        }
        if projects.is_empty() {
            return Ok(());
        }
        let topics: Vec<String> = projects.iter().flat_map(Project::topics).collect();
        let incarnations = self.ask(move |history| history.incarnations(&topics, KAFKA)).await?;
        let partitions = projects.iter().flat_map(Project::events_partitions);
        let partitions: Vec<TopicPartition> = partitions.filter(|at| incarnations.contains_key(&*at.topic)).collect();
        let asked = partitions.clone();
        let ends = self.ask(move |history| history.ends(&asked)).await?;
        for index in 0..self.views.len() {
            let positions = match self.views[index].0 {
                View::Stream => tidemill_stream::lag::positions(&mut self.db, &incarnations).await.map_err(explain)?,
                View::Archiver => {
                    let mut positions = Offsets::new();
                    for project in &projects {
                        let of = tidemill_archiver::lag::positions(&self.tables, &project.id, &incarnations).await?;
                        positions.extend(of);
                    }
                    positions
                }
            };
            let positions = self.completed(positions, &partitions).await?;
            self.views[index].1.look(chrono::Utc::now().timestamp_millis(), &positions, &ends);
        }
        Ok(())
    }

    /// How all partitions stand, and which of them are hot.
    pub async fn rows(&mut self) -> anyhow::Result<Vec<(PartitionLag, bool)>> {
        for index in 0..self.views.len() {
            let asked = self.views[index].1.questions();
            if !asked.is_empty() {
                let (asked, told) =
                    self.ask(move |history| history.append_times(&asked).map(|told| (asked, told))).await?;
                self.views[index].1.told(&asked, &told);
            }
        }
        let hot = findings::found(&mut self.db, false).await.map_err(explain)?;
        let is_hot = |row: &PartitionLag| {
            hot.iter()
                .any(|hot| (hot.view.as_str(), &*hot.topic, hot.partition) == (row.view, &*row.topic, row.partition))
        };
        let rows = self.views.iter().flat_map(|(view, lags)| lags.rows(view.name()));
        Ok(rows.map(|row| (is_hot(&row), row)).map(|(hot, row)| (row, hot)).collect())
    }

    /// Partitions that a view has not had yet stand where the log begins.
    async fn completed(&self, mut positions: Offsets, partitions: &[TopicPartition]) -> anyhow::Result<Offsets> {
        let missing: Vec<TopicPartition> =
            partitions.iter().filter(|at| !positions.contains_key(at)).cloned().collect();
        if !missing.is_empty() {
            let bounds = self.ask(move |history| history.bounds(&missing)).await?;
            positions.extend(bounds.into_iter().map(|(at, (low, _))| (at, low)));
        }
        Ok(positions)
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&History) -> Result<T, KafkaError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let history = self.history.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&history)).await?;
        answer.with_context(|| {
            format!("Kafka at {} does not answer; is KAFKA_BROKERS right and Kafka up?", self.kafka.brokers)
        })
    }
}
