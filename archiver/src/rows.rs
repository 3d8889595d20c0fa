//! Rows as Arrow has them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::Schema;

use crate::buffer::Row;

/// Rows in the columns of a table's schema. Columns that are not ours (promoted later, or another engine's)
/// are null.
pub fn record_batch(rows: &[&Row], schema: &Schema) -> iceberg::Result<RecordBatch> {
    let schema = Arc::new(schema_to_arrow_schema(schema)?);
    let columns = schema.fields().iter().map(|field| column(rows, field.name(), field.data_type())).collect();
    RecordBatch::try_new(schema, columns).map_err(bad_schema)
}

/// As Iceberg writes timestamps with a zone.
const UTC: &str = "+00:00";

fn column(rows: &[&Row], name: &str, kind: &DataType) -> ArrayRef {
    match name {
        "event_id" => text(rows, |row| Some(&row.event.event_id)),
        "event_type" => text(rows, |row| Some(&row.event.event_type)),
        "event_action" => text(rows, |row| row.event.event_action.as_ref()),
        "user_id" => text(rows, |row| row.event.user_id.as_ref()),
        "session_id" => text(rows, |row| row.event.session_id.as_ref()),
        "occurred_at" => time(rows, |row| Some(row.event.timestamp)),
        "received_at" => time(rows, |row| row.event.received_at),
        "append_time" => time(rows, |row| Some(row.append_ms.saturating_mul(1_000))),
        "properties" => text(rows, |row| row.event.properties.as_ref()),
        "client_address" => text(rows, |row| row.event.client_address.as_ref()),
        "user_agent" => text(rows, |row| row.event.user_agent.as_ref()),
        "kafka_partition" => Arc::new(rows.iter().map(|row| Some(row.partition)).collect::<Int32Array>()),
        "kafka_offset" => Arc::new(rows.iter().map(|row| Some(row.offset)).collect::<Int64Array>()),
        _ => new_null_array(kind, rows.len()),
    }
}

fn text<'a>(rows: &[&'a Row], value: impl Fn(&'a Row) -> Option<&'a String>) -> ArrayRef {
    Arc::new(rows.iter().copied().map(value).collect::<StringArray>())
}

fn time(rows: &[&Row], micros: impl Fn(&Row) -> Option<i64>) -> ArrayRef {
    Arc::new(rows.iter().copied().map(micros).collect::<TimestampMicrosecondArray>().with_timezone(UTC))
}

fn bad_schema(error: ArrowError) -> iceberg::Error {
    let message = "the table's columns do not have the types that it was made with";
    iceberg::Error::new(iceberg::ErrorKind::DataInvalid, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use iceberg::spec::{NestedField, PrimitiveType, Type};
    use tidemill_common::event::Event;

    use super::*;
    use crate::table::COLUMNS;

    fn row() -> Row {
        let event = Event {
            user_id: Some("u-1".to_owned()),
            properties: Some("{\"a\":1}".to_owned()),
            ..Event::new("e-1", "page", 1_700_000_000_123_456)
        };
        Row { event, partition: 3, offset: 42, append_ms: 1_700_000_001_000 }
    }

    /// The table's schema with a column more.
    fn schema() -> Schema {
        let ours = COLUMNS.iter().map(|c| (c.name, c.kind.clone(), c.required));
        let all = ours.chain([("promoted", PrimitiveType::Double, false)]);
        let fields = (1..)
            .zip(all)
            .map(|(id, (name, kind, required))| Arc::new(NestedField::new(id, name, Type::Primitive(kind), required)));
        Schema::builder().with_fields(fields).build().expect("schema")
    }

    #[test]
    fn every_column_has_its_value_and_unknown_ones_are_null() {
        let batch = record_batch(&[&row()], &schema()).expect("batch");
        let shown: Vec<(String, String)> = batch
            .schema()
            .fields()
            .iter()
            .zip(batch.columns())
            .filter(|(_, column)| column.is_valid(0))
            .map(|(field, column)| {
                let value = arrow::util::display::array_value_to_string(column, 0).expect("value");
                (field.name().clone(), value)
            })
            .collect();
        let expected = [
            ("event_id", "e-1"),
            ("event_type", "page"),
            ("user_id", "u-1"),
            ("occurred_at", "2023-11-14T22:13:20.123456Z"),
            ("append_time", "2023-11-14T22:13:21Z"),
            ("properties", "{\"a\":1}"),
            ("kafka_partition", "3"),
            ("kafka_offset", "42"),
        ];
        assert_eq!(shown, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
