//! Rows as Arrow has them.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int32Builder, Int64Builder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondBuilder, new_null_array,
};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use iceberg::{Error, ErrorKind};
use tidemill_common::event::EventRef;
use tidemill_common::origin::Origin;
use tidemill_common::promoted::Kind;

use crate::promotions::{Promotions, Scalar, Value};

/// As Iceberg writes timestamps with a zone.
const UTC: &str = "+00:00";

/// Builds batches in the columns of a table. Columns that are not ours (another engine's, or promoted later) are null.
pub struct Columns {
    schema: SchemaRef,
    promotions: Arc<Promotions>,
    values: Vec<Value>,
    columns: Vec<Column>,
    rows: usize,
}

enum Column {
    Text(TextOf, StringBuilder),
    Time(TimeOf, TimestampMicrosecondBuilder),
    Partition(Int32Builder),
    Offset(Int64Builder),
    Promoted(usize, Promoted),
    Null(DataType),
}

enum Promoted {
    Text(StringBuilder),
    Time(TimestampMicrosecondBuilder),
    Long(Int64Builder),
    Double(Float64Builder),
    Bool(BooleanBuilder),
}

type TextOf = for<'a> fn(&EventRef<'a>) -> Option<&'a str>;
type TimeOf = fn(&EventRef<'_>, &Origin) -> Option<i64>;

impl Columns {
    /// For tables of this schema.
    pub fn new(schema: SchemaRef, promotions: Arc<Promotions>) -> Self {
        let columns = schema.fields().iter().map(|field| column(field, &promotions)).collect();
        Self { schema, promotions, values: Vec::new(), columns, rows: 0 }
    }

    /// Adds a row.
    pub fn add(&mut self, event: &EventRef<'_>, at: &Origin) {
        self.promotions.values(event, &mut self.values);
        self.rows += 1;
        for column in &mut self.columns {
            match column {
                Column::Text(text, builder) => builder.append_option(text(event)),
                Column::Time(time, builder) => builder.append_option(time(event, at)),
                Column::Partition(builder) => builder.append_value(at.partition),
                Column::Offset(builder) => builder.append_value(at.offset),
                Column::Promoted(slot, builder) => builder.append(self.values[*slot].as_ref()),
                Column::Null(_) => {}
            }
        }
    }

    /// The rows, and begins anew.
    pub fn finish(&mut self) -> iceberg::Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let columns = self.columns.iter_mut().map(|column| column.finish(rows)).collect();
        RecordBatch::try_new(self.schema.clone(), columns).map_err(bad_schema)
    }
}

impl Column {
    fn finish(&mut self, rows: usize) -> ArrayRef {
        match self {
            Self::Text(_, builder) | Self::Promoted(_, Promoted::Text(builder)) => Arc::new(finish_text(builder, rows)),
            Self::Time(_, builder) | Self::Promoted(_, Promoted::Time(builder)) => Arc::new(builder.finish()),
            Self::Partition(builder) => Arc::new(builder.finish()),
            Self::Offset(builder) | Self::Promoted(_, Promoted::Long(builder)) => Arc::new(builder.finish()),
            Self::Promoted(_, Promoted::Double(builder)) => Arc::new(builder.finish()),
            Self::Promoted(_, Promoted::Bool(builder)) => Arc::new(builder.finish()),
            Self::Null(kind) => new_null_array(kind, rows),
        }
    }
}

/// The next batch will be much like this one: with room for it at once, nothing is copied while it grows.
fn finish_text(builder: &mut StringBuilder, rows: usize) -> StringArray {
    let bytes = builder.values_slice().len();
    std::mem::replace(builder, StringBuilder::with_capacity(rows, bytes + bytes / 8)).finish()
}

impl Promoted {
    /// For a table's column, if it has that kind.
    fn of(kind: Kind, column: &DataType) -> Option<Self> {
        Some(match (kind, column) {
            (Kind::Text, DataType::Utf8) => Self::Text(StringBuilder::new()),
            (Kind::Time, DataType::Timestamp(..)) => Self::Time(times()),
            (Kind::Long, DataType::Int64) => Self::Long(Int64Builder::new()),
            (Kind::Double, DataType::Float64) => Self::Double(Float64Builder::new()),
            (Kind::Bool, DataType::Boolean) => Self::Bool(BooleanBuilder::new()),
            _ => return None,
        })
    }

    fn append(&mut self, value: Option<&Scalar>) {
        match (self, value) {
            (Self::Text(builder), Some(Scalar::Text(text))) => builder.append_value(text),
            (Self::Text(builder), _) => builder.append_null(),
            (Self::Time(builder), Some(Scalar::Long(micros))) => builder.append_value(*micros),
            (Self::Time(builder), _) => builder.append_null(),
            (Self::Long(builder), Some(Scalar::Long(number))) => builder.append_value(*number),
            (Self::Long(builder), _) => builder.append_null(),
            (Self::Double(builder), Some(Scalar::Double(number))) => builder.append_value(*number),
            (Self::Double(builder), _) => builder.append_null(),
            (Self::Bool(builder), Some(Scalar::Bool(truth))) => builder.append_value(*truth),
            (Self::Bool(builder), _) => builder.append_null(),
        }
    }
}

