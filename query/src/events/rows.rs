//! Rows of the tail, in the columns that the archive has: built by the archiver's own code, so that a row is the same
//! before and after it is archived.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use tidemill_archiver::columns::Columns;
use tidemill_archiver::promotions::Promotions;
use tidemill_common::codec::processed;
use tidemill_common::kafka::Record;
use tidemill_common::origin::Origin;

/// A first sight that may not be archived yet.
#[derive(Debug, Clone)]
pub struct Row {
    /// The processed record's value.
    value: Box<[u8]>,
    /// Where the event stands in the project's log.
    pub at: Origin,
}

impl Row {
    /// The row in a record of a processed topic; says why there is none.
    pub fn of(record: &Record) -> Result<Self, String> {
        let (_, at) = processed::read(record.value()).map_err(|error| error.to_string())?;
        Ok(Self { value: record.value().into(), at })
    }
}

/// Makes batches of rows.
#[derive(Clone)]
pub struct Maker {
    schema: SchemaRef,
    /// The same, with text as the archiver builds it.
    built: SchemaRef,
    promotions: Arc<Promotions>,
}

impl Maker {
    /// In these columns; those that are promoted have what these promotions find in the properties.
    pub fn new(schema: SchemaRef, promotions: Arc<Promotions>) -> Self {
        let plain = |field: &Arc<Field>| match field.data_type() {
            DataType::Utf8View => Field::new(field.name(), DataType::Utf8, field.is_nullable()),
            _ => field.as_ref().clone(),
        };
        let built = Arc::new(Schema::new(schema.fields().iter().map(plain).collect::<Vec<_>>()));
        Self { schema, built, promotions }
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows as a batch.
    pub fn batch(&self, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
        let mut columns = Columns::new(Arc::clone(&self.built), Arc::clone(&self.promotions));
        for row in rows {
            if let Ok((event, at)) = processed::read(&row.value) {
                columns.add(&event, &at);
            }
        }
        let built = columns.finish().map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
        let kinds = self.schema.fields().iter().map(|field| field.data_type());
        let columns = built.columns().iter().zip(kinds).map(|(column, kind)| cast(column, kind));
        RecordBatch::try_new(Arc::clone(&self.schema), columns.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
pub mod tests {
    use tidemill_common::codec::Encoder;
    use tidemill_common::event::Event;

    use super::*;

    /// A row of an event that says nothing.
    pub fn row(partition: i32, offset: i64) -> Row {
        let event = Event::new(format!("{partition}-{offset}"), "t", 0);
        let at = Origin { partition, offset, append_ms: 0 };
        let (encoder, mut value) = (Encoder::new(1), Vec::new());
        processed::write(&encoder, &encoder.encode(&event)[Encoder::EVENT_ID..], [None; 3], at, &mut value);
        Row { value: value.into(), at }
    }
}
