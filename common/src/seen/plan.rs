//! What becomes of a store's runs: which are merged, which are too old. Pure.

use std::ops::Range;

use super::format::About;

/// Runs of the time that is over are merged into one for each of so many parts of a window.
const PARTS: i64 = 8;
/// So many runs at least are worth a merge while their time is not over.
const WORTH: usize = 4;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sightings in the buffers of all of a process's stores; about 45 bytes of memory each. Above it the
    /// fuller ones are written to files.
    pub buffered: usize,
    /// Sightings in one file at most.
    pub run: u64,
    /// Append times may go back by this much without a file being read anew, in milliseconds.
    pub clocks_ms: i64,
    /// What is not in a file yet is written to one after this long, in milliseconds.
    pub flush_ms: u64,
    /// A store that is asked nothing for this long leaves memory until it is, in milliseconds.
    pub idle_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { buffered: 300_000, run: 16_000_000, clocks_ms: 3_600_000, flush_ms: 120_000, idle_ms: 900_000 }
    }
}

/// The next runs that are to become one. `now_ms` is the youngest append time.
pub fn next_merge(runs: &[&About], now_ms: i64, window_ms: i64, limits: &Limits) -> Option<Range<usize>> {
    let part = |ms: i64| ms.div_euclid((window_ms / PARTS).max(1));
    let over = |run: &About| part(run.newest_ms) < part(now_ms);
    let mut from = 0;
    for together in runs.chunk_by(|a, b| over(a) && part(a.newest_ms) == part(b.newest_ms)) {
        let runs = from..from + together.len();
        from = runs.end;
        if over(together[0]) && together.len() > 1 {
            let first = |skip: usize| within(&together[skip..], limits.run);
            if let Some((skip, count)) = (0..together.len()).map(|skip| (skip, first(skip))).find(|(_, n)| *n > 1) {
                return Some(runs.start + skip..runs.start + skip + count);
            }
        }
    }
    let current = runs.iter().rposition(|run| over(run)).map_or(0, |last| last + 1);
    let count = joining(&runs[current..], limits.run);
    (count >= WORTH).then(|| runs.len() - count..runs.len())
}

/// How many of the first runs fit into one.
fn within(runs: &[&About], most: u64) -> usize {
    let sums = runs.iter().scan(0, |sum, run| {
        *sum += run.len;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most).count()
}

/// How many of the last runs should become one: the next older one joins while it is no larger than all younger
/// ones together. So a sighting is written anew only when its run at least doubles, and few runs remain.
fn joining(runs: &[&About], most: u64) -> usize {
    let (mut sum, mut count) = (0, 0);
    for run in runs.iter().rev() {
        if (count > 0 && run.len > sum) || sum + run.len > most {
            break;
        }
        sum += run.len;
        count += 1;
    }
    count
}

/// How many of the first runs no record can need any more: two windows have passed. The second one is for
/// positions that go back, when Postgres is restored from an older backup; beyond it the log is read again.
pub fn expired(runs: &[&About], now_ms: i64, window_ms: i64) -> usize {
    let horizon = now_ms.saturating_sub(window_ms.saturating_mul(2));
    runs.iter().take_while(|run| run.newest_ms < horizon).count()
}

/// Whether a run is only for positions that go back, so that it needs no memory.
pub fn cold(run: &About, now_ms: i64, window_ms: i64, limits: &Limits) -> bool {
    run.newest_ms < now_ms.saturating_sub(window_ms).saturating_sub(limits.clocks_ms)
}

/// Which of the runs that were found on disk make a store: the longest stretch without a gap, unless it ends with one
/// that is `cold`, which may be left of a merge that ended after its inputs had gone. A run within another is left of
/// a merge that was cut short.
pub fn stretch(found: &[&About], cold: impl Fn(&About) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|&i| (found[i].covers.start, -found[i].covers.end));
    let (mut best, mut stretch) = (Vec::new(), Vec::<usize>::new());
    let worth = |stretch: &[usize]| match (stretch.first(), stretch.last()) {
        (Some(&first), Some(&last)) => (!cold(found[last]), found[last].covers.end - found[first].covers.start),
        _ => (false, -1),
    };
    for i in order {
        match stretch.last() {
            Some(&last) if found[i].covers.end <= found[last].covers.end => continue,
            Some(&last) if found[i].covers.start > found[last].covers.end => stretch.clear(),
            _ => {}
        }
        stretch.push(i);
        if worth(&stretch) > worth(&best) {
            best.clone_from(&stretch);
        }
    }
    best
}

