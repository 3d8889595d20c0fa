//! The limit: what decoding and writing alone cost. arrow-avro and Parquet on the same rows, which lie in memory, in a
//! process of its own; no Kafka, no catalog, no order, one file.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_avro::reader::{Decoder, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use clap::Args;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};
use tidemill_common::codec::{EVENT_SCHEMA, Encoder};

use crate::process;
use crate::stream::content::Content;
use crate::stream::drain::WARM_UP;
use crate::stream::topic::now_us;
use crate::stream::traffic::{Sessions, Shape, Traffic};

/// So many rows lie in memory; more would not make the figure another.
const MOST: u64 = 1_000_000;
const BATCH: usize = 8_192;
const SCHEMA_ID: u32 = 1;

/// What the limit program is told.
#[derive(Args)]
pub struct Options {
    #[arg(long)]
    rows: u64,
    #[arg(long)]
    seed: u64,
    /// The file to write
    #[arg(long)]
    file: PathBuf,
}

/// What it prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Limit {
    /// CPU of the process per row, in microseconds.
    pub cpu_us: f64,
    /// Rows per second.
    pub per_second: f64,
    /// Bytes of the file per row.
    pub bytes_per_row: f64,
}

/// Decodes the rows and writes them to a file, twice: the first time, part of them warms up.
pub fn run(options: &Options) -> anyhow::Result<Limit> {
    let records = records(options);
    let warm_up = (records.len() as f64 * WARM_UP) as usize;
    write(&records[..warm_up], &options.file)?;
    let (cpu, begin) = (process::cpu_seconds(std::process::id())?, Instant::now());
    let bytes = write(&records, &options.file)?;
    let (cpu, took) = (process::cpu_seconds(std::process::id())? - cpu, begin.elapsed());
    let rows = records.len() as f64;
    Ok(Limit { cpu_us: cpu * 1e6 / rows, per_second: rows / took.as_secs_f64(), bytes_per_row: bytes as f64 / rows })
}

fn records(options: &Options) -> Vec<Vec<u8>> {
    let traffic = Traffic::new(Shape::dense(options.rows.min(MOST), Sessions::Visits, options.seed));
    let start = now_us() - i64::from(traffic.shape.span_ms) * 1_000;
    let (mut content, encoder) = (Content::new(&traffic, start), Encoder::new(SCHEMA_ID));
    let encoded = traffic.records.iter().map(|record| {
        let mut value = Vec::new();
        encoder.encode_into(&content.event(record), &mut value);
        value
    });
    encoded.collect()
}

fn write(records: &[Vec<u8>], path: &PathBuf) -> anyhow::Result<u64> {
    let mut decoder = decoder()?;
    let mut writer: Option<ArrowWriter<File>> = None;
    let mut offset = 0;
    for batch in records.chunks(BATCH) {
        for record in batch {
            decoder.decode(record)?;
        }
        let decoded = decoder.flush()?.context("no rows were decoded")?;
        let rows = with_place(decoded, offset)?;
        offset += rows.num_rows() as i64;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                writer.insert(ArrowWriter::try_new(file, rows.schema(), Some(parquet()))?)
            }
        };
        writer.write(&rows)?;
    }
    writer.context("no rows were written")?.close()?;
    Ok(std::fs::metadata(path)?.len())
}

fn decoder() -> anyhow::Result<Decoder> {
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(Fingerprint::Id(SCHEMA_ID), AvroSchema::new(EVENT_SCHEMA.to_owned()))?;
    Ok(ReaderBuilder::new().with_writer_schema_store(store).with_batch_size(BATCH).build_decoder()?)
}

/// The archive's rows also say where they stood in the log.
fn with_place(batch: RecordBatch, first: i64) -> anyhow::Result<RecordBatch> {
    let rows = batch.num_rows();
    let offsets: Vec<i64> = (first..).take(rows).collect();
    let times = TimestampMicrosecondArray::from(vec![1_800_000_000_000_000; rows]).with_timezone("+00:00");
    let columns: [(&str, ArrayRef); 3] = [
        ("append_time", Arc::new(times)),
        ("kafka_partition", Arc::new(Int32Array::from(vec![0; rows]))),
        ("kafka_offset", Arc::new(Int64Array::from(offsets))),
    ];
    let schema = batch.schema();
    let decoded = schema.fields().iter().map(|field| field.name().as_str()).zip(batch.columns().iter().cloned());
    Ok(RecordBatch::try_from_iter(decoded.chain(columns))?)
}

/// As the archiver has it.
fn parquet() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_dictionary_enabled(ColumnPath::from("eventId"), false)
        .build()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    #[test]
    fn all_rows_are_written() {
        let file = std::env::temp_dir().join(format!("tidemill-limit-{}", std::process::id()));
        let limit = run(&Options { rows: 20_000, seed: 1, file: file.clone() }).expect("written");
        let reader = SerializedFileReader::new(File::open(&file).expect("a file")).expect("Parquet");
        let metadata = reader.metadata().file_metadata();
        assert_eq!(metadata.num_rows(), 20_000);
        assert_eq!(metadata.schema_descr().num_columns(), 13, "ten of the event, and where it stood");
        assert!((40.0..300.0).contains(&limit.bytes_per_row), "{limit:?}");
        std::fs::remove_file(file).expect("removed");
    }
}
