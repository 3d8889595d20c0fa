//! What was sent and answered, against the log.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;
use tidemill_common::event::Event;

use crate::journal::{Answer, Entry};
use crate::log::Line;

/// What was answered must be true, and the log holds nothing that nobody sent.
pub fn journal(entries: &[Entry], log: &[Line]) -> Vec<String> {
    let by_position: HashMap<(i32, i64), &Line> = log.iter().map(|line| (line.at, line)).collect();
    let in_log: BTreeSet<&str> = log.iter().map(name).collect();
    let sent: HashMap<&str, Option<&Event>> =
        entries.iter().map(|entry| (&*entry.event_id, entry.event.as_ref())).collect();
    let mut differences = Vec::new();
    for entry in entries {
        let id = &entry.event_id;
        match (entry.answer, entry.position) {
            (Answer::Accepted | Answer::Duplicate, Some(at)) => match by_position.get(&at).map(|line| name(line)) {
                Some(found) if found == id => {}
                found => differences.push(format!("journal {id}: answered {at:?}, where the log has {found:?}")),
            },
            (Answer::Accepted | Answer::Duplicate, None) if !in_log.contains(&**id) => {
                differences.push(format!("journal {id}: answered {:?}, but it is not in the log", entry.answer));
            }
            (Answer::Invalid, _) => differences.push(format!("journal {id}: a good event was called invalid")),
            _ => {}
        }
    }
    for line in log {
        match (sent.get(name(line)), &line.content) {
            (None, _) => differences.push(format!("log {:?}: nobody sent {}", line.at, name(line))),
            (Some(Some(event)), Ok(found)) if !same_event(event, found) => {
                differences.push(format!("log {:?}: sent {event:?}, found {found:?}", line.at));
            }
            (Some(Some(_)), Err(reason)) => differences.push(format!("log {:?}: an event became {reason}", line.at)),
            _ => {}
        }
    }
    differences
}

/// A record's name in the journal.
fn name(line: &Line) -> &str {
    line.content.as_ref().map_or(&line.key, |event| &event.event_id)
}

/// The producer's own fields; the gateway adds others.
fn same_event(a: &Event, b: &Event) -> bool {
    let json = |event: &Event| -> Value {
        event.properties.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let fields = |e: &Event| (e.event_type.clone(), e.timestamp, e.user_id.clone(), e.session_id.clone());
    fields(a) == fields(b) && json(a) == json(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Via;
    use tidemill_testkit::event;

    const NOW: i64 = 1_800_000_000;

    fn entry(id: &str, answer: Answer, position: Option<(i32, i64)>) -> Entry {
        let event = Some(event(id, "click", NOW));
        Entry { event_id: id.into(), via: Via::Native, answer, position, event }
    }

    fn line(id: &str, offset: i64) -> Line {
        let content = Ok(event(id, "click", NOW));
        Line { at: (0, offset), append_ms: NOW * 1_000, key: id.into(), origin: None, redriven: false, content }
    }

    #[test]
    fn answers_are_held_against_the_log() {
        let log = [line("a", 0), line("b", 1)];
        let sent = |answer, id, at| journal(&[entry("a", Answer::Unknown, None), entry(id, answer, at)], &log).len();
        assert_eq!(sent(Answer::Accepted, "b", Some((0, 1))), 0);
        assert_eq!(sent(Answer::Accepted, "b", Some((0, 0))), 1, "something else stands there");
        assert_eq!(sent(Answer::Duplicate, "b", None), 0);
        assert_eq!(sent(Answer::Unknown, "b", None), 0);
        assert_eq!(sent(Answer::Accepted, "c", None), 2, "c is not in the log, and nobody sent b");
    }

    #[test]
    fn a_changed_event_is_a_difference() {
        let mut log = [line("a", 0)];
        log[0].content.as_mut().expect("an event").user_id = Some("u".into());
        assert_eq!(journal(&[entry("a", Answer::Accepted, Some((0, 0)))], &log).len(), 1);
    }
}
