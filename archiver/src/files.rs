//! Data files: Parquet, one or more per day of `occurred_at`. A run of rows, sorted by event type and time, is a row
//! group. What is written here is invisible until a commit names it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef as ArrowSchemaRef;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::io::{FileIO, FileWrite};
use iceberg::spec::{DataFile, Literal, PartitionKey, PartitionSpec, Schema, SchemaRef, Struct, Transform};
use iceberg::table::Table;
use iceberg::writer::file_writer::location_generator::{DefaultLocationGenerator, LocationGenerator};
use iceberg::{Error, ErrorKind, Result};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::ParquetMetaData;
use tidemill_common::failpoint::{Injected, hit};

use crate::columns::Columns;
use crate::data_file::{self, Written, describe};
use crate::encoders;
use crate::promotions::Promotions;
use crate::rows::Rows;
use crate::table::{COLUMNS, DIVIDED_BY};

/// Rows become columns so many at a time: few enough to stay in the processor's cache.
const BATCH: usize = 2_048;

/// The files of one commit.
pub struct Files {
    file_io: FileIO,
    locations: DefaultLocationGenerator,
    schema: SchemaRef,
    arrow: ArrowSchemaRef,
    spec: Arc<PartitionSpec>,
    sort_order_id: Option<i32>,
    promotions: Arc<Promotions>,
    /// A file of this many bytes gets no more rows.
    file_bytes: usize,
    open: Vec<Open>,
    done: Vec<DataFile>,
    /// Bytes of all of them.
    bytes: usize,
}

/// A file that is being written.
struct Open {
    day: i64,
    partition: Struct,
    location: String,
    upload: Box<dyn FileWrite>,
    parquet: Parquet,
}

/// The Parquet part of a file; what is encoded stays within until it is taken out.
struct Parquet {
    writer: ArrowWriter<Vec<u8>>,
    columns: Columns,
    groups: usize,
}

impl Files {
    /// New files of a table.
    pub fn new(table: &Table, promotions: Arc<Promotions>, file_bytes: usize) -> Result<Self> {
        let metadata = table.metadata();
        let schema = metadata.current_schema().clone();
        let spec = metadata.default_partition_spec().clone();
        divided_by_day(&spec, &schema)?;
        named_as_made(&schema)?;
        let sort_order = metadata.default_sort_order();
        Ok(Self {
            file_io: table.file_io().clone(),
            locations: DefaultLocationGenerator::new(metadata)?,
            arrow: Arc::new(schema_to_arrow_schema(&schema)?),
            schema,
            spec,
            sort_order_id: (!sort_order.is_unsorted()).then(|| i32::try_from(sort_order.order_id).ok()).flatten(),
            promotions,
            file_bytes,
            open: Vec::new(),
            done: Vec::new(),
            bytes: 0,
        })
    }

    /// Writes a day's rows as a row group of its file. The file stays open for more of them, unless these are the
    /// `last`.
    pub async fn write(&mut self, day: i64, rows: Rows, last: bool) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let at = self.open.iter().position(|open| open.day == day);
        let mut open = match at {
            Some(at) => self.open.swap_remove(at),
            None => self.create(day, rows.len()).await?,
        };
        let encode = move || open.parquet.encode(&rows).map(|bytes| (open, bytes));
        let (mut open, bytes) = encoders::run(encode).await.map_err(not_encoded)??;
        hit("archive.written").await.map_err(injected)?;
        self.bytes += bytes.len();
        open.upload.write(bytes.into()).await?;
        if last || open.parquet.writer.bytes_written() >= self.file_bytes {
            self.finish(open).await
        } else {
            self.open.push(open);
            Ok(())
        }
    }

    /// How many bytes all files have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Finishes all files.
    pub async fn close(mut self) -> Result<Vec<DataFile>> {
        while let Some(open) = self.open.pop() {
            self.finish(open).await?;
        }
        hit("archive.uploaded").await.map_err(injected)?;
        Ok(self.done)
    }

    /// `&mut`, since what is shared between threads may not be an encoder.
    async fn create(&mut self, day: i64, rows: usize) -> Result<Open> {
        let day_of_table =
            i32::try_from(day).map_err(|_| Error::new(ErrorKind::DataInvalid, "a day beyond all time"))?;
        let partition = Struct::from_iter([Some(Literal::date(day_of_table))]);
        let key = PartitionKey::new(self.spec.as_ref().clone(), self.schema.clone(), partition.clone());
        // The name is new each time: nothing is ever written over.
        let name = format!("{}.parquet", uuid::Uuid::now_v7());
        let location = self.locations.generate_location(Some(&key), &name);
        let upload = self.file_io.new_output(&location)?.writer().await?;
        let properties = data_file::properties(&self.schema, rows);
        let writer = ArrowWriter::try_new(Vec::new(), self.arrow.clone(), Some(properties)).map_err(bad_parquet)?;
        let columns = Columns::new(self.arrow.clone(), self.promotions.clone());
        Ok(Open { day, partition, location, upload, parquet: Parquet { writer, columns, groups: 0 } })
    }

    async fn finish(&mut self, open: Open) -> Result<()> {
        let Open { partition, location, mut upload, mut parquet, .. } = open;
        let metadata = parquet.writer.finish().map_err(bad_parquet)?;
        let bytes = parquet.writer.bytes_written() as u64;
        upload.write(std::mem::take(parquet.writer.inner_mut()).into()).await?;
        upload.close().await?;
        self.done.push(self.described(location, &metadata, bytes, partition, parquet.groups)?);
        Ok(())
    }

    fn described(
        &self,
        location: String,
        metadata: &ParquetMetaData,
        bytes: u64,
        partition: Struct,
        groups: usize,
    ) -> Result<DataFile> {
        // Only within row groups is anything sorted.
        let sort_order_id = self.sort_order_id.filter(|_| groups == 1);
        let spec_id = self.spec.spec_id();
        describe(Written { location, metadata, bytes, partition, spec_id, sort_order_id }, &self.schema)
    }
}

