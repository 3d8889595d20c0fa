//! Updates of metrics, as they stand in `metrics.{metric_name}`.

use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::{Deserialize, Serialize};

/// The schema, as it is registered.
pub const METRIC_UPDATE_SCHEMA: &str = include_str!("../../schemas/metric-update.avsc");

static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse_str(METRIC_UPDATE_SCHEMA).expect("schemas/metric-update.avsc is valid Avro"));

/// Windows of a metric that have changed: absolute values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricUpdate {
    /// The project.
    pub project: String,
    /// A declared metric, or `events`.
    pub metric: String,
    /// The dimension; none: all of the metric's events.
    pub dimension: Option<String>,
    /// Its value; none: events that have none.
    pub dimension_value: Option<String>,
    /// The project's live generation.
    pub generation: i32,
    /// Raised when Postgres comes back older.
    pub epoch: i64,
    /// What has changed.
    pub windows: Vec<MetricWindow>,
}

/// A window as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricWindow {
    /// `1m`, `1h` or `1d`.
    pub granularity: String,
    /// Its start, in microseconds since 1970.
    pub start: i64,
    /// Of two updates with one generation and epoch the one with the higher version is newer.
    pub version: i64,
    /// Events.
    pub count: i64,
    /// What the metric computes, as an exact decimal.
    pub value: Option<String>,
    /// Where users are counted.
    pub unique_users: Option<i64>,
}

impl MetricUpdate {
    /// The record's key.
    pub fn key(&self) -> String {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}:{}:{}", self.project, part(&self.dimension), part(&self.dimension_value))
    }

    /// The record's value, under the schema of this id.
    pub fn encode(&self, schema_id: u32) -> Result<Vec<u8>, apache_avro::Error> {
        let mut value = vec![0];
        value.extend_from_slice(&schema_id.to_be_bytes());
        GenericDatumWriter::builder(&SCHEMA).build()?.write_ser(&mut value, self)?;
        Ok(value)
    }

    /// The update in a value that [`Self::encode`] wrote.
    pub fn decode(value: &[u8]) -> Result<Self, apache_avro::Error> {
        let mut datum = value.get(5..).unwrap_or_default();
        GenericDatumReader::builder(&SCHEMA).build()?.read_deser(&mut datum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let window = MetricWindow {
            granularity: "1m".to_owned(),
            start: 1_767_225_600_000_000,
            version: 7,
            count: 3,
            value: Some("19.99".to_owned()),
            unique_users: None,
        };
        let update = MetricUpdate {
            project: "shop".to_owned(),
            metric: "sales".to_owned(),
            dimension: Some("country".to_owned()),
            dimension_value: Some("a:b".to_owned()),
            generation: 0,
            epoch: 2,
            windows: vec![window],
        };
        assert_eq!(update.key(), "shop:country:a:b");
        let value = update.encode(9).expect("encodable");
        assert_eq!(value[..5], [0, 0, 0, 0, 9]);
        assert_eq!(MetricUpdate::decode(&value).expect("readable"), update);
        assert!(MetricUpdate::decode(&value[..8]).is_err());
    }
}
