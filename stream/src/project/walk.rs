//! Going through all that is live of a project, a stretch at a time: hot windows, then live sessions, carts, then users.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::list::{self, Of, WindowCursor};
use super::pending::Key;
use crate::metric::Definitions;
use crate::window::Granularity;

/// Keys per stretch.
const SESSIONS: i64 = 1_000;
const WINDOWS: i64 = 200;
const USERS: i64 = 5_000;

/// A place on the way.
pub struct Walk {
    project: String,
    /// Whose state is gone through.
    pub of: Of,
    next: Stage,
}

enum Stage {
    Windows(usize, WindowCursor),
    Sessions((i32, String)),
    Carts((i32, String)),
    Users(String),
    Done,
}

/// What is on the way from one place to the next.
pub struct Stretch {
    /// The keys that have, or should have, a copy.
    pub keys: Vec<Key>,
    /// There are no more windows of this granularity behind it.
    pub ended: Option<Granularity>,
}

impl Walk {
    /// The beginning.
    pub fn new(project: &str, of: Of, now: DateTime<Utc>) -> Self {
        Self { project: project.to_owned(), of, next: first_windows(0, now) }
    }

    /// Whether this is the end.
    pub fn is_done(&self) -> bool {
        matches!(self.next, Stage::Done)
    }

    /// Whether only users are left.
    pub fn is_at_users(&self) -> bool {
        matches!(self.next, Stage::Users(_))
    }

    /// The next stretch, and the place behind it.
    pub async fn next(&self, pool: &PgPool, definitions: &Definitions) -> Result<(Stretch, Self), sqlx::Error> {
        let (project, of, mut ended) = (&*self.project, self.of, None);
        let of_project = |id: &String| (project.to_owned(), id.clone());
        let (keys, next): (Vec<Key>, Stage) = match &self.next {
            Stage::Windows(at, after) => {
                let found = list::windows(pool, of, project, Granularity::ALL[*at], after, WINDOWS).await?;
                let next = match found.last() {
                    Some((last, _)) if found.len() as i64 == WINDOWS => Stage::Windows(*at, last.clone()),
                    _ => {
                        ended = Some(Granularity::ALL[*at]);
                        first_windows(at + 1, Utc::now())
                    }
                };
                let definitions = definitions.current().await?;
                let copied = found.into_iter().map(|(_, key)| key).filter(|key| key.has_copy(&definitions));
                (copied.map(Key::Window).collect(), next)
            }
            Stage::Sessions(after) => {
                let found = list::sessions(pool, of, project, after, SESSIONS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == SESSIONS => Stage::Sessions(last.clone()),
                    _ => Stage::Carts(list::first_cart(Utc::now())),
                };
                (found.iter().map(|(_, id)| Key::Session(of_project(id))).collect(), next)
            }
            Stage::Carts(after) => {
                let found = list::carts(pool, of, project, after, SESSIONS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == SESSIONS => Stage::Carts(last.clone()),
                    _ => Stage::Users(String::new()),
                };
                (found.iter().map(|(_, id)| Key::Cart(of_project(id))).collect(), next)
            }
            Stage::Users(after) => {
                let found = list::users(pool, of, project, after, USERS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == USERS => Stage::Users(last.clone()),
                    _ => Stage::Done,
                };
                (found.iter().map(|id| Key::User(of_project(id))).collect(), next)
            }
            Stage::Done => (Vec::new(), Stage::Done),
        };
        Ok((Stretch { keys, ended }, Self { project: self.project.clone(), of, next }))
    }
}

fn first_windows(at: usize, now: DateTime<Utc>) -> Stage {
    match Granularity::ALL.get(at) {
        Some(&granularity) => Stage::Windows(at, list::first_window(granularity, now)),
        None => Stage::Sessions(list::first_session(now)),
    }
}
