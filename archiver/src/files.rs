//! Data files: Parquet, one or more per day of `occurred_at`, sorted by event type and time. What is written
//! here is invisible until a commit names it.

use iceberg::arrow::RecordBatchPartitionSplitter;
use iceberg::spec::{DataFile, DataFileFormat};
use iceberg::table::Table;
use iceberg::writer::base_writer::data_file_writer::DataFileWriterBuilder;
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{DefaultFileNameGenerator, DefaultLocationGenerator};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use iceberg::writer::{IcebergWriter, IcebergWriterBuilder};
use iceberg::{Error, ErrorKind, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use tidemill_common::failpoint::{Injected, hit};

use crate::buffer::Row;
use crate::rows::record_batch;

/// Writes rows to new files of a table.
pub async fn write(table: &Table, rows: &[Row]) -> Result<Vec<DataFile>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let metadata = table.metadata();
    let schema = metadata.current_schema();
    let splitter = RecordBatchPartitionSplitter::try_new_with_computed_values(
        schema.clone(),
        metadata.default_partition_spec().clone(),
    )?;
    // The name is new each time: nothing is ever written over.
    let name = uuid::Uuid::now_v7().to_string();
    let files = RollingFileWriterBuilder::new_with_default_file_size(
        ParquetWriterBuilder::new(parquet(), schema.clone()),
        table.file_io().clone(),
        DefaultLocationGenerator::new(metadata)?,
        DefaultFileNameGenerator::new(name, None, DataFileFormat::Parquet),
    );
    let writers = DataFileWriterBuilder::new(files);
    let mut written = Vec::new();
    // One day, and so one open file, at a time: what a sender says is when his events occurred may be any
    // number of days. The splitter knows what divides this table, should that not be the day any more.
    for day in sorted(rows).chunk_by(|one, next| one.day() == next.day()) {
        for (key, batch) in splitter.split(&record_batch(day, schema)?)? {
            let mut writer = writers.build(Some(key)).await?;
            writer.write(batch).await?;
            hit("archive.written").await.map_err(injected)?;
            written.extend(writer.close().await?);
        }
    }
    hit("archive.uploaded").await.map_err(injected)?;
    Ok(written)
}

fn injected(error: Injected) -> Error {
    Error::new(ErrorKind::Unexpected, "a file was not written").with_source(error)
}

/// By day; within a day by what queries ask for, so that they can skip what lies between.
fn sorted(rows: &[Row]) -> Vec<&Row> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| (row.day(), &row.event.event_type, row.event.timestamp));
    rows
}

/// The table's property for compression is not looked at by the writer, so it is said here.
fn parquet() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Unique values fill a dictionary for nothing.
        .set_column_dictionary_enabled(ColumnPath::from("event_id"), false)
        .build()
}
