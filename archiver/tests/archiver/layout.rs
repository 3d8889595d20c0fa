//! How a table's files are laid out, and columns that come later.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use iceberg::spec::{DataFile, Datum, NestedField, PrimitiveType, StructType, Type};
use iceberg::transaction::{AddColumn, ApplyTransactionAction, Transaction};
use parquet::basic::Compression;
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use serde_json::json;
use tidemill_archiver::files::Files;
use tidemill_archiver::positions::{Position, Positions};
use tidemill_archiver::promotions::Promotions;
use tidemill_common::event::Event;
use tidemill_common::promoted::{Kind, Promoted};
use tidemill_testkit::{event, eventually};

use crate::support::{World, archived, as_rows, batches, commit, config, start};

const DAY: i64 = 1_700_000_000 / 86_400;

fn opened(file: &DataFile) -> SerializedFileReader<File> {
    let path = PathBuf::from(file.file_path().strip_prefix("file://").unwrap());
    let properties = ReaderProperties::builder().set_read_bloom_filter(true).build();
    let options = ReadOptionsBuilder::new().with_page_index().with_reader_properties(properties).build();
    SerializedFileReader::new_with_options(File::open(path).unwrap(), options).unwrap()
}

fn events(offsets: std::ops::Range<i64>) -> Vec<(i64, Event)> {
    let types = ["view", "click", "buy"];
    let event = |i: i64| Event {
        user_id: (i % 2 == 0).then(|| format!("u-{i}")),
        ..event(&format!("e-{i}"), types[i as usize % 3], 1_700_000_000 + (i * 37) % 60)
    };
    offsets.map(|i| (i, event(i))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_rows_are_row_groups_with_all_that_helps_to_skip_them() {
    let world = World::new().await;
    let table = world.tables.load_or_create(&world.project).await.unwrap();
    let mut files = Files::new(&table, Arc::default(), usize::MAX).unwrap();
    files.write(DAY, as_rows(0, &events(0..300)), false).await.unwrap();
    files.write(DAY, as_rows(0, &events(300..500)), false).await.unwrap();
    let files = files.close().await.unwrap();
    let [file] = files.as_slice() else { panic!("one day, one file: {files:?}") };
    assert_eq!((file.record_count(), file.sort_order_id()), (500, None), "sorted only within row groups");

    let (reader, schema) = (opened(file), table.metadata().current_schema().clone());
    let column = |name: &str| schema.as_struct().fields().iter().position(|field| field.name == name).unwrap();
    let metadata = reader.metadata();
    assert_eq!(metadata.row_groups().iter().map(|group| group.num_rows()).collect::<Vec<_>>(), [300, 200]);
    for (index, group) in metadata.row_groups().iter().enumerate() {
        assert!(group.columns().iter().all(|column| matches!(column.compression(), Compression::ZSTD(_))));
        let (id, event_type) = (group.column(column("event_id")), group.column(column("event_type")));
        assert_eq!(id.dictionary_page_offset(), None, "unique values have no dictionary");
        assert!(event_type.dictionary_page_offset().is_some());
        assert_eq!(event_type.statistics().unwrap().min_bytes_opt(), Some(b"buy".as_slice()));
        assert!(
            event_type.column_index_offset().is_some() && id.offset_index_offset().is_some(),
            "pages have statistics"
        );
        let sorting = group.sorting_columns().unwrap();
        let by: Vec<usize> = sorting.iter().map(|sorting| sorting.column_idx as usize).collect();
        assert_eq!(by, [column("event_type"), column("occurred_at")]);
        let filter = reader.get_row_group(index).unwrap().get_column_bloom_filter(column("event_id")).cloned().unwrap();
        let own = if index == 0 { "e-7" } else { "e-307" };
        assert!(filter.check(&own));
        assert!((0..100).filter(|i| filter.check(&format!("other-{i}").as_str())).count() < 10);
    }

    let id = |name: &str| schema.field_id_by_name(name).unwrap();
    let bounds = |name: &str| (file.lower_bounds()[&id(name)].to_string(), file.upper_bounds()[&id(name)].to_string());
    assert_eq!(bounds("event_type"), ("\"buy\"".to_owned(), "\"view\"".to_owned()));
    assert_eq!(bounds("kafka_offset"), ("0".to_owned(), "499".to_owned()));
    assert_eq!(file.null_value_counts()[&id("user_id")], 250);
    assert!(
        !file.lower_bounds().contains_key(&id("properties")) && !file.lower_bounds().contains_key(&id("session_id"))
    );
    let end = Positions::from([(0, Position { incarnation: "one".to_owned(), next: 500, newest_ms: 0 })]);
    commit(world.tables.catalog().await.unwrap(), &table, "events.any", &end, &files).await.unwrap();
    assert_eq!(batches(&world, &world.project).await.iter().map(|batch| batch.num_rows()).sum::<usize>(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_is_followed_by_another() {
    let world = World::new().await;
    let table = world.tables.load_or_create(&world.project).await.unwrap();
    let mut files = Files::new(&table, Arc::default(), 1_000).unwrap();
    for start in [0, 100, 200] {
        files.write(DAY, as_rows(0, &events(start..start + 100)), false).await.unwrap();
    }
    let files = files.close().await.unwrap();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.sort_order_id() == Some(1)), "one run each");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_another_engine_do_not_shift_what_is_said_of_ours() {
    let world = World::new().await;
    let (table, catalog) =
        (world.tables.load_or_create(&world.project).await.unwrap(), world.tables.catalog().await.unwrap());
    let text = |id, name: &str| Arc::new(NestedField::optional(id, name, Type::Primitive(PrimitiveType::String)));
    let device = Type::Struct(StructType::new(vec![text(101, "system"), text(102, "brand")]));
    let transaction = Transaction::new(&table);
    let update = transaction
        .update_schema()
        .add_column(AddColumn::optional("device", device))
        .add_column(AddColumn::optional("price", Type::Primitive(PrimitiveType::Double)));
    let table = update.apply(transaction).unwrap().commit(catalog).await.unwrap();
    let price = Promoted { column: "price".to_owned(), kind: Kind::Double, path: vec!["price".to_owned()] };
    let promotions = Arc::new(Promotions::new(vec![("buy".to_owned(), vec![price])]));
    let buy = |i: i64| Event {
        properties: Some(json!({ "price": i as f64 }).to_string()),
        ..event(&format!("e-{i}"), "buy", 1_700_000_000)
    };
    let bought: Vec<_> = (0..10).map(|i| (i, buy(i))).collect();
    let mut files = Files::new(&table, promotions, usize::MAX).unwrap();
    files.write(DAY, as_rows(0, &bought), true).await.unwrap();
    let files = files.close().await.unwrap();
    let id = table.metadata().current_schema().field_id_by_name("price").unwrap();
    let bounds = (&files[0].lower_bounds()[&id], &files[0].upper_bounds()[&id]);
    assert_eq!(bounds, (&Datum::double(0.0), &Datum::double(9.0)));
    assert_eq!(files[0].null_value_counts()[&id], 0);
}

/// Registers a schema as the gateway does.
async fn declare(world: &World, event_type: &str, version: i32, properties: serde_json::Value) {
    sqlx::query("INSERT INTO event_schemas (project, event_type, version, schema) VALUES ($1, $2, $3, $4)")
        .bind(&world.project)
        .bind(event_type)
        .bind(version)
        .bind(json!({"type": "object", "properties": properties}))
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE projects SET schemas_changed_at = clock_timestamp() WHERE id = $1")
        .bind(&world.project)
        .execute(&world.pool)
        .await
        .unwrap();
}

async fn send(world: &World, id: &str, event_type: &str, properties: &str) {
    let event = Event { properties: Some(properties.to_owned()), ..event(id, event_type, 1_700_000_000) };
    world.send(&event).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_columns_come_without_rewriting_and_are_null_before() {
    let world = World::new().await;
    let archiver = start(&world, config(&world, "a")).await;
    send(&world, "before", "buy", r#"{"price":1.5,"items":2}"#).await;
    archived(&world, &world.project).await;
    declare(&world, "buy", 1, json!({"price": {"type": "number", "x-column": "price"}})).await;
    send(&world, "first", "buy", r#"{"price":2.5,"items":2}"#).await;
    send(&world, "other", "view", r#"{"price":9}"#).await;
    archived(&world, &world.project).await;
    let both = json!({
        "price": {"type": "number", "x-column": "price"},
        "items": {"type": "integer", "x-column": "items"},
    });
    declare(&world, "buy", 2, both).await;
    send(&world, "second", "buy", r#"{"price":3.5,"items":4}"#).await;
    send(&world, "odd", "buy", r#"{"price":"much","items":4.5}"#).await;
    archived(&world, &world.project).await;
    archiver.stop().await;

    let mut read = Vec::new();
    for batch in batches(&world, &world.project).await {
        let column = |name| batch.column_by_name(name).unwrap();
        let ids = column("event_id").as_string::<i32>();
        let (prices, items) =
            (column("price").as_primitive::<Float64Type>(), column("items").as_primitive::<Int64Type>());
        let price = |i| prices.is_valid(i).then(|| prices.value(i));
        let item = |i| items.is_valid(i).then(|| items.value(i));
        read.extend((0..batch.num_rows()).map(|i| (ids.value(i).to_owned(), price(i), item(i))));
    }
    read.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("before", None, None),
        ("first", Some(2.5), None),
        ("odd", None, None),
        ("other", None, None),
        ("second", Some(3.5), Some(4)),
    ];
    assert_eq!(read, expected.map(|(id, price, items)| (id.to_owned(), price, items)));
    let table = world.tables.load(&world.project).await.unwrap().unwrap();
    assert_eq!(table.metadata().schemas_iter().count(), 3, "it evolved twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn archivers_that_add_the_same_columns_at_once_agree() {
    let world = World::new().await;
    declare(
        &world,
        "buy",
        1,
        json!({"a": {"type": "string", "x-column": "a"}, "b": {"type": "boolean", "x-column": "b"}}),
    )
    .await;
    let (one, other) = (start(&world, config(&world, "a")).await, start(&world, config(&world, "a")).await);
    for i in 0..40 {
        send(&world, &format!("e-{i}"), "buy", r#"{"a":"x","b":true}"#).await;
    }
    archived(&world, &world.project).await;
    eventually("all rows have their columns", || async {
        let all = batches(&world, &world.project).await;
        all.iter().map(|batch| batch.num_rows()).sum::<usize>() == 40
            && all.iter().all(|batch| batch.column_by_name("a").is_some_and(|column| column.null_count() == 0))
    })
    .await;
    one.stop().await;
    other.stop().await;
}
