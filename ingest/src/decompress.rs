//! Bodies as they arrive: plain, or decompressed on the way, in bounded memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_compression::tokio::bufread::{BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tidemill_common::problem::Problem;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio_util::io::StreamReader;

use crate::body::{bad, broke_off, overloaded, too_large, unsupported};
use crate::overload::Share;

/// Bytes that are decompressed at a time.
const CHUNK: usize = 32 * 1024;
const MIB: usize = 1024 * 1024;
/// What a zstd frame may ask for: 8 MiB, as RFC 9659 has it.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Identity,
    /// RFC 1952
    Gzip,
    /// RFC 1950, or RFC 1951 from clients that take the name at its word.
    Deflate,
    /// RFC 7932
    Brotli,
    /// RFC 8878
    Zstd,
}

impl Coding {
    /// What the headers say.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Self::Identity) };
        let name = value.to_str().unwrap_or("(not text)").trim();
        let coding = match name.to_ascii_lowercase().as_str() {
            "identity" | "" => Self::Identity,
            "gzip" | "x-gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            "br" => Self::Brotli,
            "zstd" => Self::Zstd,
            _ => return Err(not_accepted(name)),
        };
        if values.next().is_some() {
            return Err(not_accepted("twice"));
        }
        Ok(coding)
    }

    /// What decompressing takes, as far as the first byte announces it.
    fn memory(self, first: u8) -> Result<usize, Problem> {
        match self {
            Self::Identity => Ok(0),
            Self::Gzip | Self::Deflate => Ok(64 * 1024),
            Self::Zstd => Ok((1 << ZSTD_WINDOW_LOG) + MIB),
            Self::Brotli => match brotli_window_log(first) {
                Some(log) => Ok((1 << log) + MIB / 2),
                None => Err(bad("the body's brotli window is above 16 MiB; compress with a smaller one".to_owned())),
            },
        }
    }
}

fn not_accepted(name: &str) -> Problem {
    let detail =
        format!("Content-Encoding {name:?} is not accepted; send one of gzip, deflate, br, zstd, or the body as it is");
    unsupported(detail, "Content-Encoding")
}

/// RFC 7932, section 9.1; none for the large windows, which are no part of it.
fn brotli_window_log(first: u8) -> Option<u32> {
    let (short, long) = (u32::from(first >> 1 & 7), u32::from(first >> 4 & 7));
    match (first & 1, short, long) {
        (0, _, _) => Some(16),
        (_, 0, 0) => Some(17),
        (_, 0, 1) => None,
        (_, 0, long) => Some(8 + long),
        (_, short, _) => Some(17 + short),
    }
}

/// A request's body, piece by piece.
pub enum Chunks {
    /// As it comes.
    Plain(BodyDataStream),
    /// Decompressed.
    Coded(Box<Coded>),
}

/// A body that is being decompressed.
pub struct Coded {
    coding: Coding,
    decoder: Decoder,
    memory: usize,
    buffer: BytesMut,
}

type Input = StreamReader<Counted, Bytes>;

enum Decoder {
    /// For the first byte.
    Waiting(Input),
    Gzip(GzipDecoder<Input>),
    Zlib(ZlibDecoder<Input>),
    Deflate(DeflateDecoder<Input>),
    Brotli(BrotliDecoder<Input>),
    Zstd(ZstdDecoder<Input>),
    Ended,
}

impl Chunks {
    /// A body whose compressed form has at most so many bytes.
    pub fn new(body: Body, coding: Coding, most: usize) -> Self {
        let stream = body.into_data_stream();
        if coding == Coding::Identity {
            return Self::Plain(stream);
        }
        let input = StreamReader::new(Counted { stream, left: most });
        let decoder = Decoder::Waiting(input);
        Self::Coded(Box::new(Coded { coding, decoder, memory: 0, buffer: BytesMut::new() }))
    }

    /// The next piece. What decompressing needs is taken from the share and given back at the end. Nothing is
    /// lost when this is dropped before it is done.
    pub async fn next(&mut self, share: &mut Share) -> Option<Result<Bytes, Problem>> {
        match self {
            Self::Plain(stream) => Some(stream.next().await?.map_err(broke_off)),
            Self::Coded(coded) => match coded.next(share).await {
                Ok(chunk) if chunk.is_empty() => None,
                other => Some(other),
            },
        }
    }

    /// What decompressing has taken from the share.
    pub fn memory(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Coded(coded) => coded.memory,
        }
    }

    /// What has not been read, as it comes.
    pub fn into_rest(self) -> Option<BodyDataStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Coded(coded) => coded.decoder.into_input().map(|input| input.into_inner().stream),
        }
    }
}

impl Coded {
    async fn next(&mut self, share: &mut Share) -> Result<Bytes, Problem> {
        if let Decoder::Waiting(input) = &mut self.decoder {
            let first = input.fill_buf().await.map_err(|error| unreadable(self.coding, &error))?.first().copied();
            self.start(first, share)?;
        }
        self.buffer.reserve(CHUNK);
        let read = self.decoder.read(&mut self.buffer).await.map_err(|error| unreadable(self.coding, &error))?;
        if read == 0 {
            self.end().await?;
            share.shrink(std::mem::take(&mut self.memory));
        }
        Ok(self.buffer.split().freeze())
    }

