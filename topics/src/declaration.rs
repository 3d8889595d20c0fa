//! The declarations: YAML files, in the binary or in a folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tidemill_common::declared::{Unreadable, yaml_files};
use tidemill_common::names::{ProjectId, events_topic, metrics_topic};

const EMBEDDED: [(&str, &str); 2] =
    [("project.yaml", include_str!("../project.yaml")), ("metrics.yaml", include_str!("../metrics.yaml"))];
/// A topic whose name holds this is a template: every project has one.
const PLACEHOLDER: &str = "{project}";
/// A topic whose name holds this is a template: every declared metric has one.
const METRIC: &str = "{metric}";
const MIN_INSYNC: &str = "min.insync.replicas";

/// All declared topics.
#[derive(Debug, Clone)]
pub struct Declarations {
    files: Vec<Declared>,
}

/// A topic as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many brokers hold each of them.
    pub replication: i32,
    /// Whether a record's partition follows from its key, so that their number must not change by itself.
    pub homes: bool,
    /// Its settings by Kafka's names; what is not here is the broker's default.
    pub config: BTreeMap<String, String>,
}

/// A project's partition counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partitions {
    /// Of its events, as of its processed events.
    pub events: i32,
    /// Of its dead letters.
    pub dlq: i32,
}

/// Declarations that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// A file or the folder cannot be read.
    #[error("{0}; --dir must name a folder with topic declarations (*.yaml)")]
    Unreadable(#[from] Unreadable),
    /// A file does not say what it should.
    #[error("{file}: {problem}")]
    Invalid {
        /// Its name.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Nobody declared this size class.
    #[error("there is no size class {0:?}; declared are: {1}")]
    UnknownSize(String, String),
}

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    #[serde(default)]
    sizes: BTreeMap<String, Partitions>,
    #[serde(default)]
    projects: BTreeMap<String, Wanted>,
    replication: i32,
    min_insync_replicas: i32,
    #[serde(default)]
    config: BTreeMap<String, Value>,
    topics: Vec<Template>,
}

/// What is declared for one project.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Partitions of its events.
    events: i32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    name: String,
    partitions: Count,
    /// How many partitions it has where there is one copy of them, as in development.
    #[serde(default)]
    on_single_broker: Option<i32>,
    #[serde(default)]
    config: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Count {
    Fixed(i32),
    OfProject(ProjectCount),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProjectCount {
    Events,
    Dlq,
}

/// Kafka's settings are text; YAML may well write them as numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Number(i64),
    Text(String),
}

