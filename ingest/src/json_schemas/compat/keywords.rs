//! What single keywords mean: which types they constrain, and when one follows from an older schema.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// Sets of types.
pub type Types = u8;
/// `object`
pub const OBJECT: Types = 4;
/// `array`
pub const ARRAY: Types = 8;
const STRING: Types = 16;
const INTEGER: Types = 32;
/// Numbers that are no integers.
const FRACTION: Types = 64;
const NUMBER: Types = INTEGER | FRACTION;
const ALL: Types = 127;
const NAMES: [(&str, Types); 7] = [
    ("null", 1),
    ("boolean", 2),
    ("object", OBJECT),
    ("array", ARRAY),
    ("string", STRING),
    ("integer", INTEGER),
    ("number", NUMBER),
];

/// Keywords that drafts before 2020-12 lack, or that constrain only there.
pub const LATEST_ONLY: [&str; 8] = [
    "additionalItems",
    "contentEncoding",
    "contentMediaType",
    "dependentRequired",
    "dependentSchemas",
    "maxContains",
    "minContains",
    "prefixItems",
];

/// How a keyword is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// It constrains nothing.
    Said,
    /// It is judged together with others.
    Elsewhere,
    /// By [`implied`].
    Compared,
    /// It holds a schema of its own.
    Names,
    /// `$ref` beside others.
    Reference,
    /// Only if it and these are the same as they were.
    Together(&'static [&'static str]),
}

/// How a keyword is judged, and what it can constrain.
pub fn group(keyword: &str) -> (Group, Types) {
    match keyword {
        "$anchor" | "$comment" | "$defs" | "$id" | "$schema" | "contentEncoding" | "contentMediaType"
        | "contentSchema" | "default" | "definitions" | "deprecated" | "description" | "examples" | "format"
        | "readOnly" | "title" | "writeOnly" => (Group::Said, ALL),
        _ if keyword.starts_with("x-") => (Group::Said, ALL),
        "type"
        | "properties"
        | "patternProperties"
        | "additionalProperties"
        | "prefixItems"
        | "items"
        | "then"
        | "else"
        | "minContains"
        | "maxContains" => (Group::Elsewhere, ALL),
        "enum" | "const" => (Group::Compared, ALL),
        "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum" | "multipleOf" => (Group::Compared, NUMBER),
        "minLength" | "maxLength" | "pattern" => (Group::Compared, STRING),
        "minItems" | "maxItems" | "uniqueItems" => (Group::Compared, ARRAY),
        "minProperties" | "maxProperties" | "required" | "dependentRequired" => (Group::Compared, OBJECT),
        "propertyNames" => (Group::Names, OBJECT),
        "$ref" => (Group::Reference, ALL),
        "contains" => (Group::Together(&["minContains", "maxContains"]), ARRAY),
        "if" => (Group::Together(&["then", "else"]), ALL),
        "additionalItems" => (Group::Together(&["items"]), ARRAY),
        "dependentSchemas" | "dependencies" => (Group::Together(&[]), OBJECT),
        // allOf, anyOf, oneOf, not, and what nobody knows
        _ => (Group::Together(&[]), ALL),
    }
}

/// The types that a schema's `type`, `enum` and `const` leave.
pub fn types(schema: &Map<String, Value>) -> Types {
    let named = match schema.get("type") {
        None => ALL,
        Some(Value::Array(names)) => names.iter().map(type_of_name).fold(0, |all, one| all | one),
        Some(name) => type_of_name(name),
    };
    named & values(schema).map_or(ALL, |values| values.iter().map(type_of).fold(0, |all, one| all | one))
}

