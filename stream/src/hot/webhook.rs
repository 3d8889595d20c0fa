//! Tells a URL of what was found, beside the work: it is given some tries and then left alone.

use std::time::Duration;

use metrics::counter;
use reqwest::redirect::Policy;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between the tries.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];
/// Messages that wait; more are dropped.
const WAITING: usize = 100;

/// Where messages are left. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(mpsc::Sender<Value>);

impl Webhook {
    /// Posts messages to `url` until shutdown.
    pub fn start(url: &str, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let url: reqwest::Url = url.parse()?;
        // Whoever answers with another address is not who was named.
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build()?;
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let work = async move {
            while let Some(message) = receiver.recv().await {
                post(&client, &url, &message).await;
            }
        };
        tokio::spawn(shutdown.run_until_cancelled_owned(work));
        Ok(Self(sender))
    }

    /// Leaves a message; waits for nothing.
    pub fn tell(&self, message: Value) {
        if self.0.try_send(message).is_err() {
            counter!("tidemill_webhook_failures_total").increment(1);
            tracing::warn!("too many messages wait for the webhook; one is dropped");
        }
    }
}

/// Its address may hold a secret, so errors are told without it.
async fn post(client: &reqwest::Client, url: &reqwest::Url, message: &Value) {
    let mut pauses = PAUSES.into_iter();
    loop {
        let problem = match client.post(url.clone()).json(message).send().await {
            Ok(answer) if answer.status().is_success() => return,
            Ok(answer) => format!("it answered {}", answer.status()),
            Err(error) => error.without_url().to_string(),
        };
        counter!("tidemill_webhook_failures_total").increment(1);
        let Some(pause) = pauses.next() else {
            tracing::error!(problem, "the webhook does not take a message; it is given up");
            return;
        };
        tracing::warn!(problem, ?pause, "the webhook does not take a message; it is sent again");
        tokio::time::sleep(pause).await;
    }
}
