//! Reading a request's body, and how much of it.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use tidemill_common::problem::Problem;

use crate::config::Config;
use crate::decompress::Chunks;
use crate::overload::{Overload, Share};

/// A refused request's body is read on for so long, so that a client that is still sending it gets to see
/// the answer instead of a broken connection, and can go on with it.
const LINGER: Duration = Duration::from_secs(2);
/// More than this is not worth it.
const LINGER_BYTES: usize = 32 * 1024 * 1024;

/// 415, naming the header at fault.
pub fn unsupported(detail: String, header: &str) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type", detail)
        .field(header)
}

/// Reads a body. What arrives is counted, whatever was announced. A request that is refused gives back its
/// share at once.
pub async fn read(
    mut chunks: Chunks,
    config: &Config,
    overload: &Overload,
    mut share: Share,
) -> Result<(Bytes, Share), Problem> {
    let limit = Duration::from_millis(config.body_timeout_ms);
    let read = tokio::time::timeout(limit, collect(&mut chunks, config.max_body_bytes, &mut share)).await;
    match read.unwrap_or_else(|_| Err(too_slow(limit))) {
        Ok(body) => Ok((body, share)),
        Err(problem) => {
            drop(share);
            linger(chunks.into_rest(), overload);
            Err(problem)
        }
    }
}

async fn collect(chunks: &mut Chunks, most: usize, share: &mut Share) -> Result<Bytes, Problem> {
    let mut body = Parts::default();
    while let Some(chunk) = chunks.next(share).await {
        let chunk = chunk?;
        if body.len() + chunk.len() > most {
            return Err(too_large(format!("the body has more than {most} bytes; send fewer events at once")));
        }
        if !share.grow(chunk.len()) {
            return Err(overloaded());
        }
        body.push(chunk);
    }
    Ok(body.whole())
}

/// A body as it comes: most come in one piece, which is then not copied.
#[derive(Default)]
struct Parts {
    first: Bytes,
    all: Vec<u8>,
}

impl Parts {
    fn len(&self) -> usize {
        self.first.len().max(self.all.len())
    }

    fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.first = chunk;
            return;
        }
        if self.all.is_empty() {
            self.all.reserve(2 * (self.first.len() + chunk.len()));
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&chunk);
    }

    fn whole(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.into() }
    }
}

/// Reads on beside the answer and throws away. If too many requests are listened to like this already, the
/// connection just ends.
pub fn linger(stream: Option<BodyDataStream>, overload: &Overload) {
    let (Some(mut stream), Some(room)) = (stream, overload.linger()) else { return };
    let drain = async move {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            bytes += chunk.len();
            if bytes > LINGER_BYTES {
                break;
            }
        }
        drop(room);
    };
    tokio::spawn(tokio::time::timeout(LINGER, drain));
}

/// 400, about the body as a whole.
pub fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-body", "Bad body", detail).field("body")
}

/// 400 for a body that did not come to its end.
pub fn broke_off(error: impl std::fmt::Display) -> Problem {
    bad(format!("the body broke off: {error}"))
}

/// 413.
pub fn too_large(detail: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large", detail).field("body")
}

/// 503 for what is too much at once.
pub fn overloaded() -> Problem {
    let detail = "too many requests are under way; send this one again";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded", detail).retry_after(1)
}

/// 408.
pub fn too_slow(limit: Duration) -> Problem {
    let detail = format!("the body did not arrive within {} s", limit.as_secs());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "Too slow", detail).field("body")
}
