//! Settings: a TOML file (`TIDEMILL_CONFIG`) under environment variables. Each crate has a struct for its own
//! section; this loads sections and what all services share.
//!
//! `TIDEMILL_<SECTION>__<NAME>` sets any value; the plain names that people expect (`PORT`, `DATABASE_URL`, …)
//! set the ones in [`PLAIN`]. A secret can be read from a file named by its plain name with `_FILE` behind.

use std::collections::BTreeMap;
use std::path::PathBuf;

use config::{Config, ConfigError, Environment, File, FileFormat};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::kafka::KafkaConfig;

/// Plain environment names and the settings that they stand for; `{service}` is the running service.
const PLAIN: [(&str, &str); 17] = [
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("DATABASE_URL", "postgres.url"),
    ("REDIS_URL", "redis.url"),
    ("SCHEMA_REGISTRY_URL", "registry.url"),
    ("WAREHOUSE_URL", "warehouse.url"),
    ("S3_ENDPOINT", "warehouse.s3_endpoint"),
    ("S3_REGION", "warehouse.s3_region"),
    ("S3_ACCESS_KEY_ID", "warehouse.s3_access_key_id"),
    ("S3_SECRET_ACCESS_KEY", "warehouse.s3_secret_access_key"),
    ("API_KEYS", "auth.api_keys"),
    ("LOG_LEVEL", "log.level"),
    ("PORT", "{service}.port"),
    ("BATCH_SIZE", "{service}.batch_size"),
    ("CORS_ORIGINS", "ingest.cors_origins"),
    ("CONCURRENCY", "{service}.concurrency"),
    ("SPOOL_DIR", "ingest.spool_dir"),
    ("QUERY_WAREHOUSE_PASSWORD", "query.warehouse_password"),
];

/// A setting that is missing or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}; settings come from environment variables or the file that TIDEMILL_CONFIG names")]
pub struct SettingsError(String);

impl From<ConfigError> for SettingsError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// All settings, by section.
pub struct Settings {
    config: Config,
    warehouse: Warehouse,
}

/// Addresses of the components.
#[derive(Clone)]
pub struct Connections {
    /// Kafka.
    pub kafka: KafkaConfig,
    /// `postgres://…`
    pub database_url: String,
    /// `redis://…`
    pub redis_url: String,
    /// The schema registry's Confluent API.
    pub registry_url: String,
    /// Where the archive lies: `file:///…` or `s3://bucket/…`
    pub warehouse_url: String,
    /// Who knows its tables, and how its storage is reached.
    pub warehouse: Warehouse,
    /// Keys for development, as `API_KEYS` has them.
    pub api_keys: Option<String>,
}

/// Settings of the archive's catalog and storage: section `warehouse`, beside its `url`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Warehouse {
    /// Which kind of catalog.
    pub catalog: CatalogKind,
    /// A REST catalog's address: `https://host` or `http://host:8181`.
    pub catalog_url: Option<String>,
    /// A PEM file with the authorities that a REST catalog is trusted by. None: the system's.
    pub catalog_ca: Option<PathBuf>,
    /// A REST catalog's name for the warehouse. None: the warehouse's URL.
    pub catalog_warehouse: Option<String>,
    /// A REST catalog's bearer token.
    pub catalog_token: Option<String>,
    /// The S3 server. None: Amazon's.
    pub s3_endpoint: Option<String>,
    /// Its region. None: `AWS_REGION`, else `us-east-1`.
    pub s3_region: Option<String>,
    /// Who we are. None: what AWS's own environment variables, files and roles say.
    pub s3_access_key_id: Option<String>,
    /// The secret of it.
    pub s3_secret_access_key: Option<String>,
    /// Whether buckets are part of the path, as most servers other than Amazon's want it. None: where there is an
    /// endpoint.
    pub s3_path_style: Option<bool>,
    /// Anything else that the Iceberg library understands, e.g. `s3.sse.type`.
    pub properties: BTreeMap<String, String>,
}

/// Who knows which tables there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatalogKind {
    /// Tables in the Postgres that is there.
    #[default]
    Sql,
    /// An Iceberg REST catalog.
    Rest,
}

impl Settings {
    /// Loads the settings for a service, or for an operator's command.
    pub fn load(service: &str) -> Result<Self, SettingsError> {
        let mut builder = Config::builder();
        if let Ok(path) = std::env::var("TIDEMILL_CONFIG") {
            builder = builder.add_source(File::new(&path, FileFormat::Toml));
        }
        builder = builder
            .add_source(Environment::with_prefix("TIDEMILL").prefix_separator("_").separator("__").try_parsing(true));
        for (name, key) in PLAIN {
            if let Some(value) = plain(name)? {
                builder = builder.set_override(key.replace("{service}", service), value)?;
            }
        }
        let config = builder.build()?;
        Ok(Self { warehouse: section(&config, "warehouse")?, config })
    }

    /// A section; what it does not set has the struct's defaults.
    pub fn section<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, SettingsError> {
        section(&self.config, name)
    }

    /// The components' addresses; those of a development setup where nothing is set.
    pub fn connections(&self) -> Connections {
        let get = |key: &str, default: &str| self.config.get_string(key).unwrap_or_else(|_| default.to_owned());
        Connections {
            kafka: KafkaConfig { brokers: get("kafka.brokers", "127.0.0.1:19092") },
            database_url: get("postgres.url", "postgres://postgres@127.0.0.1:15432/tidemill"),
            redis_url: get("redis.url", "redis://127.0.0.1:16379"),
            registry_url: get("registry.url", "http://127.0.0.1:18081/apis/ccompat/v7"),
            warehouse_url: get("warehouse.url", "file:///var/lib/tidemill/warehouse"),
            warehouse: self.warehouse.clone(),
            api_keys: self.config.get_string("auth.api_keys").ok(),
        }
    }

    /// `error`, `warn`, `info` (the default), `debug` or `trace`.
    pub fn log_level(&self) -> String {
        self.config.get_string("log.level").unwrap_or_else(|_| "info".to_owned())
    }
}

fn section<T: DeserializeOwned + Default>(config: &Config, name: &str) -> Result<T, SettingsError> {
    match config.get::<T>(name) {
        Err(ConfigError::NotFound(_)) => Ok(T::default()),
        other => Ok(other?),
    }
}

fn plain(name: &str) -> Result<Option<String>, SettingsError> {
    if let Ok(value) = std::env::var(name) {
        return Ok(Some(value));
    }
    let Ok(path) = std::env::var(format!("{name}_FILE")) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) => Err(SettingsError(format!("{name}_FILE names {path}, which cannot be read: {error}"))),
    }
}
