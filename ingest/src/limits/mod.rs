//! What callers may send: so much per API key, per project over all gateways, per event type and per user.
//! Nothing here waits: a request is never held up by another component.

mod headers;
mod keyed;
mod named;
mod per_key;
mod quota;

use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::HeaderMap;
use sqlx::PgPool;
use tidemill_common::auth::ApiKey;
use tidemill_common::redis::Redis;
use tokio_util::sync::CancellationToken;

use self::keyed::Keyed;
use self::named::Named;
use self::per_key::PerKey;
use self::quota::Quotas;
use crate::config::Config;

/// How often limits by name are tidied up.
const TIDY: Duration = Duration::from_secs(10);

/// Whose events a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// An API key's.
    Key,
    /// A project's, through all gateways.
    Project,
    /// Those of a type.
    EventType,
    /// A user's.
    User,
}

/// How many of a request's events may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The first so many.
    pub events: usize,
    /// When the next one could pass.
    pub retry_after: Duration,
}

/// How a caller stands with one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Events per second.
    pub rate: NonZeroU32,
    /// Events that could pass now.
    pub left: u32,
}

/// All limits of this gateway. Cheap to clone.
#[derive(Clone)]
pub struct Limits(std::sync::Arc<Inner>);

struct Inner {
    keys: PerKey,
    quotas: Quotas,
    event_types: Option<Keyed>,
    users: Option<Keyed>,
    named: Named,
}

impl Limits {
    /// The limits that are set; quotas are shared through this Redis.
    pub fn new(config: &Config, redis: Redis) -> Self {
        Self(std::sync::Arc::new(Inner {
            keys: PerKey::new(),
            quotas: Quotas::new(redis),
            event_types: Keyed::per_second(config.event_type_rate),
            users: Keyed::per_second(config.user_rate),
            named: Named::default(),
        }))
    }

    /// Takes as many of `wanted` events as the caller's key and project allow now, and says which of them lets no more
    /// pass. Costs nothing where neither is limited.
    pub fn admit(&self, caller: &ApiKey, wanted: usize) -> (Granted, Whose) {
        let mut granted = Granted { events: wanted, retry_after: Duration::ZERO };
        if let Some(quota) = caller.quota {
            granted = self.0.quotas.take(&caller.project, quota, wanted);
        }
        let Some(rate) = caller.rate_limit else { return (granted, Whose::Project) };
        let by_key = self.0.keys.take(&caller.prefix, rate, granted.events);
        if by_key.events == granted.events {
            return (granted, Whose::Project);
        }
        // What the key does not let pass is not taken from the project's others.
        self.0.quotas.give_back(&caller.project, granted.events - by_key.events);
        (by_key, Whose::Key)
    }

    /// Takes one event of its type and of its user; else says whose limit that is, and when one could pass.
    pub fn event(&self, project: &str, event_type: &str, user: Option<&str>) -> Result<(), (Whose, Duration)> {
        self.0.named.check(&self.0.quotas, project, event_type, user)?;
        if let Some(event_types) = &self.0.event_types {
            event_types.check(project, event_type).map_err(|wait| (Whose::EventType, wait))?;
        }
        match (&self.0.users, user) {
            (Some(users), Some(user)) => users.check(project, user).map_err(|wait| (Whose::User, wait)),
            _ => Ok(()),
        }
    }

    /// Tells a caller how it stands, in the answer's headers. Nothing where nothing is limited.
    pub fn tell(&self, caller: &ApiKey, answer: &mut HeaderMap) {
        if caller.rate_limit.is_none() && caller.quota.is_none() {
            return;
        }
        let key = caller.rate_limit.map(|rate| self.0.keys.standing(&caller.prefix, rate));
        let project = caller.quota.map(|rate| self.0.quotas.standing(&caller.project, rate));
        headers::write(key, project, answer);
    }

    /// Leases tokens of quotas, follows what operators set and forgets what need not be remembered, until shutdown.
    pub fn start(&self, pool: PgPool, shutdown: &CancellationToken) {
        let (leases, tidy, named) = (self.clone(), self.clone(), self.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move { named.0.named.follow(&pool).await }));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move { leases.0.quotas.lease().await }));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(TIDY).await;
                tidy.0.event_types.iter().chain(&tidy.0.users).for_each(Keyed::forget_full);
            }
        }));
    }
}
