//! Limits of single event types and users, as operators have set them. They are quotas: each holds over all gateways.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use sqlx::PgPool;

use super::Whose;
use super::quota::Quotas;
use crate::event_limits::{self, EventLimit};
use crate::keys;

/// How often Postgres is asked for them.
const LOOK: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);
/// What may not pass at all is told to come back after this.
const BARRED: Duration = Duration::from_secs(60);

/// The limits that hold now.
#[derive(Default)]
pub struct Named {
    /// Whether there are any: mostly there are none, and then nothing else is looked at.
    any: AtomicBool,
    projects: RwLock<Arc<HashMap<String, OfProject>>>,
}

#[derive(Default)]
struct OfProject {
    types: HashMap<String, Limit>,
    users: HashMap<String, Limit>,
}

struct Limit {
    /// By what quotas know it.
    bucket: Arc<str>,
    /// None: nothing passes.
    rate: Option<NonZeroU32>,
}

impl Limit {
    fn take(&self, quotas: &Quotas) -> Result<(), Duration> {
        let granted = quotas.take(&self.bucket, self.rate.ok_or(BARRED)?, 1);
        if granted.events == 1 { Ok(()) } else { Err(granted.retry_after) }
    }

    fn give_back(&self, quotas: &Quotas) {
        quotas.give_back(&self.bucket, 1);
    }
}

impl Named {
    /// Takes one event of its type and of its user; else says whose limit that is, and when one could pass.
    pub fn check(
        &self,
        quotas: &Quotas,
        project: &str,
        kind: &str,
        user: Option<&str>,
    ) -> Result<(), (Whose, Duration)> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        let projects = Arc::clone(&self.projects.read().expect("no holder panics"));
        let Some(of_project) = projects.get(project) else { return Ok(()) };
        let by_type = of_project.types.get(kind);
        by_type.map_or(Ok(()), |limit| limit.take(quotas)).map_err(|wait| (Whose::EventType, wait))?;
        let by_user = user.and_then(|user| of_project.users.get(user));
        by_user.map_or(Ok(()), |limit| limit.take(quotas)).map_err(|wait| {
            // What the user's does not let pass is not taken from the type's others.
            if let Some(limit) = by_type {
                limit.give_back(quotas);
            }
            (Whose::User, wait)
        })
    }

    /// These hold, and no others.
    pub fn replace(&self, limits: Vec<EventLimit>) {
        let mut projects: HashMap<String, OfProject> = HashMap::new();
        self.any.store(!limits.is_empty(), Ordering::Relaxed);
        for EventLimit { project, kind, name, per_second, .. } in limits {
            let bucket = Arc::from(keys::named_bucket(&project, &kind, &name));
            let rate = u32::try_from(per_second).ok().and_then(NonZeroU32::new);
            let of_project = projects.entry(project).or_default();
            let of_kind = if kind == "user" { &mut of_project.users } else { &mut of_project.types };
            of_kind.insert(name, Limit { bucket, rate });
        }
        *self.projects.write().expect("no holder panics") = Arc::new(projects);
    }

    /// Follows Postgres, for ever. While it cannot be asked, what was known last goes on.
    pub async fn follow(&self, pool: &PgPool) {
        let mut known = true;
        loop {
            let asked = tokio::time::timeout(PATIENCE, event_limits::all(pool, None)).await;
            let problem = match asked {
                Ok(Ok(limits)) => {
                    self.replace(limits);
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            if let Some(problem) = problem.as_ref().filter(|_| known) {
                tracing::warn!(
                    problem,
                    "limits of event types and users cannot be looked up; the last known ones hold"
                );
            }
            known = problem.is_none();
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::redis::Redis;

    use super::*;

    fn limit(kind: &str, name: &str, per_second: i32) -> EventLimit {
        let (project, kind, name) = ("shop".to_owned(), kind.to_owned(), name.to_owned());
        EventLimit { project, kind, name, per_second, set_at: chrono::DateTime::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn only_what_is_named_is_limited() {
        // Nothing is asked of Redis here: a lease begins on credit.
        let quotas = Quotas::new(Redis::new("redis://127.0.0.1:1").expect("a URL"));
        let named = Named::default();
        let check = |project, kind, user| named.check(&quotas, project, kind, user);
        assert!(check("shop", "view", Some("bot")).is_ok());
        named.replace(vec![limit("user", "bot", 2), limit("type", "view", 3), limit("type", "scroll", 0)]);
        assert!(check("shop", "view", Some("bot")).is_ok() && check("shop", "view", Some("bot")).is_ok());
        let whose = |checked: Result<(), (Whose, Duration)>| checked.err().map(|(whose, _)| whose);
        assert_eq!(whose(check("shop", "view", Some("bot"))), Some(Whose::User));
        assert!(check("shop", "view", Some("ann")).is_ok(), "the type has one left, which the user's did not use up");
        assert_eq!(whose(check("shop", "view", None)), Some(Whose::EventType));
        assert!(check("shop", "click", Some("ann")).is_ok() && check("blog", "view", Some("bot")).is_ok());
        assert_eq!(check("shop", "scroll", None), Err((Whose::EventType, BARRED)));
        named.replace(Vec::new());
        assert!(check("shop", "scroll", Some("bot")).is_ok());
    }
}
