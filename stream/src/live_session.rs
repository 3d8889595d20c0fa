//! What Redis shows of a session id: its latest session.

use chrono::SecondsFormat;

use crate::enrich::DIRECT;
use crate::fold::sessions::{GAP, Session};
use crate::session_key;
use crate::time::utc;

/// Which state a value shows; ordered. The epoch comes first: a Postgres that has come back older may have an older
/// live generation, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Raised when Postgres comes back older.
    pub epoch: i64,
    /// The live generation.
    pub generation: i32,
    /// The row's version, or the sum of the shards' versions.
    pub version: i64,
}

/// The latest session of a session key.
#[derive(Debug)]
pub struct LiveSession {
    /// Project and session key.
    pub key: (String, String),
    /// Its state.
    pub stamp: Stamp,
    /// Hash fields and values.
    pub fields: Vec<(&'static str, String)>,
    /// When it stops being live, in milliseconds since 1970.
    pub expires_ms: i64,
}

impl LiveSession {
    /// Shows this session of the key.
    pub fn new(key: (String, String), stamp: Stamp, session: &Session<'_>) -> Self {
        let mut fields = vec![
            ("firstEventAt", rfc3339(session.first_event_at)),
            ("lastEventAt", rfc3339(session.last_event_at)),
            ("totalEvents", session.total_events.to_string()),
            ("pageViews", session.page_views.to_string()),
            ("conversions", session.conversions.to_string()),
            ("hasConversion", (session.conversions > 0).to_string()),
            ("isNew", session.is_new.to_string()),
        ];
        fields.extend(session_key::session_id(&key.1).map(|id| ("sessionId", id.to_owned())));
        for (field, at) in [
            ("userId", &session.user),
            ("currentPage", &session.page),
            ("entryPage", &session.entry),
            ("deviceType", &session.device),
            ("country", &session.country),
        ] {
            fields.extend(at.as_ref().map(|at| (field, at.value.clone().into_owned())));
        }
        fields.extend(session.revenue.map(|revenue| ("revenue", revenue.to_string())));
        let source = session.source.as_ref().map_or(DIRECT, |source| &source.value);
        fields.push(("trafficSource", source.to_owned()));
        Self { key, stamp, fields, expires_ms: (session.last_event_at + GAP) / 1_000 }
    }
}

fn rfc3339(micros: i64) -> String {
    utc(micros).to_rfc3339_opts(SecondsFormat::Micros, true)
}
