//! An answer's bytes, written piece by piece as the rows come. JSON is
//! `{"columns":[{"name","type"}],"rows":[{…}],"truncated"}`.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{JsonArray, LineDelimited};
use arrow::json::{Writer as JsonWriter, WriterBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_csv::Writer as CsvWriter;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use serde_json::json;
use tokio::sync::mpsc::Sender;

use super::error::SqlError;
use super::format::Format;
use super::idents::Written;

/// What an answer may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows.
    pub rows: usize,
    /// Bytes; the answer ends behind the batch that passes them.
    pub bytes: usize,
}

/// A piece of an answer.
#[derive(Debug)]
pub enum Piece {
    /// More comes.
    More(Bytes),
    /// The last one, and whether rows were cut off.
    Last(Bytes, bool),
}

/// Pieces have about so many bytes.
const PIECE: usize = 256 * 1024;
/// Rows that are written at once.
const ROWS: usize = 1_024;

/// Sends a result up to the limits. Ends when nobody listens any more.
pub async fn send<E>(
    schema: &Schema,
    mut batches: impl Stream<Item = Result<RecordBatch, E>> + Unpin,
    written: &Written,
    format: Format,
    limits: Limits,
    to: &Sender<Result<Piece, SqlError>>,
) -> Result<(), SqlError>
where
    SqlError: From<E>,
{
    let schema = presented(schema, written, format);
    let mut writer = Writer::new(format, &schema)?;
    let (mut rows, mut bytes, mut truncated) = (0, 0, false);
    // Only a further row tells whether something is cut off, so a full answer reads on until there is one.
    while let Some(batch) = batches.try_next().await? {
        let mut take = batch.num_rows().min(limits.rows - rows);
        for start in (0..take).step_by(ROWS) {
            if bytes + writer.len() > limits.bytes {
                take = start;
                break;
            }
            writer.write(&present(&batch.slice(start, ROWS.min(take - start)), &schema)?)?;
            if writer.len() >= PIECE {
                bytes += writer.len();
                if to.send(Ok(Piece::More(writer.take()))).await.is_err() {
                    return Ok(());
                }
            }
        }
        rows += take;
        truncated = take < batch.num_rows();
        if truncated {
            break;
        }
    }
    let last = writer.finish(truncated)?;
    drop(to.send(Ok(Piece::Last(last, truncated))).await);
    Ok(())
}

/// Writes batches in one of the formats.
struct Writer {
    out: Out,
    to: To,
}

enum To {
    Json(JsonWriter<Out, JsonArray>),
    Ndjson(JsonWriter<Out, LineDelimited>),
    Csv(Box<CsvWriter<Out>>),
    Arrow(Box<StreamWriter<Out>>),
}

impl Writer {
    fn new(format: Format, schema: &SchemaRef) -> Result<Self, ArrowError> {
        let out = Out::default();
        let json = || WriterBuilder::new().with_explicit_nulls(true);
        let to = match format {
            Format::Json => {
                let columns: Vec<_> = schema
                    .fields()
                    .iter()
                    .map(|field| json!({ "name": field.name(), "type": type_name(field.data_type()) }))
                    .collect();
                out.push(&format!("{{\"columns\":{},\"rows\":", json!(columns)));
                To::Json(json().build(out.clone()))
            }
            Format::Ndjson => To::Ndjson(json().build(out.clone())),
            Format::Csv => {
                let mut writer = arrow_csv::WriterBuilder::new().build(out.clone());
                // The line of names, should there be no rows.
                writer.write(&RecordBatch::new_empty(Arc::clone(schema)))?;
                To::Csv(Box::new(writer))
            }
            Format::Arrow => To::Arrow(Box::new(StreamWriter::try_new(out.clone(), schema)?)),
        };
        Ok(Self { out, to })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        match &mut self.to {
            To::Json(writer) => writer.write(batch),
            To::Ndjson(writer) => writer.write(batch),
            To::Csv(writer) => writer.write(batch),
            To::Arrow(writer) => writer.write(batch),
        }
    }

    /// How much has been written and not taken.
    fn len(&self) -> usize {
        self.out.lock().len()
    }

    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.out.lock()).into()
    }

    fn finish(mut self, truncated: bool) -> Result<Bytes, ArrowError> {
        match &mut self.to {
            To::Json(writer) => {
                writer.finish()?;
                self.out.push(&format!(",\"truncated\":{truncated}}}"));
            }
            To::Ndjson(writer) => writer.finish()?,
            To::Csv(_) => {}
            To::Arrow(writer) => writer.finish()?,
        }
        Ok(self.take())
    }
}

/// Bytes that a writer has written, to be taken while it goes on.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn push(&self, text: &str) {
        self.lock().extend_from_slice(text.as_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("no holder panics")
    }
}

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The columns as the caller sees them: under the names that were written, each name once, and with types
/// that have a form in the format. Every time is in UTC.
fn presented(schema: &Schema, written: &Written, format: Format) -> SchemaRef {
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
                DataType::Interval(_) | DataType::Duration(_) | DataType::Utf8View => DataType::Utf8,
                nested if nested.is_nested() && format == Format::Csv => DataType::Utf8,
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
        .map(|(column, field)| match field.data_type() {
            DataType::Utf8 if column.data_type().is_nested() => displayed(column),
            kind => cast(column, kind),
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// A list, say, as text.
fn displayed(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let text = |row| column.is_valid(row).then(|| formatter.value(row).to_string());
    Ok(Arc::new((0..column.len()).map(text).collect::<StringArray>()))
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
