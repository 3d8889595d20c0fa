//! The text under which a session stands in Postgres and Redis: the session id, or the user's for events without one.
//!
//! Both are any text, so one kind needs a mark that the other cannot have: keys that begin with [`MARK`] are of users,
//! or of session ids that begin with it themselves and have it twice. Nobody's ids do, so keys of session ids are
//! those ids to whoever looks into the database.

use std::borrow::Cow;

use tidemill_common::event::EventRef;

/// What the key of a user begins with.
pub const MARK: char = '\u{1}';
const USER: &str = "\u{1}u";

/// The key of the session that an event belongs to; none for one with neither a session nor a user.
pub fn of<'a>(event: &EventRef<'a>) -> Option<Cow<'a, str>> {
    match (event.session_id, event.user_id) {
        (Some(session_id), _) => Some(of_session(session_id)),
        (None, Some(user_id)) => Some(Cow::Owned(of_user(user_id))),
        (None, None) => None,
    }
}

/// The key of a session id.
pub fn of_session(session_id: &str) -> Cow<'_, str> {
    if session_id.starts_with(MARK) { Cow::Owned(format!("{MARK}{session_id}")) } else { Cow::Borrowed(session_id) }
}

/// The key of a user's sessions without an id.
pub fn of_user(user_id: &str) -> String {
    format!("{USER}{user_id}")
}

/// The session id of a key; none for a user's.
pub fn session_id(key: &str) -> Option<&str> {
    match key.strip_prefix(MARK) {
        None => Some(key),
        Some(rest) => rest.starts_with(MARK).then_some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_ids_share_a_key(a in "[\u{1}u]{0,3}[a-b]{0,2}", b in "[\u{1}u]{0,3}[a-b]{0,2}") {
            let (session, user) = (of_session(&a), of_user(&a));
            prop_assert_eq!(session_id(&session), Some(&*a));
            prop_assert_eq!(session_id(&user), None);
            prop_assert_ne!(&*of_session(&a), &*of_user(&b));
            prop_assert_eq!(of_session(&a) == of_session(&b), a == b);
            prop_assert_eq!(of_user(&a) == of_user(&b), a == b);
        }
    }
}
