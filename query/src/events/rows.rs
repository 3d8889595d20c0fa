//! Rows of the tail, in the columns that the archive has.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{Field, SchemaRef};
use arrow::error::ArrowError;
use tidemill_common::codec::processed;
use tidemill_common::event::Event;
use tidemill_common::kafka::Record;
use tidemill_common::verdict::{SOURCE_APPEND_TIME, SOURCE_OFFSET, SOURCE_PARTITION};

/// A first sight that may not be archived yet.
#[derive(Debug, Clone)]
pub struct Row {
    pub event: Event,
    /// Where it stands in the project's log of events.
    pub partition: i32,
    pub offset: i64,
    /// When it was appended there, in milliseconds since 1970.
    pub append_ms: i64,
}

impl Row {
    /// The row in a record of a processed topic; says why there is none.
    pub fn of(record: &Record) -> Result<Self, String> {
        let header = |name: &str| {
            let (_, value) = record.headers.iter().find(|(key, _)| key == name)?;
            std::str::from_utf8(value).ok()?.parse::<i64>().ok()
        };
        let origin = || {
            let partition = i32::try_from(header(SOURCE_PARTITION)?).ok()?;
            Some((partition, header(SOURCE_OFFSET)?, header(SOURCE_APPEND_TIME)?))
        };
        let (partition, offset, append_ms) = origin().ok_or("it has no headers that say where it comes from")?;
        let event = processed(&record.value).map_err(|error| error.to_string())?;
        Ok(Self { event, partition, offset, append_ms })
    }
}

/// Rows in the columns of `schema`; columns that no event has are null.
pub fn batch(rows: &[Row], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| column(rows, field)).collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn column(rows: &[Row], field: &Field) -> Result<ArrayRef, ArrowError> {
    let array = match field.name().as_str() {
        "event_id" => text(rows, |event| Some(&event.event_id)),
        "event_type" => text(rows, |event| Some(&event.event_type)),
        "event_action" => text(rows, |event| event.event_action.as_ref()),
        "user_id" => text(rows, |event| event.user_id.as_ref()),
        "session_id" => text(rows, |event| event.session_id.as_ref()),
        "occurred_at" => time(rows, |row| Some(row.event.timestamp)),
        "received_at" => time(rows, |row| row.event.received_at),
        "append_time" => time(rows, |row| Some(row.append_ms.saturating_mul(1_000))),
        "properties" => text(rows, |event| event.properties.as_ref()),
        "client_address" => text(rows, |event| event.client_address.as_ref()),
        "user_agent" => text(rows, |event| event.user_agent.as_ref()),
        "kafka_partition" => Arc::new(rows.iter().map(|row| Some(row.partition)).collect::<Int32Array>()),
        "kafka_offset" => Arc::new(rows.iter().map(|row| Some(row.offset)).collect::<Int64Array>()),
        _ => return Ok(new_null_array(field.data_type(), rows.len())),
    };
    cast(&array, field.data_type())
}

fn text(rows: &[Row], value: impl Fn(&Event) -> Option<&String>) -> ArrayRef {
    Arc::new(rows.iter().map(|row| value(&row.event)).collect::<StringArray>())
}

fn time(rows: &[Row], micros: impl Fn(&Row) -> Option<i64>) -> ArrayRef {
    Arc::new(rows.iter().map(micros).collect::<TimestampMicrosecondArray>().with_timezone("+00:00"))
}
