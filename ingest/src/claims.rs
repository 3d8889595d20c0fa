//! Claims on eventIds in Redis, so that a copy of an event in flight or in the log is answered at once.
//!
//! They are hints: where Redis gives no answer, the gateway goes on as if nothing had been claimed, and the
//! workers' own dedupe is the one that counts. Many requests share a round trip.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, Script, ServerErrorKind};
use tidemill_common::redis::{Redis, RedisFailure};

use crate::flight::{Flight, Log};
use crate::keys::{self, Held, Stored};
use crate::outcome::Fate;

/// Claims events of all projects. Cheap to clone.
#[derive(Clone)]
pub struct Claims {
    redis: Redis,
    claim: Script,
    settle: Script,
}

/// Keys of one call: Redis does nothing else meanwhile.
const PER_CALL: usize = 1_000;

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
        Self { redis, claim: Script::new(keys::CLAIM), settle: Script::new(keys::SETTLE) }
    }

    /// Claims the first event of each eventId of these requests; gives what was found, request by request.
    pub async fn claim(&self, flights: &[Arc<Flight>]) -> Vec<Vec<Found>> {
        let mut found: Vec<Vec<Found>> =
            flights.iter().map(|flight| flight.firsts.at.iter().map(|_| Found::New).collect()).collect();
        let mut calls = Calls::new(&self.claim, found.iter().map(Vec::len).sum(), keys::CLAIM_MS);
        for flight in flights {
            for number in 0..flight.firsts.at.len() {
                keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut calls.keys);
                keys::claimed(&flight.token, &mut calls.values);
                calls.push();
            }
        }
        match self.run::<Vec<Vec<(usize, Vec<u8>, i64)>>>(&mut calls).await {
            Ok(held) => {
                let mut places = flights
                    .iter()
                    .zip(&mut found)
                    .flat_map(|(flight, found)| found.iter_mut().map(move |found| (flight, found)));
                let mut next = 0;
                let held = held.into_iter().enumerate().flat_map(|(call, held)| {
                    held.into_iter().map(move |(number, held, ms)| (call * PER_CALL + number, held, ms))
                });
                for (at, held, remaining_ms) in held {
                    if let Some((flight, found)) = places.nth(at - next) {
                        *found = find(&held, remaining_ms, &flight.log.incarnation);
                    }
                    next = at + 1;
                }
            }
            Err(failure) => failed("claim", &failure),
        }
        found
    }

    /// Confirms what was delivered, whatever its key holds by now, and gives the other claims back, as far as
    /// they are still held.
    pub async fn settle(&self, flights: &[(Vec<Fate>, Arc<Flight>)]) {
        let events = flights.iter().map(|(fates, _)| fates.len()).sum();
        let mut calls = Calls::new(&self.settle, events, keys::CONFIRMED_MS);
        for (fates, flight) in flights {
            for (number, fate) in fates.iter().enumerate().filter(|(number, _)| flight.is_ours(*number)) {
                keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut calls.keys);
                match fate {
                    Fate::Delivered(stored) => stored.write(&flight.log.incarnation, &mut calls.values),
                    _ => keys::claimed(&flight.token, &mut calls.values),
                }
                calls.push();
            }
        }
        if let Err(failure) = self.run::<()>(&mut calls).await {
            failed("settle", &failure);
        }
    }

    /// Confirms events that reached the log later.
    pub async fn confirm<'a>(&self, log: &Log, events: impl Iterator<Item = (&'a str, Stored)>) {
        let mut calls = Calls::new(&self.settle, PER_CALL, keys::CONFIRMED_MS);
        for (event_id, stored) in events {
            keys::event(&log.project, event_id.as_bytes(), &mut calls.keys);
            stored.write(&log.incarnation, &mut calls.values);
            calls.push();
        }
        if let Err(failure) = self.run::<()>(&mut calls).await {
            failed("confirm", &failure);
        }
    }

    /// Runs calls in one round trip. A lost connection is tried again at once; a Redis that does not know the script
    /// is told it.
    async fn run<T: FromRedisValue + Default>(&self, calls: &mut Calls<'_>) -> Result<T, RedisFailure> {
        let Some(pipeline) = calls.pack() else { return Ok(T::default()) };
        match self.redis.run(pipeline).await {
            Err(RedisFailure::Failed(_, error)) if error.is_io_error() => self.redis.run(pipeline).await,
            Err(RedisFailure::Failed(_, error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let mut load = Pipeline::new();
                for script in [keys::CLAIM, keys::SETTLE] {
                    load.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
                }
                self.redis.run::<()>(&load).await?;
                self.redis.run(pipeline).await
            }
            answer => answer,
        }
    }
}

