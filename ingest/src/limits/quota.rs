//! Quotas of projects, over all gateways. The tokens lie in one bucket in Redis per project; a gateway leases
//! some at a time, beside its requests, and counts its own events against them. No request waits for Redis.
//!
//! Availability comes first: a gateway that has no lease yet spends its share on credit, which its first lease
//! pays back, and while Redis is away each gateway goes on with its share of the quota: the quota divided by the
//! gateways last seen.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use redis::Pipeline;
use tidemill_common::redis::Redis;
use tokio::sync::Notify;

use super::{Granted, Standing};
use crate::keys;

/// How often leases are looked at.
const LEASE: Duration = Duration::from_millis(100);
/// Leases that run low are looked at sooner, but not more often than this.
const SOONEST: Duration = Duration::from_millis(10);
/// A Redis that takes longer is one that is away.
const PATIENCE: Duration = Duration::from_millis(250);
/// A lease unused for so long is forgotten. The bucket is full again by then.
const IDLE: Duration = Duration::from_secs(5);

/// The quotas that this gateway's callers use.
pub struct Quotas {
    redis: Redis,
    /// This gateway, in the buckets.
    gateway: String,
    leases: RwLock<HashMap<Arc<str>, Arc<Lease>>>,
    low: Notify,
    redis_is_away: AtomicBool,
}

/// What one project has here.
struct Lease {
    rate: AtomicU32,
    /// Tokens that may be spent.
    left: AtomicI64,
    /// Tokens spent that were never leased.
    owed: AtomicI64,
    /// Tokens asked for since the last look.
    wanted: AtomicU64,
    gateways: AtomicU32,
}

/// What the one that leases remembers of a project.
struct Seen {
    wanted: Instant,
    filled: Instant,
}

impl Lease {
    /// On credit: the first request does not wait.
    fn new(rate: NonZeroU32) -> Self {
        let credit = i64::from(rate.get());
        Self {
            rate: AtomicU32::new(rate.get()),
            left: AtomicI64::new(credit),
            owed: AtomicI64::new(credit),
            wanted: AtomicU64::new(0),
            gateways: AtomicU32::new(1),
        }
    }

    fn take(&self, wanted: usize) -> usize {
        self.wanted.fetch_add(wanted as u64, Ordering::Relaxed);
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let spend = |left: i64| Some(left - left.clamp(0, wanted));
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).unwrap_or_default();
        left.clamp(0, wanted) as usize
    }

    /// Twice what was asked for lately is to be at hand, but never more than a second's worth.
    fn wish(&self, wanted: u64) -> i64 {
        let rate = i64::from(self.rate.load(Ordering::Relaxed));
        let at_hand = i64::try_from(wanted).unwrap_or(i64::MAX).saturating_mul(2).min(rate);
        (at_hand - self.left.load(Ordering::Relaxed)).max(0)
    }

    fn leased(&self, tokens: i64, gateways: u32) {
        self.left.fetch_add(tokens, Ordering::Relaxed);
        self.gateways.store(gateways.max(1), Ordering::Relaxed);
    }

    /// Without Redis: this gateway's share for the time since.
    fn fill_alone(&self, since: Duration) {
        let share = f64::from(self.rate.load(Ordering::Relaxed)) / f64::from(self.gateways.load(Ordering::Relaxed));
        let (tokens, most) = ((share * since.as_secs_f64()).round() as i64, share.ceil() as i64);
        let fill = |left: i64| Some(left.max((left + tokens).min(most)));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fill);
    }
}

