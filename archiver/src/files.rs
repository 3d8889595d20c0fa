//! Data files: Parquet, one or more per day of `occurred_at`. What is written here is invisible until a
//! commit names it.

use iceberg::Result;
use iceberg::arrow::RecordBatchPartitionSplitter;
use iceberg::spec::{DataFile, DataFileFormat};
use iceberg::table::Table;
use iceberg::writer::base_writer::data_file_writer::DataFileWriterBuilder;
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{DefaultFileNameGenerator, DefaultLocationGenerator};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use iceberg::writer::partitioning::PartitioningWriter;
use iceberg::writer::partitioning::fanout_writer::FanoutWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::buffer::Row;
use crate::rows::record_batch;

/// Writes rows to new files of a table.
pub async fn write(table: &Table, rows: &[Row]) -> Result<Vec<DataFile>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let metadata = table.metadata();
    let schema = metadata.current_schema();
    let batch = record_batch(rows, schema)?;
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
    let mut writer = FanoutWriter::new(DataFileWriterBuilder::new(files));
    for (day, rows) in splitter.split(&batch)? {
        writer.write(day, rows).await?;
    }
    writer.close().await
}

/// The table's property for compression is not looked at by the writer, so it is said here.
fn parquet() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Unique values fill a dictionary for nothing.
        .set_column_dictionary_enabled(ColumnPath::from("event_id"), false)
        .build()
}
