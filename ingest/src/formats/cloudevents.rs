//! CloudEvents 1.0 over HTTP: structured, batch and binary.
//!
//! `id` → eventId, `type` → eventType, `time` → timestamp, `data` → properties, `subject` → userId by setting;
//! the extensions `userid`, `sessionid` and `eventaction` → the fields of these names. `source` must be there,
//! as the standard has it, but is not kept, nor are other extensions: what is to be kept belongs into `data`.

use std::borrow::Cow;

use axum::http::HeaderMap;
use chrono::DateTime;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidemill_common::event::Invalid;

use crate::parse::{NotJson, Parsed, kind, nameless, string};
use crate::stages::{RawEvent, Refused};

/// The attributes that mean something here, and the data. `null` is absent.
#[derive(Deserialize)]
struct Structured<'a> {
    #[serde(borrow)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    subject: Option<&'a RawValue>,
    #[serde(borrow)]
    userid: Option<&'a RawValue>,
    #[serde(borrow)]
    sessionid: Option<&'a RawValue>,
    #[serde(borrow)]
    eventaction: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<&'a RawValue>,
}

/// The value of an attribute, wherever it stands.
type Attribute<'a> = Result<Option<Cow<'a, str>>, Invalid>;

/// A CloudEvent in JSON.
pub fn structured(body: &[u8], subject_is_user: bool) -> Result<Parsed<'_>, NotJson> {
    Ok(one(serde_json::from_slice(body)?, subject_is_user))
}

/// An array of CloudEvents.
pub fn batch(body: &[u8], subject_is_user: bool) -> Result<Vec<Parsed<'_>>, NotJson> {
    let elements: Vec<&RawValue> = serde_json::from_slice(body)?;
    Ok(elements.into_iter().map(|element| one(element, subject_is_user)).collect())
}

fn one(json: &RawValue, subject_is_user: bool) -> Parsed<'_> {
    if !json.get().starts_with('{') {
        return Err(nameless(Invalid::new("event", format!("must be a JSON object, but is {}", kind(json)))));
    }
    let event: Structured<'_> = serde_json::from_str(json.get())
        .map_err(|error| nameless(Invalid::new("event", format!("is no CloudEvent: {error}"))))?;
    let attribute = |name| {
        let value = match name {
            "specversion" => event.specversion,
            "id" => event.id,
            "type" => event.kind,
            "source" => event.source,
            "time" => event.time,
            "subject" => event.subject,
            "userid" => event.userid,
            "sessionid" => event.sessionid,
            _ => event.eventaction,
        };
        value.map(|value| string(name, value)).transpose()
    };
    let properties = || match (event.data, event.data_base64) {
        (Some(_), Some(_)) => Err(Invalid::new("data_base64", "must not stand beside data")),
        (Some(data), None) => Ok(Some(wrapped("data", data))),
        (None, Some(data)) => {
            string("data_base64", data)?;
            Ok(Some(wrapped("data_base64", data)))
        }
        (None, None) => Ok(None),
    };
    assemble(attribute, properties, subject_is_user)
}

/// Whether a request's headers say that it is a CloudEvent.
pub fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion") || headers.contains_key("ce-id")
}

/// A CloudEvent whose attributes stand in the headers.
pub fn binary<'a>(headers: &HeaderMap, body: &'a [u8], subject_is_user: bool) -> Result<Parsed<'a>, NotJson> {
    let data: Option<&RawValue> = match body.trim_ascii() {
        [] => None,
        body => serde_json::from_slice(body)?,
    };
    let attribute = |name: &'static str| {
        let value = match name {
            "specversion" => headers.get("ce-specversion"),
            "id" => headers.get("ce-id"),
            "type" => headers.get("ce-type"),
            "source" => headers.get("ce-source"),
            "time" => headers.get("ce-time"),
            "subject" => headers.get("ce-subject"),
            "userid" => headers.get("ce-userid"),
            "sessionid" => headers.get("ce-sessionid"),
            _ => headers.get("ce-eventaction"),
        };
        value.map(|value| header_text(name, value.as_bytes())).transpose()
    };
    Ok(assemble(attribute, || Ok(data.map(|data| wrapped("data", data))), subject_is_user))
}

