//! A way back for clients that have lost every broker.
//!
//! The last broker of a cluster answers, while it shuts down, with an empty list of brokers. librdkafka (2.10 to 2.13 at
//! least) then forgets all that it knew, `bootstrap.servers` included, and reaches nobody ever again, though Kafka is long
//! back (<https://github.com/confluentinc/librdkafka/issues/5301>). So somebody else looks: where a client reaches nobody
//! and a new one does, the first is told the addresses once more, which it takes for new brokers.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use super::KafkaConfig;

const EVERY: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(2);
/// There need not be one: any answer will do. Asking for all of them would be dear.
const ANY_TOPIC: &str = "events.ping";

/// Looks after a client, on a thread of its own, for as long as its holder lives.
pub fn look_after<H, C>(kafka: &KafkaConfig, holder: &Arc<H>, client: impl Fn(&H) -> &Client<C> + Send + 'static)
where
    H: Send + Sync + 'static,
    C: ClientContext,
{
    let (kafka, holder) = (kafka.clone(), Arc::downgrade(holder));
    let watch = move || {
        while let Some(looked) = look(&kafka, &holder, &client) {
            if let Err(error) = looked {
                tracing::debug!(%error, "kafka does not answer");
            }
            std::thread::sleep(EVERY);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("kafka-way-back".to_owned()).spawn(watch) {
        tracing::error!(%error, "nobody looks after a kafka client; should it lose all brokers, it has to be restarted");
    }
}

/// Whether the brokers answer this client.
pub(super) fn ping<C: ClientContext>(client: &Client<C>) -> KafkaResult<()> {
    client.fetch_metadata(Some(ANY_TOPIC), ANSWER).map(drop)
}

/// None: there is nothing to look after any more. An error: Kafka itself does not answer.
fn look<H, C: ClientContext>(
    kafka: &KafkaConfig,
    holder: &Weak<H>,
    client: impl Fn(&H) -> &Client<C>,
) -> Option<KafkaResult<()>> {
    if ping(client(&*holder.upgrade()?)).is_ok() {
        return Some(Ok(()));
    }
    let somebody = kafka.client().create::<BaseConsumer>().and_then(|somebody| ping(somebody.client()));
    if somebody.is_err() {
        return Some(somebody);
    }
    let holder = holder.upgrade()?;
    let client = client(&holder);
    // Kafka may have come back just now.
    if ping(client).is_err() {
        tracing::warn!("a kafka client reaches nobody while others do; it is told the brokers' addresses again");
        tell(client, &kafka.brokers);
    }
    Some(Ok(()))
}

fn tell<C: ClientContext>(client: &Client<C>, brokers: &str) {
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client lives as long as the reference to it, and the text, which is copied, as long as the call.
    unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}
