//! What is in a Redis, found from its own side: keys, by a cursor, and what they are.

use tidemill_common::redis::{Redis, RedisFailure};

use crate::window::Granularity;

/// Keys that Redis looks at per step.
const STEP: usize = 2_000;
/// What the copies' keys, and no others of many, begin with: `analytics:`, `cart:`, `metric:`.
const COPIES: &str = "[acm]*";

/// A key that a copy may stand under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found<'a> {
    /// A session by its project and key.
    Session(&'a str, &'a str),
    /// A cart by its project and session key.
    Cart(&'a str, &'a str),
    /// A window by its project, what is asked for, and its start in seconds since 1970.
    Window(&'a str, &'a str, Granularity, i64),
    /// A project's seen users.
    Users(&'a str),
}

/// What stands under this key; none: nothing that is a copy.
pub fn parse(key: &str) -> Option<Found<'_>> {
    if let Some(rest) = key.strip_prefix("analytics:session:") {
        return rest.split_once(':').map(|(project, id)| Found::Session(project, id));
    }
    if let Some(rest) = key.strip_prefix("cart:") {
        return rest.split_once(':').map(|(project, id)| Found::Cart(project, id));
    }
    if let Some(project) = key.strip_prefix("analytics:seen_users:") {
        return Some(Found::Users(project));
    }
    // Names may have colons.
    let (project, rest) = key.strip_prefix("metric:")?.split_once(':')?;
    let mut parts = rest.rsplitn(3, ':');
    let start = parts.next()?.parse().ok()?;
    let granularity = Granularity::parse(parts.next()?)?;
    Some(Found::Window(project, parts.next()?, granularity, start))
}

impl Found<'_> {
    /// Whose it is.
    pub fn project(&self) -> &str {
        match self {
            Self::Session(project, _) | Self::Cart(project, _) | Self::Window(project, ..) | Self::Users(project) => {
                project
            }
        }
    }
}

/// A cursor over the keys of one node.
pub struct Scan<'a> {
    node: &'a Redis,
    pattern: String,
    cursor: Option<u64>,
}

impl<'a> Scan<'a> {
    /// Keys that may be of copies.
    pub fn copies(node: &'a Redis) -> Self {
        Self::matching(node, COPIES)
    }

    /// Keys of this pattern.
    pub fn matching(node: &'a Redis, pattern: &str) -> Self {
        Self { node, pattern: pattern.to_owned(), cursor: Some(0) }
    }

    /// Some more of them, perhaps none; a key may come twice. `None`: there are no more.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, RedisFailure> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let mut pipeline = redis::pipe();
        pipeline.cmd("SCAN").arg(cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(STEP);
        let ((next, keys),): ((u64, Vec<Vec<u8>>),) = self.node.run(&pipeline).await?;
        self.cursor = (next != 0).then_some(next);
        Ok(Some(keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect()))
    }
}

/// Some more members of a set, and the cursor behind them; 0: there are no more.
pub async fn members(redis: &Redis, key: &str, cursor: u64) -> Result<(Vec<String>, u64), RedisFailure> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("SSCAN").arg(key).arg(cursor).arg("COUNT").arg(STEP);
    let ((next, members),): ((u64, Vec<Vec<u8>>),) = redis.run(&pipeline).await?;
    Ok((members.into_iter().filter_map(|member| String::from_utf8(member).ok()).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    #[test]
    fn keys_are_read_as_they_are_written() {
        assert_eq!(parse(&keys::session("shop", "a:b")), Some(Found::Session("shop", "a:b")));
        assert_eq!(parse(&keys::cart("shop", "\u{1}uu")), Some(Found::Cart("shop", "\u{1}uu")));
        let window = keys::metric("shop", "it's 1m:7", Granularity::Hour, -3_600);
        assert_eq!(parse(&window), Some(Found::Window("shop", "it's 1m:7", Granularity::Hour, -3_600)));
        assert_eq!(parse(&keys::seen_users("shop")), Some(Found::Users("shop")));
        for other in [
            &*keys::projection("shop", ""),
            &keys::projecting("shop", "{7}"),
            "event:shop:e",
            "metric:shop:7",
            "metric:",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
