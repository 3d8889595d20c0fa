//! The promoted columns that a project declares, read again when its schemas have changed.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tidemill_common::promoted::promoted;

use crate::promotions::Promotions;
use crate::sql;

/// What was declared when we last asked.
#[derive(Clone, Default)]
pub struct Declared {
    /// The columns.
    pub promotions: Arc<Promotions>,
    /// When the project's schemas had changed.
    as_of: Option<DateTime<Utc>>,
}

impl Declared {
    /// What is declared now. When Postgres does not say, that of before: files do not wait for it.
    pub async fn renewed(self, pool: &PgPool, project: &str) -> Self {
        match self.clone().read(pool, project).await {
            Ok(declared) => declared,
            Err(error) => {
                tracing::warn!(project, %error, "promoted columns cannot be read again, those of before are used");
                self
            }
        }
    }

    async fn read(self, pool: &PgPool, project: &str) -> Result<Self, sqlx::Error> {
        let changed_at = sql::schemas_changed_at(pool, project).await?;
        if changed_at == self.as_of {
            return Ok(self);
        }
        let mut declared = Vec::new();
        for (event_type, schema) in sql::schemas_with_columns(pool, project).await? {
            match promoted(&schema) {
                Ok(columns) => declared.push((event_type, columns)),
                // It was registered before this was looked at.
                Err(error) => tracing::warn!(project, event_type, %error, "a schema's columns are left out"),
            }
        }
        Ok(Self { promotions: Arc::new(Promotions::new(declared)), as_of: changed_at })
    }
}
