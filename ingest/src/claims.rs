//! Claims on eventIds in Redis, so that a copy of an event in flight or in the log is answered at once.
//!
//! They are hints: where Redis gives no answer, the gateway goes on as if nothing had been claimed, and the
//! workers' own dedupe is the one that counts. Many requests share a round trip.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};
use tidemill_common::redis::{Redis, RedisFailure};

use crate::flight::{Flight, Log};
use crate::keys::{self, Held, Stored};
use crate::outcome::Fate;

/// Claims events of all projects. Cheap to clone.
#[derive(Clone)]
pub struct Claims {
    redis: Redis,
}

/// What a claim found.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// Nothing: the event is ours to produce, and then to settle.
    New,
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

    /// Claims the first event of each eventId of these requests; gives what was found, request by request.
    pub async fn claim(&self, flights: &[Arc<Flight>]) -> Vec<Vec<Found>> {
        let mut pipeline = Pipeline::with_capacity(flights.iter().map(|flight| flight.firsts.at.len()).sum());
        let mut key = String::new();
        for flight in flights {
            let claim = keys::claimed(&flight.token);
            for number in 0..flight.firsts.at.len() {
                keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut key);
                pipeline.cmd("SET").arg(&key).arg(&claim).arg("NX").arg("GET").arg("PX").arg(keys::CLAIM_MS);
            }
        }
        match self.ask(&pipeline).await {
            Ok(held) => {
                let mut held = held.into_iter();
                let read = |flight: &Arc<Flight>| {
                    let held = held.by_ref().take(flight.firsts.at.len());
                    held.map(|held| read(&held, &flight.token, &flight.log.incarnation)).collect()
                };
                let mut found: Vec<Vec<Found>> = flights.iter().map(read).collect();
                self.ask_remaining(flights, &mut found).await;
                found
            }
            Err(failure) => {
                failed("claim", &failure);
                flights.iter().map(|flight| flight.firsts.at.iter().map(|_| Found::New).collect()).collect()
            }
        }
    }

    /// A lost connection is tried again at once: claims that had come through hold our own token.
    async fn ask(&self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisFailure> {
        match self.redis.run(pipeline).await {
            Err(RedisFailure::Failed(_, error)) if error.is_io_error() => self.redis.run(pipeline).await,
            answer => answer,
        }
    }

    /// Asks how long the claims of others still stand. There are few.
    async fn ask_remaining(&self, flights: &[Arc<Flight>], found: &mut [Vec<Found>]) {
        let (mut pipeline, mut key) = (Pipeline::new(), String::new());
        let mut waits = Vec::new();
        for (flight, found) in flights.iter().zip(found) {
            for (number, found) in found.iter_mut().enumerate() {
                if let Found::InFlight { retry_after } = found {
                    keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut key);
                    pipeline.cmd("PTTL").arg(&key);
                    waits.push(retry_after);
                }
            }
        }
        if waits.is_empty() {
            return;
        }
        match self.redis.run::<Vec<i64>>(&pipeline).await {
            Ok(remaining) => {
                for (wait, ms) in waits.into_iter().zip(remaining) {
                    *wait = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
                }
            }
            Err(failure) => failed("remaining", &failure),
        }
    }

    /// Confirms what was delivered, whatever its key holds by now, and gives the other claims back, as far as
    /// they are still held.
    pub async fn settle(&self, flights: &[(Arc<Flight>, Vec<Fate>)]) {
        let mut pipeline = Pipeline::with_capacity(flights.iter().map(|(_, fates)| fates.len()).sum());
        let (mut key, mut value) = (String::new(), String::new());
        for (flight, fates) in flights {
            for (number, fate) in fates.iter().enumerate().filter(|(number, _)| flight.is_ours(*number)) {
                keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut key);
                if let Fate::Delivered(stored) = fate {
                    stored.write(&flight.log.incarnation, &mut value);
                    pipeline.cmd("SET").arg(&key).arg(&value).arg("PX").arg(keys::CONFIRMED_MS).ignore();
                } else {
                    let claim = keys::claimed(&flight.token);
                    pipeline.cmd("EVAL").arg(keys::RELEASE).arg(1).arg(&key).arg(claim).ignore();
                }
            }
        }
        self.run("settle", &pipeline).await;
    }

    /// Confirms events that reached the log later.
    pub async fn confirm<'a>(&self, log: &Log, events: impl Iterator<Item = (&'a str, Stored)>) {
        let (mut pipeline, mut key, mut value) = (Pipeline::new(), String::new(), String::new());
        for (event_id, stored) in events {
            keys::event(&log.project, event_id, &mut key);
            stored.write(&log.incarnation, &mut value);
            pipeline.cmd("SET").arg(&key).arg(&value).arg("PX").arg(keys::CONFIRMED_MS).ignore();
        }
        self.run("confirm", &pipeline).await;
    }

    async fn run(&self, step: &'static str, pipeline: &Pipeline) {
        if pipeline.is_empty() {
            return;
        }
        if let Err(failure) = self.redis.run::<()>(pipeline).await {
            failed(step, &failure);
        }
    }
}

/// What a claim's answer means.
fn read(held: &Value, token: &str, incarnation: &str) -> Found {
    let Value::BulkString(held) = held else { return Found::New };
    match std::str::from_utf8(held).map(Held::read) {
        Ok(Held::Claimed(by)) if by != token => Found::InFlight { retry_after: Duration::from_millis(keys::CLAIM_MS) },
        Ok(Held::Stored(stored, of)) if same_log(of, incarnation) => Found::Stored(stored),
        _ => Found::New,
    }
}

/// An event that was stored in an earlier incarnation of the topic is not in today's log.
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
        let held = held.map_or(Value::Nil, |held| Value::BulkString(held.into()));
        read(&held, "own", incarnation)
    }

    #[test]
    fn only_anothers_claim_stands_in_the_way() {
        assert_eq!(find(None, ""), Found::New);
        assert_eq!(find(Some("P:own"), ""), Found::New);
        assert_eq!(find(Some("rubbish"), ""), Found::New);
        assert!(matches!(find(Some("P:other"), ""), Found::InFlight { .. }));
    }

    #[test]
    fn an_event_of_an_earlier_topic_is_new() {
        let stored = Stored { partition: 1, offset: 2, body: BodyHash::of(&Default::default()) };
        let text = |incarnation: &str| {
            let mut text = String::new();
            stored.write(incarnation, &mut text);
            text
        };
        assert_eq!(find(Some(&text("a")), "a"), Found::Stored(stored));
        assert_eq!(find(Some(&text("")), "a"), Found::Stored(stored));
        assert_eq!(find(Some(&text("a")), ""), Found::Stored(stored));
        assert_eq!(find(Some(&text("a")), "b"), Found::New);
    }
}