/// The offsets that must still be read so that records from `next` on can be judged, when sightings from
/// `oldest` (one window before `next`) on may matter. When it does not begin where the coverage ends, what is
/// covered is of no use.
pub fn missing(covered: &Range<i64>, oldest: i64, next: i64) -> Range<i64> {
    if covered.start <= oldest && oldest <= covered.end { covered.end.min(next)..next } else { oldest..next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(covers: Range<i64>, len: u64, newest_ms: i64) -> About {
        About { covers, len, pages: 1, newest_ms, tables_crc: 0 }
    }

    fn merges(runs: &[(u64, i64)], now_ms: i64) -> Option<Range<usize>> {
        let runs: Vec<About> = runs.iter().map(|&(len, at)| run(0..1, len, at)).collect();
        let limits = Limits { run: 100, ..Limits::default() };
        next_merge(&runs.iter().collect::<Vec<_>>(), now_ms, 80, &limits)
    }

    #[test]
    fn young_runs_merge_when_they_double_and_old_ones_when_their_time_is_over() {
        assert_eq!(merges(&[(1, 1), (1, 2), (1, 3)], 5), None);
        assert_eq!(merges(&[(1, 1), (1, 2), (1, 3), (1, 4)], 5), Some(0..4));
        assert_eq!(merges(&[(50, 1), (1, 2), (1, 3), (1, 4)], 5), None, "for three, the large one stays as it is");
        assert_eq!(merges(&[(50, 1), (1, 2), (1, 3), (1, 4), (1, 5)], 5), Some(1..5));
        assert_eq!(merges(&[(4, 1), (1, 2), (1, 3), (1, 4), (1, 5)], 5), Some(0..5));
        assert_eq!(merges(&[(50, 1), (1, 2), (1, 3)], 10), Some(0..3), "the next part of the window has begun");
        assert_eq!(merges(&[(50, 1), (1, 11), (1, 12)], 25), Some(1..3), "parts are kept apart, so that they can go");
        assert_eq!(merges(&[(90, 1), (90, 2), (5, 3)], 10), Some(1..3), "no file above the limit");
        assert_eq!(merges(&[(90, 1), (90, 2)], 10), None);
        assert_eq!(merges(&[(60, 1), (30, 2), (30, 3), (30, 4), (1, 5)], 5), None);
    }

    #[test]
    fn runs_go_when_two_windows_have_passed() {
        let runs = [run(0..5, 1, 10), run(5..9, 1, 20), run(9..12, 1, 15)];
        let runs: Vec<&About> = runs.iter().collect();
        assert_eq!(expired(&runs, 110, 50), 0, "exactly two windows");
        assert_eq!(expired(&runs, 111, 50), 1);
        assert_eq!(expired(&runs, 118, 50), 1, "clocks that went back keep what is behind");
        assert_eq!(expired(&runs, 121, 50), 3);
    }

    #[test]
    fn the_longest_stretch_counts() {
        let find = |covers: &[Range<i64>]| {
            let runs: Vec<About> = covers.iter().map(|covers| run(covers.clone(), 1, 0)).collect();
            stretch(&runs.iter().collect::<Vec<_>>(), |run| run.covers.start == 12)
        };
        assert_eq!(find(&[]), [0; 0]);
        assert_eq!(find(&[5..9, 0..5, 9..10]), [1, 0, 2]);
        assert_eq!(find(&[0..5, 6..7, 7..20]), [1, 2], "a gap");
        assert_eq!(find(&[0..5, 6..7]), [0]);
        assert_eq!(find(&[0..2, 0..5, 2..5, 4..9]), [1, 3], "leftovers of a merge");
        assert_eq!(find(&[12..32, 58..70, 70..72]), [1, 2], "the long one is of no use any more");
        assert_eq!(find(&[12..32, 32..33, 58..60]), [0, 1]);
    }

    #[test]
    fn missing_is_what_is_not_covered() {
        assert_eq!(missing(&(i64::MIN..i64::MIN), 5, 20), 5..20);
        assert_eq!(missing(&(5..20), 5, 20), 20..20);
        assert_eq!(missing(&(5..20), 8, 25), 20..25);
        assert_eq!(missing(&(5..20), 2, 10), 2..10);
        assert_eq!(missing(&(5..20), 5, 12), 12..12, "a position that went back is still covered");
        assert_eq!(missing(&(5..20), 21, 25), 21..25, "what is covered has nothing to do with it");
        assert_eq!(missing(&(5..5), 5, 5), 5..5);
    }
}