fn column(field: &Field, promotions: &Promotions) -> Column {
    match field.name().as_str() {
        "event_id" => text(|event| Some(event.event_id)),
        "event_type" => text(|event| Some(event.event_type)),
        "event_action" => text(|event| event.event_action),
        "user_id" => text(|event| event.user_id),
        "session_id" => text(|event| event.session_id),
        "occurred_at" => time(|event, _| Some(event.timestamp)),
        "received_at" => time(|event, _| event.received_at),
        "append_time" => time(|_, at| Some(at.append_ms.saturating_mul(1_000))),
        "properties" => text(|event| event.properties),
        "client_address" => text(|event| event.client_address),
        "user_agent" => text(|event| event.user_agent),
        "kafka_partition" => Column::Partition(Int32Builder::new()),
        "kafka_offset" => Column::Offset(Int64Builder::new()),
        name => {
            let mut of_name = promotions.columns().iter().enumerate().filter(|(_, (column, _))| column == name);
            let promoted = of_name.find_map(|(slot, (_, kind))| Some((slot, Promoted::of(*kind, field.data_type())?)));
            promoted.map_or(Column::Null(field.data_type().clone()), |(slot, values)| Column::Promoted(slot, values))
        }
    }
}

fn text(text: TextOf) -> Column {
    Column::Text(text, StringBuilder::new())
}

fn time(time: TimeOf) -> Column {
    Column::Time(time, times())
}

fn times() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_timezone(UTC)
}

fn bad_schema(error: ArrowError) -> Error {
    let message = "the table's columns do not have the types that it was made with";
    Error::new(ErrorKind::DataInvalid, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use arrow::datatypes::Schema;
    use iceberg::arrow::schema_to_arrow_schema;
    use iceberg::spec::{NestedField, PrimitiveType, Type};
    use tidemill_common::event::Event;
    use tidemill_common::promoted;

    use super::*;
    use crate::table::COLUMNS;

    /// The table's schema with columns more.
    fn schema(more: &[(&'static str, PrimitiveType)]) -> Arc<Schema> {
        let ours = COLUMNS.iter().map(|c| (c.name, c.kind.clone(), c.required));
        let all = ours.chain(more.iter().map(|(name, kind)| (*name, kind.clone(), false)));
        let fields = (1..)
            .zip(all)
            .map(|(id, (name, kind, required))| Arc::new(NestedField::new(id, name, Type::Primitive(kind), required)));
        let schema = iceberg::spec::Schema::builder().with_fields(fields).build().expect("schema");
        Arc::new(schema_to_arrow_schema(&schema).expect("arrow"))
    }

    fn shown(batch: &RecordBatch) -> Vec<(String, String)> {
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).filter(|(_, column)| column.is_valid(0));
        let value = |column: &ArrayRef| arrow::util::display::array_value_to_string(column, 0).expect("value");
        columns.map(|(field, column)| (field.name().clone(), value(column))).collect()
    }

    #[test]
    fn every_column_has_its_value_and_unknown_ones_are_null() {
        let path = vec!["a".to_owned()];
        let promote = |column: &str, kind| promoted::Promoted { column: column.to_owned(), kind, path: path.clone() };
        let promoted = vec![promote("amount", Kind::Double), promote("retyped", Kind::Double)];
        let promotions = Arc::new(Promotions::new(vec![
            ("another".to_owned(), vec![promote("amount", Kind::Text)]),
            ("page".to_owned(), promoted),
        ]));
        let more =
            [("amount", PrimitiveType::Double), ("foreign", PrimitiveType::Date), ("retyped", PrimitiveType::String)];
        let mut columns = Columns::new(schema(&more), promotions);
        let event = Event {
            user_id: Some("u-1".to_owned()),
            properties: Some("{\"a\":1}".to_owned()),
            ..Event::new("e-1", "page", 1_700_000_000_123_456)
        };
        for _ in 0..2 {
            columns.add(&event.as_ref(), &Origin { partition: 3, offset: 42, append_ms: 1_700_000_001_000 });
            let expected = [
                ("event_id", "e-1"),
                ("event_type", "page"),
                ("user_id", "u-1"),
                ("occurred_at", "2023-11-14T22:13:20.123456Z"),
                ("append_time", "2023-11-14T22:13:21Z"),
                ("properties", "{\"a\":1}"),
                ("kafka_partition", "3"),
                ("kafka_offset", "42"),
                ("amount", "1.0"),
            ];
            let batch = columns.finish().expect("batch");
            assert_eq!(batch.num_rows(), 1, "it begins anew");
            assert_eq!(shown(&batch), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
    }
}
