//! Settings: a TOML file (`TIDEMILL_CONFIG`) under environment variables. Each crate has a struct for its own
//! section; this loads sections and what all services share.
//!
//! `TIDEMILL_<SECTION>__<NAME>` sets any value; the plain names that people expect (`PORT`, `DATABASE_URL`, …)
//! set the ones in [`PLAIN`]. A secret can be read from a file named by its plain name with `_FILE` behind.

use config::{Config, ConfigError, Environment, File, FileFormat};
use serde::de::DeserializeOwned;

use crate::kafka::KafkaConfig;

/// Plain environment names and the settings that they stand for; `{service}` is the running service.
const PLAIN: [(&str, &str); 12] = [
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("DATABASE_URL", "postgres.url"),
    ("REDIS_URL", "redis.url"),
    ("SCHEMA_REGISTRY_URL", "registry.url"),
    ("WAREHOUSE_URL", "warehouse.url"),
    ("API_KEYS", "auth.api_keys"),
    ("LOG_LEVEL", "log.level"),
    ("PORT", "{service}.port"),
    ("BATCH_SIZE", "{service}.batch_size"),
    ("CORS_ORIGINS", "ingest.cors_origins"),
    ("CONCURRENCY", "{service}.concurrency"),
    ("SPOOL_DIR", "ingest.spool_dir"),
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
    /// Where the archive lies: `file:///…`
    pub warehouse_url: String,
    /// Keys for development, as `API_KEYS` has them.
    pub api_keys: Option<String>,
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
        Ok(Self { config: builder.build()? })
    }

    /// A section; what it does not set has the struct's defaults.
    pub fn section<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, SettingsError> {
        match self.config.get::<T>(name) {
            Err(ConfigError::NotFound(_)) => Ok(T::default()),
            other => Ok(other?),
        }
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
            api_keys: self.config.get_string("auth.api_keys").ok(),
        }
    }

    /// `error`, `warn`, `info` (the default), `debug` or `trace`.
    pub fn log_level(&self) -> String {
        self.config.get_string("log.level").unwrap_or_else(|_| "info".to_owned())
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
