//! The Redis keys of the query service's own.

/// An answer, by the hash of what was asked.
pub fn query(project: &str, hash: &str) -> String {
    format!("query:{project}:{hash}")
}

/// When all of a project's answers were last dropped, in milliseconds since 1970.
pub fn dropped(project: &str) -> String {
    format!("query:{project}")
}
