//! What a table is told of a Parquet file, and how the file is written. Pure.

use std::collections::HashMap;

use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PrimitiveType, Schema, Struct};
use iceberg::{Error, ErrorKind, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;

use crate::table::{BLOOMED, SORTED_BY, UNIQUE, UNSUMMED};

/// So many of the row groups that do not have an event are read for it all the same.
const BLOOM_FALSE: f64 = 0.01;

/// How files are written. The table's own properties for this are not looked at by the library.
pub fn properties(schema: &Schema, rows_in_a_group: usize) -> WriterProperties {
    let fields = schema.as_struct().fields();
    // A column of the file is a field as long as none before it is nested.
    let flat = || fields.iter().take_while(|field| field.field_type.is_primitive());
    let place = |name: &&str| flat().position(|field| field.name == **name);
    let sorting = SORTED_BY.iter().map_while(place);
    let sorting = sorting.map(|at| SortingColumn { column_idx: at as i32, descending: false, nulls_first: false });
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(None) // a run of sorted rows is a row group
        .set_sorting_columns(Some(sorting.collect()));
    for name in UNIQUE {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*name), false);
    }
    for name in UNSUMMED {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(*name), EnabledStatistics::None);
    }
    for name in BLOOMED {
        properties = properties
            .set_column_bloom_filter_enabled(ColumnPath::from(*name), true)
            .set_column_bloom_filter_ndv(ColumnPath::from(*name), rows_in_a_group as u64)
            .set_column_bloom_filter_fpp(ColumnPath::from(*name), BLOOM_FALSE);
    }
    properties.build()
}

/// A file as the table knows it.
pub struct Written<'a> {
    /// Where it is.
    pub location: String,
    /// What stands at its end.
    pub metadata: &'a ParquetMetaData,
    /// How long it is.
    pub bytes: u64,
    /// The partition that it belongs to.
    pub partition: Struct,
    /// By which spec.
    pub spec_id: i32,
    /// By which order its rows are sorted, as a whole.
    pub sort_order_id: Option<i32>,
}

/// Describes a file of this schema.
pub fn describe(written: Written<'_>, schema: &Schema) -> Result<DataFile> {
    let columns = Summary::of(written.metadata, schema);
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(written.location)
        .file_format(DataFileFormat::Parquet)
        .partition(written.partition)
        .partition_spec_id(written.spec_id)
        .record_count(written.metadata.file_metadata().num_rows() as u64)
        .file_size_in_bytes(written.bytes)
        .column_sizes(columns.sizes)
        .value_counts(columns.values)
        .null_value_counts(columns.nulls)
        .lower_bounds(columns.lower)
        .upper_bounds(columns.upper)
        .split_offsets(Some(written.metadata.row_groups().iter().filter_map(|group| group.file_offset()).collect()));
    if let Some(id) = written.sort_order_id {
        builder.sort_order_id(id);
    }
    builder.build().map_err(|error| Error::new(ErrorKind::Unexpected, "a file cannot be described").with_source(error))
}

/// What is said of columns, by field id.
#[derive(Default)]
struct Summary {
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    upper: HashMap<i32, Datum>,
}

impl Summary {
    /// What the file says of the schema's primitive columns. Ours are, but another engine may have added some that are
    /// not, and each of those is several of the file's, or none.
    fn of(metadata: &ParquetMetaData, schema: &Schema) -> Self {
        let mut summary = Self::default();
        let leaves = metadata.file_metadata().schema_descr().columns().iter().enumerate();
        let places: HashMap<&[String], usize> = leaves.map(|(index, leaf)| (leaf.path().parts(), index)).collect();
        for field in schema.as_struct().fields() {
            let Some(kind) = field.field_type.as_primitive_type() else { continue };
            let Some(&index) = places.get(std::slice::from_ref(&field.name)) else { continue };
            let chunks = || metadata.row_groups().iter().map(|group| group.column(index));
            summary.sizes.insert(field.id, chunks().map(|chunk| chunk.compressed_size() as u64).sum());
            summary.values.insert(field.id, chunks().map(|chunk| chunk.num_values() as u64).sum());
            // A row group without statistics may hold anything.
            let Some(all) = chunks().map(|chunk| chunk.statistics()).collect::<Option<Vec<_>>>() else { continue };
            if let Some(nulls) = all.iter().map(|one| one.null_count_opt()).sum() {
                summary.nulls.insert(field.id, nulls);
            }
            let bounded: Vec<&Statistics> = all.into_iter().filter(|one| one.min_bytes_opt().is_some()).collect();
            let bounds = |bytes: fn(&Statistics) -> Option<&[u8]>| bounds(&bounded, kind, bytes);
            if let Some(lowest) = bounds(Statistics::min_bytes_opt).and_then(|all| all.into_iter().reduce(lower)) {
                summary.lower.insert(field.id, lowest);
            }
            if let Some(highest) = bounds(Statistics::max_bytes_opt).and_then(|all| all.into_iter().reduce(upper)) {
                summary.upper.insert(field.id, highest);
            }
        }
        summary
    }
}

/// Every row group's bound. Parquet writes values of our types as Iceberg does; its long texts are cut so that they
/// are bounds still.
fn bounds(all: &[&Statistics], kind: &PrimitiveType, bytes: fn(&Statistics) -> Option<&[u8]>) -> Option<Vec<Datum>> {
    all.iter().map(|one| Datum::try_from_bytes(bytes(one)?, kind.clone()).ok()).collect()
}

fn lower(one: Datum, other: Datum) -> Datum {
    if other < one { other } else { one }
}

fn upper(one: Datum, other: Datum) -> Datum {
    if other > one { other } else { one }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use iceberg::spec::{ListType, NestedField, Type};

    use super::*;

    #[test]
    fn sorting_columns_are_said_where_the_files_columns_are_the_tables() {
        let sorting = |first: Type| {
            let text = || Type::Primitive(PrimitiveType::String);
            let fields = [("a", first), ("event_type", text()), ("b", text()), ("occurred_at", text())];
            let fields = (1..).zip(fields).map(|(id, (name, kind))| Arc::new(NestedField::optional(id, name, kind)));
            let schema = Schema::builder().with_fields(fields).build().expect("a schema");
            let said = properties(&schema, 1).sorting_columns().expect("a list").clone();
            said.iter().map(|column| column.column_idx).collect::<Vec<_>>()
        };
        assert_eq!(sorting(Type::Primitive(PrimitiveType::Long)), [1, 3]);
        let element = Arc::new(NestedField::list_element(9, Type::Primitive(PrimitiveType::Long), true));
        assert_eq!(sorting(Type::List(ListType::new(element))), [0; 0]);
    }
}
