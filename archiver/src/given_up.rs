//! Records whose schema the stream has given up on. They are dead letters for good, though the registry may know
//! their schema by the time that we come to them.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::PgPool;
use tidemill_common::codec::schema_id;
use tidemill_common::dead_letters::unknown_schemas;
use tidemill_common::kafka::{Record, TopicPartition};

/// What the stream had given up on in a topic when we last asked.
#[derive(Default)]
pub struct GivenUp {
    offsets: HashMap<TopicPartition, BTreeSet<i64>>,
    /// Schemas that were asked for before that. The stream gives up nothing whose schema the registry knows.
    schemas: HashSet<u32>,
    /// The last one that was asked for: neighbours mostly have the same.
    last: Option<u32>,
}

impl GivenUp {
    /// Whether the stream has given up on a record. Asks once for each schema.
    pub async fn has(&mut self, record: &Record, pool: &PgPool, incarnation: &str) -> Result<bool, sqlx::Error> {
        let schema = schema_id(&record.value).ok();
        if schema != self.last {
            if schema.is_some_and(|schema| !self.schemas.contains(&schema)) {
                self.offsets = unknown_schemas(pool, &record.topic, incarnation).await?;
            }
            self.schemas.extend(schema);
            self.last = schema;
        }
        Ok(!self.offsets.is_empty()
            && self.offsets.get(&record.topic_partition()).is_some_and(|offsets| offsets.contains(&record.offset)))
    }

    /// The registry does not know this record's schema now, so the stream may yet give up on more of them.
    pub fn ask_again(&mut self, record: &Record) {
        if let Ok(schema) = schema_id(&record.value) {
            self.schemas.remove(&schema);
            self.last = None;
        }
    }
}
