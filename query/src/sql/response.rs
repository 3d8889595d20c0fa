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
use tokio::sync::mpsc::Receiver;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Piece;
use super::error::SqlError;
use super::format::Format;
use crate::events::View;

const TRUNCATED: HeaderName = HeaderName::from_static("tidemill-truncated");
const CACHE: HeaderName = HeaderName::from_static("tidemill-cache");
const SNAPSHOT: HeaderName = HeaderName::from_static("tidemill-snapshot");
const TAIL: HeaderName = HeaderName::from_static("tidemill-tail");

/// What is said before the answer.
pub struct Head {
    format: Format,
    /// The archive's snapshot, and how much of the tail was there.
    view: Option<(String, &'static str)>,
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
        let view = view.map(|view| (view.snapshot().to_owned(), view.tail_is.as_str()));
        Self { format, view, age: None }
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
        if let Some((snapshot, tail)) = &self.view {
            headers.extend(HeaderValue::from_str(snapshot).ok().map(|id| (SNAPSHOT, id)));
            headers.insert(TAIL, HeaderValue::from_static(tail));
        }
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
