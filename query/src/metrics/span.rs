//! Which windows lie in a time, and which together make it up.

use std::ops::Range;

use chrono::{DateTime, Utc};
use tidemill_stream::window::Granularity;

/// Windows that one request may ask for.
pub const MAX_WINDOWS: i64 = 10_000;
/// Windows that are given when no start is named.
const DEFAULT_WINDOWS: i64 = 60;

/// Windows of one length that start in a span of seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub granularity: Granularity,
    pub span: Range<i64>,
}

/// The span of all windows that overlap the time from `start` up to `end`. An error says how many it would be.
pub fn windows(granularity: Granularity, start: Option<DateTime<Utc>>, end: DateTime<Utc>) -> Result<Range<i64>, i64> {
    let length = granularity.seconds();
    // Window starts are whole seconds: one lies before `end` if and only if it lies before its next second.
    let end_s = end.timestamp() + i64::from(end.timestamp_subsec_nanos() > 0);
    let first = match start {
        Some(start) => granularity.window(start.timestamp_micros()),
        None => granularity.window(end.timestamp_micros()) - (DEFAULT_WINDOWS - 1) * length,
    };
    let windows = (end_s - first + length - 1) / length;
    if windows > MAX_WINDOWS { Err(windows) } else { Ok(first..end_s) }
}

/// The time from `start` up to `end`, to whole windows of the finest length that is kept; without a start the
/// last day.
pub fn whole(kept: &[Granularity], start: Option<DateTime<Utc>>, end: DateTime<Utc>) -> Result<Range<i64>, i64> {
    let finest = kept.iter().min().copied().unwrap_or(Granularity::Day);
    let start = start.unwrap_or(end - chrono::TimeDelta::days(1));
    windows(Granularity::Day, Some(start), end)?;
    let last = finest.window(end.timestamp_micros() - 1) + finest.seconds();
    Ok(finest.window(start.timestamp_micros())..last)
}

/// A span made up of as few windows of the lengths kept as possible: days, with hours and minutes at the ends.
pub fn cover(span: Range<i64>, kept: &[Granularity]) -> Vec<Piece> {
    let mut kept = kept.to_vec();
    kept.sort_by(|a, b| b.cmp(a));
    let mut pieces = Vec::new();
    fill(span, &kept, &mut pieces);
    pieces
}

fn fill(span: Range<i64>, kept: &[Granularity], pieces: &mut Vec<Piece>) {
    let Some((&granularity, finer)) = kept.split_first() else { return };
    if span.is_empty() {
        return;
    }
    let length = granularity.seconds();
    let inner = (span.start + length - 1).div_euclid(length) * length..span.end.div_euclid(length) * length;
    if inner.is_empty() {
        return fill(span, finer, pieces);
    }
    fill(span.start..inner.start, finer, pieces);
    pieces.push(Piece { granularity, span: inner.clone() });
    fill(inner.end..span.end, finer, pieces);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    fn at(text: &str) -> i64 {
        time(text).timestamp()
    }

    #[test]
    fn windows_that_overlap_the_time_are_given() {
        let span = windows(Granularity::Hour, Some(time("2026-01-01T10:59:59Z")), time("2026-01-01T12:00:00Z"));
        assert_eq!(span, Ok(at("2026-01-01T10:00:00Z")..at("2026-01-01T12:00:00Z")));
    }

    #[test]
    fn at_most_ten_thousand_windows_are_given() {
        let days = |end: &str| windows(Granularity::Day, Some(time("2000-01-01T00:00:00Z")), time(end));
        assert!(days("2027-05-19T00:00:00Z").is_ok());
        assert_eq!(days("2027-05-19T00:00:01Z"), Err(10_001));
    }

    #[test]
    fn the_whole_time_is_rounded_to_the_finest_windows() {
        let whole = |kept: &[Granularity]| {
            whole(kept, Some(time("2026-01-01T10:59:59Z")), time("2026-01-02T12:00:00.5Z")).expect("not too long")
        };
        assert_eq!(whole(&Granularity::ALL), at("2026-01-01T10:59:00Z")..at("2026-01-02T12:01:00Z"));
        assert_eq!(whole(&[Granularity::Day]), at("2026-01-01T00:00:00Z")..at("2026-01-03T00:00:00Z"));
    }

    #[test]
    fn pieces_make_up_the_span_and_are_few() {
        let span = at("2026-01-01T10:58:00Z")..at("2026-01-04T01:02:00Z");
        let pieces = cover(span.clone(), &Granularity::ALL);
        let mut next = span.start;
        for piece in &pieces {
            assert_eq!(piece.span.start, next, "without gap or overlap");
            assert_eq!(piece.span.start % piece.granularity.seconds(), 0);
            next = piece.span.end;
        }
        assert_eq!(next, span.end);
        let windows: i64 = pieces.iter().map(|p| (p.span.end - p.span.start) / p.granularity.seconds()).sum();
        assert_eq!(windows, 2 + 13 + 2 + 1 + 2, "minutes, hours, days, an hour, minutes");
        assert_eq!(cover(0..120, &Granularity::ALL).len(), 1);
        assert_eq!(cover(5..5, &Granularity::ALL), []);
    }
}
