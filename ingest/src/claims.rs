//! Claims on eventIds in Redis, so that a copy of an event in flight or in the log is answered at once.
//!
//! They are hints: where Redis gives no answer, the gateway goes on as if nothing had been claimed, and the
//! workers' own dedupe is the one that counts. Many requests share a round trip.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, Script, ServerErrorKind, Value, from_redis_value};
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

/// What stood in a claim's way: the event's number, the value, and how long it still stands in milliseconds.
type InTheWay = (usize, Vec<u8>, i64);

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

    /// Claims the first event of each eventId of these requests; gives what was found, request by request. Where its
    /// part of Redis gives no answer, nothing was found.
    pub async fn claim(&self, flights: &[Arc<Flight>]) -> Vec<Vec<Found>> {
        let mut found: Vec<Vec<Found>> =
            flights.iter().map(|flight| flight.firsts.at.iter().map(|_| Found::New).collect()).collect();
        let mut calls = Calls::new(&self.claim, found.iter().map(Vec::len).sum(), keys::CLAIM_MS);
        for flight in flights {
            for number in 0..flight.firsts.at.len() {
                keys::event(&flight.log.project, flight.encoded.id(flight.first(number)), &mut calls.keys);
                keys::claimed(&flight.token, &mut calls.values);
                calls.push(&self.redis);
            }
        }
        let answers = self.run::<Vec<InTheWay>>("claim", calls).await;
        let in_the_way = |(numbers, held): (Vec<usize>, Vec<InTheWay>)| {
            held.into_iter().filter_map(move |(at, held, ms)| Some((*numbers.get(at)?, held, ms)))
        };
        let mut held: Vec<InTheWay> = answers.into_iter().flat_map(in_the_way).collect();
        held.sort_unstable_by_key(|(number, ..)| *number);
        let mut places = flights
            .iter()
            .zip(&mut found)
            .flat_map(|(flight, found)| found.iter_mut().map(move |found| (flight, found)));
        let mut next = 0;
        for (at, held, remaining_ms) in held {
            if let Some((flight, found)) = places.nth(at - next) {
                *found = find(&held, remaining_ms, &flight.log);
            }
            next = at + 1;
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
                    Fate::Delivered(stored) => {
                        stored.write(&flight.log.topic(stored.partition).incarnation, &mut calls.values)
                    }
                    _ => keys::claimed(&flight.token, &mut calls.values),
                }
                calls.push(&self.redis);
            }
        }
        self.run::<Value>("settle", calls).await;
    }

    /// Confirms events that reached the log later.
    pub async fn confirm<'a>(&self, log: &Log, events: impl Iterator<Item = (&'a str, Stored)>) {
        let mut calls = Calls::new(&self.settle, PER_CALL, keys::CONFIRMED_MS);
        for (event_id, stored) in events {
            keys::event(&log.project, event_id.as_bytes(), &mut calls.keys);
            stored.write(&log.topic(stored.partition).incarnation, &mut calls.values);
            calls.push(&self.redis);
        }
        self.run::<Value>("confirm", calls).await;
    }

    /// Runs calls in one round trip; gives, for each that was answered, its events by their numbers, and the answer. A
    /// lost connection is tried again at once; a Redis that does not know the script is told it.
    async fn run<T: FromRedisValue>(&self, step: &'static str, mut calls: Calls<'_>) -> Vec<(Vec<usize>, T)> {
        let together = calls.pack();
        if together.is_empty() {
            return Vec::new();
        }
        let mut answers = self.redis.run_each(&calls.pipeline).await;
        let failed = answers.iter().enumerate().filter(|(_, answer)| answer.as_ref().is_err_and(can_be_tried_again));
        let failed: Vec<usize> = failed.map(|(number, _)| number).collect();
        if !failed.is_empty() {
            let retry = self.again(&calls.pipeline, &failed, &answers).await;
            failed.into_iter().zip(retry).for_each(|(number, answer)| answers[number] = answer);
        }
        let read = |value| from_redis_value(value).map_err(|error| RedisFailure::Failed("redis", error.into()));
        let answers: Vec<Result<T, RedisFailure>> = answers.into_iter().map(|answer| answer.and_then(read)).collect();
        if let Some(Err(failure)) = answers.iter().find(|answer| answer.is_err()) {
            metrics::counter!("tidemill_claims_failed_total", "step" => step).increment(1);
            tracing::debug!(step, %failure, "going on without redis");
        }
        together.into_iter().zip(answers).filter_map(|(numbers, answer)| Some((numbers, answer.ok()?))).collect()
    }

    async fn again(
        &self,
        pipeline: &Pipeline,
        failed: &[usize],
        answers: &[Result<Value, RedisFailure>],
    ) -> Vec<Result<Value, RedisFailure>> {
        if failed.iter().any(|number| answers[*number].as_ref().is_err_and(wants_the_script)) {
            let mut load = Pipeline::new();
            for script in [keys::CLAIM, keys::SETTLE] {
                load.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
            }
            self.redis.run_each(&load).await; // a node that is away changes nothing for the others
        }
        let mut retry = Pipeline::with_capacity(failed.len());
        let mut wanted = failed.iter().copied().peekable();
        for (number, call) in pipeline.cmd_iter().enumerate() {
            if wanted.next_if_eq(&number).is_some() {
                retry.add_command(call.clone());
            }
        }
        self.redis.run_each(&retry).await
    }
}

