//! Promoted columns: properties that have a column of their own in the archive. The JSON Schema of an event type
//! declares them: `"properties": {"price": {"type": "number", "x-column": "price"}}`. Pure.

use serde_json::Value;

/// The keyword.
pub const KEYWORD: &str = "x-column";
/// Longest name of a column.
const LONGEST: usize = 63;
/// Columns that every table has.
pub const RESERVED: [&str; 13] = [
    "event_id",
    "event_type",
    "event_action",
    "user_id",
    "session_id",
    "occurred_at",
    "received_at",
    "append_time",
    "properties",
    "client_address",
    "user_agent",
    "kafka_partition",
    "kafka_offset",
];

/// What a promoted column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `"type": "string"`
    Text,
    /// `"type": "string", "format": "date-time"`
    Time,
    /// `"type": "integer"`, 64 bits
    Long,
    /// `"type": "number"`
    Double,
    /// `"type": "boolean"`
    Bool,
}

/// A property with a column of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    /// The column's name.
    pub column: String,
    /// What it holds.
    pub kind: Kind,
    /// Where the property is: its name, or the names on the way to it.
    pub path: Vec<String>,
}

/// A declaration that cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{KEYWORD} at properties/{path}: {problem}")]
pub struct BadColumn {
    path: String,
    problem: String,
}

/// What a JSON Schema of an event's properties promotes.
pub fn promoted(schema: &Value) -> Result<Vec<Promoted>, BadColumn> {
    let mut found = Vec::new();
    walk(schema, &mut Vec::new(), &mut found)?;
    for (i, one) in found.iter().enumerate() {
        if found[..i].iter().any(|other| other.column == one.column) {
            let problem = format!("another property has the column {:?} already; give each its own", one.column);
            return Err(BadColumn { path: one.path.join("/"), problem });
        }
    }
    Ok(found)
}

fn walk(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Promoted>) -> Result<(), BadColumn> {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, inner) in properties.into_iter().flatten() {
        path.push(name.clone());
        if let Some(column) = inner.get(KEYWORD) {
            let bad = |problem| BadColumn { path: path.join("/"), problem };
            let (column, kind) = (name_of(column).map_err(bad)?, kind_of(inner).map_err(bad)?);
            found.push(Promoted { column, kind, path: path.clone() });
        }
        walk(inner, path, found)?;
        path.pop();
    }
    Ok(())
}

fn name_of(column: &Value) -> Result<String, String> {
    let name = column.as_str().unwrap_or_default();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || !name.chars().all(plain) || name.len() > LONGEST {
        return Err(format!(
            "{column} is no name of a column; it has a-z, 0-9 and _, begins with a letter and has at most {LONGEST} \
             characters"
        ));
    }
    // SQL takes `eventType` for `event_type`.
    let bare = |name: &str| name.replace('_', "");
    if RESERVED.iter().any(|reserved| bare(reserved) == bare(name)) {
        return Err(format!("every table has the column {name:?} already; choose another name"));
    }
    Ok(name.to_owned())
}

fn kind_of(property: &Value) -> Result<Kind, String> {
    let said = property.get("type");
    let names: Vec<&str> = match said {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect(),
        other => other.and_then(Value::as_str).into_iter().collect(),
    };
    let format = property.get("format").and_then(Value::as_str);
    match (names.as_slice(), format) {
        (["string"], Some("date-time")) => Ok(Kind::Time),
        (["string"], _) => Ok(Kind::Text),
        (["integer"], _) => Ok(Kind::Long),
        (["number"], _) => Ok(Kind::Double),
        (["boolean"], _) => Ok(Kind::Bool),
        _ => {
            let said = said.unwrap_or(&Value::Null);
            Err(format!("a column's property has one \"type\" of string, integer, number and boolean, not {said}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn properties_are_promoted_by_their_schema() {
        let schema = json!({"properties": {
            "price": {"type": "number", "x-column": "price"},
            "page": {"type": "object", "properties": {"depth": {"type": ["integer", "null"], "x-column": "page_depth"}}},
            "at": {"type": "string", "format": "date-time", "x-column": "shipped_at"},
            "other": {"type": "string"},
        }});
        let mut found: Vec<_> = promoted(&schema).expect("valid").into_iter().collect();
        found.sort_by(|a, b| a.column.cmp(&b.column));
        let expected = [
            ("page_depth", Kind::Long, "page/depth"),
            ("price", Kind::Double, "price"),
            ("shipped_at", Kind::Time, "at"),
        ];
        let found: Vec<_> = found.iter().map(|p| (p.column.as_str(), p.kind, p.path.join("/"))).collect();
        assert_eq!(found, expected.map(|(column, kind, path)| (column, kind, path.to_owned())));
    }

    #[test]
    fn what_cannot_be_a_column_is_said() {
        let cases = [
            (json!({"type": "number", "x-column": "Price"}), "no name"),
            (json!({"type": "number", "x-column": 7}), "no name"),
            (json!({"type": "string", "x-column": "eventtype"}), "already"),
            (json!({"type": ["string", "number"], "x-column": "a"}), "one \"type\""),
            (json!({"type": "array", "x-column": "a"}), "one \"type\""),
            (json!({"x-column": "a"}), "one \"type\""),
        ];
        for (property, said) in cases {
            let error = promoted(&json!({"properties": {"p": property}})).expect_err(said).to_string();
            assert!(error.contains(said) && error.contains("properties/p"), "{error}");
        }
        let twice = json!({"properties": {
            "a": {"type": "string", "x-column": "c"}, "b": {"type": "string", "x-column": "c"},
        }});
        assert!(promoted(&twice).expect_err("twice").to_string().contains("each its own"));
    }
}
