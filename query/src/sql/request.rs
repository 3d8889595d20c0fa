//! What a caller asks for, by GET or POST.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use tidemill_common::problem::Problem;

use super::error::{bad_request, missing};
use super::format::Format;
use super::line::Priority;

/// A query and how it is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub sql: String,
    pub format: Format,
    pub priority: Priority,
    /// How old an answer may be.
    pub max_age: Option<Duration>,
    /// Whether events that are not archived yet count.
    pub tail: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    sql: String,
    max_age: Option<u64>,
    priority: Option<String>,
    tail: Option<bool>,
}

impl Request {
    /// The parameters of a GET.
    pub fn of_params(params: &HashMap<String, String>, accept: Option<&str>) -> Result<Self, Problem> {
        let sql = params.get("sql").ok_or_else(|| missing("the parameter 'sql' is missing"))?;
        Self::new(sql.clone(), params, accept)
    }

    /// The body of a POST; what it does not say may stand in the URL.
    pub fn of_body(body: &[u8], params: &HashMap<String, String>, accept: Option<&str>) -> Result<Self, Problem> {
        let body: Body = serde_json::from_slice(body).map_err(|error| missing(&error.to_string()))?;
        let mut params = params.clone();
        let said = [
            ("maxAge", body.max_age.map(|age| age.to_string())),
            ("priority", body.priority),
            ("tail", body.tail.map(|tail| tail.to_string())),
        ];
        params.extend(said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Self::new(body.sql, &params, accept)
    }

    fn new(sql: String, params: &HashMap<String, String>, accept: Option<&str>) -> Result<Self, Problem> {
        let format = Format::accepted(accept).ok_or_else(super::error::not_acceptable)?;
        let max_age = params.get("maxAge").map(|text| text.parse::<u32>()).transpose();
        let max_age = max_age.map_err(|_| bad_request("maxAge is a number of seconds, such as 60"))?;
        let priority = params.get("priority").map_or(Some(Priority::Interactive), |name| Priority::parse(name));
        let tail = match params.get("tail").map(String::as_str) {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(bad_request("tail is true or false")),
        };
        Ok(Self {
            sql,
            format,
            priority: priority.ok_or_else(|| bad_request("priority is interactive or batch"))?,
            max_age: max_age.map(|seconds| Duration::from_secs(seconds.into())),
            tail,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_methods_say_the_same() {
        let params = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let all = params(&[("sql", "SELECT 1"), ("maxAge", "60"), ("priority", "batch"), ("tail", "false")]);
        let get = Request::of_params(&all, Some("text/csv")).expect("a request");
        let body = br#"{"sql":"SELECT 1","maxAge":60,"priority":"batch","tail":false}"#;
        let post = Request::of_body(body, &HashMap::new(), Some("text/csv")).expect("a request");
        assert_eq!(get, post);
        let expected = Request {
            sql: "SELECT 1".to_owned(),
            format: Format::Csv,
            priority: Priority::Batch,
            max_age: Some(Duration::from_secs(60)),
            tail: false,
        };
        assert_eq!(get, expected);
        let plain = Request::of_params(&params(&[("sql", "x")]), None).expect("a request");
        assert_eq!((plain.priority, plain.max_age, plain.tail), (Priority::Interactive, None, true));
        for bad in [("maxAge", "-1"), ("maxAge", "soon"), ("priority", "high"), ("tail", "1")] {
            assert!(Request::of_params(&params(&[("sql", "x"), bad]), None).is_err(), "{bad:?}");
        }
        assert!(Request::of_params(&params(&[]), None).is_err());
        assert!(Request::of_params(&params(&[("sql", "x")]), Some("image/png")).is_err());
        assert!(Request::of_body(br#"{"sql":"x","max_age":1}"#, &HashMap::new(), None).is_err(), "a misspelt field");
    }
}
