//! One dead letter, for people to look at.

use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value};
use tidemill_common::codec::Decoder;
use tidemill_common::event::Event;
use tidemill_common::kafka::Record;
use tidemill_common::registry::Registry;
use tidemill_stream::dlq::{self, DeadLetter, Filter, Try, remedy};

use super::desk::{Bar, Desk};
use crate::output::Output;
use crate::store::explain;

const FIELDS: [&str; 18] = [
    "project",
    "partition",
    "offset",
    "append_time",
    "state",
    "stage",
    "reason",
    "detail",
    "remedy",
    "attempts",
    "created_at",
    "refused_at",
    "tries",
    "why",
    "found_at",
    "headers",
    "key",
    "value",
];
/// So many bytes of what cannot be decoded are shown.
const EXCERPT: usize = 1_024;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    letter: DeadLetter,
    /// What can be done.
    remedy: &'static str,
    /// What became of it each time it was sent through again.
    tries: Vec<String>,
    #[serde(flatten)]
    record: Option<Content>,
}

/// What a record holds.
#[derive(Serialize)]
struct Content {
    /// `<topic>/<partition>:<offset>` of the copy that is shown.
    found_at: String,
    headers: Vec<String>,
    key: Option<String>,
    /// How many bytes the value has.
    bytes: usize,
    /// The event as JSON if it can be decoded; else text, or bytes in hex.
    value: Value,
}

pub async fn show(desk: &Desk, at: (i32, i64), registry: Registry, output: Output) -> anyhow::Result<()> {
    let filter = Filter { project: Some(desk.project().to_owned()), at: Some(at), ..Filter::default() };
    let letters = dlq::list(desk.pool(), &filter, 1).await.map_err(explain)?;
    let (partition, offset) = at;
    let letter = letters.into_iter().next().with_context(|| {
        format!("{} has no dead letter {partition}:{offset}; see 'tidemill dlq list --records'", desk.project())
    })?;
    let bar = Bar::new();
    let record = desk.redriver.show(&letter).await;
    bar.0.finish_and_clear();
    let record = match record? {
        Some(record) => Some(content(record, &Decoder::new(registry)).await),
        None => None,
    };
    let tries = dlq::tries(desk.pool(), &letter).await.map_err(explain)?.iter().map(line).collect();
    output.thing(&Shown { remedy: remedy(&letter.reason), letter, tries, record }, &FIELDS)
}

fn line(tried: &Try) -> String {
    let Try { partition, offset, outcome, created_at } = tried;
    format!("{partition}:{offset} {outcome} {}", created_at.format("%Y-%m-%dT%H:%M:%SZ"))
}

async fn content(record: Record, decoder: &Decoder) -> Content {
    let header = |(name, value): &(String, Vec<u8>)| format!("{name}: {}", excerpt(value));
    let value = match decoder.decode(record.value()).await {
        Ok(event) => json(event),
        Err(_) => Value::String(excerpt(record.value())),
    };
    Content {
        found_at: format!("{}/{}:{}", record.topic, record.partition, record.offset),
        headers: record.headers.iter().map(header).collect(),
        key: record.key().map(excerpt),
        bytes: record.value().len(),
        value,
    }
}

/// An event with its properties as the object that they are, and without what it lacks.
fn json(event: Event) -> Value {
    let mut fields = match serde_json::to_value(&event) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.retain(|_, value| !value.is_null());
    if let Some(properties) = event.properties.and_then(|properties| serde_json::from_str(&properties).ok()) {
        fields.insert("properties".to_owned(), properties);
    }
    Value::Object(fields)
}

/// The beginning of some bytes: as they are where they are printable text, else in hex.
fn excerpt(bytes: &[u8]) -> String {
    let printable = |text: &str| !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace());
    let more = if bytes.len() > EXCERPT { "…" } else { "" };
    match std::str::from_utf8(bytes).ok().filter(|text| printable(text)) {
        Some(text) => {
            let end = (0..=EXCERPT.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            format!("{}{more}", &text[..end])
        }
        None => {
            let hex: String = bytes.iter().take(EXCERPT).map(|byte| format!("{byte:02x}")).collect();
            format!("0x{hex}{more}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decoded_is_shown_as_text_or_in_hex() {
        assert_eq!(excerpt(b"{\"a\": 1}\n"), "{\"a\": 1}\n");
        assert_eq!(excerpt(b"\0\0\0\0\x07ab"), "0x00000000076162");
        assert_eq!(excerpt(&[0xff; 2]), "0xffff");
        assert_eq!(excerpt(&[0x1b, b'[']), "0x1b5b", "no terminal is sent commands");
        let long = excerpt("é".repeat(EXCERPT).as_bytes());
        assert_eq!(long.chars().count(), EXCERPT / 2 + 1);
        assert!(long.ends_with("é…"));
    }

    #[test]
    fn events_are_shown_with_their_properties() {
        let event = Event { properties: Some("{\"page\":\"/\"}".into()), ..Event::new("e", "view", 5) };
        let expected =
            serde_json::json!({"eventId": "e", "eventType": "view", "timestamp": 5, "properties": {"page": "/"}});
        assert_eq!(json(event), expected);
    }
}
