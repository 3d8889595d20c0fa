//! Where the archive stands in a topic, whichever archivers have its partitions.

use std::collections::HashMap;

use tidemill_common::kafka::TopicPartition;
use tidemill_common::names::events_topic;

use crate::error::ArchiveError;
use crate::positions;
use crate::table::Tables;

/// The positions of a project's table in this incarnation of its topic; none where there is no table yet.
pub async fn positions(
    tables: &Tables,
    project: &str,
    incarnation: &str,
) -> Result<HashMap<TopicPartition, i64>, ArchiveError> {
    let Some(table) = tables.load(project).await? else { return Ok(HashMap::new()) };
    let topic = events_topic(project);
    let positions = positions::read(table.metadata().properties(), &topic)?;
    let topic: std::sync::Arc<str> = topic.into();
    let ours = positions.into_iter().filter(|(_, position)| position.incarnation == incarnation);
    Ok(ours.map(|(partition, at)| (TopicPartition { topic: topic.clone(), partition }, at.next)).collect())
}
