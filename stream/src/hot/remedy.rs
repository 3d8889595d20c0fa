//! What can be done about a hot partition. Pure.

use serde::Serialize;
use tidemill_common::progress::PartitionLag;

use super::mix::{Explanation, Part};

/// A type or user is to be limited to this much of what the view takes beside the rest, so that it catches up.
const ROOM: f64 = 0.5;
/// What is below this share, or nearly as frequent in other partitions, is not the reason.
const REASON: f64 = 0.2;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// What it does.
    pub what: String,
    /// The command, where it is one.
    pub command: Option<String>,
}

/// What may help, the mildest first.
pub fn remedies(project: &str, lag: &PartitionLag, explanation: &Explanation) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    if let Some(key) = explanation.keys.first() {
        let what = format!(
            "have the producer stop sending the event {} again and again: its copies are {:.0} % of the partition",
            key.name.escape_debug(),
            key.share * 100.0
        );
        remedies.push(Remedy { what, command: None });
    }
    for (option, parts) in [("user", &explanation.users), ("type", &explanation.types)] {
        let Some(part) = parts.first().filter(|part| is_a_reason(part)) else { continue };
        let rate = bearable(lag, part.share);
        let what = format!("limit this {option} at all gateways; events over the limit are answered 429");
        let name = quoted(&part.name);
        let command =
            name.map(|name| format!("tidemill limits set --project {project} --{option}={name} --rate {rate}"));
        remedies.push(Remedy { what, command });
    }
    if let Some(part) = explanation.types.first().filter(|part| is_a_reason(part)) {
        let what = "or give this type a topic of its own, where it holds up no others".to_owned();
        let command = quoted(&part.name)
            .map(|name| format!("tidemill routes create {project} --name {} --type={name}", route_name(&part.name)));
        remedies.push(Remedy { what, command });
    }
    if remedies.is_empty() {
        let what = format!(
            "nothing stands out, so it may be too much for one: spread all events over a multiple of the partitions, with \
             'tidemill projects grow {project} --partitions N'"
        );
        remedies.push(Remedy { what, command: None });
    }
    remedies
}

fn is_a_reason(part: &Part) -> bool {
    part.share >= REASON && part.share >= 2.0 * part.elsewhere.unwrap_or_default()
}

/// Events a second that leave the view room to catch up with what it takes now.
fn bearable(lag: &PartitionLag, share: f64) -> u64 {
    let (taken, arriving) = (lag.rate.unwrap_or_default(), lag.arriving.unwrap_or_default());
    let others = arriving * (1.0 - share);
    ((taken - others) * ROOM).max(1.0) as u64
}

/// A name for a type's route.
fn route_name(event_type: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    event_type.chars().take(40).map(plain).collect()
}

/// A name as shells take it. Strangers choose names: none with control characters is put before anybody.
fn quoted(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@/+".contains(c);
    match name {
        _ if name.chars().any(char::is_control) => None,
        _ if !name.is_empty() && name.chars().all(plain) => Some(name.to_owned()),
        _ => Some(format!("'{}'", name.replace('\'', r"'\''"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(rate: f64, arriving: f64) -> PartitionLag {
        PartitionLag {
            view: "stream",
            topic: "events.shop".into(),
            partition: 1,
            offset: 0,
            end: 50_000,
            lag: 50_000,
            seconds: None,
            rate: Some(rate),
            arriving: Some(arriving),
            leader_changes: None,
        }
    }

    fn part(name: &str, share: f64, elsewhere: f64) -> Part {
        Part { name: name.to_owned(), share, elsewhere: Some(elsewhere) }
    }

    #[test]
    fn the_one_that_stands_out_is_limited_to_what_can_be_taken() {
        let explanation = Explanation {
            keys: Vec::new(),
            types: vec![part("view", 0.9, 0.8)],
            users: vec![part("bot", 0.8, 0.0), part("ann", 0.1, 0.1)],
        };
        let remedies = remedies("shop", &lag(300.0, 1_000.0), &explanation);
        let commands: Vec<_> = remedies.iter().filter_map(|remedy| remedy.command.as_deref()).collect();
        assert_eq!(commands, ["tidemill limits set --project shop --user=bot --rate 50"], "all view that much");
    }

    #[test]
    fn a_type_that_stands_out_may_get_a_topic_of_its_own() {
        let explanation = Explanation { types: vec![part("Page View", 0.9, 0.1)], ..Explanation::default() };
        let remedies = remedies("shop", &lag(300.0, 1_000.0), &explanation);
        let command = remedies[1].command.as_deref();
        assert_eq!(command, Some("tidemill routes create shop --name page-view --type='Page View'"));
    }

    #[test]
    fn where_nothing_stands_out_more_partitions_help() {
        let explanation = Explanation { types: vec![part("view", 0.9, 0.8)], ..Explanation::default() };
        let remedies = remedies("shop", &lag(300.0, 1_000.0), &explanation);
        assert!(remedies.len() == 1 && remedies[0].what.contains("tidemill projects grow shop --partitions N"));
    }

    #[test]
    fn no_limit_is_below_one() {
        assert_eq!(bearable(&lag(0.0, 1_000.0), 0.5), 1);
        assert_eq!(bearable(&lag(1_000.0, 1_000.0), 1.0), 500);
    }

    #[test]
    fn names_cannot_become_commands() {
        assert_eq!(quoted("u-1@x.org").as_deref(), Some("u-1@x.org"));
        assert_eq!(quoted("a; rm -rf $HOME").as_deref(), Some("'a; rm -rf $HOME'"));
        assert_eq!(quoted("it's").as_deref(), Some(r"'it'\''s'"));
        assert_eq!(quoted(""), Some("''".to_owned()));
        assert_eq!(quoted("a\nb"), None);
        assert_eq!(quoted("\u{1b}[2J"), None);
    }

    #[test]
    fn copies_are_the_producers_business() {
        let keys = vec![part("e-1", 0.6, 0.0)];
        let remedies = remedies("shop", &lag(1.0, 1.0), &Explanation { keys, ..Explanation::default() });
        assert!(remedies.len() == 1 && remedies[0].what.contains("e-1") && remedies[0].command.is_none());
    }
}
