//! Where the archive stands in a project's topics, whichever archivers have its partitions.

use std::collections::HashMap;

use tidemill_common::kafka::TopicPartition;
use tidemill_common::names::project_of;

use crate::error::ArchiveError;
use crate::positions;
use crate::table::Tables;

/// The positions of a project's table in these topics of it, each with its incarnation; none where there is no table
/// yet.
pub async fn positions(
    tables: &Tables,
    project: &str,
    incarnations: &HashMap<String, String>,
) -> Result<HashMap<TopicPartition, i64>, ArchiveError> {
    let Some(table) = tables.load(project).await? else { return Ok(HashMap::new()) };
    let mut all = HashMap::new();
    for (topic, id) in incarnations.iter().filter(|(topic, _)| project_of(topic) == Some(project)) {
        let positions = positions::read(table.metadata().properties(), topic)?;
        let topic: std::sync::Arc<str> = topic.as_str().into();
        let ours = positions.into_iter().filter(|(_, position)| position.incarnation == *id);
        all.extend(ours.map(|(partition, at)| (TopicPartition { topic: topic.clone(), partition }, at.next)));
    }
    Ok(all)
}
