//! A snapshot's data files: read from its manifests once, then skipped and scanned by the planner.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::catalog::Session;
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result as PlanResult;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::Result;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataContentType, DataFile, DataFileFormat, Datum, ManifestContentType, ManifestFile, PrimitiveLiteral,
    SchemaRef as IcebergSchema,
};
use iceberg::table::Table;

use super::store::{Files, meta, path};

/// Manifests that are read at the same time.
const AT_ONCE: usize = 8;
/// Columns whose values may be long, and how many rows of them are worked on at once.
const LONG: [&str; 2] = ["properties", "user_agent"];
const LONG_BATCH: usize = 2_048;

/// The planner knows files by paths and asks this for what is in them; no scheme is ever looked at.
const STORE: &str = "archive://files";

/// The data files of manifests, by the manifests' places. A manifest never changes.
pub type Manifests = HashMap<String, Arc<Vec<DataFile>>>;

/// The manifests of a table's current snapshot; those in `known` are not read again. None: there are rows that are
/// deleted, which only Iceberg's own reader understands.
pub async fn manifests(table: &Table, known: &Manifests) -> Result<Option<Manifests>> {
    let Some(snapshot) = table.metadata().current_snapshot() else { return Ok(Some(Manifests::new())) };
    let list = table.manifest_list_reader(snapshot).load().await?;
    if list.entries().iter().any(|manifest| manifest.content == ManifestContentType::Deletes) {
        return Ok(None);
    }
    let io = table.file_io();
    let read = stream::iter(list.entries().to_vec()).map(|manifest| {
        let known = known.get(&manifest.manifest_path).cloned();
        async move {
            let files = match known {
                Some(files) => files,
                None => Arc::new(read(&manifest, io).await?),
            };
            Ok::<_, iceberg::Error>((manifest.manifest_path, files))
        }
    });
    read.buffer_unordered(AT_ONCE).try_collect().await.map(Some)
}

async fn read(manifest: &ManifestFile, io: &FileIO) -> Result<Vec<DataFile>> {
    let manifest = manifest.load_manifest(io).await?;
    let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
    Ok(alive.map(|entry| entry.data_file().clone()).collect())
}

/// Data files that the planner can read by itself.
#[derive(Debug)]
pub struct Data {
    /// The files' bytes.
    pub store: Arc<Files>,
    schema: SchemaRef,
    files: Vec<PartitionedFile>,
    statistics: Vec<Arc<Statistics>>,
}

impl Data {
    /// The files in these manifests. None: they are of other kinds than ours.
    pub fn new(table: &Table, schema: &SchemaRef, manifests: &Manifests) -> Option<Self> {
        let all = || manifests.values().flat_map(|files| files.iter());
        let is_plain = |file: &DataFile| {
            file.file_format() == DataFileFormat::Parquet
                && file.content_type() == DataContentType::Data
                && file.key_metadata().is_none()
        };
        if !all().all(is_plain) {
            return None;
        }
        let iceberg = table.metadata().current_schema();
        let places = all().map(|file| (file.file_path(), file.file_size_in_bytes()));
        let store = Arc::new(Files::new(table, places));
        let statistics: Vec<_> = all().map(|file| Arc::new(statistics(file, iceberg, schema))).collect();
        let known = |(file, statistics): (&DataFile, &Arc<Statistics>)| {
            let meta = meta(path(table.metadata(), file.file_path()), file.file_size_in_bytes());
            PartitionedFile::new_from_meta(meta).with_statistics(Arc::clone(statistics))
        };
        let files = all().zip(&statistics).map(known).collect();
        Some(Self { store, schema: Arc::clone(schema), files, statistics })
    }

