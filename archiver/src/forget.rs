//! What is left of a user in the archive. Files are rewritten by Spark, since the library can commit no rewrite.

use futures::TryStreamExt;
use iceberg::Result;
use iceberg::expr::Reference;
use iceberg::spec::Datum;

use crate::table::Tables;

/// How many of a user's events a project's archive has.
pub async fn archived(tables: &Tables, project: &str, user: &str) -> Result<u64> {
    let Some(table) = tables.load(project).await? else { return Ok(0) };
    let his = Reference::new("user_id").equal_to(Datum::string(user));
    let scan = table.scan().with_filter(his).select(["user_id"]).build()?;
    scan.to_arrow().await?.try_fold(0, |count, batch| async move { Ok(count + batch.num_rows() as u64) }).await
}
