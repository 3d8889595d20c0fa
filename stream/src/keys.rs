//! The Redis keys that the stream writes and the query service reads. Projects and other parts are
//! separated by `:`; a project id has none, so no project can reach another's keys.

use crate::window::Granularity;

/// HASH of a live session, by its [`crate::session_key`].
pub fn session(project: &str, session_key: &str) -> String {
    format!("analytics:session:{project}:{session_key}")
}

/// HASH of a cart, by its session's key.
pub fn cart(project: &str, session_key: &str) -> String {
    format!("cart:{project}:{session_key}")
}

/// SET of the user ids a project has seen.
pub fn seen_users(project: &str) -> String {
    format!("analytics:seen_users:{project}")
}

/// JSON of a hot window: `metric` is an event type or a metric's name, `window_start` is in seconds since 1970.
pub fn metric(project: &str, metric: &str, granularity: Granularity, window_start: i64) -> String {
    format!("metric:{project}:{metric}:{granularity}:{window_start}")
}

/// HASH of how far a project's projection has got, and for which Redis it is whole. One per node that has keys: `tag`
/// makes the name one of that node's.
pub fn projection(project: &str, tag: &str) -> String {
    format!("analytics:projection:{project}{tag}")
}

/// Held by the worker that projects all of a project again; in the same place.
pub fn projecting(project: &str, tag: &str) -> String {
    format!("analytics:projecting:{project}{tag}")
}
