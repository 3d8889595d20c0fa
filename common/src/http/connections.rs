//! The open connections: what is going on on each of them, and which of them must go.
//!
//! One look over all of them now and then stands in for a timer per request: a connection only leaves marks in its
//! [`Activity`]. Whoever drops a connection's senders closes it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot::{Receiver, Sender, channel};

use super::HttpConfig;

/// A connection that was asked to finish and does not is cut after so long.
const FINISH: Duration = Duration::from_secs(5);
/// A connection must have been quiet for so long to make room for another: its last answer is on its way, or its first
/// request.
const SETTLED: Duration = Duration::from_millis(100);
/// So many connections are looked at for one that must make room: enough for a good choice, few enough for a flood.
const SAMPLE: usize = 64;

/// Marks of what is going on on a connection. Times are milliseconds since the server's start, plus one.
pub struct Activity {
    started: Instant,
    /// Requests whose answer is being worked on.
    handling: AtomicU32,
    /// When the head that is arriving began; 0: none is.
    head: AtomicU64,
    /// When something of a request or an answer moved last.
    moved: AtomicU64,
    /// HTTP/2: bytes between requests are frames of its own, not a head.
    framed: AtomicBool,
}

/// A request whose answer is being worked on, until dropped.
pub struct Handling(Arc<Activity>);

/// What to do about a connection.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Finish,
    Cut(&'static str),
}

/// The open connections.
pub struct Connections {
    started: Instant,
    most: usize,
    head_timeout: u64,
    idle_timeout: u64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_age: BTreeMap<u64, Connection>,
    next: u64,
    /// Where the next search for one that must make room begins.
    hand: u64,
}

struct Connection {
    activity: Arc<Activity>,
    finish: Option<Sender<Infallible>>,
    _cut: Sender<Infallible>,
}

/// A connection's place among the open ones. It is given back on drop.
pub struct Place {
    /// What is going on on it.
    pub activity: Arc<Activity>,
    /// Resolves when it is to take no more requests.
    pub finish: Receiver<Infallible>,
    /// Resolves when it is to end at once.
    pub cut: Receiver<Infallible>,
    id: u64,
    connections: Arc<Connections>,
}

impl Activity {
    /// A new connection is to send a request's head.
    fn new(started: Instant, now: Instant) -> Self {
        let now = millis(now - started);
        let time = || AtomicU64::new(now);
        Self { started, handling: AtomicU32::new(0), head: time(), moved: time(), framed: AtomicBool::new(false) }
    }

    /// Bytes have arrived. Between requests they begin the next one's head.
    pub fn arrived(&self, now: Instant) {
        let between = self.handling.load(Ordering::Relaxed) == 0 && !self.framed.load(Ordering::Relaxed);
        if between && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(millis(now - self.started), Ordering::Relaxed);
        }
    }

    /// A head is complete, and its request goes to work.
    pub fn begin(self: &Arc<Self>, framed: bool) -> Handling {
        self.handling.fetch_add(1, Ordering::Relaxed);
        self.framed.store(framed, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        Handling(Arc::clone(self))
    }

    /// A part of an answer has gone into the connection's buffers, which have room only as its client reads.
    pub fn moved(&self, now: Instant) {
        self.moved.store(millis(now - self.started), Ordering::Relaxed);
    }

    /// An answer has ended. What arrived during it was its own request's.
    pub fn answered(&self) {
        self.head.store(0, Ordering::Relaxed);
    }

    /// Since when nothing is going on; none while a request is at work.
    fn quiet_since(&self) -> Option<u64> {
        // Acquire: `moved` was set before the last request ended.
        (self.handling.load(Ordering::Acquire) == 0).then(|| self.moved.load(Ordering::Relaxed))
    }

    fn judge(&self, now: u64, head_timeout: u64, idle_timeout: u64) -> Verdict {
        let Some(since) = self.quiet_since() else { return Verdict::Keep };
        let head = self.head.load(Ordering::Relaxed);
        let quiet = now.saturating_sub(since);
        if head > 0 && now.saturating_sub(head) >= head_timeout {
            Verdict::Cut("head")
        } else if quiet >= idle_timeout + millis(FINISH) {
            Verdict::Cut("idle")
        } else if quiet >= idle_timeout {
            Verdict::Finish
        } else {
            Verdict::Keep
        }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.moved(Instant::now());
        self.0.handling.fetch_sub(1, Ordering::Release);
    }
}