/// The names of types, if there are any.
pub fn types_named(types: Types) -> Option<String> {
    let names =
        NAMES.into_iter().filter(|(name, one)| types & one != 0 && (*name != "number" || types & NUMBER == FRACTION));
    let names: Vec<&str> = names.map(|(name, _)| name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn type_of_name(name: &Value) -> Types {
    NAMES.into_iter().find(|(known, _)| name == known).map_or(0, |(_, types)| types)
}

fn type_of(value: &Value) -> Types {
    match value {
        Value::Null => 1,
        Value::Bool(_) => 2,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
        Value::String(_) => STRING,
        Value::Number(number) if number.is_f64() => NUMBER,
        Value::Number(_) => INTEGER,
    }
}

fn values(schema: &Map<String, Value>) -> Option<&[Value]> {
    match schema.get("const") {
        Some(value) => Some(std::slice::from_ref(value)),
        None => schema.get("enum").and_then(Value::as_array).map(Vec::as_slice),
    }
}

/// Whether a constraint of the new schema follows from the old one by itself; else why not.
pub fn implied(keyword: &str, now: &Value, old: &Map<String, Value>) -> Result<(), String> {
    let before = |name: &str| old.get(name);
    let holds = match keyword {
        "enum" => all_values(old, now.as_array().map_or(&[][..], Vec::as_slice)),
        "const" => all_values(old, std::slice::from_ref(now)),
        "minimum" => above(before("minimum"), now, true) || above(before("exclusiveMinimum"), now, true),
        "exclusiveMinimum" => above(before("minimum"), now, false) || above(before("exclusiveMinimum"), now, true),
        "maximum" => under(before("maximum"), now, true) || under(before("exclusiveMaximum"), now, true),
        "exclusiveMaximum" => under(before("maximum"), now, false) || under(before("exclusiveMaximum"), now, true),
        "minLength" | "minItems" | "minProperties" => now.as_f64() == Some(0.0) || above(before(keyword), now, true),
        "maxLength" | "maxItems" | "maxProperties" => under(before(keyword), now, true),
        "multipleOf" => before(keyword).is_some_and(|before| before == now || is_multiple(before, now)),
        "uniqueItems" => now == false || before(keyword) == Some(now),
        "required" => return required(now, &names(before("required")), ""),
        "dependentRequired" => return dependent(now, old),
        _ => before(keyword) == Some(now), // pattern
    };
    if holds {
        return Ok(());
    }
    Err(match before(keyword) {
        Some(before) => format!("is tightened, from {} to {}", short(before), short(now)),
        None => format!("is new ({})", short(now)),
    })
}

fn all_values(old: &Map<String, Value>, now: &[Value]) -> bool {
    values(old).is_some_and(|before| before.iter().all(|value| now.contains(value)))
}

fn above(before: Option<&Value>, now: &Value, or_equal: bool) -> bool {
    match before.and_then(|before| compare(before, now)) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Equal) => or_equal,
        _ => false,
    }
}

fn under(before: Option<&Value>, now: &Value, or_equal: bool) -> bool {
    before.is_some_and(|before| above(Some(now), before, or_equal))
}

/// Exact, or nothing: large integers are not to be rounded.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    let integer = |value: &Value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (None, None) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Some(integer), None) | (None, Some(integer)) if integer.unsigned_abs() > 1 << 53 => None,
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

fn is_multiple(before: &Value, now: &Value) -> bool {
    matches!((before.as_u64(), now.as_u64()), (Some(before), Some(now)) if now > 0 && before.is_multiple_of(now))
}

fn names(list: Option<&Value>) -> Vec<&str> {
    list.and_then(Value::as_array).map(|names| names.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn required(now: &Value, before: &[&str], when: &str) -> Result<(), String> {
    let missing: Vec<String> =
        names(Some(now)).iter().filter(|name| !before.contains(name)).map(|name| format!("{name:?}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("asks for {} now{when}, which events need not have so far", short(&missing.join(", ").into())))
}

fn dependent(now: &Value, old: &Map<String, Value>) -> Result<(), String> {
    for (name, needed) in now.as_object().into_iter().flatten() {
        let mut before = names(old.get("required"));
        before.extend(names(old.get("dependentRequired").and_then(|all| all.get(name))));
        required(needed, &before, &format!(" where {name:?} is"))?;
    }
    Ok(())
}

/// Text as it is, all else as JSON; not all of it where it is long.
fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
