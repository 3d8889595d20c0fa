//! What live readers were told against the log and Postgres.

use std::cmp::Ordering;

use super::redis::hot_for;
use super::same_reading;
use crate::oracle::Expected;
use crate::views::Published;

/// Windows that stop being hot this soon may have been left out, in seconds.
const MARGIN: i64 = 60;

/// All differences at `now`, in seconds since 1970. What was told of a state must be what the log says of it, and no state
/// may be told of that Postgres has not come to. A worker that is killed tells nobody of what it has just counted until
/// it changes again, so only where `all` ended well the newest state of every hot window must have been told.
pub fn published(expected: &Expected, published: &Published, all: bool, now: i64) -> Vec<String> {
    let Published { told, stored } = published;
    let mut differences = Vec::new();
    for (key, stamp) in stored.iter().filter(|(key, _)| hot_for(&key.granularity, key.start, now) > MARGIN) {
        let log = expected.windows.get(key);
        let difference = match told.get(key) {
            None => all.then(|| "nothing".to_owned()),
            Some((told, reading)) => match told.cmp(stamp) {
                Ordering::Less => all.then(|| format!("no more than {told:?}")),
                Ordering::Greater => Some(format!("{told:?}, which is yet to come")),
                Ordering::Equal if log.is_some_and(|log| same_reading(key, log, reading)) => None,
                Ordering::Equal => Some(format!("{reading:?}")),
            },
        };
        differences
            .extend(difference.map(|found| format!("published {key:?}: expected {log:?} as {stamp:?}, found {found}")));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{EVENTS, Reading, WindowKey};

    #[test]
    fn what_is_told_is_the_newest_and_right() {
        let (metric, granularity) = (EVENTS.to_owned(), "1h".to_owned());
        let (dimension, value) = Default::default();
        let key = WindowKey { metric, dimension, value, granularity, start: 0 };
        let reading = |count| Reading { count, value: Some(1.0) };
        let mut expected = Expected::default();
        expected.windows.insert(key.clone(), reading(3));
        let differences = |stamp, count, all, now| {
            let told = [(key.clone(), (stamp, reading(count)))].into();
            let stored = [(key.clone(), (0, 0, 5))].into();
            published(&expected, &Published { told, stored }, all, now).len()
        };
        assert_eq!(differences((0, 0, 5), 3, true, 0), 0);
        assert_eq!(differences((0, 0, 5), 4, false, 0), 1, "another value of the same state");
        assert_eq!((differences((0, 0, 4), 2, true, 0), differences((0, 0, 4), 2, false, 0)), (1, 0), "behind");
        assert_eq!(differences((0, 0, 6), 3, false, 0), 1, "ahead");
        assert_eq!(differences((0, 0, 4), 2, true, 86_400), 0, "nobody was to be told any more");
        let nothing = Published { stored: [(key, (0, 0, 5))].into(), ..Published::default() };
        assert_eq!(published(&expected, &nothing, true, 0).len(), 1);
    }
}
