//! A server with an application to try it with, and clients that are less than perfect.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName};
use tidemill_common::http::{Health, HttpConfig, Listener, serve};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// How long anything may take that should be quick.
pub const QUICK: Duration = Duration::from_secs(20);

/// The server loop with an application that can wait and that can answer for ever.
pub struct Server {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub task: Option<JoinHandle<std::io::Result<()>>>,
    doings: Arc<Doings>,
}

struct Doings {
    waiting: watch::Sender<usize>,
    go_on: Semaphore,
    dropped: watch::Sender<usize>,
}

struct Endless(Arc<Doings>);

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.dropped.send_modify(|dropped| *dropped += 1);
    }
}

impl Server {
    pub async fn start(change: impl FnOnce(&mut HttpConfig)) -> Self {
        let mut config = HttpConfig::default();
        change(&mut config);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let doings = Arc::new(Doings {
            waiting: watch::Sender::default(),
            go_on: Semaphore::new(0),
            dropped: watch::Sender::default(),
        });
        let app = Router::new()
            .route("/", get(async || "hello"))
            .route("/version", get(async |request: Request| format!("{:?}", request.version())))
            .route("/wait", get(wait))
            .route("/endless", get(endless))
            .with_state(Arc::clone(&doings))
            .merge(Health::new().routes());
        let shutdown = CancellationToken::new();
        let listener = Listener::new(socket, config).unwrap();
        let task = Some(tokio::spawn(serve(listener, app, shutdown.clone())));
        Self { address, shutdown, task, doings }
    }

    /// Waits until so many requests wait.
    pub async fn waiting(&self, requests: usize) {
        in_time(self.doings.waiting.subscribe().wait_for(|waiting| *waiting == requests)).await.unwrap();
    }

    /// Lets so many waiting requests go on.
    pub fn release(&self, requests: usize) {
        self.doings.go_on.add_permits(requests);
    }

    /// Waits until so many endless answers have been dropped.
    pub async fn dropped(&self, answers: usize) {
        self.doings.dropped.subscribe().wait_for(|dropped| *dropped == answers).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn wait(State(doings): State<Arc<Doings>>) -> &'static str {
    doings.waiting.send_modify(|waiting| *waiting += 1);
    doings.go_on.acquire().await.unwrap().forget();
    doings.waiting.send_modify(|waiting| *waiting -= 1);
    "done"
}

async fn endless(State(doings): State<Arc<Doings>>) -> Body {
    Body::from_stream(futures::stream::unfold(Endless(doings), |endless| async move {
        Some((Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 16 * 1024])), endless))
    }))
}

/// A certificate's files, removed on drop.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(uuid::Uuid::new_v4().to_string());
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Puts a new certificate for `localhost` there, the key first, as a careless operator would.
    pub fn write_certificate(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(self.0.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(self.0.join("cert.pem"), made.cert.pem()).unwrap();
        made.cert.der().clone()
    }

    pub fn name_in(&self, config: &mut HttpConfig) {
        config.tls_cert = Some(self.0.join("cert.pem"));
        config.tls_key = Some(self.0.join("key.pem"));
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A connection without any client.
pub async fn raw(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

/// A TLS connection that trusts one certificate only, and the version that was agreed on.
pub async fn tls_client(
    server: &Server,
    cert: &CertificateDer<'static>,
    versions: &[&str],
) -> std::io::Result<(TlsStream<TcpStream>, Option<Vec<u8>>)> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = versions.iter().map(|version| version.as_bytes().to_vec()).collect();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = in_time(connector.connect(name, raw(server).await)).await?;
    let version = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((stream, version))
}

/// Waits until the server has closed a connection.
pub async fn closed(stream: &mut (impl AsyncRead + Unpin)) {
    let _ = in_time(stream.read_to_end(&mut Vec::new())).await; // a reset is as good
}

/// Fails when it takes too long.
pub async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(QUICK, what).await.expect("in time")
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// One connection of a client.
pub struct Client {
    sender: Sender,
    ended: watch::Receiver<bool>,
}

impl Client {
    pub async fn http1(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        Self { sender: Sender::Http1(sender), ended: run(connection) }
    }

    pub async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
        Self { sender: Sender::Http2(sender), ended: run(connection) }
    }

    /// One that lets the server send no byte of any answer.
    pub async fn http2_without_window(stream: TcpStream) -> Self {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        Self { sender: Sender::Http2(sender), ended: run(connection) }
    }

    /// Status and body.
    pub async fn get(&mut self, path: &str) -> (u16, String) {
        let answer = self.send(path, 0).await;
        let status = answer.status().as_u16();
        let body = in_time(answer.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn get_owned(mut self, path: &str) -> (u16, String) {
        self.get(path).await
    }

    /// The status of a request with a header of a size.
    pub async fn get_with(&mut self, path: &str, header: usize) -> u16 {
        self.send(path, header).await.status().as_u16()
    }

    /// An answer to be read bit by bit.
    pub async fn stream(&mut self, path: &str) -> Reading {
        Reading(self.send(path, 0).await.into_body())
    }

    /// Waits until the connection has ended.
    pub async fn ended(mut self) {
        in_time(self.ended.wait_for(|ended| *ended)).await.unwrap();
    }

    async fn send(&mut self, path: &str, header: usize) -> hyper::Response<Incoming> {
        let request = hyper::Request::get(format!("http://localhost{path}"))
            .header("x-long", "x".repeat(header))
            .body(Empty::new())
            .unwrap();
        let answer = async {
            match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Http2(sender) => sender.send_request(request).await,
            }
        };
        in_time(answer).await.expect("an answer")
    }
}

impl Clone for Client {
    /// Only HTTP/2 can share a connection.
    fn clone(&self) -> Self {
        let Sender::Http2(sender) = &self.sender else { panic!("HTTP/1 takes one request at a time") };
        Self { sender: Sender::Http2(sender.clone()), ended: self.ended.clone() }
    }
}

/// An answer that is being read.
pub struct Reading(Incoming);

impl Reading {
    /// Whether there was more of it.
    pub async fn next(&mut self) -> bool {
        in_time(self.0.frame()).await.is_some_and(|frame| frame.is_ok())
    }
}

fn run(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> watch::Receiver<bool> {
    let (ended, on_end) = watch::channel(false);
    tokio::spawn(async move {
        let _ = connection.await;
        let _ = ended.send(true);
    });
    on_end
}
