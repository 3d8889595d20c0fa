//! A JSON Schema of events' properties: what may be one, and what it says of an event.

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value};
use tidemill_common::promoted::promoted;

use super::limits;

/// Largest schema, in bytes.
pub const MOST_BYTES: usize = 64 * 1024;
/// Largest automaton of one regular expression, in bytes; its cache at run time may be as large again.
const MOST_PATTERN_BYTES: usize = 256 * 1024;
/// Longest that an answer quotes a schema or names a place.
const MOST_CHARACTERS: usize = 300;

/// Why something cannot be a schema, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema {0}")]
pub struct BadSchema(String);

/// Where an event breaks its schema, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `properties`, or a place in it: `properties/price`.
    pub field: String,
    /// What is wrong, without the event's values.
    pub problem: String,
}

/// Reads a schema that somebody wants to register.
pub fn read(text: &str) -> Result<Value, BadSchema> {
    let bad = |problem: String| Err(BadSchema(problem));
    if text.len() > MOST_BYTES {
        return bad(format!("has {} bytes; it may have at most {MOST_BYTES}", text.len()));
    }
    if text.contains("\\u0000") {
        return bad("contains \\u0000, which Postgres cannot store; leave it out".to_owned());
    }
    let document: Value = serde_json::from_str(text).map_err(|error| BadSchema(format!("is not JSON: {error}")))?;
    if !document.is_object() {
        return bad("must be a JSON object, e.g. {\"type\": \"object\", \"properties\": {}}".to_owned());
    }
    if let Some(named) = document.get("type").filter(|named| !allows_objects(named)) {
        return bad(format!("has \"type\": {named}, but describes an event's properties, which are an \"object\""));
    }
    promoted(&document).map_err(|error| BadSchema(format!("promotes a column that cannot be: {error}")))?;
    compile(&document).map(|_| document)
}

fn allows_objects(named: &Value) -> bool {
    named == "object" || named.as_array().is_some_and(|names| names.iter().any(|name| name == "object"))
}

/// Makes a schema ready for checking events. Regular expressions take linear time, nothing is fetched, and
/// `format` is a remark, as it is in draft 2020-12.
pub fn compile(document: &Value) -> Result<Validator, BadSchema> {
    limits::check(document).map_err(BadSchema)?;
    let patterns = PatternOptions::regex().size_limit(MOST_PATTERN_BYTES).dfa_size_limit(MOST_PATTERN_BYTES);
    let options = jsonschema::options().offline().should_validate_formats(false).with_pattern_options(patterns);
    options.build(document).map_err(|error| {
        let place = error.instance_path().to_string();
        let place = if place.is_empty() { "its top".to_owned() } else { cut(place) };
        let hint = if error.to_string().contains("regex") { " (neither look-around nor backreferences)" } else { "" };
        BadSchema(format!("is not JSON Schema at {place}: {}{hint}", cut(error.to_string())))
    })
}

/// The first violation, if there is one. Without properties an event has none: `{}`.
pub fn violation(validator: &Validator, properties: Option<&str>) -> Option<Violation> {
    let instance = match properties.map(serde_json::from_str) {
        None => Value::Object(Map::new()),
        Some(Ok(instance)) => instance,
        Some(Err(error)) => {
            let problem = format!("cannot be checked, {error}; send numbers and nesting that JSON readers take");
            return Some(Violation { field: "properties".to_owned(), problem });
        }
    };
    if validator.is_valid(&instance) {
        return None;
    }
    let error = validator.validate(&instance).err()?;
    let field = cut(format!("properties{}", error.instance_path()));
    Some(Violation { field, problem: cut(error.masked().to_string()) })
}

fn cut(text: String) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_schema_is_refused_with_a_reason() {
        let large = json!({"title": "x".repeat(MOST_BYTES)}).to_string();
        let table = [
            ("{", "not JSON"),
            ("[]", "JSON object"),
            ("true", "JSON object"),
            (&large, "at most 65536"),
            (r#"{"title":"\u0000"}"#, "u0000"),
            (r#"{"type":"string"}"#, "an \"object\""),
            (r#"{"type":"objekt"}"#, "objekt"),
            (r#"{"properties":{"a":{"minLength":"3"}}}"#, "/properties/a/minLength"),
            (r#"{"properties":{"a":{"pattern":"(?<=x)a"}}}"#, "look-around"),
            (r#"{"properties":{"a":{"pattern":"(a{999}){999}"}}}"#, "pattern"),
            (r##"{"$ref":"http://example.com/"}"##, "refers to"),
            (r#"{"properties":{"a":{"type":"array","x-column":"a"}}}"#, "promotes a column"),
        ];
        for (text, word) in table {
            let error = read(text).expect_err(word).to_string();
            assert!(error.contains(word) && error.starts_with("the schema "), "{word}: {error}");
        }
    }

    #[test]
    fn a_violation_names_the_place_but_not_the_value() {
        let schema =
            json!({"properties": {"price": {"type": "number"}, "a": {"pattern": "^(a+)+$"}}, "required": ["price"]});
        let validator = compile(&schema).expect("a schema");
        let find = |properties| violation(&validator, properties);
        assert_eq!(find(Some(r#"{"price":1}"#)), None);
        let wrong = find(Some(r#"{"price":"s3cret"}"#)).expect("a violation");
        assert_eq!(wrong.field, "properties/price");
        assert!(wrong.problem.contains("number") && !wrong.problem.contains("s3cret"), "{wrong:?}");
        let missing = find(None).expect("a violation");
        assert_eq!(missing.field, "properties");
        assert!(missing.problem.contains("price"), "{missing:?}");
        assert!(find(Some(r#"{"price":1e999}"#)).is_some());
        let slow = format!(r#"{{"price":1,"a":"{}!"}}"#, "a".repeat(100_000));
        assert_eq!(find(Some(&slow)).expect("a violation").field, "properties/a");
    }
}
