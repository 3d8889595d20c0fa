//! Events one per line, found in pieces of a body as they come.

use std::ops::Range;

use tidemill_common::event::Invalid;

use crate::parse::{self, Parsed, nameless};

/// Longest line, in bytes: more than any event may have.
pub const MAX_LINE: usize = 1024 * 1024;
/// A group is full with so many events,
const GROUP_EVENTS: usize = 1_000;
/// or so many bytes.
const GROUP_BYTES: usize = 1024 * 1024;

/// Lines that have come but are not taken yet. What it holds is bounded: one group and one line.
#[derive(Default)]
pub struct Lines {
    text: Vec<u8>,
    complete: Vec<Line>,
    /// Where the line begins whose end has not come.
    start: usize,
    /// That line is too long; it is not kept.
    skipping: bool,
}

enum Line {
    Text(Range<usize>),
    TooLong,
}

/// Lines to be admitted together.
pub struct Group {
    text: Vec<u8>,
    lines: Vec<Line>,
}

impl Lines {
    /// Takes bytes in, up to where the group is full; says how many.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_full() {
            let rest = &bytes[taken..];
            match memchr::memchr(b'\n', rest) {
                Some(end) => {
                    self.extend(&rest[..end]);
                    self.end_line();
                    taken += end + 1;
                }
                None => {
                    self.extend(rest);
                    taken += rest.len();
                }
            }
        }
        taken
    }

    fn extend(&mut self, bytes: &[u8]) {
        if self.text.len() - self.start + bytes.len() > MAX_LINE {
            self.skipping = true;
            self.text.truncate(self.start);
        }
        if !self.skipping {
            self.text.extend_from_slice(bytes);
        }
    }

    /// The line ends here. Empty ones do not count.
    pub fn end_line(&mut self) {
        let line = self.start..self.text.len();
        if std::mem::take(&mut self.skipping) {
            self.complete.push(Line::TooLong);
        } else if self.text[line.clone()].trim_ascii().is_empty() {
            self.text.truncate(self.start);
        } else {
            self.complete.push(Line::Text(line));
        }
        self.start = self.text.len();
    }

    /// Complete lines.
    pub fn len(&self) -> usize {
        self.complete.len()
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Whether the complete lines are to be taken before more come.
    pub fn is_full(&self) -> bool {
        self.complete.len() >= GROUP_EVENTS || self.start >= GROUP_BYTES
    }

    /// Takes the complete lines.
    pub fn take(&mut self) -> Group {
        let unfinished = self.text.split_off(self.start);
        self.start = 0;
        Group { text: std::mem::replace(&mut self.text, unfinished), lines: std::mem::take(&mut self.complete) }
    }
}

impl Group {
    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The event of each line; a bad line costs only its own.
    pub fn events(&self) -> Vec<Parsed<'_>> {
        let event = |line: &Line| match line {
            Line::Text(range) => event(&self.text[range.clone()]),
            Line::TooLong => refuse(format!("the line has more than {MAX_LINE} bytes")),
        };
        self.lines.iter().map(event).collect()
    }
}

fn event(line: &[u8]) -> Parsed<'_> {
    match std::str::from_utf8(line) {
        Ok(text) => parse::one(text).unwrap_or_else(|error| refuse(format!("the line is not JSON: {error}"))),
        Err(error) => refuse(format!("the line is not UTF-8: {error}")),
    }
}

fn refuse<'a>(problem: String) -> Parsed<'a> {
    Err(nameless(Invalid::new("event", problem)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of a body that comes in pieces: per line its eventId, or nothing where it is refused.
    fn read(body: &[u8], piece: usize) -> Vec<Option<String>> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut take = |lines: &mut Lines| {
            let group = lines.take();
            found.extend(group.events().into_iter().map(|event| event.ok().map(|event| event.event_id.into_owned())));
        };
        for mut chunk in body.chunks(piece) {
            while !chunk.is_empty() {
                chunk = &chunk[lines.push(chunk)..];
                assert!(lines.bytes() <= GROUP_BYTES + 2 * MAX_LINE, "bounded");
                if lines.is_full() {
                    take(&mut lines);
                }
            }
        }
        lines.end_line();
        take(&mut lines);
        found
    }

    #[test]
    fn lines_are_events() {
        let body = b"{\"eventId\":\"a\",\"eventType\":\"t\"}\r\n\n  \n{\"eventId\":\n[]\n\xff\n\
                     {\"eventId\":\"b\",\"eventType\":\"t\"}";
        for piece in [1, 2, 7, body.len()] {
            assert_eq!(read(body, piece), [Some("a".into()), None, None, None, Some("b".into())], "{piece}");
        }
        assert!(read(b"\n \n", 1).is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_costs_only_itself() {
        let good = |id: &str| format!("{{\"eventId\":\"{id}\",\"eventType\":\"t\"}}");
        let padded = |id: &str, bytes: usize| good(id) + &" ".repeat(bytes - good(id).len());
        let body = [good("a"), padded("b", MAX_LINE), padded("c", MAX_LINE + 1), padded("d", 5 * MAX_LINE), good("e")]
            .join("\n");
        for piece in [65_536, MAX_LINE, body.len()] {
            let found = read(body.as_bytes(), piece);
            assert_eq!(found, [Some("a".into()), Some("b".into()), None, None, Some("e".into())], "{piece}");
        }
    }

    #[test]
    fn groups_are_bounded_in_events_and_bytes() {
        let mut lines = Lines::default();
        let many = b"{}\n".repeat(GROUP_EVENTS + 5);
        assert_eq!(lines.push(&many), 3 * GROUP_EVENTS);
        assert_eq!((lines.take().events().len(), lines.push(&many[3 * GROUP_EVENTS..])), (GROUP_EVENTS, 15));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(lines in prop::collection::vec("[ a-z]{0,9}|\\{\"eventId\":\"[a-z]\",\"eventType\":\"t\"\\}", 0..9), piece in 1_usize..40) {
            let body = lines.join("\n");
            let whole: Vec<_> = body.split('\n').filter(|line| !line.trim().is_empty())
                .map(|line| parse::one(line).ok().and_then(Result::ok).map(|event| event.event_id.into_owned()))
                .collect();
            prop_assert_eq!(read(body.as_bytes(), piece), whole);
        }
    }
}