impl Connections {
    /// None is open yet.
    pub fn new(config: &HttpConfig) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            most: config.max_connections.max(1),
            head_timeout: config.head_timeout_ms,
            idle_timeout: config.idle_timeout_ms,
            open: Mutex::default(),
        })
    }

    /// A place for a new connection. If all are taken, that of one on which nothing has been going on for longest;
    /// none if something is going on on all of them.
    pub fn enter(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let mut open = self.open();
        if open.by_age.len() >= self.most && !open.make_room(millis(now - self.started)) {
            return None;
        }
        let activity = Arc::new(Activity::new(self.started, now));
        let ((finish, on_finish), (cut, on_cut)) = (channel(), channel());
        let id = open.next;
        open.next += 1;
        open.by_age.insert(id, Connection { activity: Arc::clone(&activity), finish: Some(finish), _cut: cut });
        metrics::gauge!("tidemill_http_connections").increment(1.0);
        Some(Place { activity, finish: on_finish, cut: on_cut, id, connections: Arc::clone(self) })
    }

    /// Closes a connection on which nothing is going on.
    pub fn make_room(&self, now: Instant) {
        self.open().make_room(millis(now - self.started));
    }

    /// Closes those that are too slow.
    pub fn sweep(&self, now: Instant) {
        let now = millis(now - self.started);
        self.open().by_age.retain(|_, connection| {
            match connection.activity.judge(now, self.head_timeout, self.idle_timeout) {
                Verdict::Keep => return true,
                Verdict::Finish => connection.finish = None,
                Verdict::Cut(reason) => {
                    count_cut(reason);
                    return false;
                }
            }
            true
        });
    }

    /// How often to sweep: so that no timeout is exceeded by more than an eighth.
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_millis((self.head_timeout.min(self.idle_timeout) / 8).clamp(10, 1_000))
    }

    /// Asks all of them to finish.
    pub fn finish(&self) {
        for connection in self.open().by_age.values_mut() {
            connection.finish = None;
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("no holder panics")
    }
}

impl Open {
    fn make_room(&mut self, now: u64) -> bool {
        let (after, before) = (self.by_age.range(self.hand..), self.by_age.range(..self.hand));
        let sample: Vec<_> = after.chain(before).take(SAMPLE).map(|(id, c)| (c.activity.quiet_since(), *id)).collect();
        self.hand = sample.last().map_or(0, |(_, id)| id + 1);
        let quietest = sample.iter().filter_map(|(since, id)| since.map(|since| (since, *id))).min();
        let Some((since, id)) = quietest else { return false };
        if now.saturating_sub(since) < millis(SETTLED) {
            return false;
        }
        count_cut("limit");
        self.by_age.remove(&id).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().by_age.remove(&self.id);
        metrics::gauge!("tidemill_http_connections").decrement(1.0);
    }
}

fn count_cut(reason: &'static str) {
    metrics::counter!("tidemill_http_connections_cut_total", "reason" => reason).increment(1);
}

fn millis(duration: Duration) -> u64 {
    duration.as_secs() * 1_000 + u64::from(duration.subsec_millis()) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: u64 = 10_000;
    const IDLE: u64 = 75_000;

    fn activity() -> (Arc<Activity>, impl Fn(u64) -> Instant, impl Fn(&Activity, u64) -> Verdict) {
        let start = Instant::now();
        let at = move |ms| start + Duration::from_millis(ms);
        let judge = move |activity: &Activity, ms| activity.judge(millis(at(ms) - start), HEAD, IDLE);
        (Arc::new(Activity::new(start, start)), at, judge)
    }

    #[test]
    fn the_first_head_must_come_in_time() {
        let (activity, at, judge) = activity();
        activity.arrived(at(9_000)); // a part of it
        assert_eq!(judge(&activity, HEAD - 1), Verdict::Keep);
        assert_eq!(judge(&activity, HEAD), Verdict::Cut("head"));
        let handling = activity.begin(false);
        assert_eq!(judge(&activity, 10 * IDLE), Verdict::Keep, "an answer may take its time");
        drop(handling);
    }

    #[test]
    fn a_later_head_has_its_time_from_its_first_byte() {
        let (activity, at, judge) = activity();
        let handling = activity.begin(false);
        activity.arrived(at(1_000)); // of the body
        drop(handling);
        activity.moved(at(2_000));
        activity.arrived(at(2_000)); // still of the body
        activity.answered();
        assert_eq!(judge(&activity, 2_000 + IDLE - 1), Verdict::Keep);
        activity.arrived(at(20_000));
        activity.arrived(at(25_000));
        assert_eq!(judge(&activity, 20_000 + HEAD - 1), Verdict::Keep);
        assert_eq!(judge(&activity, 20_000 + HEAD), Verdict::Cut("head"));
    }

    #[test]
    fn what_is_idle_is_asked_to_finish_and_then_cut() {
        let (activity, at, judge) = activity();
        drop(activity.begin(true));
        activity.moved(at(5_000));
        activity.arrived(at(6_000)); // a ping or the like
        assert_eq!(judge(&activity, 5_000 + IDLE - 1), Verdict::Keep);
        assert_eq!(judge(&activity, 5_000 + IDLE), Verdict::Finish);
        assert_eq!(judge(&activity, 5_000 + IDLE + millis(FINISH)), Verdict::Cut("idle"));
    }

    #[test]
    fn the_quietest_makes_room_and_none_at_work_does() {
        let connections = Connections::new(&HttpConfig { max_connections: 3, ..HttpConfig::default() });
        let at = |ms| connections.started + Duration::from_millis(ms);
        let mut places: Vec<_> = (0..3).map(|ms| connections.enter(at(ms)).expect("room")).collect();
        places[0].activity.moved(at(50));
        let at_work = places[1].activity.begin(false);
        let fourth = connections.enter(at(200)).expect("room is made");
        let is_cut = |place: &mut Place| place.cut.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Closed);
        assert_eq!(places.iter_mut().map(is_cut).collect::<Vec<_>>(), [false, false, true]);
        assert!(connections.enter(at(100)).is_none(), "answers may still be on their way");
        let _others = [places[0].activity.begin(false), fourth.activity.begin(false)];
        assert!(connections.enter(at(900)).is_none(), "all are at work");
        drop(places.remove(0));
        assert!(connections.enter(at(900)).is_some(), "a place was given back");
        drop(at_work);
    }
}
