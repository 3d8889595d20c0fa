//! The operators' book: every command that changes something leaves a row with who, when, what and the plan.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::output::told;
use crate::store::explain;

const BEGIN: &str = "INSERT INTO audit (who, command, project, plan) VALUES ($1, $2, $3, $4) RETURNING id";
const END: &str = "UPDATE audit SET outcome = $2, ended_at = now() WHERE id = $1";

/// A change that has been entered, and has not ended.
#[must_use = "its outcome has to be entered"]
pub struct Entry(i64);

/// Enters what is going to change. `command` is its noun and verb; of no or all projects: `None`. Nothing may be
/// changed if this fails.
pub async fn begin(
    db: &mut PgConnection,
    command: &str,
    project: Option<&str>,
    plan: &impl Serialize,
) -> anyhow::Result<Entry> {
    let plan: Value = serde_json::to_value(plan)?;
    let insert = sqlx::query_scalar(BEGIN).bind(who()).bind(command).bind(project).bind(plan);
    insert.fetch_one(db).await.map(Entry).map_err(explain)
}

impl Entry {
    /// Enters how it ended, and gives that on.
    pub async fn end<T>(self, db: &mut PgConnection, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let outcome = match &result {
            Ok(_) => "done".to_owned(),
            Err(error) => format!("failed: {}", told(error)),
        };
        let entered = sqlx::query(END).bind(self.0).bind(outcome).execute(db).await.map_err(explain);
        result.and_then(|done| entered.map(|_| done))
    }
}

/// Who types: what they call themselves, or the login's name.
pub fn who() -> String {
    let name = ["TIDEMILL_OPERATOR", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
