//! How far a table is: read from its catalog in Postgres and its metadata, as any engine would.

use std::collections::HashMap;

use anyhow::Context;
use serde::Deserialize;
use sqlx::PgPool;

/// What a table's latest snapshot holds.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Holds {
    /// Rows.
    pub rows: u64,
    /// Bytes of its data files.
    pub bytes: u64,
    /// Its data files.
    pub files: u64,
}

/// A table in a SQL catalog. There need not be one yet.
pub struct Table<'a> {
    /// The catalog's database.
    pub pool: &'a PgPool,
    /// `first.second`
    pub namespace: String,
    /// Its name in the namespace.
    pub name: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    current_snapshot_id: Option<i64>,
    #[serde(default)]
    snapshots: Vec<Snapshot>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Snapshot {
    snapshot_id: i64,
    #[serde(default)]
    summary: HashMap<String, String>,
}

impl Table<'_> {
    /// What it holds now.
    pub async fn holds(&self) -> anyhow::Result<Holds> {
        let Some(location) = self.metadata().await? else { return Ok(Holds::default()) };
        let path = location.trim_start_matches("file:").replacen("//", "/", 1);
        let text = tokio::fs::read(&path).await.with_context(|| format!("cannot read {location}"))?;
        holds(&text).with_context(|| format!("{location} is no table's metadata"))
    }

    async fn metadata(&self) -> anyhow::Result<Option<String>> {
        let catalog: Option<String> =
            sqlx::query_scalar("SELECT to_regclass('iceberg_tables')::text").fetch_one(self.pool).await?;
        if catalog.is_none() {
            return Ok(None);
        }
        let location = "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = $1 AND table_name = $2";
        Ok(sqlx::query_scalar(location).bind(&self.namespace).bind(self.name).fetch_optional(self.pool).await?)
    }
}

fn holds(metadata: &[u8]) -> anyhow::Result<Holds> {
    let metadata: Metadata = serde_json::from_slice(metadata)?;
    let is_current = |snapshot: &&Snapshot| Some(snapshot.snapshot_id) == metadata.current_snapshot_id;
    let Some(current) = metadata.snapshots.iter().find(is_current) else { return Ok(Holds::default()) };
    let total = |name: &str| -> anyhow::Result<u64> {
        let text = current.summary.get(name).with_context(|| format!("its snapshot does not say {name}"))?;
        Ok(text.parse()?)
    };
    Ok(Holds { rows: total("total-records")?, bytes: total("total-files-size")?, files: total("total-data-files")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_snapshot_counts() {
        let of = |current: i64| {
            let snapshot = |id: i64, rows: u64| {
                serde_json::json!({ "snapshot-id": id, "summary": {
                    "total-records": rows.to_string(), "total-files-size": "9", "total-data-files": "2" } })
            };
            let metadata = serde_json::json!({
                "current-snapshot-id": current, "snapshots": [snapshot(7, 10), snapshot(8, 20)] });
            holds(metadata.to_string().as_bytes()).expect("metadata")
        };
        assert_eq!(of(8), Holds { rows: 20, bytes: 9, files: 2 });
        assert_eq!(of(7).rows, 10);
        assert_eq!(of(-1), Holds::default(), "a table without a snapshot");
        assert!(holds(b"{\"current-snapshot-id\":1,\"snapshots\":[{\"snapshot-id\":1}]}").is_err());
    }
}
