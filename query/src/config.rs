//! Settings: section `query`.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

/// Settings of the query service.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where it listens; 0 is any free port.
    pub port: u16,
    /// Connections to Postgres for metrics and sessions; SQL has its own, one per query under way.
    pub postgres_connections: u32,
    /// SQL queries under way at once.
    pub concurrency: usize,
    /// SQL queries that may wait for their turn; more are turned away.
    pub sql_queue: usize,
    /// Seconds that a query of the priority `batch` may wait; interactive ones wait as long as they may take.
    pub sql_batch_wait_s: u64,
    /// Memory for events that are not archived yet, of all projects, in MiB. With 0 SQL sees archived events only.
    pub sql_tail_mb: usize,
    /// Seconds that a SQL query may take.
    pub sql_timeout_s: u64,
    /// Memory that one SQL query may take for sorts, joins and groups, in MiB.
    pub sql_memory_mb: usize,
    /// Rows that one SQL query gives at most.
    pub sql_max_rows: usize,
    /// Size of one SQL answer, in MiB; what lies beyond is cut off between rows.
    pub sql_max_answer_mb: usize,
    /// Folder with declared metrics for all projects (`*.yaml`), in place of those in the binary; the same as the
    /// stream workers'.
    pub metrics_dir: Option<PathBuf>,
    /// Who answers SQL over `events`.
    pub warehouse: Engine,
    /// The engine's HTTP address, e.g. `https://trino:8443` or `http://clickhouse:8123`.
    pub warehouse_url: Option<String>,
    /// Who we are there; projects' users and roles there begin with it.
    pub warehouse_user: String,
    /// The password. None: it asks for none.
    pub warehouse_password: Option<String>,
    /// Trino's name for the Iceberg catalog.
    pub warehouse_catalog: String,
}

/// Who answers SQL over `events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// This service.
    #[default]
    DataFusion,
    /// A Trino.
    Trino,
    /// A ClickHouse.
    ClickHouse,
}

/// Another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Trino.
    Trino,
    /// ClickHouse.
    ClickHouse,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trino => "Trino",
            Self::ClickHouse => "ClickHouse",
        }
    }

    /// In settings and headers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Trino => "trino",
            Self::ClickHouse => "clickhouse",
        }
    }
}

/// Where another engine is, and who we are there.
#[derive(Clone)]
pub struct Address {
    /// Which one it is.
    pub kind: Kind,
    /// Its HTTP address.
    pub url: Url,
    /// Our name, with which those of projects begin.
    pub user: String,
    /// None: it asks for none.
    pub password: Option<String>,
    /// Trino's name for the Iceberg catalog.
    pub catalog: String,
}

/// Settings that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Engine {
    /// The other engine, if it is one.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::DataFusion => None,
            Self::Trino => Some(Kind::Trino),
            Self::ClickHouse => Some(Kind::ClickHouse),
        }
    }
}

impl Config {
    /// Where the engine is that answers in our place. None: none does.
    pub fn warehouse_address(&self) -> Result<Option<Address>, SettingsError> {
        let Some(kind) = self.warehouse.kind() else {
            return match &self.warehouse_url {
                None => Ok(None),
                Some(_) => Err(SettingsError(
                    "query.warehouse_url is set and query.warehouse is not; set it to trino or clickhouse, or leave the \
                     address out"
                        .to_owned(),
                )),
            };
        };
        let wrong = |why: String| SettingsError(format!("query.warehouse is {}, and {why}", kind.word()));
        let missing =
            || wrong("query.warehouse_url is missing; give its HTTP address, e.g. https://host:8443".to_owned());
        let text = self.warehouse_url.as_deref().filter(|url| !url.is_empty()).ok_or_else(missing)?;
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let url =
            url.ok_or_else(|| wrong("query.warehouse_url is no HTTP address like https://host:8443".to_owned()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "query.warehouse_url has a user in it; give query.warehouse_user and …_password".to_owned(),
            ));
        }
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        for (name, value) in [("user", &self.warehouse_user), ("catalog", &self.warehouse_catalog)] {
            if !is_name(value) {
                return Err(wrong(format!("query.warehouse_{name} {value:?} is no name of letters, digits, _ and -")));
            }
        }
        let (user, catalog) = (self.warehouse_user.clone(), self.warehouse_catalog.clone());
        let password = self.warehouse_password.clone().filter(|password| !password.is_empty());
        Ok(Some(Address { kind, url, user, password, catalog }))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 4002,
            postgres_connections: 16,
            concurrency: 4,
            sql_queue: 16,
            sql_batch_wait_s: 300,
            sql_tail_mb: 256,
            sql_timeout_s: 30,
            sql_memory_mb: 512,
            sql_max_rows: 100_000,
            sql_max_answer_mb: 64,
            metrics_dir: None,
            warehouse: Engine::default(),
            warehouse_url: None,
            warehouse_user: "tidemill".to_owned(),
            warehouse_password: None,
            warehouse_catalog: "tidemill".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(warehouse: Engine, url: Option<&str>, user: &str) -> Result<Option<String>, String> {
        let (warehouse_url, warehouse_user) = (url.map(str::to_owned), user.to_owned());
        let config = Config { warehouse, warehouse_url, warehouse_user, ..Config::default() };
        let address = config.warehouse_address().map_err(|error| error.to_string())?;
        Ok(address.map(|address| address.url.to_string()))
    }

    #[test]
    fn incomplete_settings_are_refused_with_what_is_missing() {
        assert_eq!(address(Engine::DataFusion, None, "tidemill"), Ok(None));
        let there = Ok(Some("https://trino:8443/".to_owned()));
        assert_eq!(address(Engine::Trino, Some("https://trino:8443"), "tidemill"), there);
        for (engine, url, user, word) in [
            (Engine::DataFusion, Some("http://trino:8080"), "tidemill", "query.warehouse is not"),
            (Engine::Trino, None, "tidemill", "warehouse_url is missing"),
            (Engine::ClickHouse, Some(""), "tidemill", "warehouse_url is missing"),
            (Engine::ClickHouse, Some("clickhouse:8123"), "tidemill", "no HTTP address"),
            (Engine::ClickHouse, Some("tcp://clickhouse:9000"), "tidemill", "no HTTP address"),
            (Engine::Trino, Some("http://me:secret@trino"), "tidemill", "has a user in it"),
            (Engine::Trino, Some("http://trino"), "", "warehouse_user"),
            (Engine::Trino, Some("http://trino"), "a b", "warehouse_user"),
        ] {
            let why = address(engine, url, user).expect_err("refused");
            assert!(why.contains(word) && !why.contains("secret"), "{why}");
        }
    }
}
