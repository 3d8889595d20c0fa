//! Kafka: brokers and their settings, every topic beside its declaration, leaders and replicas.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, KafkaResult};
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, KafkaConfig};
use tidemill_topics::{Change, Growth};

use super::{Finding, Found};
use crate::store::Project;
use crate::topics::{Declared, difference};

const CHECK: &str = "kafka";
const TOPICS: &str = "topics";
const TIMEOUT: Duration = Duration::from_secs(8);
/// What a topic id is where the brokers have none.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// What the metadata say.
struct Seen {
    brokers: Vec<i32>,
    /// Partitions of our topics without a leader, and with fewer replicas in sync than there are.
    leaderless: Vec<String>,
    lagging: Vec<String>,
}

pub async fn check(connections: &Connections, declared: &Declared, projects: &[Project]) -> Found<()> {
    let kafka = connections.kafka.clone();
    let seen = match tokio::task::spawn_blocking(move || look(&kafka)).await.unwrap_or(Err(KafkaError::Canceled)) {
        Ok(seen) => seen,
        Err(error) => {
            let what = format!("Kafka at {} does not answer: {error}", connections.kafka.brokers);
            return (vec![Finding::failure(CHECK, what, "mend KAFKA_BROKERS, or start Kafka")], ());
        }
    };
    let mut findings = vec![Finding::ok(CHECK, format!("{} brokers answer", seen.brokers.len()))];
    if seen.brokers.len() < 3 {
        let what =
            format!("with {} brokers, one that is lost takes events with it or stops everything", seen.brokers.len());
        findings.push(Finding::warning(CHECK, what, "run three or more, and topics with replication 3"));
    }
    findings.extend(partitions(&seen));
    findings.extend(broker_settings(connections, &seen).await);
    findings.extend(topic_ids(connections, projects).await);
    findings.extend(topics(connections, declared).await);
    (findings, ())
}

fn look(kafka: &KafkaConfig) -> KafkaResult<Seen> {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let metadata = admin.inner().fetch_metadata(None, TIMEOUT)?;
    let mut seen = Seen { brokers: Vec::new(), leaderless: Vec::new(), lagging: Vec::new() };
    seen.brokers.extend(metadata.brokers().iter().map(|broker| broker.id()));
    let ours = |name: &str| name.starts_with("events.") || name.starts_with("metrics.");
    for topic in metadata.topics().iter().filter(|topic| ours(topic.name())) {
        for partition in topic.partitions() {
            let name = format!("{}/{}", topic.name(), partition.id());
            if partition.leader() < 0 {
                seen.leaderless.push(name);
            } else if partition.isr().len() < partition.replicas().len() {
                seen.lagging.push(name);
            }
        }
    }
    Ok(seen)
}

fn partitions(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !seen.leaderless.is_empty() {
        let what = format!("partitions without a leader: {}", some(&seen.leaderless));
        findings.push(Finding::failure(TOPICS, what, "start their brokers; look at the controller's log"));
    }
    if !seen.lagging.is_empty() {
        let what = format!("partitions with replicas that are not in sync: {}", some(&seen.lagging));
        findings.push(Finding::warning(TOPICS, what, "start the missing brokers, or wait until they have caught up"));
    }
    findings
}

/// The first of many.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

