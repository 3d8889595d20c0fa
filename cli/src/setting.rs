//! One setting of a project: shown as it is and as it is to be, agreed to, entered, changed.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::audit;
use crate::consent::Consent;
use crate::output::Output;

const FIELDS: [&str; 4] = ["project", "setting", "from", "to"];

/// A change of a setting.
#[derive(Serialize)]
pub struct Setting<'a> {
    /// Whose.
    pub project: &'a str,
    /// What it is called.
    pub setting: &'static str,
    /// What it is; null is none.
    pub from: Value,
    /// What it is to be.
    pub to: Value,
}

impl Setting<'_> {
    /// Changes it if that is agreed to. `command` is its noun and verb. False for `--dry-run`.
    pub async fn change(
        &self,
        command: &str,
        question: &str,
        (consent, output): (Consent, Output),
        db: &mut PgConnection,
        make: impl AsyncFnOnce(&mut PgConnection) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        output.plan(self, &FIELDS)?;
        if !consent.given(question)? {
            return Ok(false);
        }
        let entry = audit::begin(db, command, Some(self.project), self).await?;
        let made = make(db).await;
        entry.end(db, made).await?;
        Ok(true)
    }
}
