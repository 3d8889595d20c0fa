//! Names of metrics.

/// Names that built-in metrics have; an event type of the same name is counted all the same, but asked for
/// as `events` with a filter or grouping on `eventType`.
pub const RESERVED: [&str; 9] = [
    "events",
    "active_users",
    "daily_active_users",
    "new_users",
    "sessions",
    "page_views",
    "conversions",
    "revenue",
    "bounce_rate",
];

/// The rollups' `metric_name` for counts and users of events; their dimension is none or [`EVENT_TYPE`].
pub const EVENTS: &str = "events";
/// The rollups' `metric_name` for sessions, by their start.
pub const SESSIONS: &str = "sessions";
/// Sessions of a single event, by their start.
pub const BOUNCES: &str = "bounces";
/// Sessions in which a user's first event lies, by their start.
pub const NEW_USERS: &str = "new_users";
/// Conversions, by the start of their session.
pub const CONVERSIONS: &str = "conversions";
/// What conversions brought in, by the start of their session: the sum.
pub const REVENUE: &str = "revenue";
/// The rollups' `dimension_key` for counts of one event type.
pub const EVENT_TYPE: &str = "event_type";

/// Whether a name is a built-in metric's.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}