impl Parquet {
    /// Adds a row group; gives its bytes.
    fn encode(&mut self, rows: &Rows) -> Result<Vec<u8>> {
        for indices in rows.order().chunks(BATCH) {
            for &index in indices {
                let (event, at) = rows.get(index as usize);
                self.columns.add(&event, &at);
            }
            self.writer.write(&self.columns.finish()?).map_err(bad_parquet)?;
        }
        self.writer.flush().map_err(bad_parquet)?;
        self.groups += 1;
        Ok(std::mem::take(self.writer.inner_mut()))
    }
}

/// Whoever divides a table otherwise has to say what its rows' partitions are, which we cannot.
fn divided_by_day(spec: &PartitionSpec, schema: &Schema) -> Result<()> {
    let day = |field: &iceberg::spec::PartitionField| {
        field.transform == Transform::Day && schema.field_id_by_name(DIVIDED_BY) == Some(field.source_id)
    };
    match spec.fields() {
        [field] if day(field) => Ok(()),
        _ => {
            let message = format!(
                "the table is divided by something else than day({DIVIDED_BY}); make that its partition spec again, \
                 files that were written under another one can stay"
            );
            Err(Error::new(ErrorKind::FeatureUnsupported, message))
        }
    }
}

/// Our columns are found by name: one that was renamed would get no values any more. One that was dropped needs none.
fn named_as_made(schema: &Schema) -> Result<()> {
    let renamed = (1..).zip(COLUMNS).find_map(|(id, column)| {
        let field = schema.field_by_id(id).filter(|field| field.name != column.name)?;
        Some((column.name, &field.name))
    });
    renamed.map_or(Ok(()), |(name, now)| {
        let message = format!("the table's column {name} is named {now} now; name it {name} again");
        Err(Error::new(ErrorKind::FeatureUnsupported, message))
    })
}

fn bad_parquet(error: parquet::errors::ParquetError) -> Error {
    Error::new(ErrorKind::Unexpected, "a Parquet file cannot be written").with_source(error)
}

fn not_encoded(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "writing a file failed").with_source(error)
}

fn injected(error: Injected) -> Error {
    Error::new(ErrorKind::Unexpected, "a file was not written").with_source(error)
}

#[cfg(test)]
mod tests {
    use iceberg::spec::{NestedField, Type};

    use super::*;

    #[test]
    fn a_renamed_column_is_told_from_one_that_was_dropped() {
        let named = |name: fn(&'static str) -> Option<&'static str>| {
            let fields = (1..).zip(COLUMNS).filter_map(|(id, column)| {
                let kind = Type::Primitive(column.kind);
                Some(Arc::new(NestedField::new(id, name(column.name)?, kind, column.required)))
            });
            named_as_made(&Schema::builder().with_fields(fields).build().expect("schema"))
        };
        assert!(named(Some).is_ok());
        assert!(named(|name| Some(name).filter(|name| *name != "client_address")).is_ok());
        let error = named(|name| Some(if name == "user_id" { "who" } else { name })).expect_err("renamed").to_string();
        assert!(error.contains("the table's column user_id is named who now"), "{error}");
    }
}
