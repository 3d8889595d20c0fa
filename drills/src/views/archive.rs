//! What the archive holds.

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use futures::TryStreamExt;
use tidemill_archiver::table::Tables;
use tidemill_testkit::Stack;

/// Partition, offset and eventId of every row of the stack's project, sorted.
pub async fn archived(stack: &Stack) -> anyhow::Result<Vec<(i32, i64, String)>> {
    let Some(table) = Tables::new(&stack.connections).load(&stack.project).await? else { return Ok(Vec::new()) };
    let mut batches = table.scan().select_all().build()?.to_arrow().await?;
    let mut rows = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        let column = |name| batch.column_by_name(name).expect("a column of every archive");
        let partitions = column("kafka_partition").as_primitive::<Int32Type>();
        let offsets = column("kafka_offset").as_primitive::<Int64Type>();
        let ids = column("event_id").as_string::<i32>();
        rows.extend((0..batch.num_rows()).map(|i| (partitions.value(i), offsets.value(i), ids.value(i).to_owned())));
    }
    rows.sort();
    Ok(rows)
}
