//! As little of HTTP/1.1 as a load generator needs: requests are bytes already, answers have a length.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
pub struct Response<'a> {
    /// Its status.
    pub status: u16,
    head: &'a [u8],
    /// Its body.
    pub body: &'a [u8],
}

impl Response<'_> {
    /// Whether it says when to come back.
    pub fn says_when(&self) -> bool {
        header(self.head, "retry-after").is_some()
    }

    /// Its beginning, for people.
    pub fn excerpt(&self) -> String {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]);
        format!("{} {body}", self.status)
    }
}

/// A kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// A connection to a server.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a request and reads its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Response<'_>> {
        self.stream.write_all(request).await.context("the server closed the connection")?;
        let (mut filled, mut head) = (0, None);
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.context("the connection broke")?;
            if read == 0 {
                bail!("the server closed the connection instead of answering");
            }
            filled += read;
            if head.is_none() {
                head = parse(&self.buffer[..filled])?;
            }
            let Some(Head { status, body_at, length }) = head else {
                if filled == self.buffer.len() {
                    bail!("an answer's head is above {filled} bytes");
                }
                continue;
            };
            let end = body_at + length;
            if filled >= end {
                let (head, rest) = self.buffer.split_at(body_at);
                return Ok(Response { status, head, body: &rest[..length] });
            }
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Head {
    status: u16,
    body_at: usize,
    length: usize,
}

/// The sum of a metric's series that a service shows; 0 where there is none.
pub async fn metric(address: SocketAddr, name: &str) -> anyhow::Result<f64> {
    let mut connection = Connection::open(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let response = connection.exchange(request.as_bytes()).await?;
    let text = String::from_utf8_lossy(response.body);
    let lines = text.lines().filter(|line| line.starts_with(name));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// The head of an answer, or nothing while it is not complete.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = &bytes[..end];
    let status = head.get(9..12).and_then(number).context("an answer does not start with a status line")? as u16;
    let length = match header(head, "content-length") {
        Some(length) => number(length).context("an answer's Content-Length is not a number")?,
        None if status == 204 => 0,
        None => bail!("an answer with status {status} has no Content-Length, which is all this generator can read"),
    };
    Ok(Some(Head { status, body_at: end + 4, length }))
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_once_complete() {
        let bytes = b"HTTP/1.1 202 Accepted\r\ncontent-LENGTH: 12\r\nRetry-After:  1\r\n\r\nbody";
        assert_eq!(parse(&bytes[..40]).expect("no error"), None);
        let head = parse(bytes).expect("no error").expect("complete");
        assert_eq!(head, Head { status: 202, body_at: bytes.len() - 4, length: 12 });
        assert_eq!(header(bytes, "retry-after"), Some(&b"1"[..]));
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(parse(b"SSH-2.0 hello there\r\n\r\n").is_err());
    }
}
