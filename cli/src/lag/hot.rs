//! `tidemill lag hot`

use serde::Serialize;
use serde_json::Value;
use tidemill_common::config::Connections;
use tidemill_stream::hot::findings::{Found, found};

use crate::output::Output;
use crate::store::{self, explain};

const FIELDS: [&str; 8] = ["topic", "partition", "since", "ended_at", "lag", "average", "why", "remedies"];

/// A finding as people read it.
#[derive(Serialize)]
struct Told {
    topic: String,
    partition: i32,
    since: String,
    ended_at: Option<String>,
    lag: i64,
    average: i64,
    why: Vec<String>,
    remedies: Vec<String>,
}

pub async fn run(all: bool, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let findings = found(&mut db, all).await.map_err(explain)?;
    match output {
        Output::Json => output.things(&findings, &[]),
        Output::Table => output.things(&findings.into_iter().map(told).collect::<Vec<_>>(), &FIELDS),
    }
}

fn told(found: Found) -> Told {
    let time = |time: chrono::DateTime<chrono::Utc>| time.format("%F %T UTC").to_string();
    Told {
        why: [("keys", "key"), ("types", "type"), ("users", "user")]
            .into_iter()
            .flat_map(|(member, word)| array(&found.explanation["why"][member]).map(move |part| part_of(word, part)))
            .collect(),
        remedies: array(&found.explanation["remedies"]).flat_map(remedy).collect(),
        topic: found.topic,
        partition: found.partition,
        since: time(found.since),
        ended_at: found.ended_at.map(time),
        lag: found.lag,
        average: found.average.round() as i64,
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Strangers choose names: whatever would do something to a terminal is escaped.
fn part_of(word: &str, part: &Value) -> String {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let name = part["name"].as_str().unwrap_or_default().escape_debug();
    let here = percent(part["share"].as_f64().unwrap_or_default());
    match part["elsewhere"].as_f64() {
        Some(share) => format!("{word} {name}: {here} ({} elsewhere)", percent(share)),
        None => format!("{word} {name}: {here}"),
    }
}

fn remedy(remedy: &Value) -> Vec<String> {
    let lines = [&remedy["what"], &remedy["command"]].into_iter().filter_map(Value::as_str);
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_lines_without_control_characters() {
        let part = json!({"name": "b\u{1b}[2Jot", "share": 0.814, "elsewhere": 0.02});
        assert_eq!(part_of("user", &part), "user b\\u{1b}[2Jot: 81 % (2 % elsewhere)");
        assert_eq!(part_of("key", &json!({"name": "e", "share": 1.0, "elsewhere": null})), "key e: 100 %");
    }
}
