//! Claims on eventIds in Redis, so that a copy of an event in flight or in the log is answered at once.
//!
//! They are hints: where Redis gives no answer, the gateway goes on as if nothing had been claimed, and the
//! workers' own dedupe is the one that counts.

use std::time::Duration;

use tidemill_common::redis::{Redis, RedisFailure};
use uuid::Uuid;

use crate::keys::{self, Held, Stored};

/// Claims events of all projects. Cheap to clone.
#[derive(Clone)]
pub struct Claims {
    redis: Redis,
}

/// The right to produce an event. It ends in [`Claims::confirm`] or [`Claims::release`].
#[derive(Debug)]
#[must_use = "confirm the claim once the event is delivered, else release it"]
pub struct Claim {
    key: String,
    token: String,
}

/// What became of a claim.
#[derive(Debug)]
#[must_use]
pub enum Found {
    /// Nothing: the event is ours to produce.
    New(Claim),
    /// Another request is about to produce it.
    InFlight {
        /// When its claim runs out.
        retry_after: Duration,
    },
    /// It is in the log.
    Stored(Stored),
}

impl Claims {
    /// Claims in this Redis.
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// Claims each of these events for one request. `incarnation` is the topic's, as far as it is known: an
    /// event that was stored in an earlier one is not in today's log.
    pub async fn claim(&self, project: &str, event_ids: &[&str], incarnation: &str) -> Vec<Found> {
        let token = Uuid::new_v4().simple().to_string();
        let claims: Vec<Claim> =
            event_ids.iter().map(|id| Claim { key: keys::event(project, id), token: token.clone() }).collect();
        let mut pipeline = redis::pipe();
        for claim in &claims {
            pipeline.cmd("SET").arg(&claim.key).arg(keys::claimed(&token));
            pipeline.arg("NX").arg("GET").arg("PX").arg(keys::CLAIM_MS);
            pipeline.cmd("PTTL").arg(&claim.key);
        }
        match self.ask(&pipeline).await {
            Ok(answers) => {
                claims.into_iter().zip(answers).map(|(claim, held)| read(claim, held, incarnation)).collect()
            }
            Err(failure) => {
                failed("claim", &failure);
                claims.into_iter().map(Found::New).collect()
            }
        }
    }

    /// A lost connection is tried again at once: claims that had come through hold our own token.
    async fn ask(&self, pipeline: &redis::Pipeline) -> Result<Vec<(Option<String>, i64)>, RedisFailure> {
        match self.redis.run(pipeline).await {
            Err(RedisFailure::Failed(_, error)) if error.is_io_error() => self.redis.run(pipeline).await,
            answer => answer,
        }
    }

    /// Says where the events stand in the log, whatever their keys hold by now.
    pub async fn confirm(&self, delivered: Vec<(Claim, Stored)>) {
        let mut pipeline = redis::pipe();
        for (claim, stored) in &delivered {
            pipeline.cmd("SET").arg(&claim.key).arg(stored.to_string()).arg("PX").arg(keys::CONFIRMED_MS).ignore();
        }
        self.run("confirm", delivered.len(), &pipeline).await;
    }

    /// Gives claims back, as far as they are still held.
    pub async fn release(&self, claims: Vec<Claim>) {
        let mut pipeline = redis::pipe();
        for claim in &claims {
            pipeline.cmd("EVAL").arg(keys::RELEASE).arg(1).arg(&claim.key).arg(keys::claimed(&claim.token)).ignore();
        }
        self.run("release", claims.len(), &pipeline).await;
    }

    async fn run(&self, step: &'static str, commands: usize, pipeline: &redis::Pipeline) {
        if commands == 0 {
            return;
        }
        if let Err(failure) = self.redis.run::<()>(pipeline).await {
            failed(step, &failure);
        }
    }
}

fn read(claim: Claim, (held, remaining_ms): (Option<String>, i64), incarnation: &str) -> Found {
    match held.as_deref().map(Held::read) {
        Some(Held::Claimed(token)) if token != claim.token => {
            Found::InFlight { retry_after: Duration::from_millis(u64::try_from(remaining_ms).unwrap_or(0)) }
        }
        Some(Held::Stored(stored)) if same_log(&stored.incarnation, incarnation) => Found::Stored(stored),
        _ => Found::New(claim),
    }
}

fn same_log(stored: &str, now: &str) -> bool {
    stored == now || stored.is_empty() || now.is_empty()
}

fn failed(step: &'static str, failure: &RedisFailure) {
    metrics::counter!("tidemill_claims_failed_total", "step" => step).increment(1);
    tracing::debug!(step, %failure, "going on without redis");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body_hash::BodyHash;

    fn find(held: Option<&str>, incarnation: &str) -> Found {
        let claim = Claim { key: "event:p:e".into(), token: "own".into() };
        read(claim, (held.map(str::to_owned), 1_500), incarnation)
    }

    #[test]
    fn only_anothers_claim_stands_in_the_way() {
        assert!(matches!(find(None, ""), Found::New(_)));
        assert!(matches!(find(Some("P:own"), ""), Found::New(_)));
        assert!(matches!(find(Some("rubbish"), ""), Found::New(_)));
        let Found::InFlight { retry_after } = find(Some("P:other"), "") else { panic!("it is in flight") };
        assert_eq!(retry_after, Duration::from_millis(1_500));
    }

    #[test]
    fn an_event_of_an_earlier_topic_is_new() {
        let body = BodyHash::of(&Default::default());
        let text =
            |incarnation: &str| Stored { incarnation: incarnation.into(), partition: 1, offset: 2, body }.to_string();
        assert!(matches!(find(Some(&text("a")), "a"), Found::Stored(_)));
        assert!(matches!(find(Some(&text("")), "a"), Found::Stored(_)));
        assert!(matches!(find(Some(&text("a")), ""), Found::Stored(_)));
        assert!(matches!(find(Some(&text("a")), "b"), Found::New(_)));
    }
}
