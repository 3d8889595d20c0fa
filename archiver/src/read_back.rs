//! The archive read back as the events that it holds, for a rebuild that begins before Kafka's log does.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::expr::Reference;
use iceberg::scan::FileScanTask;
use iceberg::spec::Datum;
use iceberg::table::Table;
use iceberg::{Error, ErrorKind, Result};
use tidemill_common::event::Event;
use tidemill_common::origin::Origin;

use crate::positions::{self, BadPosition, Positions};
use crate::table::{COLUMNS, Tables};

/// Rows that come at once, at the most.
const ROWS: usize = 10_000;

/// A project's table as it is at one snapshot: its files in an order that is always the same.
pub struct ReadBack {
    table: Table,
    snapshot: i64,
    files: Vec<FileScanTask>,
}

/// An event, and where its record stood in the log.
pub type Archived = (Event, Origin);

impl ReadBack {
    /// The table at this snapshot, or at its newest; none where nothing is archived. Of it all, or the rows of records
    /// that were appended at a time or later.
    pub async fn open(
        tables: &Tables,
        project: &str,
        snapshot: Option<i64>,
        since: Option<DateTime<Utc>>,
    ) -> Result<Option<Self>> {
        let Some(table) = tables.load(project).await? else { return Ok(None) };
        let Some(snapshot) = snapshot.or(table.metadata().current_snapshot_id()) else { return Ok(None) };
        let mut scan = table.scan().snapshot_id(snapshot).select(COLUMNS.map(|column| column.name));
        if let Some(since) = since {
            let since = Datum::timestamptz_from_datetime(since);
            scan = scan.with_filter(Reference::new("append_time").greater_than_or_equal_to(since));
        }
        let scan = scan.build()?;
        let mut files: Vec<FileScanTask> = scan.plan_files().await?.try_collect().await?;
        files.sort_by(|a, b| (&a.data_file_path, a.start).cmp(&(&b.data_file_path, b.start)));
        Ok(Some(Self { table, snapshot, files }))
    }

    /// Which snapshot it is.
    pub fn snapshot(&self) -> i64 {
        self.snapshot
    }

    /// How many files it has.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Up to where the topics of a project's events are in it: at least, if it is not the newest snapshot.
    pub fn positions(&self, project: &str) -> std::result::Result<Positions, BadPosition> {
        positions::read_all(self.table.metadata().properties(), project)
    }

    /// The rows of a file, always in the same order.
    pub fn rows(&self, file: usize) -> Result<BoxStream<'static, Result<Vec<Archived>>>> {
        let task = self.files[file].clone();
        let reader = self.table.reader_builder().with_batch_size(ROWS).with_data_file_concurrency_limit(1).build();
        let batches = reader.read(stream::once(async { Ok(task) }).boxed())?.stream();
        Ok(batches.and_then(|batch| async move { events(&batch) }).boxed())
    }
}

fn events(batch: &RecordBatch) -> Result<Vec<Archived>> {
    let column = |name: &str| {
        let missing = || Error::new(ErrorKind::DataInvalid, format!("a file of the archive has no column {name}"));
        batch.column_by_name(name).ok_or_else(missing)
    };
    let texts = |name: &str| column(name).map(|column| column.as_string::<i32>().clone());
    let times = |name: &str| column(name).map(|column| column.as_primitive::<TimestampMicrosecondType>().clone());
    let (ids, types, actions) = (texts("event_id")?, texts("event_type")?, texts("event_action")?);
    let (users, sessions, properties) = (texts("user_id")?, texts("session_id")?, texts("properties")?);
    let (addresses, agents) = (texts("client_address")?, texts("user_agent")?);
    let (occurred, received, appended) = (times("occurred_at")?, times("received_at")?, times("append_time")?);
    let partitions = column("kafka_partition")?.as_primitive::<Int32Type>();
    let offsets = column("kafka_offset")?.as_primitive::<Int64Type>();
    let text = |from: &arrow::array::StringArray, row: usize| from.is_valid(row).then(|| from.value(row).into());
    let event = |row: usize| {
        let event = Event {
            event_action: text(&actions, row),
            user_id: text(&users, row),
            session_id: text(&sessions, row),
            properties: text(&properties, row),
            client_address: text(&addresses, row),
            user_agent: text(&agents, row),
            received_at: received.is_valid(row).then(|| received.value(row)),
            ..Event::new(ids.value(row), types.value(row), occurred.value(row))
        };
        let append_ms = appended.value(row).div_euclid(1_000);
        (event, Origin { partition: partitions.value(row), offset: offsets.value(row), append_ms })
    };
    Ok((0..batch.num_rows()).map(event).collect())
}
