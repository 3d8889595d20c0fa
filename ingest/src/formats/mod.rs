//! What a body may be. Each format ends in the same parsed events.

pub mod cloudevents;
#[cfg(test)]
mod hostile;
pub mod ndjson;
pub mod segment;

use axum::http::{HeaderMap, header};
use tidemill_common::problem::Problem;

use crate::body::unsupported;
use crate::parse::{self, Body, NotJson};

/// What is named to those who send something else.
const ACCEPTED: &str = "application/json, application/x-ndjson, application/cloudevents+json, \
                        application/cloudevents-batch+json or text/plain";

/// How a body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An event or an array of them, in JSON. Beacons call it `text/plain`.
    Json,
    /// An event per line.
    Ndjson,
    /// A CloudEvent in JSON.
    CloudEvent,
    /// An array of CloudEvents.
    CloudEvents,
    /// A CloudEvent's data; its attributes stand in the headers.
    BinaryCloudEvent,
}

impl Format {
    /// What the headers announce.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let content_type = match headers.get(header::CONTENT_TYPE) {
            None => "application/json",
            Some(value) => value.to_str().unwrap_or("(not text)"),
        };
        let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let media_type = media_type.trim().to_ascii_lowercase();
        if let Some(charset) = charset(parameters).filter(|charset| !is_utf8(charset)) {
            let detail = format!("charset {charset:?} is not accepted; send UTF-8");
            return Err(unsupported(detail, "Content-Type"));
        }
        match media_type.as_str() {
            "application/cloudevents+json" | "application/cloudevents" => Ok(Self::CloudEvent),
            "application/cloudevents-batch+json" => Ok(Self::CloudEvents),
            _ if cloudevents::is_binary(headers) => binary(&media_type),
            "application/json" | "text/plain" => Ok(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::Ndjson),
            _ => Err(unsupported(
                format!("Content-Type {content_type:?} is not accepted; send {ACCEPTED}"),
                "Content-Type",
            )),
        }
    }

    /// The events of a whole body.
    pub fn parse<'a>(self, headers: &HeaderMap, body: &'a [u8], subject_is_user: bool) -> Result<Body<'a>, NotJson> {
        match self {
            // NDJSON is read as it streams in, and never comes here.
            Self::Json | Self::Ndjson => parse::json(body),
            Self::CloudEvent => cloudevents::structured(body, subject_is_user).map(Body::One),
            Self::CloudEvents => cloudevents::batch(body, subject_is_user).map(Body::Many),
            Self::BinaryCloudEvent => cloudevents::binary(headers, body, subject_is_user).map(Body::One),
        }
    }
}

fn binary(media_type: &str) -> Result<Format, Problem> {
    if media_type == "application/json" || media_type == "text/json" || media_type.ends_with("+json") {
        return Ok(Format::BinaryCloudEvent);
    }
    let detail = format!("CloudEvents with data of type {media_type:?} are not accepted; send application/json");
    Err(unsupported(detail, "Content-Type"))
}

fn charset(parameters: &str) -> Option<&str> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    })
}

fn is_utf8(charset: &str) -> bool {
    charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(content_type: &str, others: &[(&'static str, &'static str)]) -> Option<Format> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, content_type.parse().expect("a value"));
        }
        for (name, value) in others {
            headers.insert(*name, value.parse().expect("a value"));
        }
        Format::of(&headers).ok()
    }

    #[test]
    fn each_media_type_has_its_format() {
        let table = [
            ("", Some(Format::Json)),
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=UTF-8", Some(Format::Json)),
            ("application/json;charset=\"utf-8\"", Some(Format::Json)),
            ("application/json; v=1; Charset=latin1", None),
            ("text/plain;charset=UTF-8", Some(Format::Json)),
            ("text/plain; charset=utf-16", None),
            ("application/x-ndjson", Some(Format::Ndjson)),
            ("application/ndjson", Some(Format::Ndjson)),
            ("application/jsonl", Some(Format::Ndjson)),
            ("application/cloudevents+json; charset=utf-8", Some(Format::CloudEvent)),
            ("application/cloudevents-batch+json", Some(Format::CloudEvents)),
            ("application/cloudevents+avro", None),
            ("text/csv", None),
            ("application/jsonp", None),
        ];
        for (content_type, wanted) in table {
            assert_eq!(format(content_type, &[]), wanted, "{content_type}");
        }
    }

    #[test]
    fn attributes_in_headers_make_a_binary_cloud_event() {
        let ce = [("ce-specversion", "1.0")];
        for content_type in ["", "application/json", "application/vnd.example+json"] {
            assert_eq!(format(content_type, &ce), Some(Format::BinaryCloudEvent), "{content_type}");
        }
        assert_eq!(format("application/cloudevents+json", &ce), Some(Format::CloudEvent));
        assert_eq!(format("text/plain", &ce), None);
        assert_eq!(format("application/xml", &ce), None);
    }
}
