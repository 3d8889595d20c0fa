//! The Redis keys and values of this crate.
//!
//! `event:{project}:{eventId}` holds `P:<token>` while the event is in flight, and
//! `C:<topic incarnation>:<partition>:<offset>:<body hash>` once it is in the log.
//!
//! `idempotency:{project}:<SHA-256 of an Idempotency-Key>` holds a request's final answers as JSON, for 24 h.
//!
//! `quota:{project}` is a HASH: `tokens` that may still be leased (below zero: gateways spent on credit), `at`
//! (microseconds, when they were counted) and, for each gateway that leases, `g:<gateway>` with its last time.
//! `quota:{project}:{type|user}:{name}` is the same for a limit of an event type or user.
//! `schema:{project}:{event_type}:latest@{changed}` holds the newest JSON Schema of an event type, or `NOT_FOUND`,
//! as of the project's last registration. That time is part of the name, so that nothing has to be deleted at the
//! next one, and a slow writer cannot put an old schema in the place of a new one.

use std::fmt::Write;

use crate::body_hash::BodyHash;

/// How long a claim stands, in milliseconds: longer than a delivery can take.
pub const CLAIM_MS: u64 = 10_000;
/// How long a confirmation stands, in milliseconds: the dedupe window.
pub const CONFIRMED_MS: u64 = 24 * 3_600 * 1_000;
/// Claims each of KEYS: does `SET KEYS[i] ARGV[i + 1] NX PX ARGV[1]` and gives what stood in the way: its number
/// (from 0), its value and how long it still stands, one after the other. Run twice, it finds its own claims, which
/// are in nobody's way.
pub const CLAIM: &str = "
local found = {}
for i = 1, #KEYS do
  if not redis.pcall('SET', KEYS[i], ARGV[i + 1], 'NX', 'PX', ARGV[1]) then
    local held = redis.pcall('GET', KEYS[i])
    if type(held) == 'string' and held ~= ARGV[i + 1] then
      found[#found + 1] = i - 1
      found[#found + 1] = held
      found[#found + 1] = redis.call('PTTL', KEYS[i])
    end
  end
end
return found";
/// Settles each of KEYS: a confirmation ARGV[i + 1] is set, whatever stands there, for ARGV[1] ms; a claim is deleted
/// if it still stands there, since one that ran out may be another's by now.
pub const SETTLE: &str = "
for i = 1, #KEYS do
  local value = ARGV[i + 1]
  if string.sub(value, 1, 2) == 'C:' then redis.pcall('SET', KEYS[i], value, 'PX', ARGV[1])
  elseif redis.pcall('GET', KEYS[i]) == value then redis.call('DEL', KEYS[i]) end
end
return #KEYS";

/// Leases tokens of KEYS[1], which gets ARGV[1] per second, up to a second's worth: at most ARGV[2], after ARGV[3]
/// spent on credit are paid. Gives the tokens and the number of gateways (ARGV[4] is this one) of the last 10 s.
/// Run twice, it loses one lease.
pub const LEASE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, gateways, old = tonumber(ARGV[1]), 1, {}
local tokens, at = rate, now
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], tonumber(fields[i + 1])
  if name == 'tokens' then tokens = value
  elseif name == 'at' then at = value
  elseif name ~= 'g:' .. ARGV[4] then
    if value > now - 10000000 then gateways = gateways + 1 else old[#old + 1] = name end
  end
end
tokens = math.min(rate, tokens + math.max(0, now - at) * rate / 1000000) - tonumber(ARGV[3])
local lease = math.floor(math.max(0, math.min(tokens, tonumber(ARGV[2]))))
if #old > 0 then redis.call('HDEL', KEYS[1], unpack(old)) end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens - lease), 'at', string.format('%.0f', now),
  'g:' .. ARGV[4], string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 60000)
return {lease, gateways}";

/// The key of a project's quota.
pub fn quota(project: &str) -> String {
    format!("quota:{project}")
}

/// By what quotas know the limit of an event type or user. No project has a name with a colon.
pub fn named_bucket(project: &str, kind: &str, name: &str) -> String {
    format!("{project}:{kind}:{name}")
}

/// How long a schema stands, in seconds.
pub const SCHEMA_S: u64 = 24 * 3_600;
/// How long it stands that there is none, in seconds.
pub const NO_SCHEMA_S: u64 = 3_600;
/// The value where there is none.
pub const NO_SCHEMA: &str = "NOT_FOUND";

/// The key of an event type's newest JSON Schema, where the project's schemas last changed then.
pub fn newest_schema(project: &str, event_type: &str, changed: i64) -> String {
    format!("schema:{project}:{event_type}:latest@{changed}")
}

/// Appends the key of an event.
pub fn event(project: &str, event_id: &[u8], keys: &mut Vec<u8>) {
    for part in [b"event:", project.as_bytes(), b":", event_id] {
        keys.extend_from_slice(part);
    }
}

/// The key of a request's first answer. Clients choose what is hashed, so it cannot clash with other keys.
pub fn idempotency(project: &str, key: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(key);
    let mut redis_key = format!("idempotency:{project}:");
    digest.iter().for_each(|byte| write!(redis_key, "{byte:02x}").expect("a String grows"));
    redis_key
}

/// Appends the value of a claim.
pub fn claimed(token: &str, values: &mut String) {
    values.push_str("P:");
    values.push_str(token);
}

/// Where an event stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The hash of the producer's own fields.
    pub body: BodyHash,
}

impl Stored {
    /// Appends the value of a confirmation. The topic's incarnation is blank if it is not known.
    pub fn write(&self, incarnation: &str, values: &mut String) {
        write!(values, "C:{incarnation}:{}:{}:{}", self.partition, self.offset, self.body).expect("a String grows");
    }
}

/// What an event's key holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// A claim, by its token.
    Claimed(&'a str),
    /// A confirmation, and the incarnation of the topic that it is about.
    Stored(Stored, &'a str),
    /// Nothing that we wrote.
    Unknown,
}

impl<'a> Held<'a> {
    /// Reads a value.
    pub fn read(value: &'a str) -> Self {
        match value.split_once(':') {
            Some(("P", token)) => Held::Claimed(token),
            Some(("C", rest)) => {
                stored(rest).map_or(Held::Unknown, |(stored, incarnation)| Held::Stored(stored, incarnation))
            }
            _ => Held::Unknown,
        }
    }
}

fn stored(text: &str) -> Option<(Stored, &str)> {
    let mut parts = text.split(':');
    let incarnation = parts.next()?;
    let stored = Stored {
        partition: parts.next()?.parse().ok()?,
        offset: parts.next()?.parse().ok()?,
        body: BodyHash::read(parts.next()?)?,
    };
    parts.next().is_none().then_some((stored, incarnation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let stored = Stored { partition: 3, offset: 41, body: BodyHash::of(&Default::default()) };
        let mut text = String::new();
        stored.write("kQ-_9w", &mut text);
        assert!(text.starts_with("C:kQ-_9w:3:41:"), "{text}");
        assert_eq!(Held::read(&text), Held::Stored(stored, "kQ-_9w"));
        text.clear();
        claimed("t", &mut text);
        assert_eq!(Held::read(&text), Held::Claimed("t"));
    }

    #[test]
    fn other_values_are_unknown() {
        for text in ["", "1", "C:", "C:x:3:41", "C:x:a:41:00", "X:1"] {
            assert_eq!(Held::read(text), Held::Unknown, "{text}");
        }
    }
}
