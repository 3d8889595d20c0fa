//! An answer's JSON: `{"columns":[{"name","type"}],"rows":[{…}],"truncated"}`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use serde_json::json;

use super::error::SqlError;
use super::idents::Written;

/// What an answer may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows.
    pub rows: usize,
    /// Bytes of JSON; the answer ends behind the batch that passes them.
    pub bytes: usize,
}

/// Reads a result up to the limits.
pub async fn collect(
    mut stream: SendableRecordBatchStream,
    written: &Written,
    limits: Limits,
) -> Result<Vec<u8>, SqlError> {
    let schema = presented(&stream.schema(), written);
    let columns: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| json!({ "name": field.name(), "type": type_name(field.data_type()) }))
        .collect();
    let head = format!("{{\"columns\":{},\"rows\":", json!(columns)).into_bytes();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(head);
    let (mut rows, mut truncated) = (0, false);
    while let Some(batch) = stream.try_next().await? {
        let take = batch.num_rows().min(limits.rows - rows);
        truncated = take < batch.num_rows();
        if take > 0 {
            writer.write(&present(&batch.slice(0, take), &schema)?)?;
        }
        rows += take;
        // Only a further row tells whether something is cut off, so a full answer reads on by one batch.
        truncated |= writer.get_ref().len() > limits.bytes;
        if truncated {
            break;
        }
    }
    writer.finish()?;
    let mut answer = writer.into_inner();
    answer.extend_from_slice(format!(",\"truncated\":{truncated}}}").as_bytes());
    Ok(answer)
}

/// The columns as the caller sees them: under the names that were written, each name once, and with types
/// that have a form in JSON. Every time is in UTC.
fn presented(schema: &Schema, written: &Written) -> SchemaRef {
    let mut taken = HashSet::new();
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| {
            let name = written.get(field.name()).unwrap_or(field.name());
            let numbered = (2..).map(|n| format!("{name}_{n}"));
            let free = std::iter::once(name.clone()).chain(numbered).find(|name| taken.insert(name.clone()));
            let data_type = match field.data_type() {
                DataType::Timestamp(unit, _) => DataType::Timestamp(*unit, Some("+00:00".into())),
                DataType::Interval(_) | DataType::Duration(_) => DataType::Utf8,
                other => other.clone(),
            };
            Field::new(free.unwrap_or_default(), data_type, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

fn present(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SqlError> {
    let fields = schema.fields().iter();
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .zip(fields)
        .map(|(column, field)| cast(column, field.data_type()))
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        data_type if data_type.is_integer() => "integer".to_owned(),
        data_type if data_type.is_floating() => "float".to_owned(),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            "decimal".to_owned()
        }
        DataType::Boolean => "boolean".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Null => "null".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}
