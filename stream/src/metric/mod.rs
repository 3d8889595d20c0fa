//! What is measured: built-in metrics, and declared ones.

mod compiled;
mod declaration;
mod definitions;
mod dimension;
mod totals;

pub use compiled::{Compiled, Enriched, Metrics, Observation, Subject};
pub use declaration::{Aggregation, BadDeclaration, Condition, Declaration, MAX_DECLARED, MAX_VALUES};
pub use definitions::{DefinitionError, Definitions, Snapshot};
pub use dimension::{Dimension, SEPARATOR, apart, together};
pub use totals::Totals;

/// Names that built-in metrics have; an event type of the same name is counted all the same, but asked for
/// as `events` with a filter or grouping on `eventType`.
pub const RESERVED: [&str; 10] = [
    "events",
    "active_users",
    "daily_active_users",
    NEW_USERS,
    SESSIONS,
    PAGE_VIEWS,
    CONVERSIONS,
    REVENUE,
    "bounce_rate",
    BOUNCES,
];

/// The rollups' `metric_name` for counts and users of events; their dimension is none or [`EVENT_TYPE`].
pub const EVENTS: &str = "events";
/// The rollups' `metric_name` for sessions, by their start.
pub const SESSIONS: &str = "sessions";
/// Sessions of a single event, by their start.
pub const BOUNCES: &str = "bounces";
/// Sessions in which a user's first event lies, by their start.
pub const NEW_USERS: &str = "new_users";
/// Events that show a page, by their own time.
pub const PAGE_VIEWS: &str = "page_views";
/// Conversions, by the start of their session.
pub const CONVERSIONS: &str = "conversions";
/// What conversions brought in, by the start of their session: the sum.
pub const REVENUE: &str = "revenue";
/// Metrics that the fold of sessions counts: an event can change them in windows that it does not name, those around the
/// start of a session that it belongs to or has put an end to.
pub const OF_SESSIONS: [&str; 5] = [SESSIONS, BOUNCES, NEW_USERS, CONVERSIONS, REVENUE];
/// The rollups' `dimension_key` for counts of one event type.
pub const EVENT_TYPE: &str = "event_type";
/// What a dimension's values are counted under when there are too many of them. An event that has this very
/// value is counted there, too.
pub const OTHER: &str = "__other__";

/// Whether a name is a built-in metric's.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}
