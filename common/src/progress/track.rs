//! A partition's past, as far as it was looked at: how old the first record is that a view has not reached, and how
//! fast log and view move on. Pure: times are handed in.

use std::collections::VecDeque;

/// Most looks that are kept; older ones are thinned out.
const MOST: usize = 64;
/// Rates are those of at least this long, where so long was looked, in milliseconds.
const RATE_MS: i64 = 60_000;
/// What the log says of an append time is asked for again after this long, in milliseconds.
const ASK_MS: i64 = 30_000;

/// One look: when (milliseconds since 1970), where the view stood, and where the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    at: i64,
    next: i64,
    end: i64,
}

/// The looks at one partition.
#[derive(Debug, Default)]
pub struct Track {
    /// In the order of time; ends do not fall.
    looks: VecDeque<Look>,
    /// What the log says: an offset, and when its record was appended. It stands in for looks that were never made.
    known: Option<(i64, i64)>,
    asked: Option<i64>,
}

impl Track {
    /// Notes a look.
    pub fn look(&mut self, at: i64, next: i64, end: i64) {
        if self.looks.back().is_some_and(|last| end < last.end) {
            *self = Self::default(); // a log that is shorter than it was is another one
        }
        self.looks.push_back(Look { at, next, end });
        if self.looks.len() > MOST {
            let mut index = 0;
            self.looks.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// The offset whose append time has to be read from the log, since it was appended before the first look. Asking
    /// for it counts as done.
    pub fn question(&mut self) -> Option<i64> {
        let (first, last) = (self.looks.front()?, self.looks.back()?);
        let older = last.next < last.end && last.next < first.end;
        let lately = self.asked.is_some_and(|asked| last.at - asked < ASK_MS);
        if !older || lately {
            return None;
        }
        self.asked = Some(last.at);
        Some(last.next)
    }

    /// The record at an offset was appended then.
    pub fn appended(&mut self, offset: i64, at: i64) {
        self.known = Some((offset, at));
    }

    /// For how many milliseconds the first record has stood in the log that the view has not reached; 0 when there is
    /// none, and nothing when only the log knows.
    pub fn behind_ms(&self) -> Option<i64> {
        let now = self.looks.back()?;
        if now.next >= now.end {
            return Some(0);
        }
        let (from, began) = self.before(now.next)?;
        let after = self.looks[self.looks.partition_point(|look| look.end <= now.next)];
        let share = (now.next - from) as f64 / (after.end - from).max(1) as f64;
        let appended = began + (share * (after.at - began) as f64) as i64;
        Some((now.at - appended).max(0))
    }

    /// Where the view stands and the log ends.
    pub fn stands(&self) -> Option<(i64, i64)> {
        self.looks.back().map(|now| (now.next, now.end))
    }

    /// Records a second that the view takes, and that come.
    pub fn rates(&self) -> Option<(f64, f64)> {
        let now = self.looks.back()?;
        let old = self.looks.partition_point(|look| look.at <= now.at - RATE_MS).saturating_sub(1);
        let then = self.looks.get(old).filter(|then| then.at < now.at)?;
        let per_second = |records: i64| records.max(0) as f64 * 1_000.0 / (now.at - then.at) as f64;
        Some((per_second(now.next - then.next), per_second(now.end - then.end)))
    }

    /// The nearest offset at or before this one, and a time at or before which it was the log's end.
    fn before(&self, offset: i64) -> Option<(i64, i64)> {
        let looked = self.looks.partition_point(|look| look.end <= offset).checked_sub(1);
        let looked = looked.map(|index| (self.looks[index].end, self.looks[index].at));
        looked.max(self.known.filter(|(known, _)| *known <= offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track(looks: &[(i64, i64, i64)]) -> Track {
        let mut track = Track::default();
        looks.iter().for_each(|&(at, next, end)| track.look(at, next, end));
        track
    }

    #[test]
    fn a_record_is_as_old_as_the_log_was_short() {
        assert_eq!(track(&[]).behind_ms(), None);
        assert_eq!(track(&[(0, 9, 9)]).behind_ms(), Some(0));
        assert_eq!(track(&[(0, 9, 9), (5_000, 9, 9), (10_000, 9, 12)]).behind_ms(), Some(5_000), "idle until then");
        // It came in the middle between two looks, as far as anybody knows.
        assert_eq!(track(&[(0, 0, 0), (10_000, 0, 100), (20_000, 50, 100)]).behind_ms(), Some(15_000));
        assert_eq!(track(&[(0, 5, 9)]).behind_ms(), None, "it was there before anybody looked");
    }

    #[test]
    fn the_log_is_asked_for_what_is_older_than_the_first_look() {
        let mut slow = track(&[(100_000, 5, 9)]);
        assert_eq!(slow.question(), Some(5));
        slow.appended(5, 40_000);
        assert_eq!(slow.behind_ms(), Some(60_000));
        slow.look(110_000, 6, 9);
        assert_eq!(slow.question(), None, "it was asked lately");
        assert!(slow.behind_ms().is_some_and(|ms| (10_000..70_000).contains(&ms)), "{slow:?}");
        slow.look(140_000, 6, 9);
        assert_eq!(slow.question(), Some(6));
        slow.look(150_000, 9, 9);
        assert_eq!((slow.question(), slow.behind_ms()), (None, Some(0)));
    }

    #[test]
    fn rates_are_of_the_last_minute() {
        assert_eq!(track(&[(0, 0, 0)]).rates(), None);
        assert_eq!(track(&[(0, 0, 0), (2_000, 10, 40)]).rates(), Some((5.0, 20.0)));
        let steady: Vec<_> = (0..200).map(|i| (i * 5_000, i * 50, i * 100)).collect();
        assert_eq!(track(&steady).rates(), Some((10.0, 20.0)));
        assert_eq!(track(&[(0, 50, 50), (1_000, 20, 50)]).rates(), Some((0.0, 0.0)), "it went back");
    }

    #[test]
    fn what_is_kept_is_bounded_and_reaches_back() {
        // The view stands still for an hour, far behind.
        let looks: Vec<_> = (0..720).map(|i| (i * 5_000, 10, 10 + i)).collect();
        let track = track(&looks);
        assert!(track.looks.len() <= MOST, "{}", track.looks.len());
        assert_eq!(track.behind_ms(), Some(719 * 5_000));
    }

    #[test]
    fn a_shorter_log_is_another_one() {
        assert_eq!(track(&[(0, 90, 100), (5_000, 3, 4)]).rates(), None);
    }
}