/// Quoted strings are unquoted, then `%XX` is decoded, once.
fn header_text<'a>(name: &'static str, value: &[u8]) -> Result<Cow<'a, str>, Invalid> {
    let mut unquoted = Vec::with_capacity(value.len());
    match value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        None => unquoted.extend_from_slice(value),
        Some(inner) => {
            let mut bytes = inner.iter();
            while let Some(&byte) = bytes.next() {
                unquoted.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
            }
        }
    }
    let mut text = Vec::with_capacity(unquoted.len());
    let mut rest = unquoted.as_slice();
    while let [byte, behind @ ..] = rest {
        let decoded = (*byte == b'%').then(|| hex(behind)).flatten();
        text.push(decoded.unwrap_or(*byte));
        rest = if decoded.is_some() { &behind[2..] } else { behind };
    }
    let text = String::from_utf8(text).map_err(|_| Invalid::new(name, "must be UTF-8, percent-encoded"))?;
    Ok(Cow::Owned(text))
}

fn hex(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn assemble<'a>(
    attribute: impl Fn(&'static str) -> Attribute<'a>,
    properties: impl FnOnce() -> Attribute<'a>,
    subject_is_user: bool,
) -> Parsed<'a> {
    let required = |name| attribute(name)?.filter(|value| !value.is_empty()).ok_or_else(|| missing(name));
    let event_id = required("id").map_err(nameless)?;
    let rest = || {
        let version = required("specversion")?;
        if version != "1.0" {
            return Err(Invalid::new("specversion", format!("must be \"1.0\", but is {version:?}")));
        }
        required("source")?;
        let subject = attribute("subject")?.filter(|_| subject_is_user);
        Ok(RawEvent {
            event_id: Cow::default(),
            event_type: required("type")?,
            timestamp: attribute("time")?.map(|time| micros(&time)).transpose()?,
            user_id: attribute("userid")?.or(subject),
            session_id: attribute("sessionid")?,
            event_action: attribute("eventaction")?,
            properties: properties()?,
        })
    };
    match rest() {
        Ok(rest) => Ok(RawEvent { event_id, ..rest }),
        Err(invalid) => Err(Refused { event_id: Some(event_id.into_owned()), invalid }),
    }
}

fn missing(name: &'static str) -> Invalid {
    Invalid::new(name, "is missing; every CloudEvent must have it")
}

fn micros(time: &str) -> Result<i64, Invalid> {
    let problem = |error| Invalid::new("time", format!("must be RFC 3339, e.g. 2026-01-31T12:00:00Z ({error})"));
    DateTime::parse_from_rfc3339(time).map(|time| time.timestamp_micros()).map_err(problem)
}