/// Calls of one script for many events. The script is one command for a thousand keys, which costs this side and the
/// wire a fifth of a command a key.
struct Calls<'a> {
    script: &'a Script,
    argument: u64,
    /// All keys, and all values, one after the other.
    keys: Vec<u8>,
    values: String,
    /// Where each key and each value ends.
    ends: Vec<(usize, usize)>,
    pipeline: Pipeline,
}

impl<'a> Calls<'a> {
    fn new(script: &'a Script, events: usize, argument: u64) -> Self {
        Self {
            script,
            argument,
            keys: Vec::with_capacity(events * 64),
            values: String::with_capacity(events * 64),
            ends: Vec::with_capacity(events),
            pipeline: Pipeline::new(),
        }
    }

    /// Ends the key and the value that were appended.
    fn push(&mut self) {
        self.ends.push((self.keys.len(), self.values.len()));
    }

    /// All calls; none if there is nothing to call for.
    fn pack(&mut self) -> Option<&Pipeline> {
        let (mut key, mut value) = (0, 0);
        for ends in self.ends.chunks(PER_CALL) {
            let &(keys_end, values_end) = ends.last()?;
            let mut call = Cmd::with_capacity(2 * ends.len() + 4, keys_end - key + values_end - value + 64);
            call.arg("EVALSHA").arg(self.script.get_hash()).arg(ends.len());
            for (end, _) in ends {
                call.arg(&self.keys[key..*end]);
                key = *end;
            }
            call.arg(self.argument);
            for (_, end) in ends {
                call.arg(&self.values[value..*end]);
                value = *end;
            }
            self.pipeline.add_command(call);
        }
        (!self.ends.is_empty()).then_some(&self.pipeline)
    }
}

/// What a value that stood in the way means.
fn find(held: &[u8], remaining_ms: i64, incarnation: &str) -> Found {
    match Held::read(std::str::from_utf8(held).unwrap_or_default()) {
        Held::Claimed(_) => {
            Found::InFlight { retry_after: Duration::from_millis(u64::try_from(remaining_ms).unwrap_or(0)) }
        }
        Held::Stored(stored, of) if same_log(of, incarnation) => Found::Stored(stored),
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

    #[test]
    fn only_anothers_claim_stands_in_the_way() {
        assert_eq!(find(b"rubbish \xff", 1, ""), Found::New);
        assert_eq!(find(b"P:other", 1_500, ""), Found::InFlight { retry_after: Duration::from_millis(1_500) });
        assert_eq!(find(b"P:other", -2, ""), Found::InFlight { retry_after: Duration::ZERO });
    }

    #[test]
    fn an_event_of_an_earlier_topic_is_new() {
        let stored = Stored { partition: 1, offset: 2, body: BodyHash::of(&Default::default()) };
        let text = |incarnation: &str| {
            let mut text = String::new();
            stored.write(incarnation, &mut text);
            text
        };
        assert_eq!(find(text("a").as_bytes(), 1, "a"), Found::Stored(stored));
        assert_eq!(find(text("").as_bytes(), 1, "a"), Found::Stored(stored));
        assert_eq!(find(text("a").as_bytes(), 1, ""), Found::Stored(stored));
        assert_eq!(find(text("a").as_bytes(), 1, "b"), Found::New);
    }

    #[test]
    fn many_events_share_a_call() {
        let script = Script::new(keys::CLAIM);
        let mut calls = Calls::new(&script, 0, 7);
        assert!(calls.pack().is_none());
        for i in 0..PER_CALL + 1 {
            calls.keys.extend_from_slice(format!("k{i}").as_bytes());
            calls.values.push_str(&format!("v{i}"));
            calls.push();
        }
        let packed = calls.pack().expect("calls").get_packed_pipeline();
        let text = String::from_utf8(packed).expect("text");
        assert_eq!(text.matches("EVALSHA").count(), 2);
        let hash = script.get_hash();
        let last =
            format!("*6\r\n$7\r\nEVALSHA\r\n$40\r\n{hash}\r\n$1\r\n1\r\n$5\r\nk1000\r\n$1\r\n7\r\n$5\r\nv1000\r\n");
        assert!(text.ends_with(&last), "{}", &text[text.len() - 200..]);
    }
}