fn can_be_tried_again(failure: &RedisFailure) -> bool {
    wants_the_script(failure) || matches!(failure, RedisFailure::Failed(_, error) if error.is_io_error())
}

fn wants_the_script(failure: &RedisFailure) -> bool {
    matches!(failure, RedisFailure::Failed(_, error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}

/// Calls of one script for many events. The script is one command for a thousand keys, as far as they are of one place,
/// which costs this side and the wire a fifth of a command a key.
struct Calls<'a> {
    script: &'a Script,
    argument: u64,
    /// All keys, and all values, one after the other.
    keys: Vec<u8>,
    values: String,
    /// Of each event: the place of its key, and where its key and its value end.
    events: Vec<(usize, usize, usize)>,
    pipeline: Pipeline,
}

impl<'a> Calls<'a> {
    fn new(script: &'a Script, events: usize, argument: u64) -> Self {
        Self {
            script,
            argument,
            keys: Vec::with_capacity(events * 64),
            values: String::with_capacity(events * 64),
            events: Vec::with_capacity(events),
            pipeline: Pipeline::new(),
        }
    }

    /// Ends the key and the value that were appended.
    fn push(&mut self, redis: &Redis) {
        let (key, _) = self.begin(self.events.len());
        let place = redis.place(&self.keys[key..]);
        self.events.push((place, self.keys.len(), self.values.len()));
    }

    /// Where the key and the value of an event begin.
    fn begin(&self, number: usize) -> (usize, usize) {
        number.checked_sub(1).map_or((0, 0), |before| (self.events[before].1, self.events[before].2))
    }

    /// Makes the pipeline; gives each call's events, by their numbers.
    fn pack(&mut self) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.events.len()).collect();
        order.sort_by_key(|number| self.events[*number].0);
        let places = order.chunk_by(|one, other| self.events[*one].0 == self.events[*other].0);
        let calls: Vec<Vec<usize>> = places.flat_map(|place| place.chunks(PER_CALL)).map(<[usize]>::to_vec).collect();
        for numbers in &calls {
            let call = self.call(numbers);
            self.pipeline.add_command(call);
        }
        calls
    }

    fn call(&self, numbers: &[usize]) -> Cmd {
        let (keys, values): (Vec<&[u8]>, Vec<&str>) = numbers
            .iter()
            .map(|number| {
                let ((key, value), (_, key_end, value_end)) = (self.begin(*number), self.events[*number]);
                (&self.keys[key..key_end], &self.values[value..value_end])
            })
            .unzip();
        let bytes =
            keys.iter().map(|key| key.len()).sum::<usize>() + values.iter().map(|value| value.len()).sum::<usize>();
        let mut call = Cmd::with_capacity(2 * numbers.len() + 4, bytes + 64);
        call.arg("EVALSHA").arg(self.script.get_hash()).arg(numbers.len());
        for key in keys {
            call.arg(key);
        }
        call.arg(self.argument);
        for value in values {
            call.arg(value);
        }
        call
    }
}