async fn broker_settings(connections: &Connections, seen: &Seen) -> Vec<Finding> {
    let Some(first) = seen.brokers.first() else { return Vec::new() };
    let described = async {
        let admin: AdminClient<DefaultClientContext> = connections.kafka.client().create()?;
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        admin.describe_configs(&[ResourceSpecifier::Broker(*first)], &options).await
    };
    let settings: BTreeMap<String, String> = match described.await {
        Ok(resources) => {
            let entries = resources.into_iter().flatten().flat_map(|resource| resource.entries);
            entries.filter_map(|entry| Some((entry.name, entry.value?))).collect()
        }
        Err(error) => {
            let what = format!("the brokers' settings cannot be read: {error}");
            return vec![Finding::warning(CHECK, what, "allow DescribeConfigs on the cluster")];
        }
    };
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    let mut findings = Vec::new();
    if is("auto.create.topics.enable", "true") {
        let what = "brokers create topics for whoever names one, with settings that nobody chose";
        findings.push(Finding::warning(CHECK, what, "set auto.create.topics.enable=false"));
    }
    if is("unclean.leader.election.enable", "true") {
        let what = "brokers let a replica lead that has missed records: events that were accepted can be lost";
        findings.push(Finding::failure(CHECK, what, "set unclean.leader.election.enable=false"));
    }
    let bytes = settings.get("message.max.bytes").and_then(|bytes| bytes.parse::<u64>().ok());
    if bytes.is_some_and(|bytes| bytes < 1_048_588) {
        let what = "brokers take records of less than 1 MiB: large events that are valid would be refused";
        findings.push(Finding::failure(CHECK, what, "set message.max.bytes to 1048588 or more"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "the brokers' settings are safe"));
    }
    findings
}

/// A topic that is made again is known by its id.
async fn topic_ids(connections: &Connections, projects: &[Project]) -> Vec<Finding> {
    let topics: Vec<String> = projects.iter().flat_map(Project::topics).collect();
    if topics.is_empty() {
        return Vec::new();
    }
    let history = History::new(connections.kafka.clone());
    let ask = move || history.incarnations(&topics, TIMEOUT);
    match tokio::task::spawn_blocking(ask).await.unwrap_or(Err(KafkaError::Canceled)) {
        Ok(found) if found.values().any(|id| id == NO_ID) => {
            let what = "brokers give topics no ids, so one that was made again cannot be told from the old one";
            vec![Finding::failure(CHECK, what, "upgrade to Kafka 2.8 or later; 4.1 is what the tests run on")]
        }
        Ok(_) => vec![Finding::ok(CHECK, "topics have ids")],
        Err(error) => {
            let what = format!("topics' ids cannot be read: {error}");
            vec![Finding::failure(CHECK, what, "allow Describe on topics 'events.*'; Kafka 2.8 or later is needed")]
        }
    }
}

/// Existing topics beside their declarations; counts of partitions beside those in Postgres.
async fn topics(connections: &Connections, declared: &Declared) -> Vec<Finding> {
    match difference(declared, connections).await {
        Ok((_, difference)) if difference.is_empty() => vec![Finding::ok(TOPICS, "all topics are as declared")],
        Ok((_, difference)) => {
            let grow = |growth: &Growth| {
                let what = format!(
                    "project {} has {} partitions where {} are declared",
                    growth.project, growth.from, growth.to
                );
                Finding::warning(TOPICS, what, APPLY)
            };
            difference.changes.iter().map(judge).chain(difference.growths.iter().map(grow)).collect()
        }
        Err(error) => {
            vec![Finding::failure(TOPICS, format!("{error:#}"), "allow Describe and DescribeConfigs on topics")]
        }
    }
}

const APPLY: &str = "run 'tidemill topics apply'";

fn judge(change: &Change) -> Finding {
    match change {
        Change::Create(topic) => Finding::failure(TOPICS, format!("topic {} is missing", topic.name), APPLY),
        // First sight goes by the broker's time.
        Change::Set { setting, .. } if setting == "message.timestamp.type" => {
            Finding::failure(TOPICS, change.to_string(), APPLY)
        }
        Change::Set { .. } | Change::Grow { .. } => Finding::warning(TOPICS, change.to_string(), APPLY),
        Change::Drift { setting, .. } if setting == "partitions" => {
            let what_to_do = "never change it with Kafka's own tools. More partitions than are declared are a growth that was cut short, \
                 or Postgres from before it: see 'tidemill projects grow'";
            Finding::failure(TOPICS, change.to_string(), what_to_do)
        }
        Change::Drift { .. } => {
            Finding::warning(TOPICS, change.to_string(), "mend it, or change the declaration in topics/*.yaml")
        }
    }
}
