//! A TCP proxy that can be slow, cut connections, lose the answer to a COMMIT, or lead elsewhere.

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
const PIECE: usize = 64 * 1024;

/// What the proxy does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Pass,
    /// It waits before each piece, in both directions.
    Slow(Duration),
    /// Nothing passes, and nobody is told.
    Frozen,
    /// It passes the next COMMIT on and then cuts the connection: it has happened, and the client does not know.
    CommitUnanswered,
    /// It cuts the connection instead of passing the next COMMIT on: it has not happened, and the client does not
    /// know.
    CommitLost,
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

    /// Waits until it is back to passing everything, as after the one COMMIT that a mode is about.
    pub async fn passes(&self) -> anyhow::Result<()> {
        let mut mode = self.state.mode.subscribe();
        let passes = tokio::time::timeout(Duration::from_secs(60), mode.wait_for(|mode| *mode == Mode::Pass));
        passes.await.context("no COMMIT came through the proxy within 60 s")??;
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
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            // Whichever direction ends ends both.
            let muted = AtomicBool::new(false);
            tokio::select! {
                () = ask(from_client, to_server, &state, &muted) => {}
                () = answer(from_server, to_client, &state, &muted) => {}
            }
        }));
    }
}

/// From the client to the component.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, muted: &AtomicBool) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let piece = &piece[..length];
        state.hold_up().await;
        // A COMMIT is a message of its own, short enough to come in one piece.
        let commits = piece.windows(COMMIT.len()).any(|window| window == COMMIT);
        match commits.then(|| state.take_commit()).flatten() {
            Some(Mode::CommitLost) => return,
            Some(_) => muted.store(true, Ordering::SeqCst),
            None => {}
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

/// From the component to the client. An answer that the client must not get ends the connection.
async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, muted: &AtomicBool) {
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

    /// The mode that is about this COMMIT, if it is about one; the next one passes.
    fn take_commit(&self) -> Option<Mode> {
        let mut taken = None;
        self.mode.send_if_modified(|mode| {
            let about = matches!(mode, Mode::CommitUnanswered | Mode::CommitLost);
            if about {
                taken = Some(std::mem::replace(mode, Mode::Pass));
            }
            about
        });
        taken
    }
}