/// What a value that stood in the way means.
fn find(held: &[u8], remaining_ms: i64, log: &Log) -> Found {
    match Held::read(std::str::from_utf8(held).unwrap_or_default()) {
        Held::Claimed(_) => {
            Found::InFlight { retry_after: Duration::from_millis(u64::try_from(remaining_ms).unwrap_or(0)) }
        }
        Held::Stored(stored, of) if same_log(of, &log.topic(stored.partition).incarnation) => Found::Stored(stored),
        _ => Found::New,
    }
}

/// An event that was stored in an earlier incarnation of the topic is not in today's log.
fn same_log(stored: &str, now: &str) -> bool {
    stored == now || stored.is_empty() || now.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body_hash::BodyHash;
    use crate::flight::Topic;

    fn log(incarnation: &str) -> Log {
        let own = Topic { name: "events.shop".into(), incarnation: incarnation.into() };
        Log { project: "shop".into(), topics: [own].into() }
    }

    #[test]
    fn only_anothers_claim_stands_in_the_way() {
        assert_eq!(find(b"rubbish \xff", 1, &log("")), Found::New);
        assert_eq!(find(b"P:other", 1_500, &log("")), Found::InFlight { retry_after: Duration::from_millis(1_500) });
        assert_eq!(find(b"P:other", -2, &log("")), Found::InFlight { retry_after: Duration::ZERO });
    }

    #[test]
    fn an_event_of_an_earlier_topic_is_new() {
        let stored = Stored { partition: 1, offset: 2, body: BodyHash::of(&Default::default()) };
        let text = |incarnation: &str| {
            let mut text = String::new();
            stored.write(incarnation, &mut text);
            text
        };
        assert_eq!(find(text("a").as_bytes(), 1, &log("a")), Found::Stored(stored));
        assert_eq!(find(text("").as_bytes(), 1, &log("a")), Found::Stored(stored));
        assert_eq!(find(text("a").as_bytes(), 1, &log("")), Found::Stored(stored));
        assert_eq!(find(text("a").as_bytes(), 1, &log("b")), Found::New);
    }

    fn packed(redis: &Redis, events: usize) -> (Vec<Vec<usize>>, String, String) {
        let script = Script::new(keys::CLAIM);
        let mut calls = Calls::new(&script, 0, 7);
        for i in 0..events {
            calls.keys.extend_from_slice(format!("k{i}").as_bytes());
            calls.values.push_str(&format!("v{i}"));
            calls.push(redis);
        }
        let together = calls.pack();
        let text = String::from_utf8(calls.pipeline.get_packed_pipeline()).expect("text");
        (together, text, script.get_hash().to_owned())
    }

    #[tokio::test]
    async fn many_events_share_a_call() {
        let redis = Redis::new("redis://127.0.0.1:1").expect("a URL");
        assert!(packed(&redis, 0).0.is_empty());
        let (together, text, hash) = packed(&redis, PER_CALL + 1);
        assert_eq!((together.len(), text.matches("EVALSHA").count()), (2, 2));
        let last =
            format!("*6\r\n$7\r\nEVALSHA\r\n$40\r\n{hash}\r\n$1\r\n1\r\n$5\r\nk1000\r\n$1\r\n7\r\n$5\r\nv1000\r\n");
        assert!(text.ends_with(&last), "{}", &text[text.len() - 200..]);
    }

    #[tokio::test]
    async fn a_call_is_for_events_of_one_place() {
        for (url, calls) in [("redis+ring://127.0.0.1:1,127.0.0.1:2", 2), ("redis+cluster://127.0.0.1:1", 99)] {
            let redis = Redis::new(url).expect("a URL");
            let (together, text, _) = packed(&redis, 100);
            assert!((calls..=100).contains(&together.len()), "{url}: {}", together.len());
            for numbers in &together {
                let places = numbers.iter().map(|number| redis.place(format!("k{number}").as_bytes()));
                assert_eq!(places.collect::<std::collections::HashSet<_>>().len(), 1);
                let first = numbers[0];
                assert!(text.contains(&format!("\r\nk{first}\r\n")) && text.contains(&format!("\r\nv{first}\r\n")));
            }
            let all: std::collections::BTreeSet<usize> = together.into_iter().flatten().collect();
            assert_eq!(all, (0..100).collect());
        }
    }
}
