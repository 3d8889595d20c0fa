//! The datum of an event, read and written by hand: field by field in the order of `schemas/event.avsc`, in Avro's
//! binary encoding (<https://avro.apache.org/docs/1.12.0/specification/#binary-encoding>).
//!
//! It takes a twentieth of what going through a schema's tree takes, and this is the path of every event. The tests
//! hold it against `apache_avro`.

use crate::event::EventRef;

/// Why bytes are not the datum of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDatum {
    /// A field begins or goes on behind the last byte.
    #[error("the datum ends within a field")]
    Cut,
    /// A varint of more than ten bytes, or a number above its kind's largest.
    #[error("a number is too long")]
    Number,
    /// A length below zero.
    #[error("a text has a negative length")]
    Length,
    /// A text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A union has two branches.
    #[error("an optional field has the branch {0}, but there are only 0 (null) and 1")]
    Branch(i64),
    /// Bytes behind the last field.
    #[error("bytes are left over behind the datum")]
    LeftOver,
}

/// Appends an event.
pub fn write(event: &EventRef<'_>, out: &mut Vec<u8>) {
    write_text(event.event_id, out);
    write_text(event.event_type, out);
    write_long(event.timestamp, out);
    write_optional(event.received_at, out, write_long);
    for text in
        [event.user_id, event.session_id, event.event_action, event.properties, event.client_address, event.user_agent]
    {
        write_optional(text, out, write_text);
    }
}

/// The event that all of the bytes stand for. Its texts stay where they are.
pub fn read(datum: &[u8]) -> Result<EventRef<'_>, BadDatum> {
    let mut rest = Rest(datum);
    let event = read_event(&mut rest)?;
    if rest.0.is_empty() { Ok(event) } else { Err(BadDatum::LeftOver) }
}

/// The event that the next bytes stand for.
pub(super) fn read_event<'a>(rest: &mut Rest<'a>) -> Result<EventRef<'a>, BadDatum> {
    Ok(EventRef {
        event_id: rest.text()?,
        event_type: rest.text()?,
        timestamp: rest.long()?,
        received_at: rest.optional(Rest::long)?,
        user_id: rest.optional(Rest::text)?,
        session_id: rest.optional(Rest::text)?,
        event_action: rest.optional(Rest::text)?,
        properties: rest.optional(Rest::text)?,
        client_address: rest.optional(Rest::text)?,
        user_agent: rest.optional(Rest::text)?,
    })
}

/// A union with `null` as its first branch.
pub(super) fn write_optional<T>(value: Option<T>, out: &mut Vec<u8>, write: impl FnOnce(T, &mut Vec<u8>)) {
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(2); // branch 1, zigzag
            write(value, out);
        }
    }
}

pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    write_long(text.len() as i64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Zigzag, then seven bits a byte, lowest first.
pub(super) fn write_long(number: i64, out: &mut Vec<u8>) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// What is not read yet.
pub(super) struct Rest<'a>(pub(super) &'a [u8]);

impl<'a> Rest<'a> {
    pub(super) fn long(&mut self) -> Result<i64, BadDatum> {
        let mut bits = 0u64;
        for (index, &byte) in self.0.iter().enumerate() {
            if index == 9 && byte > 0x7f {
                return Err(BadDatum::Number);
            }
            // Of the tenth, only one bit is left; the others are dropped, as the library does.
            bits |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok((bits >> 1) as i64 ^ -((bits & 1) as i64));
            }
        }
        Err(BadDatum::Cut)
    }

    /// A number of 32 bits.
    pub(super) fn int(&mut self) -> Result<i32, BadDatum> {
        i32::try_from(self.long()?).map_err(|_| BadDatum::Number)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, BadDatum> {
        let length = usize::try_from(self.long()?).map_err(|_| BadDatum::Length)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(BadDatum::Cut)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| BadDatum::Text)
    }

    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, BadDatum>,
    ) -> Result<Option<T>, BadDatum> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            branch => Err(BadDatum::Branch(branch)),
        }
    }
}