impl Declarations {
    /// Those in the binary.
    pub fn embedded() -> Result<Self, DeclareError> {
        Self::parse(EMBEDDED.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    /// Those of a folder: all its `*.yaml`, by name.
    pub fn read(folder: &Path) -> Result<Self, DeclareError> {
        let texts = yaml_files(folder)?;
        if texts.is_empty() {
            let (path, error) = (folder.display().to_string(), std::io::Error::other("there is no *.yaml in it"));
            return Err(Unreadable { path, error }.into());
        }
        Self::parse(texts)
    }

    fn parse(texts: impl IntoIterator<Item = (String, String)>) -> Result<Self, DeclareError> {
        let parse = |(file, text): (String, String)| {
            let declared = serde_yaml_ng::from_str::<Declared>(&text).map_err(|error| error.to_string());
            declared.and_then(Declared::check).map_err(|problem| DeclareError::Invalid { file, problem })
        };
        Ok(Self { files: texts.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// The partition counts of a size class.
    pub fn size(&self, name: &str) -> Result<Partitions, DeclareError> {
        let sizes = || self.files.iter().flat_map(|file| &file.sizes);
        sizes().find(|(size, _)| *size == name).map(|(_, partitions)| *partitions).ok_or_else(|| {
            let known: Vec<&str> = sizes().map(|(size, _)| size.as_str()).collect();
            DeclareError::UnknownSize(name.to_owned(), known.join(", "))
        })
    }

    /// How many partitions are declared for a project's events; none: as many as it has.
    pub fn events_of(&self, project: &ProjectId) -> Option<i32> {
        self.files.iter().find_map(|file| file.projects.get(project.as_str())).map(|wanted| wanted.events)
    }

    /// The topics that no project owns. `replication` overrides what is declared.
    pub fn shared(&self, replication: Option<i32>) -> Vec<Topic> {
        let fixed = |template: &Template| Some((template.name.clone(), template.fixed(replication)?));
        self.topics(|template| fixed(template).filter(|_| !template.is_per_metric()), replication)
    }

    /// The topic of a metric's updates. `replication` overrides what is declared.
    pub fn metric(&self, metric: &str, replication: Option<i32>) -> Topic {
        let fill_in = |template: &Template| {
            let name = template.name.replace(METRIC, metric);
            if name != metrics_topic(metric) {
                return None;
            }
            Some((name, template.fixed(replication)?))
        };
        self.topics(fill_in, replication).into_iter().next().unwrap_or_else(|| Topic {
            name: metrics_topic(metric),
            partitions: 1,
            replication: replication.unwrap_or(1),
            homes: false,
            config: BTreeMap::new(),
        })
    }

    /// A project's topics; those of its routes (by their names and partitions) are as its own. `replication` overrides what
    /// is declared.
    pub fn project(
        &self,
        project: &ProjectId,
        partitions: Partitions,
        routes: &[(String, i32)],
        replication: Option<i32>,
    ) -> Vec<Topic> {
        let fill_in = |template: &Template| {
            template.is_per_project().then(|| {
                let count = match template.partitions {
                    Count::Fixed(count) => count,
                    Count::OfProject(ProjectCount::Events) => partitions.events,
                    Count::OfProject(ProjectCount::Dlq) => partitions.dlq,
                };
                (template.name.replace(PLACEHOLDER, project.as_str()), count)
            })
        };
        let mut topics = self.topics(fill_in, replication);
        let own = events_topic(project.as_str());
        if let Some(like) = topics.iter().find(|topic| topic.name == own).cloned() {
            let of_route = |(name, partitions): &(String, i32)| Topic {
                name: name.clone(),
                partitions: *partitions,
                ..like.clone()
            };
            topics.extend(routes.iter().map(of_route));
        }
        topics
    }

    fn topics(&self, choose: impl Fn(&Template) -> Option<(String, i32)>, replication: Option<i32>) -> Vec<Topic> {
        let mut topics = Vec::new();
        for file in &self.files {
            let replication = replication.unwrap_or(file.replication);
            // More in-sync replicas than there are replicas would refuse every write.
            let min_insync = file.min_insync_replicas.min(replication).to_string();
            for template in &file.topics {
                let Some((name, partitions)) = choose(template) else { continue };
                let settings = file.config.iter().chain(&template.config);
                let mut config: BTreeMap<_, _> = settings.map(|(key, value)| (key.clone(), value.text())).collect();
                config.insert(MIN_INSYNC.to_owned(), min_insync.clone());
                let homes = matches!(template.partitions, Count::OfProject(ProjectCount::Events));
                topics.push(Topic { name, partitions, replication, homes, config });
            }
        }
        topics
    }
}

impl Declared {
    fn check(self) -> Result<Self, String> {
        if self.replication < 1 || self.min_insync_replicas < 1 {
            return Err("replication and min_insync_replicas must be at least 1".to_owned());
        }
        if let Some((name, _)) = self.sizes.iter().find(|(_, size)| size.events < 1 || size.dlq < 1) {
            return Err(format!("sizes.{name}: partition counts must be at least 1"));
        }
        if let Some((name, _)) = self.projects.iter().find(|(_, wanted)| wanted.events < 1) {
            return Err(format!("projects.{name}: partition counts must be at least 1"));
        }
        for template in &self.topics {
            let name = &template.name;
            match template.partitions {
                Count::Fixed(count) if count.min(template.on_single_broker.unwrap_or(count)) < 1 => {
                    return Err(format!("{name}: partitions must be at least 1"));
                }
                Count::OfProject(_) if !template.is_per_project() => {
                    return Err(format!("{name}: partitions must be a number, since no project owns the topic"));
                }
                _ => {}
            }
        }
        Ok(self)
    }
}

impl Template {
    fn is_per_project(&self) -> bool {
        self.name.contains(PLACEHOLDER)
    }

    fn is_per_metric(&self) -> bool {
        self.name.contains(METRIC)
    }

    /// The count of a topic that no project owns.
    fn fixed(&self, replication: Option<i32>) -> Option<i32> {
        match self.partitions {
            Count::Fixed(count) if !self.is_per_project() => {
                Some(self.on_single_broker.filter(|_| replication == Some(1)).unwrap_or(count))
            }
            _ => None,
        }
    }
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(value) => value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::names::{dlq_topic, events_topic, processed_topic};

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn embedded() -> Declarations {
        Declarations::embedded().expect("the embedded declarations are valid")
    }

    fn problem(yaml: &str) -> String {
        let parsed = Declarations::parse([("x.yaml".to_owned(), yaml.to_owned())]);
        parsed.expect_err("invalid").to_string()
    }

    #[test]
    fn a_project_has_three_topics() {
        let (declarations, shop) = (embedded(), ProjectId::parse("shop").expect("id"));
        let partitions = declarations.size("standard").expect("size");
        let topics = declarations.project(&shop, partitions, &[], None);
        let facts: Vec<_> = topics.iter().map(|t| (t.name.clone(), t.partitions, t.replication)).collect();
        assert_eq!(
            facts,
            [(events_topic("shop"), 100, 3), (processed_topic("shop"), 100, 3), (dlq_topic("shop"), 10, 3)]
        );
        let retention: Vec<&str> = topics.iter().map(|t| t.config["retention.ms"].as_str()).collect();
        assert_eq!(retention, [7 * 24 * HOUR, 30 * 24 * HOUR, 30 * 24 * HOUR].map(|ms| ms.to_string()));
        for topic in topics {
            assert_eq!(topic.config["message.timestamp.type"], "LogAppendTime");
            assert_eq!(topic.config["unclean.leader.election.enable"], "false");
            assert_eq!(topic.config["cleanup.policy"], "delete");
            assert_eq!(topic.config["compression.type"], "snappy");
            assert_eq!(topic.config["min.insync.replicas"], "2");
        }
    }

    #[test]
    fn a_routes_topic_is_as_the_projects_own() {
        let (declarations, shop) = (embedded(), ProjectId::parse("shop").expect("id"));
        let route = ("events.shop.1-clicks".to_owned(), 300);
        let size = declarations.size("standard").expect("size");
        let topics = declarations.project(&shop, size, std::slice::from_ref(&route), None);
        let own = topics.iter().find(|topic| topic.name == events_topic("shop")).expect("its own");
        let (name, partitions) = route;
        assert_eq!((topics.len(), topics.last()), (4, Some(&Topic { name, partitions, ..own.clone() })));
    }

    #[test]
    fn metrics_belong_to_no_project() {
        let shared = embedded().shared(None);
        assert_eq!(shared.len(), 1);
        assert_eq!((shared[0].name.as_str(), shared[0].partitions, shared[0].replication), ("metrics.events", 10, 3));
        assert_eq!(shared[0].config["retention.ms"], (24 * HOUR).to_string());
        assert_eq!(shared[0].config["compression.type"], "gzip");
    }

    #[test]
    fn a_declared_metric_has_a_topic_like_that_of_events() {
        let declarations = embedded();
        let sales = declarations.metric("sales", None);
        assert_eq!((sales.name.as_str(), sales.partitions, sales.replication), ("metrics.sales", 10, 3));
        assert_eq!(sales.config, declarations.shared(None)[0].config);
        assert_eq!(declarations.metric("events", None), declarations.shared(None)[0]);
        assert_eq!(declarations.metric("sales", Some(1)).partitions, 2, "where there is one broker");
    }

    #[test]
    fn one_replica_is_its_own_quorum() {
        let (declarations, shop) = (embedded(), ProjectId::parse("shop").expect("id"));
        let small = declarations.size("small").expect("size");
        assert_eq!(small.events, 6);
        for topic in declarations.project(&shop, small, &[], Some(1)).into_iter().chain(declarations.shared(Some(1))) {
            assert_eq!((topic.replication, topic.config["min.insync.replicas"].as_str()), (1, "1"));
        }
    }

    #[test]
    fn a_folder_is_read_like_what_is_embedded() {
        let folder = Declarations::read(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("topics/*.yaml");
        assert_eq!(folder.shared(None), embedded().shared(None));
        assert_eq!(folder.size("small").expect("size"), embedded().size("small").expect("size"));
        let missing = Declarations::read(Path::new("no/such/folder")).expect_err("missing").to_string();
        assert!(missing.contains("--dir must name a folder"), "{missing}");
    }

    #[test]
    fn a_project_may_be_given_more_partitions() {
        let yaml = "replication: 3\nmin_insync_replicas: 2\nprojects: { shop: { events: 12 } }\ntopics: []";
        let declared = Declarations::parse([("x.yaml".to_owned(), yaml.to_owned())]).expect("valid");
        let events_of = |id: &str| declared.events_of(&ProjectId::parse(id).expect("id"));
        assert_eq!([events_of("shop"), events_of("other")], [Some(12), None]);
        assert!(problem(&yaml.replace("12", "0")).contains("projects.shop: "));
    }

    #[test]
    fn mistakes_are_named() {
        let head = "replication: 3\nmin_insync_replicas: 2\n";
        let unknown = problem(&format!("{head}topics: [{{name: a, partitions: 1, retention: 7d}}]"));
        assert!(unknown.starts_with("x.yaml: ") && unknown.contains("retention"), "{unknown}");
        let ownerless = problem(&format!("{head}topics: [{{name: a, partitions: events}}]"));
        assert!(ownerless.contains("a: partitions must be a number"), "{ownerless}");
        let empty = problem(&format!("{head}topics: [{{name: a, partitions: 0}}]"));
        assert!(empty.contains("at least 1"), "{empty}");
        let size = embedded().size("huge").expect_err("unknown").to_string();
        assert_eq!(size, "there is no size class \"huge\"; declared are: small, standard");
    }
}
