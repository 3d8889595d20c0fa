//! `tidemill ingest|stream|archiver|query`: one service in the foreground, until a signal.

use anyhow::Context;
use serde::Deserialize;
use tidemill_common::config::Settings;
use tidemill_common::failpoint;
use tidemill_common::http::Listener;
use tidemill_common::telemetry::{self, start_logging};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::memory;
use crate::signals::Signals;

/// What the services' help says of signals and settings.
pub const HELP: &str = "\
Runs in the foreground until SIGTERM or SIGINT, then finishes what it has begun; a second signal ends it at once.
PORT (or TIDEMILL_<SERVICE>__PORT) moves it, 0 takes any free port; TIDEMILL_LISTEN__HOST binds one address.";

/// What this binary can run.
#[derive(Debug, Clone, Copy)]
pub enum Service {
    Ingest,
    Stream,
    Archiver,
    Query,
}

/// The section of all services: which address they bind.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Listen {
    host: String,
}

impl Default for Listen {
    fn default() -> Self {
        Self { host: "0.0.0.0".to_owned() }
    }
}

/// The one setting of a service's own section that its caller needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    port: Option<u16>,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Stream => "stream",
            Self::Archiver => "archiver",
            Self::Query => "query",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Ingest => 4001,
            Self::Query => 4002,
            Self::Stream => 4004,
            Self::Archiver => 4005,
        }
    }
}

/// Runs a service until it is told to stop.
pub async fn run(service: Service) -> anyhow::Result<()> {
    let settings = Settings::load(service.name())?;
    start_logging(&settings.log_level());
    telemetry::metrics(); // before anything looks up its meters
    failpoint::arm()?;
    let listener = listen(service, &settings).await?;
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    start(service, &settings, listener, shutdown).await?;
    tracing::info!(service = service.name(), "stopped");
    Ok(())
}

async fn start(
    service: Service,
    settings: &Settings,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (section, connections) = (service.name(), settings.connections());
    match service {
        Service::Ingest => tidemill_ingest::run(settings.section(section)?, connections, listener, shutdown).await,
        Service::Stream => {
            memory::keep();
            tidemill_stream::run(settings.section(section)?, connections, listener, shutdown).await
        }
        Service::Archiver => tidemill_archiver::run(settings.section(section)?, connections, listener, shutdown).await,
        Service::Query => tidemill_query::run(settings.section(section)?, connections, listener, shutdown).await,
    }
}

async fn listen(service: Service, settings: &Settings) -> anyhow::Result<Listener> {
    let name = service.name();
    let Listen { host } = settings.section("listen")?;
    let port = settings.section::<Port>(name)?.port.unwrap_or(service.default_port());
    let socket = TcpListener::bind((host.as_str(), port)).await.with_context(|| {
        let upper = name.to_uppercase();
        format!("{name} cannot listen on {host}:{port}; set TIDEMILL_{upper}__PORT to a free port, 0 for any")
    })?;
    let listener = Listener::new(socket, settings.section("http")?)?;
    tracing::info!(service = name, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// The first signal asks the service to finish, the second ends the process.
fn stop_on_signals(shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(signal, "stopping; a second signal ends at once");
        shutdown.cancel();
        signals.next().await;
        tracing::warn!("ended before everything was finished");
        std::process::exit(1);
    });
    Ok(())
}
