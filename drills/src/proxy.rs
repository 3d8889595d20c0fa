//! A TCP proxy that can be slow, lead elsewhere, or do harm to what counts: a COMMIT to Postgres, an upload to S3.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As Postgres' protocol has it: the text of a simple query ends with a zero.
const COMMIT: &[u8] = b"COMMIT\0";
/// What the uploads of S3 begin with: an object, or the parts of a large one.
const UPLOADS: [&[u8]; 2] = [b"PUT ", b"POST "];
const REFUSAL: &[u8] = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const PIECE: usize = 64 * 1024;
/// A client that was refused is heard out for so long, else it would lose the answer.
const HEARD_OUT: Duration = Duration::from_secs(1);

/// What the proxy does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Pass,
    /// It waits before each piece, in both directions.
    Slow(Duration),
    /// Nothing passes, and nobody is told.
    Frozen,
    /// It does this to the next COMMIT or upload.
    Once(Fault),
    /// It does this to every COMMIT or upload.
    Always(Fault),
}

/// What can be done to a COMMIT or an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is passed on, and then the connection is cut: it has happened, and the client does not know.
    Unanswered,
    /// The connection is cut instead of passing it on: it has not happened, and the client does not know.
    Lost,
    /// Half of its first piece is passed on, then the connection is cut.
    Cut,
    /// An upload is answered with 503.
    Refused,
}

/// A proxy before one component. It ends on drop.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    end: CancellationToken,
}

struct State {
    mode: watch::Sender<Mode>,
    upstream: Mutex<String>,
    /// Ends the connections that there are.
    cut: Mutex<CancellationToken>,
}

impl Proxy {
    /// A proxy before the component at `url`, and the URL that leads through it.
    pub async fn before(url: &str) -> anyhow::Result<(Self, String)> {
        let upstream = authority(url)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, end) = (listener.local_addr()?, CancellationToken::new());
        let state = Arc::new(State {
            mode: watch::Sender::new(Mode::Pass),
            upstream: Mutex::new(upstream.to_owned()),
            cut: Mutex::new(end.child_token()),
        });
        tokio::spawn(end.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&state))));
        let through = url.replace(upstream, &address.to_string());
        Ok((Self { address, state, end }, through))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// Waits until it is back to passing everything, as after the one COMMIT or upload that a mode is about.
    pub async fn passes(&self) -> anyhow::Result<()> {
        let mut mode = self.state.mode.subscribe();
        let passes = tokio::time::timeout(Duration::from_secs(60), mode.wait_for(|mode| *mode == Mode::Pass));
        passes.await.context("no COMMIT and no upload came to the proxy within 60 s")??;
        Ok(())
    }

    /// Cuts all connections; new ones lead to the component at `url`.
    pub fn lead_to(&self, url: &str) -> anyhow::Result<()> {
        *self.state.upstream.lock().expect("no holder panics") = authority(url)?.to_owned();
        let mut cut = self.state.cut.lock().expect("no holder panics");
        cut.cancel();
        *cut = self.end.child_token();
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// The host and port in a URL.
fn authority(url: &str) -> anyhow::Result<&str> {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    authority.and_then(|authority| authority.rsplit('@').next()).with_context(|| format!("{url} is no URL"))
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let upstream = state.upstream.lock().expect("no holder panics").clone();
        let cut = state.cut.lock().expect("no holder panics").child_token();
        let state = Arc::clone(&state);
        tokio::spawn(cut.clone().run_until_cancelled_owned(async move {
            let Ok(server) = TcpStream::connect(&upstream).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((mut from_client, mut to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            // Whichever direction ends ends both.
            let muted = AtomicBool::new(false);
            let refused = tokio::select! {
                refused = ask(&mut from_client, to_server, &state, &muted) => refused,
                () = answer(from_server, &mut to_client, &state, &muted) => false,
            };
            if refused && to_client.write_all(REFUSAL).await.is_ok() {
                let _ =
                    tokio::time::timeout(HEARD_OUT, tokio::io::copy(&mut from_client, &mut tokio::io::sink())).await;
            }
        }));
    }
}

/// From the client to the component. Gives whether the client is to be refused.
async fn ask(from: &mut OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, muted: &AtomicBool) -> bool {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let mut piece = &piece[..length];
        state.hold_up().await;
        let fault = counts(piece).then(|| state.fault()).flatten();
        match fault {
            Some(Fault::Lost) => return false,
            Some(Fault::Refused) => return true,
            Some(Fault::Unanswered) => muted.store(true, Ordering::SeqCst),
            Some(Fault::Cut) => piece = &piece[..length / 2],
            None => {}
        }
        if to.write_all(piece).await.is_err() || fault == Some(Fault::Cut) {
            return false;
        }
    }
    false
}

/// Whether a piece begins an upload or holds a COMMIT, which is a message of its own, short enough to come in one piece.
fn counts(piece: &[u8]) -> bool {
    UPLOADS.iter().any(|method| piece.starts_with(method)) || piece.windows(COMMIT.len()).any(|window| window == COMMIT)
}

/// From the component to the client. An answer that the client must not get ends the connection.
async fn answer(mut from: OwnedReadHalf, to: &mut OwnedWriteHalf, state: &State, muted: &AtomicBool) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        state.hold_up().await;
        if muted.load(Ordering::SeqCst) || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

impl State {
    /// Lets time pass where the mode says so.
    async fn hold_up(&self) {
        let mut mode = self.mode.subscribe();
        let now = *mode.borrow();
        match now {
            Mode::Slow(pause) => tokio::time::sleep(pause).await,
            Mode::Frozen => drop(mode.wait_for(|mode| *mode != Mode::Frozen).await),
            _ => {}
        }
    }

    /// What to do to the COMMIT or upload that has come. After the only one, everything passes.
    fn fault(&self) -> Option<Fault> {
        let mut fault = None;
        self.mode.send_if_modified(|mode| match *mode {
            Mode::Once(once) => {
                fault = Some(once);
                *mode = Mode::Pass;
                true
            }
            Mode::Always(always) => {
                fault = Some(always);
                false
            }
            _ => false,
        });
        fault
    }
}
