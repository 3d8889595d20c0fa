//! Errors over HTTP: RFC 9457 `application/problem+json`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// A problem. `kind` is a stable word, sent as `type` (`urn:tidemill:problem:<kind>`). Texts are boxed because
/// results carry problems.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(description = "What went wrong, and what to do (RFC 9457).")]
pub struct Problem {
    /// Stable: what a program decides by.
    #[schema(value_type = String, pattern = "^urn:tidemill:problem:[a-z-]+$")]
    #[serde(rename = "type", serialize_with = "urn")]
    kind: &'static str,
    title: &'static str,
    /// The HTTP status, or what it would be for this event alone.
    #[schema(value_type = u16, minimum = 400, maximum = 599)]
    #[serde(serialize_with = "number")]
    status: StatusCode,
    /// What was wrong and what to do.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// The field at fault.
    #[schema(value_type = String, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Box<str>>,
    /// The event.
    #[schema(value_type = String, required = false)]
    #[serde(rename = "eventId", skip_serializing_if = "Option::is_none")]
    event_id: Option<Box<str>>,
    /// Where a duplicate's first copy stands in the log.
    #[schema(value_type = String, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Box<str>>,
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem: its stable word, its name for people, and what was wrong and what to do.
    pub fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into().into_boxed_str();
        Self { kind, title, status, detail, field: None, event_id: None, position: None, retry_after_s: None }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into().into_boxed_str());
        self
    }

    /// Names the event.
    #[must_use]
    pub fn event_id(mut self, event_id: impl Into<String>) -> Self {
        self.event_id = Some(event_id.into().into_boxed_str());
        self
    }

    /// Says where the event stands in the log.
    #[must_use]
    pub fn position(mut self, position: impl Into<String>) -> Self {
        self.position = Some(position.into().into_boxed_str());
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// Says more.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.detail = format!("{}{more}", self.detail).into_boxed_str();
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// For errors of our own making: logged whole, and told without internals.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "internal error");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "something went wrong here; the log has the cause",
        )
    }

    /// For a component that does not answer.
    pub fn unavailable(what: &str, error: impl std::fmt::Display) -> Self {
        tracing::warn!(%error, what, "unavailable");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "Temporarily unavailable",
            format!("{what} does not answer; try again"),
        )
        .retry_after(1)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

// serde hands these over by reference.
fn urn<S: serde::Serializer>(kind: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("urn:tidemill:problem:{kind}"))
}

fn number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}
