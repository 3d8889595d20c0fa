//! Requests whose events are admitted while more of them come: NDJSON.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::{Buf, Bytes};
use chrono::Utc;
use tidemill_common::auth::ApiKey;
use tidemill_common::problem::Problem;
use tokio::time::{Instant, timeout_at};

use crate::admit::admit;
use crate::answer;
use crate::body::{self, bad, overloaded, too_large, too_slow};
use crate::config::Config;
use crate::decompress::Chunks;
use crate::formats::ndjson::Lines;
use crate::gateway::Gateway;
use crate::outcome::Answered;
use crate::overload::Share;
use crate::stages::Receipt;

/// Complete lines wait so long for more that would share their round trips.
const PATIENCE: Duration = Duration::from_millis(50);
/// What a verdict takes that waits for the answer.
const VERDICT: usize = 256;

/// A body that is being read, and what has been decided of it.
struct Reading {
    chunks: Chunks,
    share: Share,
    /// What came but is not in `lines` yet.
    rest: Bytes,
    lines: Lines,
    bytes: usize,
    answers: Vec<Answered>,
    deadline: Instant,
}

/// Admits events as they come; answers when the body ends, or when it cannot be read on.
pub async fn ndjson(
    gateway: &Gateway,
    caller: &ApiKey,
    mut receipt: Receipt,
    chunks: Chunks,
    share: Share,
) -> Response {
    let deadline = Instant::now() + Duration::from_millis(gateway.config.max_ndjson_ms);
    let (rest, lines, answers) = (Bytes::new(), Lines::default(), Vec::new());
    let mut reading = Reading { chunks, share, rest, lines, bytes: 0, answers, deadline };
    loop {
        let more = match reading.fill(gateway).await {
            Ok(more) => more,
            Err(problem) => return reading.give_up(problem, gateway).await,
        };
        let group = reading.lines.take();
        // The events may outlive the request, if its client hangs up: their bytes are given back with them.
        let part = Arc::new(reading.share.part(group.bytes()));
        receipt.at = Utc::now().timestamp_micros();
        let events = group.events();
        if !events.is_empty() {
            reading.answers.extend(admit(gateway, caller, &receipt, events, &part).await);
        }
        if !more {
            return reading.done();
        }
    }
}

impl Reading {
    /// Reads until there are lines to admit, or the end; says whether more may come.
    async fn fill(&mut self, gateway: &Gateway) -> Result<bool, Problem> {
        let config = &gateway.config;
        let idle = Duration::from_millis(config.body_timeout_ms);
        loop {
            let taken = self.lines.push(&self.rest);
            self.rest.advance(taken);
            self.check(config)?;
            if self.lines.is_full() {
                return Ok(true);
            }
            let wait = if self.lines.len() == 0 { idle } else { PATIENCE };
            let until = self.deadline.min(Instant::now() + wait);
            match timeout_at(until, self.chunks.next(&mut self.share)).await {
                Ok(Some(chunk)) => self.rest = self.counted(chunk?, config.max_ndjson_bytes)?,
                Ok(None) => {
                    self.lines.end_line();
                    return self.check(config).map(|()| false);
                }
                Err(_) if Instant::now() >= self.deadline => {
                    return Err(too_slow(Duration::from_millis(config.max_ndjson_ms)));
                }
                Err(_) if self.lines.len() == 0 => return Err(too_slow(idle)),
                Err(_) => return Ok(true),
            }
        }
    }

    /// What is held must have its share, and be within the limits.
    fn check(&mut self, config: &Config) -> Result<(), Problem> {
        let events = self.answers.len() + self.lines.len();
        if events > config.max_ndjson_events {
            let most = config.max_ndjson_events;
            return Err(too_large(format!("the body has more than {most} events; send the rest in another")));
        }
        let held = self.chunks.memory() + self.rest.len() + self.lines.bytes() + VERDICT * events;
        if self.share.resize(held) { Ok(()) } else { Err(overloaded()) }
    }

    fn counted(&mut self, chunk: Bytes, most: usize) -> Result<Bytes, Problem> {
        self.bytes += chunk.len();
        if self.bytes > most {
            return Err(too_large(format!("the body has more than {most} bytes; send the rest in another")));
        }
        Ok(chunk)
    }

    fn done(self) -> Response {
        if self.answers.is_empty() {
            return answer::broken_off(bad("the body has no line; send at least one event".to_owned()), Vec::new());
        }
        answer::many(self.answers)
    }

    /// What was decided is told all the same.
    async fn give_up(self, problem: Problem, gateway: &Gateway) -> Response {
        let Self { chunks, share, answers, .. } = self;
        drop(share);
        body::linger(chunks.into_rest(), &gateway.overload);
        let problem = match answers.len() {
            0 => problem,
            decided => problem.and(&format!("; the first {decided} events have been decided, see results")),
        };
        answer::broken_off(problem, answers)
    }
}
