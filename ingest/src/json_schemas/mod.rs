//! JSON Schemas of events' properties, per project and event type: registered, and checked at the gateway.
//!
//! A gateway learns a project's mode, and when its schemas last changed, with the caller's API key; so it knows
//! of a change within the seconds for which keys are trusted, without asking for anything else. Compiled schemas are
//! kept in memory; what is not there, or may be old, is looked up in Redis, then in Postgres, for all types of a
//! request at once.

mod cache;
mod compat;
mod limits;
mod lookup;
mod reports;
pub(crate) mod routes;
mod schema;
mod store;

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::Instant;

use jsonschema::Validator;
use sqlx::PgPool;
use tidemill_common::auth::ApiKey;
use tidemill_common::event::MAX_EVENT_TYPE;
use tidemill_common::projects::SchemaMode;
use tidemill_common::redis::Redis;

use self::cache::{Cache, Found, Known};
use self::lookup::Lookup;
use self::reports::Reports;
pub use self::schema::{BadSchema, MOST_BYTES, Violation};
pub use self::store::{
    Cached, Listed, Registered, Registration, SchemaError, Shown, cached, list, mode, register, set_mode, show,
};

/// The schemas of all projects.
pub struct JsonSchemas {
    known: RwLock<Cache<Validator>>,
    lookup: Lookup,
    reports: Reports,
}

/// The schemas that one request needs.
pub struct Checker<'a> {
    schemas: &'a JsonSchemas,
    caller: &'a ApiKey,
    types: HashMap<String, Known<Validator>>,
}

/// What is to become of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Judged {
    /// It goes on.
    Fine,
    /// It is invalid.
    Invalid(Violation),
    /// Nobody can tell now.
    Unknown,
}

impl JsonSchemas {
    /// Schemas that are looked up there.
    pub fn new(redis: Redis, pool: PgPool) -> Self {
        Self { known: RwLock::default(), lookup: Lookup::new(redis, pool), reports: Reports::new() }
    }

    /// What a request with events of these types needs. Costs nothing where the mode is `off`, and waits only for
    /// types that are not in memory.
    pub async fn checker<'a>(&'a self, caller: &'a ApiKey, types: impl Iterator<Item = &str>) -> Checker<'a> {
        let mut checker = Checker { schemas: self, caller, types: HashMap::new() };
        if caller.schema_mode == SchemaMode::Off {
            return checker;
        }
        let mut stale = self.in_memory(&mut checker, types);
        if stale.is_empty() {
            return checker;
        }
        let changed = caller.schemas_changed;
        let found = self.lookup.newest(&caller.project, changed, stale.keys().cloned().collect()).await;
        let mut known = self.known.write().expect("no holder panics");
        for (event_type, found) in found {
            stale.remove(&event_type);
            known.insert(&caller.project, &event_type, found.clone(), changed, Instant::now());
            checker.types.insert(event_type, found);
        }
        // What nobody answered for goes on as it was.
        checker.types.extend(stale.into_iter().filter_map(|(event_type, known)| Some((event_type, known?))));
        checker
    }

    /// Takes what is known; gives the types to ask for, with what was known of them before.
    fn in_memory<'t>(
        &self,
        checker: &mut Checker<'_>,
        types: impl Iterator<Item = &'t str>,
    ) -> HashMap<String, Option<Known<Validator>>> {
        let (known, now, mut ask) = (self.known.read().expect("no holder panics"), Instant::now(), HashMap::new());
        for event_type in types {
            // What cannot be a type is refused without a schema.
            if event_type.len() > 4 * MAX_EVENT_TYPE || event_type.contains('\0') {
                continue;
            }
            if checker.types.contains_key(event_type) || ask.contains_key(event_type) {
                continue;
            }
            match known.find(&checker.caller.project, event_type, checker.caller.schemas_changed, now) {
                Found::Use(known) => drop(checker.types.insert(event_type.to_owned(), known)),
                Found::Ask(stale) => drop(ask.insert(event_type.to_owned(), stale)),
            }
        }
        ask
    }
}

impl Checker<'_> {
    /// Judges an event's properties.
    pub fn judge(&self, event_type: &str, properties: Option<&str>) -> Judged {
        let (mode, reports) = (self.caller.schema_mode, &self.schemas.reports);
        if mode == SchemaMode::Off {
            return Judged::Fine;
        }
        let Some(known) = self.types.get(event_type) else {
            if mode == SchemaMode::Strict {
                return Judged::Unknown;
            }
            reports.unchecked();
            return Judged::Fine;
        };
        match known.as_ref().and_then(|validator| schema::violation(validator, properties)) {
            None => Judged::Fine,
            Some(violation) => {
                reports.violation(mode, &self.caller.project, event_type, &violation);
                if mode == SchemaMode::Strict { Judged::Invalid(violation) } else { Judged::Fine }
            }
        }
    }
}
