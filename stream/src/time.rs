//! Event times as Postgres takes them.

use chrono::{DateTime, Utc};

/// Microseconds since 1970 as a time. Valid events lie within its range.
pub fn utc(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