    /// A scan of those files that may hold rows of all `filters`. None: there are none.
    pub fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
        footers: &Arc<dyn FileMetadataCache>,
    ) -> PlanResult<Option<Arc<dyn ExecutionPlan>>> {
        let kept = self.kept(state, filters)?;
        let files: Vec<_> =
            self.files.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(file, _)| file.clone()).collect();
        if files.is_empty() {
            return Ok(None);
        }
        let rows: usize = self.statistics.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(s, _)| rows_of(s)).sum();
        let mut known = Statistics::new_unknown(&self.schema);
        known.num_rows = Precision::Exact(rows);
        let store = Arc::clone(&self.store);
        let reader = Arc::new(CachedParquetFileReaderFactory::new(store, Arc::clone(footers)));
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_pushdown_filters(true)
            .with_reorder_filters(true)
            .with_enable_page_index(true)
            .with_bloom_filter_on_read(true)
            .with_parquet_file_reader_factory(reader);
        let is_long = |column: &usize| LONG.contains(&self.schema.field(*column).name().as_str());
        let long = projection.is_none_or(|columns| columns.iter().any(is_long));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(STORE)?, Arc::new(source))
            .with_file_group(FileGroup::new(files))
            .with_projection_indices(projection.cloned())?
            .with_statistics(known)
            .with_batch_size(long.then_some(LONG_BATCH))
            .with_limit(limit)
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }

    /// Which files may hold rows of all `filters`, as far as the manifests tell.
    fn kept(&self, state: &dyn Session, filters: &[Expr]) -> PlanResult<Vec<bool>> {
        let all = || vec![true; self.files.len()];
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(all()) };
        let columns = DFSchema::try_from(Arc::clone(&self.schema))?;
        let filter = state.create_physical_expr(filter, &columns)?;
        // What cannot be told from bounds is for the scan to find out.
        let Ok(predicate) = PruningPredicate::try_new(filter, Arc::clone(&self.schema)) else { return Ok(all()) };
        let known = PrunableStatistics::new(self.statistics.clone(), Arc::clone(&self.schema));
        Ok(predicate.prune(&known).unwrap_or_else(|_| all()))
    }
}

fn rows_of(statistics: &Statistics) -> usize {
    statistics.num_rows.get_value().copied().unwrap_or(0)
}

/// What a manifest says of a file. Iceberg's bounds may be wider than the values (long texts are cut), so these are
/// for skipping files only.
fn statistics(file: &DataFile, iceberg: &IcebergSchema, schema: &SchemaRef) -> Statistics {
    let of = |name: &str, kind: &DataType| {
        let Some(id) = iceberg.field_id_by_name(name) else { return ColumnStatistics::new_unknown() };
        let bound = |bounds: &HashMap<i32, Datum>| {
            bounds.get(&id).and_then(|datum| scalar(datum, kind)).map_or(Precision::Absent, Precision::Exact)
        };
        let nulls =
            file.null_value_counts().get(&id).map_or(Precision::Absent, |nulls| Precision::Exact(*nulls as usize));
        ColumnStatistics {
            null_count: nulls,
            min_value: bound(file.lower_bounds()),
            max_value: bound(file.upper_bounds()),
            ..ColumnStatistics::new_unknown()
        }
    };
    Statistics {
        num_rows: Precision::Exact(file.record_count() as usize),
        total_byte_size: Precision::Inexact(file.file_size_in_bytes() as usize),
        column_statistics: schema.fields().iter().map(|field| of(field.name(), field.data_type())).collect(),
    }
}

/// A bound as the planner compares it. Floating-point bounds leave NaN out, so they are none.
fn scalar(datum: &Datum, kind: &DataType) -> Option<ScalarValue> {
    Some(match (datum.literal(), kind) {
        (PrimitiveLiteral::String(text), DataType::Utf8View) => ScalarValue::Utf8View(Some(text.clone())),
        (PrimitiveLiteral::Long(micros), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            ScalarValue::TimestampMicrosecond(Some(*micros), zone.clone())
        }
        (PrimitiveLiteral::Long(number), DataType::Int64) => ScalarValue::Int64(Some(*number)),
        (PrimitiveLiteral::Int(number), DataType::Int32) => ScalarValue::Int32(Some(*number)),
        (PrimitiveLiteral::Int(days), DataType::Date32) => ScalarValue::Date32(Some(*days)),
        _ => return None,
    })
}