    /// Sets up the decoder. An empty body needs none.
    fn start(&mut self, first: Option<u8>, share: &mut Share) -> Result<(), Problem> {
        if let Some(first) = first {
            let memory = self.coding.memory(first)?;
            if !share.grow(memory) {
                return Err(overloaded());
            }
            self.memory = memory;
        }
        if let Decoder::Waiting(input) = std::mem::replace(&mut self.decoder, Decoder::Ended)
            && let Some(first) = first
        {
            self.decoder = Decoder::new(self.coding, first, input);
        }
        Ok(())
    }

    /// Nothing may stand behind the end: it would be dropped without a word.
    async fn end(&mut self) -> Result<(), Problem> {
        let Some(input) = self.decoder.input() else { return Ok(()) };
        let rest = input.fill_buf().await.map_err(|error| unreadable(self.coding, &error))?;
        if rest.is_empty() {
            return Ok(());
        }
        Err(bad(format!("the body goes on behind the end of its {} data; send only one", self.coding.name())))
    }
}

impl Decoder {
    fn new(coding: Coding, first: u8, input: Input) -> Self {
        match coding {
            Coding::Identity => Self::Ended,
            Coding::Gzip => {
                let mut decoder = GzipDecoder::new(input);
                decoder.multiple_members(true);
                Self::Gzip(decoder)
            }
            // zlib's first byte names its method, 8. No raw data begins so.
            Coding::Deflate if first & 0x0f == 8 => Self::Zlib(ZlibDecoder::new(input)),
            Coding::Deflate => Self::Deflate(DeflateDecoder::new(input)),
            Coding::Brotli => Self::Brotli(BrotliDecoder::new(input)),
            Coding::Zstd => {
                let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
                let mut decoder = ZstdDecoder::with_params(input, &[window]);
                decoder.multiple_members(true);
                Self::Zstd(decoder)
            }
        }
    }

    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read_buf(buffer).await,
            Self::Zlib(decoder) => decoder.read_buf(buffer).await,
            Self::Deflate(decoder) => decoder.read_buf(buffer).await,
            Self::Brotli(decoder) => decoder.read_buf(buffer).await,
            Self::Zstd(decoder) => decoder.read_buf(buffer).await,
            Self::Waiting(_) | Self::Ended => Ok(0),
        }
    }

    fn input(&mut self) -> Option<&mut Input> {
        match self {
            Self::Gzip(decoder) => Some(decoder.get_mut()),
            Self::Zlib(decoder) => Some(decoder.get_mut()),
            Self::Deflate(decoder) => Some(decoder.get_mut()),
            Self::Brotli(decoder) => Some(decoder.get_mut()),
            Self::Zstd(decoder) => Some(decoder.get_mut()),
            Self::Waiting(input) => Some(input),
            Self::Ended => None,
        }
    }

    fn into_input(self) -> Option<Input> {
        match self {
            Self::Gzip(decoder) => Some(decoder.into_inner()),
            Self::Zlib(decoder) => Some(decoder.into_inner()),
            Self::Deflate(decoder) => Some(decoder.into_inner()),
            Self::Brotli(decoder) => Some(decoder.into_inner()),
            Self::Zstd(decoder) => Some(decoder.into_inner()),
            Self::Waiting(input) => Some(input),
            Self::Ended => None,
        }
    }
}

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "plain",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// The compressed bytes: as few as the limit allows, since some decompress to nothing at all.
struct Counted {
    stream: BodyDataStream,
    left: usize,
}

#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("{0}")]
    BrokeOff(axum::Error),
    #[error("too many bytes")]
    TooMany,
}

impl Stream for Counted {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let next = std::task::ready!(self.stream.poll_next_unpin(context));
        Poll::Ready(next.map(|chunk| {
            let chunk = chunk.map_err(|error| io::Error::other(Unread::BrokeOff(error)))?;
            self.left = self.left.checked_sub(chunk.len()).ok_or_else(|| io::Error::other(Unread::TooMany))?;
            Ok(chunk)
        }))
    }
}

fn unreadable(coding: Coding, error: &io::Error) -> Problem {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Unread>()) {
        Some(Unread::BrokeOff(error)) => broke_off(error),
        Some(Unread::TooMany) => too_large("the compressed body is too large; send fewer events at once".to_owned()),
        None => bad(format!("the body is not {} data, or is cut short: {error}", coding.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brotli_windows_are_read_as_the_standard_has_them() {
        let table = [(0x00, Some(16)), (0x01, Some(17)), (0x03, Some(18)), (0x0f, Some(24)), (0x21, Some(10))];
        for (first, log) in table.into_iter().chain([(0x71, Some(15)), (0x11, None), (0x91, None)]) {
            assert_eq!(brotli_window_log(first), log, "{first:#x}");
        }
    }

    #[test]
    fn codings_are_named_or_refused() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, value.parse().expect("a value"));
            }
            Coding::of(&headers).ok()
        };
        assert_eq!(of(&[]), Some(Coding::Identity));
        assert_eq!(of(&["GZIP"]), Some(Coding::Gzip));
        assert_eq!(of(&["zstd"]), Some(Coding::Zstd));
        assert_eq!(of(&["gzip, br"]), None);
        assert_eq!(of(&["gzip", "br"]), None);
        assert_eq!(of(&["compress"]), None);
    }
}
