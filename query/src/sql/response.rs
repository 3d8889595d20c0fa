//! An answer over HTTP: whole, or as it is made.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Piece;
use super::error::SqlError;
use super::format::Format;
use crate::events::{TailIs, View};

const TRUNCATED: HeaderName = HeaderName::from_static("tidemill-truncated");
const CACHE: HeaderName = HeaderName::from_static("tidemill-cache");
const SNAPSHOT: HeaderName = HeaderName::from_static("tidemill-snapshot");
const TAIL: HeaderName = HeaderName::from_static("tidemill-tail");
const WAREHOUSE: HeaderName = HeaderName::from_static("tidemill-warehouse");

/// Which events an answer was made from; neither is there where it was made from none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The archive's snapshot.
    pub snapshot: Option<String>,
    /// How much of the tail was there.
    pub tail: Option<TailIs>,
}

/// What is said before the answer.
pub struct Head {
    format: Format,
    pub made_from: MadeFrom,
    /// The engine that answers in our place.
    warehouse: Option<&'static str>,
    /// Of an answer that was kept.
    pub age: Option<Duration>,
}

/// An answer of more than one piece.
pub struct Started {
    pub first: Bytes,
    pub pieces: Receiver<Result<Piece, SqlError>>,
    /// The query: it ends when this is dropped.
    pub running: AbortOnDropHandle<bool>,
}

impl Head {
    /// An answer in this format, of events as they are in `view`.
    pub fn new(format: Format, view: Option<&View>) -> Self {
        let snapshot = view.map(|view| view.snapshot().to_owned());
        let made_from = MadeFrom { snapshot, tail: view.map(|view| view.tail_is) };
        Self { format, made_from, warehouse: None, age: None }
    }

    /// An answer of another engine, which knows archived events only: as of this snapshot, or of whichever is the
    /// newest when it reads.
    pub fn of_warehouse(format: Format, warehouse: &'static str, snapshot: Option<String>) -> Self {
        let made_from = MadeFrom { snapshot, tail: Some(TailIs::Off) };
        Self { format, made_from, warehouse: Some(warehouse), age: None }
    }

    /// An answer that is there. Whether rows were cut off is said before it.
    pub fn whole(self, body: Bytes, truncated: bool) -> Response {
        let mut headers = self.headers();
        headers.insert(TRUNCATED, said(truncated));
        (headers, body).into_response()
    }

    /// An answer that is still being made. Whether rows were cut off is said behind it, in a trailer. Where it fails,
    /// the connection breaks off, so that nobody takes a part for the whole.
    pub fn streamed(self, started: Started) -> Response {
        let mut headers = self.headers();
        headers.insert(header::TRAILER, HeaderValue::from_static("tidemill-truncated"));
        (headers, Body::new(StreamBody::new(frames(started)))).into_response()
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.format.media_type()));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        headers.insert(CACHE, HeaderValue::from_static(if self.age.is_some() { "hit" } else { "miss" }));
        if let Some(age) = self.age {
            headers.insert(header::AGE, age.as_secs().into());
        }
        let MadeFrom { snapshot, tail } = &self.made_from;
        let snapshot = snapshot.as_ref().and_then(|id| HeaderValue::from_str(id).ok());
        headers.extend(snapshot.map(|id| (SNAPSHOT, id)));
        let words = [(TAIL, tail.map(TailIs::as_str)), (WAREHOUSE, self.warehouse)];
        headers.extend(words.into_iter().filter_map(|(name, word)| Some((name, HeaderValue::from_static(word?)))));
        headers
    }
}

fn said(truth: bool) -> HeaderValue {
    HeaderValue::from_static(if truth { "true" } else { "false" })
}

/// Where a streamed answer stands.
enum At {
    First(Started),
    Further(Receiver<Result<Piece, SqlError>>, AbortOnDropHandle<bool>),
    Trailer(bool),
}

fn frames(started: Started) -> impl stream::Stream<Item = Result<Frame<Bytes>, io::Error>> {
    stream::try_unfold(Some(At::First(started)), |at| async {
        let (frame, next) = match at {
            None => return Ok(None),
            Some(At::First(Started { first, pieces, running })) => {
                (Frame::data(first), Some(At::Further(pieces, running)))
            }
            Some(At::Further(mut pieces, running)) => match pieces.recv().await {
                Some(Ok(Piece::More(piece))) => (Frame::data(piece), Some(At::Further(pieces, running))),
                Some(Ok(Piece::Last(piece, truncated))) => (Frame::data(piece), Some(At::Trailer(truncated))),
                Some(Err(error)) => {
                    tracing::warn!(%error, "an answer broke off");
                    return Err(io::Error::other(error.to_string()));
                }
                None => return Err(io::Error::other("the query was ended")),
            },
            Some(At::Trailer(truncated)) => {
                (Frame::trailers(HeaderMap::from_iter([(TRUNCATED, said(truncated))])), None)
            }
        };
        Ok(Some((frame, next)))
    })
}
