//! The server loop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot::Receiver;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::connections::{Activity, Connections, Place};
use super::tls::Tls;
use super::watched::{WatchedBody, WatchedStream};
use super::{HttpConfig, Listener};

/// Requests under way at shutdown get this long.
const DRAIN: Duration = Duration::from_secs(20);
/// Wait for a place when something is going on on every connection.
const NO_PLACE: Duration = Duration::from_millis(10);
/// Bytes of a connection that are buffered in each direction.
const BUFFER: usize = 64 * 1024;
/// HTTP/2: requests of one connection at a time, and how much of their bodies it may send ahead of the handlers.
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// HTTP/2: streams that a client may reset before, or make us reset after, they are worked on; then it is sent away.
const RESETS: usize = 20;
const OWN_RESETS: usize = 128;
/// HTTP/2: a client that has been silent for so long must answer a ping within the other.
const PING_AFTER: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(10);

struct Server {
    app: Router,
    tls: Option<Tls>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    connections: Arc<Connections>,
    tasks: TaskTracker,
}

/// Serves until shutdown, then lets requests under way finish.
pub async fn serve(listener: Listener, app: Router, shutdown: CancellationToken) -> std::io::Result<()> {
    let Listener { socket, config, tls } = listener;
    let server = Arc::new(Server {
        app,
        tls,
        http1: http1(&config),
        http2: http2(&config),
        connections: Connections::new(&config),
        tasks: TaskTracker::new(),
    });
    tokio::select! {
        () = server.accept(&socket) => {}
        () = server.tend() => {}
        () = shutdown.cancelled() => {}
    }
    drop(socket);
    server.connections.finish();
    server.tasks.close();
    tokio::select! {
        () = server.tasks.wait() => {}
        () = server.tend() => {}
        () = tokio::time::sleep(DRAIN) => tracing::warn!("some requests did not finish in time"),
    }
    Ok(())
}

fn http1(config: &HttpConfig) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The time for a head is kept by `Connections`, which needs no timer per request.
    builder.header_read_timeout(None).max_header_size(config.max_head_bytes as usize);
    builder.max_buf_size(BUFFER.max(config.max_head_bytes as usize));
    builder
}

fn http2(config: &HttpConfig) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(config.max_head_bytes)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(OWN_RESETS)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_WITHIN);
    builder
}

impl Server {
    /// Accepts connections for ever.
    async fn accept(self: &Arc<Self>, socket: &TcpListener) {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    let place = self.place().await;
                    self.tasks.spawn(Arc::clone(self).converse(stream, peer, place));
                }
                Err(error) => {
                    // Out of file descriptors, most often: one is given back, others will be.
                    tracing::warn!(%error, "cannot accept a connection");
                    self.connections.make_room(Instant::now());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn place(&self) -> Place {
        loop {
            if let Some(place) = self.connections.enter(Instant::now()) {
                return place;
            }
            tokio::time::sleep(NO_PLACE).await;
        }
    }

    /// Closes slow connections and keeps the certificate up to date, for ever.
    async fn tend(&self) {
        let sweep = async {
            loop {
                tokio::time::sleep(self.connections.sweep_interval()).await;
                self.connections.sweep(Instant::now());
            }
        };
        match &self.tls {
            None => sweep.await,
            Some(tls) => tokio::join!(sweep, tls.reload()).0,
        }
    }

    /// One connection, from its first byte to its last.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, mut place: Place) {
        let _ = stream.set_nodelay(true);
        let (activity, finish) = (Arc::clone(&place.activity), &mut place.finish);
        tokio::select! {
            biased;
            ended = self.talk(stream, peer, activity, finish) => if let Err(error) = ended {
                tracing::debug!(error, %peer, "connection ended");
            },
            _ = &mut place.cut => tracing::debug!(%peer, "connection cut"),
        }
    }

    async fn talk(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        activity: Arc<Activity>,
        finish: &mut Receiver<Infallible>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (stream, is_http2) = match &self.tls {
            None => {
                let is_http2 = begins_http2(&stream).await?;
                (Either::Left(stream), is_http2)
            }
            Some(tls) => {
                let stream = tls.acceptor().accept(stream).await?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                (Either::Right(stream), is_http2)
            }
        };
        let io = TokioIo::new(WatchedStream { stream, activity: Arc::clone(&activity) });
        let service = service_fn(move |mut request: Request<Incoming>| {
            let handling = activity.begin(request.version() == Version::HTTP_2);
            request.extensions_mut().insert(ConnectInfo(peer));
            let (answer, activity) = (self.app.clone().call(request), Arc::clone(&activity));
            async move {
                let answer = answer.await?;
                drop(handling);
                Ok::<_, Infallible>(answer.map(|body| WatchedBody { body, activity }))
            }
        });
        if is_http2 {
            until_finished(self.http2.serve_connection(io, service), finish).await?;
        } else {
            until_finished(self.http1.serve_connection(io, service), finish).await?;
        }
        Ok(())
    }
}

/// Whether a client without TLS speaks HTTP/2 from the start. Its first words are always `PRI`, which no method of
/// HTTP/1 that we know begins with.
async fn begins_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut start = [0; 3];
    let arrived = stream.peek(&mut start).await?;
    Ok(start[..arrived] == *b"PRI")
}

async fn until_finished<C: GracefulConnection>(
    connection: C,
    finish: &mut Receiver<Infallible>,
) -> Result<(), C::Error> {
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        _ = finish => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