/// Properties are an object: other data becomes a member of one.
fn wrapped<'a>(name: &str, data: &'a RawValue) -> Cow<'a, str> {
    match data.get() {
        object if object.starts_with('{') => Cow::Borrowed(object),
        other => Cow::Owned(format!("{{\"{name}\":{other}}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the standard's JSON format, sections 3.1.1 and 3.2.
    const TEXT: &str = r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","subject":null,
        "id":"C234-1234-1234","time":"2018-04-05T17:31:00Z","comexampleextension1":"value","comexampleothervalue":5,
        "datacontenttype":"application/json","data":{"appinfoA":"abc","appinfoB":123,"appinfoC":true}}"#;
    const XML: &str = r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext",
        "id":"B234-1234-1234","time":"2018-04-05T17:31:00Z","unsetextension":null,
        "datacontenttype":"application/xml","data":"<much wow=\"xml\"/>"}"#;
    const BINARY: &str = r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext",
        "id":"A234-1234-1234","datacontenttype":"application/vnd.apache.thrift.binary",
        "data_base64":"aGVsbG8="}"#;

    fn good(json: &str) -> RawEvent<'_> {
        structured(json.as_bytes(), false).expect("JSON").expect("a CloudEvent")
    }

    #[test]
    fn the_standards_own_examples_are_read() {
        let event = good(TEXT);
        assert_eq!((event.event_id.as_ref(), event.event_type.as_ref()), ("C234-1234-1234", "com.example.someevent"));
        assert_eq!(event.timestamp, Some(1_522_949_460_000_000));
        let data = r#"{"appinfoA":"abc","appinfoB":123,"appinfoC":true}"#;
        assert_eq!((event.properties.as_deref(), event.user_id.as_deref()), (Some(data), None));
        assert_eq!(good(XML).properties.as_deref(), Some(r#"{"data":"<much wow=\"xml\"/>"}"#));
        assert_eq!(good(BINARY).properties.as_deref(), Some(r#"{"data_base64":"aGVsbG8="}"#));
        let all = format!("[{TEXT},{XML},7,{BINARY}]");
        let events = batch(all.as_bytes(), false).expect("JSON");
        assert_eq!(events.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true]);
    }

    #[test]
    fn extensions_fill_the_fields_and_the_subject_does_by_setting() {
        let json = r#"{"specversion":"1.0","id":"e","source":"s","type":"t","subject":"u-1","sessionid":"s-1",
            "eventaction":"a"}"#;
        let event = good(json);
        assert_eq!((event.user_id.as_deref(), event.session_id.as_deref()), (None, Some("s-1")));
        assert_eq!(event.event_action.as_deref(), Some("a"));
        let event = structured(json.as_bytes(), true).expect("JSON").expect("valid");
        assert_eq!(event.user_id.as_deref(), Some("u-1"));
    }

    #[test]
    fn errors_name_the_attribute() {
        let table = [
            ("{}", "id"),
            (r#"{"id":7}"#, "id"),
            (r#"{"id":""}"#, "id"),
            (r#"{"id":"e","source":"s","type":"t"}"#, "specversion"),
            (r#"{"id":"e","specversion":"0.3","source":"s","type":"t"}"#, "specversion"),
            (r#"{"id":"e","specversion":"1.0","type":"t"}"#, "source"),
            (r#"{"id":"e","specversion":"1.0","source":"s"}"#, "type"),
            (r#"{"id":"e","specversion":"1.0","source":"s","type":"t","time":"now"}"#, "time"),
            (r#"{"id":"e","specversion":"1.0","source":"s","type":"t","userid":1}"#, "userid"),
            (r#"{"id":"e","specversion":"1.0","source":"s","type":"t","data_base64":1}"#, "data_base64"),
            (r#"{"id":"e","specversion":"1.0","source":"s","type":"t","data":1,"data_base64":""}"#, "data_base64"),
            (r#"{"id":"e","id":"f"}"#, "event"),
            (r#"["1.0","e"]"#, "event"),
        ];
        for (json, field) in table {
            let refused = structured(json.as_bytes(), false).expect("JSON").expect_err(json);
            assert_eq!(refused.invalid.field, field, "{json}");
        }
        assert!(structured(b"{", false).is_err());
        assert!(batch(b"{}", false).is_err());
    }

    #[test]
    fn headers_are_unquoted_and_decoded_once() {
        let text = |value: &str| header_text("id", value.as_bytes()).map(Cow::into_owned).ok();
        assert_eq!(text("Euro%20%E2%82%AC%20%F0%9F%98%80"), Some("Euro € 😀".to_owned()));
        assert_eq!(text("%2525"), Some("%25".to_owned()));
        assert_eq!(text("100%"), Some("100%".to_owned()));
        assert_eq!(text("%zz%4"), Some("%zz%4".to_owned()));
        assert_eq!(text(r#""a \"b\" %20""#), Some("a \"b\"  ".to_owned()));
        assert_eq!(text("\""), Some("\"".to_owned()));
        assert_eq!(text("%ff"), None);
    }

    #[test]
    fn attributes_come_from_the_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("ce-id", "e%201"), ("ce-type", "t"), ("ce-source", "/s"), ("ce-specversion", "1.0")] {
            headers.insert(name, value.parse().expect("a value"));
        }
        let read = |body: &'static str| binary(&headers, body.as_bytes(), false).expect("JSON").expect("valid");
        assert_eq!(read(" {\"a\":1.0} ").properties.as_deref(), Some("{\"a\":1.0}"));
        assert_eq!(read("[1]").properties.as_deref(), Some("{\"data\":[1]}"));
        assert_eq!((read("").properties, read("null").properties), (None, None));
        assert_eq!(read("").event_id, "e 1");
        assert!(binary(&headers, b"<xml/>", false).is_err());
        headers.remove("ce-source");
        assert_eq!(binary(&headers, b"", false).expect("JSON").expect_err("no source").invalid.field, "source");
    }
}