impl Quotas {
    /// Quotas in this Redis.
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            gateway: uuid::Uuid::new_v4().simple().to_string(),
            leases: RwLock::default(),
            low: Notify::new(),
            redis_is_away: AtomicBool::new(false),
        }
    }

    /// Takes as many of `wanted` events as the project's lease has.
    pub fn take(&self, project: &Arc<str>, rate: NonZeroU32, wanted: usize) -> Granted {
        let lease = self.of(project, rate);
        let events = lease.take(wanted);
        if events < wanted || lease.left.load(Ordering::Relaxed) < i64::from(rate.get()) / 20 {
            self.low.notify_one();
        }
        let retry_after = if events < wanted { Duration::from_secs(1) } else { Duration::ZERO };
        Granted { events, retry_after }
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, project: &str, events: usize) {
        if let Some(lease) = self.leases.read().expect("no holder panics").get(project) {
            lease.left.fetch_add(i64::try_from(events).unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// How the project stands at this gateway.
    pub fn standing(&self, project: &str, rate: NonZeroU32) -> Standing {
        let leases = self.leases.read().expect("no holder panics");
        let left = leases.get(project).map_or(0, |lease| lease.left.load(Ordering::Relaxed));
        Standing { rate, left: u32::try_from(left.max(0)).unwrap_or(u32::MAX).min(rate.get()) }
    }

    fn of(&self, project: &Arc<str>, rate: NonZeroU32) -> Arc<Lease> {
        if let Some(lease) = self.leases.read().expect("no holder panics").get(project) {
            lease.rate.store(rate.get(), Ordering::Relaxed);
            return Arc::clone(lease);
        }
        let mut leases = self.leases.write().expect("no holder panics");
        Arc::clone(leases.entry(Arc::clone(project)).or_insert_with(|| Arc::new(Lease::new(rate))))
    }

    /// Keeps the leases filled, for ever.
    pub async fn lease(&self) {
        let mut seen = HashMap::new();
        loop {
            let _ = tokio::time::timeout(LEASE, self.low.notified()).await;
            self.renew(&mut seen).await;
            tokio::time::sleep(SOONEST).await;
        }
    }

    /// Asks for what is low, for all projects in one round trip.
    async fn renew(&self, seen: &mut HashMap<Arc<str>, Seen>) {
        let now = Instant::now();
        let mut asked = Vec::new();
        let mut pipeline = Pipeline::new();
        for (project, lease) in self.in_use(seen, now) {
            let wanted = lease.wanted.swap(0, Ordering::Relaxed);
            let (wish, owed) = (lease.wish(wanted), lease.owed.swap(0, Ordering::Relaxed));
            if wish == 0 && owed == 0 {
                continue;
            }
            let rate = lease.rate.load(Ordering::Relaxed);
            let key = keys::quota(&project);
            pipeline.cmd("EVAL").arg(keys::LEASE).arg(1).arg(key).arg(rate).arg(wish).arg(owed).arg(&self.gateway);
            asked.push((project, lease, owed));
        }
        if asked.is_empty() {
            return;
        }
        let answers = tokio::time::timeout(PATIENCE, self.redis.run_each(&pipeline)).await.unwrap_or_default();
        let mut answers = answers
            .into_iter()
            .map(|answer| redis::from_redis_value::<(i64, u32)>(answer.ok()?).ok())
            .collect::<Vec<_>>();
        answers.resize(asked.len(), None);
        self.tell_of_redis(answers.contains(&None));
        for ((project, lease, owed), answer) in asked.into_iter().zip(answers) {
            let Some(seen) = seen.get_mut(&project) else { continue };
            match answer {
                Some((tokens, gateways)) => lease.leased(tokens, gateways),
                None => {
                    lease.owed.fetch_add(owed, Ordering::Relaxed);
                    lease.fill_alone(seen.filled.elapsed());
                }
            }
            seen.filled = Instant::now();
        }
    }

    /// The leases; those that nobody used for a while are forgotten.
    fn in_use(&self, seen: &mut HashMap<Arc<str>, Seen>, now: Instant) -> Vec<(Arc<str>, Arc<Lease>)> {
        let mut leases = self.leases.write().expect("no holder panics");
        leases.retain(|project, lease| {
            let seen = seen.entry(Arc::clone(project)).or_insert(Seen { wanted: now, filled: now });
            if lease.wanted.load(Ordering::Relaxed) > 0 {
                seen.wanted = now;
            }
            now < seen.wanted + IDLE
        });
        seen.retain(|project, _| leases.contains_key(project));
        leases.iter().map(|(project, lease)| (Arc::clone(project), Arc::clone(lease))).collect()
    }

    fn tell_of_redis(&self, away: bool) {
        if self.redis_is_away.swap(away, Ordering::Relaxed) != away {
            if away {
                tracing::warn!("quotas cannot be shared through Redis; each gateway goes on with its share");
            } else {
                tracing::info!("quotas are shared through Redis again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(rate: u32) -> Lease {
        Lease::new(NonZeroU32::new(rate).expect("not 0"))
    }

    #[test]
    fn tokens_are_spent_once() {
        let lease = lease(10);
        assert_eq!((lease.take(7), lease.take(7), lease.take(7)), (7, 3, 0));
        lease.leased(5, 2);
        assert_eq!(lease.take(7), 5);
    }

    #[test]
    fn a_lease_follows_what_is_asked_for() {
        let lease = lease(100);
        assert_eq!(lease.wish(30), 0, "there is enough");
        lease.take(100);
        assert_eq!(lease.wish(30), 60);
        assert_eq!(lease.wish(10_000), 100, "never more than a second's worth");
        assert_eq!(lease.wish(0), 0);
    }

    #[test]
    fn alone_each_gateway_has_its_share() {
        let lease = lease(100);
        lease.take(100);
        lease.leased(0, 4);
        lease.fill_alone(Duration::from_millis(200));
        assert_eq!(lease.take(100), 5);
        lease.fill_alone(Duration::from_secs(60));
        assert_eq!(lease.take(100), 25, "a second's worth at most");
    }
}
