//! Answers that several routes have in common.

use std::collections::BTreeMap;

use tidemill_common::problem::Problem;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder, Schema};
use utoipa::{IntoResponses, ToSchema};

use crate::answer::{Accepted, BrokenOff, Items, Taken};

type Responses = BTreeMap<String, RefOr<Response>>;

/// To events.
pub struct EventAnswers;

/// To Segment's calls.
pub struct SegmentAnswers;

/// To those who may not operate a project, and where that cannot be told.
pub struct AdminRefusals;

impl IntoResponses for EventAnswers {
    fn responses() -> Responses {
        let verdicts = OneOfBuilder::new().item(reference::<Accepted>()).item(reference::<Items>());
        let taken = "A single event is accepted. Of several: the verdict on each. `Retry-After` is there if some are to \
                     be sent again";
        let open = "Nothing is decided: all are to be sent again";
        collect([
            (202, limited(json(taken, verdicts)).header("Retry-After", retry_after(false))),
            (400, limited(problem::<BrokenOff>("The body or a header is not as it should be"))),
            (409, limited(problem::<Problem>("A single event is in the log already, or its eventId is another's"))),
            (
                422,
                limited(problem::<Problem>("A single event is invalid, or the Idempotency-Key was another request's")),
            ),
            (429, limited(problem::<Problem>("A limit is used up")).header("Retry-After", retry_after(true))),
            (503, limited(problem::<BrokenOff>(open)).header("Retry-After", retry_after(true))),
        ])
        .chain(body_refusals())
        .chain(caller_refusals())
        .collect()
    }
}

impl IntoResponses for SegmentAnswers {
    fn responses() -> Responses {
        let open = "Some events are to be sent again, and so the batch is";
        collect([
            (200, limited(json("All are decided: the verdict on each", reference::<Taken>()))),
            (400, limited(problem::<Problem>("The body is not as it should be"))),
            (429, limited(problem::<BrokenOff>(open)).header("Retry-After", retry_after(true))),
            (503, limited(problem::<BrokenOff>(open)).header("Retry-After", retry_after(true))),
        ])
        .chain(body_refusals())
        .chain(caller_refusals())
        .collect()
    }
}

impl IntoResponses for AdminRefusals {
    fn responses() -> Responses {
        let away = problem::<Problem>("What is asked for cannot be told now").header("Retry-After", retry_after(true));
        let nothing = problem::<Problem>("There is no such schema or project");
        collect([(404, nothing), (503, away)]).chain(caller_refusals()).collect()
    }
}

fn caller_refusals() -> impl Iterator<Item = (String, RefOr<Response>)> {
    let challenge = text_header("How to authenticate", "^Bearer$");
    collect([
        (
            401,
            problem::<Problem>("The API key is missing or not known").header("WWW-Authenticate", required(challenge)),
        ),
        (403, problem::<Problem>("The API key may not do this, or may not stand in a URL")),
    ])
}

fn body_refusals() -> impl Iterator<Item = (String, RefOr<Response>)> {
    collect([
        (408, problem::<BrokenOff>("The body did not arrive in time")),
        (413, problem::<BrokenOff>("The body is too large or has too many events")),
        (415, problem::<Problem>("The Content-Type, charset or Content-Encoding is not accepted")),
    ])
}

fn collect<const N: usize>(answers: [(u16, ResponseBuilder); N]) -> impl Iterator<Item = (String, RefOr<Response>)> {
    answers.into_iter().map(|(status, answer)| (status.to_string(), answer.into()))
}

fn json(description: &str, schema: impl Into<RefOr<Schema>>) -> ResponseBuilder {
    ResponseBuilder::new().description(description).content("application/json", Content::new(Some(schema)))
}

fn problem<T: ToSchema>(description: &str) -> ResponseBuilder {
    let content = Content::new(Some(reference::<T>()));
    ResponseBuilder::new().description(description).content("application/problem+json", content)
}

fn reference<T: ToSchema>() -> Ref {
    Ref::from_schema_name(T::name())
}

/// How the caller's limits stand, where there are some.
fn limited(answer: ResponseBuilder) -> ResponseBuilder {
    let named = |members: &str| format!(r#"^"(key|project)";{members}(, "project";{members})?$"#);
    let policy = "The limits: events per second of the key and of the project (draft-ietf-httpapi-ratelimit-headers)";
    answer
        .header("RateLimit-Policy", text_header(policy, &named("q=[0-9]+;w=1")).build())
        .header("RateLimit", text_header("What is left of them, and for how long", &named("r=[0-9]+;t=1")).build())
}

fn retry_after(always: bool) -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let header = HeaderBuilder::new().schema(Some(seconds)).description(Some("When to try again, in seconds"));
    if always { required(header) } else { header.build() }
}

fn text_header(description: &str, pattern: &str) -> HeaderBuilder {
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    HeaderBuilder::new().schema(Some(schema)).description(Some(description))
}

/// The builder has no word for it.
fn required(header: HeaderBuilder) -> Header {
    header.extensions(Some(Extensions::from_iter([("required", true)]))).build()
}
